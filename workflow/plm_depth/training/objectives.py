"""What a model is asked during training and validation, by objective: masked, diffusion, autoregressive.

An example is one protein as the model reads it, with the tokens whose logits are scored. Training follows the published
objectives; validation shows fixed views, keyed by the protein alone, so that the curves of all models compare.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from plm_depth.models.base import Adapter, Structure, Tokens
from plm_depth.models.structures import hidden_at
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS
from plm_depth.training.corpus import indices_of
from plm_depth.views import View, mask_of

NOISE_LEVELS = 500  # T of the absorbing diffusion
VALIDATION_NOISE = (0.1, 0.3, 0.5, 0.7, 0.9)
VALIDATION_DRAWS = 2  # mask draws of a masked model
VALIDATION_SEED = 0  # never the seed of a recipe: all models are asked the same


@dataclass(frozen=True)
class Example:
    """One protein as a model reads it, and what is scored.

    Attributes:
        tokens: the input.
        reads: (n_reads,) tokens whose logits are scored.
        targets: (n_reads,) token ids to be predicted there.
        weights: (n_reads,) weight of each in the training loss.
        true_aa: (n_reads,) index of the target in AMINO_ACIDS, -1 for terminals and other letters (not reported).
        held: (n_reads, 20) how many of each amino acid the target token holds, for models whose tokens hold several
            residues (true_aa is -1 there); None for the others.
        structure_reads: (n_structure_reads,) tokens whose structure is read out by the head of that track.
        structure_targets: (n_structure_reads,) its class there (``Adapter.structure_classes``).
    """

    tokens: Tokens
    reads: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    true_aa: np.ndarray
    held: np.ndarray | None = None
    structure_reads: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    structure_targets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def training_example(
    adapter: Adapter,
    sequence: str,
    *,
    objective: str,
    seed: int,
    epoch: int,
    sequence_id: str,
    mask_rate: float,
    structure: Structure | None = None,
) -> Example:
    """Return the example of a protein in one epoch, drawn from a generator keyed by (seed, epoch, sequence_id).

    A protein with a structure is shown, by a draw of its own, in a quarter of the epochs without it, as the others are;
    in a quarter with nothing of it known, and its structure is scored, too, at all residues where it is known; in a
    quarter with all of it, hidden residues included; and in a quarter without that of the hidden residues, which is
    scored. What is scored of its residues does not depend on that.

    The objective is the adapter's own, or "mlm" in the first stage of a diffusion model:

    * "mlm": ``mask_rate`` of the residues are selected; of these 80 % are hidden, 10 % replaced by a random amino acid,
      10 % left; all selected ones are scored.
    * "diffusion": a level t is drawn from 1..T, every residue is hidden with probability t / T; hidden ones are scored
      with weight (T - t + 1) / T.
    * "ar": a reading direction is drawn; every next token is scored, terminals included.
    """
    rng = generator(seed, "example", epoch, sequence_id)
    if objective == "ar":
        direction = adapter.directions[rng.integers(len(adapter.directions))]
        return _next_tokens(adapter, sequence, direction)
    asked = np.zeros(len(sequence), bool)  # of which residues the structure is hidden and scored
    quarter = int(4 * generator(seed, "condition", epoch, sequence_id).random())
    if quarter == 0:
        structure = None
    elif quarter == 1:
        asked[:] = True
    n_residues = len(sequence)
    if objective == "diffusion":
        level = int(rng.integers(1, NOISE_LEVELS + 1))
        masked = rng.random(n_residues) < level / NOISE_LEVELS
        asked |= masked & (quarter == 3)
        return _hidden(adapter, sequence, masked, structure=structure, asked=asked, weight=diffusion_weight(level))
    hidden, replaced, left = select_residues(n_residues, mask_rate, rng)
    masked = np.zeros(n_residues, bool)
    masked[hidden] = True
    selected = np.sort(np.concatenate([hidden, replaced, left]))
    letters = np.array(list(sequence))
    letters[replaced] = np.array(list(AMINO_ACIDS))[rng.integers(20, size=len(replaced))]
    asked |= masked & (quarter == 3)
    return _hidden(
        adapter, sequence, masked, shown="".join(letters), structure=structure, asked=asked, selected=selected
    )


def select_residues(
    n_residues: int, rate: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the positions that are hidden, replaced and left: 80, 10 and 10 % of ``rate`` of all, at least one in all.

    The number selected is rate * n_residues rounded up or down at random, so that its mean is exact for short proteins.
    """
    n_selected = min(n_residues, max(1, math.floor(rate * n_residues + rng.random())))
    selected = rng.choice(n_residues, n_selected, replace=False)
    fate = rng.random(n_selected)
    return selected[fate < 0.8], selected[(fate >= 0.8) & (fate < 0.9)], selected[fate >= 0.9]


