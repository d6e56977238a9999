"""Gradients of a number of the read-out with respect to states and gates, block by block through any adapter.

Weights are frozen and nothing but the stream is differentiated. A walk keeps the states between the blocks; the way
back computes one block again at a time, so that memory grows with the states and not with what happens inside of the
blocks, at the cost of one more forward pass.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plm_depth.activations.extract import widened
from plm_depth.models.base import Adapter, Context

TARGETS = ("logp", "prob")


@contextlib.contextmanager
def frozen(adapter: Adapter) -> Iterator[Adapter]:
    """Yield the adapter with weights that ask for no gradient; afterwards they ask as before."""
    asking = [parameter for parameter in adapter.module.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield adapter
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@dataclass(frozen=True, eq=False)
class Readers:
    """Which read-outs a target sums over, of one protein.

    Attributes:
        tokens: (n_reads,) int64, tokens that are read out.
        columns: (n_columns,) int64, token ids that probabilities are normalised over.
        true: (n_reads,) int64, column of the residue that each read predicts.
        targets: some of ``TARGETS``.
    """

    tokens: Tensor
    columns: Tensor
    true: Tensor
    targets: tuple[str, ...]

    def score(self, adapter: Adapter, stream: Tensor) -> Tensor:
        """Return each target of the last state (n_rows, n_tokens, d_model), (n_targets, n_rows) float64.

        logp is the sum over reads of the log-probability of the true residue, in nats; prob the sum of its probability.
        """
        with adapter.precision():
            logits = adapter.read_out(stream[:, self.tokens])
        log_p = logits[..., self.columns].double().log_softmax(-1)
        log_p = log_p.gather(-1, self.true.expand(len(stream), -1)[..., None])[..., 0]
        values = {"logp": log_p, "prob": log_p.exp()}
        return torch.stack([values[name].sum(-1) for name in self.targets])


@torch.no_grad()
def walk(
    adapter: Adapter,
    context: Context,
    stream: Tensor,
    *,
    first: int = 0,
    gates: Tensor | None = None,
    parts: Sequence[str] = (),
) -> list[Tensor]:
    """Return the states from layer ``first`` (the given stream) to the last, each (n_rows, n_tokens, d_model).

    Args:
        gates: (n_rows,) the share of every update of ``parts`` that is added; None adds them whole.
    """
    states = [stream]
    for block in range(first + 1, adapter.n_blocks + 1):
        states.append(_passed(adapter, context, block, states[-1], _gates_of(states[-1], gates, parts)))
    return states


def _gates_of(stream: Tensor, gates: Tensor | None, parts: Sequence[str]) -> dict[str, Tensor]:
    if gates is None:
        return {}
    return {part: gates[:, None, None].expand(*stream.shape[:2], 1).clone() for part in parts}


def _passed(adapter: Adapter, context: Context, block: int, stream: Tensor, gates: dict[str, Tensor]) -> Tensor:
    """Return the state after a block, each part of its update times its gate (n_rows, n_tokens, 1)."""
    with adapter.precision():
        if not gates:
            return adapter.add(stream, widened(adapter.updates(block, stream, context), stream.dtype))
        if "layer" in gates:
            total = widened(adapter.updates(block, stream, context), stream.dtype).total
            return stream + gates["layer"] * total
        attention = gates["attn"] * adapter.attention_update(block, stream, context).to(stream.dtype)
        if adapter.is_parallel:
            return stream + attention + gates["mlp"] * adapter.mlp_update(block, stream, context).to(stream.dtype)
        middle = stream + attention
        geometric = adapter.geometric_update(block, middle, context)
        if geometric is not None:
            middle = middle + gates["geom"] * geometric.to(stream.dtype)
        return middle + gates["mlp"] * adapter.mlp_update(block, middle, context).to(stream.dtype)


def pull_back(
    adapter: Adapter,
    context: Context,
    states: Sequence[Tensor],
    readers: Readers,
    *,
    first: int = 0,
    gates: Tensor | None = None,
    parts: Sequence[str] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Return targets, their gradients at the first state, and those of the gates.

    Args:
        states, first, gates, parts: what ``walk`` returned and was given.
    Returns:
        (n_targets, n_rows); (n_targets, n_rows, n_tokens, d_model); (n_targets, n_blocks - first, n_parts, n_rows,
        n_tokens), zero where a block lacks a part.
    """
    with torch.enable_grad():
        last = states[-1].detach().requires_grad_()
        scores = readers.score(adapter, last)
        pulled = _pulled(scores.unbind(0), [last], [torch.ones_like(score) for score in scores])
    backward = [grads[0] for grads in pulled]
    n_targets, n_rows, n_tokens = len(scores), *last.shape[:2]
    of_gates = last.new_zeros(n_targets, adapter.n_blocks - first, len(parts), n_rows, n_tokens)
    for block in range(adapter.n_blocks, first, -1):
        with torch.enable_grad():
            entering = states[block - 1 - first].detach().requires_grad_()
            own = {part: gate.requires_grad_() for part, gate in _gates_of(entering, gates, parts).items()}
            leaving = _passed(adapter, context, block, entering, own)
            pulled = _pulled([leaving] * n_targets, [entering, *own.values()], backward)
        for target, grads in enumerate(pulled):
            backward[target] = grads[0]
            for part, grad in enumerate(grads[1:]):
                if grad is not None:
                    of_gates[target, block - 1 - first, part] = grad[..., 0]
    return scores.detach(), torch.stack(backward), of_gates


def _pulled(outputs: Sequence[Tensor], inputs: Sequence[Tensor], by: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    last = len(outputs) - 1
    return [
        torch.autograd.grad(output, inputs, one, retain_graph=number < last, allow_unused=True)
        for number, (output, one) in enumerate(zip(outputs, by))
    ]
