"""What metrics and figures cost on a large study: time and peak memory of each stage, on tables of the real schema.

    python benchmarks/metrics_scale.py [--proteins 5000] [--activations mlm:6 mlm:33:trained diffusion:4:null]
        [--depths mlm:6 mlm:12 ...] [--record FILE]

Starts from a finished mini study and lays copies of its rows beside each other, so that the stages read what they would
read in a study of that size, from columns that are all filled.

Activations: the shards that ``activations.extract`` writes (256 proteins each). A protein is two or three of the mini
study end to end, 281 residues on average as in UniRef50, and its vectors differ from those of other copies by a few per
cent; block k of n has the vectors of block 1 + (k - 1) mod 4 of the toy. ``metrics.contributions`` and ``metrics.lens``
read them; where both variants were made, ``metrics.profile`` and ``metrics.summary`` go on with what these two wrote.

Depths: the per-protein tables of all six networks, enlarged in the same way, through ``metrics.profile`` and
``metrics.summary``; by default every distinct objective and depth of the paper's variants (config/models.tsv), whose
views are those of config/config.yaml. The figures are then drawn of all 20 variants. Profiles and summaries have as
many rows for few proteins as for many: those of depths that were not asked for are made of 64 proteins.

Every stage is a process of its own with one thread. A line a stage is printed and, with --record, kept as JSON;
what was enlarged is removed as soon as it was read.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from plm_depth.metrics.groups import codes_of, row_codes
from plm_depth.models.registry import FAMILIES
from plm_depth.tables import (
    CLUSTERS,
    CONTRIB_SEQ,
    LENS_KEYS,
    LENS_SEQ,
    MOMENT_KEYS,
    MOMENTS,
    PROFILE,
    SUMMARY,
    VIEW_KEYS,
    TableWriter,
    VectorTable,
    VectorWriter,
    as_table,
    iterate_table,
    read_metadata,
    read_table,
    write_table,
)

ROOT = Path(__file__).resolve().parents[1]
TOYS = {"mlm": "esm2_toy_4", "ar": "progen2_toy_4", "diffusion": "dplm_toy_4"}
VARIANTS = ("trained", "null")
SHARD_SIZE = 256  # config/config.yaml
BATCH_TOKENS = 16384  # a batch, and so a row group, of activations.extract
RESIDUES = 281  # mean length of the paper study's proteins
VECTORS = {"moments": (MOMENT_KEYS, "contributions", "--moments"), "lens": (LENS_KEYS, "lens", "--logits")}
PER_PROTEIN = {"contributions": CONTRIB_SEQ, "lens": LENS_SEQ}
FIGURES = (
    *("contributions", "cosines", "depth_summary", "entropy", "lens_kl", "lens_overlap", "settling", "update_norms"),
    "variance",
)
# A process that is started from a large one counts as large as that: a small one stands between.
WATCH = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": 1024 * used.ru_maxrss}))
sys.exit(code)
"""


@dataclass(frozen=True)
class Case:
    """Tables of one model: its objective decides the views, its depth the layers."""

    objective: str
    n_blocks: int
    variants: tuple[str, ...] = VARIANTS

    @classmethod
    def of(cls, text: str) -> "Case":
        objective, n_blocks, *variants = text.split(":")
        if objective not in TOYS or not n_blocks.isdigit() or not set(variants) <= set(VARIANTS):
            raise argparse.ArgumentTypeError(f"{text!r}; expected for instance mlm:33 or mlm:33:trained")
        return cls(objective, int(n_blocks), tuple(variants) or VARIANTS)

    def __str__(self) -> str:
        return f"{self.objective}:{self.n_blocks}" + "".join(f":{v}" for v in self.variants if len(self.variants) == 1)


