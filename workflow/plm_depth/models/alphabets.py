"""Residues to token ids by our own tables: no tokenizer of a hub is asked, none can merge or drop a letter."""

from collections.abc import Mapping, Sequence

import numpy as np

from plm_depth.tables import AMINO_ACIDS

# Token texts of ESM-2 in id order, shared by ESM-1b, ESM-1v and DPLM.
ESM_TOKENS = (
    "<cls>", "<pad>", "<eos>", "<unk>",
    *"LAGVSERTIDPKQNFYMHWC", *"XBUZO", ".", "-", "<null_1>", "<mask>",
)  # fmt: skip
ESMC_TOKENS = tuple("|" if text == "<null_1>" else text for text in ESM_TOKENS)  # ESM C and ESM3: a chain break
PROGEN2_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>", "1", "2", *"ABCDEFGHIKLMNOPQRSTUVWXYZ")
PROGEN3_TOKENS = (
    *("<pad>", "<bos>", "<eos>", "<bos_glm>", "<eos_span>", "<mask>", "1", "2"),
    *"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    *(f"<span_{i}>" for i in range(100)),
)
PROTBERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO")

ESM_RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO"
PROGEN2_RESIDUES = "ABCDEFGHIKLMNOPQRSTUVWXYZ"  # no J
PROTBERT_RESIDUES = "LAGVESIKRDTPNQFYMHCWXUBZO"
PROGEN3_RESIDUES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Alphabet:
    """Ids of the residues that a family can read.

    Args:
        tokens: token texts in id order.
        residues: those of one letter that may stand in a sequence.
        read_as: by letter, the text of the token of a residue that has none of its own name.
    """

    def __init__(self, tokens: Sequence[str], residues: str, read_as: Mapping[str, str] | None = None):
        self.tokens, self.residues = tuple(tokens), residues
        ids: Mapping[str, int] = {text: number for number, text in enumerate(tokens)}
        self.id_of = ids
        self._table = np.full(128, -1, np.int64)
        for letter in residues:
            self._table[ord(letter)] = ids[(read_as or {}).get(letter, letter)]

    @property
    def amino_acids(self) -> np.ndarray:
        """Return the ids of AMINO_ACIDS in that order, (20,) int64."""
        return self.encode(AMINO_ACIDS)

    @property
    def vocabulary(self) -> dict[int, str]:
        """Return the text of every token by its id, in id order."""
        return dict(enumerate(self.tokens))

    def encode(self, sequence: str) -> np.ndarray:
        """Return one id a residue, (n_residues,) int64, of a sequence whose letters were checked.

        Raises:
            ValueError: a letter that is not in ``residues``, so that no position can ever shift.
        """
        ids = self._table[np.frombuffer(sequence.encode("ascii"), np.uint8)]
        if len(ids) != len(sequence) or (ids < 0).any():
            raise ValueError(f"a letter of {sequence!r} is not one of {self.residues}; check the sequence first")
        return ids
