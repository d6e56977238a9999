"""Features of every layer: the numbers of the extraction pass, of the residues that are wanted, whatever the batch."""

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from planted import toy, walk
from plm_depth.activations import EMBED_VERSION, embed, extract
from plm_depth.activations.door import ExtractionError
from plm_depth.activations.embed import embed as run_embed
from plm_depth.activations.embed import embedded_item, read_proteins, residues_option, states
from plm_depth.activations.extract import Files
from plm_depth.activations.nulls import Null, NullError
from plm_depth.models import registry
from plm_depth.randomness import generator
from plm_depth.sequences import SourceError
from plm_depth.tables import AMINO_ACIDS, STREAM_KEYS, VectorTable
from plm_depth.views import View

LOG = logging.getLogger("test")
TRAINED, RANDINIT = Null("trained", -1), Null("randinit", 5)
CLEAN, MASKED = View("none", 0.0, -1), View("none", 0.3, 0)
FORWARD, BACKWARD = View("n2c", float("nan"), -1), View("c2n", float("nan"), -1)


def proteins_of(lengths):
    random = generator(0, "proteins")
    return [(f"P{i}", "".join(random.choice(list(AMINO_ACIDS), size=n))) for i, n in enumerate(lengths)]


PROTEINS = proteins_of([9, 30, 31, 3, 60, 28, 1, 45, 30])


def run(adapter, path, proteins=PROTEINS, **options):
    views = [FORWARD, BACKWARD] if adapter.objective == "ar" else [CLEAN]
    defaults = {"model_id": "toy", "nulls": [TRAINED], "views": views, "seed": 0, "log": LOG}
    run_embed(adapter, proteins, output=path, **(defaults | options))
    return read(path)


def read(path):
    """Return the vectors, (n_layers, d_model) each, by their keys."""
    table = VectorTable(path, STREAM_KEYS)
    names = ["null_model", "null_seed", "condition", "direction", "noise_t", "mask_draw", "sequence_id", "position"]
    keys = zip(*(map(str, table.keys().column(name).to_pylist()) for name in names))
    vectors = np.stack([table.layer(layer) for layer in table.layers], 1)
    found = dict(zip(keys, vectors, strict=True))
    assert len(found) == table.n_rows
    return found


@pytest.mark.parametrize("kind", [{}, {"variant": "parallel"}, {"geometric": True}, {"variant": "causal"}])
def test_means_and_residues_are_those_of_a_plain_walk_of_each_protein_alone(kind):
    adapter = toy(**kind)
    for view in [FORWARD, BACKWARD] if adapter.objective == "ar" else [CLEAN, MASKED]:
        items = [embedded_item(adapter, *protein, view, n_residues=None, seed=0) for protein in PROTEINS]
        found, row = states(adapter, items, dtype="float32"), 0
        for item in items:
            of_residues = walk(adapter, item.tokens).streams[:, item.tokens.residue_tokens]
            expected = np.concatenate([of_residues.mean(1, keepdims=True), of_residues], 1)
            np.testing.assert_allclose(found[:, row : row + expected.shape[1]], expected, rtol=1e-5, atol=1e-6)
            row += expected.shape[1]
        assert found.shape == (adapter.n_blocks + 1, row, adapter.d_model)


@pytest.mark.parametrize("family", ["esm2", "progen2", "dplm"])
def test_equal_settings_give_the_very_numbers_of_the_extraction_pass(family, tmp_path):
    adapter = registry.build(family, {"n_blocks": 2, "d_model": 32, "n_heads": 8})
    views = [FORWARD, BACKWARD] if adapter.objective == "ar" else [CLEAN]
    options = {"nulls": [TRAINED, RANDINIT], "views": views, "seed": 3, "token_budget": 100, "log": LOG}
    files = Files(*(tmp_path / name for name in ("moments", "lens", "stream")))
    extract.extract(adapter, PROTEINS, files=files, model_id="toy", n_anchors=4, **options)
    found = run(adapter, tmp_path / "embedded", n_residues=4, **options)
    expected = read(files.stream)
    assert found.keys() == expected.keys() and len(found) > 2 * len(views) * len(PROTEINS)
    assert all((found[key] == expected[key]).all() for key in expected)


