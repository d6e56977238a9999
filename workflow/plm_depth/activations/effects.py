"""Skip effects of a shard: what silencing each block does to every later block and to the output (metrics B1-B3, B6).

    python -m plm_depth.activations.effects --card P --sequences P --nulls JSON --inputs JSON --skips JSON --seed N
        [--conditions JSON --backbone P --codes P] --skip P --output-change P

``--skips`` is a JSON object: ``parts`` (layer, attn, mlp, geom), ``pos_sets`` (all, prefix, other, ctx2mask, tokens,
struct2seq, seq2struct),
``local`` (also the direct effects), ``draws`` of random sets, ``ablations`` (zero, mean, resample), and optionally
``supporting`` (mean, resample: whole blocks are replaced by these too, at the set of positions that claims rest on,
``PRIMARY_POSITIONS``, one draw), ``parity`` (conventions of the published study's code, see ``position_sets``, and its
sets all and prefix unless others are asked for; denominators are clamped at 1e-6, nothing is left out) and
``reference`` (proteins of ``--reference`` behind the means and donors of the other ablations). A branch that a model
does not have (geom) is left out, logged.

Every null model, view, protein, part, position set and draw is swept over all source blocks at once
(``plm_depth.activations.sweep``); only norms and read-outs leave the sweep. Rows come protein by protein, long ones
first; readers go by the keys.

The noise floor is measured per null model, on the model and dtype at hand: two random proteins, the same in every
shard, are measured alone, beside a longer protein with padding, and with their lanes in other groups. It is the larger
of two numbers, each a mean over residues: how far the updates (and the output) of the unaltered model are apart between
these batches, and how far the effects are. Below it a value may be rounding, and by it results may differ with the
batches they were measured in. It is kept in the tables' metadata (``noise_floor``, JSON); what is below three times it
is flagged.
"""

import argparse
import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from plm_depth.activations import EFFECTS_VERSION, keys
from plm_depth.activations.batches import MAX_PADDING, WINDOW, padding_on, windows
from plm_depth.activations.door import (
    ExtractionError,
    add_model_options,
    add_structure_options,
    add_window_option,
    check_sequences,
    loaded,
    read_shard,
    running,
    shown_by,
    views_for,
    with_structures,
)
from plm_depth.activations.extract import tokens_of, widened
from plm_depth.activations.interventions import (
    PARTS,
    POSITION_SETS,
    Intervention,
    InterventionError,
    Lane,
    Mean,
    PositionSet,
    Replacement,
    Resample,
    Zero,
    position_sets,
)
from plm_depth.activations.nulls import Null, applied, as_seen, parse_nulls
from plm_depth.activations.settings import SettingsError, check_counts, check_names, check_switches, read_settings
from plm_depth.activations.sweep import (
    OUTPUTS,
    VOCABULARIES,
    Outcome,
    Work,
    output_changes,
    place_of,
    side_by_side,
    sweep,
)
from plm_depth.models.base import Adapter, SequenceError, Structure, Tokens
from plm_depth.models.branches import Branches
from plm_depth.models.fast import steps
from plm_depth.positions import PRIMARY_POSITIONS
from plm_depth.progress import Progress
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS, SKIP_OUT_SEQ, SKIP_SEQ, TableWriter
from plm_depth.views import View, mask_of

ABLATIONS = ("zero", "mean", "resample")
POSITION_SETS_BY_DEFAULT = ("all", "prefix", "other", "ctx2mask")
PARITY_SETS = ("all", "prefix")  # those that parity knows, and its default
SMALLEST = 1e-6  # of the largest update of the same block and protein: below it a ratio means nothing
CLAMP = 1e-6  # parity: smallest denominator
FLOORS = 3.0  # values below this many noise floors are flagged
FLOOR_LENGTHS = (48, 152)  # residues of the proteins that the noise floor is measured on
FLOOR_SOURCES = 4  # blocks that are silenced for it, spread over the depth: no more of them in a deeper model
FLOOR_GROUPS = 3  # groups in which its lanes go in one of the batches
FLOOR_ROWS = 8  # rows of the larger batches in which the unaltered model is compared
LANES_AT_ONCE = 20_000  # lanes that are planned together
DONORS = 16  # residues of each reference protein whose updates stand in under resample ablation


