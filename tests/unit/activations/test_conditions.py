"""The extraction pass under the conditions with structure."""

import hashlib
import json
import logging

import numpy as np
import polars as pl
import pytest
import torch

from plm_depth.activations import effects, extract
from plm_depth.activations.door import ExtractionError, conditions_for
from plm_depth.activations.extract import Files, item_of, measure
from plm_depth.activations.nulls import Null, shuffle_sequence, shuffled_order
from plm_depth.conditions import CONDITIONS
from plm_depth.models import registry
from plm_depth.models.base import SequenceError, Structure
from plm_depth.models.describe import describe
from plm_depth.models.structures import in_order
from plm_depth.randomness import generator
from plm_depth.tables import (
    AMINO_ACIDS,
    LENS_KEYS,
    MOMENT_KEYS,
    SEQUENCES,
    SKIP_OUT_SEQ,
    SKIP_SEQ,
    STREAM_KEYS,
    VectorTable,
    read_table,
    write_table,
    write_text,
)
from plm_depth.views import View, mask_of
from small_backbone import backbone, write

LOG = logging.getLogger("test")
TRAINED, UNTRAINED, SHUFFLED = Null("trained", -1), Null("randinit", 0), Null("shuffle_seq", 2)
CLEAN, MASKED = View("none", 0.0, -1), View("none", 0.3, 0)
STATES = "pynwrqhgdlvtmfsaeikc#"


def proteins_of(lengths):
    random = generator(0, "proteins")
    return [(f"P{i}", "".join(random.choice(list(AMINO_ACIDS), size=n))) for i, n in enumerate(lengths)]


PROTEINS = proteins_of([12, 20, 7])


def structure_for(sequence_id, sequence):
    random = generator(0, "structure", sequence_id)
    coordinates = np.cumsum(random.normal(size=(len(sequence), 3, 3)), axis=0).astype(np.float32) * 3
    three_di = "".join(random.choice(list(STATES), size=len(sequence)))
    codes = random.integers(0, 4096, size=len(sequence))
    return Structure(three_di=three_di, codes=codes, coordinates=coordinates)


STRUCTURES = {sequence_id: structure_for(sequence_id, sequence) for sequence_id, sequence in PROTEINS}


@pytest.fixture(scope="module", params=["saprot", "esm3", "dplm2"])
def adapter(request):
    return lively(request.param)


def lively(family):
    adapter = registry.build(family, {"n_blocks": 2, "d_model": 32, "n_heads": 2}, seed=1)
    with torch.no_grad():
        for parameter in adapter.module.parameters():
            parameter *= 4 if parameter.ndim > 1 else 1  # so that blocks do something
    return adapter


def files_in(folder):
    return Files(*(folder / f"{table}.parquet" for table in ("moments", "lens", "stream")))


def rows_of(path, keys):
    table = VectorTable(path, keys)
    frame = pl.from_arrow(table.keys()).with_columns(pl.col(pl.Categorical).cast(pl.String)).with_row_index("row")
    return frame, np.stack([table.layer(layer) for layer in table.layers], 1)


@pytest.fixture(scope="module")
def extracted(adapter, tmp_path_factory):
    """Keys and vectors of the three tables of one run over everything, by name."""
    files = files_in(tmp_path_factory.mktemp("extracted"))
    extract.extract(
        adapter,
        PROTEINS,
        files=files,
        model_id="toy",
        nulls=[TRAINED, UNTRAINED, SHUFFLED],
        views=[CLEAN, MASKED],
        seed=0,
        conditions=CONDITIONS,
        structures=STRUCTURES,
        log=LOG,
    )
    keys = {"moments": MOMENT_KEYS, "lens": LENS_KEYS, "stream": STREAM_KEYS}
    return {name: rows_of(getattr(files, name), schema) for name, schema in keys.items()}


