"""How structures are shown is one setting of a model, the same under all conditions and in all stages."""

import argparse
import logging

import numpy as np
import pytest

from plm_depth.activations import door
from plm_depth.activations.extract import item_of
from plm_depth.models import registry
from plm_depth.models.base import Showing, Structure
from plm_depth.tables import AMINO_ACIDS
from plm_depth.views import View

LOG = logging.getLogger("test")
SEQUENCE = "MKTAYIAKQR"
MASKED = View("none", 0.3, 0)
COORDINATES = np.arange(len(SEQUENCE) * 9, dtype=np.float32).reshape(-1, 3, 3)
STRUCTURE = Structure(three_di="acdefghikl", codes=np.arange(len(SEQUENCE)), coordinates=COORDINATES)
SIZES = {
    "dplm2": {"n_blocks": 1, "d_model": 16, "n_heads": 2},
    "saprot": {"n_blocks": 1, "d_model": 16, "n_heads": 2},
    "esm3": {"n_blocks": 1, "d_model": 64, "n_heads": 1},
}


def model(family: str, **showing):
    adapter = registry.build(family, SIZES[family], seed=0)
    adapter.showing = Showing(**showing)
    return adapter


def shown(adapter, condition: str):
    structure = STRUCTURE.only(adapter.showing.parts) if condition != "seq" else None
    return item_of(adapter, "P", SEQUENCE, MASKED, seed=0, condition=condition, structure=structure).tokens


def test_beside_other_conditions_the_sequence_alone_has_the_same_tokens_but_for_the_structure():
    adapter = model("dplm2", is_compared=True)
    alone, both = shown(adapter, "seq"), shown(adapter, "seq_struct")
    assert alone.n_tokens == both.n_tokens == 2 * (len(SEQUENCE) + 2)
    differs = np.flatnonzero(alone.ids != both.ids)
    np.testing.assert_array_equal(differs, both.structure_tokens)
    assert set(alone.ids[differs]) == {adapter.alphabet.id_of["<mask_struct>"]}
    np.testing.assert_array_equal(alone.residue_tokens, both.residue_tokens)
    assert shown(model("dplm2"), "seq").n_tokens == len(SEQUENCE) + 2, "alone it is run as its authors run it"


@pytest.mark.parametrize("family", ["dplm2", "saprot", "esm3"])
def test_the_structure_of_a_masked_residue_is_kept_or_hidden_for_all_stages_at_once(family):
    adapter = model(family)
    kept = shown(adapter, "seq_struct")
    adapter.showing = Showing(struct_at_mask="hide")
    hidden = shown(adapter, "seq_struct")
    at = np.flatnonzero(kept.masked)
    assert len(at) == 3
    if family == "esm3":
        track = hidden.extra["structure_tokens"] != kept.extra["structure_tokens"]
        np.testing.assert_array_equal(np.flatnonzero(track) - 1, at)
        assert np.isnan(hidden.extra["structure_coords"][1 + at]).all()
    elif family == "dplm2":
        np.testing.assert_array_equal(np.flatnonzero(kept.ids != hidden.ids), kept.structure_tokens[at])
    else:
        assert set(hidden.ids[hidden.residue_tokens[at]]) == {adapter.mask_id}
        assert adapter.mask_id not in kept.ids


def test_tokens_and_frames_of_esm3_are_shown_apart_or_together():
    both, codes, frames = (
        shown(model("esm3", parts=parts), "seq_struct").extra
        for parts in (("codes", "coordinates"), ("codes",), ("coordinates",))
    )
    assert "structure_coords" not in codes and "structure_coords" in frames
    np.testing.assert_array_equal(codes["structure_tokens"], both["structure_tokens"])
    np.testing.assert_array_equal(frames["structure_coords"], both["structure_coords"])
    assert len(set(frames["structure_tokens"][1:-1].tolist())) == 1, "no code is told"


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    door.add_structure_options(parser)
    return parser.parse_args(words)


def test_the_options_of_a_stage_tell_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(door, "read_structures", lambda path, sequences, *, codes, log: {"P": STRUCTURE})
    adapter = model("esm3")
    words = ["--conditions", '["seq", "seq_struct"]', "--backbone", str(tmp_path / "b"), "--struct-at-mask", "hide"]
    conditions, found = door.shown_by(
        options(*words, "--structure-parts", "coordinates"), adapter, [("P", SEQUENCE)], LOG
    )
    assert conditions == ["seq", "seq_struct"]
    assert adapter.showing == Showing("hide", ("coordinates",), is_compared=True)
    ready = door.with_structures(adapter, [("P", SEQUENCE)], found)["P"]
    assert ready.codes is None and ready.coordinates is not None
    alone = model("esm3")
    assert door.shown_by(options(), alone, [("P", SEQUENCE)], LOG) == (["seq"], {}) and alone.showing == Showing()


def test_a_family_that_reads_none_of_the_parts_shown_keeps_the_sequence(tmp_path, caplog):
    adapter = model("saprot")
    words = ["--conditions", '["seq", "seq_struct"]', "--backbone", str(tmp_path), "--structure-parts", "coordinates"]
    assert door.shown_by(options(*words), adapter, [("P", SEQUENCE)], LOG) == (["seq"], {})
    assert "reads three_di of a structure, only coordinates are at hand" in caplog.text
    assert set(SEQUENCE) <= set(AMINO_ACIDS)
