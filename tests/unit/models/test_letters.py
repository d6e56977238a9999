"""What is said of odd letters is what the adapters do with them."""

import numpy as np
import pytest

from adapters.test_adapter_contract import FAMILIES as TESTED
from plm_depth.models import registry
from plm_depth.models.base import SequenceError
from plm_depth.models.letters import AS_X, ODD, OWN, REFUSED, policies
from plm_depth.models.registry import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_policy_of_a_family_is_what_its_adapter_does(family):
    adapter = registry.build(family, TESTED[family].sizes)
    said = policies([family])

    def read(letter: str) -> np.ndarray | None:
        try:
            return adapter.encode(f"MKVLA{letter}TTGA", direction=adapter.directions[0]).ids
        except SequenceError:
            return None

    for letter in ODD:
        ids = read(letter)
        if ids is None:
            found = REFUSED
        elif letter != "X" and np.array_equal(ids, read("X")):
            found = AS_X
        else:
            found = OWN
        assert said[letter] == {found: [family]}, letter


def test_families_stand_together_by_what_they_do_each_once():
    assert policies(["esm2", "progen2", "esm2", "protbert", "progen3"])["U"] == {
        OWN: ["esm2", "progen2", "progen3"],
        AS_X: ["protbert"],
    }
    with pytest.raises(KeyError):
        policies(["esm9"])
