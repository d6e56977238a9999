"""Shards that are cut between windows of proteins have the very bits of one shard, at any token budget."""

import logging
import math

import numpy as np
import pytest

from plm_depth.activations import ablation, effects, embed, extract
from plm_depth.activations.ablation import Ablations, Protein
from plm_depth.activations.batches import WINDOW
from plm_depth.activations.effects import Skips
from plm_depth.activations.nulls import Null
from plm_depth.digest import digests
from plm_depth.models import registry
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS
from plm_depth.views import View

LOG = logging.getLogger("test")
TRAINED = Null("trained", -1)
N = WINDOW + 24
FIRST, SECOND = range(WINDOW), range(WINDOW, N)
# Few lengths, so that many proteins could share a batch, and a width at which the rows of a product matter.
PROTEINS = [
    (f"P{i}", "".join(generator("windows", i).choice(list(AMINO_ACIDS), size=(7, 11, 12, 18)[i % 4]))) for i in range(N)
]
SIZES = {"n_blocks": 2, "d_model": 48, "n_heads": 8}


def measure_extract(adapter, view, ranks, folder):
    files = extract.Files(*(folder / f"{name}.parquet" for name in ("moments", "lens", "stream")))
    shard = [PROTEINS[i] for i in ranks]
    extract.extract(
        adapter, shard, files=files, model_id="m", nulls=[TRAINED], views=[view], seed=0, token_budget=300, log=LOG
    )


def measure_embed(adapter, view, ranks, folder):
    shard, output = [PROTEINS[i] for i in ranks], folder / "embeddings.parquet"
    embed.embed(
        adapter, shard, output=output, model_id="m", nulls=[TRAINED], views=[view], seed=0, token_budget=300, log=LOG
    )


def measure_effects(adapter, view, ranks, folder):
    effects.measure(
        adapter,
        [PROTEINS[i] for i in ranks],
        skip=folder / "skip.parquet",
        output_change=folder / "output_change.parquet",
        model_id="m",
        nulls=[TRAINED],
        views=[view],
        skips=Skips(parts=("layer",), pos_sets=("all",)),
        seed=0,
        token_budget=300,
        log=LOG,
    )


def measure_ablation(adapter, view, ranks, folder):
    ablation.measure(
        adapter,
        [Protein(name, sequence, i, i % 2) for i, (name, sequence) in enumerate(PROTEINS)],
        output=folder / "ablation.parquet",
        model_id="m",
        ranks=ranks,
        nulls=[TRAINED],
        views=[view],
        ablations=Ablations(ops=("remove",), selection=2),
        seed=0,
        token_budget=300,
        log=LOG,
    )


@pytest.mark.parametrize("family", ["esm2", "progen2"])
@pytest.mark.parametrize("measured", [measure_extract, measure_embed, measure_effects, measure_ablation])
def test_one_shard_and_two_have_the_same_digests(measured, family, tmp_path):
    adapter = registry.build(family, SIZES, seed=0)
    view = View("n2c", math.nan, -1) if adapter.objective == "ar" else View("none", 0.3, 0)
    if measured is measure_embed and adapter.objective != "ar":
        view = View("none", 0.0, -1)
    for name, shards in {"one": [range(N)], "two": [FIRST, SECOND]}.items():
        for i, ranks in enumerate(shards):
            folder = tmp_path / name / str(i)
            folder.mkdir(parents=True)
            measured(adapter, view, ranks, folder)
    one, two = (
        [(digest.name.removeprefix(name), digest.n_rows, digest.content) for digest in digests([tmp_path / name])]
        for name in ("one", "two")
    )
    assert one and two == one


def test_the_last_bits_do_depend_on_what_shares_a_batch():
    """Else the tests above would hold without windows."""
    adapter = registry.build("esm2", SIZES, seed=0)
    view = View("none", 0.3, 0)
    items = [extract.item_of(adapter, *PROTEINS[i], view, seed=0, n_anchors=0) for i in range(N) if i % 4 == 3]
    together = extract.measure(adapter, items).moments
    alone = np.concatenate([extract.measure(adapter, [item]).moments for item in items], axis=1)
    assert together.shape == alone.shape and not np.array_equal(together, alone)
