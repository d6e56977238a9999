"""JSON from a command line or a small file: what every stage reads its structured options with."""

import json

SHOWN = 200  # characters of a wrong text that a message repeats


def parse(text: str) -> object:
    """Return what a JSON text says.

    Raises:
        json.JSONDecodeError: no JSON, or what Python would take for it: NaN, infinities, nesting beyond its stack.
    """

    def refuse(word: str) -> None:
        raise json.JSONDecodeError(f"{word} is no JSON", text, max(text.find(word), 0))

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text, 0) from None


def shown(text: str) -> str:
    """Return a text as a message repeats it: quoted, and cut where it is long."""
    return repr(text) if len(text) <= SHOWN else f"{text[:SHOWN]!r}... ({len(text)} characters)"
