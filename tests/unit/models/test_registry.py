"""The registry says of each family what its class says."""

import pytest

from plm_depth.models.registry import FAMILIES, adapter_class


@pytest.mark.parametrize("family", FAMILIES)
def test_the_objective_of_an_entry_is_that_of_its_class(family):
    assert FAMILIES[family].objective == adapter_class(family).objective
    assert adapter_class(family).family == family