def test_rows_carry_their_condition_and_are_those_of_each_protein_alone(adapter, extracted):
    frame, vectors = extracted["moments"]
    for null, condition in [(TRAINED, "seq"), (TRAINED, "seq_struct"), (TRAINED, "struct"), (SHUFFLED, "seq_struct")]:
        for sequence_id, sequence in PROTEINS:
            structure = STRUCTURES[sequence_id]
            if null is SHUFFLED:
                structure = in_order(structure, shuffled_order(len(sequence), 2, sequence_id))
                sequence = shuffle_sequence(sequence, 2, sequence_id)
            masked = mask_of(MASKED, len(sequence), 0, sequence_id)
            shown = {"structure": structure, "condition": condition, "struct_at_mask": "keep"}
            item = item_of(adapter, sequence_id, sequence, MASKED, seed=0, condition=condition, structure=structure)
            if condition != "seq":
                expected = adapter.encode(sequence, masked=masked, **shown)
                assert item.tokens.ids.tolist() == expected.ids.tolist()
            mine = frame.filter(
                (pl.col("sequence_id") == sequence_id)
                & (pl.col("condition") == condition)
                & (pl.col("null_model") == null.null_model)
                & (pl.col("mask_draw") == 0)
            ).sort("position")
            alone = measure(adapter, [item]).moments.swapaxes(0, 1)
            assert len(mine) == item.tokens.n_tokens
            found = vectors[mine["row"].to_numpy()]
            assert (np.isnan(found) == np.isnan(alone)).all()
            scale = np.nan_to_num(np.abs(alone)).max(0)
            assert (np.nan_to_num(np.abs(found - alone)) <= 1e-4 * scale + 1e-6).all()


def test_the_same_positions_are_read_under_every_condition_and_none_of_a_structure_shown_alone_and_clean(extracted):
    frame, vectors = extracted["lens"]
    where = ["sequence_id", "null_model", "null_seed", "noise_t", "mask_draw", "position"]
    noisy = frame.filter(pl.col("noise_t") > 0)
    assert noisy.height > 0 and noisy["is_masked"].all()
    by_condition = [noisy.filter(condition=condition).sort(where).select(where) for condition in CONDITIONS]
    assert by_condition[0].height > 0
    assert all(one.equals(by_condition[0]) for one in by_condition)
    for sequence_id, sequence in PROTEINS:
        read = noisy.filter(sequence_id=sequence_id, null_model="trained", condition="struct")["position"]
        assert sorted(read) == np.flatnonzero(mask_of(MASKED, len(sequence), 0, sequence_id)).tolist()
    clean = frame.filter(pl.col("noise_t") == 0).group_by("condition").len()
    n_residues = 3 * sum(len(sequence) for _, sequence in PROTEINS)
    assert dict(clean.rows()) == {"seq": n_residues, "seq_struct": n_residues}
    # Conditions are different inputs: the last layer says something else.
    trained = frame.filter(pl.col("noise_t") > 0, null_model="trained").sort(where)
    rows = [vectors[trained.filter(condition=condition)["row"].to_numpy(), -1] for condition in CONDITIONS]
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        assert np.abs(rows[one] - rows[other]).max() > 1e-4


def test_a_structure_shown_alone_hides_every_residue(extracted):
    frame, _ = extracted["moments"]
    classes = frame.filter(pl.col("pos_class") != "special").group_by("condition", "noise_t", "pos_class").len()
    found = {row[:3] for row in classes.with_columns(pl.col("noise_t").cast(pl.Float64).round(3)).rows()}
    shown = {(one, t, kind) for one in ("seq", "seq_struct") for t, kind in [(0.3, "masked"), (0.3, "unmasked")]}
    assert found == {
        *shown,
        *((condition, 0.0, "unmasked") for condition in ("seq", "seq_struct")),
        *(("struct", t, "masked") for t in (0.0, 0.3)),
    }


