"""Residual-stream contributions (A1-A4): lengths, ratios and cosines of the updates, from the cached inner products.

Definitions in ``plm_depth.metrics``, after Csordas, Manning and Potts 2025 (arXiv 2505.13898). A ratio or cosine whose
vector is no longer than 1e-6 of the longest among the residues of the same protein, view and layer is undefined (NaN)
and counted in ``n_nan``: it would be the direction of rounding errors. A zero update has ratio 0 and no cosine.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plm_depth.metrics.groups import Groups, Shard, dictionary, read_groups
from plm_depth.progress import Progress, stage_log
from plm_depth.tables import CONTRIB_SEQ, MOMENT_KEYS, MOMENTS, TableError, TableWriter

LOG = logging.getLogger("metrics.contributions")

STATE_QUANTITIES = ("norm_h", "var_h", "massive")
BLOCK_QUANTITIES = (
    *("norm_a", "norm_m", "norm_u", "norm_hhat", "rel_a", "rel_m", "rel_u"),
    *("cos_a", "cos_m", "cos_u", "cos_io", "cos_am"),
)
GEOMETRIC_QUANTITIES = ("norm_g", "rel_g")
GEOMETRIC_MOMENTS = ("gg", "mid_g", "ga_ga")
SMALLEST = 1e-6  # of the longest vector of the protein: below, a direction means nothing
ROUNDING = 1e-5  # how far float32 inner products may leave the range that exact ones keep

ROW_CLASSES = ("masked", "unmasked", "special")  # of the moments
POS_CLASSES = ("residue", *ROW_CLASSES)  # of the result; residue: masked and unmasked together


class MomentsError(ValueError):
    """Moments that no stream can have."""


# ----------------------------------------------------------------------------------------------------------------
# From moments to quantities per token


def state_quantities(
    moments: Mapping[str, np.ndarray], group: np.ndarray, is_residue: np.ndarray, *, d_model: int
) -> dict[str, np.ndarray]:
    """Return norm_h, var_h and massive of every token, (n_tokens,) each; var_h in squared units of the stream.

    Args:
        moments, group, is_residue: as for ``block_quantities``.
    Raises:
        MomentsError: a variance below zero or a share outside 0..1 by more than rounding.
    """
    mean_square = moments["hh"] / d_model
    variance = mean_square - (moments["sum_h"] / d_model) ** 2
    _refuse(variance < -ROUNDING * mean_square, "the variance of the stream is negative")
    norm = np.sqrt(moments["hh"])
    share = _divide(moments["max_h2"], moments["hh"], undefined=_is_tiny(norm, group, is_residue))
    _refuse(share > 1 + ROUNDING, "one coordinate is longer than the whole stream")
    return {"norm_h": norm, "var_h": np.maximum(variance, 0.0), "massive": np.minimum(share, 1.0)}


def block_quantities(
    moments: Mapping[str, np.ndarray], before: np.ndarray, group: np.ndarray, is_residue: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the quantities of one block at every token, (n_tokens,) each, NaN where undefined.

    Args:
        moments: float64 arrays (n_tokens,) by the names of ``plm_depth.tables.MOMENTS``, of the layer after the block.
        before: (n_tokens,) |h|^2 of the stream that enters the block.
        group: (n_tokens,) which protein and view a token belongs to, ascending.
        is_residue: (n_tokens,) bool; specials do not count for the longest vector.
    Returns:
        ``BLOCK_QUANTITIES``, and ``GEOMETRIC_QUANTITIES`` where the block has a geometric branch.
    Raises:
        MomentsError: a cosine outside -1..1 by more than rounding.
    """
    squares = {"h": before, "a": moments["aa"], "m": moments["mm"], "u": moments["uu"], "hhat": moments["mid_mid"]}
    squares["next"] = moments["hh"]
    is_geometric = not np.isnan(moments["gg"]).any()
    if is_geometric:
        squares |= {"g": moments["gg"], "ha": moments["ga_ga"]}
    norms = {name: np.sqrt(square) for name, square in squares.items()}
    tiny = {name: _is_tiny(norm, group, is_residue) for name, norm in norms.items()}

    def ratio(update: str, stream: str) -> np.ndarray:
        return _divide(norms[update], norms[stream], undefined=tiny[stream])

    def cosine(product: str, x: str, y: str) -> np.ndarray:
        value = _divide(moments[product], norms[x] * norms[y], undefined=tiny[x] | tiny[y])
        # Near the smallest defined length the products hold few digits; a wrong product is off by more than that.
        _refuse(np.abs(value) > 1 + 1e-3, f"the cosine of {product} leaves -1..1")
        return np.clip(value, -1.0, 1.0)

    values = {f"norm_{name}": norms[name] for name in ("a", "m", "u", "hhat")}
    values |= {"rel_a": ratio("a", "h"), "rel_m": ratio("m", "hhat"), "rel_u": ratio("u", "h")}
    values |= {"cos_a": cosine("ha", "h", "a"), "cos_m": cosine("mid_m", "hhat", "m"), "cos_u": cosine("hu", "h", "u")}
    values |= {"cos_io": cosine("h_next", "h", "next"), "cos_am": cosine("am", "a", "m")}
    if is_geometric:
        values |= {"norm_g": norms["g"], "rel_g": ratio("g", "ha")}
    return values


