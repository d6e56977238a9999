"""Runs that leave the ordinary course of blocks and come back to it: removal, exchange, reversal, and the like.

A *detour* leaves the clean run after block ``start``, takes its own steps instead of blocks ``start + 1 .. end``, and
joins the ordinary course at layer ``end``. All tokens take part, specials included. Rows of one batch, as in
``plm_depth.activations.sweep``: the clean run first, then one row a detour:

* a detour starts from the clean stream at ``start`` (prefix reuse: nothing before it is computed again);
* detours that have joined share one batch with the clean run, so that each later block's weights are touched once;
* a step through a block that the batch is about to pass goes along with it; where a detour must catch up, steps of
  all detours through the same block are taken together.

Memory holds one stream a detour, so that the token budget counts every detour, joined or not.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plm_depth.activations import batches
from plm_depth.activations.extract import widened
from plm_depth.activations.interventions import InterventionError
from plm_depth.activations.runs import Runs
from plm_depth.activations.sweep import NUMBERS_AT_ONCE, Work, divergence
from plm_depth.models.base import Adapter, Context
from plm_depth.models.fast import Steps, steps

QUANTITIES = ("nll", "acc1", "kl_to_full", "flip1")


@dataclass(frozen=True)
class Through:
    """Pass a block; of several blocks all read the same stream, and the sum of their updates is added."""

    blocks: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Plus:
    """Add one vector, (d_model,), at every token: what stands in for the update of block ``block``."""

    block: int
    value: Tensor


@dataclass(frozen=True)
class Detour:
    """Leave the clean run after block ``start``, take ``steps``, go on with block ``end + 1``."""

    start: int
    steps: tuple[Through | Plus, ...]
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise InterventionError(f"a detour from layer {self.start} to layer {self.end}; expected 0 <= start <= end")

    @property
    def key(self) -> tuple:
        """Return what two detours that are the same run have in common."""
        names = (s.blocks if isinstance(s, Through) else ("plus", s.block) for s in self.steps)
        return (self.start, *names, self.end)


def _through(blocks: Sequence[int]) -> tuple[Through, ...]:
    return tuple(Through((block,)) for block in blocks)


def removal(start: int, length: int) -> Detour:
    """Return the run without blocks start + 1 .. start + length."""
    return Detour(start, (), start + length)


def swap(start: int, first: int, second: int | None = None) -> Detour:
    """Return the run in which a span of ``first`` blocks after layer ``start`` and the ``second`` after it exchange."""
    second = first if second is None else second
    early, late = (range(at + 1, at + n + 1) for at, n in ((start, first), (start + first, second)))
    return Detour(start, _through([*late, *early]), start + first + second)


def reversal(start: int, length: int) -> Detour:
    """Return the run that passes blocks start + 1 .. start + length in reverse order."""
    return Detour(start, _through(range(start + length, start, -1)), start + length)


def repetition(start: int, length: int) -> Detour:
    """Return the run that passes blocks start + 1 .. start + length twice; its first pass is the clean one."""
    return Detour(start + length, _through(range(start + 1, start + length + 1)), start + length)


def side_by_side(start: int, length: int) -> Detour:
    """Return the run in which blocks start + 1 .. start + length all read the stream of layer ``start``."""
    return Detour(start, (Through(tuple(range(start + 1, start + length + 1))),), start + length)


def in_its_place(block: int, value: Tensor) -> Detour:
    """Return the run in which a vector (d_model,) stands in for the update of a block."""
    return Detour(block - 1, (Plus(block, value),), block)


# ----------------------------------------------------------------------------------------------------------------
# Planning


def travel(
    adapter: Adapter,
    works: Sequence[Work],
    detours: Sequence[Detour],
    *,
    token_budget: int,
    max_padding: float,
    log: logging.Logger,
) -> Iterator[tuple[int, np.ndarray]]:
    """Run all detours on all works; yield (index into ``works``, values), longest proteins first.

    Values are (1 + n_detours, 4, n_reads) float64, the quantities of ``QUANTITIES`` over the canonical residues, the
    clean run first: nll of the true residue (nats), acc1 (whether it is the likeliest, ties to the first amino acid),
    kl_to_full KL(clean || altered) in nats, flip1 (whether the likeliest residue is another than in the clean run).

    Args:
        works: proteins with their reads; ``lanes`` and ``branches`` are not looked at.
        token_budget: largest rows x tokens held at once. A protein whose detours do not fit is cut into groups of
            detours, ascending in their start; later groups start from the kept clean stream.
        max_padding: share of padding allowed when proteins go side by side; 0: only proteins of equal length.
    Running out of memory halves what runs together (first proteins, then detours) and goes on, logged.

    Raises:
        BatchError: one detour of one protein does not fit into memory.
        InterventionError: a detour through a block that this model does not have.
    """
    _check(adapter, detours)
    evaluator = steps(adapter)
    tokens = [(1 + len(detours)) * work.n_tokens for work in works]
    for batch in batches.plan(tokens, token_budget=token_budget, max_padding=max_padding):
        for part, values in batches.run_halving(
            batch,
            lambda part: _run_groups(adapter, evaluator, [works[i] for i in part], detours, token_budget, log),
            log=log,
            name=lambda i: works[i].name,
        ):
            yield from zip(part, values)


def _check(adapter: Adapter, detours: Sequence[Detour]) -> None:
    n = adapter.n_blocks
    for detour in detours:
        passed = [block for step in detour.steps if isinstance(step, Through) for block in step.blocks]
        if detour.end > n or any(not 1 <= block <= n for block in passed):
            raise InterventionError(f"detour {detour.key}: {adapter.family} has blocks 1..{n}")


def _run_groups(
    adapter: Adapter,
    evaluator: Steps,
    works: Sequence[Work],
    detours: Sequence[Detour],
    token_budget: int,
    log: logging.Logger,
) -> list[np.ndarray]:
    """Run works side by side, their detours in groups that keep to the budget; one array of values a work."""
    order = sorted(range(len(detours)), key=lambda k: (detours[k].start, detours[k].end))
    tokens = len(works) * max(work.n_tokens for work in works)
    kept: dict[int, Tensor] = {}
    found = [np.full((1 + len(detours), len(QUANTITIES), len(work.reads)), np.nan) for work in works]
    is_first = True

    def run(group: list[int], later: list[list[int]]) -> list[np.ndarray]:
        start = 0 if is_first else detours[group[0]].start
        return run_detours(
            adapter,
            works,
            [detours[k] for k in group],
            evaluator=evaluator,
            start=kept.get(start),
            start_layer=start,
            keep={detours[g[0]].start for g in later},
            kept=kept,
        )

    # Of several proteins the caller halves these first.
    for group, values in batches.run_groups(
        order,
        max(1, token_budget // tokens - 1),
        run,
        is_halved=len(works) == 1,
        log=log,
        name=f"detours of {works[0].name}",
    ):
        is_first = False
        for whole, part in zip(found, values):
            whole[0], whole[[1 + k for k in group]] = part[0], part[1:]
    return found


# ----------------------------------------------------------------------------------------------------------------
# The growing batch


@torch.inference_mode()
def run_detours(
    adapter: Adapter,
    works: Sequence[Work],
    detours: Sequence[Detour],
    *,
    evaluator: Steps | None = None,
    start: Tensor | None = None,
    start_layer: int = 0,
    keep: Collection[int] = (),
    kept: dict[int, Tensor] | None = None,
) -> list[np.ndarray]:
    """Run detours on proteins side by side; per protein (1 + n_detours, 4, n_reads), as ``travel`` yields.

    Args:
        evaluator: what evaluates the blocks, by default ``steps(adapter)``.
        start, start_layer: clean stream (n_works, n_tokens, d_model) at a layer before every detour's start; by
            default the embedding.
        keep, kept: layers whose clean stream is put into ``kept``.
    """
    batch = adapter.collate([work.tokens for work in works], adapter.device)
    with adapter.precision():
        embedded, context = adapter.embed(batch)
        # Half-precision weights work under autocast; the stream itself is never narrower than float32.
        clean = embedded.to(torch.promote_types(embedded.dtype, torch.float32)) if start is None else start
        runs = _Detours(adapter, evaluator or steps(adapter), detours, clean, context)
        for layer in range(start_layer, adapter.n_blocks + 1):
            if layer in keep and kept is not None:
                kept[layer] = runs.clean.clone()
            runs.depart(layer)
            runs.join(layer)
            if layer < adapter.n_blocks:
                runs.pass_block(layer + 1)
        values = _read_out(adapter, works, runs)
    return [values[:, w, :, : len(work.reads)] for w, work in enumerate(works)]


class _Detours(Runs):
    """The streams of all runs, and how they go on.

    Rows are run-major: row ``(1 + slot) * n_works + work``, the clean runs first; slots are in the order in which
    detours join, so that what has joined is always the head of one buffer.
    """

    def __init__(self, adapter: Adapter, evaluator: Steps, detours: Sequence[Detour], clean: Tensor, context: Context):
        super().__init__(adapter, evaluator, len(detours), clean, context)
        self.order = sorted(range(len(detours)), key=lambda k: (detours[k].end, detours[k].start))
        self.detours = [detours[k] for k in self.order]
        self.n_joined = 0
        self.ahead: dict[int, list[Through | Plus]] = {}  # by slot, steps that a detour under way has still to take
        self.read: dict[int, Tensor] = {}  # by slot, the stream that blocks in parallel read
        self.todo: dict[int, list[int]] = {}  # by slot, blocks of its present step that were not passed yet

    def depart(self, layer: int) -> None:
        """Let the detours that start at a layer leave the clean run."""
        for slot, detour in enumerate(self.detours):
            if detour.start == layer:
                self.streams[self.rows(slot)] = self.clean
                self.ahead[slot] = list(detour.steps)
                self._next(slot)

    def _next(self, slot: int) -> None:
        """Begin the next step that needs a block, if there is one."""
        ahead = self.ahead[slot]
        while ahead and isinstance(ahead[0], Plus):
            self.streams[self.rows(slot)] += ahead.pop(0).value.to(self.streams)
        if ahead:
            self.todo[slot] = list(ahead.pop(0).blocks)
            if len(self.todo[slot]) > 1:
                self.read[slot] = self.streams[self.rows(slot)].clone()
        else:
            del self.ahead[slot]

    def join(self, layer: int) -> None:
        """Bring the detours that end at a layer there, and let them join."""
        while True:
            due = [slot for slot in self.todo if self.detours[slot].end == layer]
            if not due:
                break
            # The block that most of them wait for; others that wait for it go along.
            ((block, _),) = Counter(self.todo[slot][0] for slot in due).most_common(1)
            self._pass(block, n_joined_rows=0)
        self.n_joined = sum(detour.end <= layer for detour in self.detours)

    def pass_block(self, block: int) -> None:
        """Take the clean run and all that have joined through a block, and the detours that wait for it."""
        self._pass(block, n_joined_rows=(1 + self.n_joined) * self.n_works)

    def _pass(self, block: int, *, n_joined_rows: int) -> None:
        waiting = [slot for slot, blocks in self.todo.items() if blocks[0] == block]
        joined = self.streams[:n_joined_rows]
        parts = [self.read.get(slot, self.streams[self.rows(slot)]) for slot in waiting]
        rows = torch.cat([joined, *parts]) if parts else joined
        updates = widened(self.evaluator.updates(block, rows, self.contexts(len(rows))), rows.dtype)
        after = self.adapter.add(rows, updates)
        total = updates.total if any(slot in self.read for slot in waiting) else None
        joined.copy_(after[:n_joined_rows])
        for place, slot in enumerate(waiting):
            at = slice(n_joined_rows + place * self.n_works, n_joined_rows + (place + 1) * self.n_works)
            if slot in self.read:
                self.streams[self.rows(slot)] += total[at]
            else:
                self.streams[self.rows(slot)] = after[at]
            self.todo[slot].pop(0)
            if not self.todo[slot]:
                del self.todo[slot]
                self.read.pop(slot, None)
                self._next(slot)


# ----------------------------------------------------------------------------------------------------------------
# What comes out


def _read_out(adapter: Adapter, works: Sequence[Work], runs: _Detours) -> np.ndarray:
    """Return (1 + n_detours, n_works, 4, n_reads), detours in their own order, NaN where a work has fewer reads.

    The head runs at read tokens only, one run at a time, so that equal streams read out to equal bits; what comes after
    is done for many runs together.
    """
    n_works, n_reads = len(works), max(len(work.reads) for work in works)
    result = np.full((1 + len(runs.detours), n_works, len(QUANTITIES), n_reads), np.nan)
    if not n_reads:
        return result
    device = runs.streams.device
    reads, true = np.zeros((n_works, n_reads), np.int64), np.zeros((n_works, n_reads), np.int64)
    for w, work in enumerate(works):
        reads[w, : len(work.reads)] = work.reads
        true[w, : len(work.reads)] = np.argmax(work.true[:, None] == adapter.residue_ids, axis=1)
    at, target = torch.from_numpy(reads).to(device), torch.from_numpy(true).to(device)
    columns = torch.as_tensor(adapter.residue_ids, device=device)
    every = torch.arange(n_works, device=device)[:, None]

    def logits(rows: slice) -> Tensor:
        return adapter.read_out(runs.streams[rows][every, at])[..., columns].double()

    full = logits(slice(0, n_works)).log_softmax(-1)
    result[0] = measured(full, full, target).cpu().numpy()
    together = max(1, NUMBERS_AT_ONCE // full.numel())
    for first in range(0, len(runs.detours), together):
        slots = range(first, min(first + together, len(runs.detours)))
        altered = torch.stack([logits(runs.rows(slot)) for slot in slots]).log_softmax(-1)
        places = [1 + runs.order[slot] for slot in slots]
        result[places] = measured(full, altered, target.expand(altered.shape[:-1])).cpu().numpy()
    return result


def measured(full: Tensor, altered: Tensor, true: Tensor) -> Tensor:
    """Return the quantities of ``QUANTITIES`` on the axis before the last.

    Args:
        full, altered: log-probabilities (..., n_reads, 20); ``full`` may lack leading axes of ``altered``.
        true: (..., n_reads) column of the true residue.
    Raises:
        ValueError: a KL divergence below -1e-6, which no rounding explains.
    """
    first = altered.argmax(-1)
    return torch.stack(
        [
            -altered.gather(-1, true[..., None])[..., 0],
            (first == true).to(full.dtype),
            divergence(full, altered),
            (first != full.argmax(-1)).to(full.dtype),
        ],
        dim=-2,
    )
