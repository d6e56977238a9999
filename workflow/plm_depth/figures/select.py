"""Which rows of the metric tables a figure shows: the one place where inputs, positions and null models are chosen.

Primary inputs, for every figure alike:

* autoregressive models: reading from N to C;
* masked models: the noise level next to 15 % (``PRIMARY_NOISE``), so 15 % wherever it was measured;
* diffusion models: the mean over the noise grid;
* condition ``seq`` and the sequence read-out; contributions over all residues; the lens read at hidden (or next)
  residues, renormalised over the 20 canonical ones;
* skip effects: zero ablation, mean over positions, not the direct effects alone; read after the silenced positions
  (autoregressive) or at those that were not silenced (masked, diffusion); output over the 20 canonical residues.

Values, intervals and counts are those of the tables. The only arithmetic here is for the drawing: the relative depth of
a layer, and the mean and range of an untrained network over its seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from plm_depth.positions import PRIMARY_POSITIONS
from plm_depth.views import MEAN_OVER_NOISE

PRIMARY_NOISE = 0.15  # share of residues hidden in training of the masked models
TRAINED, UNTRAINED = "trained", "randinit"
OBJECTIVES = ("ar", "mlm", "diffusion")
STATES = ("norm_h", "var_h", "massive")  # contributions that belong to a state; every lens quantity does too

# The columns of a figure's numbers, in this order (training curves, which have no depth, have their own).
NUMBERS = {
    "model": pl.String,
    "display_name": pl.String,
    "family": pl.String,
    "objective": pl.String,
    "n_blocks": pl.Int64,
    "network": pl.String,  # trained or untrained
    "n_seeds": pl.Int64,  # untrained networks behind the row; 1 for trained
    "direction": pl.String,
    "noise_t": pl.Float64,  # share of residues hidden; -1 mean over the noise grid; NaN for autoregressive models
    "quantity": pl.String,
    "parameter": pl.Float64,  # threshold of a summary statistic; NaN otherwise
    "aggregate": pl.String,
    "layer": pl.Int64,  # null where a number has no layer
    "relative_depth": pl.Float64,
    "value": pl.Float64,
    "lo": pl.Float64,
    "hi": pl.Float64,
    "interval": pl.String,  # what lo and hi are: bootstrap, standard error (1.96 on each side), seeds or none
    "n_seq": pl.Int64,
    "n_cluster": pl.Int64,
    "n_boot": pl.Int64,
}

# The columns of the numbers of skip effects, in this order.
EFFECT_NUMBERS = {
    **{column: NUMBERS[column] for column in tuple(NUMBERS)[: tuple(NUMBERS).index("quantity")]},
    "quantity": pl.String,
    "part": pl.String,  # what is silenced in the source block
    "pos_set": pl.String,  # where it is silenced; see plm_depth.activations.interventions
    "aggregate": pl.String,
    "source": pl.Int64,  # block that is silenced; null in means over sources
    "target": pl.Int64,  # block whose update is read; null in means over targets and for output changes
    **{column: NUMBERS[column] for column in tuple(NUMBERS)[tuple(NUMBERS).index("relative_depth") :]},
    "below_floor": pl.Float64,  # share of proteins below three noise floors
}
# The columns of the numbers of the stream's geometry, in this order.
GEOMETRY_NUMBERS = {
    **{column: NUMBERS[column] for column in tuple(NUMBERS)[: tuple(NUMBERS).index("quantity")]},
    "quantity": pl.String,  # with the kind of points, as ``geometry_name`` puts it
    "points": pl.String,  # residue or pooled
    "space": pl.String,  # raw, zscore or fnorm
    "aggregate": pl.String,
    "other_model": pl.String,  # model of other_layer
    "layer": pl.Int64,  # null in statistics of all layers
    "other_layer": pl.Int64,  # null in statistics of one layer
    **{column: NUMBERS[column] for column in tuple(NUMBERS)[tuple(NUMBERS).index("relative_depth") :]},
    "n_points": pl.Int64,  # points behind the value
    "n_nan": pl.Int64,  # points without a value, or coinciding with another
}
# The columns of the numbers of effective depths, in this order.
DEPTH_NUMBERS = {
    **{column: NUMBERS[column] for column in tuple(NUMBERS)[: tuple(NUMBERS).index("quantity")]},
    "index": pl.String,  # I1 to I10
    "kind": pl.String,  # where or amount
    "quantity": pl.String,  # the definition
    **{column: NUMBERS[column] for column in tuple(NUMBERS)[tuple(NUMBERS).index("value") :]},
}
HALF_WIDTH = 1.96  # standard errors on each side of a 95 % interval
# The columns of the numbers of depth ablations, in this order.
ABLATION_NUMBERS = {
    **{column: NUMBERS[column] for column in tuple(NUMBERS)[: tuple(NUMBERS).index("quantity")]},
    "quantity": pl.String,
    "op": pl.String,  # see plm_depth.activations.ablation
    "policy": pl.String,
    "start": pl.Int64,  # blocks passed before the change; null where spans of several starts are averaged
    "length": pl.Int64,
    "aggregate": pl.String,
    **{column: NUMBERS[column] for column in tuple(NUMBERS)[tuple(NUMBERS).index("relative_depth") :]},
}
HALVES = ("EE", "EL", "LL")  # skip effects that belong to no single block


class FigureError(ValueError):
    """Tables or options from which a figure cannot be drawn; says what was expected, what came and the mend."""


@dataclass(frozen=True)
class Model:
    """One model as figures show it: identity, names, depth (None: not known); toys are no evidence about real ones."""

    model: str
    display_name: str
    family: str
    objective: str
    family_name: str
    n_blocks: int | None = None
    is_toy: bool = False
    reads_residues: bool = True  # whether residues are read out one by one


@dataclass(frozen=True)
class Study:
    """Everything a figure may draw.

    Attributes:
        models: in the order of the study.
        profiles: PROFILE rows at primary inputs (``primary_rows``), trained and untrained.
        summaries: SUMMARY rows at primary inputs.
        losses: LOSS rows.
        skips: SKIP rows at primary inputs.
        verdicts: VERDICT rows.
        geometries: GEOM rows of one model each, at clean or autoregressive inputs.
        pairs: GEOM rows of two models each, at the same inputs.
        ablations: ABLATION rows at primary inputs.
        fitness, fitness_summaries: FITNESS rows, and SUMMARY rows of them, at all inputs.
        probes: PROBES rows, at all inputs.
        depths: DEPTHS rows, which are at primary inputs already.
        taus: DEPTH_TAU rows.
        attributions: ATTRIBUTION rows at primary inputs.
        attribution_maps: ATTRIBUTION_MAP rows at primary inputs.
        tuned_lenses: PROFILE rows of the tuned lens and of the logit lens beside it, at primary inputs.
        structure_heads: PROFILE rows of structure heads, at primary inputs.
    """

    models: Sequence[Model]
    profiles: pl.DataFrame = field(default_factory=pl.DataFrame)
    summaries: pl.DataFrame = field(default_factory=pl.DataFrame)
    losses: pl.DataFrame = field(default_factory=pl.DataFrame)
    skips: pl.DataFrame = field(default_factory=pl.DataFrame)
    verdicts: pl.DataFrame = field(default_factory=pl.DataFrame)
    geometries: pl.DataFrame = field(default_factory=pl.DataFrame)
    pairs: pl.DataFrame = field(default_factory=pl.DataFrame)
    ablations: pl.DataFrame = field(default_factory=pl.DataFrame)
    fitness: pl.DataFrame = field(default_factory=pl.DataFrame)
    fitness_summaries: pl.DataFrame = field(default_factory=pl.DataFrame)
    probes: pl.DataFrame = field(default_factory=pl.DataFrame)
    depths: pl.DataFrame = field(default_factory=pl.DataFrame)
    taus: pl.DataFrame = field(default_factory=pl.DataFrame)
    attributions: pl.DataFrame = field(default_factory=pl.DataFrame)
    attribution_maps: pl.DataFrame = field(default_factory=pl.DataFrame)
    tuned_lenses: pl.DataFrame = field(default_factory=pl.DataFrame)
    structure_heads: pl.DataFrame = field(default_factory=pl.DataFrame)


def models_of(rows: object) -> list[Model]:
    """Return the models that a parsed ``--models`` file lists, in its order.

    Args:
        rows: a list of mappings with ``model``, ``display_name``, ``family`` and ``objective``; optional are
            ``n_blocks`` (else the tables tell it), ``family_name`` (how figures call the family, else ``family``) and
            ``toy`` and ``reads_residues`` (true or false). Further keys are not read.
    Raises:
        FigureError: not such a list, an empty one, a model listed twice, or a key that is missing or of another type.
    """
    if not isinstance(rows, list) or not rows:
        raise FigureError(f"--models holds {type(rows).__name__}, expected a list of at least one model")
    models: dict[str, Model] = {}
    for number, row in enumerate(rows, start=1):
        where = f"--models, entry {number}"
        if not isinstance(row, Mapping):
            raise FigureError(f"{where}: {row!r}, expected an object with the keys of one model")
        row = {"family_name": row.get("family"), "n_blocks": None, "toy": False, "reads_residues": True, **row}
        for key in ("model", "display_name", "family", "objective", "family_name"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise FigureError(f"{where}: {key} is {row.get(key)!r}, expected a text")
        if row["objective"] not in OBJECTIVES:
            raise FigureError(f"{where}: objective is {row['objective']!r}, expected one of {', '.join(OBJECTIVES)}")
        n_blocks = row["n_blocks"]
        if n_blocks is not None and (type(n_blocks) is not int or n_blocks < 1):
            raise FigureError(f"{where}: n_blocks is {n_blocks!r}, expected a whole number from 1 on, or no such key")
        for key in ("toy", "reads_residues"):
            if not isinstance(row[key], bool):
                raise FigureError(f"{where}: {key} is {row[key]!r}, expected true or false")
        if row["model"] in models:
            raise FigureError(f"--models lists {row['model']!r} twice; keep one entry")
        models[row["model"]] = Model(
            model=row["model"],
            display_name=row["display_name"].strip(),
            family=row["family"],
            objective=row["objective"],
            family_name=row["family_name"].strip(),
            n_blocks=n_blocks,
            is_toy=row["toy"],
            reads_residues=row["reads_residues"],
        )
    return list(models.values())


def with_depths(models: Sequence[Model], tables: Sequence[pl.DataFrame]) -> list[Model]:
    """Return the models with the number of blocks that the tables (PROFILE, SUMMARY) tell.

    Raises:
        FigureError: tables disagree with each other or with a depth that is known.
    """
    told: dict[str, set[int]] = {}
    for table in tables:
        for model, n_blocks in table.select("model_id", "n_blocks").unique().iter_rows():
            told.setdefault(model, set()).add(n_blocks)
    found = []
    for model in models:
        depths = told.get(model.model, set()) | ({model.n_blocks} - {None})
        if len(depths) > 1:
            raise FigureError(
                f"{model.model} has {' and '.join(map(str, sorted(depths)))} blocks in tables and --models; these are "
                "different models: give tables and list of one run"
            )
        found.append(replace(model, n_blocks=depths.pop() if depths else None))
    return found


def primary_rows(table: pl.DataFrame, condition: str = "seq", *, of_structures: bool = False) -> pl.DataFrame:
    """Return the rows of PROFILE, SUMMARY or SKIP at primary inputs, of trained and untrained networks, in their order.

    Args:
        condition: what the models are shown.
        of_structures: the rows of the structure head instead of all others.

    Rows of the table ``contributions`` are kept for all residues, those of ``lens`` for the aa20 read-out at hidden or
    next residues; both only where the table has these columns.
    """
    if table.is_empty():
        return table
    is_noisy = (pl.col("objective") == "mlm") & (pl.col("noise_t") > 0) & (pl.col("noise_t") < 1)
    # Rounding: the column is float32, and of two levels equally far the lower one counts.
    distance = (pl.col("noise_t").cast(pl.Float64) - PRIMARY_NOISE).abs().round(6)
    chosen = (
        table.filter(is_noisy)
        .select("model_id", "noise_t", distance.alias("distance"))
        .unique()
        .sort("model_id", "distance", "noise_t")
        .group_by("model_id", maintain_order=True)
        .first()
        .select("model_id", primary_noise="noise_t")
    )
    kept = table.join(chosen, on="model_id", how="left", maintain_order="left").filter(
        pl.col("null_model").is_in([TRAINED, UNTRAINED])
        & (pl.col("condition") == condition)
        & ((pl.col("readout") == "struct") == of_structures)
        & (
            ((pl.col("objective") == "ar") & (pl.col("direction") == "n2c"))
            | ((pl.col("objective") == "mlm") & (pl.col("noise_t") == pl.col("primary_noise")))
            | ((pl.col("objective") == "diffusion") & (pl.col("noise_t") == MEAN_OVER_NOISE))
        )
    )
    if "pos_class" in table.columns:
        kept = kept.filter(
            ((pl.col("table") == "contributions") & (pl.col("pos_class") == "residue"))
            | ((pl.col("table") == "lens") & (pl.col("pos_class") == "logit") & (pl.col("vocab") == "aa20"))
            | ((pl.col("table") == "tuned_lens") & (pl.col("vocab") == "aa20"))
            | (pl.col("table") == "structure_heads")
        )
    return kept.drop("primary_noise")


def clean_rows(table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of GEOM that figures show: nothing hidden, or reading from N to C; trained and untrained."""
    return table.filter(
        pl.col("null_model").is_in([TRAINED, UNTRAINED])
        & (pl.col("condition") == "seq")
        & (pl.col("readout") != "struct")
        & ((pl.col("direction") == "n2c") | (pl.col("noise_t") == 0))
    )


