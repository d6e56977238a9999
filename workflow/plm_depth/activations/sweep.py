"""The engine: many altered runs of one protein carried through the blocks together.

Rows of one batch: the clean run first (row 0), then one row a lane. A lane enters the batch at its first intervention,
with a copy of the clean stream that is altered there, so that

* nothing before the intervention is computed again (prefix reuse: the identity with a whole run is exact);
* each block's weights are touched once for all lanes, ``n (n + 1) / 2`` block evaluations for all ``n`` sources;
* clean and altered runs pass the same code in the same batch, so that what differs between them is not the batch. How
  far one and the same value is apart between batches is the noise floor (``plm_depth.activations.effects``).

All rows of one protein are equally long: nothing is padded. Several proteins go side by side where the token budget
allows. Norms are taken block by block; no stream but that of the current block is kept.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from plm_depth.activations import batches
from plm_depth.activations.extract import widened
from plm_depth.activations.interventions import Intervention, InterventionError, Itself, Lane
from plm_depth.activations.runs import Runs
from plm_depth.models.base import Adapter, Context, Tokens, Updates
from plm_depth.models.branches import Branches
from plm_depth.models.fast import Steps, steps

OUTPUTS = ("l2", "kl_fo", "tv", "flip1", "dnll")  # the five quantities of the output change
VOCABULARIES = ("aa20", "full")
NUMBERS_AT_ONCE = 4_000_000  # log-probabilities that are compared together


@dataclass(frozen=True, eq=False)
class Work:
    """One protein in one view, the lanes to run on it, and where its output is read.

    Attributes:
        name: sequence_id, for messages.
        tokens: the protein as the model reads it.
        lanes: altered runs, any number and order.
        branches: how the protein is laid out in its row, for models that can; None: as it is. Lanes, reads and outcomes
            are then about the tokens of the row.
        reads: (n_reads,) int64, tokens whose read-out is compared.
        true: (n_reads,) int64, token id of the residue that each read predicts; -1 where there is none.
    """

    name: str
    tokens: Tokens
    lanes: tuple[Lane, ...]
    reads: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    true: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    branches: Branches | None = None

    @property
    def n_tokens(self) -> int:
        """Return the tokens of a row."""
        return self.tokens.n_tokens if self.branches is None else len(self.branches.source)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the lanes of one protein did.

    Attributes:
        size: (n_blocks, n_tokens), norm of each clean update |u_j|.
        change: (n_lanes, n_blocks, n_tokens), |u_j - u*_j|; 0 before the first intervention.
        output: per vocabulary (n_lanes, 5, n_reads) float64, the quantities of ``OUTPUTS`` in that order; NaN in local
            lanes (nothing travels to their output), and dnll NaN where no residue is predicted.
        rerouted: (n_lanes, n_blocks, n_tokens) bool, whether the token takes other experts, in blocks after the first
            intervention; None where the model is no mixture of experts.
    """

    size: np.ndarray
    change: np.ndarray
    output: Mapping[str, np.ndarray]
    rerouted: np.ndarray | None = None


# ----------------------------------------------------------------------------------------------------------------
# Planning


def sweep(
    adapter: Adapter, works: Sequence[Work], *, token_budget: int, max_padding: float, log: logging.Logger
) -> Iterator[tuple[int, Outcome]]:
    """Run all lanes of all works; yield (index into ``works``, outcome), longest proteins first.

    Args:
        token_budget: largest rows x tokens carried through a block at once. A protein whose lanes do not fit is cut
            into groups of lanes, ascending in their first block; later groups start from the kept clean stream.
        max_padding: share of padding allowed when proteins go side by side; 0: only proteins of equal length.
    Running out of memory halves what runs together (first proteins, then lanes) and goes on, logged.

    Raises:
        BatchError: one lane of one protein does not fit into memory.
        InterventionError: a lane that this model cannot have.
    """
    by_shape: dict[tuple, list[int]] = {}
    for index, work in enumerate(works):
        # Proteins in branches differ in their masks: each runs alone.
        apart = None if work.branches is None else index
        by_shape.setdefault((apart, *(lane.shape for lane in work.lanes)), []).append(index)
    evaluator = steps(adapter)
    for indices in by_shape.values():
        rows = 1 + len(works[indices[0]].lanes)
        tokens = [rows * works[i].n_tokens for i in indices]
        for batch in batches.plan(tokens, token_budget=token_budget, max_padding=max_padding):
            members = [indices[i] for i in batch]
            # A single protein that does not fit is halved along its lanes inside; only then is it an error.
            for part, outcomes in batches.run_halving(
                members,
                lambda part: _run_groups(adapter, evaluator, [works[i] for i in part], token_budget, log),
                log=log,
                name=lambda i: works[i].name,
            ):
                yield from zip(part, outcomes)