def _divide(x: np.ndarray, y: np.ndarray, *, undefined: np.ndarray) -> np.ndarray:
    return np.divide(x, y, out=np.full(len(x), np.nan), where=~undefined)


def _is_tiny(norm: np.ndarray, group: np.ndarray, is_residue: np.ndarray) -> np.ndarray:
    """Return where a length is at most ``SMALLEST`` of the longest among the residues of its group."""
    if not len(norm):
        return np.zeros(0, bool)
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    longest = np.maximum.reduceat(np.where(is_residue, norm, 0.0), starts)
    return norm <= SMALLEST * np.repeat(longest, np.diff(np.r_[starts, len(norm)]))


def _refuse(wrong: np.ndarray, what: str) -> None:
    if wrong.any():
        raise MomentsError(f"{what} at {int(wrong.sum())} tokens; no stream has such inner products")


# ----------------------------------------------------------------------------------------------------------------
# From tokens to proteins


@dataclass(frozen=True)
class Segments:
    """Consecutive stretches of sorted rows: those of one class of positions in one group.

    Attributes:
        starts, counts: (n_segments,) first row and number of rows; they cover all rows.
        of_row: (n_rows,) segment of each row.
    """

    starts: np.ndarray
    counts: np.ndarray
    of_row: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray) -> "Segments":
        """Return the stretches of equal labels."""
        starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]]) if len(labels) else np.zeros(0, np.int64)
        counts = np.diff(np.r_[starts, len(labels)])
        return cls(starts, counts, np.repeat(np.arange(len(starts), dtype=np.int32), counts))


def summarise(values: np.ndarray, segments: Segments, position: np.ndarray) -> dict[str, np.ndarray]:
    """Return the statistics of each segment, (n_segments,) each, over its defined values.

    Args:
        values: (n_rows,) float64, NaN where undefined.
        position: (n_rows,) position of each row.
    Returns:
        n, n_nan (counts), sum, sumsq, max (float64) and argmax_pos: the lowest position of the largest value. Without
        a defined value sum and sumsq are 0, max is NaN and argmax_pos -1.
    """
    if not len(values):
        empty = np.zeros(0)
        return dict.fromkeys(("n", "n_nan", "sum", "sumsq", "max", "argmax_pos"), empty)
    defined = ~np.isnan(values)
    filled = np.where(defined, values, 0.0)
    n = np.add.reduceat(defined, segments.starts, dtype=np.int64)
    largest = np.where(n > 0, np.maximum.reduceat(np.where(defined, values, -np.inf), segments.starts), np.nan)
    at_largest = np.where(values == largest[segments.of_row], position.astype(np.int64), np.iinfo(np.int64).max)
    return {
        "n": n,
        "n_nan": segments.counts - n,
        "sum": np.add.reduceat(filled, segments.starts),
        "sumsq": np.add.reduceat(filled * filled, segments.starts),
        "max": largest,
        "argmax_pos": np.where(n > 0, np.minimum.reduceat(at_largest, segments.starts), -1),
    }


def percentile_95(values: np.ndarray, segments: Segments) -> np.ndarray:
    """Return the 95th percentile of each segment's defined values, linearly interpolated, NaN where there is none.

    Values are sorted as float32, segments and all, as one array of whole numbers: the segment in the upper half, the
    bits of the value, made to sort like the value, in the lower.
    """
    if not len(values):
        return np.zeros(0)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    ordered = np.where(np.isnan(values), np.uint32(0xFFFFFFFF), ordered)
    together = np.sort((segments.of_row.astype(np.int64) << 32) | ordered.astype(np.int64))
    ordered = (together & 0xFFFFFFFF).astype(np.uint32)
    ordered = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered).view(np.float32).astype(np.float64)
    n = np.add.reduceat(~np.isnan(values), segments.starts, dtype=np.int64)
    place = 0.95 * (np.maximum(n, 1) - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(n, 1) - 1)
    below, above = ordered[segments.starts + low], ordered[segments.starts + high]
    return np.where(n > 0, below + (above - below) * (place - low), np.nan)