def profile_numbers(
    study: Study, *, table: str, quantities: Sequence[str], aggregates: Sequence[str] = ("mean",)
) -> pl.DataFrame:
    """Return the profiles of every model of the study (``NUMBERS``), trained first, then untrained where measured.

    Args:
        table: "contributions" or "lens".
        quantities, aggregates: which rows, in the order in which they shall stand.
    Raises:
        FigureError: a model lacks a quantity or one of its layers, a row stands twice, or every value is undefined.
    """
    found = study.profiles
    if not found.is_empty():
        found = found.filter(
            (pl.col("table") == table)
            & pl.col("quantity").is_in(list(quantities))
            & pl.col("aggregate").is_in(list(aggregates))
        )
    is_state = table == "lens"
    parts = []
    for model in study.models:
        rows = _rows_of(found, model, what="profiles")
        for quantity in quantities:
            first = 0 if is_state or quantity in STATES else 1
            for aggregate in aggregates:
                one = rows.filter((pl.col("quantity") == quantity) & (pl.col("aggregate") == aggregate))
                _check_profile(one, model, f"{quantity} ({aggregate})", range(first, model.n_blocks + 1))
        shift = pl.when(pl.lit(is_state) | pl.col("quantity").is_in(STATES)).then(0.0).otherwise(0.5)
        parts.append(
            rows.with_columns(
                parameter=pl.lit(math.nan),
                relative_depth=(pl.col("layer").cast(pl.Float64) - shift) / model.n_blocks,
            )
        )
    return _tidy(pl.concat(parts), study.models, quantities, aggregates)


