"""Structure heads per protein and over the corpus: predictions and copies apart, shards merged exactly."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from plm_depth.metrics.structure_heads import QUANTITIES, per_protein, structure_heads
from plm_depth.randomness import generator
from plm_depth.tables import COMMON, LENS_SEQ, PROFILE, STRUCTURE_KEYS, TableError, VectorWriter, read_table
from plm_depth.views import MEAN_OVER_NOISE

N_BLOCKS, N_CLASSES = 3, 50
LEVELS = (0.3, 0.7)
OF = {name: place for place, name in enumerate(QUANTITIES)}
PROTEINS = [f"P{i}" for i in range(7)]
CONDITIONS = ("seq", "seq_struct")


def rows_of(protein: str, condition: str, level: float) -> list[dict]:
    """The reads of one protein: under seq all hidden; with structure shown, but for one residue that nobody knows."""
    random = generator("reads", protein, level)
    positions = np.sort(random.choice(30, size=int(random.integers(2, 9)), replace=False))
    # At the lower level no protein has an unknown residue.
    unknown = positions == (positions[0] if level > 0.5 else -1)
    return [
        {"sequence_id": protein, "n_residues": 30, "null_model": "trained", "null_seed": -1, "condition": condition,
         "direction": "none", "noise_t": level, "mask_draw": 0, "position": int(p), "is_masked": True,
         "true_class": -1 if u else int(p) % N_CLASSES, "is_shown": condition != "seq" and not u}
        for p, u in zip(positions, unknown, strict=True)
    ]  # fmt: skip


def numbers_of(row: dict) -> np.ndarray:
    """Invented quantities of every layer, (layers, quantities); the last layer is its own prediction."""
    random = generator("numbers", row["sequence_id"], row["condition"], row["noise_t"], row["position"])
    values = random.random((N_BLOCKS + 1, len(QUANTITIES)))
    values[:, [OF["ov1"], OF["acc1"]]] = random.integers(2, size=(N_BLOCKS + 1, 2))
    values[:, OF["rank_true"]] = random.integers(1, N_CLASSES + 1, size=N_BLOCKS + 1)
    values[-1, [OF["kl_lf"], OF["kl_fl"], OF["js"]]] = 0
    values[-1, [OF["ov1"], OF["ov5"]]] = 1
    if row["true_class"] < 0:
        values[:, [OF[name] for name in ("p_true", "rank_true", "acc1", "nll")]] = np.nan
    return values.astype(np.float32)


def write_shard(path: Path, proteins, *, names=QUANTITIES, change=None, order=None) -> Path:
    constants = {"model_id": "m", "family": "dplm2", "objective": "diffusion", "n_blocks": N_BLOCKS, "d_model": 8,
                 "dtype": "float32", "readout": "struct", "seed": 1, "version": 1, "n_classes": N_CLASSES}  # fmt: skip
    with VectorWriter(path, STRUCTURE_KEYS, range(N_BLOCKS + 1), len(names), "float32", constants, names) as writer:
        for condition in CONDITIONS:
            for level in LEVELS:
                rows = [row for protein in proteins for row in rows_of(protein, condition, level)]
                if order is not None:
                    rows = [rows[i] for i in np.random.default_rng(order).permutation(len(rows))]
                if not rows:
                    continue
                vectors = np.stack([numbers_of(row) for row in rows], 1)
                if change is not None:
                    change(vectors)
                writer.append({name: [row[name] for row in rows] for name in STRUCTURE_KEYS.names}, vectors)
    return path


def table(path, schema) -> pl.DataFrame:
    return pl.from_arrow(read_table(path, schema)).with_columns(pl.col(pl.Categorical).cast(pl.String))


@pytest.fixture(scope="module")
def reduced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reduced")
    write_shard(folder / "one", PROTEINS)
    per_protein([folder / "one"], folder / "seq")
    return table(folder / "seq", LENS_SEQ)


def reads(condition, lens, level):
    rows = [row for protein in PROTEINS for row in rows_of(protein, condition, level)]
    return [row for row in rows if row["is_shown"] == (lens == "copy")]


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_rows_are_sums_over_the_residues_of_a_protein_predictions_and_copies_apart(reduced, quantity):
    counted = 0
    for condition, lens, level in [("seq", "logit", 0.7), ("seq_struct", "copy", 0.7), ("seq_struct", "logit", 0.7)]:
        own = reduced.filter(
            (pl.col("condition") == condition) & (pl.col("lens") == lens) & (pl.col("quantity") == quantity)
            & (pl.col("noise_t") == np.float32(level)) & (pl.col("layer") == 1)
        )  # fmt: skip
        assert own["sequence_id"].sort().to_list() == PROTEINS
        for row in own.iter_rows(named=True):
            mine = [one for one in reads(condition, lens, level) if one["sequence_id"] == row["sequence_id"]]
            values = np.array([numbers_of(one)[1, OF[quantity]] for one in mine], np.float64)
            defined = values[~np.isnan(values)]
            assert (row["n"], row["n_nan"]) == (len(defined), len(values) - len(defined))
            assert row["sum"] == pytest.approx(defined.sum()) and row["sumsq"] == pytest.approx((defined**2).sum())
            assert row["max"] == defined.max() if len(defined) else np.isnan(row["max"])
            ranks = np.bincount(defined.astype(int), minlength=21)[1:21] if quantity == "rank_true" else np.zeros(20)
            assert row["rank_hist"] == ranks.tolist()
            counted += len(defined)
    assert counted > 30
    assert set(reduced["readout"]) == {"struct"} and set(reduced["vocab"]) == {"full"}


def test_a_lens_that_some_residue_has_stands_there_for_every_protein_and_level(reduced):
    found = reduced.filter(quantity="kl_lf", layer=0).group_by("condition", "lens", "noise_t").agg(pl.col("n").sum())
    by = {(c, one, round(t, 1)): n for c, one, t, n in found.iter_rows()}
    assert by["seq_struct", "logit", 0.3] == 0 and by["seq_struct", "logit", 0.7] == len(PROTEINS)
    assert ("seq", "copy", 0.3) not in by, "under the sequence alone nothing is shown"
    assert by["seq", "logit", 0.3] == by["seq_struct", "copy", 0.3]


def test_settling_is_the_first_layer_from_which_on_a_residue_stays_within_the_bound(reduced):
    for name, of, within in (("settle_0.5", "kl_lf", lambda v: v <= 0.5), ("settle_top1", "ov1", lambda v: v == 1)):
        rows = reduced.filter(quantity=name, condition="seq").filter(pl.col("noise_t") > 0.5)
        assert set(rows["layer"]) == {-1}
        for row in rows.iter_rows(named=True):
            first = []
            for one in reads("seq", "logit", 0.7):
                if one["sequence_id"] == row["sequence_id"]:
                    settled = within(numbers_of(one)[:, OF[of]])
                    first.append(N_BLOCKS - np.argmin(np.r_[settled[::-1], False]) + 1)
            assert row["sum"] == sum(first), name


def test_shards_are_merged_exactly_whatever_their_order(tmp_path, reduced):
    write_shard(tmp_path / "b", [PROTEINS[i] for i in (5, 0)], order=3)
    write_shard(tmp_path / "c", [PROTEINS[i] for i in (2, 6, 1, 4)], order=4)
    write_shard(tmp_path / "a", [PROTEINS[3]])
    per_protein([tmp_path / name for name in "bca"], tmp_path / "seq")
    assert table(tmp_path / "seq", LENS_SEQ).equals(reduced, null_equal=True)


def test_corpus_values_are_means_of_proteins_with_the_noise_last_and_copies_apart(tmp_path, write_clusters):
    write_shard(tmp_path / "one", PROTEINS)
    clusters = write_clusters({name: f"C{i // 2}" for i, name in enumerate(PROTEINS)})
    n_rows = structure_heads(
        [tmp_path / "one"], clusters, tmp_path / "profile", tmp_path / "seq", grid=LEVELS, n_boot=200
    )
    profile = table(tmp_path / "profile", PROFILE)
    assert len(profile) == n_rows
    assert set(profile["table"]) == {"structure_heads"} and set(profile["readout"]) == {"struct"}
    assert profile.select(*COMMON, "quantity", "pos_class", "layer", "aggregate").is_duplicated().sum() == 0
    for condition, lens in (("seq", "logit"), ("seq_struct", "copy")):
        for quantity in ("kl_lf", "nll"):
            means = []
            for protein in PROTEINS:
                of_levels = []
                for level in LEVELS:
                    mine = [one for one in reads(condition, lens, level) if one["sequence_id"] == protein]
                    of_levels.append(np.nanmean([numbers_of(one)[1, OF[quantity]] for one in mine], dtype=np.float64))
                means.append(np.mean(of_levels))
            row = profile.filter(
                (pl.col("condition") == condition) & (pl.col("pos_class") == lens) & (pl.col("quantity") == quantity)
                & (pl.col("layer") == 1) & (pl.col("aggregate") == "mean") & (pl.col("noise_t") == MEAN_OVER_NOISE)
            )  # fmt: skip
            assert row["value"].to_list() == [pytest.approx(np.mean(means))]
            assert row["n_seq"].to_list() == [len(PROTEINS)] and row["n_cluster"].to_list() == [4]
            assert row["ci_lo"][0] < row["value"][0] < row["ci_hi"][0]
    # Residues whose structure nobody knows were hidden at one level only: no protein has them at every level.
    leftover = profile.filter(
        (pl.col("condition") == "seq_struct") & (pl.col("pos_class") == "logit") & (pl.col("quantity") == "kl_lf")
        & (pl.col("noise_t") == MEAN_OVER_NOISE)
    )  # fmt: skip
    assert leftover.height > 0 and leftover["value"].is_nan().all() and set(leftover["n_seq"]) == {0}
    last = profile.filter(quantity="kl_lf", layer=N_BLOCKS, aggregate="mean", pos_class="copy")
    assert last.height == 3 and (last["value"] == 0).all()
    chance = profile.filter(quantity="ov1_cc", layer=1, aggregate="mean", condition="seq").sort("noise_t")["value"]
    plain = profile.filter(quantity="ov1", layer=1, aggregate="mean", condition="seq").sort("noise_t")["value"]
    np.testing.assert_allclose(chance, (plain - 1 / N_CLASSES) / (1 - 1 / N_CLASSES))


def test_damaged_tables_are_refused(tmp_path, write_clusters):
    def broken(vectors):
        vectors[2, 0, OF["entropy"]] = np.nan

    write_shard(tmp_path / "broken", PROTEINS, change=broken)
    with pytest.raises(TableError, match="broken: entropy of layer 2 is not finite; delete it and extract it again"):
        per_protein([tmp_path / "broken"], tmp_path / "seq")
    write_shard(tmp_path / "other", PROTEINS, names=QUANTITIES[::-1])
    with pytest.raises(TableError, match=r"other: its numbers are \['nll'.*Extract it again"):
        per_protein([tmp_path / "other"], tmp_path / "seq")
    write_shard(tmp_path / "twice", PROTEINS[:2])
    with pytest.raises(TableError, match="shards must not overlap"):
        per_protein([tmp_path / "twice", tmp_path / "twice"], tmp_path / "seq")
    with pytest.raises(TableError, match="noise levels"):
        structure_heads(
            [tmp_path / "twice"], write_clusters({name: name for name in PROTEINS}), tmp_path / "profile",
            tmp_path / "seq2", grid=(0.1, 0.3), n_boot=20,
        )  # fmt: skip
    assert not (tmp_path / "seq").exists() and not (tmp_path / "profile").exists()


def test_a_model_that_nothing_was_read_of_has_empty_tables(tmp_path, write_clusters):
    write_shard(tmp_path / "none", [])
    clusters = write_clusters({"P0": "P0"})
    assert structure_heads([tmp_path / "none"], clusters, tmp_path / "profile", tmp_path / "seq", n_boot=20) == 0
    assert table(tmp_path / "seq", LENS_SEQ).is_empty() and table(tmp_path / "profile", PROFILE).is_empty()
