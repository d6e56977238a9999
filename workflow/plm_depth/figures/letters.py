"""Letters beside the 20 amino acids, as a table of the report; ``records`` writes it beside its own."""

import argparse
import json
from collections.abc import Mapping, Sequence

import polars as pl

from plm_depth import json_text

MEANINGS = {
    "B": "aspartate or asparagine",
    "J": "leucine or isoleucine",
    "O": "pyrrolysine",
    "U": "selenocysteine",
    "X": "unknown",
    "Z": "glutamate or glutamine",
    "*": "stop within the sequence",
    "-": "gap",
    ".": "gap",
    "lower case": "soft masking",
    "stop": "* at the end",
}
_STRUCTURE_COUNTS = {
    "n_modified": ("modified residues", "such as selenomethionine", "read as their parent"),
    "n_unknown": ("X", "residues without a known parent", "kept as X; left out of data sets"),
    "n_mismatched": ("another residue", "coordinates of another amino acid than the sequence", "sequence kept"),
}


def by_letter(
    sources: Mapping[str, pl.DataFrame],
    structures: pl.DataFrame | None,
    policies: Mapping[str, Mapping[str, Sequence[str]]],
) -> pl.DataFrame:
    """Return one row for each source and letter: records, letters, what became of them, and what the models would do.

    A letter that no source holds has its row, too, so that its policy can be read.

    Args:
        sources: LETTERS tables by what they are of.
        structures: a STRUCTURES table, None without one.
        policies: letter -> how it is read -> families.
    """
    rows = []
    for source, letters in sources.items():
        found = {row["letter"]: row for row in letters.iter_rows(named=True)}
        for letter in dict.fromkeys([*policies, *found]):
            row = found.get(letter, {"n_records": 0, "n_letters": 0, "fate": "left out"})
            read = "; ".join(f"{how}: {', '.join(names)}" for how, names in policies.get(letter, {}).items())
            rows.append(
                (source, letter, MEANINGS.get(letter, ""), row["n_records"], row["n_letters"], row["fate"], read)
            )
    if structures is not None:
        for column, (letter, meaning, fate) in _STRUCTURE_COUNTS.items():
            counts = structures[column]
            rows.append(("structures", letter, meaning, int((counts > 0).sum()), int(counts.sum()), fate, ""))
    names = (
        "source",
        "letter",
        "meaning",
        "n_records",
        "n_letters",
        "what became of it",
        "how the families would read it",
    )
    return pl.DataFrame(rows, schema=names, orient="row")


def policies_option(text: str) -> dict[str, dict[str, list[str]]]:
    """Return the policies of the models' families, a JSON object of objects of lists."""
    try:
        found = json_text.parse(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{json_text.shown(text)} is not JSON ({error}); expected an object") from None
    objects = isinstance(found, dict) and all(isinstance(ways, dict) for ways in found.values())
    if not objects or not all(isinstance(names, list) for ways in found.values() for names in ways.values()):
        raise argparse.ArgumentTypeError(f'{json_text.shown(text)}; expected {{"U": {{"own token": ["esm2"]}}}}')
    return found