def summary_numbers(study: Study, *, statistics: Sequence[tuple[str, str]]) -> pl.DataFrame:
    """Return summary statistics of every model of the study (``NUMBERS``), at every threshold they were computed for.

    ``quantity`` is "statistic: profile", ``parameter`` the threshold; larger thresholds stand first.

    Args:
        statistics: (stat, profile), in the order in which they shall stand.
    Raises:
        FigureError: a model lacks a statistic or has it twice, or models were summarised at different thresholds.
    """
    parts, thresholds = [], {}
    for model in study.models:
        rows = _rows_of(study.summaries, model, what="summaries")
        for stat, profile in statistics:
            name = statistic_name(stat, profile)
            one = rows.filter((pl.col("stat") == stat) & (pl.col("profile") == profile))
            trained = one.filter(pl.col("null_model") == TRAINED)
            if trained.is_empty():
                raise FigureError(f"summaries of {model.model}: no trained row of {name}; run metrics.summary again")
            if one.select("null_model", "null_seed", "param").is_duplicated().any():
                raise FigureError(f"summaries of {model.model}: {name} stands twice; give each table once")
            own = sorted(trained["param"].to_list())
            if str(own) != str(thresholds.setdefault(name, own)):  # as text, because NaN differs from itself
                raise FigureError(
                    f"summaries of {model.model}: {name} at {own}, but at {thresholds[name]} for "
                    f"{study.models[0].model}; run metrics.summary again with the same thresholds"
                )
            parts.append(
                one.with_columns(
                    quantity=pl.lit(name),
                    parameter=pl.col("param"),
                    aggregate=pl.lit("statistic"),
                    layer=pl.lit(None, pl.Int64),
                    relative_depth=pl.lit(math.nan),
                )
            )
    names = list(dict.fromkeys(statistic_name(*statistic) for statistic in statistics))
    return _tidy(pl.concat(parts), study.models, names, ["statistic"])


