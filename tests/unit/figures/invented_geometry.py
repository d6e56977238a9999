"""Invented tables of the stream's geometry: realistic in shape, exact in nothing, the same on every call."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plm_depth.randomness import generator
from plm_depth.tables import GEOM, write_table
from unit.figures.invented import NULLS, Invented

VIEWS = {
    "ar": (("n2c", np.nan), ("c2n", np.nan)),
    "mlm": (("none", 0.0),),
    "diffusion": (("none", 0.0),),
}
SINGLE = {"two_nn_mle": 9.0, "two_nn_fit": 9.5, "effective_rank": 40.0, "participation": 12.0, "top_share": 0.3,
          "anisotropy": 0.5, "anisotropy_centred": 0.01}  # fmt: skip


def write_geometry(
    model: Invented,
    path: Path,
    *,
    nulls: Sequence[tuple[str, int]] = NULLS[:4],
    points: Sequence[str] = ("residue", "pooled"),
) -> Path:
    """Write a GEOM table of one model; at layer 0 the vectors of nearly all residues coincide."""
    rows, n = [], model.n_blocks
    kinds = itertools.product(nulls, VIEWS[model.objective], points, ("raw", "zscore"))
    for (null, seed), (direction, noise), kind, space in kinds:
        fixed = {
            "model_id": model.model, "family": model.family, "objective": model.objective, "n_blocks": n,
            "d_model": model.d_model, "dtype": "float32", "null_model": null, "null_seed": seed, "condition": "seq",
            "readout": "seq", "direction": direction, "noise_t": noise, "mask_draw": -1, "model_j": model.model,
            "points": kind, "space": space, "n_seq": 40, "n_cluster": 38,
        }  # fmt: skip
        rng = generator(0, "geometry", *fixed.values())
        n_points = 320 if kind == "residue" else 40

        def add(quantity, i, j, value, *, share=1.0, k=0, coincide=False, fixed=fixed, n_points=n_points):
            n_nan = n_points - 20 if coincide else 0
            rows.append({**fixed, "quantity": quantity, "layer_i": i, "layer_j": j, "share": share, "k": k,
                         "value": value, "se": 0.0 if i == j else 0.05 * abs(value),
                         "n_points": int(share * (n_points - n_nan)), "n_nan": n_nan})  # fmt: skip

        def level(value, rng=rng):
            return value * rng.uniform(0.8, 1.2)

        for i, j in itertools.combinations_with_replacement(range(n + 1), 2):
            apart = (j - i) / n
            add("angular", i, j, 0.0 if i == j else min(level(0.1 + 0.45 * apart), 1))
            add("cka", i, j, 1.0 if i == j else 1 - level(0.7 * apart))
            add("cka_biased", i, j, 1.0 if i == j else 1 - level(0.4 * apart))
        for layer in range(n + 1):
            first = layer == 0 and kind == "residue"
            for quantity, value in SINGLE.items():
                is_dimension = quantity.startswith("two_nn")
                for share in (1.0, 0.5, 0.25) if is_dimension else (1.0,):
                    add(quantity, layer, -1, level(value), share=share, coincide=first and is_dimension)
            for other in {min(layer + 1, n), n} - {layer}:
                add("overlap", layer, other, level(0.7), k=10, coincide=first)
    write_table({name: [row[name] for row in rows] for name in GEOM.names}, GEOM, path)
    return path


def write_pair(
    shallow: Invented,
    deep: Invented,
    path: Path,
    *,
    nulls: Sequence[tuple[str, int]] = NULLS[:4],
    steepness: float = 1.0,
) -> Path:
    """Write a GEOM table of two models whose best sources lie near the diagonal, steeper for a larger steepness."""
    rows, n, m = [], shallow.n_blocks, deep.n_blocks
    kinds = itertools.product(nulls, VIEWS[shallow.objective], ("residue", "pooled"), ("raw", "zscore"))
    for (null, seed), (direction, noise), kind, space in kinds:
        fixed = {
            "model_id": shallow.model, "family": shallow.family, "objective": shallow.objective, "n_blocks": n,
            "d_model": shallow.d_model, "dtype": "float32", "null_model": null, "null_seed": seed, "condition": "seq",
            "readout": "seq", "direction": direction, "noise_t": noise, "mask_draw": -1, "model_j": deep.model,
            "points": kind, "space": space, "n_seq": 40, "n_cluster": 38, "share": 1.0, "k": 0, "n_nan": 0,
        }  # fmt: skip
        rng = generator(0, "pair", *fixed.values())
        for i, j in itertools.product(range(n + 1), range(m + 1)):
            off = abs(i / n - steepness * j / m)
            rows.append({**fixed, "quantity": "map_error", "layer_i": i, "layer_j": j, "se": 0.02, "n_points": 64,
                         "value": 0.3 + off + rng.uniform(0, 0.02)})  # fmt: skip
            rows.append({**fixed, "quantity": "cka", "layer_i": i, "layer_j": j, "se": 0.02, "n_points": 320,
                         "value": 0.9 - 0.5 * off})  # fmt: skip
        for quantity, value, se in (("map_diagonal", 0.12, 0.03), ("map_diagonal_random", 0.39, np.nan)):
            rows.append({**fixed, "quantity": quantity, "layer_i": -1, "layer_j": -1, "se": se, "n_points": 64,
                         "value": value})  # fmt: skip
    write_table({name: [row[name] for row in rows] for name in GEOM.names}, GEOM, path)
    return path