@dataclass(frozen=True)
class Skips:
    """What is silenced; see the module."""

    parts: tuple[str, ...] = PARTS
    pos_sets: tuple[str, ...] = POSITION_SETS_BY_DEFAULT
    local: bool = True
    draws: int = 4
    ablations: tuple[str, ...] = ("zero",)
    supporting: tuple[str, ...] = ()
    parity: bool = False
    reference: int = 32

    def __post_init__(self) -> None:
        if self.parity and self.pos_sets is POSITION_SETS_BY_DEFAULT:
            object.__setattr__(self, "pos_sets", PARITY_SETS)
        check_names(self, "--skips", parts=PARTS, pos_sets=POSITION_SETS, ablations=ABLATIONS)
        if self.supporting:
            check_names(self, "--skips", supporting=("mean", "resample"))
        check_counts(self, "--skips", draws=1, reference=1)
        check_switches(self, "--skips", "local", "parity")
        if self.parity and not set(self.pos_sets) <= set(PARITY_SETS):
            raise SettingsError(f"--skips: parity knows the pos_sets all and prefix, got {list(self.pos_sets)}")
        if self.supporting and not ("layer" in self.parts and set(PRIMARY_POSITIONS.values()) & set(self.pos_sets)):
            raise SettingsError(
                f"--skips: supporting {list(self.supporting)} replaces whole blocks at the set that claims rest on: "
                f"give layer among the parts {list(self.parts)}, prefix or other among the pos_sets "
                f"{list(self.pos_sets)}"
            )

    @property
    def donated(self) -> tuple[str, ...]:
        """Return the parts that are replaced by what other proteins gave; none if updates are only left out."""
        if set(self.ablations) - {"zero"}:
            return self.parts
        return ("layer",) if self.supporting else ()

    def replaced_by(self, part: str, positions: PositionSet, objective: str) -> tuple[str, ...]:
        """Return by what a part is replaced at a set of positions in a model of an objective."""
        is_primary = part == "layer" and positions.name == PRIMARY_POSITIONS[objective] and positions.draw == 0
        return tuple(dict.fromkeys((*self.ablations, *(self.supporting if is_primary else ()))))


# ----------------------------------------------------------------------------------------------------------------
# Lanes of one protein


@dataclass(frozen=True, eq=False)
class Sweep:
    """All sources of one part, position set, draw and ablation: lanes ``first`` .. ``first + len(sources) - 1``.

    Sets of one layout in branches share their lanes; ``positions`` is about the tokens of the row.
    """

    part: str
    positions: PositionSet
    local: bool
    ablation: str
    sources: tuple[int, ...]
    first: int


@dataclass(frozen=True, eq=False)
class Protein:
    """One protein of one view with what is silenced in it under one layout of its tokens."""

    sequence_id: str
    sequence: str
    work: Work
    sweeps: tuple[Sweep, ...]
    residues: np.ndarray  # (n_tokens of the row,) bool, canonical residues
    is_first: bool  # of the protein's layouts


@dataclass(frozen=True, eq=False)
class Donors:
    """Updates of reference proteins, by (part, block): their mean over residues (d_model,) and a pool (n, d_model)."""

    mean: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)
    pool: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)
    owner: np.ndarray = field(default_factory=lambda: np.empty(0, str))  # protein of each donor


def layouts_of(
    adapter: Adapter, sets: Sequence[PositionSet], n_tokens: int
) -> list[tuple[Branches | None, list[PositionSet]]]:
    """Return how the position sets of one protein are run: layouts, each with its sets in tokens of its row.

    For models that can branch, sets that silence the same tokens up to a point of their own share one layout and one
    lane a source: the tokens before their points are computed once for all of them.
    """
    layouts: list[tuple[Branches | None, list[PositionSet]]] = []
    rest = list(sets)
    while rest:
        longest = max(rest, key=_point)
        group = [s for s in rest if np.array_equal(s.skip, longest.skip & (np.arange(n_tokens) < _point(s)))]
        if adapter.can_branch and len(group) > 1:
            rest = [s for s in rest if not any(s is one for one in group)]
            layouts.append(_branched(group, longest.skip, n_tokens))
        else:
            rest = [s for s in rest if s is not longest]
            layouts.append((None, [longest]))
    if not adapter.can_branch:
        return [(None, list(sets))] if sets else []
    plain = [s for branches, own in layouts if branches is None for s in own]
    return [layout for layout in layouts if layout[0] is not None] + ([(None, plain)] if plain else [])


def _point(positions: PositionSet) -> int:
    """Return the first token after the last silenced one."""
    return int(np.flatnonzero(positions.skip)[-1]) + 1


def _branched(group: Sequence[PositionSet], skip: np.ndarray, n_tokens: int) -> tuple[Branches, list[PositionSet]]:
    points = [_point(s) for s in group]
    needs = [bool(s.read[point:].any()) for s, point in zip(group, points)]
    branches = Branches(n_tokens, max(points), tuple(point for point, needed in zip(points, needs) if needed))
    n_row = len(branches.source)
    at = np.zeros(n_row, bool)
    at[: branches.trunk] = skip[: branches.trunk]
    spans, own = iter(branches.spans), []
    for positions, point, needed in zip(group, points, needs):
        read = np.zeros(n_row, bool)
        read[:point] = positions.read[:point]
        if needed:
            read[next(spans)] = positions.read[point:]
        own.append(PositionSet(positions.name, positions.draw, at, read))
    return branches, own