def merge(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the statistics (``summarise``) of the union of two disjoint sets of positions; -1 where both are empty."""
    only_b = np.isnan(a["max"]) | (b["max"] > a["max"])
    tie = b["max"] == a["max"]
    lowest = np.minimum(a["argmax_pos"], b["argmax_pos"])
    return {
        **{name: a[name] + b[name] for name in ("n", "n_nan", "sum", "sumsq")},
        "max": np.fmax(a["max"], b["max"]),
        "argmax_pos": np.where(tie, lowest, np.where(only_b, b["argmax_pos"], a["argmax_pos"])),
    }


# ----------------------------------------------------------------------------------------------------------------
# The stage


class _Layout:
    """What of one shard does not change from layer to layer."""

    def __init__(self, shard: Shard):
        self.shard = shard
        self.is_residue = shard.row_class < 2
        self.by_class = Segments.of(shard.group.astype(np.int64) * len(ROW_CLASSES) + shard.row_class)
        self.segment_group = shard.group[self.by_class.starts]
        self.segment_class = shard.row_class[self.by_class.starts]
        # Proteins with masked and unmasked residues need a percentile of their own; the others have it already.
        present = np.zeros((int(shard.group.max(initial=-1)) + 1, len(ROW_CLASSES)), bool)
        present[self.segment_group, self.segment_class] = True
        is_mixed = present[:, 0] & present[:, 1]
        self.mixed_rows = (
            np.flatnonzero(self.is_residue & is_mixed[shard.group]) if len(shard.group) else self.by_class.starts
        ).astype(np.int32)
        self.mixed = Segments.of(shard.group[self.mixed_rows])
        self.mixed_group = shard.group[self.mixed_rows][self.mixed.starts]

    def moments(self, layer: int) -> dict[str, np.ndarray]:
        """Return the moments of one layer in sorted order, float64 by name.

        Raises:
            TableError: a number that must be there is NaN.
        """
        table = self.shard.table
        sorted_rows = table.layer(layer)[self.shard.order]
        values = {name: sorted_rows[:, i].astype(np.float64) for i, name in enumerate(table.names)}
        needed = [name for name in MOMENTS if layer or name in ("hh", "sum_h", "max_h2")]
        for name in needed:
            missing = np.isnan(values[name])
            if missing.any() and not (name in GEOMETRIC_MOMENTS and missing.all()):
                raise TableError(
                    f"{table.path}: {name} is NaN at {int(missing.sum())} of {len(missing)} tokens of layer {layer}; "
                    "delete it and run the extraction again"
                )
        return values


def contributions(paths: Sequence[str | Path], output: str | Path) -> int:
    """Write the CONTRIB_SEQ table of one model from the moments of all its shards; return its number of rows.

    Rows stand by layer, quantity, class of positions, then group: null model, view and protein. One layer of one shard
    is in memory at a time, and the statistics of one layer of all shards.

    Raises:
        TableError: shards that overlap, differ or are damaged, and moments that no stream can have.
    """
    groups = read_groups(paths, MOMENT_KEYS, classes=ROW_CLASSES)
    for shard in groups.shards:
        if shard.table.names is None or tuple(shard.table.names) != MOMENTS:
            raise TableError(f"{shard.table.path}: holds {shard.table.names}, expected the moments {list(MOMENTS)}")
    layouts = [_Layout(shard) for shard in groups.shards]
    _refuse_incomplete(groups, layouts)
    n_blocks = int(groups.constants["n_blocks"])
    about = {name: groups.constants[name] for name in ("seed", "version") if name in groups.constants}
    LOG.info(f"{groups.n_groups} proteins x views x null models, {len(paths)} shards, layers 0..{n_blocks}")
    progress = Progress(LOG, n_blocks + 1, "layers")
    n_undefined = 0
    before: list[np.ndarray] = []
    with TableWriter(output, CONTRIB_SEQ, **about) as writer:
        for layer in range(n_blocks + 1):
            results: dict[str, _Collected] = {}
            after = []
            for index, layout in enumerate(layouts):
                moments = layout.moments(layer)
                try:
                    tokens = (layout.shard.group, layout.is_residue)
                    values = state_quantities(moments, *tokens, d_model=int(groups.constants["d_model"]))
                    if layer:
                        values |= block_quantities(moments, before[index].astype(np.float64), *tokens)
                except MomentsError as error:
                    raise TableError(f"{layout.shard.table.path}, layer {layer}: {error}. Extract it again") from error
                after.append(moments["hh"].astype(layout.shard.table.dtype))  # as it is stored: nothing is lost
                for name, value in values.items():
                    results.setdefault(name, _Collected(groups.n_groups)).add(value, layout)
            before = after
            columns = _rows(groups, layer, results)
            n_undefined += int(columns["n_nan"].sum())
            writer.append(columns)
            progress.advance()
    progress.finish()
    LOG.info(f"{writer.n_rows} rows; n_nan, the undefined values left out, adds up to {n_undefined} over all classes")
    return writer.n_rows


class _Collected:
    """Statistics of one quantity at one layer, per class and group, filled shard by shard."""

    def __init__(self, n_groups: int):
        shape = (len(POS_CLASSES), n_groups)
        self.present = np.zeros(shape, bool)
        self.columns = {name: np.zeros(shape, np.int64) for name in ("n", "n_nan")}
        self.columns |= {name: np.zeros(shape) for name in ("sum", "sumsq")}
        self.columns |= {"p95": np.full(shape, np.nan), "max": np.full(shape, np.nan)}
        self.columns["argmax_pos"] = np.full(shape, -1, np.int64)

    def add(self, values: np.ndarray, layout: _Layout) -> None:
        if not len(values):
            return
        statistics = summarise(values, layout.by_class, layout.shard.position)
        statistics["p95"] = percentile_95(values, layout.by_class)
        place = (layout.segment_class + 1, layout.segment_group)
        self.present[place] = True
        for name, column in self.columns.items():
            column[place] = statistics[name]
        touched = np.unique(layout.segment_group)
        masked, unmasked = ({name: column[c, touched] for name, column in self.columns.items()} for c in (1, 2))
        together = merge(masked, unmasked)
        together["p95"] = np.fmax(masked["p95"], unmasked["p95"])  # one of them is NaN, unless mixed: see below
        self.present[0, touched] = self.present[1, touched] | self.present[2, touched]
        for name, column in self.columns.items():
            column[0, touched] = together[name]
        self.columns["p95"][0, layout.mixed_group] = percentile_95(values[layout.mixed_rows], layout.mixed)


def _rows(groups: Groups, layer: int, results: Mapping[str, _Collected]) -> dict[str, object]:
    """Return the rows of one layer, quantities in the order of the registry, then classes, then groups."""
    names = [n for n in (*STATE_QUANTITIES, *BLOCK_QUANTITIES, *GEOMETRIC_QUANTITIES) if n in results]
    present = np.stack([results[name].present for name in names])
    quantity, pos_class, group = np.nonzero(present)
    columns = groups.columns(group)
    columns |= {"layer": layer, "quantity": dictionary(names, quantity)}
    columns |= {"pos_class": dictionary(POS_CLASSES, pos_class)}
    statistics = results[names[0]].columns
    return columns | {s: np.stack([results[name].columns[s] for name in names])[present] for s in statistics}


def _refuse_incomplete(groups: Groups, layouts: Sequence[_Layout]) -> None:
    found = np.zeros(groups.n_groups, np.int64)
    for layout in layouts:
        found += np.bincount(layout.shard.group[layout.is_residue], minlength=groups.n_groups)
    if groups.constants.get("tokens_are_residues", True):
        wrong = np.flatnonzero(found != groups.keys["n_residues"])
    else:  # a row is a piece of several residues: how many there are, only the model knows
        wrong = np.flatnonzero((found < 1) | (found > groups.keys["n_residues"]))
    if len(wrong):
        group = wrong[0]
        raise TableError(
            f"protein {groups.keys['sequence_id'][group]}: moments of {found[group]} residues, expected "
            f"{groups.keys['n_residues'][group]}; {len(wrong)} proteins x views are incomplete. Extract them again"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", nargs="+", required=True, help="moments of all shards of one model and variant")
    parser.add_argument("--output", required=True, help="the CONTRIB_SEQ table")
    options = parser.parse_args(argv)
    with stage_log(LOG.name, TableError):
        contributions(options.moments, options.output)


if __name__ == "__main__":
    main()
