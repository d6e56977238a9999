"""Invented metric tables of a whole study: realistic in shape and range, exact in nothing, the same on every call.

A profile has the real table's rows: all inputs, positions, read-outs, aggregates and null models, so that a figure that
selects the wrong ones shows other numbers.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plm_depth.metrics import verdicts
from plm_depth.randomness import generator
from plm_depth.tables import ABLATION, LOSS, PROFILE, SKIP, SUMMARY, VERDICT, write_table

NULLS = (("trained", -1), ("randinit", 0), ("randinit", 1), ("randinit", 2), ("shuffle_w", 0), ("shuffle_seq", 0))
INPUTS = {  # (direction, noise_t)
    "ar": (("n2c", np.nan), ("c2n", np.nan)),
    "mlm": (("none", 0.0), ("none", 0.1), ("none", 0.15), ("none", 0.3)),
    "diffusion": (("none", 0.1), ("none", 0.5), ("none", 0.9), ("none", -1.0)),
}
PRIMARY = {"ar": ("n2c", np.nan), "mlm": ("none", 0.15), "diffusion": ("none", -1.0)}
BLOCK_QUANTITIES = ("norm_a", "norm_m", "norm_u", "rel_a", "rel_m", "rel_u", "cos_a", "cos_m", "cos_u", "cos_io")
STATE_QUANTITIES = ("norm_h", "var_h", "massive")
LENS_QUANTITIES = ("kl_lf", "ov5_cc", "entropy", "nll", "settled_0.5", "settled_0.1", "settled_top1")
STATISTICS = (
    ("depth_score", "rel_u", np.nan),
    ("depth_score", "norm_u", np.nan),
    ("kl_depth", "kl_0", 0.5),
    ("kl_depth", "kl_0", 0.1),
    ("kl_depth_first", "kl_0", 0.5),
    ("overlap_depth", "ov5_cc", 0.3),
    ("cosine_depth", "cos", np.nan),
    ("kl_area", "kl_lf", np.nan),
    ("overlap_area", "ov5_cc", np.nan),
    ("settling", "kl_lf", 0.5),
    ("settling", "kl_lf", 0.1),
    ("settling", "top1", np.nan),
    ("growth_beta", "var_h", np.nan),
    ("growth_gamma", "var_h", np.nan),
    ("growth_delta_aicc", "var_h", np.nan),
)

ENDINGS = {"profiles": "profile", "summaries": "summary", "losses": "loss", "skips": "skip", "verdicts": "verdict",
           "ablations": "ablation"}  # fmt: skip
SWEEPS = (  # part, pos_set, local, ablation; "primary" is prefix or other
    ("layer", "primary", False, "zero"),
    ("layer", "all", False, "zero"),
    ("attn", "all", False, "zero"),
    ("mlp", "all", False, "zero"),
)
OTHER_SWEEPS = (
    ("layer", "ctx2mask", False, "zero"),
    ("layer", "primary", True, "zero"),
    ("layer", "primary", False, "mean"),
    ("attn", "primary", False, "zero"),
)


@dataclass(frozen=True)
class Invented:
    """One model of an invented study."""

    model: str
    display_name: str
    family: str
    objective: str
    n_blocks: int
    d_model: int = 64
    toy: bool = True


MINI = (
    Invented("esm2_l4", "toy ESM-2", "esm2", "mlm", 4),
    Invented("esm2_l8", "toy ESM-2", "esm2", "mlm", 8),
    Invented("progen2_l4", "toy ProGen2", "progen2", "ar", 4),
    Invented("progen2_l8", "toy ProGen2", "progen2", "ar", 8),
    Invented("dplm_l4", "toy DPLM", "dplm", "diffusion", 4),
    Invented("dplm_l8", "toy DPLM", "dplm", "diffusion", 8),
)
LARGE = tuple(
    Invented(f"{family}_{number}", name, family, objective, n_blocks, d_model, toy=False)
    for family, objective, sizes in (
        (
            "esm2",
            "mlm",
            (
                ("ESM-2 8M", 6, 320),
                ("ESM-2 35M", 12, 480),
                ("ESM-2 150M", 30, 640),
                ("ESM-2 650M", 33, 1280),
                ("ESM-2 3B", 36, 2560),
                ("ESM-2 15B", 48, 5120),
            ),
        ),
        ("esmc", "mlm", (("ESM C 300M", 30, 960), ("ESM C 600M", 36, 1152), ("ESM C 6B", 80, 2560))),
        ("esm3", "mlm", (("ESM3-open 1.4B, sequence track only", 48, 1536),)),
        (
            "progen2",
            "ar",
            (
                ("ProGen2-small", 12, 1024),
                ("ProGen2-medium", 27, 1536),
                ("ProGen2-BFD90_with_a_long_suffix", 32, 2560),
                ("ProGen2-xlarge", 32, 4096),
            ),
        ),
        ("dplm", "diffusion", (("DPLM 150M", 30, 640), ("DPLM 650M", 33, 1280), ("DPLM 3B", 36, 2560))),
        ("dplm2", "diffusion", (("DPLM-2 150M", 30, 640), ("DPLM-2 650M", 33, 1280), ("DPLM-2 3B", 36, 2560))),
    )
    for number, (name, n_blocks, d_model) in enumerate(sizes)
)


def models_json(models: Sequence[Invented], path: Path) -> Path:
    """Write the file that ``--models`` wants."""
    path.write_text(json.dumps([vars(model) for model in models]), encoding="utf-8")
    return path


def _inputs(model: Invented, with_others: bool) -> tuple[tuple[str, float], ...]:
    return INPUTS[model.objective] if with_others else (PRIMARY[model.objective],)


def write_profile(
    model: Invented, path: Path, *, nulls: Sequence[tuple[str, int]] = NULLS, with_others: bool = True
) -> Path:
    """Write a PROFILE table of one model; ``with_others``: also the rows that no figure shows."""
    rows = []
    for (null, seed), (direction, noise) in itertools.product(nulls, _inputs(model, with_others)):
        positions = ("residue", "special") if with_others else ("residue",)
        aggregates = ("mean", "micro", "p95", "max") if with_others else ("mean", "max")
        vocabularies = ("aa20", "full") if with_others else ("aa20",)
        for quantity, pos_class in itertools.product(BLOCK_QUANTITIES + STATE_QUANTITIES, positions):
            first = 0 if quantity in STATE_QUANTITIES else 1
            for aggregate in aggregates:
                rows += _profile(model, null, seed, direction, noise, "contributions", quantity, pos_class, "none",
                                 aggregate, first)  # fmt: skip
        lens = "copy" if noise == 0 else "logit"
        for quantity, vocab in itertools.product(LENS_QUANTITIES, vocabularies):
            for aggregate in ("mean", "micro"):
                rows += _profile(model, null, seed, direction, noise, "lens", quantity, lens, vocab, aggregate, 0)
    return _write(model, rows, PROFILE, path)


def _profile(model, null, seed, direction, noise, table, quantity, pos_class, vocab, aggregate, first) -> list[dict]:
    layers = np.arange(first, model.n_blocks + 1)
    depth = np.clip((layers - (0.5 if first else 0)) / model.n_blocks, 0, 1)
    # The view, position and aggregate shift the curve: a wrong selection is a wrong picture.
    key = (model.model, null, seed, direction, noise, quantity, pos_class, vocab, aggregate)
    rng = generator(0, *key)
    value = shape(model, quantity, depth, trained=null == "trained") * np.exp(rng.normal(0, 0.04, len(depth)))
    if quantity == "kl_lf":
        value[-1] = 0.0
    if quantity == "ov5_cc" or quantity.startswith("settled"):
        value = np.minimum(np.maximum.accumulate(value), 1.0)
        value[-1] = 1.0
    if aggregate == "max":
        value = value + np.abs(value) * rng.uniform(1.5, 3)
    half = np.full(len(value), np.nan) if aggregate == "max" else np.abs(value) * 0.06 + 1e-3
    return [
        {
            **_common(model, null, seed, direction, noise),
            "table": table,
            "quantity": quantity,
            "pos_class": pos_class,
            "vocab": vocab,
            "layer": int(layer),
            "aggregate": aggregate,
            "value": value[i],
            "ci_lo": value[i] - half[i],
            "ci_hi": value[i] + half[i],
            "n_seq": 40,
            "n_cluster": 38,
            "n_boot": 0 if aggregate == "max" else 2000,
            "n_nan": 0,
        }
        for i, layer in enumerate(layers)
    ]


def shape(model: Invented, quantity: str, depth: np.ndarray, *, trained: bool) -> np.ndarray:
    """Return what a quantity roughly looks like against relative depth."""
    size = np.sqrt(model.d_model / 64)
    lean = np.log(model.n_blocks) / np.log(80)  # deeper models turn later and add less
    early, late = np.exp(-(2 + 4 * lean) * depth), 1 / (1 + np.exp(-12 * (depth - 0.45 - 0.35 * lean)))
    if not trained:
        flat = {"kl_lf": 0.25 * (1 - depth), "ov5_cc": 0.15 + 0.85 * depth**3, "entropy": 2.9 - 0.05 * depth,
                "nll": 3.05 - 0.02 * depth, "var_h": 0.4 * (1 + 6 * depth), "norm_h": 3 * size * np.sqrt(1 + 6 * depth),
                "massive": 0.2 + 0 * depth, "cos_io": 0.85 + 0.1 * depth}  # fmt: skip
        if quantity in flat:
            return flat[quantity]
        if quantity.startswith("settled"):
            return 0.5 + 0.5 * depth
        if quantity.startswith("cos"):
            return 0.03 * (1 - depth) + 0.001
        return {"norm": 2.0 * size, "rel_": 1.2 / (1 + 5 * depth)}[quantity[:4]] + 0 * depth
    shapes = {
        "norm_h": 4 * size * np.exp(2.2 * depth), "norm_a": 2 * size * np.exp(1.1 * depth),
        "norm_m": 2.6 * size * np.exp(1.5 * depth), "norm_u": 3 * size * np.exp(1.4 * depth),
        "rel_a": 0.9 * early + 0.08, "rel_m": 1.1 * early + 0.15, "rel_u": 1.4 * early + 0.18,
        "cos_a": -0.1 + 0.3 * late, "cos_m": -0.25 + 0.6 * late, "cos_u": -0.2 + 0.55 * late,
        "cos_io": 0.75 + 0.2 * depth, "var_h": 0.3 * np.exp(2 + 3 * lean * depth), "massive": 0.15 + 0.4 * depth,
        "kl_lf": 1.6 * (1 - late) + 0.02, "ov5_cc": 0.05 + 0.9 * late, "entropy": 2.6 - 0.4 * late,
        "nll": 3.1 - 0.5 * late,
    }  # fmt: skip
    shares = {"settled_0.5": 0.05, "settled_0.1": 0.0, "settled_top1": 0.1}
    return shapes[quantity] if quantity in shapes else late**1.5 + shares[quantity] * (1 - late)


def write_summary(
    model: Invented, path: Path, *, nulls: Sequence[tuple[str, int]] = NULLS, with_others: bool = True
) -> Path:
    """Write a SUMMARY table of one model; ``with_others``: also the rows that no figure shows."""
    rows = []
    for (null, seed), (direction, noise) in itertools.product(nulls, _inputs(model, with_others)):
        for stat, profile, param in STATISTICS:
            rng = generator(1, model.model, null, seed, direction, noise, stat, profile, param)
            value = rng.uniform(0.2, 0.55) if null != "trained" else rng.uniform(0.45, 0.9)
            rows.append(
                {
                    **_common(model, null, seed, direction, noise),
                    "stat": stat,
                    "profile": profile,
                    "param": param,
                    "value": value,
                    "ci_lo": value - 0.04,
                    "ci_hi": value + 0.03,
                    "n_seq": 40,
                    "n_cluster": 38,
                    "n_boot": 2000,
                }
            )
    return _write(model, rows, SUMMARY, path)


def write_loss(model: Invented, path: Path, *, end: float = 2.85, reference: float = 2.88) -> Path:
    """Write a LOSS table that falls from ln 20 to about ``end`` (held out)."""
    steps = np.arange(0, 401, 40)
    fall = 1 - np.exp(-steps / 90)
    rows = []
    for split, last in (("train", end - 0.06), ("valid", end)):
        nats = np.log(20) + (last - np.log(20)) * fall / fall[-1]
        rows += [
            {"model_id": model.model, "step": int(step), "n_residues": int(step) * 2048, "split": split,
             "nats": nats[i], "n": 9211, "reference": reference}
            for i, step in enumerate(steps)
        ]  # fmt: skip
    write_table({name: [row[name] for row in rows] for name in LOSS.names}, LOSS, path)
    return path


def write_skip(
    model: Invented, path: Path, *, nulls: Sequence[tuple[str, int]] = NULLS, with_others: bool = True
) -> Path:
    """Write a SKIP table of one model; ``with_others``: also the rows that no figure shows."""
    primary = "prefix" if model.objective == "ar" else "other"
    parts = []
    for (null, seed), (direction, noise) in itertools.product(nulls, _inputs(model, with_others)):
        for part, pos_set, local, ablation in SWEEPS + (OTHER_SWEEPS if with_others else ()):
            for aggregate in ("mean", "max") if with_others else ("mean",):
                named = {"part": part, "pos_set": primary if pos_set == "primary" else pos_set, "local": local,
                         "ablation": ablation, "agg": aggregate}  # fmt: skip
                rng = generator(2, model.model, null, seed, direction, noise, *named.values())
                common = _common(model, null, seed, direction, noise) | named
                parts += _effects(model, common, rng)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in SKIP.names}
    write_table(columns, SKIP, path)
    return path


def _effects(model: Invented, common: dict, rng: np.random.Generator) -> list[dict]:
    """Return columns of the matrix, its reductions and the output changes of one sweep."""
    n, trained, elsewhere = model.n_blocks, common["null_model"] == "trained", common["pos_set"] != "all"
    source, target = np.triu_indices(n)
    depth = (np.arange(n) + 0.5) / n
    strength = 1.3 * np.exp(-2.5 * depth) + 0.05 if trained else 0.5 - 0.25 * depth
    matrix = strength[:, None] * np.exp(-np.abs(np.subtract.outer(depth, depth)) * 2) * rng.uniform(0.7, 1.4, (n, n))
    np.fill_diagonal(matrix, 0.0 if elsewhere else 1.0)
    later = np.where(np.triu(np.full((n, n), True), 1), matrix, np.nan)
    blocks, none = np.arange(1, n + 1), np.full(n, -1)
    rows, n_boot = [], 0 if common["agg"] == "max" else 2000

    def add(quantity, src, tgt, value, vocab="none", below=0.0):
        value = np.asarray(value, float)
        half = np.abs(value) * 0.08 if n_boot else np.full(len(value), np.nan)
        rows.append(
            {name: np.full(len(value), item) for name, item in common.items()}
            | {"quantity": np.full(len(value), quantity), "vocab": np.full(len(value), vocab), "src": src, "tgt": tgt,
               "value": value, "ci_lo": value - half, "ci_hi": value + half, "n_seq": np.full(len(value), 40),
               "n_cluster": np.full(len(value), 38), "n_boot": np.full(len(value), n_boot),
               "n_nan": np.zeros(len(value), int), "below_floor": np.broadcast_to(below, len(value))}
        )  # fmt: skip

    far = (target - source > 0.6 * n) & (source > 0.2 * n) | (source == target) & elsewhere
    add(
        "effect",
        source + 1,
        target + 1,
        matrix[source, target],
        below=np.where(far, 0.9, 0.1) + 0.02 * max(common["null_seed"], 0),
    )
    add("influence", blocks, none, [*(np.nanmean(row) for row in later[:-1]), np.nan])
    add("dependence", none, blocks, [np.nan, *(np.nanmean(column) for column in later.T[1:])])
    for name in ("EE", "LL", "EL", "LL/EE"):
        value = rng.uniform(0.2, 0.9) if n >= 4 else np.nan
        add(name, [-1], [-1], [value])
    change = (0.6 * np.exp(-3 * depth) + 0.02 if trained else 0.004 + 0 * depth) * rng.uniform(0.8, 1.2, n)
    change = np.append(change[:-1] * (0.5 if elsewhere else 1.0), 0.0 if elsewhere else change[-1])
    for vocab in ("aa20", "full"):
        for quantity in ("l2", "kl_fo", "flip1"):
            add(quantity, blocks, none, change * (0.8 if vocab == "full" else 1.0), vocab)
        add("locality", blocks, none, np.append(0.7 - 0.5 * depth[:-1], 0.0) if elsewhere else np.ones(n), vocab)
    return rows


def write_ablation(
    model: Invented, path: Path, *, nulls: Sequence[tuple[str, int]] = NULLS, with_others: bool = True
) -> Path:
    """Write an ABLATION table of one model; ``with_others``: also the rows that no figure shows."""
    rows = []
    for (null, seed), (direction, noise) in itertools.product(nulls, _inputs(model, with_others)):
        rng = generator(4, model.model, null, seed, direction, noise)
        reads = {"ar": "next", "mlm": "visible" if noise == 0 else "masked", "diffusion": "masked"}[model.objective]
        for op, policy, start, length in _ablations(model, with_others):
            named = {"reads": reads, "op": op, "policy": policy, "start": start, "length": length}
            for quantity, value in _ablated(model, op, start, length, null == "trained", rng).items():
                half = abs(value) * 0.06 + 1e-3
                rows.append(
                    {**_common(model, null, seed, direction, noise), **named, "moves_geometric": False,
                     "quantity": quantity, "value": value, "ci_lo": value - half, "ci_hi": value + half, "n_seq": 40,
                     "n_cluster": 38, "n_boot": 2000}
                )  # fmt: skip
    return _write(model, rows, ABLATION, path)


def _ablations(model: Invented, with_others: bool) -> list[tuple[str, str, int, int]]:
    """Return op, policy, start and length of the runs of one model."""
    n = model.n_blocks
    runs = [("full", "none", n, 0), ("background", "none", 0, 0)]
    runs += [("exit", "none", layer, n - layer) for layer in range(n + 1)]
    runs += [("remove", "none", start, 1) for start in range(n)]
    for length in range(1, n):
        runs += [("remove_block", "angular", -1, length), ("remove_block", "random", -1, length)]
        runs += [("remove_block", "deepest", n - length - 1, length), ("remove_block", "tail", n - length, length)]
        if n <= 12:
            runs += [("remove_block", "exhaustive", start, length) for start in range(n - length + 1)]
    runs += [("swap_adj", "none", start, 1) for start in range(n - 1)]
    for length in (2, 4):
        runs += [("swap_block", "none", start, length) for start in range(n - 2 * length + 1)]
        runs += [("reverse", "none", start, length) for start in range(n - length + 1)]
    return runs + ([("repeat", "none", start, 2) for start in range(n - 1)] if with_others else [])


def _ablated(
    model: Invented, op: str, start: int, length: int, trained: bool, rng: np.random.Generator
) -> dict[str, float]:
    """Return the quantities of one run: the more and the earlier blocks are touched, the worse."""
    first = model.n_blocks - length if start < 0 else start
    if op == "background":
        return {"nll": 2.9, "acc1": 0.09, "dnll": 0.3, "dacc1": -0.2}
    gain = np.exp(-4 * first / model.n_blocks) * (1 - np.exp(-3 * length / model.n_blocks)) * rng.uniform(0.6, 1.2)
    loss = 0.0 if op == "full" or not length else 0.9 * gain if trained else rng.normal(0, 0.03)
    full = 2.6 if trained else 3.1
    return {"nll": full + loss, "acc1": 0.3 - 0.2 * loss, "kl_to_full": abs(loss), "flip1": min(abs(loss), 1.0),
            "dnll": loss, "dacc1": -0.2 * loss}  # fmt: skip


def write_verdicts(models: Sequence[Invented], path: Path) -> Path:
    """Write the VERDICT table of a study: invented statistics, judged as real ones are."""
    evidence = []
    for number, model in enumerate(models):
        networks = [_network(model, null, seed, number) for null, seed in NULLS[:4]]
        about = verdicts.Model(model.model, model.family, model.objective, model.n_blocks)
        evidence.append(verdicts.Evidence(about, networks[0], tuple(networks[1:])))
    rows = verdicts.judged(evidence, verdicts.Margins(clusters=30))
    write_table({name: [row[name] for row in rows] for name in VERDICT.names}, VERDICT, path)
    return path


def _network(model: Invented, null: str, seed: int, number: int) -> verdicts.Network:
    """Return the statistics of one network; which outcome a model gets goes by its number."""
    trained = null == "trained"
    ratio = (0.6, 0.88, 1.25, 0.93)[number % 4] if trained else 0.95
    means = {
        "LL/EE": ratio, "LL/EE attn": ratio, "LL/EE local": ratio, "spearman dependence": -0.4, "late cos_u": 0.2,
        "late/early locality": 0.6 if trained else 0.95, "late share of KL fall": 0.7 if trained else 0.52,
        "late flips": 0.03, "depth score influence": 0.4 - model.n_blocks / 400,
        "half contrast output": -0.3 - model.n_blocks / 200, "n80 output": 0.7 - model.n_blocks / 300,
        "n80 removal loss": ratio / 2 if trained else 0.6, "rest median loss": 0.02, "rest median flips": 0.04,
        "removable fraction at 0.95": 1 - ratio / 2,
    }  # fmt: skip
    statistics = {}
    for name, value in means.items():
        rng = generator(3, model.model, null, seed, name)
        value = value * np.exp(rng.normal(0, 0 if trained else 0.02))
        resampled = value + rng.normal(0, 0.012, 200)
        statistics[name] = verdicts.Statistic(value, resampled, value * 1.5, 0.0, 40, 38)
    failed = ("the last block changes the output at other positions",) if trained and number % 5 == 4 else ()
    return verdicts.Network(statistics, failed)


def _common(model: Invented, null: str, seed: int, direction: str, noise: float) -> dict:
    return {
        "model_id": model.model, "family": model.family, "objective": model.objective, "n_blocks": model.n_blocks,
        "d_model": model.d_model, "dtype": "float32", "null_model": null, "null_seed": seed, "condition": "seq",
        "readout": "seq", "direction": direction, "noise_t": noise, "mask_draw": -1,
    }  # fmt: skip


def _write(model: Invented, rows: list[dict], schema, path: Path) -> Path:
    write_table({name: [row[name] for row in rows] for name in schema.names}, schema, path)
    return path


def write_study(models: Sequence[Invented], folder: Path, *, with_others: bool = True) -> list[str]:
    """Write all tables of a study; return the options of a figure's command that name them."""
    nulls = NULLS if with_others else NULLS[:3]
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"--profiles": write_profile, "--summaries": write_summary, "--skips": write_skip,
             "--ablations": write_ablation}  # fmt: skip
    options = {option: [] for option in (*kinds, "--losses")}
    for model in models:
        for option, write in kinds.items():
            path = folder / f"{model.model}.{ENDINGS[option[2:]]}.parquet"
            options[option].append(write(model, path, nulls=nulls, with_others=with_others))
        options["--losses"].append(write_loss(model, folder / f"{model.model}.loss.parquet"))
    options["--verdicts"] = [write_verdicts(models, folder / "study.verdict.parquet")]
    arguments = ["--models", str(models_json(models, folder / "models.json"))]
    for option, paths in options.items():
        arguments += [option, *map(str, paths)]
    return arguments