@dataclass(frozen=True)
class Effect:
    """One quantity of the skip tables that a figure shows.

    Attributes:
        quantity: as in the tables.
        part: what is silenced in the source block.
        is_everywhere: silenced (and read) at all positions, instead of at the primary ones.
        is_optional: whether a model may lack it.
    """

    quantity: str
    part: str = "layer"
    is_everywhere: bool = False
    is_optional: bool = False

    def pos_set(self, objective: str) -> str:
        """Return where the block is silenced in a model of this objective."""
        return "all" if self.is_everywhere else PRIMARY_POSITIONS[objective]


def effect_numbers(study: Study, *, effects: Sequence[Effect]) -> pl.DataFrame:
    """Return skip effects of every model of the study (``EFFECT_NUMBERS``), trained first, then untrained.

    A block stands at relative depth (k - 1/2) / n; effects between two blocks and means over a half have none.

    Args:
        effects: which rows, in the order in which they shall stand.
    Raises:
        FigureError: a model lacks an effect that is not optional, or one of its blocks, or a row stands twice.
    """
    parts = []
    for model in study.models:
        rows = _rows_of(study.skips, model, what="skips").filter(
            ~pl.col("local") & (pl.col("ablation") == "zero") & (pl.col("agg") == "mean") & (pl.col("vocab") != "full")
        )
        for place, effect in enumerate(effects):
            pos_set = effect.pos_set(model.objective)
            own = rows.filter(
                (pl.col("quantity") == effect.quantity)
                & (pl.col("part") == effect.part)
                & (pl.col("pos_set") == pos_set)
            )
            if effect.is_optional and own.is_empty():
                continue
            _check_effect(own, model, effect, pos_set)
            parts.append(own.with_columns(order=pl.lit(place)))
    block = pl.coalesce("source", "target").cast(pl.Float64)
    rows = (
        pl.concat(parts)
        .with_columns(
            source=pl.when(pl.col("src") > 0).then(pl.col("src").cast(pl.Int64)),
            target=pl.when(pl.col("tgt") > 0).then(pl.col("tgt").cast(pl.Int64)),
            aggregate=pl.col("agg"),
        )
        .with_columns(
            relative_depth=pl.when((pl.col("quantity") == "effect") | block.is_null())
            .then(math.nan)
            .otherwise((block - 0.5) / pl.col("n_blocks"))
        )
    )
    keys = ["model_id", "direction", "noise_t", "quantity", "part", "pos_set", "aggregate", "source", "target",
            "relative_depth", "order"]  # fmt: skip
    return (
        named(networks(rows, keys, shares=["below_floor"]), study.models)
        .sort("place", "order", "network", "source", "target", maintain_order=True)
        .select(pl.col(column).cast(kind) for column, kind in EFFECT_NUMBERS.items())
    )


@dataclass(frozen=True)
class Geometry:
    """One quantity of the geometry tables that a figure shows.

    Attributes:
        quantity: as in the tables.
        points: residue or pooled.
        other: of two layers: "all" pairs, the "next" layer, or the "last" one; of one layer: None; of "no" layer.
        space: in which the cloud is looked at.
    """

    quantity: str
    points: str = "residue"
    other: str | None = None
    space: str = "raw"


