"""Residual erasure: what the output loses when the state of a position is replaced by a mean (metric E3).

    erase(layer, at):   at the tokens ``at`` the state h_layer becomes the given vector; later layers follow from it

All erasures of a protein are rows of one growing batch: row 0 is the clean run, and an erasure enters after its layer
as a copy of row 0 with the erased tokens replaced. So no layer before an erasure is computed again, weights are touched
once a layer for all rows, and clean and altered rows pass the same code in the same batch.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plm_depth.activations import batches
from plm_depth.activations.extract import widened
from plm_depth.activations.sweep import output_changes
from plm_depth.models.base import Adapter, Context
from plm_depth.models.fast import Steps, steps


@dataclass(frozen=True, eq=False)
class Erasure:
    """One altered run.

    Attributes:
        layer: 0..n_blocks, whose state is replaced.
        at: (n_tokens,) bool, the tokens.
        by: (d_model,) what stands in their place, or (n_tokens, d_model) for one vector a token.
    """

    layer: int
    at: np.ndarray
    by: Tensor


@torch.inference_mode()
def erase(
    adapter: Adapter,
    stream: Tensor,
    context: Context,
    erasures: Sequence[Erasure],
    reads: np.ndarray,
    columns: Mapping[str, np.ndarray],
    *,
    token_budget: int,
    log: logging.Logger,
    evaluator: Steps | None = None,
    name: str = "protein",
) -> dict[str, np.ndarray]:
    """Return by vocabulary what each erasure changes, (n_erasures, 5, n_reads) float64, as ``sweep.OUTPUTS``.

    Args:
        stream, context: of one protein, as ``embed`` gives them.
        reads: (n_reads,) tokens that are read out.
        columns: token ids of each vocabulary.
        token_budget: largest rows x tokens that pass a block together; changes speed and memory only.
        evaluator: what evaluates blocks, ``fast.steps(adapter)`` by default; making one copies weights.
    Raises:
        BatchError: one erasure alone does not fit into memory.
    """
    order = sorted(range(len(erasures)), key=lambda k: erasures[k].layer)
    result = {vocabulary: np.full((len(erasures), 5, len(reads)), np.nan) for vocabulary in columns}
    if not order or not len(reads):
        return result
    evaluator = evaluator or steps(adapter)
    stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
    at = torch.from_numpy(reads).to(stream.device)
    ids = {vocabulary: torch.as_tensor(tokens, device=stream.device) for vocabulary, tokens in columns.items()}
    capacity = max(1, token_budget // stream.shape[1] - 1)
    n_groups = -(-len(order) // capacity)
    kept = {0: stream}
    for group in np.array_split(np.array(order), n_groups):
        for part, changes in batches.run_halving(
            group.tolist(),
            lambda part: _run(adapter, evaluator, kept, context, [erasures[k] for k in part], at, ids),
            log=log,
            name=lambda k: f"{name}, layer {erasures[k].layer} erased",
        ):
            for vocabulary, values in changes.items():
                result[vocabulary][part] = values
    return result


def _run(
    adapter: Adapter,
    evaluator: Steps,
    kept: dict[int, Tensor],
    context: Context,
    erasures: Sequence[Erasure],
    at: Tensor,
    ids: Mapping[str, Tensor],
) -> dict[str, np.ndarray]:
    """Run erasures in ascending order of their layers; ``kept`` holds clean states by layer and gains one."""
    first, last = erasures[0].layer, erasures[-1].layer
    start = max(layer for layer in kept if layer <= first)
    rows = kept[start]
    waiting = list(erasures)
    for layer in range(start, adapter.n_blocks + 1):
        entering = [waiting.pop(0) for _ in range(sum(one.layer == layer for one in waiting))]
        if entering:
            rows = torch.cat([rows, torch.stack([_erased(rows[0], one) for one in entering])])
        if layer == last:
            kept[layer] = rows[:1].clone()
        if layer < adapter.n_blocks:
            with adapter.precision():
                updates = widened(evaluator.updates(layer + 1, rows, context), rows.dtype)
                rows = adapter.add(rows, updates)
    # The head in the shape of the clean run, row by row, so that equal states read out to equal bits.
    with adapter.precision():
        logits = torch.cat([adapter.read_out(row[None, at]) for row in rows])
    none = torch.full((len(at),), -1, device=at.device)
    changes = {}
    for vocabulary, tokens in ids.items():
        log_p = logits[..., tokens].double().log_softmax(-1)
        changes[vocabulary] = output_changes(log_p[0], log_p[1:], none.expand(len(log_p) - 1, -1)).cpu().numpy()
    return changes


def _erased(clean: Tensor, erasure: Erasure) -> Tensor:
    by = erasure.by.to(clean).expand_as(clean)
    return torch.where(torch.from_numpy(erasure.at).to(clean.device)[:, None], by, clean)


@torch.inference_mode()
def mean_states(adapter: Adapter, proteins: Sequence[tuple[object, np.ndarray]]) -> Tensor:
    """Return the mean state of every layer over the chosen tokens, (n_blocks + 1, d_model) float64 on the CPU.

    Args:
        proteins: (Tokens, (n_tokens,) bool) pairs; the means are over the chosen tokens of all of them.
    Raises:
        ValueError: no token was chosen.
    """
    sums = torch.zeros(adapter.n_blocks + 1, adapter.d_model, dtype=torch.float64)
    n = 0
    for tokens, chosen in proteins:
        at = torch.from_numpy(np.flatnonzero(chosen)).to(adapter.device)
        n += len(at)
        with adapter.precision():
            stream, context = adapter.embed(adapter.collate([tokens], adapter.device))
            stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
            sums[0] += stream[0, at].double().sum(0).cpu()
            for block in range(1, adapter.n_blocks + 1):
                stream = adapter.add(stream, widened(adapter.updates(block, stream, context), stream.dtype))
                sums[block] += stream[0, at].double().sum(0).cpu()
    if not n:
        raise ValueError("no token to take means over")
    return sums / n
