"""Profiles of the tuned and the logit lens: paired positions, and the composition as a reference."""

import logging

import numpy as np
import polars as pl

from planted import toy
from plm_depth.activations.nulls import Null
from plm_depth.activations.tuned_lens import Settings, measure
from plm_depth.metrics.tuned_lens import tuned_lens
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS, CLUSTERS, LENS_KEYS, LENS_SEQ, PROFILE, VectorTable, read_table, write_table
from plm_depth.views import MEAN_OVER_NOISE, View

LOG = logging.getLogger("test")
TRAINED = Null("trained", -1)
VIEWS = (View("none", 0.3, 0), View("none", 0.7, 0))


def reduced(tmp_path, *, steps, objective="diffusion", nulls=(TRAINED,), adapter=None):
    adapter = adapter or toy(n_blocks=2, objective=objective)
    sequences = [
        (f"P{i}", "".join(AMINO_ACIDS[a] for a in generator("test", i).integers(20, size=14))) for i in range(12)
    ]
    clusters = {name: name for name, _ in sequences}
    paths = {kind: tmp_path / kind for kind in ("translators", "tuned", "logit")}
    measure(
        adapter, sequences, clusters, **paths, model_id="m", nulls=list(nulls), views=list(VIEWS), seed=0, log=LOG,
        settings=Settings(steps=steps, batch=4, learning_rate=0.05),
    )  # fmt: skip
    write_table({"sequence_id": list(clusters), "cluster_id": list(clusters)}, CLUSTERS, tmp_path / "clusters")
    tuned_lens(
        [paths["tuned"]], [paths["logit"]], tmp_path / "clusters", tmp_path / "profile", tmp_path / "seq",
        grid=(0.3, 0.7), n_boot=100,
    )  # fmt: skip

    def read(name, schema):
        return pl.from_arrow(read_table(tmp_path / name, schema)).with_columns(pl.col(pl.Categorical).cast(pl.String))

    return read("profile", PROFILE), read("seq", LENS_SEQ), VectorTable(paths["tuned"], LENS_KEYS)


def of(profile, lens, quantity="kl_lf", vocab="full", aggregate="mean", noise_t=MEAN_OVER_NOISE):
    rows = profile.filter(
        (pl.col("pos_class") == lens) & (pl.col("quantity") == quantity) & (pl.col("vocab") == vocab)
        & (pl.col("aggregate") == aggregate) & (pl.col("noise_t") == np.float32(noise_t))
    )  # fmt: skip
    return rows.sort("layer")


def test_both_lenses_stand_beside_each_other_over_the_same_proteins(tmp_path):
    profile, sequences, tuned = reduced(tmp_path, steps=40)
    assert set(profile["table"]) == {"tuned_lens"} and set(profile["pos_class"]) == {"tuned", "logit"}
    one, other = of(profile, "tuned"), of(profile, "logit")
    assert one["layer"].to_list() == other["layer"].to_list() == [0, 1, 2]
    assert one["n_seq"].to_list() == other["n_seq"].to_list()
    assert one["value"][2] == other["value"][2] == 0
    assert (one["value"][:2] < other["value"][:2]).all()
    assert set(sequences["lens"]) == {"tuned"}
    rows = {row["sequence_id"] for row in tuned.keys().to_pylist()}
    assert set(sequences["sequence_id"]) == rows


def test_lenses_that_were_not_fitted_are_equal(tmp_path):
    profile, _, _ = reduced(tmp_path, steps=0)
    keys = ["quantity", "vocab", "layer", "aggregate", "noise_t"]
    one, other = (profile.filter(pl.col("pos_class") == lens).sort(keys) for lens in ("tuned", "logit"))
    assert one.drop("pos_class").equals(other.drop("pos_class"), null_equal=True)


def test_the_composition_is_as_far_from_the_output_as_its_definition_says(tmp_path):
    profile, _, tuned = reduced(tmp_path, steps=4)
    background = np.array(tuned.constants["background"])
    np.testing.assert_allclose(background.sum(), 1)
    keys = tuned.keys().to_pylist()
    place = [tuned.names.index(letter) for letter in tuned.constants["amino_acid_columns"]]
    logits = tuned.layer(2).astype(np.float64)
    present = background > 0
    for vocab in ("full", "aa20"):
        chosen = logits if vocab == "full" else logits[:, place]
        log_p = chosen - np.log(np.exp(chosen).sum(1, keepdims=True))
        log_p = log_p[:, place] if vocab == "full" else log_p
        kl = (background * np.where(present, np.log(np.where(present, background, 1)) - log_p, 0)).sum(1)
        rows = pl.DataFrame({"p": [k["sequence_id"] for k in keys], "t": [k["noise_t"] for k in keys], "kl": kl})
        expected = rows.group_by("p", "t").agg(pl.col("kl").mean()).group_by("t").agg(pl.col("kl").mean())["kl"].mean()
        row = of(profile, "tuned", "kl_bg", vocab)
        assert row["layer"].to_list() == [-1]
        np.testing.assert_allclose(row["value"][0], expected, rtol=1e-6)


def test_a_model_without_residue_tokens_has_an_empty_table(tmp_path):
    adapter = toy(n_blocks=1)
    adapter.tokens_are_residues = False
    profile, sequences, _ = reduced(tmp_path, steps=1, adapter=adapter)
    assert profile.is_empty() and sequences.is_empty()
