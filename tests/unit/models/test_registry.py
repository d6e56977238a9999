"""The registry says of each family what its class says."""

import pytest

from plm_depth.conditions import CONDITIONS
from plm_depth.models.registry import FAMILIES, adapter_class, build, save


@pytest.mark.parametrize("family", FAMILIES)
def test_the_objective_of_an_entry_is_that_of_its_class(family):
    assert FAMILIES[family].objective == adapter_class(family).objective
    assert adapter_class(family).family == family


@pytest.mark.parametrize("family", FAMILIES)
def test_what_an_entry_reads_of_a_structure_is_what_its_class_reads_and_goes_with_its_conditions(family):
    there = adapter_class(family)
    assert FAMILIES[family].reads_structure == there.reads_structure
    assert FAMILIES[family].tokens_are_residues == there.tokens_are_residues
    assert bool(there.reads_structure) == (there.conditions == CONDITIONS)


def test_a_model_in_another_precision_is_not_saved(tmp_path):
    adapter = build("esm2", {"n_blocks": 1, "d_model": 16, "n_heads": 2})
    adapter.dtype = "bfloat16"
    with pytest.raises(ValueError, match="this model is bfloat16; load it in float32 to save it"):
        save(adapter, tmp_path / "new")
    assert not (tmp_path / "new").exists()
