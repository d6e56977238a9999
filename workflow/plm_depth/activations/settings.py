"""The settings of a stage as one JSON object: read into a frozen dataclass whose defaults say what each is.

A settings class calls the checks in its ``__post_init__``; their messages name the option and the setting.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

from plm_depth import json_text

T = TypeVar("T")


class SettingsError(ValueError):
    """Settings that cannot be: what was expected, what came and the mend."""


def read_settings(kind: type[T], text: str, option: str) -> T:
    """Return the settings of a JSON object; keys that are not given have the defaults of ``kind``.

    Args:
        kind: a dataclass. A setting whose default is a tuple is a list in JSON.
        option: that the text came with, for messages.
    Raises:
        SettingsError: not JSON, an unknown key or a value that is not possible.
    """
    defaults = {one.name: one.default for one in fields(kind)}
    try:
        given = json_text.parse(text)
        if not isinstance(given, dict) or not set(given) <= set(defaults):
            raise ValueError(f"keys {sorted(given) if isinstance(given, dict) else type(given).__name__}")
        for name in (name for name in given if isinstance(defaults[name], tuple)):
            if not isinstance(given[name], list):
                raise ValueError(f"{name} is not a list")
            given[name] = tuple(given[name])
    except ValueError as error:
        raise SettingsError(
            f"{option}: expected a JSON object with keys among {', '.join(defaults)}, got {json_text.shown(text)} "
            f"({error})"
        ) from error
    return kind(**given)


def check_names(settings: object, option: str, **known: Sequence[str]) -> None:
    """Refuse lists that do not hold at least one of the known names, none twice.

    Raises:
        SettingsError
    """
    for name, allowed in known.items():
        values = getattr(settings, name)
        if not values or any(value not in allowed for value in values) or len(set(values)) < len(values):
            raise SettingsError(
                f"{option}: {name} is {list(values)}; expected at least one of {', '.join(allowed)}, none twice"
            )


def check_counts(settings: object, option: str, **least: int) -> None:
    """Refuse what is no whole number, or below the least that it may be.

    Raises:
        SettingsError
    """
    for name, lowest in least.items():
        value = getattr(settings, name)
        if type(value) is not int or value < lowest:
            raise SettingsError(f"{option}: {name} is {value!r}; expected a whole number from {lowest} on")


def check_switches(settings: object, option: str, *names: str) -> None:
    """Refuse what is neither true nor false.

    Raises:
        SettingsError
    """
    for name in names:
        if not isinstance(getattr(settings, name), bool):
            raise SettingsError(f"{option}: {name} is {getattr(settings, name)!r}; expected true or false")
