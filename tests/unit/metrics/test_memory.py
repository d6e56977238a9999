"""What the stages hold of a study: few bytes a token of all shards, and one network of the per-protein tables."""

import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from planted import toy
from plm_depth.metrics.bootstrap import Bootstrap
from plm_depth.metrics.contributions import contributions
from plm_depth.metrics.corpus import parts_of
from plm_depth.metrics.lens import lens
from plm_depth.tables import AMINO_ACIDS, LENS_KEYS, MOMENT_KEYS, MOMENTS, VectorWriter
from unit.metrics.conftest import proteins

N_TOKENS = 20_000  # of a shard
CONSTANTS = {
    "model_id": "toy",
    "family": "esm2",
    "objective": "mlm",
    "n_blocks": 1,
    "d_model": 8,
    "dtype": "float32",
    "readout": "seq",
    "seed": 1,
    "version": 1,
    "amino_acid_columns": list(AMINO_ACIDS),
}


def write_shard(path: Path, schema, own: Mapping[str, object], vectors: np.ndarray, names: Sequence[str]) -> None:
    """Write one protein that is as long as a shard of many."""
    keys = {"sequence_id": path.name, "n_residues": N_TOKENS, "null_model": "trained", "null_seed": -1}
    keys |= {"condition": "seq", "direction": "none", "noise_t": 0.15, "mask_draw": 0}
    keys |= {"position": np.arange(N_TOKENS, dtype=np.int32), **own}
    with VectorWriter(path, schema, [0, 1], len(names), "float32", CONSTANTS, names) as writer:
        writer.append({**dict.fromkeys(schema.names), **keys}, np.stack([vectors, vectors]))


def write_moments(path: Path) -> None:
    moments = np.ones((N_TOKENS, len(MOMENTS)), np.float32)  # of vectors that all point the same way
    write_shard(path, MOMENT_KEYS, {"pos_class": "masked"}, moments, MOMENTS)


def write_logits(path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(N_TOKENS, len(AMINO_ACIDS) + 13)).astype(np.float32)
    names = [*AMINO_ACIDS, *(f"<{i}>" for i in range(13))]
    write_shard(path, LENS_KEYS, {"true_aa": np.zeros(N_TOKENS, np.int16), "is_masked": True}, logits, names)


def peak(stage: Callable, paths: Sequence[Path], output: Path) -> int:
    tracemalloc.start()
    try:
        stage(paths, output)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "stage, write, most", [(contributions, write_moments, 40), (lens, write_logits, 56)], ids=["contributions", "lens"]
)
def test_a_shard_more_costs_its_places_and_none_of_its_vectors(stage, write, most, tmp_path):
    shards = [tmp_path / f"P{i}" for i in range(8)]
    for path in shards:
        write(path)
    few, many = (peak(stage, shards[:n], tmp_path / "out.parquet") for n in (2, 8))
    assert (many - few) / (6 * N_TOKENS) < most  # a vector has 60 bytes, logits of all tokens 132


def test_networks_of_one_table_are_measured_one_after_the_other(measure, tmp_path):
    sample = proteins(3)
    networks = [measure(toy(), sample, null_model="randinit", null_seed=seed) for seed in (0, 1)]
    for table, stage, files in (("contributions", contributions, "moments"), ("lens", lens, "logits")):
        together = tmp_path / f"{table}.parquet"
        stage([path for one in networks for path in getattr(one, files)], together)
        bootstrap = Bootstrap.of({name: name for name, _ in sample}, n_boot=3, seed=0)
        apart = [getattr(one, f"{table}_path") for one in networks]
        found, expected = (list(parts_of(paths, table=table, bootstrap=bootstrap)) for paths in ([together], apart))
        seeds = [set(part.keys["null_seed"].tolist()) for part in found]
        assert all(len(one) == 1 for one in seeds) and set.union(*seeds) == {0, 1}
        assert len(found) == len(expected)
        of = {(*part.keys["null_seed"][:1], *sorted(set(part.keys["layer"].tolist()))): part for part in expected}
        for part in found:
            other = of[(*part.keys["null_seed"][:1], *sorted(set(part.keys["layer"].tolist())))]
            assert (part.keys["quantity"] == other.keys["quantity"]).all()
            for name in ("mean", "total", "n", "n_nan", "max", "p95"):
                np.testing.assert_array_equal(getattr(part, name), getattr(other, name))