def test_all_residues_none_and_a_number_of_them_have_their_rows_and_the_same_numbers(tmp_path):
    adapter = toy()
    everything = run(adapter, tmp_path / "all", views=[CLEAN, MASKED])
    n_residues = sum(len(sequence) for _, sequence in PROTEINS)
    assert len(everything) == 2 * (n_residues + len(PROTEINS))
    few = run(adapter, tmp_path / "few", n_residues=4, views=[CLEAN, MASKED])
    assert len(few) == 2 * sum(1 + min(4, len(sequence)) for _, sequence in PROTEINS)
    no_mean = run(adapter, tmp_path / "residues", mean=False)
    assert len(no_mean) == n_residues and not any(key[-1] == "-1" for key in no_mean)
    means = run(adapter, tmp_path / "means", n_residues=0)
    assert len(means) == len(PROTEINS) and all(key[-1] == "-1" for key in means)
    for part in (few, no_mean, means):
        assert all((everything[key] == vectors).all() for key, vectors in part.items())


def test_letters_outside_the_twenty_have_a_row_among_all_residues_and_are_never_drawn(tmp_path):
    adapter = registry.build("esm2", {"n_blocks": 1, "d_model": 16, "n_heads": 2})
    odd = [("P", "XXMKVX")]
    assert [key[-1] for key in run(adapter, tmp_path / "all", odd, mean=False)] == list("012345")
    assert [key[-1] for key in run(adapter, tmp_path / "four", odd, n_residues=4, mean=False)] == list("234")


@pytest.mark.parametrize("kind", [{}, {"variant": "causal"}])
def test_one_shard_and_many_give_the_same_rows_whatever_the_budget(kind, tmp_path, monkeypatch):
    adapter = toy(**kind)
    whole = run(adapter, tmp_path / "whole", token_budget=10_000, dtype="float32")
    parts = {}
    for shard, budget in enumerate((1, 33, 100)):
        parts |= run(adapter, tmp_path / "part", PROTEINS[shard::3], token_budget=budget, dtype="float32")
    monkeypatch.setattr(embed, "ROOM", 1)
    one_by_one = run(adapter, tmp_path / "alone", dtype="float32")
    assert whole.keys() == parts.keys() == one_by_one.keys()
    for key, expected in whole.items():
        np.testing.assert_allclose(parts[key], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one_by_one[key], expected, rtol=1e-5, atol=1e-6)


def test_the_room_bounds_a_batch_whatever_the_token_budget(tmp_path, monkeypatch):
    adapter, shapes = toy(), []
    collate = adapter.collate
    monkeypatch.setattr(
        adapter, "collate", lambda tokens, device: shapes.append(len(tokens)) or collate(tokens, device)
    )
    monkeypatch.setattr(embed, "ROOM", 70 * 7 * 32 * 2)  # 70 tokens of 7 layers, 32 numbers, 2 bytes
    run(adapter, tmp_path / "stream", proteins_of([30] * 10), token_budget=10_000)
    assert shapes == [2] * 5


@pytest.mark.parametrize("family", ["esm2", "progen2"])
def test_with_the_final_norm_every_state_is_what_a_model_that_ends_there_hands_out(family, tmp_path):
    sizes = {"n_blocks": 3, "d_model": 16, "n_heads": 8}
    adapter = registry.build(family, sizes, seed=2)
    for parameter in adapter.module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    proteins = proteins_of([9, 30, 31])
    found = run(adapter, tmp_path / "normed", proteins, norm="final", dtype="float32")
    plain = run(adapter, tmp_path / "plain", proteins, dtype="float32")
    assert VectorTable(tmp_path / "normed", STREAM_KEYS).constants["norm"] == "final"
    assert "norm" not in VectorTable(tmp_path / "plain", STREAM_KEYS).constants
    assert set(found) == set(plain)
    for key, vectors in found.items():
        if key[-1] != "-1":  # of single residues the norm can be taken afterwards, of their mean it cannot
            with torch.inference_mode():
                expected = adapter.final_norm(torch.from_numpy(plain[key].copy())).numpy()
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
    for sequence_id, _ in proteins:
        own = {key: vectors for key, vectors in found.items() if key[-2] == sequence_id}
        for direction in {key[3] for key in own}:
            rows = [vectors for key, vectors in own.items() if key[3] == direction and key[-1] != "-1"]
            mean = next(vectors for key, vectors in own.items() if key[3] == direction and key[-1] == "-1")
            np.testing.assert_allclose(mean, np.mean(rows, 0), atol=1e-5)


