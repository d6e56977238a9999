"""The key columns that every table of the activations room has."""

from types import SimpleNamespace

from planted import toy
from plm_depth.activations import keys
from plm_depth.activations.nulls import Null
from plm_depth.tables import COMMON, PER_SEQUENCE
from plm_depth.views import View


def test_the_rows_of_a_protein_have_every_key_column_once():
    protein = SimpleNamespace(sequence_id="P1", sequence="MKV")
    found = keys.of_protein(toy(), "m", Null("randinit", 3), View("none", 0.3, 1), protein, "struct")
    assert set(found) == {*COMMON, *PER_SEQUENCE}
    assert found["model_id"] == "m" and (found["null_model"], found["null_seed"]) == ("randinit", 3)
    assert (found["condition"], found["direction"], found["noise_t"], found["mask_draw"]) == ("struct", "none", 0.3, 1)
    assert (found["sequence_id"], found["n_residues"]) == ("P1", 3)