def test_the_stream_of_clean_inputs_is_kept_under_every_condition_at_the_same_anchors(extracted):
    frame, _ = extracted["stream"]
    assert set(frame["noise_t"]) == {0.0} and set(frame["null_model"]) == {"trained", "randinit"}
    where = ["sequence_id", "null_model", "position"]
    by_condition = [frame.filter(condition=condition).sort(where).select(where) for condition in CONDITIONS]
    assert by_condition[0].height > 0
    assert all(one.equals(by_condition[0]) for one in by_condition)


def test_rows_of_the_sequence_alone_do_not_depend_on_the_other_conditions(adapter, extracted, tmp_path):
    files = files_in(tmp_path)
    options = {"nulls": [TRAINED], "views": [CLEAN, MASKED], "seed": 0, "log": LOG}
    extract.extract(adapter, PROTEINS, files=files, model_id="toy", **options)
    frame, vectors = rows_of(files.moments, MOMENT_KEYS)
    every, every_vectors = extracted["moments"]
    every = every.filter(condition="seq", null_model="trained")
    assert frame.drop("row").equals(every.drop("row"))
    np.testing.assert_array_equal(vectors, every_vectors[every["row"].to_numpy()])
    assert "showing" not in VectorTable(files.moments, MOMENT_KEYS).constants