def proteins_of(
    adapter: Adapter,
    sequence_id: str,
    sequence: str,
    view: View,
    skips: Skips,
    *,
    seed: int,
    blocks: Mapping[str, Sequence[int]],
    donors: Donors | None = None,
    condition: str = "seq",
    structure: Structure | None = None,
) -> list[Protein]:
    """Return a protein as one view shows it, with the lanes of every sweep, once for every layout.

    Args:
        seed: of masks, position sets and donors.
        blocks: the blocks that have each part, ascending.
        donors: updates of reference proteins, for the ablations mean and resample.
        condition, structure: what the model is shown; see ``conditions.CONDITIONS``.
    Raises:
        SequenceError: the model cannot read this protein; names it.
    """
    shown = {"condition": condition, "structure": structure}
    tokens, _ = tokens_of(adapter, sequence_id, sequence, view, seed=seed, **shown)
    found = position_sets(
        skips.pos_sets, sequence, tokens, seed=seed, sequence_id=sequence_id, draws=skips.draws, parity=skips.parity
    )
    resampled = "resample" in (*skips.ablations, *skips.supporting)
    donor = _donors_for(sequence_id, tokens, donors, seed) if resampled else None
    reads, true = reads_of(adapter, sequence, tokens, view, everywhere=skips.parity)
    residues = np.full(tokens.n_tokens, False)
    residues[tokens.residue_tokens] = [letter in AMINO_ACIDS for letter in sequence]
    proteins = []
    for branches, sets in layouts_of(adapter, found, tokens.n_tokens) or [(None, [])]:
        source = np.arange(tokens.n_tokens) if branches is None else branches.source
        lanes: list[Lane] = []
        sweeps: list[Sweep] = []
        shared: dict[tuple, int] = {}
        for positions in sets:
            for part in skips.parts:
                sources = tuple(blocks[part])
                for ablation in skips.replaced_by(part, positions, adapter.objective):
                    for local in (False, True) if skips.local and ablation == "zero" else (False,):
                        key = (id(positions.skip), part, ablation, local)
                        if key not in shared:
                            shared[key] = len(lanes)
                            for block in sources:
                                by = _replacement(
                                    ablation, part, block, donors, None if donor is None else donor[source]
                                )
                                lanes.append(Lane((Intervention(part, block, positions.skip, by),), local))
                        sweeps.append(Sweep(part, positions, local, ablation, sources, shared[key]))
        row_reads = np.flatnonzero(np.isin(source, reads))
        place = np.full(tokens.n_tokens, -1)
        place[reads] = np.arange(len(reads))
        work = Work(sequence_id, tokens, tuple(lanes), row_reads, true[place[source[row_reads]]], branches)
        proteins.append(Protein(sequence_id, sequence, work, tuple(sweeps), residues[source], not proteins))
    return proteins


