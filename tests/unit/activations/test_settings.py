"""Settings of a stage as one JSON object."""

import json
from dataclasses import dataclass

import pytest

from plm_depth.activations.settings import SettingsError, check_counts, check_names, check_switches, read_settings


@dataclass(frozen=True)
class Some:
    names: tuple[str, ...] = ("a", "b")
    steps: int = 4
    strict: bool = False

    def __post_init__(self) -> None:
        check_names(self, "--some", names=("a", "b", "c"))
        check_counts(self, "--some", steps=2)
        check_switches(self, "--some", "strict")


def test_what_is_not_given_has_the_defaults_and_lists_become_tuples():
    assert read_settings(Some, "{}", "--some") == Some()
    given = {"names": ["c"], "steps": 2, "strict": True}
    assert read_settings(Some, json.dumps(given), "--some") == Some(("c",), 2, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "--some: expected a JSON object with keys among names, steps, strict, got '{'"),
        ("[1]", r"got '\[1\]' \(keys list\)"),
        ('{"step": 2}', r"\(keys \['step'\]\)"),
        ('{"steps": NaN}', "NaN is no JSON"),
        ("[" * 9999, "nested too deeply"),
        ('{"names": "a"}', "names is not a list"),
        ('{"names": []}', r"--some: names is \[\]; expected at least one of a, b, c, none twice"),
        ('{"names": ["d"]}', r"names is \['d'\]"),
        ('{"names": [["a"]]}', r"names is \[\['a'\]\]"),
        ('{"names": ["a", "a"]}', "none twice"),
        ('{"steps": 1}', "--some: steps is 1; expected a whole number from 2 on"),
        ('{"steps": 2.0}', "steps is 2.0"),
        ('{"steps": true}', "steps is True"),
        ('{"steps": [2]}', r"steps is \[2\]"),
        ('{"strict": 1}', "--some: strict is 1; expected true or false"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_was_expected(text, message):
    with pytest.raises(SettingsError, match=message):
        read_settings(Some, text, "--some")