class Bench:
    """Runs stages and keeps what they took.

    Args:
        folder: for the enlarged tables.
        names: the proteins.
        resamples: of the bootstrap.
        record: a file that gets a JSON line a stage.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, resamples: int, record: Path | None):
        self.folder, self.names, self.resamples, self.record = folder, names, resamples, record
        self.clusters = folder / "clusters.parquet"
        write_table({"sequence_id": list(names), "cluster_id": list(names)}, CLUSTERS, self.clusters)

    def run(self, stage: str, words: Sequence[object], **about: object) -> None:
        """Run a stage and say its seconds (wall and CPU) and peak memory."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow")}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
        started = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-c", WATCH, sys.executable, "-m", f"plm_depth.{stage}", *map(str, words)],
            env=environment,
            capture_output=True,
            text=True,
        )
        if process.returncode:
            raise SystemExit(process.stderr or f"{stage} ended with {process.returncode}")
        used = json.loads(process.stdout.splitlines()[-1])
        took = {
            "stage": stage,
            **about,
            "wall_s": round(time.perf_counter() - started, 1),
            "cpu_s": round(used["cpu_s"], 1),
            "peak_gb": round(used["peak_bytes"] / 1e9, 3),
        }
        print(
            f"  {stage:24s} {took['wall_s']:7.1f} s, {took['cpu_s']:7.1f} s CPU, peak memory {took['peak_gb']:.2f} GB",
            flush=True,
        )
        if self.record:
            with self.record.open("a") as out:
                out.write(json.dumps(took) + "\n")

    def corpus(self, case: Case, tables: Mapping[str, Sequence[Path]]) -> dict[str, Path]:
        """Run ``metrics.profile`` and ``metrics.summary`` of one model; return what they wrote."""
        words = [word for table, paths in tables.items() for word in (f"--{table}", *paths)]
        words += ["--clusters", self.clusters, "--resamples", self.resamples, "--seed", 1]
        written = {}
        for stage in ("profile", "summary"):
            written[stage] = self.folder / f"{case.objective}_{case.n_blocks}_{stage}.parquet"
            self.run(f"metrics.{stage}", [*words, "--output", written[stage]], case=str(case))
        return written


def source_layer(layer: int, n_blocks: int) -> int:
    """Return the layer of a toy of ``n_blocks`` blocks whose numbers stand at a layer of a deeper model."""
    return layer if layer <= 0 else 1 + (layer - 1) % n_blocks


# ----------------------------------------------------------------------------------------------------------------
# Activations


def chains_of(own: Sequence[str], lengths: Mapping[str, int], n_proteins: int) -> list[list[str]]:
    """Return for every new protein the proteins that follow each other in it."""
    rng = np.random.default_rng(2)
    links = RESIDUES / np.mean([lengths[name] for name in own])
    n_links = np.floor(links) + (rng.random(n_proteins) < links % 1)
    return [list(rng.choice(own, int(n), replace=False)) for n in n_links]


class Toy:
    """One vector table of a toy, by view and protein.

    Attributes:
        rows: for each view (with its null model), the rows of each protein in the order of their positions.
        vectors: (n_layers, n_rows, width).
    """

    def __init__(self, path: Path, schema: pa.Schema):
        self.table = VectorTable(path, schema)
        self.keys = self.table.keys().unify_dictionaries().combine_chunks()
        self.vectors = np.stack([self.table.layer(layer) for layer in self.table.layers])
        views = [codes_of(self.keys.column(name)) for name in VIEW_KEYS if name not in ("sequence_id", "n_residues")]
        names = codes_of(self.keys.column("sequence_id"))
        self.position = self.keys.column("position").to_numpy()
        self.n_residues = self.keys.column("n_residues").to_numpy()
        _, view = row_codes(views)
        order = np.lexsort((self.position, names.codes, view))
        starts = np.flatnonzero(np.r_[True, (np.diff(view[order]) != 0) | (np.diff(names.codes[order]) != 0)])
        self.rows: dict[int, dict[str, np.ndarray]] = {}
        for part in np.split(order, starts[1:]):
            self.rows.setdefault(int(view[part[0]]), {})[str(names.values[names.codes[part[0]]])] = part

    def deeper(self, n_blocks: int) -> np.ndarray:
        """Return the vectors of a model of that many blocks, (n_blocks + 1, n_rows, width).

        Where block 1 of the toy follows its last one, the products of its updates with the stream before the block
        are scaled to the length that this stream has here, so that every cosine stays one.
        """
        own = len(self.table.layers) - 1
        layers = np.array([source_layer(layer, own) for layer in range(n_blocks + 1)])
        found = self.vectors[layers]
        if self.table.names == list(MOMENTS):
            square, products = MOMENTS.index("hh"), [MOMENTS.index(name) for name in ("ha", "hu", "h_next")]
            before, here = self.vectors[0, :, square], self.vectors[own, :, square]
            scale = np.sqrt(np.divide(here, before, out=np.zeros_like(here), where=before > 0))
            for layer in np.flatnonzero((layers == 1) & (np.arange(n_blocks + 1) > 1)):
                found[layer][:, products] *= scale[:, None]
        return found