def reads_of(
    adapter: Adapter, sequence: str, tokens: Tokens, view: View, *, everywhere: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens whose read-out predicts a canonical residue, and the id of that residue, (n_reads,) each.

    For autoregressive models the token before the residue must be a canonical residue too.

    Args:
        everywhere: read every token; the id is -1 where no canonical residue is predicted.
    """
    canonical = np.array([letter in AMINO_ACIDS for letter in sequence])
    next_only = view.reads == "next" and not everywhere
    positions = adapter.read_positions(sequence, tokens, which="next") if next_only else np.flatnonzero(canonical)
    reads = tokens.residue_tokens[positions] + adapter.read_offset
    true = np.array([adapter.residue_ids[AMINO_ACIDS.index(sequence[p])] for p in positions], np.int64)
    if not everywhere:
        return reads, true
    ids = np.full(tokens.n_tokens, -1)
    inside = reads >= 0
    ids[reads[inside]] = true[inside]
    return np.arange(tokens.n_tokens), ids


def _replacement(ablation: str, part: str, block: int, donors: Donors | None, donor: np.ndarray | None) -> Replacement:
    if ablation == "zero":
        return Zero()
    if donors is None:
        raise InterventionError(f"--skips: the ablation {ablation} needs --reference, the proteins that stand in")
    if ablation == "mean":
        return Mean(donors.mean[part, block])
    return Resample(donors.pool[part, block], donor)


def _donors_for(sequence_id: str, tokens: Tokens, donors: Donors | None, seed: int) -> np.ndarray | None:
    """Return a donor for each token, (n_tokens,), never one of the protein itself."""
    if donors is None:
        return None
    choice = np.flatnonzero(donors.owner != sequence_id)
    if not len(choice):
        raise InterventionError(f"--reference holds no protein but {sequence_id}; resample ablation needs others")
    return choice[generator(seed, "resample", sequence_id).integers(len(choice), size=tokens.n_tokens)]


@torch.inference_mode()
def donors_of(
    adapter: Adapter,
    sequences: Sequence[tuple[str, str]],
    view: View,
    parts: Sequence[str],
    blocks: Mapping[str, Sequence[int]],
    *,
    seed: int,
    condition: str = "seq",
    structures: Mapping[str, Structure] | None = None,
) -> Donors:
    """Return means and donor pools of the updates of reference proteins under one view, one protein at a time.

    Means are over all canonical residues, summed in float64. The pool holds ``DONORS`` residues a protein (fewer where
    it is shorter), keyed by (seed, "donors", sequence_id), kept in the machine's memory in the dtype of the stream.
    """
    sums: dict[tuple[str, int], Tensor] = {}
    pools: dict[tuple[str, int], list[Tensor]] = {}
    owner: list[str] = []
    n_residues = 0
    for sequence_id, sequence in sequences:
        shown = {"condition": condition, "structure": (structures or {}).get(sequence_id)}
        try:
            tokens, _ = tokens_of(adapter, sequence_id, sequence, view, seed=seed, **shown)
        except SequenceError as error:
            raise SequenceError(f"--reference: {error}") from error
        residues = tokens.residue_tokens[[letter in AMINO_ACIDS for letter in sequence]]
        random = generator(seed, "donors", sequence_id)
        chosen = random.choice(residues, size=min(DONORS, len(residues)), replace=False)
        owner += [sequence_id] * len(chosen)
        n_residues += len(residues)
        with adapter.precision():
            stream, context = adapter.embed(adapter.collate([tokens], adapter.device))
            for block in range(1, adapter.n_blocks + 1):
                updates = adapter.updates(block, stream, context)
                stream = adapter.add(stream, updates)
                values = {"attn": updates.attention, "mlp": updates.mlp, "geom": updates.geometric}
                values["layer"] = sum(x.to(stream.dtype) for x in values.values() if x is not None)
                for part in parts:
                    if block in blocks[part]:
                        update = values[part][0]
                        total = update[torch.as_tensor(residues, device=update.device)].double().sum(0).cpu()
                        sums[part, block] = sums.get((part, block), 0) + total
                        kept = update[torch.as_tensor(chosen, device=update.device)].to(stream.dtype).cpu()
                        pools.setdefault((part, block), []).append(kept)
    return Donors(
        {key: total / n_residues for key, total in sums.items()},
        {key: torch.cat(parts) for key, parts in pools.items()},
        np.array(owner),
    )


def blocks_with(adapter: Adapter, parts: Sequence[str], log: logging.Logger) -> dict[str, tuple[int, ...]]:
    """Return the blocks that have each part: all of them, or for geom those with a geometric branch."""
    blocks = {part: tuple(range(1, adapter.n_blocks + 1)) for part in parts}
    if "geom" in parts:
        blocks["geom"] = geometric_blocks(adapter)
        if not blocks["geom"]:
            log.info(f"{adapter.family} has no geometric branch: geom is left out")
    return blocks


@torch.inference_mode()
def geometric_blocks(adapter: Adapter) -> tuple[int, ...]:
    """Return the blocks that have a geometric branch."""
    tokens = adapter.encode("ACDEFGHIKLMN", direction=adapter.directions[0])
    with adapter.precision():
        stream, context = adapter.embed(adapter.collate([tokens], adapter.device))
        return tuple(
            block
            for block in range(1, adapter.n_blocks + 1)
            if adapter.geometric_update(block, stream, context) is not None
        )


# ----------------------------------------------------------------------------------------------------------------
# Reductions over positions


def reduce_effects(
    change: np.ndarray, size: np.ndarray, read: np.ndarray, residues: np.ndarray, *, parity: bool = False
) -> dict[str, np.ndarray]:
    """Return, for every lane and target block, what SKIP_SEQ keeps of the positions read; each (n_lanes, n_blocks).

    A ratio is undefined where the clean update is at most ``SMALLEST`` of the largest over the protein's residues.

    Args:
        change: (n_lanes, n_blocks, n_tokens), |u_j - u*_j|.
        size: (n_blocks, n_tokens), |u_j|.
        read, residues: (n_tokens,) bool.
        parity: clamp denominators at ``CLAMP`` instead; nothing is undefined.
    """
    clean = size[:, read].astype(np.float64)
    moved = change[..., read].astype(np.float64)
    n_lanes, n_blocks, n_read = moved.shape
    if parity:
        defined = np.full(clean.shape, True)
        ratio = moved / np.maximum(clean, CLAMP)
    else:
        largest = size[:, residues].max(-1, keepdims=True, initial=0.0)
        defined = clean > SMALLEST * largest
        ratio = np.divide(moved, clean, out=np.zeros_like(moved), where=defined)
    n = defined.sum(-1)
    ordered = np.sort(np.where(defined, ratio, np.nan), axis=-1)  # NaN last
    repeated = np.broadcast_to(n, (n_lanes, n_blocks))
    return {
        "n": repeated,
        "n_nan": n_read - repeated,
        "sum": ratio.sum(-1),
        "sumsq": np.square(ratio).sum(-1),
        "num": moved.sum(-1),
        "den": np.broadcast_to(clean.sum(-1), (n_lanes, n_blocks)),
        "p95": _of_sorted(ordered, repeated, 0.95),
        "max": _of_sorted(ordered, repeated, 1.0),
    }


def reduce_output(values: np.ndarray) -> dict[str, np.ndarray]:
    """Return what SKIP_OUT_SEQ keeps of (..., n_reads) values, NaN where undefined; each (...)."""
    defined = ~np.isnan(values)
    n = defined.sum(-1)
    filled = np.where(defined, values, 0.0)
    ordered = np.sort(values, axis=-1)  # NaN last
    return {
        "n": n,
        "n_nan": values.shape[-1] - n,
        "sum": filled.sum(-1),
        "sumsq": np.square(filled).sum(-1),
        "p95": _of_sorted(ordered, n, 0.95),
        "max": _of_sorted(ordered, n, 1.0),
    }


def _of_sorted(ordered: np.ndarray, n: np.ndarray, share: float) -> np.ndarray:
    """Return a quantile of the first n entries of each sorted row, linearly interpolated, NaN where n is 0."""
    if not ordered.shape[-1]:
        return np.full(n.shape, np.nan)
    place = share * np.maximum(n - 1, 0)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(n - 1, 0))
    below, above = (np.take_along_axis(ordered, at[..., None], -1)[..., 0] for at in (low, high))
    return np.where(n > 0, below + (above - below) * (place - low), np.nan)


def _below(total: np.ndarray, n: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Return whether a mean that exists is below ``FLOORS`` noise floors."""
    return (n > 0) & (total < FLOORS * floor * np.maximum(n, 1))


# ----------------------------------------------------------------------------------------------------------------
# The noise floor


@dataclass(frozen=True, eq=False)
class Floor:
    """How far one and the same value is apart between batches; means over residues, as what is compared with it.

    Attributes:
        target: (n_blocks,) of effects on each block, in shares of its clean update.
        output: of the output change, by (vocabulary, quantity).
    """

    target: np.ndarray
    output: Mapping[tuple[str, str], float]

    @classmethod
    def nothing(cls, n_blocks: int) -> "Floor":
        """Return the floor of exact arithmetic."""
        return cls(np.zeros(n_blocks), {(v, q): 0.0 for v in VOCABULARIES for q in OUTPUTS})

    def numbers(self) -> dict[str, object]:
        """Return the floor as JSON values."""
        output = {f"{vocabulary} {quantity}": value for (vocabulary, quantity), value in self.output.items()}
        return {"target": self.target.tolist(), "output": output}

    def describe(self) -> str:
        largest = max(self.output[v, "l2"] for v in VOCABULARIES)
        return f"noise floor: updates {self.target.max():.2g}, output (l2) {largest:.2g}"

    def or_larger(self, target: np.ndarray, output: Mapping[str, np.ndarray]) -> "Floor":
        """Return this floor, or what is larger: of updates (n_blocks,), by vocabulary of the quantities of ``OUTPUTS``.

        What is undefined (NaN) says nothing.
        """
        found = {(v, q): value for v, values in output.items() for q, value in zip(OUTPUTS, values.tolist())}
        return Floor(
            np.fmax(self.target, target),
            {key: float(np.fmax(value, found.get(key, 0.0))) for key, value in self.output.items()},
        )


def noise_floor(
    adapter: Adapter, view: View, parts: Sequence[str], *, seed: int, token_budget: int, max_padding: float, log
) -> Floor:
    """Return how far the same values are apart between batches that a run can come to; see the module.

    The proteins are random (keyed by their length alone), so that the floor does not depend on the shard.

    Args:
        max_padding: share of padding that the run allows. A protein's neighbour is longer by as much, or by
            ``MAX_PADDING`` where the run allows less: the rounding that comes of it is as good as any.
    """
    shortest = max(
        1 - 2 * max(max_padding, MAX_PADDING), 0.25
    )  # of two proteins, of whose tokens this share is padding
    floor = Floor.nothing(adapter.n_blocks)
    for length in FLOOR_LENGTHS:
        length = min(length, round(shortest * adapter.max_residues))
        work, sets = _floor_work(adapter, view, parts, length, seed)
        beside, _ = _floor_work(adapter, view, parts, round(length / shortest), seed)
        floor = _apart_when_clean(adapter, work, beside, floor)
        group = -(-len(work.lanes) // FLOOR_GROUPS)
        alone, *others = (
            side_by_side(adapter, works, token_budget=budget, log=log)[0]
            for works, budget in (
                ([work], token_budget),
                ([work, beside], token_budget),
                ([work], min(token_budget, (1 + group) * work.n_tokens)),
            )
        )
        for other in others:
            floor = _apart_when_silenced(work, sets, alone, other, floor)
    return floor


def _floor_work(
    adapter: Adapter, view: View, parts: Sequence[str], length: int, seed: int
) -> tuple[Work, list[PositionSet]]:
    """Return a random protein with its lanes, and where each of these is silenced and read."""
    name = f"noise floor {length}"
    letters = generator("noise floor", length).integers(len(AMINO_ACIDS), size=length)
    sequence = "".join(AMINO_ACIDS[i] for i in letters)
    masked = mask_of(view, length, seed, name)
    tokens = adapter.encode(sequence, masked=masked if masked.any() else None, direction=view.direction)
    names = ("all", PRIMARY_POSITIONS[adapter.objective])
    sets = position_sets(names, sequence, tokens, seed=seed, sequence_id=name, draws=1)
    blocks = np.unique(np.linspace(1, adapter.n_blocks, FLOOR_SOURCES).round().astype(int)).tolist()
    lanes = [
        (Lane((Intervention(part, block, positions.skip),)), positions)
        for part in [part for part in parts if part != "geom"] or ["layer"]
        for positions in sets
        for block in blocks
    ]
    reads, true = reads_of(adapter, sequence, tokens, view)
    return Work(name, tokens, tuple(lane for lane, _ in lanes), reads, true), [positions for _, positions in lanes]


def _apart_when_silenced(work: Work, sets: Sequence[PositionSet], one: Outcome, other: Outcome, floor: Floor) -> Floor:
    """Return the floor, or how far effects and output changes are apart between two outcomes, lane by lane."""
    smallest = SMALLEST * one.size[:, work.tokens.residue_tokens].max(-1, keepdims=True, initial=0.0)
    defined = (one.size > smallest) & (other.size > 0)
    before, after = (
        np.divide(o.change, o.size, out=np.zeros(o.change.shape), where=np.broadcast_to(defined, o.change.shape))
        for o in (one, other)
    )
    apart = np.where(defined, np.abs(before - after), np.nan)
    for lane, positions in enumerate(sets):
        at = positions.read[work.reads]
        output = {v: _mean_of_defined(np.abs(one.output[v][lane] - other.output[v][lane])[:, at]) for v in VOCABULARIES}
        floor = floor.or_larger(_mean_of_defined(apart[lane][:, positions.read]), output)
    return floor


@torch.inference_mode()
def _apart_when_clean(adapter: Adapter, work: Work, beside: Work, floor: Floor) -> Floor:
    """Return the floor, or how far updates and output of the unaltered model are apart between batches."""
    companies = ([work], [work] * FLOOR_ROWS, [work, beside] * (FLOOR_ROWS // 2))
    evaluator = steps(adapter)
    residues = torch.as_tensor(work.tokens.residue_tokens, device=adapter.device)
    apart = np.full((len(companies) - 1, adapter.n_blocks), np.nan)
    with adapter.precision():
        runs = []
        for company in companies:
            stream, context = adapter.embed(adapter.collate([one.tokens for one in company], adapter.device))
            runs.append((stream.to(torch.promote_types(stream.dtype, torch.float32)), context))
        for block in range(1, adapter.n_blocks + 1):
            totals = []
            for k, (stream, context) in enumerate(runs):
                updates = widened(evaluator.updates(block, stream, context), stream.dtype)
                totals.append(updates.total[0, residues].double())
                runs[k] = adapter.add(stream, updates), context
            size = torch.linalg.vector_norm(totals[0], dim=-1)
            defined = size > SMALLEST * size.max()
            for k, total in enumerate(totals[1:]):
                change = torch.linalg.vector_norm(total - totals[0], dim=-1)
                apart[k, block - 1] = float((change[defined] / size[defined]).mean())
        logits = [adapter.read_out(stream[0, torch.as_tensor(work.reads, device=stream.device)]) for stream, _ in runs]
    for k, other in enumerate(logits[1:]):
        output = {}
        for v, columns in {"aa20": adapter.residue_ids, "full": np.array(sorted(adapter.vocabulary))}.items():
            of = torch.as_tensor(columns, device=other.device)
            true = torch.from_numpy(place_of(work.true, columns)).to(other.device)
            p, q = (x[:, of].double().log_softmax(-1) for x in (logits[0], other))
            output[v] = _mean_of_defined(output_changes(p, q, true).abs().cpu().numpy())
        floor = floor.or_larger(apart[k], output)
    return floor


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis of what is not NaN, NaN where nothing is."""
    defined = ~np.isnan(values)
    n = defined.sum(-1)
    total = np.where(defined, values, 0.0).sum(-1)
    return np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0)


# ----------------------------------------------------------------------------------------------------------------
# Rows


def effect_rows(protein: Protein, outcome: Outcome, floor: Floor, *, parity: bool) -> dict[str, object]:
    """Return the columns of SKIP_SEQ of one protein that differ between its rows, a row a source."""
    kept: dict[str, list[np.ndarray]] = {}
    for swept in protein.sweeps:
        lanes = slice(swept.first, swept.first + len(swept.sources))
        reduced = reduce_effects(
            outcome.change[lanes], outcome.size, swept.positions.read, protein.residues, parity=parity
        )
        reduced["below_floor"] = _below(reduced["sum"], reduced["n"], floor.target)
        # Blocks before the source were not run: their 0 is exact, not a small measured value.
        reduced["below_floor"] &= np.arange(1, len(floor.target) + 1) >= np.array(swept.sources)[:, None]
        for name, values in reduced.items():
            kept.setdefault(name, []).append(values)
    columns: dict[str, object] = _sweep_columns(protein.sweeps)
    for name, parts in kept.items():
        values = np.concatenate(parts)
        kind = SKIP_SEQ.field(name).type.value_type
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        flat = pa.array(values.ravel().astype(kind.to_pandas_dtype()), kind)
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return columns


def output_rows(protein: Protein, outcome: Outcome, floor: Floor) -> dict[str, object]:
    """Return the columns of SKIP_OUT_SEQ of one protein that differ between its rows: a row a source and quantity."""
    sweeps = [swept for swept in protein.sweeps if not swept.local]
    n_kinds = len(VOCABULARIES) * len(OUTPUTS)
    kept: dict[str, list[np.ndarray]] = {}
    floors = np.array([[floor.output[v, q] for q in OUTPUTS] for v in VOCABULARIES])
    for swept in sweeps:
        lanes = slice(swept.first, swept.first + len(swept.sources))
        at = swept.positions.read[protein.work.reads]
        values = np.stack([outcome.output[v][lanes][..., at] for v in VOCABULARIES], axis=1)
        reduced = reduce_output(values)
        reduced["below_floor"] = _below(np.abs(reduced["sum"]), reduced["n"], floors)
        for name, part in reduced.items():
            kept.setdefault(name, []).append(part.reshape(-1))
    n_rows = sum(len(swept.sources) for swept in sweeps)
    columns: dict[str, object] = _sweep_columns(sweeps, repeat=n_kinds)
    columns["vocab"] = np.tile(np.repeat(VOCABULARIES, len(OUTPUTS)), n_rows)
    columns["quantity"] = np.tile(OUTPUTS, n_rows * len(VOCABULARIES))
    columns |= {name: np.concatenate(parts) for name, parts in kept.items()}
    if outcome.rerouted is None or not sweeps:
        return columns
    routes = routing_rows(sweeps, outcome.rerouted)
    return {name: np.concatenate([values, routes[name]]) for name, values in columns.items()}


def routing_rows(sweeps: Sequence[Sweep], rerouted: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rows of ``router_flip``: of the positions read, the share in which later blocks take other experts.

    Args:
        rerouted: (n_lanes, n_blocks, n_tokens) bool. A value is the share of the blocks after the source; the last
            block has none after it.
    """
    kept: dict[str, list[np.ndarray]] = {}
    for swept in sweeps:
        read = rerouted[swept.first : swept.first + len(swept.sources)][..., swept.positions.read]
        n_later = rerouted.shape[1] - np.array(swept.sources)
        after = np.arange(1, rerouted.shape[1] + 1) > np.array(swept.sources)[:, None]
        flipped = (read & after[..., None]).sum(1).astype(np.float64)
        share = np.divide(flipped, n_later[:, None], out=np.full_like(flipped, np.nan), where=(n_later > 0)[:, None])
        for name, part in reduce_output(share).items():
            kept.setdefault(name, []).append(part)
    columns = {name: np.concatenate(parts) for name, parts in kept.items()}
    n_rows = len(columns["n"])
    return _sweep_columns(sweeps) | columns | {
        "below_floor": np.full(n_rows, False),
        "vocab": np.full(n_rows, "none"),
        "quantity": np.full(n_rows, "router_flip"),
    }  # fmt: skip


def _sweep_columns(sweeps: Sequence[Sweep], repeat: int = 1) -> dict[str, object]:
    counts = [len(swept.sources) * repeat for swept in sweeps]

    def column(values: list) -> np.ndarray:
        return np.repeat(np.array(values), counts)

    return {
        "part": column([swept.part for swept in sweeps]),
        "pos_set": column([swept.positions.name for swept in sweeps]),
        "local": column([swept.local for swept in sweeps]),
        "ablation": column([swept.ablation for swept in sweeps]),
        "draw": column([swept.positions.draw for swept in sweeps]),
        "src": np.concatenate([np.repeat(swept.sources, repeat) for swept in sweeps]),
    }


# ----------------------------------------------------------------------------------------------------------------
# A shard


def measure(
    adapter: Adapter,
    sequences: Sequence[tuple[str, str]],
    *,
    skip: Path,
    output_change: Path,
    model_id: str,
    nulls: Sequence[Null],
    views: Sequence[View],
    skips: Skips,
    seed: int,
    reference: Sequence[tuple[str, str]] = (),
    token_budget: int = 4096,
    window: int = WINDOW,
    max_padding: float | None = None,
    conditions: Sequence[str] = ("seq",),
    structures: Mapping[str, Structure] | None = None,
    log: logging.Logger,
) -> dict[str, int]:
    """Sweep every (sequence_id, sequence) under every null model and view, and write the two tables.

    Args:
        seed: of masks, position sets, donors.
        reference: proteins behind the means and donors of the ablations mean and resample.
        token_budget: largest rows x tokens carried through a block at once; changes speed and memory, and results by
            less than the noise floor.
        window: proteins, in their order, that may share a batch.
        max_padding: share of padding when proteins go side by side, by default what pays on the device; the same.
        conditions, structures: as in ``extract.extract``; of the reference proteins too, where they are used.
    Returns:
        Rows written, by table.
    Raises:
        InterventionError, SequenceError, BatchError, TableError, ExtractionError: nothing stands under the final names.
    """
    check_sequences(sequences)
    if skips.donated and not reference:
        given = ", ".join((*skips.ablations, *skips.supporting))
        raise InterventionError(
            f"--skips: the ablations {given} need --reference, a SEQUENCES table of proteins whose updates stand in "
            "(the sample, so that all shards share it)"
        )
    if set(conditions) - {"seq"}:
        proteins = dict([*sequences, *(reference if skips.donated else [])])
        structures = with_structures(adapter, list(proteins.items()), structures or {})
    else:
        structures = {}
    max_padding = padding_on(adapter.device.type) if max_padding is None else max_padding
    blocks = blocks_with(adapter, skips.parts, log)
    about = {"seed": str(seed), "version": str(EFFECTS_VERSION), "skips": json.dumps(skips.__dict__)}
    if structures:
        about["showing"] = json.dumps(adapter.showing.as_dict())
    shown = list(itertools.product(conditions, views))
    progress = Progress(log, total=len(nulls) * len(shown) * len(sequences), unit="proteins")
    started, missing = time.monotonic(), 0
    floors: dict[str, Floor] = {}
    with (
        TableWriter(skip, SKIP_SEQ, **about) as effect_table,
        TableWriter(output_change, SKIP_OUT_SEQ, **about) as output_table,
    ):
        for null in nulls:
            with applied(adapter, null):
                floor = noise_floor(
                    adapter,
                    views[0],
                    skips.parts,
                    seed=seed,
                    token_budget=token_budget,
                    max_padding=max_padding,
                    log=log,
                )
                floors[str(null)] = floor
                log.info(f"{null}: {floor.describe()}")
                for condition, view in shown:
                    in_view = {"seed": seed, "blocks": blocks, "condition": condition}

                    def seen(
                        sequence_id: str, sequence: str, condition: str = condition, null: Null = null
                    ) -> tuple[str, Structure | None]:
                        structure = None if condition == "seq" else structures[sequence_id]
                        return as_seen(null, sequence_id, sequence, structure)

                    donors = None
                    if skips.donated:
                        others = {i: seen(i, s) for i, s in reference}
                        donors = donors_of(
                            adapter,
                            [(i, s) for i, (s, _) in others.items()],
                            view,
                            skips.donated,
                            structures={i: structure for i, (_, structure) in others.items()},
                            **in_view,
                        )
                    prepared = (
                        (
                            protein
                            for i, s, structure in ((i, *seen(i, s)) for i, s in sorted(part, key=_longest_first))
                            for protein in proteins_of(
                                adapter, i, s, view, skips, donors=donors, structure=structure, **in_view
                            )
                        )
                        for part in windows(sequences, window)
                    )
                    for proteins in itertools.chain.from_iterable(map(in_portions, prepared)):
                        missing += sum(expected_sets(skips, view) for protein in proteins if protein.is_first)
                        missing -= sum(n_sets(protein) for protein in proteins)
                        works = [protein.work for protein in proteins]
                        for index, outcome in sweep(
                            adapter, works, token_budget=token_budget, max_padding=max_padding, log=log
                        ):
                            protein = proteins[index]
                            check_finite(outcome, f"{model_id} ({null})", protein.sequence_id)
                            common = keys.of_protein(adapter, model_id, null, view, protein, condition)
                            if protein.sweeps:
                                effect_table.append(common | effect_rows(protein, outcome, floor, parity=skips.parity))
                                output_table.append(common | output_rows(protein, outcome, floor))
                            progress.advance(int(protein.is_first))
        noise = json.dumps({name: floor.numbers() for name, floor in floors.items()})
        effect_table.note(noise_floor=noise)
        output_table.note(noise_floor=noise)
    progress.finish()
    if missing:
        log.info(
            f"{missing} position sets left out: proteins without hidden or visible residues, without a second track "
            "of tokens, or too short"
        )
    counts = {"skip": effect_table.n_rows, "output_change": output_table.n_rows}
    log.info(f"{time.monotonic() - started:.1f} s; rows: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
    return counts


def _longest_first(protein: tuple[str, str]) -> int:
    return -len(protein[1])


def in_portions(proteins: Iterable[Protein]) -> Iterator[list[Protein]]:
    """Yield proteins by the handful, so that memory does not grow with their number."""
    portion: list[Protein] = []
    for protein in proteins:
        portion.append(protein)
        if sum(len(p.work.lanes) for p in portion) >= LANES_AT_ONCE:
            yield portion
            portion = []
    if portion:
        yield portion


def expected_sets(skips: Skips, view: View) -> int:
    """Return how many position sets a long enough protein has under a view."""
    return sum(
        (skips.draws if name in ("prefix", "other") else 1)
        for name in skips.pos_sets
        if name != "ctx2mask" or view.reads == "masked"
    )


def n_sets(protein: Protein) -> int:
    return len({(swept.positions.name, swept.positions.draw) for swept in protein.sweeps})


def check_finite(outcome: Outcome, model: str, sequence_id: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        ExtractionError: naming model, protein and the first block.
    """
    bad = ~(np.isfinite(outcome.size).all(-1) & np.isfinite(outcome.change).all((0, 2)))
    if bad.any():
        block = int(np.argmax(bad)) + 1
        raise ExtractionError(
            f"updates of block {block} of {model} are NaN or infinite in protein {sequence_id}; check the weights "
            "(the card's digests) or use a wider dtype; nothing was written"
        )


# ----------------------------------------------------------------------------------------------------------------
# The stage


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.activations.effects", description=__doc__.split("\n")[0])
    add_model_options(parser)
    parser.add_argument("--sequences", type=Path, required=True, help="shard (SEQUENCES table)")
    parser.add_argument("--nulls", required=True, help="JSON list of {null_model, seed}")
    parser.add_argument("--inputs", required=True, help="JSON: the inputs section of the config")
    add_window_option(parser)
    add_structure_options(parser)
    parser.add_argument("--skips", required=True, help="JSON: what is silenced; see the module")
    parser.add_argument("--reference", type=Path, help="SEQUENCES table behind the ablations mean and resample")
    parser.add_argument("--seed", type=int, required=True, help="of masks, position sets and donors")
    parser.add_argument("--skip", type=Path, required=True, help="table SKIP_SEQ")
    parser.add_argument("--output-change", type=Path, required=True, help="table SKIP_OUT_SEQ")
    options = parser.parse_args(argv)
    with running("activations.effects") as log:
        nulls, skips = parse_nulls(options.nulls), read_settings(Skips, options.skips, "--skips")
        sequences = read_shard(options.sequences)
        reference = read_shard(options.reference)[: skips.reference] if options.reference else []
        model_id, adapter = loaded(options, log)
        needed = dict([*sequences, *(reference if skips.donated else [])])
        conditions, structures = shown_by(options, adapter, list(needed.items()), log)
        measure(
            adapter,
            sequences,
            skip=options.skip,
            output_change=options.output_change,
            model_id=model_id,
            nulls=nulls,
            views=views_for(adapter, options.inputs, log),
            skips=skips,
            seed=options.seed,
            reference=reference,
            token_budget=options.token_budget,
            window=options.batch_window,
            conditions=conditions,
            structures=structures,
            log=log,
        )


if __name__ == "__main__":
    main()
