"""What the extraction pass costs over a bare forward pass, what caching all states costs over keeping them in memory,
and what reading one layer back costs beside a list column, as ratios within one run.

    OMP_NUM_THREADS=1 python benchmarks/activation_cache.py [--repeats 5] [--proteins 16] [--smoke]

An ESM-2 35M shape with random weights, proteins of 60-400 residues, CPU seconds of one thread, the alternatives taking
turns, medians. The numbers of all alternatives are compared before any ratio is printed. Exit status 1 when a floor is
missed.
"""

import argparse
import itertools
import logging
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from plm_depth.activations.batches import plan
from plm_depth.activations.door import full_precision
from plm_depth.activations.extract import Files, extract, item_of, lens_keys, moment_keys
from plm_depth.activations.nulls import Null
from plm_depth.models import registry
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS, LENS_KEYS, MOMENT_KEYS, MOMENTS, STREAM_KEYS, VectorTable, VectorWriter
from plm_depth.views import View

TRAINED = Null("trained", -1)
MASKED, CLEAN = View("none", 0.15, 0), View("none", 0.0, -1)
LOG = logging.getLogger("benchmark")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--proteins", type=int, default=16)
    parser.add_argument("--token-budget", type=int, default=2048)
    parser.add_argument("--smoke", action="store_true", help="a tiny shape: shows that the script runs, says nothing")
    options = parser.parse_args()
    full_precision(threads=1)
    sizes = {"n_blocks": 12, "d_model": 480, "n_heads": 20}
    longest = 400
    if options.smoke:
        sizes, longest = {"n_blocks": 3, "d_model": 32, "n_heads": 4}, 80
    adapter = registry.build("esm2", sizes, seed=0)
    random = generator(0, "benchmark", "proteins")
    proteins = [
        (f"P{i}", "".join(random.choice(list(AMINO_ACIDS), size=random.integers(60, longest + 1))))
        for i in range(options.proteins)
    ]
    with tempfile.TemporaryDirectory() as folder:
        return run(adapter, proteins, Path(folder), options)


def run(adapter, proteins: list[tuple[str, str]], folder: Path, options: argparse.Namespace) -> int:
    layers = range(adapter.n_blocks + 1)
    items = [item_of(adapter, *protein, MASKED, seed=0) for protein in proteins]
    batches = [
        [items[i] for i in batch]
        for batch in plan([item.tokens.n_tokens for item in items], token_budget=options.token_budget)
    ]
    n_tokens = sum(item.tokens.n_tokens for item in items)

    @torch.inference_mode()
    def bare() -> list[torch.Tensor]:
        return [adapter.library_logits(adapter.collate([item.tokens for item in batch])) for batch in batches]

    @torch.inference_mode()
    def states(batch) -> list[torch.Tensor]:
        stream, context = adapter.embed(adapter.collate([item.tokens for item in batch]))
        kept = [stream]
        for block in range(1, adapter.n_blocks + 1):
            stream = adapter.add(stream, adapter.updates(block, stream, context))
            kept.append(stream)
        adapter.read_out(stream)
        return kept

    def in_memory() -> list[list[torch.Tensor]]:
        return [states(batch) for batch in batches]

    def cached() -> Path:
        path = folder / "states.parquet"
        with VectorWriter(path, MOMENT_KEYS, layers, adapter.d_model, "float16") as writer:
            for batch in batches:
                kept = states(batch)
                for row, item in enumerate(batch):
                    n = item.tokens.n_tokens
                    vectors = np.stack([layer[row, :n].to(torch.float16).numpy() for layer in kept])
                    writer.append(moment_keys([item], TRAINED, MASKED), vectors)
        return path

    def extraction(view: View) -> Callable[[], Files]:
        files = Files(*(folder / f"{view.reads}_{name}.parquet" for name in ("moments", "lens", "stream")))

        def pass_() -> Files:
            extract(
                adapter, proteins, files=files, model_id="benchmark", nulls=[TRAINED], views=[view], seed=0,
                token_budget=options.token_budget, log=LOG,
            )  # fmt: skip
            return files

        return pass_

    masked, clean = extraction(MASKED), extraction(CLEAN)
    check(adapter, batches, bare(), in_memory(), cached(), masked())
    check_stream(adapter, proteins, clean())
    alternatives = {
        "a": ("library forward, logits only", bare),
        "b": ("walk, all states in memory", in_memory),
        "c": ("walk, all states to Parquet, fixed-size binary float16", cached),
        "d": ("extraction, 15 % masked: moments and lens of every layer", masked),
        "e": ("extraction, clean: moments, lens at every residue, anchors", clean),
    }
    seconds = interleaved({name: call for name, (_, call) in alternatives.items()}, options.repeats)
    for name, (what, _) in alternatives.items():
        print(f"{name}  {seconds[name]:8.3f} s  {n_tokens / seconds[name]:8.0f} tokens/s  {what}")

    binary, listed = folder / "binary.parquet", folder / "lists.parquet"
    repeat(VectorTable(cached(), MOMENT_KEYS), binary, times=1 if options.smoke else 3)
    write_lists(VectorTable(binary, MOMENT_KEYS), listed)
    print(f"layouts: {binary.stat().st_size / 1e6:.0f} MB binary, {listed.stat().st_size / 1e6:.0f} MB list<float16>")
    middle = adapter.n_blocks // 2

    def read_binary() -> np.ndarray:
        return VectorTable(binary, MOMENT_KEYS).layer(middle)

    def read_lists() -> np.ndarray:
        file = pq.ParquetFile(listed, page_checksum_verification=True)  # the same service
        column = file.read(columns=[f"layer_{middle}"]).column(0).combine_chunks()
        return column.values.to_numpy().reshape(-1, adapter.d_model)

    if not np.array_equal(read_binary(), read_lists()):
        raise SystemExit("the two layouts do not hold the same numbers")
    reading = interleaved({"binary": read_binary, "lists": read_lists}, max(options.repeats, 15))
    print(f"one layer back: {reading['binary'] * 1e3:.2f} ms binary, {reading['lists'] * 1e3:.2f} ms list<float16>")

    rows = [
        ("c / b  writing all states, over states in memory", seconds["c"] / seconds["b"], 1.05, 1.15, "at most"),
        ("d / a  lens and contributions, over a bare forward", seconds["d"] / seconds["a"], 1.10, 1.25, "at most"),
        (
            "e / a  the same with a read-out at every residue",
            seconds["e"] / seconds["a"],
            math.nan,
            math.nan,
            "at most",
        ),
        ("one layer read back, list / binary", reading["lists"] / reading["binary"], 8.0, 4.0, "at least"),
    ]
    missed = 0
    for what, ratio, aim, floor, sense in rows:
        if math.isnan(floor) or options.smoke:  # overhead is all there is in a tiny shape
            print(f"{what}: {ratio:.3f}")
            continue
        held = ratio <= floor if sense == "at most" else ratio >= floor
        met = ratio <= aim if sense == "at most" else ratio >= aim
        missed += not held
        verdict = "aim met" if met else "floor holds" if held else "FLOOR MISSED"
        print(f"{what}: {ratio:.3f} (aim {sense} {aim:g}, floor {floor:g}): {verdict}")
    return 1 if missed else 0


