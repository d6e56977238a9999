"""What metrics and figures cost on a large study: time and peak memory of each stage, on tables of the real schema.

    python benchmarks/metrics_scale.py [--proteins 640 1280] [--blocks 8] [--variants 20] [--resamples 2000]

Takes the per-protein tables of one model of a finished mini study and lays copies beside each other: every protein
under new names with its sums changed by a few per cent, every block again as a later one. Row groups stay as the stages
write them (all proteins of one layer, for the views and networks of one variant), so that the stages read what they
would read in a study of that size. Then it runs ``metrics.profile`` and ``metrics.summary`` as processes of their own,
and, with the profile and summary of as many variants, two figures. Prints a line a stage.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from plm_depth.tables import (
    CLUSTERS,
    CONTRIB_SEQ,
    LENS_SEQ,
    PROFILE,
    SUMMARY,
    TableWriter,
    iterate_table,
    read_metadata,
    read_table,
    write_table,
)

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ("contributions", "lens")
SCHEMAS = {"contributions": CONTRIB_SEQ, "lens": LENS_SEQ}
FLOATS = ("sum", "sumsq", "p95", "max")


def copied(rows: pa.Table, copies: int, *, shift: int, n_blocks: int, rng: np.random.Generator) -> pa.Table:
    """Return ``copies`` of the rows, each of other proteins, with their layers moved by ``shift``."""
    parts = []
    names = rows.column("sequence_id").cast(pa.string())
    layers = pc.add(rows.column("layer"), pa.scalar(shift, pa.int16()))
    for copy in range(copies):
        columns = {name: rows.column(name) for name in rows.column_names}
        columns["sequence_id"] = pc.binary_join_element_wise(names, pa.scalar(str(copy)), "_")
        columns["layer"] = layers if shift else rows.column("layer")
        columns["n_blocks"] = pa.array(np.full(len(rows), n_blocks, np.int16))
        for name in FLOATS:
            if name in columns:
                values = columns[name].to_numpy() * rng.uniform(0.97, 1.03)
                columns[name] = pa.array(values, rows.schema.field(name).type)
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def enlarge(source: Path, target: Path, table: str, *, copies: int, times: int) -> int:
    """Write one per-protein table with more proteins and blocks; return its rows."""
    schema = SCHEMAS[table]
    about = {k: v for k, v in read_metadata(source).items() if k != "description"}
    rng = np.random.default_rng(1)
    with TableWriter(target, schema, **about) as writer:
        for rows in iterate_table(source, schema):
            n_blocks = int(pc.max(rows.column("n_blocks")).as_py())
            layer = int(pc.max(rows.column("layer")).as_py())
            for time_ in range(times if layer > 0 else 1):
                moved = time_ * n_blocks
                writer.append(copied(rows, copies, shift=moved, n_blocks=n_blocks * times, rng=rng))
        return writer.n_rows


def measured(name: str, words: list[object]) -> None:
    """Run a stage and print its seconds (wall and CPU) and peak memory."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow"), "POLARS_MAX_THREADS": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", f"plm_depth.{name}", *map(str, words)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(said)
    print(
        f"  {name:24s} {time.perf_counter() - started:7.1f} s, {used.ru_utime + used.ru_stime:7.1f} s CPU, "
        f"peak memory {used.ru_maxrss / 1e6:.2f} GB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, default=ROOT / "results" / "mini", help="a finished mini study")
    parser.add_argument("--dataset", default="mini")
    parser.add_argument("--model", default="esm2_toy_4")
    parser.add_argument("--proteins", type=int, nargs="+", default=[640, 1280])
    parser.add_argument("--blocks", type=int, default=8, help="a multiple of the blocks of the model")
    parser.add_argument("--variants", type=int, default=20, help="models in the figures")
    parser.add_argument("--resamples", type=int, default=2000)
    given = parser.parse_args()
    variants = [
        variant
        for variant in ("trained", "null")
        if (given.source / "metrics" / given.dataset / given.model / variant / "lens.parquet").is_file()
    ]
    if not variants:
        raise SystemExit(f"{given.source}: no metrics of {given.model}; run the mini study first (make study)")
    source = given.source / "metrics" / given.dataset / given.model
    first = next(iterate_table(source / variants[0] / "contributions.parquet", CONTRIB_SEQ))
    own = sorted(set(first.column("sequence_id").to_pylist()))
    n_blocks = first.column("n_blocks")[0].as_py()
    with tempfile.TemporaryDirectory() as folder:
        for n_proteins in given.proteins:
            copies = max(1, round(n_proteins / len(own)))
            out = Path(folder)
            n_rows = n_bytes = 0
            for variant in variants:
                for table in MEASURED:
                    path = out / f"{variant}_{table}.parquet"
                    n_rows += enlarge(
                        source / variant / f"{table}.parquet",
                        path,
                        table,
                        copies=copies,
                        times=max(1, given.blocks // n_blocks),
                    )
                    n_bytes += path.stat().st_size
            names = [f"{name}_{copy}" for copy in range(copies) for name in own]
            write_table({"sequence_id": names, "cluster_id": names}, CLUSTERS, out / "clusters.parquet")
            print(
                f"{len(names)} proteins, {given.blocks} blocks: {n_rows / 1e6:.1f} million rows, "
                f"{n_bytes / 1e9:.2f} GB on the disk, one model",
                flush=True,
            )
            words: list[object] = []
            for table in MEASURED:
                words += [f"--{table}", *(out / f"{variant}_{table}.parquet" for variant in variants)]
            words += ["--clusters", out / "clusters.parquet", "--resamples", given.resamples, "--seed", 1]
            measured("metrics.profile", [*words, "--output", out / "profile.parquet"])
            measured("metrics.summary", [*words, "--output", out / "summary.parquet"])
        models, tables = [], {"profiles": [], "summaries": []}
        for i in range(given.variants):
            model = f"variant_{i}"
            models.append(
                {"model": model, "display_name": model, "family": f"family_{i % 6}", "objective": "mlm", "toy": True,
                 "n_blocks": given.blocks, "d_model": 48, "n_parameters": 10**6}
            )  # fmt: skip
            for kind, schema, name in (("profiles", PROFILE, "profile"), ("summaries", SUMMARY, "summary")):
                rows = read_table(out / f"{name}.parquet", schema)
                columns = {column: rows.column(column) for column in rows.column_names}
                columns["model_id"] = pa.array([model] * len(rows))
                columns["family"] = pa.array([f"family_{i % 6}"] * len(rows))
                write_table(columns, schema, out / f"{i}_{name}.parquet")
                tables[kind].append(out / f"{i}_{name}.parquet")
        (out / "models.json").write_text(json.dumps(models))
        print(f"figures of {given.variants} variants", flush=True)
        for figure in ("contributions", "depth_summary"):
            words = [word for kind, paths in tables.items() for word in (f"--{kind}", *paths)]
            endings = [word for end in ("svg", "csv", "html") for word in (f"--{end}", out / f"figure.{end}")]
            measured(f"figures.{figure}", [*words, "--models", out / "models.json", *endings])


if __name__ == "__main__":
    main()
