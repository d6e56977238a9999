"""Invented tables of zero-shot fitness: realistic in shape, exact in nothing, the same on every call."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plm_depth.randomness import generator
from plm_depth.tables import FITNESS, SUMMARY, write_table
from unit.figures.invented import NULLS, Invented

NONE, NAN = "none", np.nan
SCORERS = {
    "mlm": (("mask", "none", "none", -1.0), ("wt", "none", "none", 0.0), ("emb_zs", "none", "none", 0.0),
            ("emb_ridge", "none", "random", 0.0), ("emb_ridge", "none", "contiguous", 0.0)),
    "ar": (("ar", "n2c", NONE, NAN), ("ar", "c2n", NONE, NAN), ("ar", "both", NONE, NAN),
           ("ar_parity", "both", NONE, NAN), ("emb_zs", "n2c", NONE, NAN), ("emb_zs", "both", NONE, NAN)),
}  # fmt: skip
SCORERS["diffusion"] = SCORERS["mlm"]
ASSAYS = {"a1": ("P1", "Binding"), "a2": ("P2", "Binding"), "a3": ("P3", "Stability"), "a4": ("P4", "Stability")}


def write_fitness(
    model: Invented,
    path: Path,
    *,
    nulls: Sequence[tuple[str, int]] = NULLS[:5],
    scorers: Sequence[tuple] | None = None,
    n_assays: int = 4,
    resampled: str = "proteins",
) -> Path:
    """Write a FITNESS table of one model: all levels, also the rows that no figure shows."""
    assays = dict(list(ASSAYS.items())[:n_assays]) if n_assays <= 4 else {
        f"an_assay_with_a_long_name_{i:03d}": (f"P{i}", ("Activity", "Binding", "Expression")[i % 3])
        for i in range(n_assays)
    }  # fmt: skip
    rows, n = [], model.n_blocks
    depth = np.arange(n + 1) / n
    chosen = SCORERS[model.objective] if scorers is None else scorers
    for null, seed in nulls:
        for scorer, direction, folds, noise in chosen:
            for condition in ("seq", "seq_struct"):
                rng = generator(5, model.model, null, seed, scorer, direction, folds, condition)
                for level, names in [("all", ("-", "-", "-")), *(("assay", (a, *of)) for a, of in assays.items())]:
                    height = rng.uniform(0.25, 0.6) if null == "trained" else rng.uniform(-0.05, 0.1)
                    value = height * depth ** rng.uniform(0.3, 1.5) + 0.02 * rng.normal(size=n + 1)
                    kind = resampled if null == "trained" else "none"
                    measured = (scorer, direction, folds, noise, condition)
                    rows += _rows(model, null, seed, measured, level, names, range(n + 1), value, kind, n_assays)
    for level, names in [("all", ("-", "-", "-")), *(("assay", (a, *of)) for a, of in assays.items())]:
        if chosen:
            rows += _rows(model, "trained", -1, ("blosum62", "none", "none", 0.0, "seq"), level, names, [-1],
                          np.array([0.31]), resampled, n_assays)  # fmt: skip
    columns = {name: [row[name] for row in rows] for name in FITNESS.names}
    if not rows:
        import pyarrow as pa

        columns = {f.name: pa.array([], f.type) for f in FITNESS}
    write_table(columns, FITNESS, path)
    return path


def write_fitness_summary(
    model: Invented, path: Path, *, nulls: Sequence[tuple[str, int]] = NULLS[:5], undefined: bool = False
) -> Path:
    """Write the SUMMARY table of one model's fitness: all scorers and statistics, also rows that no figure shows."""
    rows = []
    for null, seed in nulls:
        for scorer, direction, folds, noise in SCORERS[model.objective]:
            profile = f"fitness_{scorer}" + ("" if folds == "none" else f"_{folds}")
            for stat, param in (("best_layer", NAN), *(("retention_depth", y) for y in (0.9, 0.95, 0.99))):
                rng = generator(6, model.model, null, seed, profile, direction, stat, param)
                value = NAN if undefined and stat == "retention_depth" else rng.uniform(0.3, 0.9)
                half = 0.05 if null == "trained" else NAN
                rows.append(
                    {"model_id": model.model, "family": model.family, "objective": model.objective,
                     "n_blocks": model.n_blocks, "d_model": model.d_model, "dtype": "float32", "null_model": null,
                     "null_seed": seed, "condition": "seq", "readout": "seq", "direction": direction, "noise_t": noise,
                     "mask_draw": -1, "stat": stat, "profile": profile, "param": param, "value": value,
                     "ci_lo": value - half, "ci_hi": value + half, "n_seq": 4, "n_cluster": 4, "n_boot": 2000}
                )  # fmt: skip
    write_table({name: [row[name] for row in rows] for name in SUMMARY.names}, SUMMARY, path)
    return path


def _rows(model, null, seed, measured, level, names, layers, value, resampled, n_assays) -> list[dict]:
    scorer, direction, folds, noise, condition = measured
    half = 0.04 if resampled != "none" else np.nan
    return [
        {
            "model_id": model.model, "family": model.family, "objective": model.objective, "n_blocks": model.n_blocks,
            "d_model": model.d_model, "dtype": "float32", "null_model": null, "null_seed": seed,
            "condition": condition, "readout": "seq", "direction": direction, "noise_t": noise, "mask_draw": -1,
            "scorer": scorer, "lens": "logit", "folds": folds, "level": level, "assay_id": names[0],
            "uniprot_id": names[1], "category": names[2], "layer": layer, "value": one, "ci_lo": one - half,
            "ci_hi": one + half, "resampled": resampled, "n_var": 100 if level == "assay" else 100 * n_assays,
            "n_assay": 1 if level == "assay" else n_assays, "n_uniprot": 1 if level == "assay" else n_assays,
            "n_nan": 0, "n_boot": 2000,
        }
        for layer, one in zip(layers, value)
    ]  # fmt: skip