def geometry_name(wanted: Geometry) -> str:
    """Return the name under which a quantity stands in a figure's numbers."""
    relation = {"next": ", next layer", "last": ", last layer"}.get(wanted.other, "")
    return f"{wanted.quantity}: {wanted.points}{relation}"


def geometry_numbers(study: Study, *, wanted: Sequence[Geometry], kind: str = "geometries") -> pl.DataFrame:
    """Return geometry of every model that has a table of it (``GEOMETRY_NUMBERS``), trained first, then untrained.

    Args:
        kind: "geometries", or "pairs" for the tables of two models.

    A layer stands at relative depth k / n, a layer and the next one in between. Intervals of trained networks are 1.96
    standard errors on each side. Kinds of points and spaces that were not measured are left out.

    Raises:
        FigureError: nothing of what is wanted was measured, or a row stands twice.
    """
    table = getattr(study, kind)
    layer, other = pl.col("layer_i").cast(pl.Float64), pl.col("layer_j").cast(pl.Float64)
    n = pl.col("n_blocks").cast(pl.Float64)
    relations = {
        "no": (pl.col("layer_i") == -1, pl.lit(math.nan)),
        None: (pl.col("layer_j") == -1, layer / n),
        "all": (pl.col("layer_j") >= 0, pl.lit(math.nan)),
        "next": (pl.col("layer_j") == pl.col("layer_i") + 1, (layer + other) / (2 * n)),
        "last": (pl.col("layer_j") == pl.col("n_blocks"), layer / n),
    }
    parts = []
    for place, one in enumerate(wanted):
        is_related, depth = relations[one.other]
        rows = table.filter(
            (pl.col("quantity") == one.quantity)
            & (pl.col("points") == one.points)
            & (pl.col("space") == one.space)
            & is_related
        )
        # Of several sizes of a cloud the largest is shown.
        largest = rows.group_by("model_id").agg(largest=pl.col("share").max())
        rows = rows.join(largest, on="model_id").filter(pl.col("share") == pl.col("largest"))
        parts.append(
            rows.with_columns(
                quantity=pl.lit(geometry_name(one)), relative_depth=depth, aggregate=pl.lit("mean"), order=pl.lit(place)
            )
        )
    found = pl.concat(parts)
    if found.is_empty():
        raise FigureError(
            f"--{kind}: no row of {', '.join(map(geometry_name, wanted))} at clean or autoregressive inputs; "
            "measure them (geometry in the config) or leave this figure out"
        )
    keys = ["model_id", "other_model", "direction", "noise_t", "quantity", "points", "space", "aggregate", "layer",
            "other_layer", "relative_depth", "order"]  # fmt: skip
    found = found.with_columns(
        other_model=pl.col("model_j"),
        layer=pl.when(pl.col("layer_i") >= 0).then(pl.col("layer_i").cast(pl.Int64)),
        other_layer=pl.when(pl.col("layer_j") >= 0).then(pl.col("layer_j").cast(pl.Int64)),
        ci_lo=pl.col("value") - HALF_WIDTH * pl.col("se"),
        ci_hi=pl.col("value") + HALF_WIDTH * pl.col("se"),
        n_boot=pl.lit(0),
    )
    if found.select("null_model", "null_seed", *keys).is_duplicated().any():
        raise FigureError(f"--{kind}: a row stands twice; give one table a model or pair")
    return (
        named(networks(found, keys, shares=["n_points", "n_nan"]), study.models)
        .with_columns(pl.col("interval").replace({"bootstrap": "standard error"}))
        .sort("place", "other_model", "order", "network", "layer", "other_layer", maintain_order=True)
        .select(pl.col(column).cast(dtype) for column, dtype in GEOMETRY_NUMBERS.items())
    )


def depth_numbers(study: Study, *, definitions: Sequence[str]) -> pl.DataFrame:
    """Return effective depths of every model (``DEPTH_NUMBERS``), trained first, then untrained.

    Args:
        definitions: those that are wanted, in the order in which they shall stand; a model may lack some.
    Raises:
        FigureError: a model has none of them, or one twice.
    """
    parts = []
    for model in study.models:
        rows = _rows_of(study.depths, model, what="depths").filter(pl.col("definition").is_in(list(definitions)))
        if rows.is_empty():
            raise FigureError(f"depths of {model.model}: none of {', '.join(definitions)}; run metrics.depths again")
        if rows.select("null_model", "null_seed", "definition").is_duplicated().any():
            raise FigureError(f"depths of {model.model}: a definition stands twice; give one table of one data set")
        parts.append(rows.with_columns(quantity=pl.col("definition")))
    keys = ["model_id", "direction", "noise_t", "index", "kind", "quantity"]
    order = {name: place for place, name in enumerate(definitions)}
    return (
        named(networks(pl.concat(parts), keys), study.models)
        .sort("place", pl.col("quantity").replace_strict(order), "network", maintain_order=True)
        .select(pl.col(column).cast(kind) for column, kind in DEPTH_NUMBERS.items())
    )


