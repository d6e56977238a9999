"""Interventions as small values: which part of which block, at which positions, replaced by what.

    do(part, source, at, by):   at the positions ``at`` the update of ``part`` of block ``source`` becomes ``by``

* ``layer``: the whole update of the block; replaced by zero, the stream there is the one that entered the block;
* ``attn``, ``mlp``, ``geom``: one branch; what the later branches of the same block add is computed anew from the
  changed stream (in a parallel block they do not read it and stay).

A ``Lane`` is one altered run: interventions at one or several blocks whose consequences travel on, or (``local``) one
intervention whose contribution is taken out of the clean input of every later block, nothing travelling in between.
Everything here is a value without a model; ``plm_depth.activations.sweep`` runs lanes on any adapter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from plm_depth.models.base import Tokens
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS

PARTS = ("layer", "attn", "mlp", "geom")
POSITION_SETS = ("all", "prefix", "other", "ctx2mask", "tokens", "struct2seq", "seq2struct")
OTHER_SHARE = 0.5  # share of residues in the skip set ``other``; effects grow with it, so it is fixed


class InterventionError(ValueError):
    """An intervention that cannot be: says what was asked, what is possible and the mend."""


# ----------------------------------------------------------------------------------------------------------------
# Replaced by what


@dataclass(frozen=True)
class Zero:
    """The update is left out: the previous state, for a whole block."""

    name = "zero"

    def of(self, update: Tensor) -> Tensor:
        return torch.zeros_like(update)


@dataclass(frozen=True)
class Itself:
    """The update is replaced by its own copy: the null intervention, whose run is the clean one bit by bit."""

    name = "itself"

    def of(self, update: Tensor) -> Tensor:
        return update.clone()


@dataclass(frozen=True, eq=False)
class Mean:
    """The update is replaced by one vector for all positions, (d_model,): its mean over a corpus."""

    value: Tensor
    name = "mean"

    def of(self, update: Tensor) -> Tensor:
        return self.value.to(update).expand_as(update)


@dataclass(frozen=True, eq=False)
class Resample:
    """The update is replaced, token by token, by one that the block gave elsewhere.

    Attributes:
        pool: (n_donors, d_model) updates of the same part and block.
        donor: (n_tokens,) int64, row of the pool for each token.
    """

    pool: Tensor
    donor: np.ndarray
    name = "resample"

    def of(self, update: Tensor) -> Tensor:
        donor = np.zeros(update.shape[-2], np.int64)  # tokens beyond the protein's own are padding
        donor[: len(self.donor)] = self.donor
        return self.pool[torch.from_numpy(donor)].to(update).expand_as(update)


Replacement = Zero | Itself | Mean | Resample


# ----------------------------------------------------------------------------------------------------------------
# One intervention, one lane


@dataclass(frozen=True, eq=False)
class Intervention:
    """Replace one part of the update of one block at some positions.

    Attributes:
        part: one of ``PARTS``.
        source: the block, 1..n_blocks.
        at: (n_tokens,) bool, the tokens whose update is replaced.
        by: what stands in its place.
    """

    part: str
    source: int
    at: np.ndarray
    by: Replacement = field(default_factory=Zero)

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise InterventionError(f"part {self.part!r}; possible: {', '.join(PARTS)}")
        if self.at.dtype != bool or self.at.ndim != 1:
            raise InterventionError(f"positions must be a bool per token, got {self.at.dtype} of shape {self.at.shape}")


@dataclass(frozen=True, eq=False)
class Lane:
    """One altered run of one protein: interventions in ascending order of their blocks, at most one a block.

    ``local`` lanes hold one intervention: block ``j`` reads the clean stream minus what block ``source`` contributed.
    """

    edits: tuple[Intervention, ...]
    local: bool = False

    def __post_init__(self) -> None:
        blocks = [edit.source for edit in self.edits]
        if not blocks or blocks != sorted(set(blocks)):
            raise InterventionError(f"a lane needs interventions at ascending, different blocks, got blocks {blocks}")
        if self.local and len(self.edits) != 1:
            raise InterventionError(f"a local lane holds one intervention, got {len(self.edits)}")

    @property
    def first(self) -> int:
        """Return the block of the first intervention: before it the lane is the clean run."""
        return self.edits[0].source

    @property
    def shape(self) -> tuple:
        """Return what lanes of different proteins must share to be run side by side."""
        return (*((edit.part, edit.source, edit.by.name) for edit in self.edits), self.local)


# ----------------------------------------------------------------------------------------------------------------
# Which positions


@dataclass(frozen=True, eq=False)
class PositionSet:
    """Where a block is silenced and where the consequences are read, in tokens of one protein.

    Attributes:
        name: one of ``POSITION_SETS``.
        draw: which draw of a random set, from 0; -1 where the set is not random.
        skip: (n_tokens,) bool, the tokens whose update is replaced.
        read: (n_tokens,) bool, the tokens at which effects are read.
    """

    name: str
    draw: int
    skip: np.ndarray
    read: np.ndarray


def position_sets(
    names: Sequence[str],
    sequence: str,
    tokens: Tokens,
    *,
    seed: int,
    sequence_id: str,
    draws: int = 4,
    parity: bool = False,
) -> list[PositionSet]:
    """Return the position sets of one protein, in the order of ``names``, draws ascending.

    all       every canonical residue is silenced and read: the total effect.
    tokens    the same with the specials silenced too (they act as attention sinks): a sensitivity run.
    prefix    silenced before a point, read from it on, in reading order: the effect on the future. Points are different
              residues, an eighth of the protein (at least one residue) away from both ends.
    other     a random half is silenced, the rest is read: what travels between positions.
    ctx2mask  visible residues are silenced, hidden ones are read.
    struct2seq, seq2struct  in a model of two tracks of tokens: the canonical residues of one track are silenced and
              those of the other are read.

    Only canonical residues (letters of ``AMINO_ACIDS``) are silenced or read. Random sets have ``draws`` draws keyed by
    (seed, set, sequence_id, draw). A set that this protein does not have (``ctx2mask`` without both hidden and visible
    residues, a second track, more prefix points than there are) is left out or has fewer draws; the caller counts them.

    Args:
        parity: as in the published study of language models: ``all`` silences every token but the first and reads every
            token; ``prefix`` points are the multiples of 8 from 8 on, below n_tokens - 4, shuffled, the first
            ``draws``; silenced is every token between the first one and the point, read every token from the point on.
    Raises:
        InterventionError: an unknown name, or one that parity does not know.
    """
    unknown = sorted(set(names) - set(("all", "prefix") if parity else POSITION_SETS))
    if unknown:
        possible = "all, prefix (parity)" if parity else ", ".join(POSITION_SETS)
        raise InterventionError(f"position set {', '.join(unknown)}; possible: {possible}")
    canonical = np.full(tokens.n_tokens, False)
    canonical[tokens.residue_tokens] = [letter in AMINO_ACIDS for letter in sequence]
    hidden = np.full(tokens.n_tokens, False)
    hidden[tokens.residue_tokens] = tokens.masked
    token = np.arange(tokens.n_tokens)
    sets: list[PositionSet] = []
    for name in names:
        if name == "prefix":
            usable, before = (token > 0, token) if parity else (canonical, np.cumsum(canonical) - canonical)
            points = _prefix_points(before, usable, parity)
            points = generator(seed, name, sequence_id).permutation(points)[:draws]
            for draw, point in enumerate(points):
                sets.append(PositionSet(name, draw, usable & (before < point), usable & (before >= point)))
        elif name == "other":
            places = np.flatnonzero(canonical)
            n_skipped = math.floor(OTHER_SHARE * len(places))
            for draw in range(draws if n_skipped else 0):
                uniform = generator(seed, name, sequence_id, draw).random(tokens.n_tokens)
                skip = np.full(tokens.n_tokens, False)
                skip[places[np.argsort(uniform[places], kind="stable")[:n_skipped]]] = True
                sets.append(PositionSet(name, draw, skip, canonical & ~skip))
        elif name == "ctx2mask":
            if (canonical & hidden).any() and (canonical & ~hidden).any():
                sets.append(PositionSet(name, -1, canonical & ~hidden, canonical & hidden))
        elif name in ("struct2seq", "seq2struct"):
            if tokens.structure_tokens is not None:
                other = np.full(tokens.n_tokens, False)
                other[tokens.structure_tokens] = canonical[tokens.residue_tokens]
                skip, read = (other, canonical) if name == "struct2seq" else (canonical, other)
                sets.append(PositionSet(name, -1, skip, read))
        elif name == "tokens":
            sets.append(PositionSet(name, -1, np.full(tokens.n_tokens, True), canonical))
        elif canonical.any():
            skip, read = (token > 0, token >= 0) if parity else (canonical, canonical)
            sets.append(PositionSet(name, -1, skip, read))
    return sets


def _prefix_points(before: np.ndarray, usable: np.ndarray, parity: bool) -> np.ndarray:
    if parity:
        return np.arange(8, len(before) - 4, 8)
    n = int(usable.sum())
    margin = max(1, n // 8)
    return np.arange(margin, n - margin + 1)
