"""How far the numbers of one study are apart on other machines: other instruction sets, libraries' kernels and threads.

    python benchmarks/reproducibility.py [--source results/mini] [--models esm2_toy_4 progen2_toy_4]

Passes, metrics and profile of models of a finished mini study run again in processes whose environment makes the
libraries behave as on another machine: fewer vector instructions in torch (``ATEN_CPU_CAPABILITY``) and oneDNN
(``ONEDNN_MAX_CPU_ISA``), the kernels of another processor in OpenBLAS (``OPENBLAS_CORETYPE``, which numpy uses), more
threads, another token budget. Prints, for every environment, the largest difference of a corpus value from the first
one: absolute, and relative to the largest value of its quantity.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "as it is": {},
    "as it is, again": {},
    "torch without AVX-512": {"ATEN_CPU_CAPABILITY": "avx2"},
    "torch without vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "oneDNN up to AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"},
    "oneDNN up to SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41", "DNNL_MAX_CPU_ISA": "SSE41"},
    "MKL up to AVX2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "OpenBLAS as on Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "OpenBLAS as on Prescott": {"OPENBLAS_CORETYPE": "Prescott"},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "a quarter of the token budget": {"TOKEN_BUDGET": "4096"},
    "all of these": {
        **{"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        **{"OPENBLAS_CORETYPE": "Prescott", "OMP_NUM_THREADS": "2", "TOKEN_BUDGET": "4096"},
    },
}
CHECKED = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "OPENBLAS_CORETYPE", "OMP_NUM_THREADS")


def profile(source: Path, dataset: str, model: str, inputs: dict, variables: dict[str, str]) -> pl.DataFrame:
    """Return the profile of one model, everything after its training run again in an environment."""
    environment = {key: value for key, value in os.environ.items() if key not in CHECKED}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "workflow"),
        "POLARS_MAX_THREADS": "1",
        **variables,
    }
    data = source / "datasets" / dataset
    nulls = [{"null_model": "trained", "seed": -1}]
    with tempfile.TemporaryDirectory() as folder:

        def run(stage: str, *words: object) -> None:
            command = [sys.executable, "-m", f"plm_depth.{stage}", *map(str, words)]
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
            if ended.returncode:
                raise SystemExit(ended.stderr)

        at = Path(folder)
        run(
            "activations.extract",
            *("--card", source / "cards" / f"{model}.json", "--sequences", data / "shards" / "0.parquet"),
            *("--nulls", json.dumps(nulls), "--inputs", json.dumps(inputs), "--anchors", 2, "--seed", 1),
            *("--token-budget", variables.get("TOKEN_BUDGET", 16384), "--device", "cpu"),
            *("--threads", environment["OMP_NUM_THREADS"]),
            *("--moments", at / "moments", "--lens", at / "lens", "--stream", at / "stream"),
        )
        shard = ("--sample", data / "shards" / "0.parquet", "--identity", 0.3, "--coverage", 0.5)
        run("sequences.cluster", *shard, "--output", at / "clusters")
        run("metrics.contributions", "--moments", at / "moments", "--output", at / "contributions")
        run("metrics.lens", "--logits", at / "lens", "--output", at / "read")
        run(
            "metrics.profile",
            *("--contributions", at / "contributions", "--lens", at / "read", "--clusters", at / "clusters"),
            *("--resamples", 200, "--seed", 1, "--output", at / "profile"),
        )
        return pl.read_parquet(at / "profile")


def difference(found: pl.DataFrame, first: pl.DataFrame) -> tuple[float, float, str]:
    """Return the largest difference of corpus values and interval ends, relative too, and of which quantity."""
    keys = ["direction", "noise_t", "mask_draw", "table", "quantity", "pos_class", "vocab", "layer", "aggregate"]
    found, first = (table.with_columns(pl.col(keys).cast(pl.String)).sort(keys) for table in (found, first))
    if not found.select(keys).equals(first.select(keys)):
        raise SystemExit("the profiles have other rows")
    largest, relative, which = 0.0, 0.0, "none"
    for (quantity, table), rows in first.with_row_index().group_by(["quantity", "table"]):
        at = rows["index"].to_numpy()
        for column in ("value", "ci_lo", "ci_hi"):
            new, old = found[column].to_numpy()[at], first[column].to_numpy()[at]
            if not np.array_equal(np.isnan(new), np.isnan(old)):
                raise SystemExit(f"{quantity}: undefined at other places")
            if np.isnan(old).all():
                continue
            apart, scale = np.nanmax(np.abs(new - old)), np.nanmax(np.abs(old))
            largest = max(largest, float(apart))
            if scale > 0 and apart / scale > relative:
                relative, which = float(apart / scale), f"{table} {quantity}"
    return largest, relative, which


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, default=ROOT / "results" / "mini", help="a finished mini study")
    parser.add_argument("--dataset", default="mini")
    parser.add_argument("--models", nargs="+", default=["esm2_toy_4", "progen2_toy_4"])
    given = parser.parse_args()
    inputs = {"ar": {"directions": ["n2c"]}, "mlm": {"noise": [0.15], "draws": 1, "clean": True}}
    inputs["diffusion"] = {"noise": [0.3], "draws": 1, "clean": False}
    for model in given.models:
        first = None
        print(f"{model}\n  {'environment':32s} {'largest difference':>18s} {'relative':>9s}  quantity")
        for name, variables in ENVIRONMENTS.items():
            found = profile(given.source, given.dataset, model, inputs, variables)
            if first is None:
                first = found
                continue
            largest, relative, which = difference(found, first)
            print(f"  {name:32s} {largest:18.2g} {relative:9.2g}  {which}", flush=True)


if __name__ == "__main__":
    main()