def _check_effect(rows: pl.DataFrame, model: Model, effect: Effect, pos_set: str) -> None:
    label = f"{effect.quantity} of {effect.part} at {pos_set}"
    blocks = range(1, model.n_blocks + 1)
    expected = {
        "effect": [(i, j) for i in blocks for j in blocks if i <= j],
        "dependence": [(-1, j) for j in blocks],
        **{name: [(-1, -1)] for name in HALVES},
    }.get(effect.quantity, [(i, -1) for i in blocks])
    if rows.filter(pl.col("null_model") == TRAINED).is_empty():
        raise FigureError(
            f"skips of {model.model}: no trained row of {label}; measure it (effects: skips: parts and pos_sets in the "
            "config) or leave this figure out"
        )
    for (null, seed), one in rows.group_by("null_model", "null_seed", maintain_order=True):
        came = one.select("src", "tgt").sort("src", "tgt").rows()
        if came != expected:
            raise FigureError(
                f"skips of {model.model} ({null}, seed {seed}): {len(came)} rows of {label}, expected {len(expected)}, "
                f"each block or pair of the {model.n_blocks} blocks once; run metrics.skip again"
            )


def ablation_numbers(study: Study, *, wanted: pl.Expr, depth: pl.Expr) -> pl.DataFrame:
    """Return depth ablations of the models that were ablated (``ABLATION_NUMBERS``), trained first, then untrained.

    Models without rows (not asked for, or read by tokens that are not residues) are left out.

    Args:
        wanted: which rows, an expression of the columns of ABLATION.
        depth: what stands as ``relative_depth``, from the same columns.
    Raises:
        FigureError: no model was ablated, a model lacks the trained network, or a row stands twice.
    """
    table = study.ablations
    measured = [m for m in study.models if not table.is_empty() and m.model in set(table["model_id"])]
    if not measured:
        raise FigureError("ablations: no model has rows at its primary input; run metrics.ablation, or leave this out")
    rows = pl.concat([_rows_of(table, model, what="ablations") for model in measured]).filter(wanted)
    for model in measured:
        own = rows.filter((pl.col("model_id") == model.model) & (pl.col("null_model") == TRAINED))
        keys = ["op", "policy", "start", "length", "quantity", "reads"]
        if own.select(keys).is_duplicated().any():
            raise FigureError(f"ablations of {model.model}: a row stands twice; give each table once")
    if rows.filter(pl.col("null_model") == TRAINED).is_empty():
        raise FigureError("ablations: nothing of this figure was measured; add its ops to the section ablation")
    rows = rows.with_columns(
        relative_depth=depth.cast(pl.Float64),
        aggregate=pl.lit("mean"),
        start=pl.when(pl.col("start") >= 0).then(pl.col("start").cast(pl.Int64)),
    )
    keys = ["model_id", "direction", "noise_t", "quantity", "op", "policy", "start", "length", "aggregate",
            "relative_depth"]  # fmt: skip
    return (
        named(networks(rows, keys), study.models)
        .sort("place", "quantity", "op", "policy", "network", "length", "start", maintain_order=True)
        .select(pl.col(column).cast(kind) for column, kind in ABLATION_NUMBERS.items())
    )


@dataclass(frozen=True)
class Attributed:
    """One quantity of the attribution tables that a figure shows; ``object`` and ``target`` as in these tables."""

    object: str
    target: str
    quantity: str
    is_optional: bool = False

    @property
    def name(self) -> str:
        """Return the name under which it stands in a figure's numbers."""
        return statistic_name(self.quantity, f"{self.object} {self.target}")

    def layers(self, n_blocks: int) -> list[int]:
        """Return the layers at which it must be defined."""
        if self.quantity in ("gained", "erasure_depth", "depth_score", "n80", "participation", "half_contrast"):
            return [-1]
        return list(range(0 if self.object.startswith("erase") or self.object == "layer" else 1, n_blocks + 1))


def measured_models(models: Sequence[Model], table: pl.DataFrame) -> list[Model]:
    """Return the models that a table of an optional section has rows of, in the order of the study."""
    present = set() if table.is_empty() else set(table["model_id"])
    return [model for model in models if model.model in present]


