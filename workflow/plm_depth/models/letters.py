"""How each family reads the letters beside the 20 amino acids: plain words, so that nothing of torch is imported.

What an adapter refuses ends its stage with the protein's name; a data set drawn from FASTA holds none of these letters
(``plm_depth.sequences.sample`` leaves such records out and counts them), a protein given in another way may.
"""

from plm_depth.models.registry import FAMILIES

ODD = "BJOUXZ"
OWN, AS_X, REFUSED = "own token", "as X", "refused"
_USUAL = {**dict.fromkeys("BOUXZ", OWN), "J": REFUSED}
_OTHERS = {
    "protbert": {**_USUAL, **dict.fromkeys("BOUZ", AS_X)},  # as its authors prepare their sequences
    "saprot": {**_USUAL, **dict.fromkeys("BOUZ", AS_X)},  # an unknown amino acid, "#"
    "progen3": dict.fromkeys(ODD, OWN),
    "protgpt2": dict.fromkeys(ODD, OWN),  # pieces of several letters
}


def policies(families: list[str]) -> dict[str, dict[str, list[str]]]:
    """Return, for each odd letter, the families that read it by its own token, as X, or refuse it.

    Raises:
        KeyError: an unknown family.
    """
    unique = list(dict.fromkeys(families))
    for family in unique:
        FAMILIES[family]
    read = {family: _OTHERS.get(family, _USUAL) for family in unique}
    return {
        letter: {
            how: [family for family in unique if read[family][letter] == how]
            for how in (OWN, AS_X, REFUSED)
            if any(read[family][letter] == how for family in unique)
        }
        for letter in ODD
    }
