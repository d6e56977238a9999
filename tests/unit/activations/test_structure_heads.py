"""Structure heads read out at every layer: the reductions, the rows, and what a head can and cannot know."""

import json
import logging
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from plm_depth.activations import extract, structure_heads
from plm_depth.activations.door import ExtractionError
from plm_depth.activations.nulls import Null, shuffled_order
from plm_depth.activations.structure_heads import QUANTITIES, layer_quantities, measure, read_of, read_out
from plm_depth.conditions import CONDITIONS
from plm_depth.metrics import lens
from plm_depth.models import registry
from plm_depth.models.base import Showing, Structure
from plm_depth.models.describe import describe
from plm_depth.models.structures import in_order
from plm_depth.randomness import generator
from plm_depth.tables import LENS_KEYS, SEQUENCES, STRUCTURE_KEYS, VectorTable, read_table, write_table, write_text
from plm_depth.views import View
from small_backbone import backbone, write
from unit.activations.test_conditions import PROTEINS, STRUCTURES, lively

LOG = logging.getLogger("test")
TRAINED, UNTRAINED, SHUFFLED = Null("trained", -1), Null("randinit", 0), Null("shuffle_seq", 2)
CLEAN, MASKED = View("none", 0.0, -1), View("none", 0.3, 0)
OF = {name: place for place, name in enumerate(QUANTITIES)}


# ----------------------------------------------------------------------------------------------------------------
# Reductions


def some_logits(n_classes, *, ties=False):
    random = generator("logits", n_classes)
    logits = random.normal(size=(2, 40, n_classes)) * 4
    return np.round(logits) if ties else logits


def in_torch(at, final, true):
    def of(logits):
        return read_out(torch.from_numpy(logits))

    return layer_quantities(of(at), of(final), torch.from_numpy(true)).numpy()


@pytest.mark.parametrize("n_classes", [4, 20, 300])
@pytest.mark.parametrize("ties", [False, True])
def test_the_reductions_are_those_of_the_lens_metrics(n_classes, ties):
    at, final = some_logits(n_classes, ties=ties)
    true = generator("true", n_classes).integers(n_classes, size=len(at))
    found = in_torch(at, final, true)
    expected = lens.layer_quantities(lens.read_out(at.T), lens.read_out(final.T), true)
    for name in QUANTITIES:
        np.testing.assert_allclose(found[:, OF[name]], expected[name], rtol=0, atol=1e-12, err_msg=name)
    assert len(set(found[:, OF["ov5"]].round(6))) > 1 or n_classes == 4


def test_a_constant_added_changes_nothing_and_a_layer_is_no_distance_from_itself():
    at, final = some_logits(300)
    true = np.arange(len(at))
    np.testing.assert_allclose(in_torch(at + 7, final - 3, true), in_torch(at, final, true), rtol=0, atol=1e-12)
    itself = in_torch(final, final, true)
    assert (itself[:, [OF["kl_lf"], OF["kl_fl"]]] == 0).all() and (itself[:, [OF["ov1"], OF["ov5"]]] == 1).all()


def test_what_compares_with_an_unknown_truth_is_undefined_and_nothing_else_is():
    at, final = some_logits(20)
    true = np.where(np.arange(len(at)) % 3 == 0, -1, 2)
    found, known = in_torch(at, final, true), in_torch(at, final, np.full(len(at), 2))
    undefined = np.zeros(found.shape, bool)
    undefined[np.ix_(true < 0, [OF[name] for name in ("p_true", "rank_true", "acc1", "nll")])] = True
    assert (np.isnan(found) == undefined).all()
    np.testing.assert_array_equal(found[~undefined], known[~undefined])


# ----------------------------------------------------------------------------------------------------------------
# Rows


@pytest.fixture(scope="module", params=["saprot", "esm3", "dplm2"])
def adapter(request):
    adapter = lively(request.param)
    adapter.showing = Showing(is_compared=True)
    return adapter


def written(adapter, path, proteins=PROTEINS, **options):
    options = {"nulls": [TRAINED], "views": [CLEAN, MASKED], "conditions": CONDITIONS, **options}
    structure_heads.structure_heads(
        adapter, proteins, output=path, model_id="toy", seed=0, structures=STRUCTURES, log=LOG, **options
    )
    return rows_of(path, STRUCTURE_KEYS)


