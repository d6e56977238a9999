"""What every model is to the rest of the package: tokens, a stream, updates block by block, a read-out.

    h_0 = embed(batch);   h_k = h_{k-1} + a_k (+ g_k) + m_k;   logits = read_out(h_n)

An adapter wraps one loaded module of a well-kept library and says where these things are. Nothing outside
``plm_depth.models`` knows which family it holds. Stepping through the blocks gives the library's own logits.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from plm_depth.models.alphabets import Alphabet
from plm_depth.models.branches import Branches
from plm_depth.tables import AMINO_ACIDS


class SequenceError(ValueError):
    """A sequence that this model cannot read; says what was expected, what came and what to do."""


class CheckpointError(Exception):
    """A checkpoint that is not what its family publishes; names the file, what was expected and the mend."""


@dataclass(frozen=True)
class Tokens:
    """One protein as one model reads it.

    Attributes:
        ids: (n_tokens,) int64, specials included.
        residue_tokens: (n_residues,) int64, the token index of residue ``position`` (from the N terminus, whatever the
            reading direction). Every residue has exactly one token in the track that is read out.
        masked: (n_residues,) bool, which residues are hidden.
        direction: "n2c", "c2n", or "none" for models without one.
        extra: further per-token inputs by name (structure tokens, coordinates), leading axis n_tokens.
        structure_tokens: (n_residues,) int64, the token of each residue in a second track of tokens, that of the
            structure; None where there is one track only.
    """

    ids: np.ndarray
    residue_tokens: np.ndarray
    masked: np.ndarray
    direction: str = "none"
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    structure_tokens: np.ndarray | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @classmethod
    def framed(cls, start: int, residues: np.ndarray, end: int, masked: np.ndarray, direction: str) -> Self:
        """Return the tokens of residues, one of each, between a first and a last token; read from the end for "c2n"."""
        assert len(residues) == len(masked)
        ids = np.concatenate([[start], residues, [end]])
        positions = np.arange(1, len(residues) + 1)
        if direction == "c2n":
            ids, positions = ids[::-1].copy(), positions[::-1].copy()
        return cls(ids, positions, masked, direction)


@dataclass(frozen=True)
class Structure:
    """What is known of a protein's structure, each part or None; every part has one entry a residue.

    Attributes:
        three_di: 3Di states, lower case, "#" where unknown.
        codes: (n_residues,) int64, codes of the model's own structure tokenizer, -1 where unknown.
        coordinates: (n_residues, 3, 3) float32, N, CA and C in Angstrom, NaN where missing.
    """

    three_di: str | None = None
    codes: np.ndarray | None = None
    coordinates: np.ndarray | None = None

    def only(self, parts: Sequence[str]) -> "Structure":
        """Return the structure without all but these parts."""
        return replace(self, **{one.name: None for one in fields(self) if one.name not in parts})

    def known(self, parts: Sequence[str], n_residues: int) -> np.ndarray:
        """Return of which residues any of these parts is known, (n_residues,) bool."""
        found = np.zeros(n_residues, bool)
        for part in parts:
            value = getattr(self, part)
            if value is None:
                continue
            if part == "three_di":
                found |= np.array([state != "#" for state in value])
            elif part == "codes":
                found |= np.asarray(value) >= 0
            else:
                found |= np.isfinite(value).any((1, 2))
        return found

    def code_tokens(self, hidden: np.ndarray, *, n_codes: int, mask: int, first: int = 0) -> np.ndarray:
        """Return the tokens of the residues in a track of structure codes, (n_residues,) int64.

        Args:
            hidden: (n_residues,) bool, residues whose code is not shown.
            n_codes: how many codes there are.
            mask: token of a residue whose code is hidden or unknown.
            first: token of code 0.
        Raises:
            SequenceError: a code that does not exist.
        """
        codes = np.full(len(hidden), -1) if self.codes is None else np.asarray(self.codes, np.int64)
        if codes.min() < -1 or codes.max() >= n_codes:
            raise SequenceError(
                f"structure codes from {codes.min()} to {codes.max()}; 0 to {n_codes - 1}, or -1, expected"
            )
        return np.where(hidden | (codes < 0), mask, first + codes)


@dataclass(frozen=True)
class Showing:
    """How a study shows structures; one for all conditions of a model.

    Attributes:
        struct_at_mask: "keep" shows the structure of a hidden residue, "hide" does not.
        parts: of ``Structure``, which are shown where they are known.
        is_compared: whether "seq" is measured beside conditions with structure. A family with a track for the structure
            then has that track under "seq", too, all masked: conditions differ in what is known, not in the tokens.
    """

    struct_at_mask: str = "keep"
    parts: tuple[str, ...] = ("three_di", "codes", "coordinates")
    is_compared: bool = False

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON values, for the metadata of tables."""
        return asdict(self) | {"parts": list(self.parts)}