@pytest.mark.parametrize(("every", "layers"), [(2, [0, 2, 4, 6]), (4, [0, 4, 6]), (9, [0, 6])])
def test_some_layers_are_those_of_all_and_the_last_is_among_them(every, layers, tmp_path):
    adapter = toy()
    whole = run(adapter, tmp_path / "whole")
    some = run(adapter, tmp_path / "some", every=every)
    assert VectorTable(tmp_path / "some", STREAM_KEYS).layers == layers
    assert whole.keys() == some.keys() and all((whole[key][layers] == some[key]).all() for key in whole)
    with pytest.raises(ExtractionError, match="--every 0"):
        run(adapter, tmp_path / "none", every=0)


def test_a_model_of_pieces_has_its_means_only_and_says_so(tmp_path, caplog):
    adapter = registry.build("protgpt2", {"n_blocks": 2, "d_model": 32, "n_heads": 4})
    with caplog.at_level(logging.WARNING):
        found = run(adapter, tmp_path / "stream", proteins_of([3, 90]), views=[FORWARD])
    assert {key[-1] for key in found} == {"-1"} and "means over proteins only" in caplog.text
    with pytest.raises(ExtractionError, match="nothing is kept"):
        run(adapter, tmp_path / "nothing", views=[FORWARD], mean=False)


def test_untrained_networks_differ_and_permuted_residues_are_refused(tmp_path):
    adapter = registry.build("esm2", {"n_blocks": 1, "d_model": 16, "n_heads": 2})
    found = run(adapter, tmp_path / "stream", nulls=[TRAINED, RANDINIT], n_residues=0)
    assert len(found) == 2 * len(PROTEINS)
    for key, vectors in found.items():
        if key[0] == "randinit":
            assert not np.allclose(vectors, found[("trained", "-1", *key[2:])])
    with pytest.raises(NullError, match="shuffle_seq: expected trained"):
        run(adapter, tmp_path / "other", nulls=[Null("shuffle_seq", 0)])
    assert not (tmp_path / "other").exists()


def test_numbers_beyond_float16_and_nan_are_refused_with_protein_layer_and_mend(tmp_path):
    adapter = toy()
    adapter.module.embedding.mul_(1e6)
    with pytest.raises(ExtractionError, match=r"toy, trained: the stream of protein P\d reaches .* layer 0.*float32"):
        run(adapter, tmp_path / "stream")
    assert len(run(adapter, tmp_path / "wide", dtype="float32"))
    adapter.module.blocks[2].feed = lambda middle: torch.full_like(middle, torch.nan)
    with pytest.raises(ExtractionError, match="is NaN or infinite at layer 3"):
        run(adapter, tmp_path / "stream", dtype="float32")
    assert not (tmp_path / "stream").exists()


