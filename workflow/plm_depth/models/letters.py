"""How each family reads the letters beside the 20 amino acids: plain words, so that nothing of torch is imported.

What an adapter refuses ends its stage with the protein's name; a data set drawn from FASTA holds none of these letters
(``plm_depth.sequences.sample`` leaves such records out and counts them), a protein given in another way may.
"""

from plm_depth.models.registry import FAMILIES, Entry

ODD = "BJOUXZ"
OWN, AS_X, REFUSED = "own token", "as X", "refused"


def policies(families: list[str]) -> dict[str, dict[str, list[str]]]:
    """Return, for each odd letter, the families that read it by its own token, as X, or refuse it.

    Raises:
        KeyError: an unknown family.
    """
    unique = list(dict.fromkeys(families))
    read = {letter: {family: _how(FAMILIES[family], letter) for family in unique} for letter in ODD}
    return {
        letter: {
            how: [family for family in unique if by_family[family] == how]
            for how in (OWN, AS_X, REFUSED)
            if how in by_family.values()
        }
        for letter, by_family in read.items()
    }


def _how(entry: Entry, letter: str) -> str:
    if letter in entry.refused:
        return REFUSED
    return AS_X if letter in entry.as_x else OWN