def enlarge_vectors(
    source: Path, shards: Sequence[Path], schema: pa.Schema, *, bench: Bench, n_blocks: int
) -> tuple[int, int]:
    """Write the vector table of every shard; return the rows and bytes of all of them."""
    toy = Toy(source, schema)
    lengths = dict(zip(toy.keys.column("sequence_id").to_pylist(), toy.n_residues.tolist()))
    chains = chains_of(sorted(lengths), lengths, len(bench.names))
    vectors = toy.deeper(n_blocks)
    constants = {**toy.table.constants, "n_blocks": n_blocks}
    scales = np.random.default_rng(3).uniform(0.97, 1.03, len(bench.names)).astype(np.float32)
    # Squares of lengths grow with the square of the stream, and logits with the stream.
    powers = np.array([1 if name == "sum_h" else 2 for name in MOMENTS]) if schema is MOMENT_KEYS else 1
    n_rows = n_bytes = 0
    for number, path in enumerate(shards):
        proteins = range(number * SHARD_SIZE, min((number + 1) * SHARD_SIZE, len(bench.names)))
        with VectorWriter(
            path, schema, range(n_blocks + 1), toy.table.width, "float32", constants, toy.table.names
        ) as writer:
            for rows in toy.rows.values():
                for batch in batches(proteins, chains, lengths):
                    parts = [chained(toy, rows, chains[protein], lengths) for protein in batch]
                    index = np.concatenate([part[0] for part in parts])
                    of_row = np.repeat(batch, [len(part[0]) for part in parts])
                    keys = {name: toy.keys.column(name).take(pa.array(index)) for name in schema.names}
                    keys["sequence_id"] = named(of_row - batch[0], [bench.names[protein] for protein in batch])
                    keys["position"] = np.concatenate([part[1] for part in parts])
                    total = [sum(lengths[name] for name in chains[protein]) for protein in batch]
                    keys["n_residues"] = np.repeat(total, [len(part[0]) for part in parts])
                    writer.append(keys, vectors[:, index] * scales[of_row][:, None] ** powers)
        n_rows += writer.n_rows
        n_bytes += path.stat().st_size
    return n_rows, n_bytes


def batches(proteins: Sequence[int], chains: Sequence[Sequence[str]], lengths: Mapping[str, int]) -> Iterator[list]:
    batch, n_tokens = [], 0
    for protein in proteins:
        n = sum(lengths[name] for name in chains[protein])
        if batch and n_tokens + n > BATCH_TOKENS:
            yield batch
            batch, n_tokens = [], 0
        batch.append(protein)
        n_tokens += n
    yield batch