def test_memory_running_out_changes_no_number(tmp_path, monkeypatch):
    adapter, collate = toy(), toy().collate
    whole = run(adapter, tmp_path / "whole", dtype="float32")

    def collate_few(tokens, device="cpu"):
        if len(tokens) > 2:
            raise MemoryError
        return collate(tokens, device)

    monkeypatch.setattr(adapter, "collate", collate_few)
    halved = run(adapter, tmp_path / "halved", dtype="float32")
    assert whole.keys() == halved.keys()
    for key, expected in whole.items():
        np.testing.assert_allclose(halved[key], expected, rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------------
# The stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Return the options of a run on a checkpoint with its card and a FASTA file."""
    from plm_depth.models.describe import describe
    from plm_depth.tables import write_text

    folder = tmp_path_factory.mktemp("stage")
    registry.save(registry.build("esm2", {"n_blocks": 2, "d_model": 16, "n_heads": 2}), folder / "esm2")
    write_text(json.dumps(describe("tiny", "esm2", folder / "esm2")), folder / "card.json")
    (folder / "p.fasta").write_text("".join(f">sp|{name}|X words\n{text}\n" for name, text in PROTEINS))
    return {"--card": folder / "card.json", "--sequences": folder / "p.fasta", "--device": "cpu"}


def call(stage, path, **changes):
    options = stage | {"--output": path} | {"--" + name.replace("_", "-"): value for name, value in changes.items()}
    embed.main([str(part) for option in options.items() for part in option])


def test_the_stage_embeds_a_fasta_file_with_clean_views_by_default(stage, tmp_path):
    call(stage, tmp_path / "stream")
    table = VectorTable(tmp_path / "stream", STREAM_KEYS)
    assert table.n_rows == sum(1 + len(sequence) for _, sequence in PROTEINS)
    assert table.dtype == np.float16 and table.constants["version"] == EMBED_VERSION
    assert set(table.keys().column("noise_t").to_pylist()) == {0.0}
    adapter = registry.load("esm2", Path(stage["--card"]).parent / "esm2")
    items = [embedded_item(adapter, *PROTEINS[4], CLEAN, n_residues=None, seed=0)]
    found = read(tmp_path / "stream")
    expected = states(adapter, items, dtype="float32")
    for row, position in enumerate([-1, *range(60)]):
        key = ("trained", "-1", "seq", "none", "0.0", "-1", "P4", str(position))
        np.testing.assert_allclose(found[key], expected[:, row], rtol=2e-3, atol=1e-4)


def test_the_command_takes_views_residues_and_pooling(stage, tmp_path):
    inputs = '{"mlm": {"noise": [0.3], "draws": 1, "clean": true}}'
    call(stage, tmp_path / "stream", inputs=inputs, residues=2, pooled="none", dtype="float32", seed=4)
    keys = VectorTable(tmp_path / "stream", STREAM_KEYS).keys()
    assert keys.num_rows == 2 * sum(min(2, len(sequence)) for _, sequence in PROTEINS)
    assert sorted(set(keys.column("noise_t").to_pylist())) == pytest.approx([0, 0.3])


def test_each_file_can_have_its_own_answer_to_how_many_residues(stage, tmp_path):
    (tmp_path / "more.fasta").write_text(">q\nMKVLA\n")
    files = f"{stage['--sequences']} {tmp_path / 'more.fasta'}"
    options = stage | {"--output": tmp_path / "stream"}
    words = [str(part) for name, value in options.items() if name != "--sequences" for part in (name, value)]
    embed.main([*words, "--sequences", *files.split(), "--residues", "none", "all"])
    keys = VectorTable(tmp_path / "stream", STREAM_KEYS).keys()
    assert sorted(keys.filter(pc.equal(keys["sequence_id"], "q"))["position"].to_pylist()) == [-1, 0, 1, 2, 3, 4]
    assert keys.num_rows == len(PROTEINS) + 6
    with pytest.raises(SystemExit, match="--residues: 3 answers for 2 files; expected 1 or 2"):
        embed.main([*words, "--sequences", *files.split(), "--residues", "none", "all", "1"])


def test_proteins_of_a_fasta_file_come_in_its_order_and_bad_records_are_named(tmp_path):
    path = tmp_path / "p.fasta"
    path.write_text(">b x\nmk\nV*\n>a\nXX\n")
    assert read_proteins(path) == [("b", "MKV"), ("a", "XX")]
    path.write_text(">b\nMK\n>a\nM1\n")
    with pytest.raises(SourceError, match=r"p.fasta, record 2: b'1' in the sequence"):
        read_proteins(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residues": "none", "pooled": "none"}, "nothing is kept"),
        ({"sequences": "nowhere.fasta"}, "nowhere.fasta"),
        ({"nulls": "[]"}, "--nulls"),
        ({"conditions": '["struct"]'}, "none is left for esm2"),
    ],
)
def test_bad_input_ends_in_one_message_and_no_file(stage, tmp_path, changes, message):
    with pytest.raises(SystemExit, match=f"activations.embed: .*{message}"):
        call(stage, tmp_path / "stream", **changes)
    assert not list(tmp_path.iterdir())


def test_how_many_residues_is_all_none_or_a_number():
    assert [residues_option(text) for text in ("all", "none", "7")] == [None, 0, 7]
    for text in ("0", "-1", "some"):
        with pytest.raises(Exception, match="expected all, none, or how many"):
            residues_option(text)