@dataclass(frozen=True)
class Batch:
    """Right-padded tokens of several proteins: ids (n_rows, n_tokens), valid (n_rows, n_tokens) bool, extra by name."""

    ids: Tensor
    valid: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def positions(self) -> Tensor:
        """Return the place of each token, (1 or n_rows, n_tokens): the extra input "position_ids", else 0, 1, ..."""
        if "position_ids" in self.extra:
            return self.extra["position_ids"]
        return torch.arange(self.ids.shape[1], device=self.ids.device)[None]


@dataclass(frozen=True)
class Context:
    """What blocks need besides the stream (attention mask, rotary tables, frames); leading axis 1 or n_rows.

    Values that are not tensors (or None) are passed through untouched.
    """

    values: dict[str, object]

    def __getitem__(self, name: str) -> object:
        return self.values[name]

    def take(self, rows: Tensor) -> "Context":
        """Return the context of the given batch rows (an index tensor; rows may repeat)."""

        def rows_of(value: object) -> object:
            if isinstance(value, Tensor) and value.ndim and value.shape[0] > 1:
                return value.index_select(0, rows)
            return value

        # An axis of length 1 broadcasts over rows, whether it is shared or the batch has one row.
        return replace(self, values={name: rows_of(value) for name, value in self.values.items()})

    def first(self, n_rows: int) -> "Context":
        """Return the context of the first rows, without copying."""

        def head(value: object) -> object:
            return value[:n_rows] if isinstance(value, Tensor) and value.ndim and value.shape[0] > 1 else value

        return replace(self, values={name: head(value) for name, value in self.values.items()})


@dataclass(frozen=True)
class Updates:
    """What one block adds to the stream, each (n_rows, n_tokens, d_model): after any scale, as added.

    ``middle`` is the stream that the MLP reads before its norm: h + a (+ g), or h itself in a parallel block.
    """

    attention: Tensor
    mlp: Tensor
    middle: Tensor
    geometric: Tensor | None = None

    @property
    def total(self) -> Tensor:
        if self.geometric is None:
            return self.attention + self.mlp
        return self.attention + self.geometric + self.mlp