def chained(
    toy: Toy, rows: Mapping[str, np.ndarray], chain: Sequence[str], lengths: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of proteins end to end, without the special tokens between them, and their new positions."""
    index, positions, done = [], [], 0
    for link, name in enumerate(chain):
        mine = rows.get(name, np.zeros(0, np.int64))
        at = toy.position[mine]
        kept = ((at >= 0) | (link == 0)) & ((at < lengths[name]) | (link == len(chain) - 1))
        index.append(mine[kept])
        positions.append(at[kept] + done * (at[kept] >= 0))
        done += lengths[name]
    return np.concatenate(index), np.concatenate(positions).astype(np.int32)


def named(codes: np.ndarray, names: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(names, pa.string()))


def measure_activations(bench: Bench, case: Case, source: Path) -> dict[str, Path] | None:
    """Run the stages that read activations, and those that follow where both variants are there."""
    shards = range(-(-len(bench.names) // SHARD_SIZE))
    tables: dict[str, list[Path]] = {}
    for variant in case.variants:
        for vector, (schema, stage, option) in VECTORS.items():
            paths = [bench.folder / f"{vector}_{shard}.parquet" for shard in shards]
            toy = next((source / variant).glob(f"*/{vector}.parquet"))
            n_rows, n_bytes = enlarge_vectors(toy, paths, schema, bench=bench, n_blocks=case.n_blocks)
            print(
                f"{case}, {variant}: {vector} of {len(bench.names)} proteins, {n_rows / 1e6:.1f} million rows of "
                f"{case.n_blocks + 1} layers, {n_bytes / 1e9:.2f} GB in {len(paths)} shards",
                flush=True,
            )
            output = bench.folder / f"{variant}_{stage}.parquet"
            about = {"case": f"{case.objective}:{case.n_blocks}", "variant": variant, "rows": n_rows, "bytes": n_bytes}
            bench.run(f"metrics.{stage}", [option, *paths, "--output", output], **about)
            tables.setdefault(stage, []).append(output)
            for path in paths:
                path.unlink()
    written = bench.corpus(case, tables) if set(case.variants) == set(VARIANTS) else None
    for path in (path for paths in tables.values() for path in paths):
        path.unlink()
    return written


# ----------------------------------------------------------------------------------------------------------------
# Per-protein tables


def enlarge_rows(source: Path, target: Path, schema: pa.Schema, *, bench: Bench, n_blocks: int) -> int:
    """Write one per-protein table with more proteins and blocks; return its rows."""
    about = {k: v for k, v in read_metadata(source).items() if k != "description"}
    rng = np.random.default_rng(1)
    with TableWriter(target, schema, **about) as writer:
        for rows in iterate_table(source, schema):
            layer, own = (int(pc.max(rows.column(name)).as_py()) for name in ("layer", "n_blocks"))
            columns = copied(rows, bench.names, rng=rng)
            columns["n_blocks"] = np.full(len(columns["layer"]), n_blocks, np.int16)
            table, place = as_table(columns, schema), schema.get_field_index("layer")
            for new in range(layer, n_blocks + 1, own) if layer > 0 else [layer]:
                numbers = pa.array(np.full(len(table), new, np.int16))
                writer.append(table.set_column(place, schema.field(place), numbers))
        return writer.n_rows


def copied(rows: pa.Table, names: Sequence[str], *, rng: np.random.Generator) -> dict[str, object]:
    """Return the rows of one layer for as many proteins as there are names, sums changed by a few per cent."""
    own = codes_of(rows.column("sequence_id"))
    n_copies = -(-len(names) // len(own.values))
    protein = own.codes[:, None] * n_copies + np.arange(n_copies)
    row, copy = np.nonzero(protein < len(names))  # the last copies of the last proteins may be too many
    protein = protein[row, copy]
    taken = rows.unify_dictionaries().combine_chunks().take(pa.array(row))
    columns: dict[str, object] = {name: taken.column(name) for name in taken.column_names}
    columns["sequence_id"] = named(protein, names)
    scale = rng.uniform(0.97, 1.03, len(names))[protein]
    for name, factor in {"sum": scale, "sumsq": scale**2, "p95": scale, "max": scale}.items():
        if name in columns:
            columns[name] = columns[name].to_numpy() * factor
    return columns


def measure_depth(bench: Bench, case: Case, source: Path) -> dict[str, Path]:
    """Run profile and summary on the enlarged per-protein tables of one model."""
    tables: dict[str, list[Path]] = {}
    n_rows = n_bytes = 0
    for table, schema in PER_PROTEIN.items():
        for variant in case.variants:
            path = bench.folder / f"{variant}_{table}.parquet"
            n_rows += enlarge_rows(
                source / variant / f"{table}.parquet", path, schema, bench=bench, n_blocks=case.n_blocks
            )
            n_bytes += path.stat().st_size
            tables.setdefault(table, []).append(path)
    print(
        f"{case}: {len(bench.names)} proteins, {n_rows / 1e6:.1f} million rows, {n_bytes / 1e9:.2f} GB on the disk",
        flush=True,
    )
    written = bench.corpus(case, tables)
    for path in (path for paths in tables.values() for path in paths):
        path.unlink()
    return written


# ----------------------------------------------------------------------------------------------------------------
# Figures


def variants_of_the_paper() -> list[dict[str, object]]:
    """Return the models of the sheet that the paper most likely used, as figures need them."""
    with (ROOT / "config" / "models.tsv").open() as sheet:
        rows = list(csv.DictReader((line for line in sheet if not line.startswith("#")), delimiter="\t"))
    return [
        {
            **{key: row[key] for key in ("model", "display_name", "family")},
            **{key: int(row[key]) for key in ("n_blocks", "d_model")},
            "objective": FAMILIES[row["family"]].objective,
            "family_name": FAMILIES[row["family"]].name,
            "toy": False,
            "reads_residues": True,
        }
        for row in rows
        if row["in_study"] != "no"
    ]


def draw(bench: Bench, models: Sequence[Mapping[str, object]], written: Mapping[tuple, Mapping[str, Path]]) -> None:
    """Draw the figures of profiles and summaries, those of each model being those of its objective and depth."""
    tables: dict[str, list[Path]] = {"profiles": [], "summaries": []}
    for model in models:
        found = written[model["objective"], model["n_blocks"]]
        for kind, schema, stage in (("profiles", PROFILE, "profile"), ("summaries", SUMMARY, "summary")):
            rows = read_table(found[stage], schema)
            columns = {name: rows.column(name) for name in rows.column_names}
            columns |= {"model_id": pa.array([model["model"]] * len(rows))}
            columns |= {"family": pa.array([model["family"]] * len(rows))}
            path = bench.folder / f"{model['model']}_{stage}.parquet"
            write_table(columns, schema, path)
            tables[kind].append(path)
    (bench.folder / "models.json").write_text(json.dumps(list(models)))
    size = sum(path.stat().st_size for path in tables["profiles"])
    print(f"figures of {len(models)} variants, {size / 1e6:.0f} MB of profiles", flush=True)
    words = [word for kind, paths in tables.items() for word in (f"--{kind}", *paths)]
    words += ["--models", bench.folder / "models.json"]
    words += [word for end in ("svg", "csv", "html") for word in (f"--{end}", bench.folder / f"figure.{end}")]
    for figure in FIGURES:
        bench.run(f"figures.{figure}", words, variants=len(models))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, default=ROOT / "results" / "mini", help="a finished mini study")
    parser.add_argument("--dataset", default="mini")
    parser.add_argument("--proteins", type=int, default=5000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--activations", type=Case.of, nargs="*", default=[], help="OBJECTIVE:BLOCKS[:VARIANT]")
    parser.add_argument("--depths", type=Case.of, nargs="*", help="default: all of the paper's variants")
    parser.add_argument("--record", type=Path, help="a file that gets a JSON line a stage")
    parser.add_argument("--folder", type=Path, help="where there is room for the tables, by default a temporary folder")
    given = parser.parse_args()
    if not (given.source / "metrics" / given.dataset).is_dir():
        raise SystemExit(f"{given.source}: no metrics of {given.dataset}; run the mini study first (make study)")
    models = variants_of_the_paper()
    counts = Counter((str(model["objective"]), int(model["n_blocks"])) for model in models)
    depths = given.depths if given.depths is not None else [Case(*key) for key in sorted(counts)]
    print(", ".join(f"{n} x {objective}:{blocks}" for (objective, blocks), n in sorted(counts.items())), flush=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        names = [f"P{number:05d}" for number in range(given.proteins)]
        bench = Bench(Path(folder), names, resamples=given.resamples, record=given.record)
        written: dict[tuple, dict[str, Path]] = {}
        for case in given.activations:
            source = given.source / "activations" / given.dataset / TOYS[case.objective]
            found = measure_activations(bench, case, source)
            if found:
                written[case.objective, case.n_blocks] = found
        for case in depths:
            if (case.objective, case.n_blocks) not in written:
                source = given.source / "metrics" / given.dataset / TOYS[case.objective]
                written[case.objective, case.n_blocks] = measure_depth(bench, case, source)
        (bench.folder / "few").mkdir()
        few = Bench(bench.folder / "few", names[:64], resamples=given.resamples, record=None)
        for objective, n_blocks in sorted(set(counts) - set(written)):
            source = given.source / "metrics" / given.dataset / TOYS[objective]
            written[objective, n_blocks] = measure_depth(few, Case(objective, n_blocks), source)
        draw(bench, models, written)


if __name__ == "__main__":
    main()