def check(adapter, batches, logits, kept, cache: Path, files: Files) -> None:
    """Refuse to time alternatives that do not give the same numbers."""
    items = [item for batch in batches for item in batch]
    table, lens = VectorTable(files.moments, MOMENT_KEYS), VectorTable(files.lens, LENS_KEYS)
    states = VectorTable(cache, MOMENT_KEYS)
    if table.keys().column("position").to_pylist() != moment_keys(items, TRAINED, MASKED)["position"].tolist():
        raise SystemExit("the extraction wrote other rows than the plan says")
    if lens.keys().column("position").to_pylist() != lens_keys(items, TRAINED, MASKED)["position"].tolist():
        raise SystemExit("the extraction wrote other reads than the plan says")
    for layer in range(adapter.n_blocks + 1):
        vectors = np.concatenate(
            [
                kept[b][layer][row, : item.tokens.n_tokens].double().numpy()
                for b, batch in enumerate(batches)
                for row, item in enumerate(batch)
            ]
        )
        norms = table.layer(layer)[:, MOMENTS.index("hh")]
        compare(norms, (vectors**2).sum(-1), 1e-5, f"|h|^2 at layer {layer}")
        compare(states.layer(layer), vectors, 1e-3, f"cached states at layer {layer}")
    expected = np.concatenate(
        [
            logits[b][row, item.tokens.residue_tokens[item.reads]].numpy()
            for b, batch in enumerate(batches)
            for row, item in enumerate(batch)
        ]
    )
    compare(lens.layer(adapter.n_blocks), expected[:, list(adapter.vocabulary)], 1e-5, "logits of the last layer")


def check_stream(adapter, proteins, files: Files) -> None:
    stream = VectorTable(files.stream, STREAM_KEYS)
    if not stream.n_rows or not np.isfinite(stream.layer(adapter.n_blocks)).all():
        raise SystemExit("the clean view wrote no anchors, or such that are not finite")
    if len(set(stream.keys().column("sequence_id").to_pylist())) != len(proteins):
        raise SystemExit("the clean view left out proteins")


def compare(found: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    error = np.abs(found.astype(float) - expected).max() / np.abs(expected).max()
    if not error <= tolerance:
        raise SystemExit(f"{what}: the alternatives differ by {error:.2g} relative, above {tolerance:g}")


def repeat(table: VectorTable, path: Path, *, times: int) -> None:
    """Write the vectors of a table several times over, so that opening the file is not what is measured."""
    vectors = np.stack([table.layer(layer) for layer in table.layers])
    keys = table.keys()
    lengths = np.flatnonzero(np.diff(keys.column("position").to_numpy(), append=-2) < 0) + 1
    with VectorWriter(path, MOMENT_KEYS, table.layers, table.width, table.dtype.name) as writer:
        for _ in range(times):
            for start, end in itertools.pairwise([0, *lengths]):
                part = keys.slice(start, end - start)
                writer.append({name: part.column(name) for name in part.column_names}, vectors[:, start:end])


def write_lists(table: VectorTable, path: Path) -> None:
    """Write the same vectors the way a list column would hold them."""
    columns = {}
    for layer in table.layers:
        values = np.ascontiguousarray(table.layer(layer))
        offsets = np.arange(0, values.size + 1, table.width, dtype=np.int32)
        columns[f"layer_{layer}"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))
    pq.write_table(
        pa.table(columns), path, compression="zstd", compression_level=1, use_dictionary=False, row_group_size=512,
        use_byte_stream_split=[f"{name}.list.element" for name in columns], write_page_checksum=True,
    )  # fmt: skip


def interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median CPU seconds of each call, all of them taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.process_time()
            call()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
