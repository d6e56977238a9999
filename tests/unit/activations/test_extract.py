"""The extraction pass: its numbers against a plain walk, its rows against any batching, its refusals."""

import hashlib
import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

import planted
from planted import moments_of, toy, walk
from plm_depth.activations import VERSION, extract
from plm_depth.activations.batches import BatchError
from plm_depth.activations.door import ExtractionError
from plm_depth.activations.extract import (
    Files,
    block_moments,
    check_range,
    item_of,
    measure,
    moment_keys,
    token_positions,
)
from plm_depth.activations.nulls import Null, shuffle_sequence
from plm_depth.models import registry
from plm_depth.models.base import SequenceError, Tokens, Updates
from plm_depth.randomness import generator
from plm_depth.tables import (
    AMINO_ACIDS,
    LENS_KEYS,
    MOMENT_KEYS,
    MOMENTS,
    SEQUENCES,
    STREAM_KEYS,
    VectorTable,
    write_table,
)
from plm_depth.views import View, mask_of

LOG = logging.getLogger("test")
TRAINED = Null("trained", -1)
CLEAN, MASKED, OTHER_DRAW = View("none", 0.0, -1), View("none", 0.15, 0), View("none", 0.15, 1)
FORWARD, BACKWARD = View("n2c", math.nan, -1), View("c2n", math.nan, -1)
INDEX = {name: index for index, name in enumerate(MOMENTS)}
INPUTS = {
    "ar": {"directions": ["n2c", "c2n"]},
    "mlm": {"noise": [0.15], "draws": 2, "clean": True},
    "diffusion": {"noise": [0.5], "draws": 1, "clean": True},
}


def proteins_of(lengths, seed=0):
    random = generator(seed, "proteins")
    return [(f"P{i}", "".join(random.choice(list(AMINO_ACIDS), size=n))) for i, n in enumerate(lengths)]


PROTEINS = proteins_of([9, 30, 31, 3, 60, 28, 1, 45, 30, 12, 33])
KINDS = {
    "sequential": {},
    "parallel": {"variant": "parallel"},
    "scaled": {"variant": "scaled"},
    "geometric": {"geometric": True},
    "causal": {"variant": "causal"},
    "parallel causal": {"variant": "parallel", "objective": "ar"},
}


def views_of_toy(adapter):
    return [FORWARD, BACKWARD] if adapter.objective == "ar" else [CLEAN, MASKED, OTHER_DRAW]


def files_in(folder: Path, name: str = "") -> Files:
    return Files(*(folder / f"{name}{table}.parquet" for table in ("moments", "lens", "stream")))


def run(adapter, proteins, files, **options):
    defaults = {"model_id": "toy", "nulls": [TRAINED], "views": views_of_toy(adapter), "seed": 0, "log": LOG}
    return extract.extract(adapter, proteins, files=files, **(defaults | options))


def rows_of(paths, keys) -> tuple[pl.DataFrame, np.ndarray]:
    """Return keys and vectors (rows, layers, width) of several files, sorted by key."""
    frames, vectors = [], []
    for path in paths:
        table = VectorTable(path, keys)
        frames.append(pl.from_arrow(table.keys()).with_columns(pl.col(pl.Categorical).cast(pl.String)))
        vectors.append(np.stack([table.layer(layer) for layer in table.layers], 1))
    frame = pl.concat(frames).with_row_index("row")
    frame = frame.sort([name for name in frame.columns if name != "row"])
    return frame.drop("row"), np.concatenate(vectors)[frame["row"].to_numpy()]


# ----------------------------------------------------------------------------------------------------------------
# Numbers


@pytest.mark.parametrize("kind", KINDS)
def test_moments_logits_and_stream_are_those_of_a_plain_walk_of_each_protein_alone(kind):
    adapter = toy(**KINDS[kind])
    for view in views_of_toy(adapter):
        items = [item_of(adapter, *protein, view, seed=0, n_anchors=4) for protein in PROTEINS]
        measured = measure(adapter, items)  # all in one padded batch
        token = read = row = 0
        for item in items:
            walked = walk(adapter, item.tokens)
            n, n_reads, n_rows = item.tokens.n_tokens, len(item.reads), 1 + len(item.anchors)
            np.testing.assert_allclose(
                measured.moments[:, token : token + n], moments_of(walked)[:, item.token_order], rtol=1e-12, atol=1e-12
            )
            sources = item.tokens.residue_tokens[item.reads] + adapter.read_offset
            np.testing.assert_allclose(
                measured.logits[:, read : read + n_reads],
                walked.logits[:, sources][..., list(adapter.vocabulary)],
                rtol=1e-12,
                atol=1e-12,
            )
            states = walked.streams[:, item.tokens.residue_tokens]
            expected = np.concatenate([states.mean(1, keepdims=True), states[:, item.anchors]], 1)
            np.testing.assert_allclose(measured.stream[:, row : row + n_rows], expected, rtol=1e-12, atol=1e-12)
            token, read, row = token + n, read + n_reads, row + n_rows
        assert measured.moments.shape == (adapter.n_blocks + 1, token, len(MOMENTS))
        assert measured.logits.shape == (adapter.n_blocks + 1, read, len(adapter.vocabulary))
        assert measured.stream.shape == (adapter.n_blocks + 1, row, adapter.d_model)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_reads_out_to_the_models_own_logits(kind):
    adapter = toy(**KINDS[kind])
    for view in views_of_toy(adapter):
        items = [item_of(adapter, *protein, view, seed=0) for protein in PROTEINS]
        measured = measure(adapter, items)
        library = adapter.library_logits(adapter.collate([item.tokens for item in items])).detach().numpy()
        expected = np.concatenate(
            [
                library[row, item.tokens.residue_tokens[item.reads] + adapter.read_offset]
                for row, item in enumerate(items)
            ]
        )
        np.testing.assert_allclose(measured.logits[-1], expected[:, list(adapter.vocabulary)], rtol=0, atol=1e-12)


