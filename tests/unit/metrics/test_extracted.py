"""From the batched extraction to profiles: the same numbers as from the plain walk, however the work was cut up."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import planted
from planted import toy
from plm_depth.activations.extract import Files, extract
from plm_depth.activations.nulls import Null
from plm_depth.metrics.contributions import contributions
from plm_depth.metrics.lens import lens
from plm_depth.metrics.profile import profile
from plm_depth.models import registry
from plm_depth.tables import COMMON, PER_SEQUENCE
from plm_depth.views import views_of
from unit.metrics.conftest import INPUTS, proteins

LOG = logging.getLogger("test")
FIXTURES = Path(__file__).parents[2] / "fixtures"
TOYS = [{}, {"variant": "parallel", "objective": "ar"}, {"objective": "diffusion", "geometric": True}]


def per_protein_tables(adapter, shards, folder, *, nulls, token_budget):
    """Return the per-protein tables of an extraction, as paths."""
    moments, logits = [], []
    for number, shard in enumerate(shards):
        files = Files(*(folder / f"{name}{number}.parquet" for name in ("moments", "lens", "stream")))
        options = {"files": files, "model_id": "toy", "nulls": nulls, "views": views_of(adapter.objective, INPUTS)}
        extract(adapter, shard, **options, seed=0, token_budget=token_budget, log=LOG)
        moments.append(files.moments)
        logits.append(files.lens)
    contributions(moments, folder / "contributions.parquet")
    lens(logits, folder / "lens_seq.parquet")
    return folder / "contributions.parquet", folder / "lens_seq.parquet"


def compare(one: pl.DataFrame, other: pl.DataFrame, keys: list[str]) -> None:
    """Require equal rows up to the rounding of float32 sums in another order."""
    one, other = one.sort(keys), other.sort(keys)
    assert one.select(keys).equals(other.select(keys))
    for column in set(one.columns) - set(keys) - {"argmax_pos", "rank_hist", "sumsq"}:
        np.testing.assert_allclose(one[column], other[column], rtol=1e-5, atol=1e-6, err_msg=column)


@pytest.mark.parametrize("options", TOYS, ids=str)
def test_batches_and_shards_change_no_number(measure, tmp_path, options):
    adapter = toy(**options)
    sample = proteins(9)
    plain = measure(adapter, sample, dtype="float32")
    shards = [[sample[i] for i in members] for members in ([3], [0, 8], [7], [1], [5, 2], [4], [6])]
    trained = [Null("trained", -1)]
    for name, parts, token_budget in (("whole", [sample], 200), ("cut", shards, 40)):
        (tmp_path / name).mkdir()
        found = per_protein_tables(adapter, parts, tmp_path / name, nulls=trained, token_budget=token_budget)
        keys = [*COMMON, *PER_SEQUENCE, "layer", "quantity"]
        compare(plain.contributions, pl.read_parquet(found[0]), [*keys, "pos_class"])
        compare(plain.lens, pl.read_parquet(found[1]), [*keys, "lens", "vocab"])


def test_null_models_run_through_to_the_profile(write_clusters, tmp_path):
    sample = proteins(4)
    adapter = planted.with_zero_block(toy(objective="diffusion"), 2)
    nulls = [
        Null("trained", -1),
        Null("randinit", 0),
        Null("randinit", 1),
        Null("shuffle_w", 0),
        Null("shuffle_seq", 0),
    ]
    tables = per_protein_tables(adapter, [sample[:3], sample[3:]], tmp_path, nulls=nulls, token_budget=100)
    clusters = write_clusters({s: s for s, _ in sample})
    profile([tables[0]], [tables[1]], clusters, tmp_path / "p.parquet", n_boot=50)
    found = pl.read_parquet(tmp_path / "p.parquet").filter(
        (pl.col("quantity") == "rel_u") & (pl.col("aggregate") == "mean") & (pl.col("pos_class") == "residue")
    )
    at = found.filter((pl.col("noise_t") == -1) & (pl.col("layer") == 2))
    values = {(null, seed): value for null, seed, value in at.select("null_model", "null_seed", "value").iter_rows()}
    assert set(values) == {(null.null_model, null.seed) for null in nulls}
    # Only the weights of the trained model have the planted zero block; shuffling zeros leaves zeros.
    assert values["trained", -1] == values["shuffle_seq", 0] == values["shuffle_w", 0] == 0
    assert values["randinit", 0] > 0.1 and values["randinit", 0] != values["randinit", 1]


def test_masked_residues_of_esm2_enter_as_zero_and_are_counted_as_undefined(tmp_path):
    """ESM-2 zeroes the embedding of its mask token: block 1 has no ratio there, and layer 0 reads out one constant."""
    adapter = registry.load("esm2", FIXTURES / "esm2" / "hub")
    sample = proteins(3)
    paths = per_protein_tables(adapter, [sample], tmp_path, nulls=[Null("trained", -1)], token_budget=100)
    found, read = (pl.read_parquet(path) for path in paths)
    at = found.filter(pl.col("noise_t") > 0)

    def rows(quantity: str, layer: int, pos_class: str) -> pl.DataFrame:
        is_it = (pl.col("quantity") == quantity) & (pl.col("layer") == layer) & (pl.col("pos_class") == pos_class)
        return at.filter(is_it)

    assert (rows("norm_h", 0, "masked")["max"] == 0).all() and rows("norm_h", 0, "unmasked")["max"].min() > 0
    for quantity in ("rel_a", "rel_u", "cos_a", "cos_u", "cos_io"):
        masked, unmasked, residue = (rows(quantity, 1, name) for name in ("masked", "unmasked", "residue"))
        assert (masked["n"] == 0).all() and masked["n_nan"].min() > 0
        assert (unmasked["n_nan"] == 0).all() and (residue["n"] == unmasked["n"]).all()
        assert (residue["n_nan"] == masked["n_nan"]).all()
    assert (rows("rel_m", 1, "masked")["n_nan"] == 0).all() and (rows("rel_u", 2, "masked")["n_nan"] == 0).all()
    constant = read.filter((pl.col("noise_t") > 0) & (pl.col("layer") == 0) & (pl.col("quantity") == "entropy"))
    for (_vocab,), values in constant.group_by("vocab"):
        means = values["sum"] / values["n"]
        np.testing.assert_allclose(means, means[0], rtol=1e-6)
        np.testing.assert_allclose(values["sumsq"] / values["n"], means**2, rtol=1e-6)