def side_by_side(adapter: Adapter, works: Sequence[Work], *, token_budget: int, log: logging.Logger) -> list[Outcome]:
    """Return the outcomes of works of one shape in one batch, whatever share of it is padding.

    Their lanes go in groups that keep to the budget (rows x tokens), ever smaller ones where memory runs out.
    """
    return _run_groups(adapter, steps(adapter), works, token_budget, log, is_together=True)


def _run_groups(
    adapter: Adapter,
    evaluator: Steps,
    works: Sequence[Work],
    token_budget: int,
    log: logging.Logger,
    *,
    is_together: bool = False,
) -> list[Outcome]:
    """Run works of one shape side by side, their lanes in groups that keep to the budget."""
    n_lanes = len(works[0].lanes)
    order = sorted(range(n_lanes), key=lambda k: works[0].lanes[k].first)
    tokens = len(works) * max(work.n_tokens for work in works)
    kept: dict[int, Tensor] = {}
    parts: list[tuple[list[int], list[Outcome]]] = []

    def run(group: list[int], later: list[list[int]]) -> list[Outcome]:
        chosen = [replace(work, lanes=tuple(work.lanes[k] for k in group)) for work in works]
        start = works[0].lanes[group[0]].first - 1 if parts else 0
        wanted = {works[0].lanes[g[0]].first - 1 for g in later}
        return run_lanes(
            adapter, chosen, evaluator=evaluator, start=kept.get(start), start_layer=start, keep=wanted, kept=kept
        )

    # Of several proteins the caller halves these first, unless they are to stay together.
    for group, outcomes in batches.run_groups(
        order,
        max(1, token_budget // tokens - 1),
        run,
        is_halved=len(works) == 1 or is_together,
        log=log,
        name=f"lanes of {works[0].name}",
    ):
        parts.append((group, outcomes))
    return [_joined([(group, outcomes[w]) for group, outcomes in parts], n_lanes) for w in range(len(works))]


def _joined(parts: list[tuple[list[int], Outcome]], n_lanes: int) -> Outcome:
    if len(parts) == 1 and parts[0][0] == list(range(n_lanes)):
        return parts[0][1]
    first = parts[0][1]
    change = np.empty((n_lanes, *first.change.shape[1:]), first.change.dtype)
    rerouted = None if first.rerouted is None else np.empty(change.shape, bool)
    output = {name: np.empty((n_lanes, *values.shape[1:])) for name, values in first.output.items()}
    for group, outcome in parts:
        change[group] = outcome.change
        if rerouted is not None:
            rerouted[group] = outcome.rerouted
        for name, values in outcome.output.items():
            output[name][group] = values
    return Outcome(first.size, change, output, rerouted)  # the first group passes all blocks


# ----------------------------------------------------------------------------------------------------------------
# The growing batch


@torch.inference_mode()
def run_lanes(
    adapter: Adapter,
    works: Sequence[Work],
    *,
    evaluator: Steps | None = None,
    start: Tensor | None = None,
    start_layer: int = 0,
    keep: Collection[int] = (),
    kept: dict[int, Tensor] | None = None,
) -> list[Outcome]:
    """Run lanes of one shape (``Lane.shape``) on proteins side by side; one outcome a protein.

    Rows are lane-major: row ``(1 + lane) * n_works + work``, the clean runs first, so that the active rows are always
    the head of one buffer.

    Args:
        evaluator: what evaluates the blocks, by default ``steps(adapter)``.
        start, start_layer: clean stream (n_works, n_tokens, d_model) at a layer before every lane's first intervention;
            by default the embedding. Sizes and changes of skipped blocks are left 0.
        keep, kept: layers whose clean stream is put into ``kept``.
    """
    n_works, lanes = len(works), works[0].lanes
    order = sorted(range(len(lanes)), key=lambda k: lanes[k].first)
    batch = adapter.collate([work.tokens for work in works], adapter.device)
    with adapter.precision():
        embedded, context = adapter.embed(batch)
        if works[0].branches is not None:
            if n_works > 1:
                raise InterventionError("proteins laid out in branches run one at a time")
            embedded = embedded[:, torch.from_numpy(works[0].branches.source).to(embedded.device)]
            context = adapter.branch(context, works[0].branches)
        # Half-precision weights work under autocast; the stream itself is never narrower than float32.
        clean = embedded.to(torch.promote_types(embedded.dtype, torch.float32)) if start is None else start
        n_tokens = clean.shape[1]
        carried = _Lanes(adapter, evaluator or steps(adapter), works, order, clean, context)
        size = clean.new_zeros(adapter.n_blocks, n_works, n_tokens)
        change = clean.new_zeros(adapter.n_blocks, len(lanes), n_works, n_tokens)
        rerouted = change.bool() if adapter.is_mixture else None
        for block in range(start_layer + 1, adapter.n_blocks + 1):
            if block - 1 in keep and kept is not None:
                kept[block - 1] = carried.clean.clone()
            carried.step(block, size[block - 1], change[block - 1], None if rerouted is None else rerouted[block - 1])
        read = _read_out(adapter, works, carried)
    place = np.argsort(order)
    size, change = size.cpu().numpy(), change.cpu().numpy()
    return [
        Outcome(
            size[:, w, : work.n_tokens],
            change[:, place, w, : work.n_tokens].swapaxes(0, 1),
            {name: values[place, w, :, : len(work.reads)] for name, values in read.items()},
            None if rerouted is None else rerouted[:, place, w, : work.n_tokens].swapaxes(0, 1).cpu().numpy(),
        )
        for w, work in enumerate(works)
    ]


class _Lanes(Runs):
    """The streams of all runs at one layer, and how they pass a block."""

    def __init__(
        self,
        adapter: Adapter,
        evaluator: Steps,
        works: Sequence[Work],
        order: Sequence[int],
        clean: Tensor,
        context: Context,
    ):
        super().__init__(adapter, evaluator, len(order), clean, context)
        self.lanes = [[work.lanes[k] for work in works] for k in order]  # lane by lane, protein by protein
        self.n_active = 0
        self.taken = {k: clean.new_empty(0) for k, lane in enumerate(self.lanes) if lane[0].local}
        last = max((edit.source for lane in self.lanes for edit in lane[0].edits), default=0)
        if last > adapter.n_blocks or (self.lanes and self.lanes[0][0].first < 1):
            raise InterventionError(f"block {last}: {adapter.family} has blocks 1..{adapter.n_blocks}")

    def step(self, block: int, size: Tensor, change: Tensor, rerouted: Tensor | None = None) -> None:
        """Take all runs through a block; write |u| (n_works, n_tokens) and |u - u*| (n_lanes, n_works, n_tokens).

        In a mixture of experts also write which tokens take other experts than in the clean run, (n_lanes, n_works,
        n_tokens).
        """
        adapter, n = self.adapter, self.n_works
        active = self.n_active
        rows = self.streams[: (1 + active) * n]
        for k, taken in self.taken.items():
            if k < active:
                torch.add(self.clean, taken, out=self.streams[self.rows(k)])
        updates = widened(self.evaluator.updates(block, rows, self.contexts(len(rows))), rows.dtype)
        total = updates.total
        after = adapter.add(rows, updates)
        size.copy_(torch.linalg.vector_norm(total[:n], dim=-1))
        if active:
            moved = total[n:].unflatten(0, (active, n)) - total[:n]
            change[:active] = torch.linalg.vector_norm(moved, dim=-1)
            if rerouted is not None:
                taken = adapter.experts(block, updates.middle)
                rerouted[:active] = (taken[n:].unflatten(0, (active, n)) != taken[:n]).any(-1)

        entering = [k for k in range(active, len(self.lanes)) if self.lanes[k][0].first == block]
        again = [k for k in range(active) if any(edit.source == block for edit in self.lanes[k][0].edits[1:])]
        altered = []
        for k in (*again, *entering):
            at = slice(0, n) if k in entering else self.rows(k)
            edits = [next(edit for edit in lane.edits if edit.source == block) for lane in self.lanes[k]]
            altered.append((k, at, edits))
        for k, (new_after, new_total) in self._altered(block, altered, rows, updates, total, after):
            if k in self.taken:
                self.taken[k] = new_after
                continue
            change[k] = torch.linalg.vector_norm(new_total - total[:n], dim=-1)
            if k < active:
                after[self.rows(k)] = new_after
            else:
                self.streams[self.rows(k)] = new_after
        rows.copy_(after)
        self.n_active = active + len(entering)

    def _altered(
        self,
        block: int,
        altered: Sequence[tuple[int, slice, list[Intervention]]],
        rows: Tensor,
        updates: Updates,
        total: Tensor,
        after: Tensor,
    ) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """Yield, lane by lane, (stream after the block, update) under the interventions at this block.

        A local lane gets (what is added to the clean input of later blocks, nothing).
        """
        again: list[tuple[int, slice, Updates, Tensor]] = []  # lanes whose later branches must be computed anew
        for k, at, edits in altered:
            here = Updates(
                updates.attention[at],
                updates.mlp[at],
                updates.middle[at],
                None if updates.geometric is None else updates.geometric[at],
            )
            part = edits[0].part
            original = {"layer": total[at], "attn": here.attention, "mlp": here.mlp, "geom": here.geometric}[part]
            if original is None:
                raise InterventionError(
                    f"block {block} of {self.adapter.family} has no geometric branch; leave out geom"
                )
            mask = self._mask(edits)
            by = torch.stack([edit.by.of(original[w]) for w, edit in enumerate(edits)])
            if k in self.taken:
                yield k, (torch.where(mask, by - original, 0).to(rows.dtype), total[:0])
            elif part == "layer":
                same = isinstance(edits[0].by, Itself)
                replaced = after[at] if same else rows[at] + by
                yield k, (torch.where(mask, replaced, after[at]), torch.where(mask, by, total[at]))
            else:
                by = torch.where(mask, by, original)
                if part == "mlp" or (part == "attn" and self.adapter.is_parallel):
                    changed = Updates(by, here.mlp, here.middle) if part == "attn" else _with_mlp(here, by)
                    moved = self.adapter.add(rows[at], changed)
                    yield k, (torch.where(mask, moved, after[at]), torch.where(mask, changed.total, total[at]))
                else:
                    again.append((k, at, _with_branch(here, part, by), mask))
        if again:
            yield from self._with_later_branches(block, again, rows, updates, total, after)

    def _with_later_branches(
        self,
        block: int,
        again: Sequence[tuple[int, slice, Updates, Tensor]],
        rows: Tensor,
        updates: Updates,
        total: Tensor,
        after: Tensor,
    ) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """Compute geometric branch and MLP anew for all lanes at once, from their changed streams."""
        adapter, n = self.adapter, self.n_works
        stream = torch.cat([rows[at] for _, at, _, _ in again])
        attention = torch.cat([changed.attention for _, _, changed, _ in again])
        context = self.contexts(len(stream))
        middle = stream + attention
        geometric = None
        if updates.geometric is not None:
            geometric = adapter.geometric_update(block, middle, context)
            for place, (_, _, changed, _) in enumerate(again):
                if changed.geometric is not None:  # this branch is the one that was replaced
                    geometric[place * n : (place + 1) * n] = changed.geometric
            middle = middle + geometric
        mlp = self.evaluator.mlp_update(block, middle, context)
        changed = widened(Updates(attention, mlp, middle, geometric), rows.dtype)
        moved, moved_total = adapter.add(stream, changed), changed.total
        for place, (k, at, _, mask) in enumerate(again):
            new, new_total = moved[place * n : (place + 1) * n], moved_total[place * n : (place + 1) * n]
            if again[place][2].geometric is None and updates.geometric is not None:
                yield k, (new, new_total)  # a changed attention reaches other positions through the geometric branch
            else:
                yield k, (torch.where(mask, new, after[at]), torch.where(mask, new_total, total[at]))

    def _mask(self, edits: Sequence[Intervention]) -> Tensor:
        mask = np.zeros((self.n_works, self.streams.shape[1], 1), bool)
        for w, edit in enumerate(edits):
            mask[w, : len(edit.at), 0] = edit.at
        return torch.from_numpy(mask).to(self.streams.device)


def _with_mlp(updates: Updates, mlp: Tensor) -> Updates:
    return Updates(updates.attention, mlp, updates.middle, updates.geometric)


def _with_branch(updates: Updates, part: str, by: Tensor) -> Updates:
    """Return updates of which only the replaced branch and those before it are meant; the rest is computed anew."""
    if part == "attn":
        return Updates(by, updates.mlp, updates.middle)
    return Updates(updates.attention, updates.mlp, updates.middle, by)


# ----------------------------------------------------------------------------------------------------------------
# What comes out


def _read_out(adapter: Adapter, works: Sequence[Work], carried: _Lanes) -> dict[str, np.ndarray]:
    """Return per vocabulary (n_lanes, n_works, 5, n_reads): the head runs at read tokens only.

    It runs a lane at a time, in the shape of the clean run, so that equal streams read out to equal bits; what comes
    after the head is done for many lanes together.
    """
    n_works, n_reads = len(works), max(len(work.reads) for work in works)
    result = {name: np.full((len(carried.lanes), n_works, len(OUTPUTS), n_reads), np.nan) for name in VOCABULARIES}
    propagating = [lane for lane in range(len(carried.lanes)) if lane not in carried.taken]
    if not n_reads or not propagating:
        return result
    device = carried.streams.device
    reads = np.zeros((n_works, n_reads), np.int64)
    true = np.full((n_works, n_reads), -1, np.int64)
    for w, work in enumerate(works):
        reads[w, : len(work.reads)], true[w, : len(work.true)] = work.reads, work.true
    at = torch.from_numpy(reads).to(device)
    rows = torch.arange(n_works, device=device)[:, None]
    columns = {"aa20": adapter.residue_ids, "full": np.array(sorted(adapter.vocabulary))}
    of_column = {name: torch.as_tensor(ids, device=device) for name, ids in columns.items()}
    targets = {name: torch.from_numpy(place_of(true, ids)).to(device) for name, ids in columns.items()}

    def logits(part: slice) -> dict[str, Tensor]:
        found = adapter.read_out(carried.streams[part][rows, at])
        return {name: found[..., column].double() for name, column in of_column.items()}

    before = {name: x.log_softmax(-1) for name, x in logits(slice(0, n_works)).items()}
    together = max(1, NUMBERS_AT_ONCE // before["full"].numel())
    for start in range(0, len(propagating), together):
        lanes = propagating[start : start + together]
        altered = [logits(carried.rows(lane)) for lane in lanes]
        for name in VOCABULARIES:
            after = torch.stack([x[name] for x in altered]).log_softmax(-1)
            result[name][lanes] = (
                output_changes(before[name], after, targets[name].expand(after.shape[:-1])).cpu().numpy()
            )
    return result


def place_of(true: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the column of each token id, -1 where it has none."""
    place = np.searchsorted(np.sort(columns), true)
    order = np.argsort(columns)
    found = np.isin(true, columns)
    return np.where(found, order[np.minimum(place, len(columns) - 1)], -1)


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """Return KL(before || after) of log-probabilities (..., n_columns) in nats, (...), at least 0.

    Raises:
        ValueError: one below -1e-6, which no rounding explains.
    """
    p = before.exp()
    kl = torch.where(p > 0, p * (before - after), 0).sum(-1)
    if bool((kl < -1e-6).any()):
        raise ValueError(f"KL divergence {float(kl.min()):.3g} below 0: the log-probabilities are not normalised")
    return kl.clamp(min=0)


def output_changes(before: Tensor, after: Tensor, true: Tensor) -> Tensor:
    """Return how the output changed, the quantities of ``OUTPUTS`` on the axis before the last.

    l2 is the norm of the difference of the probabilities, in [0, sqrt 2]; kl_fo KL(before || after) in nats; tv the
    total variation, in [0, 1]; flip1 whether the likeliest token changed, 0 or 1; dnll the growth of the negative
    log-likelihood of the true residue in nats.

    Args:
        before, after: log-probabilities (..., n_reads, n_columns); ``before`` may lack leading axes of ``after``.
        true: (..., n_reads) column of the true residue, -1 where there is none (dnll NaN).
    Raises:
        ValueError: a KL divergence below -1e-6, which no rounding explains.
    """
    p, q = before.exp(), after.exp()
    target = true.clamp(min=0)[..., None]
    likelihood = [x.expand_as(after).gather(-1, target)[..., 0] for x in (before, after)]
    changes = (
        torch.linalg.vector_norm(p - q, dim=-1),
        divergence(before, after),
        (p - q).abs().sum(-1) / 2,
        (before.argmax(-1) != after.argmax(-1)).to(p.dtype),
        torch.where(true >= 0, likelihood[0] - likelihood[1], torch.nan),
    )
    return torch.stack(changes, dim=-2)