def test_a_residue_is_read_where_the_model_predicts_it():
    """With a causal model the logits for residue p must not change with residue p itself, nor with what follows."""
    adapter = toy(variant="causal")
    sequence = "MKTAYIAKQRWQ"
    for view, other in [(FORWARD, sequence[:6] + "WWWWWW"), (BACKWARD, "WWWWWWW" + sequence[7:])]:
        one, two = (item_of(adapter, "P", shown, view, seed=0) for shown in (sequence, other))
        position = 6
        rows = [list(item.reads).index(position) for item in (one, two)]
        logits = [measure(adapter, [item]).logits[-1, row] for item, row in zip((one, two), rows)]
        np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-12)
        nearer = 7 if view is FORWARD else 5
        changed = [measure(adapter, [item]).logits[-1, list(item.reads).index(nearer)] for item in (one, two)]
        assert np.abs(changed[0] - changed[1]).max() > 1e-3


def moment_scales(moments: np.ndarray, d_model: int) -> np.ndarray:
    """Return what an error of each moment is judged by: an inner product by the lengths of its two vectors.

    A sum of coordinates is the inner product with a vector of ones.
    """
    norm = {name: np.sqrt(moments[..., INDEX[name]]) for name in ("hh", "aa", "mm", "gg", "uu", "mid_mid", "ga_ga")}
    before = np.concatenate([np.full_like(norm["hh"][:1], np.nan), norm["hh"][:-1]])
    scales = {
        "sum_h": np.sqrt(d_model) * norm["hh"],
        "ha": before * norm["aa"],
        "hu": before * norm["uu"],
        "am": norm["aa"] * norm["mm"],
        "mid_m": norm["mid_mid"] * norm["mm"],
        "mid_g": norm["ga_ga"] * norm["gg"],
        "h_next": before * norm["hh"],
    }
    return np.stack([scales.get(name, moments[..., INDEX[name]]) for name in MOMENTS], -1)


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_every_family_gives_the_same_alone_and_padded(family):
    adapter = registry.build(family, {"n_blocks": 2, "d_model": 64, "n_heads": 8}, seed=1)
    with torch.no_grad():
        for parameter in adapter.module.parameters():
            parameter *= 4 if parameter.ndim > 1 else 1  # so that blocks do something
    views = (FORWARD, BACKWARD) if adapter.objective == "ar" else (CLEAN, MASKED)
    for view in [view for view in views if view.direction in adapter.directions]:
        items = [item_of(adapter, *protein, view, seed=0, n_anchors=4) for protein in PROTEINS[:7]]
        together, alone = measure(adapter, items), [measure(adapter, [item]) for item in items]
        for name in ("moments", "logits", "stream"):
            found, expected = getattr(together, name), np.concatenate([getattr(one, name) for one in alone], 1)
            assert found.dtype == np.float32
            assert (np.isnan(found) == np.isnan(expected)).all()
            if name == "moments":
                scale = moment_scales(expected, adapter.d_model).max(1, keepdims=True)
            else:
                scale = np.abs(expected).max((1, 2), keepdims=True, initial=0)
            assert (np.nan_to_num(np.abs(found - expected)) <= 1e-5 * np.nan_to_num(scale)).all(), name


def test_float32_reductions_are_as_good_as_float64_ones():
    adapter = registry.build("esm2", {"n_blocks": 2, "d_model": 640, "n_heads": 20}, seed=1)
    item = item_of(adapter, *proteins_of([200])[0], MASKED, seed=0)
    measured = measure(adapter, [item])
    expected = moments_of(walk(adapter, item.tokens))[:, item.token_order]
    error = np.nan_to_num(np.abs(measured.moments - expected))
    assert (error <= 1e-6 * np.nan_to_num(moment_scales(expected, 640))).all((0, 1)).tolist() == [True] * len(MOMENTS)