def diffusion_weight(level: int) -> float:
    """Return the weight (T - t + 1) / T of noise level t = 1..T: few hidden residues weigh most."""
    return (NOISE_LEVELS - level + 1) / NOISE_LEVELS


def validation_views(adapter: Adapter, mask_rate: float) -> list[View]:
    """Return the views of the validation: two masks, a grid of noise levels, or every reading direction."""
    if adapter.objective == "ar":
        return [View(direction, math.nan, -1) for direction in adapter.directions]
    if adapter.objective == "diffusion":
        return [View("none", t, 0) for t in VALIDATION_NOISE]
    return [View("none", mask_rate, draw) for draw in range(VALIDATION_DRAWS)]


def validation_example(
    adapter: Adapter, sequence: str, view: View, *, sequence_id: str, structure: Structure | None = None
) -> Example:
    """Return the example of a protein in one view; the same in every run. Hidden residues are always hidden.

    With a structure the protein is shown with it.
    """
    if adapter.objective == "ar":
        return _next_tokens(adapter, sequence, view.direction)
    masked = mask_of(view, len(sequence), VALIDATION_SEED, sequence_id)
    return _hidden(adapter, sequence, masked, structure=structure)


def _hidden(
    adapter: Adapter,
    sequence: str,
    masked: np.ndarray,
    *,
    shown: str | None = None,
    structure: Structure | None = None,
    asked: np.ndarray | None = None,
    selected: np.ndarray | None = None,
    weight: float = 1.0,
) -> Example:
    """Return the example of a protein shown as ``shown`` (itself by default) with some residues hidden.

    Args:
        asked: (n_residues,) bool, of which residues the structure is hidden and scored where it is known.
    """
    condition, of_structure = {}, {}
    if structure is not None:
        asked = np.zeros(len(sequence), bool) if asked is None else asked
        condition = {"structure": hidden_at(structure, asked), "condition": "seq_struct"}
    tokens = adapter.encode(sequence if shown is None else shown, masked=masked, **condition)
    if structure is not None and adapter.structure_classes:
        true = adapter.true_structure(structure, len(sequence))
        scored_there = np.flatnonzero(asked & (true >= 0))
        of_structure = {
            "structure_reads": adapter.structure_reads(tokens)[scored_there],
            "structure_targets": true[scored_there],
        }
    clean = adapter.encode(sequence)
    positions = np.flatnonzero(masked) if selected is None else selected
    at = clean.residue_tokens[positions]
    return Example(
        tokens=tokens,
        reads=tokens.residue_tokens[positions] + adapter.read_offset,
        targets=clean.ids[at],
        weights=np.full(len(positions), weight, np.float32),
        true_aa=indices_of(sequence)[positions],
        **of_structure,
    )


def structure_example(adapter: Adapter, sequence: str, structure: Structure) -> Example:
    """Return the example that asks a model for the whole structure of a protein whose sequence it is shown."""
    nothing = np.zeros(len(sequence), bool)
    return _hidden(adapter, sequence, nothing, structure=structure, asked=~nothing)


def _next_tokens(adapter: Adapter, sequence: str, direction: str) -> Example:
    tokens = adapter.encode(sequence, direction=direction)
    true_aa, held = np.full(tokens.n_tokens, -1, np.int64), None
    index = indices_of(sequence)
    if adapter.tokens_are_residues:
        true_aa[tokens.residue_tokens] = index
    else:
        held = np.zeros((tokens.n_tokens, 20), np.int64)
        np.add.at(held, (tokens.residue_tokens[index >= 0], index[index >= 0]), 1)
    return Example(
        tokens=tokens,
        reads=np.arange(tokens.n_tokens - 1),
        targets=tokens.ids[1:],
        weights=np.ones(tokens.n_tokens - 1, np.float32),
        true_aa=true_aa[1:],
        held=None if held is None else held[1:],
    )


@dataclass(frozen=True)
class Scored:
    """The reads of a batch, laid flat: row and token of each read, the rest as in ``Example``."""

    rows: np.ndarray
    reads: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    true_aa: np.ndarray
    held: np.ndarray | None = None


def scored(examples: Sequence[Example]) -> Scored:
    """Return the reads of several examples, in the order of the batch rows."""
    return Scored(
        rows=np.repeat(np.arange(len(examples)), [len(e.reads) for e in examples]),
        reads=np.concatenate([e.reads for e in examples]),
        targets=np.concatenate([e.targets for e in examples]),
        weights=np.concatenate([e.weights for e in examples]),
        true_aa=np.concatenate([e.true_aa for e in examples]),
        held=None if examples[0].held is None else np.concatenate([e.held for e in examples]),
    )
