"""DPLM-2: DPLM over two tracks of equal length, structure codes then residues, each read out in its own.

The family's own wrapper embeds the tokens and hands tokens and embeddings to the network, which embeds again: token
dropout acts twice. When both tracks are there, each is rotated with the positions 0, 1, ... of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from plm_depth.models.alphabets import ESM_RESIDUES, ESM_TOKENS, Alphabet
from plm_depth.models.base import Batch, CheckpointError, SequenceError, Structure, Tokens
from plm_depth.models.esm import Esm

N_EMBEDDING_PASSES = 2  # of the family's wrapper; the network alone has one
N_CODES = 8192
SEQUENCE_TOKENS = ("<cls_aa>", "<pad>", "<eos_aa>", "<unk_aa>", *ESM_TOKENS[4:32], "<mask_aa>")
TOKENS = (
    *SEQUENCE_TOKENS,
    *("<cls_struct>", "<eos_struct>", "<unk_struct>"),
    *(f"{code:04d}" for code in range(N_CODES)),
    "<mask_struct>",  # 8228, the last row; the published tokenizer says 8229, which has no row
)
FIRST_CODE = TOKENS.index("0000")


class Dplm2(Esm):
    """DPLM-2 150M, 650M and 3B; the tokens are built by arithmetic, codes come precomputed."""

    family = "dplm2"
    objective = "diffusion"
    conditions = ("seq", "seq_struct", "struct")
    reads_structure = ("codes",)
    structure_classes = TOKENS[FIRST_CODE : FIRST_CODE + N_CODES]
    alphabet: ClassVar[Alphabet] = Alphabet(TOKENS, ESM_RESIDUES)
    frame = ("<cls_aa>", "<eos_aa>")
    mask_token = "<mask_aa>"
    architecture = "EsmForDPLM2"
    extra_config: ClassVar[Mapping[str, object]] = {"dplm_type": "dplm2_esm", "tie_word_embeddings": False}
    weights_name = "pytorch_model.bin"
    is_tied = False
    stores_positions = False
    dropout = 0.1
    max_residues = 512
    extra_padding: ClassVar[Mapping[str, float]] = {"position_ids": 0}

    def __init__(self, module: torch.nn.Module, dtype: str = "float32"):
        super().__init__(module, dtype)
        self.vocabulary = dict(enumerate(SEQUENCE_TOKENS))  # of the residues' track

    def encode(
        self,
        sequence: str,
        *,
        masked: np.ndarray | None = None,
        direction: str = "none",
        structure: Structure | None = None,
        condition: str = "seq",
        struct_at_mask: str | None = None,
        frame: str | None = None,
    ) -> Tokens:
        """Return ``<cls_aa>`` residues ``<eos_aa>``, with structure behind ``<cls_struct>`` codes ``<eos_struct>``.

        Args:
            sequence: residues.
            masked: residues to hide.
            direction: "none".
            structure: its ``codes``, for the conditions with structure; -1 is masked.
            condition: "seq", "seq_struct", or "struct" (every residue hidden).
            struct_at_mask: whether the code of a hidden residue is shown ("keep") or hidden too ("hide"); None: as
                ``showing`` says.
            frame: for "seq": "single" is the track of residues alone, as the family runs it; "joint" has a structure
                track of masks before it; None: joint where ``showing`` says that "seq" is compared.
        Raises:
            SequenceError: see ``Adapter.encode``; a condition without its structure, or a code that does not exist.
        """
        masked, hidden = self.check_shown(
            sequence, masked=masked, structure=structure, condition=condition, struct_at_mask=struct_at_mask
        )
        frame = frame or ("joint" if self.showing.is_compared else "single")
        if frame not in ("single", "joint"):
            raise SequenceError(f"frame {frame!r}; 'single' or 'joint'")
        alone = super().encode(sequence, masked=masked, direction=direction)
        positions = np.arange(alone.n_tokens)
        if condition == "seq" and frame == "single":
            return Tokens(alone.ids, alone.residue_tokens, alone.masked, direction, {"position_ids": positions})
        id_of, shown = self.alphabet.id_of, Structure() if condition == "seq" else structure
        track = shown.code_tokens(hidden, n_codes=N_CODES, mask=id_of["<mask_struct>"], first=FIRST_CODE)
        ids = np.concatenate([[id_of["<cls_struct>"]], track, [id_of["<eos_struct>"]], alone.ids])
        assert len(ids) == 2 * (len(sequence) + 2)
        extra = {"position_ids": np.concatenate([positions, positions])}
        own, other = alone.residue_tokens + alone.n_tokens, alone.residue_tokens
        return Tokens(ids, own, alone.masked, direction, extra, structure_tokens=other)

    def parse(self, protein: Mapping) -> tuple[str | None, dict[str, object]]:
        """Return sequence and arguments of ``encode`` of a row of tracks, one of which may be absent."""
        sequence = protein["sequence"]
        if sequence is None:
            return None, {}
        options: dict[str, object] = {"masked": np.isin(np.arange(len(sequence)), protein["masked_residues"])}
        if protein["structure_codes"] is not None:
            codes = np.array(protein["structure_codes"])
            codes[protein["masked_codes"]] = -1
            options.update(structure=Structure(codes=codes), condition="seq_struct")
        return sequence, options

    def batch_of(self, inputs: Mapping[str, Tensor]) -> Batch:
        batch = super().batch_of(inputs)
        return Batch(batch.ids, batch.valid, {"position_ids": inputs["position_ids"].long()})

    # --------------------------------------------------------------------------------------------------- walk

    def embedded(self, batch: Batch) -> Tensor:
        """Return h_0 after both embedding passes, (n_rows, n_tokens, d_model)."""
        embeddings, valid = self.module.esm.embeddings, batch.valid.long()
        stream = super().embedded(batch)
        for _ in range(N_EMBEDDING_PASSES - 1):
            stream = embeddings(input_ids=batch.ids, attention_mask=valid, inputs_embeds=stream)
        return stream

    def native_logits(self, stream: Tensor) -> Tensor:
        return super().read_out(stream)

    def read_out(self, stream: Tensor) -> Tensor:
        """Return the logits of the 33 tokens of the residues' track; those of the other would cost a block."""
        return self._logits_of(stream, slice(len(SEQUENCE_TOKENS)))

    def read_out_structure(self, stream: Tensor) -> Tensor:
        """Return the logits of the 8192 codes; to be read at the tokens of the structure's track."""
        return self._logits_of(stream, slice(FIRST_CODE, FIRST_CODE + N_CODES))

    def _logits_of(self, stream: Tensor, tokens: slice) -> Tensor:
        head = self.module.lm_head
        features = head.layer_norm(_gelu(head.dense(self.final_norm(stream))))
        return torch.nn.functional.linear(features, head.decoder.weight[tokens]) + head.bias[tokens]

    def structure_reads(self, tokens: Tokens) -> np.ndarray:
        """Return the tokens of the structure's track.

        Raises:
            SequenceError: there is no such track.
        """
        if tokens.structure_tokens is None:
            raise SequenceError(
                "the structure of a residue is read in a track of its own, and this protein was encoded without it: "
                "ask for frame 'joint'"
            )
        return tokens.structure_tokens

    def library_logits(self, batch: Batch) -> Tensor:
        logits = self.module(
            inputs_embeds=self.embedded(batch),
            attention_mask=batch.valid.long(),
            position_ids=batch.positions,
        ).logits
        return logits[..., : len(SEQUENCE_TOKENS)]

    # -------------------------------------------------------------------------------------------------- files

    @classmethod
    def check_config(cls, config: Mapping[str, object], path: Path) -> None:
        kind = config.get("dplm_type")
        if kind not in ("dplm2_esm", "dplm_esm"):  # copies of the 3B say dplm_esm
            raise CheckpointError(
                f"{path}: dplm_type is {kind!r}, but dplm2 has 'dplm2_esm' (the bit variant is another)"
            )
        super().check_config(config, path)

    def write_tokenizer(self, folder: Path) -> None:
        """Write nothing: the published tokenizer names an id that the network does not have."""


def _gelu(x: Tensor) -> Tensor:
    from transformers.models.esm.modeling_esm import gelu

    return gelu(x)