def test_a_protein_without_structure_is_named_and_nothing_is_written(adapter, tmp_path):
    files = files_in(tmp_path)
    some = {name: one for name, one in STRUCTURES.items() if name != "P1"}
    options = {"nulls": [TRAINED], "views": [MASKED], "seed": 0, "log": LOG, "conditions": ["seq", "seq_struct"]}
    with pytest.raises(ExtractionError, match=r"1 of 3 proteins have no structure: P1; conditions with structure need"):
        extract.extract(adapter, PROTEINS, files=files, model_id="toy", structures=some, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_structure_of_another_length_names_its_protein():
    with pytest.raises(SequenceError, match="protein P: 3 entries of three_di for 5 residues"):
        item_of(
            registry.build("saprot", {"n_blocks": 1, "d_model": 16, "n_heads": 2}),
            *("P", "MKTAY", MASKED),
            seed=0,
            condition="seq_struct",
            structure=Structure(three_di="dvp"),
        )


# ----------------------------------------------------------------------------------------------------------------
# Which conditions


BACKBONES = ("three_di", "coordinates")


@pytest.mark.parametrize(
    ("family", "tells", "kept", "said"),
    [
        ("saprot", BACKBONES, ["seq", "seq_struct", "struct"], []),
        ("esm3", BACKBONES, ["seq", "seq_struct", "struct"], []),
        ("saprot", (), ["seq"], ["reads three_di of a structure, no structure is at hand"]),
        ("dplm2", BACKBONES, ["seq"], ["reads codes of a structure, only three_di and coordinates are at hand"]),
        ("dplm2", ("codes",), ["seq", "seq_struct", "struct"], []),
        ("esm2", BACKBONES, ["seq"], ["condition seq_struct of esm2 left out: the family does not have it"]),
    ],
)
def test_a_condition_that_a_family_cannot_be_shown_is_left_out_and_logged(family, tells, kept, said, caplog):
    model = registry.build(family, {"n_blocks": 1, "d_model": 16, "n_heads": 2})
    with caplog.at_level(logging.WARNING):
        assert conditions_for(model, '["struct", "seq", "seq_struct"]', tells=tells, log=LOG) == kept
    assert len(caplog.records) == 3 - len(kept)
    assert all(text in caplog.text for text in said)


@pytest.mark.parametrize("text", ["[]", "seq", '"seq"', '["seq", "seq"]', '["seq", "fold"]', "{}", "[[]]"])
def test_a_list_of_conditions_that_is_none_is_refused(text):
    model = registry.build("saprot", {"n_blocks": 1, "d_model": 16, "n_heads": 2})
    with pytest.raises(ExtractionError, match="expected a JSON list of some of seq, seq_struct, struct, none twice"):
        conditions_for(model, text, tells=BACKBONES)


def test_nothing_left_to_measure_is_an_error():
    model = registry.build("dplm2", {"n_blocks": 1, "d_model": 16, "n_heads": 2})
    with pytest.raises(
        ExtractionError, match="none is left for dplm2, which has seq, seq_struct, struct and reads codes"
    ):
        conditions_for(model, '["struct"]', tells=BACKBONES)


# ----------------------------------------------------------------------------------------------------------------
# The stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Return the options of a run of a SaProt checkpoint on three proteins with structures."""
    folder = tmp_path_factory.mktemp("stage")
    registry.save(registry.build("saprot", {"n_blocks": 2, "d_model": 16, "n_heads": 2}), folder / "model")
    write_text(json.dumps(describe("tiny", "saprot", folder / "model")), folder / "card.json")
    ids, sequences = zip(*PROTEINS)
    shard = {
        "sequence_id": ids,
        "sequence_hash": [hashlib.sha256(s.encode()).hexdigest() for s in sequences],
        "rank": range(len(ids)),
        "n_residues": [len(s) for s in sequences],
        "sequence": sequences,
    }
    write_table({name: list(values) for name, values in shard.items()}, SEQUENCES, folder / "shard.parquet")
    write(folder / "some.parquet", backbone("P0", PROTEINS[0][1], states="D" * 12))
    tables = [backbone(name, s, states=STRUCTURES[name].three_di.upper().replace("#", "-")) for name, s in PROTEINS]
    write(folder / "backbone.parquet", *tables)
    return folder, {
        "--card": folder / "card.json",
        "--sequences": folder / "shard.parquet",
        "--nulls": '[{"null_model": "trained", "seed": -1}]',
        "--inputs": '{"mlm": {"noise": [0.3], "draws": 1, "clean": true}}',
        "--conditions": '["seq", "seq_struct", "struct"]',
        "--backbone": folder / "backbone.parquet",
        "--seed": 0,
        "--device": "cpu",
    }


def call(options, folder):
    files = files_in(folder)
    outputs = {"--moments": files.moments, "--lens": files.lens, "--stream": files.stream}
    extract.main([str(part) for option in (options | outputs).items() for part in option])
    return files


def test_the_stage_measures_every_condition_with_the_structures_of_the_table(stage, tmp_path, caplog):
    folder, options = stage
    files = call(options, tmp_path)
    frame, vectors = rows_of(files.moments, MOMENT_KEYS)
    assert set(frame["condition"]) == set(CONDITIONS)
    assert VectorTable(files.moments, MOMENT_KEYS).constants["showing"]["struct_at_mask"] == "keep"
    adapter = registry.load("saprot", folder / "model")
    items = [
        item_of(adapter, *pair, MASKED, seed=0, condition="seq_struct", structure=STRUCTURES[pair[0]])
        for pair in PROTEINS
    ]
    mine = frame.filter(condition="seq_struct", mask_draw=0).sort("sequence_id", "position")["row"].to_numpy()
    expected = measure(adapter, items).moments.swapaxes(0, 1)
    np.testing.assert_allclose(vectors[mine], expected, rtol=1e-4, atol=1e-5)


def test_the_stage_names_the_proteins_that_lack_a_structure(stage, tmp_path):
    folder, options = stage
    with pytest.raises(SystemExit, match="2 of 3 proteins have no structure: P1, P2"):
        call(options | {"--backbone": folder / "some.parquet"}, tmp_path)
    with pytest.raises(SystemExit, match=r"shard\.parquet: "):
        call(options | {"--backbone": folder / "shard.parquet"}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_table_of_backbones_the_stage_measures_the_sequence_alone(stage, tmp_path):
    _, options = stage
    files = call({k: v for k, v in options.items() if k != "--backbone"}, tmp_path)
    assert set(rows_of(files.moments, MOMENT_KEYS)[0]["condition"]) == {"seq"}


# ----------------------------------------------------------------------------------------------------------------
# Skip effects


def effects_in(folder, adapter, conditions, **options):
    skip, change = folder / "skip.parquet", folder / "change.parquet"
    effects.measure(
        adapter,
        PROTEINS,
        skip=skip,
        output_change=change,
        model_id="toy",
        nulls=options.pop("nulls", [TRAINED]),
        views=[MASKED],
        skips=effects.Skips(parts=("layer",), pos_sets=("all", "other"), local=False, draws=1),
        seed=0,
        conditions=conditions,
        structures=options.pop("structures", STRUCTURES),
        log=LOG,
    )
    return {
        name: pl.from_arrow(read_table(path, schema)).with_columns(pl.col(pl.Categorical).cast(pl.String))
        for name, path, schema in (("skip", skip, SKIP_SEQ), ("change", change, SKIP_OUT_SEQ))
    }


def test_skip_effects_under_a_condition_are_those_of_the_protein_shown_so(adapter, tmp_path):
    tables = effects_in(tmp_path, adapter, ["seq", "seq_struct"])
    for name, columns in (("skip", ["sum", "num"]), ("change", ["sum"])):
        by_condition = dict(tables[name].partition_by("condition", as_dict=True))
        assert set(by_condition) == {("seq",), ("seq_struct",)}
        alone, both = (by_condition[key].sort("sequence_id", maintain_order=True) for key in by_condition)
        assert alone.height == both.height
        for column in columns:
            assert alone[column].to_list() != both[column].to_list(), "the structure must matter"
    # By hand: silence block 1 at all residues of one protein that is shown with its structure.
    sequence_id, sequence = PROTEINS[0]
    masked = mask_of(MASKED, len(sequence), 0, sequence_id)
    shown = {"structure": STRUCTURES[sequence_id], "condition": "seq_struct", "struct_at_mask": "keep"}
    tokens = adapter.encode(sequence, masked=masked, **shown)
    updates = {}
    for silenced in (False, True):
        stream, context = adapter.embed(adapter.collate([tokens]))
        for block in (1, 2):
            update = adapter.updates(block, stream, context)
            updates[silenced, block] = update.total[0, tokens.residue_tokens]
            after = adapter.add(stream, update)
            if silenced and block == 1:
                after[0, tokens.residue_tokens] = stream[0, tokens.residue_tokens]
            stream = after
    clean, altered = updates[False, 2], updates[True, 2]
    expected = ((clean - altered).norm(dim=-1) / clean.norm(dim=-1)).sum().item()
    row = tables["skip"].filter(
        (pl.col("condition") == "seq_struct") & (pl.col("sequence_id") == sequence_id) & (pl.col("src") == 1)
        & (pl.col("pos_set") == "all")
    )  # fmt: skip
    assert row["sum"][0][1] == pytest.approx(expected, rel=1e-4)


def test_skip_effects_need_the_structure_of_every_protein(adapter, tmp_path):
    with pytest.raises(ExtractionError, match="1 of 3 proteins have no structure: P1"):
        effects_in(tmp_path, adapter, ["seq_struct"], structures={k: v for k, v in STRUCTURES.items() if k != "P1"})
    assert not list(tmp_path.iterdir())


def test_a_batch_may_hold_proteins_with_and_without_structures(adapter):
    (one, first), (_, second), _ = PROTEINS
    tokens = [
        adapter.encode(first, structure=STRUCTURES[one], condition="seq_struct"),
        adapter.encode(second),
    ]
    together = adapter.library_logits(adapter.collate(tokens))
    for row, mine in enumerate(tokens):
        alone = adapter.library_logits(adapter.collate([mine]))
        torch.testing.assert_close(together[row, : mine.n_tokens], alone[0], rtol=0, atol=1e-4)