def test_updates_that_nearly_cancel_are_measured_as_added():
    random = torch.Generator().manual_seed(0)
    attention, small, before = (torch.randn(50, 64, generator=random) for _ in range(3))
    before, mlp = 1e3 * before, -attention + 1e-4 * small
    middle = before + attention
    moments = block_moments(before, Updates(attention, mlp, middle), middle + mlp)
    update = (attention + mlp).double()
    np.testing.assert_allclose(moments["uu"], (update * update).sum(-1), rtol=1e-6)
    inner = (before.double() * update).sum(-1)
    assert ((moments["hu"] - inner).abs() <= 1e-6 * before.double().norm(dim=-1) * update.norm(dim=-1)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_norm_of_a_state_is_that_of_the_one_before_plus_the_update(dtype, tmp_path):
    """Holds to float32 in a half-precision model too: the stream and the sums of updates stay wide."""
    for family, heads in [("esm2", 4), ("progen2", 8)]:
        registry.save(
            registry.build(family, {"n_blocks": 3, "d_model": 64, "n_heads": heads}, seed=1), tmp_path / family
        )
        adapter = registry.load(family, tmp_path / family, dtype=dtype)
        view = FORWARD if family == "progen2" else MASKED
        moments = measure(adapter, [item_of(adapter, *protein, view, seed=0) for protein in PROTEINS]).moments
        before, after = moments[:-1, :, INDEX["hh"]], moments[1:, :, INDEX["hh"]]
        uu, hu = (moments[1:, :, INDEX[name]] for name in ("uu", "hu"))
        assert moments.dtype == np.float32
        assert np.abs(after - (before + uu + 2 * hu)).max() <= 1e-5 * after.max()
        assert np.abs(moments[1:, :, INDEX["h_next"]] - (before + hu)).max() <= 1e-5 * after.max()


def test_half_precision_numbers_are_near_those_of_float32(tmp_path):
    registry.save(registry.build("esm2", {"n_blocks": 3, "d_model": 64, "n_heads": 4}, seed=1), tmp_path)
    wide, half = (registry.load("esm2", tmp_path, dtype=dtype) for dtype in ("float32", "bfloat16"))
    items = [item_of(wide, *protein, MASKED, seed=0) for protein in PROTEINS]
    one, other = measure(wide, items), measure(half, items)
    assert not np.array_equal(one.moments, other.moments, equal_nan=True)
    for name in ("hh", "uu"):
        first, second = (measured.moments[1:, :, INDEX[name]] for measured in (one, other))
        assert np.abs(first - second).max() < 0.03 * np.abs(first).max(), name
    assert np.abs(one.logits - other.logits).max() < 0.03 * np.abs(one.logits).max()


@pytest.mark.parametrize("block", [1, 3, 6])
def test_a_silent_block_has_an_update_of_exactly_nothing(block):
    adapter = planted.with_zero_block(toy(geometric=True), block)
    items = [item_of(adapter, *protein, MASKED, seed=0) for protein in PROTEINS]
    measured = measure(adapter, items)
    for name in ("aa", "mm", "uu", "ha", "hu", "am", "mid_m"):
        assert (measured.moments[block, :, INDEX[name]] == 0).all(), name
    for name in ("hh", "sum_h", "max_h2"):
        before, after = measured.moments[[block - 1, block], :, INDEX[name]]
        assert np.array_equal(before.view(np.int64), after.view(np.int64)), name
    assert (measured.moments[block, :, INDEX["h_next"]] == measured.moments[block, :, INDEX["hh"]]).all()
    assert np.array_equal(measured.logits[block], measured.logits[block - 1])
    others = [layer for layer in range(1, 7) if layer != block]
    assert (measured.moments[others, :, INDEX["uu"]] > 0).all()


def test_what_does_not_exist_is_nan_and_nothing_else():
    for geometric in (False, True):
        adapter = toy(geometric=geometric)
        moments = measure(adapter, [item_of(adapter, *PROTEINS[1], MASKED, seed=0)]).moments
        nan = np.isnan(moments)
        assert (nan.all(1) == nan.any(1)).all()
        at_start = [name for name in MOMENTS if nan[0, 0, INDEX[name]]]
        assert at_start == [name for name in MOMENTS if name not in ("hh", "sum_h", "max_h2")]
        for layer in range(1, 7):
            absent = [] if geometric and layer == 1 else ["gg", "mid_g", "ga_ga"]
            assert [name for name in MOMENTS if nan[layer, 0, INDEX[name]]] == absent


# ----------------------------------------------------------------------------------------------------------------
# Rows


@pytest.mark.parametrize("kind", ["sequential", "causal"])
def test_one_shard_and_seven_give_the_same_rows_whatever_the_budget(kind, tmp_path):
    adapter = toy(**KINDS[kind])
    nulls = [TRAINED, Null("randinit", 0), Null("shuffle_w", 0), Null("shuffle_seq", 0)]
    whole = files_in(tmp_path, "whole_")
    run(adapter, PROTEINS, whole, nulls=nulls, token_budget=10_000)
    parts = []
    shuffled = [PROTEINS[i] for i in generator(0, "order").permutation(len(PROTEINS))]
    for shard, budget in zip(range(7), (1, 20, 33, 64, 65, 100, 1000)):
        if mine := shuffled[shard::7]:
            parts.append(files_in(tmp_path, f"{shard}_"))
            run(adapter, mine, parts[-1], nulls=nulls, token_budget=budget)
    assert len(parts) == 7
    for name, keys in [("moments", MOMENT_KEYS), ("lens", LENS_KEYS), ("stream", STREAM_KEYS)]:
        one, one_vectors = rows_of([getattr(whole, name)], keys)
        many, many_vectors = rows_of([getattr(files, name) for files in parts], keys)
        assert one.equals(many), name
        np.testing.assert_allclose(one_vectors, many_vectors, rtol=1e-3 if name == "stream" else 1e-6, atol=1e-6)
        assert not one.is_duplicated().any(), name


def test_every_token_has_one_moments_row_with_its_class_and_place(tmp_path):
    adapter = toy()
    files = files_in(tmp_path)
    counts = run(adapter, PROTEINS, files, views=[CLEAN, MASKED])
    frame, _ = rows_of([files.moments], MOMENT_KEYS)
    assert counts["moments"] == len(frame) == 2 * sum(len(sequence) + 2 for _, sequence in PROTEINS)
    for sequence_id, sequence in PROTEINS:
        n = len(sequence)
        for view in (CLEAN, MASKED):
            rows = frame.filter(sequence_id=sequence_id, noise_t=np.float32(view.noise_t)).sort("position")
            assert rows["position"].to_list() == [-1, *range(n), n]
            hidden = mask_of(view, n, 0, sequence_id)
            expected = ["special", *np.where(hidden, "masked", "unmasked"), "special"]
            assert rows["pos_class"].to_list() == expected
            assert set(rows["n_residues"]) == {n}
            assert set(rows["mask_draw"]) == {view.mask_draw} and set(rows["direction"]) == {"none"}
            assert set(rows["null_model"]) == {"trained"} and set(rows["null_seed"]) == {-1}
            assert set(rows["condition"]) == {"seq"}


def test_lens_rows_are_the_read_positions_with_the_residue_that_stands_there(tmp_path):
    adapter = toy()
    files = files_in(tmp_path)
    run(adapter, PROTEINS, files, views=[CLEAN, MASKED], nulls=[TRAINED, Null("shuffle_seq", 0)])
    frame, vectors = rows_of([files.lens], LENS_KEYS)
    assert np.isfinite(vectors).all()
    for null_model, shown in [("trained", lambda s, i: s), ("shuffle_seq", lambda s, i: shuffle_sequence(s, 0, i))]:
        for sequence_id, sequence in PROTEINS:
            letters = shown(sequence, sequence_id)
            hidden = mask_of(MASKED, len(letters), 0, sequence_id)
            for view, positions in [(CLEAN, range(len(letters))), (MASKED, np.flatnonzero(hidden))]:
                rows = frame.filter(
                    sequence_id=sequence_id, null_model=null_model, noise_t=np.float32(view.noise_t)
                ).sort("position")
                assert rows["position"].to_list() == list(positions)
                assert rows["true_aa"].to_list() == [AMINO_ACIDS.index(letters[p]) for p in positions]
                assert set(rows["is_masked"]) == {view is MASKED}


def test_autoregressive_rows_know_their_direction_and_that_all_is_hidden(tmp_path):
    adapter = toy(variant="causal")
    files = files_in(tmp_path)
    run(adapter, PROTEINS, files)
    lens, _ = rows_of([files.lens], LENS_KEYS)
    moments, _ = rows_of([files.moments], MOMENT_KEYS)
    assert lens["is_masked"].all() and lens["noise_t"].is_nan().all()
    assert set(moments["pos_class"]) == {"unmasked", "special"}
    for sequence_id, sequence in PROTEINS:
        n = len(sequence)
        # The first residue that is read has no residue before it.
        for direction, positions in [("n2c", list(range(1, n))), ("c2n", list(range(n - 1)))]:
            rows = lens.filter(sequence_id=sequence_id, direction=direction).sort("position")
            assert rows["position"].to_list() == positions
            rows = moments.filter(sequence_id=sequence_id, direction=direction).sort("position")
            assert rows["position"].to_list() == [-1, *range(n), n]
            assert rows["pos_class"].to_list() == ["special", *["unmasked"] * n, "special"]


def test_positions_of_tokens_that_are_no_residues_count_outwards():
    def positions(residue_tokens, n_tokens):
        ids = np.zeros(n_tokens, int)
        return token_positions(Tokens(ids, np.array(residue_tokens), np.zeros(len(residue_tokens), bool))).tolist()

    assert positions([1, 2, 3], 5) == [-1, 0, 1, 2, 3]
    assert positions([0, 1], 2) == [0, 1]
    assert positions([2, 3], 6) == [-2, -1, 0, 1, 2, 3]
    assert positions([3, 2, 1], 6) == [3, 2, 1, 0, -1, -2]  # read from the C terminus
    assert positions([1], 3) == [-1, 0, 1]
    assert positions([1, 3], 5) == [-1, 0, 2, 1, 3]  # a line break between residues
    assert positions([1, 1, 1, 2, 2], 4) == [-1, 0, 3, 5]  # pieces of several residues


def test_a_model_of_pieces_has_a_row_a_piece_and_an_empty_lens(tmp_path, caplog):
    adapter = registry.build("protgpt2", {"n_blocks": 2, "d_model": 32, "n_heads": 4})
    files = files_in(tmp_path)
    proteins = proteins_of([3, 90, 130])
    with caplog.at_level(logging.WARNING):
        counts = run(adapter, proteins, files, views=[FORWARD])
    assert counts["lens"] == 0 and "the lens table is empty" in caplog.text
    assert VectorTable(files.lens, LENS_KEYS).keys().num_rows == 0
    assert VectorTable(files.moments, MOMENT_KEYS).constants["tokens_are_residues"] is False
    assert VectorTable(files.lens, LENS_KEYS).layer(1).shape == (0, len(adapter.vocabulary))
    moments, _ = rows_of([files.moments], MOMENT_KEYS)
    stream, _ = rows_of([files.stream], STREAM_KEYS)
    for sequence_id, sequence in proteins:
        tokens = adapter.encode(sequence)
        rows = moments.filter(sequence_id=sequence_id)
        residues = rows.filter(pl.col("pos_class") == "unmasked")["position"].to_list()
        assert len(rows) == tokens.n_tokens == len(set(rows["position"]))
        assert residues == sorted({list(tokens.residue_tokens).index(t) for t in tokens.residue_tokens})
        assert len(stream.filter(sequence_id=sequence_id)) == 1 + min(8, len(sequence))
    assert len(residues) < 130


@pytest.mark.parametrize("view", [FORWARD, BACKWARD])
def test_the_rows_of_a_protein_stand_by_ascending_position_whatever_the_direction(view):
    item = item_of(toy(variant="causal"), *PROTEINS[1], view, seed=0, n_anchors=5)
    assert item.positions.tolist() == list(range(-1, 31))
    assert (np.diff(item.reads) > 0).all() and (np.diff(item.anchors) > 0).all()
    assert item.tokens.residue_tokens.tolist() == item.token_order[1:-1].tolist()


def test_letters_outside_the_twenty_are_special_never_read_and_no_anchors():
    adapter = registry.build("esm2", {"n_blocks": 1, "d_model": 16, "n_heads": 2})
    item = item_of(adapter, "P", "XMXXX", CLEAN, seed=0, n_anchors=8)
    assert item.reads.tolist() == item.anchors.tolist() == [1]
    keys = moment_keys([item], TRAINED, CLEAN)
    assert keys["position"].tolist() == [-1, 0, 1, 2, 3, 4, 5]
    assert keys["pos_class"].to_pylist() == ["special"] * 2 + ["unmasked"] + ["special"] * 4


def test_stream_rows_stand_for_clean_and_autoregressive_views_of_trained_and_untrained_networks(tmp_path):
    nulls = [TRAINED, Null("randinit", 0), Null("shuffle_w", 0), Null("shuffle_seq", 0)]
    for variant, clean in [("sequential", ["none"]), ("causal", ["c2n", "n2c"])]:
        adapter = toy(variant=variant)
        files = files_in(tmp_path, variant)
        run(adapter, PROTEINS, files, nulls=nulls, n_anchors=4)
        frame, _ = rows_of([files.stream], STREAM_KEYS)
        seen = frame.select("null_model", "direction").unique().sort("null_model", "direction").rows()
        assert seen == [(null, direction) for null in ("randinit", "trained") for direction in clean]
        assert set(frame["mask_draw"]) == {-1}
        for sequence_id, sequence in PROTEINS:
            for null_model, direction in seen:
                rows = frame.filter(sequence_id=sequence_id, null_model=null_model, direction=direction)
                assert len(rows) == 1 + min(4, len(sequence))
                assert rows["position"].min() == -1


def test_anchors_are_the_same_for_every_model_and_order_and_change_with_the_seed():
    models = [toy(), toy(variant="causal"), registry.build("esm2", {"n_blocks": 1, "d_model": 16, "n_heads": 2})]
    views = [CLEAN, BACKWARD, CLEAN]
    for protein in PROTEINS:
        drawn = [item_of(*(model, *protein, view), seed=0, n_anchors=8).anchors for model, view in zip(models, views)]
        assert all(np.array_equal(drawn[0], other) for other in drawn)
        assert (np.diff(drawn[0]) > 0).all() and len(drawn[0]) == min(8, len(protein[1]))
    long = PROTEINS[4]
    other = item_of(models[0], *long, CLEAN, seed=1, n_anchors=8).anchors
    assert not np.array_equal(other, item_of(models[0], *long, CLEAN, seed=0, n_anchors=8).anchors)
    places = [item_of(models[0], f"Q{i}", "ACDEFGHIKL", CLEAN, seed=0, n_anchors=2).anchors for i in range(300)]
    assert np.bincount(np.concatenate(places), minlength=10).min() > 35  # 60 expected, standard deviation 7


def test_the_files_say_what_is_constant(tmp_path):
    adapter = toy(variant="causal")
    files = files_in(tmp_path)
    run(adapter, PROTEINS, files, model_id="toy-6", seed=11)
    for path, keys in [(files.moments, MOMENT_KEYS), (files.lens, LENS_KEYS), (files.stream, STREAM_KEYS)]:
        table = VectorTable(path, keys)
        assert table.layers == list(range(7))
        expected = {
            "model_id": "toy-6",
            "family": "toy",
            "objective": "ar",
            "n_blocks": 6,
            "d_model": 32,
            "dtype": adapter.dtype,
            "readout": "seq",
            "tokens_are_residues": True,
            "seed": 11,
            "version": VERSION,
        }
        assert expected.items() <= table.constants.items()
        assert table.constants["amino_acid_columns"] == list(AMINO_ACIDS)
    lens = VectorTable(files.lens, LENS_KEYS)
    assert lens.names == [adapter.vocabulary[token] for token in sorted(adapter.vocabulary)]
    assert VectorTable(files.moments, MOMENT_KEYS).names == list(MOMENTS)
    assert VectorTable(files.stream, STREAM_KEYS).dtype == np.float16


def test_row_groups_end_where_a_sequence_ends(tmp_path):
    files = files_in(tmp_path)
    proteins = proteins_of([100] * 40)
    run(toy(n_blocks=1), proteins, files, views=[CLEAN], token_budget=350)
    file = pq.ParquetFile(files.moments)
    ends = []
    for group in range(file.num_row_groups):
        part = file.read_row_group(group, columns=["sequence_id"]).column(0).to_pylist()
        ends.append({part[0], part[-1]})
        assert all(part.count(sequence_id) == 102 for sequence_id in set(part))
    assert len(ends) > 3


def test_nothing_depends_on_the_order_of_the_proteins_but_the_order_of_rows():
    adapter = toy()
    for sequence_id, sequence in PROTEINS:
        item = item_of(adapter, sequence_id, sequence, MASKED, seed=3)
        assert np.array_equal(item.tokens.masked, mask_of(MASKED, len(sequence), 3, sequence_id))


# ----------------------------------------------------------------------------------------------------------------
# Memory


def sizes_of_batches(monkeypatch, proteins, folder, **options) -> list[tuple[int, int]]:
    sizes = []
    plain = extract.measure

    def spy(adapter, items):
        sizes.append((len(items), max(item.tokens.n_tokens for item in items)))
        return plain(adapter, items)

    with monkeypatch.context() as patch:
        patch.setattr(extract, "measure", spy)
        run(toy(n_blocks=1), proteins, files_in(folder), views=[MASKED], **options)
    return sizes


def test_no_batch_exceeds_the_token_budget(monkeypatch, tmp_path):
    sizes = sizes_of_batches(monkeypatch, PROTEINS, tmp_path, token_budget=70)
    assert sum(rows for rows, _ in sizes) == len(PROTEINS)
    assert all(rows * columns <= 70 for rows, columns in sizes)
    assert max(rows for rows, _ in sizes) > 1


def test_more_proteins_make_more_batches_not_larger_ones(monkeypatch, tmp_path):
    few = sizes_of_batches(monkeypatch, proteins_of([40] * 32), tmp_path, token_budget=340)
    many = sizes_of_batches(monkeypatch, proteins_of([40] * 320), tmp_path, token_budget=340)
    assert max(few) == max(many) == (8, 42)
    assert len(many) == 10 * len(few)


MEMORY = """
import logging, resource, sys, tempfile
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from planted import toy
from plm_depth.activations.extract import Files, extract
from plm_depth.activations.nulls import Null
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS
from plm_depth.views import View
random = generator(0, "proteins")
proteins = [(f"P{i}", "".join(random.choice(list(AMINO_ACIDS), size=98))) for i in range(int(sys.argv[1]))]
folder = Path(tempfile.mkdtemp())
files = Files(folder / "m", folder / "l", folder / "s")
counts = extract(
    toy(n_blocks=12), proteins, files=files, model_id="toy", nulls=[Null("trained", -1)],
    views=[View("none", 0.0, -1)], seed=0, token_budget=2000, log=logging.getLogger("x"),
)
written = sum(path.stat().st_size for path in (files.moments, files.lens, files.stream))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, written // 1024)
"""


def test_peak_memory_is_flat_in_the_number_of_proteins():
    root = Path(__file__).resolve().parents[3]

    def peak(n_proteins: int) -> tuple[int, int]:
        command = [sys.executable, "-c", MEMORY, str(n_proteins), str(root / "workflow"), str(root / "tests")]
        return tuple(int(x) for x in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())

    (few, few_written), (many, many_written) = peak(40), peak(400)
    assert many_written > 9 * few_written > 9 * 5_000  # KiB; what would pile up if it were kept
    assert many - few < 0.3 * (many_written - few_written)


def test_memory_running_out_changes_no_number(tmp_path, caplog):
    adapter = toy()
    plain, halved = files_in(tmp_path, "plain_"), files_in(tmp_path, "halved_")
    run(adapter, PROTEINS, plain, token_budget=10_000)
    embed = adapter.embed

    def small_device(batch):
        if len(batch.ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return embed(batch)

    adapter.embed = small_device
    with caplog.at_level(logging.WARNING):
        run(adapter, PROTEINS, halved, token_budget=10_000)
    assert "going on with" in caplog.text
    for name, keys in [("moments", MOMENT_KEYS), ("lens", LENS_KEYS), ("stream", STREAM_KEYS)]:
        one, one_vectors = rows_of([getattr(plain, name)], keys)
        other, other_vectors = rows_of([getattr(halved, name)], keys)
        assert one.equals(other)
        np.testing.assert_allclose(one_vectors, other_vectors, rtol=1e-3 if name == "stream" else 1e-6, atol=1e-6)


def test_a_protein_too_large_for_the_device_is_named_and_nothing_is_written(tmp_path):
    adapter = toy()
    embed = adapter.embed

    def small_device(batch):
        if batch.ids.shape[1] > 50:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes")
        return embed(batch)

    adapter.embed = small_device
    with pytest.raises(BatchError, match=r"toy, trained: out of memory for protein P4 alone"):
        run(adapter, PROTEINS, files_in(tmp_path))
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------------
# Refusals


def test_nan_in_a_weight_is_an_error_with_model_null_protein_and_layer_and_nothing_is_written(tmp_path):
    adapter = toy()
    with torch.no_grad():
        adapter.module.blocks[2].mlp_out.bias[5] = math.nan
    with pytest.raises(ExtractionError, match=r"toy, trained: activations of protein P\d+ are NaN.*from layer 3 on"):
        run(adapter, PROTEINS, files_in(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_nan_in_an_attention_update_alone_or_in_the_head_is_seen(tmp_path):
    adapter = toy()
    with torch.no_grad():
        adapter.module.head_out.bias[7] = math.inf
    with pytest.raises(ExtractionError, match=r"toy, trained: logits of protein P\d+ are NaN or infinite from layer 0"):
        run(adapter, PROTEINS, files_in(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_state_whose_norm_overflows_is_refused_at_the_layer_where_it_does(tmp_path):
    adapter = toy()
    with torch.no_grad():
        adapter.module.embedding *= 1e160
    with pytest.raises(ExtractionError, match="infinite from layer 0 on"):
        run(adapter, PROTEINS, files_in(tmp_path))


def test_nan_at_the_second_null_model_writes_nothing_either(tmp_path):
    adapter = toy()

    def spoilt(seed):
        planted.initialise(adapter.module, seed)
        with torch.no_grad():
            adapter.module.embedding[6] = math.nan

    adapter.reinitialise = spoilt
    before = adapter.module.embedding.clone()
    with pytest.raises(ExtractionError, match=r"toy, randinit \(seed 4\): .* layer 0"):
        run(adapter, PROTEINS, files_in(tmp_path), nulls=[TRAINED, Null("randinit", 4)])
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(adapter.module.embedding, before)


def test_garbage_in_the_padding_is_no_reason_to_stop():
    adapter = toy()
    items = [item_of(adapter, *protein, MASKED, seed=0) for protein in PROTEINS[:3]]
    expected = measure(adapter, items)
    embed = adapter.embed

    def dirty(batch):
        stream, context = embed(batch)
        return stream.masked_fill(~batch.valid[..., None], 1e30), context

    adapter.embed = dirty
    found = measure(adapter, items)
    assert np.array_equal(found.moments, expected.moments, equal_nan=True)


def test_a_stream_beyond_float16_is_an_error_that_names_the_option(tmp_path):
    adapter = planted.rescaled(toy(), 1e5)
    with pytest.raises(
        ExtractionError, match=r"toy, trained: the stream of protein P\d+ reaches .* 65504: use --stream-dtype float32"
    ):
        run(adapter, PROTEINS, files_in(tmp_path))
    assert list(tmp_path.iterdir()) == []
    files = files_in(tmp_path)
    run(adapter, PROTEINS, files, stream_dtype="float32")
    assert VectorTable(files.stream, STREAM_KEYS).layer(6).max() > 65504


def test_the_range_check_points_at_protein_and_layer():
    adapter = toy()
    items = [item_of(adapter, *protein, CLEAN, seed=0, n_anchors=2) for protein in PROTEINS[:3]]
    stream = np.zeros((7, 9, 32))
    check_range(items, stream, "float16")
    stream[4, 5, 3] = -70_000
    with pytest.raises(ExtractionError, match=r"protein P1 reaches 7e\+04 at layer 4"):
        check_range(items, stream, "float16")
    check_range(items, stream, "float32")


def test_a_sequence_the_model_cannot_read_is_named(tmp_path):
    with pytest.raises(SequenceError, match=r"protein Q1: 'X' at position 3"):
        run(toy(), [*PROTEINS, ("Q1", "MKTXY")], files_in(tmp_path))
    with pytest.raises(SequenceError, match=r"protein Q2: 501 residues"):
        run(toy(), [*PROTEINS, ("Q2", "A" * 501)], files_in(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_shard_and_a_protein_twice_are_refused(tmp_path):
    with pytest.raises(ExtractionError, match="holds no proteins"):
        run(toy(), [], files_in(tmp_path))
    with pytest.raises(ExtractionError, match="P3 stands twice"):
        run(toy(), [*PROTEINS, PROTEINS[3]], files_in(tmp_path))


# ----------------------------------------------------------------------------------------------------------------
# The stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Return a folder with a checkpoint, its card and a shard, and the options of a run on them."""
    from plm_depth.models.describe import describe
    from plm_depth.tables import write_text

    folder = tmp_path_factory.mktemp("stage")
    registry.save(registry.build("esm2", {"n_blocks": 2, "d_model": 16, "n_heads": 2}), folder / "esm2")
    write_text(json.dumps(describe("tiny", "esm2", folder / "esm2")), folder / "card.json")
    write_shard(PROTEINS, folder / "shard.parquet")
    return {
        "--card": folder / "card.json",
        "--sequences": folder / "shard.parquet",
        "--nulls": '[{"null_model": "trained", "seed": -1}]',
        "--inputs": json.dumps(INPUTS),
        "--anchors": 3,
        "--seed": 5,
        "--token-budget": 100,
        "--device": "cpu",
    }


def write_shard(proteins, path, **columns):
    ids, sequences = zip(*proteins)
    table = {
        "sequence_id": list(ids),
        "sequence_hash": [hashlib.sha256(s.encode()).hexdigest() for s in sequences],
        "rank": list(range(len(ids))),
        "n_residues": [len(s) for s in sequences],
        "sequence": list(sequences),
    }
    write_table(table | columns, SEQUENCES, path)


def call(stage, folder, **changes):
    files = files_in(folder)
    outputs = {"--moments": files.moments, "--lens": files.lens, "--stream": files.stream}
    options = stage | outputs | {"--" + name.replace("_", "-"): value for name, value in changes.items()}
    extract.main([str(part) for option in options.items() for part in option])
    return files


def test_the_stage_writes_the_three_tables_of_its_shard(stage, tmp_path):
    files = call(stage, tmp_path)
    moments = VectorTable(files.moments, MOMENT_KEYS)
    assert moments.n_rows == 3 * sum(len(sequence) + 2 for _, sequence in PROTEINS)
    assert moments.constants["model_id"] == "tiny" and moments.constants["dtype"] == "float32"
    assert VectorTable(files.stream, STREAM_KEYS).n_rows == sum(1 + min(3, len(sequence)) for _, sequence in PROTEINS)
    adapter = registry.load("esm2", Path(stage["--card"]).parent / "esm2")
    items = [item_of(adapter, *protein, MASKED, seed=5) for protein in PROTEINS]
    frame, vectors = rows_of([files.lens], LENS_KEYS)
    mine = frame["mask_draw"].to_numpy() == 0
    order = np.argsort([f"{i.sequence_id}/{p:05d}" for i in items for p in i.reads])
    np.testing.assert_allclose(vectors[mine], measure(adapter, items).logits[:, order].swapaxes(0, 1), atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lens.parquet", "moments.parquet", "stream.parquet"]


def test_twice_the_same_run_gives_the_same_bytes(stage, tmp_path):
    one, two = (call(stage, tmp_path / name) for name in ("one", "two"))
    for name in ("moments", "lens", "stream"):
        assert getattr(one, name).read_bytes() == getattr(two, name).read_bytes()


def test_bad_input_ends_in_one_message_and_no_file(stage, tmp_path):
    shard = Path(stage["--sequences"])
    damaged = tmp_path / "damaged.parquet"
    whole = shard.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    wrong = tmp_path / "wrong.parquet"
    write_shard(PROTEINS, wrong, n_residues=[len(s) + (i == "P2") for i, s in PROTEINS])
    card, unknown = tmp_path / "card.json", tmp_path / "unknown.json"
    card.write_text("{}")
    unknown.write_text(json.dumps(json.loads(Path(stage["--card"]).read_text()) | {"family": "esm22"}))
    cases = [
        ({"sequences": tmp_path / "absent.parquet"}, "absent.parquet: not a readable Parquet file", None),
        ({"sequences": damaged}, "damaged.parquet: not a readable Parquet file", whole[:-100]),
        ({"sequences": damaged}, "damaged.parquet: not a readable Parquet file", bytes(flipped)),
        ({"sequences": damaged}, "damaged.parquet: not a readable Parquet file", b""),
        ({"sequences": wrong}, "P2 has 31 residues, its row says 32", None),
        ({"nulls": "[1]"}, "--nulls: expected a JSON list", None),
        ({"inputs": "{}"}, "--inputs: expected a JSON object with the inputs of objective 'mlm'", None),
        ({"anchors": -1}, "--anchors -1: expected 0 or more", None),
        ({"token_budget": 0}, "token budget 0: expected at least 1", None),
        ({"threads": 0}, "--threads 0: expected at least 1", None),
        ({"card": card}, "not the card of a checkpoint", None),
        ({"card": unknown}, "unknown.json: unknown family 'esm22'", None),
        ({"moments": "/proc/absent/moments.parquet"}, "/proc/absent", None),
        ({"device": "tpu"}, "--device tpu", None),
    ]
    out = tmp_path / "out"
    for changes, message, damage in cases:
        if damage is not None:
            damaged.write_bytes(damage)
        with pytest.raises(SystemExit) as ended:
            call(stage, out, **changes)
        assert isinstance(ended.value.code, str) and message in ended.value.code, (message, ended.value.code)
        assert not out.exists() or list(out.iterdir()) == []


def test_memory_running_out_while_loading_says_so(stage, tmp_path, monkeypatch):
    def load(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 60 GiB")

    monkeypatch.setattr("plm_depth.models.describe.load_from_card", load)
    with pytest.raises(SystemExit, match="out of memory outside of a batch"):
        call(stage, tmp_path)


def test_a_foreseeable_failure_of_the_command_shows_no_traceback(stage, tmp_path):
    outputs = {f"--{name}": tmp_path / name for name in ("moments", "lens", "stream")}
    options = stage | outputs | {"--sequences": tmp_path / "absent.parquet"}
    root = Path(__file__).resolve().parents[3] / "workflow"
    done = subprocess.run(
        [sys.executable, "-m", "plm_depth.activations.extract", *(str(x) for pair in options.items() for x in pair)],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("activations.extract: ")


def test_the_version_can_be_read_without_loading_torch():
    root = Path(__file__).resolve().parents[3] / "workflow"
    code = "import plm_depth.activations as room, sys; assert 'torch' not in sys.modules; print(room.VERSION)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert int(done.stdout) == VERSION >= 1