class Adapter(ABC):
    """One loaded model of one family.

    Class attributes a family sets:
        family: its name in the registry and in config/models.tsv.
        objective: "ar", "mlm" or "diffusion".
        alphabet: the tokens of the family and the residues among them.
        frame: texts of the tokens before and after the residues; both for ``encode``, unless the family has its own.
        is_parallel: whether attention and MLP of a block read the same input.
        read_offset: token offset from a residue to the token whose logits predict it (0, or -1 when autoregressive).
        tokens_are_residues: whether every residue has a token of its own; if not, nothing is read residue by residue.
        max_residues: longest protein the family was made for; longer ones are refused, never cut.
        directions: the reading directions, ("none",) or ("n2c", "c2n").
        conditions: what the model can be shown: "seq" (sequence), "seq_struct" (and structure), "struct" (structure
            alone). Families with more than "seq" take ``structure``, ``condition`` and ``struct_at_mask`` ("keep" or
            "hide" what a hidden residue's structure is; None: as ``showing`` says) in ``encode``.
        reads_structure: the parts of ``Structure`` any of which is enough for the conditions with structure.
        structure_classes: names of what the structure head tells apart, in the order of ``read_out_structure``; ()
            where there is no such head.
        layouts: names of the on-disk layouts that the family is published in.
        has_attention_maps: whether ``attention_maps`` exists.
        fast_blocks: key of ``fast.MAKERS`` of blocks that the adapter walks as its library does, or None.
        can_branch: whether ``branch`` exists: a token sees tokens before it only, and its place is a number.
        is_mixture: whether MLPs are mixtures of experts, of which each token takes a few; ``experts`` says which.
        extra_padding: by name of ``Tokens.extra``, the value that stands at padded tokens.
        head: name of the part of the module that turns the stream after the final norm into logits.
        reads_all_blocks: regular expressions (whole names) of parameters that read all blocks at once; no logit depends
            on them, and a model cut after a block has none to put there.
        extra_absent: by name, the value at every token of a protein that has no such input beside one that has it;
            further inputs that are not named here are there for every protein or for none.

    Instance attributes:
        module: the library's module, in evaluation mode.
        showing: how structures are shown.
        dtype: name of the dtype of the matrices. Below float32 only the linear maps are stored in it; embeddings and
            norms stay float32, so that under ``precision()`` the stream is float32 and the products are not.
        n_blocks, d_model: sizes.
        residue_ids: (20,) token ids of AMINO_ACIDS in that order.
        vocabulary: token id to its text, for the real tokens only (no padding rows), in id order.
        mask_id: id of the mask token, or None.
        pad_id: id of the pad token.
    """

    family: str
    objective: str
    alphabet: Alphabet
    frame: tuple[str, str] = ("<cls>", "<eos>")
    is_parallel: bool = False
    read_offset: int = 0
    tokens_are_residues: bool = True
    max_residues: int
    directions: tuple[str, ...] = ("none",)
    conditions: tuple[str, ...] = ("seq",)
    reads_structure: tuple[str, ...] = ()
    structure_classes: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    can_branch: bool = False
    has_attention_maps: bool = False
    fast_blocks: str | None = None
    is_mixture: bool = False
    extra_padding: Mapping[str, float] = {}
    head: str = "lm_head"
    reads_all_blocks: tuple[str, ...] = ()
    extra_absent: Mapping[str, float] = {}

    module: torch.nn.Module
    showing: Showing = Showing()
    dtype: str = "float32"
    n_blocks: int
    d_model: int
    residue_ids: np.ndarray
    vocabulary: dict[int, str]
    mask_id: int | None
    pad_id: int

    # ------------------------------------------------------------------------------------------- to be written

    @abstractmethod
    def embed(self, batch: Batch) -> tuple[Tensor, Context]:
        """Return the stream that enters block 1, (n_rows, n_tokens, d_model), and the context of the blocks."""

    @abstractmethod
    def attention_update(self, block: int, stream: Tensor, context: Context) -> Tensor:
        """Return a_k of block ``block`` (1..n_blocks) for the stream that enters it."""

    @abstractmethod
    def mlp_update(self, block: int, middle: Tensor, context: Context) -> Tensor:
        """Return m_k for the stream that the MLP reads (before its norm): ``Updates.middle``."""

    @abstractmethod
    def library_logits(self, batch: Batch) -> Tensor:
        """Return the logits of the library's own forward pass; the reference that stepping must reproduce."""

    # ------------------------------------------------------------------------------------------- written once

    def encode(self, sequence: str, *, masked: np.ndarray | None = None, direction: str | None = None) -> Tokens:
        """Return the tokens of a protein: one a residue, in the family's ``frame``.

        Args:
            sequence: upper-case residues; see ``check_sequence``.
            masked: (n_residues,) bool, residues to hide; None hides nothing. Only for models with a mask token.
            direction: one of ``directions``, by default the first.
        Raises:
            SequenceError: a letter outside the family's alphabet, an empty or too long sequence, masks that this model
                cannot have.
        """
        direction = self.directions[0] if direction is None else direction
        self.check_direction(direction)
        self.check_sequence(sequence, self.alphabet.residues)
        masked = self.check_masked(sequence, masked)
        residues = self.alphabet.encode(sequence)
        if masked.any():
            residues[masked] = self.mask_id
        start, end = (self.alphabet.id_of[text] for text in self.frame)
        return Tokens.framed(start, residues, end, masked, direction)

    def precision(self) -> contextlib.AbstractContextManager:
        """Return the context in which the forward pass runs: autocast for half-precision matrices, else nothing."""
        if self.dtype in ("bfloat16", "float16"):
            return torch.autocast(self.device.type, dtype=getattr(torch, self.dtype))
        return contextlib.nullcontext()

    def final_norm(self, stream: Tensor) -> Tensor | None:
        """Return the stream after the norm that the head reads, or None where the family has no such norm."""
        return None

    def read_out(self, stream: Tensor) -> Tensor:
        """Return logits (..., n_rows_of_the_vocabulary) of a stream (..., d_model): final norm and the whole head."""
        normed = self.final_norm(stream)
        return getattr(self.module, self.head)(stream if normed is None else normed)

    def other_logits(self, stream: Tensor) -> dict[str, Tensor]:
        """Return the logits of the heads beside the one of ``read_out``, by the name of their track."""
        return {}

    def read_out_structure(self, stream: Tensor) -> Tensor:
        """Return the logits of the structure head, (..., len(structure_classes)), of a stream (..., d_model).

        Raises:
            NotImplementedError: this family has no structure head (``structure_classes``).
        """
        raise NotImplementedError(f"{self.family} has no structure head")

    def structure_reads(self, tokens: Tokens) -> np.ndarray:
        """Return the token at which the structure of each residue is read out, (n_residues,) int64."""
        return tokens.residue_tokens if tokens.structure_tokens is None else tokens.structure_tokens

    def true_structure(self, structure: Structure, n_residues: int) -> np.ndarray:
        """Return the class of each residue's structure, (n_residues,) int64, -1 where it is not known.

        Raises:
            SequenceError: a code that does not exist.
        """
        nothing_hidden = np.zeros(n_residues, bool)
        return structure.code_tokens(nothing_hidden, n_codes=len(self.structure_classes), mask=-1)

    def shows_structure(
        self, sequence: str, *, masked: np.ndarray | None, structure: Structure | None, condition: str
    ) -> np.ndarray:
        """Return which residues' structure ``encode`` shows to the model, by any part, (n_residues,) bool.

        Raises:
            SequenceError: as ``check_shown``.
        """
        if condition == "seq":
            return np.zeros(len(sequence), bool)
        _, hidden = self.check_shown(
            sequence, masked=masked, structure=structure, condition=condition, struct_at_mask=None
        )
        return structure.known(self.reads_structure, len(sequence)) & ~hidden

    def native_logits(self, stream: Tensor) -> Tensor:
        """Return the logits as the family's own code gives them; ``read_out`` unless that merges or drops tokens."""
        return self.read_out(stream)

    def log_likelihood(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """Return the family's own score of each row, (n_rows,) nats per residue, or None if it publishes none."""
        return None

    def reinitialise(self, seed: int) -> None:
        """Give the module fresh weights, drawn as its library draws them for an untrained network.

        Parameters only: buffers such as the rotary frequencies keep what the checkpoint said. Equal seeds give equal
        weights, whatever the device. Needs room for a second copy of the module in memory.

        Raises:
            NotImplementedError: this adapter has no initialisation of its own.
        """
        fresh = self.fresh_module(seed)
        with torch.no_grad():
            for mine, new in zip(self.module.parameters(), fresh.parameters(), strict=True):
                mine.copy_(new)

    def fresh_module(self, seed: int) -> torch.nn.Module:
        """Return an untrained module of the same architecture, drawn by its library under ``seed``.

        Raises:
            NotImplementedError: this adapter has no initialisation of its own.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how its weights are initialised")

    def save(self, folder: Path | str) -> None:
        """Write the module into a folder in the layout that the family publishes; ``registry.load`` reads it back.

        Raises:
            NotImplementedError: this adapter does not write checkpoints.
        """
        raise NotImplementedError(f"{type(self).__name__} does not write checkpoints")

    def shallower(self, n_blocks: int) -> Self:
        """Return the adapter of the same network with ``n_blocks`` blocks, its parameters not set yet.

        Raises:
            NotImplementedError: this adapter cannot change its depth.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how its network is cut")

    @property
    def update_scale(self) -> float:
        """Return the factor by which the family multiplies every update, where it hangs on the number of blocks."""
        return 1.0

    def scale_updates(self, factor: float) -> None:
        """Multiply the last matrices of every branch by a factor, in place; for families with an ``update_scale``.

        Raises:
            NotImplementedError: this adapter does not say which matrices these are.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how its updates are scaled")

    def with_codes(self, structure: Structure) -> Structure:
        """Return the structure with the codes of the model's own tokenizer, where coordinates and tokenizer are there.

        Whatever else the structure holds stays as it is; so does all of it in a family without such a tokenizer.
        """
        return structure

    def attention_maps(self, block: int, stream: Tensor, context: Context) -> Tensor:
        """Return how much each token reads of each other one in block ``block``, for the stream that enters it.

        Returns:
            (n_rows, n_heads, n_tokens, n_tokens): rows sum to 1 over the last axis, padding has no weight. Multiplied
            with the values and projected they give ``attention_update``.
        Raises:
            NotImplementedError: this family does not tell (``has_attention_maps``).
        """
        raise NotImplementedError(f"{self.family} does not tell its attention maps")

    def branch(self, context: Context, branches: Branches) -> Context:
        """Return the context of one protein laid out in branches, for the stream ``stream[:, branches.source]``.

        Raises:
            NotImplementedError: this family cannot (``can_branch``).
        """
        raise NotImplementedError(f"{self.family} cannot lay out a protein in branches")

    def experts(self, block: int, middle: Tensor) -> Tensor:
        """Return which experts of a block the tokens take, (n_rows, n_tokens, n_experts) bool.

        Args:
            middle: the stream that the MLP reads before its norm, (n_rows, n_tokens, d_model).
        Raises:
            NotImplementedError: this family has no experts (``is_mixture``).
        """
        raise NotImplementedError(f"{self.family} is no mixture of experts")

    def geometric_update(self, block: int, stream: Tensor, context: Context) -> Tensor | None:
        """Return g_k for the stream h + a, or None where the block has no such branch."""
        return None

    def updates(self, block: int, stream: Tensor, context: Context) -> Updates:
        """Return what block ``block`` (1..n_blocks) adds to the stream that enters it."""
        attention = self.attention_update(block, stream, context)
        if self.is_parallel:
            return Updates(attention, self.mlp_update(block, stream, context), stream)
        middle = stream + attention
        geometric = self.geometric_update(block, middle, context)
        if geometric is not None:
            middle = middle + geometric
        return Updates(attention, self.mlp_update(block, middle, context), middle, geometric)

    def add(self, stream: Tensor, updates: Updates) -> Tensor:
        """Return the stream after the block, added in the library's order, so that results are equal bit by bit."""
        if self.is_parallel:
            return stream + updates.total
        return updates.middle + updates.mlp

    def collate(self, tokens: Sequence[Tokens], device: torch.device | str = "cpu") -> Batch:
        """Return proteins right-padded to the longest, further inputs with their ``extra_padding``."""
        n_tokens = max(t.n_tokens for t in tokens)
        ids = np.full((len(tokens), n_tokens), self.pad_id, np.int64)
        valid = np.zeros((len(tokens), n_tokens), bool)
        for row, t in enumerate(tokens):
            ids[row, : t.n_tokens] = t.ids
            valid[row, : t.n_tokens] = True
        extra = {}
        for name, like in {name: value for t in tokens for name, value in t.extra.items()}.items():
            values = [
                t.extra[name]
                if name in t.extra
                else np.full((t.n_tokens, *like.shape[1:]), self.extra_absent[name], like.dtype)
                for t in tokens
            ]
            shape = (len(tokens), n_tokens, *values[0].shape[1:])
            padded = np.full(shape, self.extra_padding[name], values[0].dtype)
            for row, value in enumerate(values):
                padded[row, : len(value)] = value
            extra[name] = torch.from_numpy(padded).to(device)
        return Batch(torch.from_numpy(ids).to(device), torch.from_numpy(valid).to(device), extra)

    def parse(self, protein: object) -> tuple[str | None, dict[str, object]]:
        """Return the sequence, and further arguments of ``encode``, of a protein as the family writes it."""
        return protein, {}

    def batch_of(self, inputs: Mapping[str, Tensor]) -> Batch:
        """Return the batch of inputs that bear the names under which the family's own code takes them."""
        return Batch(inputs["input_ids"].long(), inputs["attention_mask"].bool())

    def check_sequence(self, sequence: str, alphabet: str) -> None:
        """Refuse a sequence that would be shifted, cut or misread.

        Raises:
            SequenceError: naming the position and the letter, or the length and the limit.
        """
        if not sequence:
            raise SequenceError("empty sequence: nothing to read; filter it out of the data set")
        if len(sequence) > self.max_residues:
            raise SequenceError(
                f"{len(sequence)} residues, but {self.family} was made for at most {self.max_residues}; "
                "lower max_length of the data set (nothing is ever cut silently)"
            )
        for position, letter in enumerate(sequence):
            if letter not in alphabet:
                raise SequenceError(
                    f"{letter!r} at position {position} is not in the alphabet of {self.family} ({alphabet}); "
                    "write upper case and filter or replace the letter"
                )

    @classmethod
    def check_layout(cls, layout: str | None) -> None:
        """Refuse a layout in which this family is not published; None lets the folder's files decide.

        Raises:
            ValueError: naming the layouts.
        """
        if layout is not None and layout not in cls.layouts:
            raise ValueError(f"layout {layout!r}; {cls.family} is published as {' or '.join(cls.layouts)}")

    def check_direction(self, direction: str) -> None:
        """Refuse a reading direction that this model does not have.

        Raises:
            SequenceError: naming the directions that it has.
        """
        if direction not in self.directions:
            raise SequenceError(f"direction {direction!r}; {self.family} reads {' or '.join(self.directions)}")

    def check_shown(
        self,
        sequence: str,
        *,
        masked: np.ndarray | None,
        structure: Structure | None,
        condition: str,
        struct_at_mask: str | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return which residues are hidden, and of which the structure is not shown, each (n_residues,) bool.

        Args:
            sequence: the protein.
            masked: as in ``encode``; under "struct" every residue is hidden.
            structure: what is known of its structure; one part of ``reads_structure`` is enough.
            condition: one of ``conditions``.
            struct_at_mask: "keep" shows the structure of a hidden residue, "hide" does not, unless nothing else is
                shown; None: as ``showing`` says.
        Raises:
            SequenceError: another condition, or one that lacks its structure; lengths that differ; impossible masks.
        """
        if condition not in self.conditions:
            raise SequenceError(f"condition {condition!r}; {self.family} can be shown {' or '.join(self.conditions)}")
        if condition != "seq":
            found = {part: getattr(structure, part, None) for part in self.reads_structure}
            given = {part: value for part, value in found.items() if value is not None}
            if not given:
                raise SequenceError(
                    f"condition {condition!r} of {self.family} needs the structure's {self.reads_structure[0]}; none "
                    "was given"
                )
            for part, value in given.items():
                if len(value) != len(sequence):
                    raise SequenceError(f"{len(value)} entries of {part} for {len(sequence)} residues")
        if (struct_at_mask := struct_at_mask or self.showing.struct_at_mask) not in ("keep", "hide"):
            raise SequenceError(f"struct_at_mask {struct_at_mask!r}; 'keep' or 'hide'")
        masked = np.ones(len(sequence), bool) if condition == "struct" else self.check_masked(sequence, masked)
        hides = struct_at_mask == "hide" and condition == "seq_struct"
        return masked, masked if hides else np.zeros(len(sequence), bool)

    def check_masked(self, sequence: str, masked: np.ndarray | None) -> np.ndarray:
        """Return the masks as (n_residues,) bool.

        Raises:
            SequenceError: wrong length, or a mask asked of a model without a mask token.
        """
        if masked is None:
            return np.zeros(len(sequence), bool)
        masked = np.asarray(masked, bool)
        if masked.shape != (len(sequence),):
            raise SequenceError(f"mask of shape {masked.shape} for {len(sequence)} residues")
        if masked.any() and self.mask_id is None:
            raise SequenceError(f"{self.family} has no mask token; use the autoregressive inputs")
        return masked

    def read_positions(self, sequence: str, tokens: Tokens, *, which: str) -> np.ndarray:
        """Return the positions whose residue is predicted, in ascending order.

        Args:
            which: "masked" (hidden residues), "visible" (shown ones), or "next" (autoregressive: every residue whose
                source token is a residue too).
        Both the residue read and (for "next") its source must be canonical.
        """
        canonical = np.array([letter in AMINO_ACIDS for letter in sequence])
        if which == "masked":
            keep = tokens.masked & canonical
        elif which == "visible":
            keep = ~tokens.masked & canonical
        else:
            source = tokens.residue_tokens + self.read_offset
            at = np.full(tokens.n_tokens, False)
            at[tokens.residue_tokens[canonical]] = True
            keep = canonical & (source >= 0) & at[np.maximum(source, 0)]
        return np.flatnonzero(keep)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    @torch.inference_mode()
    def self_check(self, sequence: str = "MKTAYIAKQRQISFVKSHFSRQ") -> float:
        """Return the largest |logits by stepping - logits of the library| on a few residues, relative to the largest.

        Real tokens only: padding rows of the vocabulary are not compared.


        Raises:
            CheckpointError: above 1e-4 (float32) or 0.1 (half precision), or a value that is not finite.
        """
        sequence = sequence[: self.max_residues]
        masked = None
        if self.mask_id is not None:
            masked = np.isin(np.arange(len(sequence)), [2, 9])
        batch = self.collate([self.encode(sequence, masked=masked, direction=self.directions[0])], self.device)
        with self.precision():
            expected = self.library_logits(batch).float()
            stream, context = self.embed(batch)
            for block in range(1, self.n_blocks + 1):
                stream = self.add(stream, self.updates(block, stream, context))
            logits = self.read_out(stream).float()
        columns = torch.tensor(list(self.vocabulary), device=logits.device)
        expected, logits = expected[..., columns], logits[..., columns]
        if not torch.isfinite(expected).all():
            raise CheckpointError(f"{self.family}: logits are not finite: the checkpoint holds NaN or inf")
        error = float((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
        limit = 0.1 if self.dtype in ("bfloat16", "float16") else 1e-4
        if not error <= limit:
            raise CheckpointError(
                f"{self.family}: h_0 plus the updates reads out to logits {error:.2g} (relative) away from the model's "
                f"own, above {limit}: this adapter does not describe this checkpoint; nothing was measured"
            )
        return error