def attribution_numbers(study: Study, *, wanted: Sequence[Attributed]) -> pl.DataFrame:
    """Return attributions and erasures of every measured model (``NUMBERS``), trained first, then untrained.

    A block stands at relative depth (k - 1/2) / n, a state at k / n. The section of the config names the models that
    are measured; those without any row are left out.

    Args:
        wanted: which rows, in the order in which they shall stand.
    Raises:
        FigureError: no model was measured, a model lacks a quantity that is not optional or one of its layers, or a row
            stands twice.
    """
    models = measured_models(study.models, study.attributions)
    if not models:
        raise FigureError("attributions: no rows at primary inputs; measure at least one model (attribution: models)")
    parts = []
    for model in models:
        rows = _rows_of(study.attributions, model, what="attributions")
        for one in wanted:
            own = rows.filter(
                (pl.col("object") == one.object)
                & (pl.col("target") == one.target)
                & (pl.col("quantity") == one.quantity)
            )
            trained = own.filter(pl.col("null_model") == TRAINED)
            if trained.is_empty():
                if one.is_optional:
                    continue
                raise FigureError(
                    f"attributions of {model.model}: no trained row of {one.name}; measure it (attribution: methods "
                    "and targets in the config) or leave this figure out"
                )
            for (null, seed), network in own.group_by("null_model", "null_seed", maintain_order=True):
                came = network["layer"].sort().to_list()
                if came != one.layers(model.n_blocks):
                    raise FigureError(
                        f"attributions of {model.model} ({null}, seed {seed}): {one.name} has layers {came}, expected "
                        f"{one.layers(model.n_blocks)}; run metrics.attribution again"
                    )
            layer, is_state = pl.col("layer").cast(pl.Float64), 0 in one.layers(model.n_blocks)
            parts.append(
                own.with_columns(
                    quantity=pl.lit(one.name),
                    parameter=pl.lit(math.nan),
                    aggregate=pl.lit("mean"),
                    layer=pl.when(pl.col("layer") >= 0).then(pl.col("layer").cast(pl.Int64)),
                    relative_depth=pl.when(pl.col("layer") < 0)
                    .then(math.nan)
                    .otherwise((layer - (0.0 if is_state else 0.5)) / model.n_blocks),
                )
            )
    return _tidy(pl.concat(parts), study.models, [one.name for one in wanted], ["mean"])


def tuned_lens_numbers(study: Study, *, quantity: str) -> pl.DataFrame:
    """Return one quantity of the tuned and of the logit lens of every measured model, and kl_bg (``NUMBERS``).

    The column ``aggregate`` says "tuned lens" or "logit lens"; rows of kl_bg have no layer.

    Raises:
        FigureError: no model was measured, a model lacks a lens or a layer, or a row stands twice.
    """
    models = measured_models(study.models, study.tuned_lenses)
    if not models:
        raise FigureError("tuned_lenses: no rows at primary inputs; fit at least one model (tuned_lens: models)")
    parts = []
    for model in models:
        rows = _rows_of(study.tuned_lenses, model, what="tuned_lenses").filter(pl.col("aggregate") == "mean")
        for lens in ("tuned", "logit"):
            own = rows.filter((pl.col("quantity") == quantity) & (pl.col("pos_class") == lens))
            _check_profile(own, model, f"{quantity} ({lens})", range(model.n_blocks + 1))
            parts.append(own.with_columns(aggregate=pl.lit(f"{lens} lens")))
        background = rows.filter((pl.col("quantity") == "kl_bg") & (pl.col("pos_class") == "tuned"))
        parts.append(background.with_columns(aggregate=pl.lit("tuned lens")))
    layer = pl.col("layer").cast(pl.Float64)
    rows = pl.concat(parts).with_columns(
        parameter=pl.lit(math.nan),
        relative_depth=pl.when(layer < 0).then(math.nan).otherwise(layer / pl.col("n_blocks")),
        layer=pl.when(layer >= 0).then(pl.col("layer").cast(pl.Int64)),
    )
    return _tidy(rows, study.models, [quantity, "kl_bg"], ["tuned lens", "logit lens"])


def structure_head_numbers(study: Study, *, quantities: Sequence[str]) -> pl.DataFrame:
    """Return lens quantities of the residues and of the structures of every measured model (``NUMBERS``).

    ``quantity`` is "quantity: residue", "quantity: structure" (structures that the model was not shown) or "quantity:
    structure shown" (those that it was). Not there: quantities that are undefined throughout, because no true structure
    is known, and, beside structures that were shown, the few that nobody knows.

    Raises:
        FigureError: no model was measured, a model lacks a quantity or one of its layers, or a row stands twice.
    """
    models = measured_models(study.models, study.structure_heads)
    if not models:
        raise FigureError("structure_heads: no rows at primary inputs; measure at least one model (structure_heads)")
    of_residues = profile_numbers(replace(study, models=models), table="lens", quantities=quantities)
    parts = []
    for model in models:
        rows = _rows_of(study.structure_heads, model, what="structure_heads").filter(pl.col("aggregate") == "mean")
        has_copies = (rows["pos_class"] == "copy").any()
        for lens, what in (("logit", "structure"), ("copy", "structure shown")):
            own = rows.filter((pl.col("pos_class") == lens) & (pl.col("layer") >= 0))
            of_truth = own.filter((pl.col("quantity") == "acc1") & (pl.col("null_model") == TRAINED))
            if own.is_empty() or (lens == "logit" and has_copies and of_truth["value"].is_nan().all()):
                continue
            for quantity in quantities:
                one = own.filter(pl.col("quantity") == quantity)
                if one.height and one["value"].is_nan().all():
                    continue
                _check_profile(one, model, f"{quantity} of the structure head ({lens})", range(model.n_blocks + 1))
                parts.append(one.with_columns(quantity=pl.lit(statistic_name(quantity, what))))
    rows = pl.concat(parts).with_columns(
        parameter=pl.lit(math.nan), relative_depth=pl.col("layer").cast(pl.Float64) / pl.col("n_blocks")
    )
    names = [statistic_name(quantity, what) for quantity in quantities for what in ("structure", "structure shown")]
    of_residues = of_residues.with_columns(quantity=pl.col("quantity") + ": residue")
    return pl.concat([of_residues, _tidy(rows, study.models, names, ["mean"])])


