"""SaProt: the network of ESM-2 over joint (amino acid, 3Di) tokens, read out as amino acids.

A residue is one token: its amino acid and the 3Di state of its structure, "#" where either is unknown. The read-out of
this adapter sums the probability of an amino acid over its 21 tokens, as the family scores: the column of ``A#`` holds
the log-sum-exp over ``A`` with any state, so a softmax over ``vocabulary`` gives the family's probabilities of amino
acids. ``native_logits`` are the 446 joint ones.

The structure head is the other marginal: the probability of a state, summed over all letters, "#" among them. As a
state "#" says that nobody knows the structure, which no residue's structure is: it is no class, and the probabilities
of the 20 states are those given that the state is known.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from plm_depth.models import checkpoints
from plm_depth.models.alphabets import ESM_RESIDUES, Alphabet
from plm_depth.models.base import Batch, CheckpointError, SequenceError, Structure, Tokens
from plm_depth.models.esm import Esm, fair_esm_file, hub_name

SPECIALS = ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>")
LETTERS = "ACDEFGHIKLMNPQRSTVWY#"  # "#": amino acid hidden
STATES = "pynwrqhgdlvtmfsaeikc#"  # "#": structure unknown
UNKNOWN = str.maketrans("XBUZO", "#####")
STATELESS = {letter: f"{letter.translate(UNKNOWN)}#" for letter in ESM_RESIDUES + "#"}  # tokens without a state
TOKENS = (*SPECIALS, *(letter + state for letter in LETTERS for state in STATES))


class SaProt(Esm):
    """SaProt 35M, 650M and 1.3B; hub folders, and the plain dict ``.pt`` in fair-esm's names."""

    family = "saprot"
    objective = "mlm"
    layouts = ("hub", "fair_esm")
    conditions = ("seq", "seq_struct", "struct")
    reads_structure = ("three_di",)
    structure_classes = tuple(STATES[:-1])
    alphabet: ClassVar[Alphabet] = Alphabet(TOKENS, ESM_RESIDUES + "#", read_as=STATELESS)
    weights_name = "pytorch_model.bin"
    stores_tied_decoder = True
    dropout = 0.1

    def __init__(self, module: torch.nn.Module, dtype: str = "float32"):
        super().__init__(module, dtype)
        id_of = self.alphabet.id_of
        self.vocabulary = {id_of[text]: text for text in SPECIALS}
        self.vocabulary.update({id_of[f"{letter}#"]: letter for letter in LETTERS})

    def encode(
        self,
        sequence: str,
        *,
        masked: np.ndarray | None = None,
        direction: str = "none",
        structure: Structure | None = None,
        condition: str = "seq",
        struct_at_mask: str | None = None,
    ) -> Tokens:
        """Return ``<cls>``, one joint token a residue, ``<eos>``.

        Args:
            sequence: residues; there is no token for X, B, U, Z and O, which are shown as "#", an unknown amino acid.
            masked: residues to hide.
            direction: "none".
            structure: its ``three_di``, for the conditions with structure.
            condition: "seq" (every state "#"), "seq_struct", or "struct" (every amino acid "#").
            struct_at_mask: "keep" shows a hidden residue as ``#`` with its state, as the family's zero-shot code does
                (``##`` under "seq", so that conditions differ in the states alone); "hide" shows it as ``<mask>``, a
                zero vector at layer 0; None: as ``showing`` says.
        Raises:
            SequenceError: see ``Adapter.encode``; a condition without its structure.
        """
        self.check_direction(direction)
        self.check_sequence(sequence, self.alphabet.residues)
        masked, _ = self.check_shown(
            sequence, masked=masked, structure=structure, condition=condition, struct_at_mask=struct_at_mask
        )
        states = "#" * len(sequence) if condition == "seq" else structure.three_di
        for position, state in enumerate(states):
            if state not in STATES:
                raise SequenceError(f"3Di state {state!r} at position {position} is not one of {STATES} (lower case)")
        letters = "#" * len(sequence) if condition == "struct" else sequence.translate(UNKNOWN)
        id_of = self.alphabet.id_of
        residues = np.array([id_of[letter + state] for letter, state in zip(letters, states, strict=True)])
        if condition == "struct":
            pass  # all amino acids are hidden already
        elif (struct_at_mask or self.showing.struct_at_mask) == "hide":
            residues[masked] = self.mask_id
        else:
            residues[masked] = [id_of["#" + states[position]] for position in np.flatnonzero(masked)]
        return Tokens.framed(id_of["<cls>"], residues, id_of["<eos>"], masked, direction)

    def parse(self, protein: str) -> tuple[str, dict[str, object]]:
        """Return sequence and structure of a joint string: an amino acid and a 3Di state in turn. Masks hide both."""
        structure = Structure(three_di=protein[1::2])
        return protein[::2], {"structure": structure, "condition": "seq_struct", "struct_at_mask": "hide"}

    def native_logits(self, stream: Tensor) -> Tensor:
        return super().read_out(stream)

    def read_out(self, stream: Tensor) -> Tensor:
        return merged(self.native_logits(stream))

    def read_out_structure(self, stream: Tensor) -> Tensor:
        joint = self.native_logits(stream)[..., len(SPECIALS) :].unflatten(-1, (len(LETTERS), len(STATES)))
        return joint[..., : len(self.structure_classes)].logsumexp(-2)

    def true_structure(self, structure: Structure, n_residues: int) -> np.ndarray:
        states = "#" * n_residues if structure.three_di is None else structure.three_di
        return np.array([self.structure_classes.index(state) if state != "#" else -1 for state in states])

    def library_logits(self, batch: Batch) -> Tensor:
        return merged(super().library_logits(batch))

    @classmethod
    def from_fair_esm(cls, path: Path) -> tuple[dict[str, object], dict[str, Tensor], Path]:
        whole = checkpoints.unpickle(path)
        if not isinstance(whole, Mapping) or not {"model", "config"} <= set(whole):
            raise CheckpointError(f"{path}: a dict with 'model' and 'config' was expected")
        sizes, tensors = whole["config"], checkpoints.check_flat(whole["model"], path)
        config = {
            **cls.template(),
            "hidden_size": checkpoints.setting(sizes, path, "embed_dim"),
            "num_hidden_layers": checkpoints.setting(sizes, path, "num_layers"),
            "num_attention_heads": checkpoints.setting(sizes, path, "attention_heads"),
            "intermediate_size": checkpoints.shape_of(tensors, "layers.0.fc1.weight", 2, path)[0],
            "token_dropout": checkpoints.setting(sizes, path, "token_dropout"),
        }
        return config, {hub_name(name, path): value for name, value in tensors.items()}, path

    @classmethod
    def files(cls, folder: Path, layout: str | None = None) -> list[Path]:
        if cls.layout_of(folder, layout) == "fair_esm":
            return [fair_esm_file(folder)]
        return super().files(folder, layout)


def merged(logits: Tensor) -> Tensor:
    """Return joint logits (..., 446) with each amino acid's 21 summed into the column of its ``A#``.

    Columns that were summed away hold the lowest number of the dtype, so that they add nothing to a softmax.
    """
    first, n_states = len(SPECIALS), len(STATES)
    groups = logits[..., first:].unflatten(-1, (len(LETTERS), n_states))
    out = torch.full_like(logits, torch.finfo(logits.dtype).min)
    out[..., :first] = logits[..., :first]
    out[..., first + n_states - 1 :: n_states] = groups.logsumexp(-1)
    return out