def rows_of(path, keys):
    table = VectorTable(path, keys)
    frame = pl.from_arrow(table.keys()).with_columns(pl.col(pl.Categorical).cast(pl.String))
    order = ["null_model", "condition", "noise_t", "sequence_id", "position"]
    by = frame.with_row_index("row").sort(order)
    vectors = np.stack([table.layer(layer) for layer in table.layers])
    return by.drop("row"), vectors[:, by["row"].to_numpy()]


@pytest.fixture(scope="module")
def measured(adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    return written(adapter, folder / "heads.parquet", nulls=[TRAINED, UNTRAINED, SHUFFLED])


def test_masks_and_positions_are_those_of_the_logit_lens(adapter, measured, tmp_path):
    files = extract.Files(*(tmp_path / name for name in ("moments", "lens", "stream")))
    extract.extract(
        *(adapter, PROTEINS), files=files, model_id="toy", nulls=[TRAINED, UNTRAINED, SHUFFLED], views=[CLEAN, MASKED],
        seed=0, conditions=CONDITIONS, structures=STRUCTURES, log=LOG,
    )  # fmt: skip
    theirs, _ = rows_of(files.lens, LENS_KEYS)
    mine, _ = measured
    assert mine.height > 100
    assert mine.drop("true_class", "is_shown").equals(theirs.drop("true_aa"), null_equal=True)


def test_rows_say_whether_the_structure_was_shown_and_what_it_is(adapter, measured):
    rows, vectors = measured
    columns = ["null_model", "condition", "sequence_id", "position", "true_class", "is_shown"]
    for null, condition, sequence_id, position, true, shown in rows.select(columns).iter_rows():
        structure, n_residues = STRUCTURES[sequence_id], len(STRUCTURES[sequence_id].three_di)
        if null == "shuffle_seq":  # every residue goes with its structure
            structure = in_order(structure, shuffled_order(n_residues, SHUFFLED.seed, sequence_id))
        assert true == adapter.true_structure(structure, n_residues)[position], (null, condition, sequence_id, position)
        is_known = adapter.family != "saprot" or true >= 0
        assert shown == (condition != "seq" and is_known)
    assert set(rows["null_model"]) == {"trained", "randinit", "shuffle_seq"}
    of_truth = np.isnan(vectors[:, :, OF["nll"]])
    assert (of_truth == (rows["true_class"].to_numpy() < 0)).all()


def test_a_structure_that_is_hidden_with_its_residue_is_not_counted_as_shown(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter, "showing", Showing("hide", is_compared=True))
    rows, _ = written(adapter, tmp_path / "heads")
    shown = rows.filter(pl.col("true_class") >= 0).group_by("condition", "is_masked").agg(pl.col("is_shown").unique())
    found = {(condition, masked): values for condition, masked, values in shown.iter_rows()}
    assert found["seq_struct", True] == [False] and found["seq_struct", False] == [True]
    assert found["struct", True] == [True] and found["seq", True] == found["seq", False] == [False]


def test_the_last_layer_is_its_own_prediction_and_pays_what_the_familys_head_pays(adapter, measured):
    rows, vectors = measured
    assert (vectors[-1, :, [OF["kl_lf"], OF["js"]]] == 0).all() and (vectors[-1, :, [OF["ov1"], OF["ov5"]]] == 1).all()
    assert (vectors[0, :, OF["kl_lf"]] > 0).all()
    for condition in CONDITIONS:
        sequence_id, sequence = PROTEINS[1]
        item = extract.item_of(
            *(adapter, sequence_id, sequence, MASKED), seed=0, condition=condition, structure=STRUCTURES[sequence_id]
        )
        (state,) = extract.states_at(adapter, [item.tokens], [adapter.structure_reads(item.tokens)])[-1:]
        true = torch.from_numpy(adapter.true_structure(STRUCTURES[sequence_id], len(sequence)))[item.reads]
        with torch.inference_mode():
            logits = adapter.read_out_structure(state)[item.reads].double()
        loss = torch.nn.functional.cross_entropy(logits, true, ignore_index=-1, reduction="sum").item()
        is_it = (
            (pl.col("null_model") == "trained") & (pl.col("condition") == condition)
            & (pl.col("sequence_id") == sequence_id) & (pl.col("noise_t") > 0)
        )  # fmt: skip
        mine = vectors[-1, rows.select(is_it).to_series().to_numpy(), OF["nll"]]
        assert len(mine) == len(item.reads)
        assert np.nansum(mine.astype(float)) == pytest.approx(loss, rel=1e-5)


def test_a_block_that_adds_nothing_leaves_the_read_out_as_it_was(adapter, tmp_path, monkeypatch):
    right = adapter.add
    blocks = iter(range(1, 1000))
    monkeypatch.setattr(
        adapter, "add", lambda stream, updates: stream if next(blocks) % 2 == 0 else right(stream, updates)
    )
    _, vectors = written(adapter, tmp_path / "heads", views=[MASKED])
    np.testing.assert_array_equal(vectors[2], vectors[1])
    assert (vectors[0, :, OF["kl_lf"]] > 0).all() and (vectors[1, :, OF["kl_lf"]] == 0).all()


def test_batches_chunks_and_memory_that_runs_out_change_no_row(adapter, measured, tmp_path, monkeypatch, caplog):
    rows, vectors = measured
    is_trained = (rows["null_model"] == "trained").to_numpy()
    monkeypatch.setattr(structure_heads, "NUMBERS_AT_ONCE", 3 * len(adapter.structure_classes))
    right = structure_heads.states_at

    def small(adapter, tokens, reads):
        if len(tokens) > 1:
            raise RuntimeError("CUDA out of memory")
        return right(adapter, tokens, reads)

    monkeypatch.setattr(structure_heads, "states_at", small)
    monkeypatch.setattr(structure_heads, "plan", lambda n_tokens, **options: [list(range(len(n_tokens)))])
    with caplog.at_level(logging.WARNING):
        mine, numbers = written(adapter, tmp_path / "heads", token_budget=30)
    assert "going on with" in caplog.text
    assert mine.equals(rows.filter(null_model="trained"), null_equal=True)
    for name in set(QUANTITIES) - {"rank_true"}:  # a rank is a count: two equal logits may change places
        np.testing.assert_allclose(
            numbers[..., OF[name]], vectors[:, is_trained, OF[name]], rtol=1e-4, atol=2e-5, err_msg=name
        )


# ----------------------------------------------------------------------------------------------------------------
# What a head can know


def test_a_head_that_knows_shown_structures_does_not_know_those_of_a_sequence_alone():
    """Its codes are planted: the head answers with the code whose embedding the stream resembles."""
    adapter = registry.build("dplm2", {"n_blocks": 2, "d_model": 32, "n_heads": 2}, seed=1)
    adapter.showing = Showing(is_compared=True)
    codes = np.arange(16)
    structures = {name: Structure(codes=np.arange(len(s)) % 16) for name, s in PROTEINS}
    with torch.no_grad():
        head = adapter.module.lm_head
        alone = [adapter.encode("A" * 16, structure=Structure(codes=codes), condition="seq_struct")]
        stream = extract.states_at(adapter, alone, [adapter.structure_reads(alone[0])])[0]
        features = head.layer_norm(torch.nn.functional.gelu(head.dense(adapter.final_norm(stream))))
        first = len(adapter.alphabet.tokens) - 1 - len(adapter.structure_classes)
        head.decoder.weight[first : first + 16] = 2 * features
    nlls, rights = {}, {}
    for condition in ("seq", "seq_struct"):
        reads = [
            read_of(
                *(adapter, name, s, MASKED), seed=0, condition=condition, shown=structures[name], known=structures[name]
            )
            for name, s in PROTEINS
        ]
        values = measure(adapter, reads)
        nlls[condition], rights[condition] = values[..., OF["nll"]].mean(1), values[..., OF["acc1"]].mean(1)
    assert (rights["seq_struct"] == 1).all() and (rights["seq"] < 0.3).all()
    assert (nlls["seq"] > nlls["seq_struct"] + 1).all()


# ----------------------------------------------------------------------------------------------------------------
# What is refused, and the stage


def test_a_model_without_a_structure_head_and_logits_that_are_not_finite_are_refused(tmp_path):
    plain = registry.build("esm2", {"n_blocks": 1, "d_model": 16, "n_heads": 2})
    with pytest.raises(ExtractionError, match="toy: esm2 has no structure head"):
        written(plain, tmp_path / "heads")
    broken = lively("esm3")
    with torch.no_grad():
        broken.module.output_heads["structure_head"][-1].bias[5] = torch.inf
    with pytest.raises(
        ExtractionError, match=r"trained: structure logits of protein P1 are NaN or infinite from layer 0"
    ):
        written(broken, tmp_path / "heads")
    with pytest.raises(ExtractionError, match=r"1 of 3 proteins have no structure: P2"):
        structure_heads.structure_heads(
            *(lively("saprot"), PROTEINS), output=tmp_path / "heads", model_id="toy", nulls=[TRAINED], views=[MASKED],
            seed=0, conditions=["seq", "struct"], structures={k: v for k, v in STRUCTURES.items() if k != "P2"},
            log=LOG,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_coordinates_alone_is_measured_without_a_truth(tmp_path):
    adapter = lively("esm3")
    alone = {name: replace(one, codes=None) for name, one in STRUCTURES.items()}
    structure_heads.structure_heads(
        *(adapter, PROTEINS), output=tmp_path / "heads", model_id="toy", nulls=[TRAINED], views=[MASKED], seed=0,
        conditions=CONDITIONS, structures=alone, log=LOG,
    )  # fmt: skip
    rows, vectors = rows_of(tmp_path / "heads", STRUCTURE_KEYS)
    assert set(rows["true_class"]) == {-1} and np.isnan(vectors[..., OF["nll"]]).all()
    assert (rows["is_shown"] == (rows["condition"] != "seq")).all(), "coordinates show it, too"


def test_codes_that_are_known_but_not_shown_are_the_truth_still(tmp_path):
    adapter = lively("esm3")
    adapter.showing = Showing(parts=("coordinates",), is_compared=True)
    rows, _ = written(adapter, tmp_path / "heads", views=[MASKED])
    assert (rows["true_class"] >= 0).all()
    assert (rows["is_shown"] == (rows["condition"] != "seq")).all()


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    registry.save(registry.build("saprot", {"n_blocks": 2, "d_model": 16, "n_heads": 2}), folder / "model")
    write_text(json.dumps(describe("tiny", "saprot", folder / "model")), folder / "card.json")
    ids, sequences = zip(*PROTEINS)
    lengths = [len(s) for s in sequences]
    shard = {"sequence_id": ids, "sequence_hash": ids, "rank": range(3), "n_residues": lengths, "sequence": sequences}
    write_table({name: list(values) for name, values in shard.items()}, SEQUENCES, folder / "sample.parquet")
    tables = [backbone(name, s, states=STRUCTURES[name].three_di.upper().replace("#", "-")) for name, s in PROTEINS]
    write(folder / "backbone.parquet", *tables)
    return folder, {
        "--card": folder / "card.json",
        "--sequences": folder / "sample.parquet",
        "--nulls": '[{"null_model": "trained", "seed": -1}]',
        "--inputs": '{"mlm": {"noise": [0.3], "draws": 1, "clean": true}}',
        "--conditions": '["seq", "seq_struct", "struct"]',
        "--backbone": folder / "backbone.parquet",
        "--seed": 0,
        "--device": "cpu",
    }


def call(options, output):
    structure_heads.main([str(part) for option in {**options, "--output": output}.items() for part in option])
    return rows_of(output, STRUCTURE_KEYS)


def test_the_stage_measures_its_ranks_and_says_what_it_was(stage, tmp_path):
    folder, options = stage
    whole, numbers = call(options, tmp_path / "whole")
    part, some = call({**options, "--first": 1, "--last": 3}, tmp_path / "part")
    assert set(whole["sequence_id"]) == {"P0", "P1", "P2"} and set(part["sequence_id"]) == {"P1", "P2"}
    keep = whole["sequence_id"].is_in(["P1", "P2"])
    assert part.equals(whole.filter(keep), null_equal=True)
    np.testing.assert_allclose(some, numbers[:, keep.to_numpy()], rtol=1e-3, atol=1e-5)
    constants = VectorTable(tmp_path / "whole", STRUCTURE_KEYS).constants
    assert (constants["readout"], constants["n_classes"]) == ("struct", 20)
    assert read_table(folder / "sample.parquet", SEQUENCES).num_rows == 3


def test_the_stage_refuses_what_it_cannot_read(stage, tmp_path):
    _, options = stage
    with pytest.raises(SystemExit, match="none with a structure is left for saprot; expected seq_struct or struct"):
        call({**options, "--conditions": '["seq"]'}, tmp_path / "heads")
    with pytest.raises(SystemExit, match="expected 0 <= first < last"):
        call({**options, "--first": 3, "--last": 3}, tmp_path / "heads")
    assert list(tmp_path.iterdir()) == []