def statistic_name(stat: str, profile: str) -> str:
    """Return the name under which a summary statistic stands in a figure's numbers."""
    return f"{stat}: {profile}"


def _rows_of(table: pl.DataFrame, model: Model, *, what: str) -> pl.DataFrame:
    rows = table if table.is_empty() else table.filter(pl.col("model_id") == model.model)
    if rows.is_empty():
        known = [] if table.is_empty() else table["model_id"].unique().sort().to_list()
        raise FigureError(
            f"{what}: no row of {model.model} at its primary input ({PRIMARY_INPUT[model.objective]}) for this figure; "
            f"there are rows of {known}. Give its table, or take the model out of --models"
        )
    for column, expected in (("objective", model.objective), ("family", model.family)):
        came = rows[column].unique().to_list()
        if came != [expected]:
            raise FigureError(f"{what} of {model.model}: {column} is {came}, but --models says {expected}")
    return rows


PRIMARY_INPUT = {
    "ar": "direction n2c",
    "mlm": f"masked, the level next to {PRIMARY_NOISE:g}",
    "diffusion": "mean over the noise grid",
}


def _check_profile(rows: pl.DataFrame, model: Model, label: str, layers: range) -> None:
    trained = rows.filter(pl.col("null_model") == TRAINED)
    if trained.is_empty():
        raise FigureError(f"profiles of {model.model}: no trained rows of {label}; run metrics.profile again")
    for (null, seed), one in rows.group_by("null_model", "null_seed", maintain_order=True):
        came = one["layer"].sort().to_list()
        if came != list(layers):
            raise FigureError(
                f"profiles of {model.model} ({null}, seed {seed}): {label} has layers {came}, expected each of "
                f"{layers.start}..{layers.stop - 1} once; run metrics.profile again"
            )
    if trained["value"].is_nan().all():
        raise FigureError(f"profiles of {model.model}: {label} is undefined at every layer; nothing to draw")


def _tidy(
    rows: pl.DataFrame, models: Sequence[Model], quantities: Sequence[str], aggregates: Sequence[str]
) -> pl.DataFrame:
    """Return ``NUMBERS`` of table rows: untrained networks as mean and range over seeds, sorted, named for display."""
    keys = ["model_id", "direction", "noise_t", "quantity", "parameter", "aggregate", "layer", "relative_depth"]
    order = {"quantity": list(quantities), "aggregate": list(aggregates), "network": ["trained", "untrained"]}
    return (
        named(networks(rows, keys), models)
        .sort(
            "place",
            *(pl.col(column).replace_strict(values, range(len(values))) for column, values in order.items()),
            "parameter",
            "layer",
            descending=[False] * 4 + [True, False],
            maintain_order=True,
        )
        .select(pl.col(column).cast(kind) for column, kind in NUMBERS.items())
    )


def networks(rows: pl.DataFrame, keys: Sequence[str], shares: Sequence[str] = ()) -> pl.DataFrame:
    """Return the trained rows, then the untrained ones as mean and range over seeds; ``shares`` are averaged, too."""
    value = pl.col("value")
    trained = rows.filter(pl.col("null_model") == TRAINED).select(
        *keys,
        pl.lit("trained").alias("network"),
        pl.lit(1, pl.Int64).alias("n_seeds"),
        value,
        pl.col("ci_lo").alias("lo"),
        pl.col("ci_hi").alias("hi"),
        pl.when(pl.col("ci_lo").is_nan()).then(pl.lit("none")).otherwise(pl.lit("bootstrap")).alias("interval"),
        "n_seq",
        "n_cluster",
        "n_boot",
        *shares,
    )
    # NaN of any seed makes the mean NaN: a mean over fewer seeds than stated would not be what the figure says it is.
    is_defined = value.is_not_nan().all()
    untrained = (
        rows.filter(pl.col("null_model") == UNTRAINED)
        .group_by(keys, maintain_order=True)
        .agg(
            pl.lit("untrained").alias("network"),
            pl.len().cast(pl.Int64).alias("n_seeds"),
            value.mean(),
            pl.when(is_defined).then(value.min()).otherwise(math.nan).alias("lo"),
            pl.when(is_defined).then(value.max()).otherwise(math.nan).alias("hi"),
            pl.lit("seeds").alias("interval"),
            pl.col("n_seq").min(),
            pl.col("n_cluster").min(),
            pl.lit(0).alias("n_boot"),
            *(pl.col(share).mean() for share in shares),
        )
    )
    return pl.concat([trained, untrained.select(trained.columns)], how="vertical_relaxed")


def named(rows: pl.DataFrame, models: Sequence[Model]) -> pl.DataFrame:
    """Return rows with what figures say of a model, and its ``place`` in the study."""
    names = pl.DataFrame(
        [(m.model, m.display_name, m.family, m.objective, m.n_blocks, place) for place, m in enumerate(models)],
        schema=["model", "display_name", "family", "objective", "n_blocks", "place"],
        orient="row",
    )
    return rows.rename({"model_id": "model"}).join(names, on="model", how="left")
