"""The same measurement, done plainly: one full forward pass of the library for each silenced block, with hooks.

It shares nothing with the engine: no stepping, no prefix reuse, one protein at a time, no batch.
"""

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from plm_depth.models.base import Adapter, Tokens


def branches_of(adapter: Adapter) -> list[dict[str, nn.Module]]:
    """Return the modules whose output is added to the stream, block by block."""
    module = adapter.module
    if adapter.family == "toy":
        return [
            {"attn": b.attention_out, "mlp": b.mlp_out}
            | ({"geom": b.geometric_out} if hasattr(b, "geometric_out") else {})
            for b in module.blocks
        ]
    if adapter.family == "progen2":
        return [{"attn": b.attn.out_proj, "mlp": b.mlp.fc_out} for b in module.transformer.h]
    return [{"attn": b.attention.output.dense, "mlp": b.output.dense} for b in module.esm.encoder.layer]


def scale_of(adapter: Adapter) -> float:
    return adapter.module.blocks[0].scale if adapter.family == "toy" else 1.0


@contextlib.contextmanager
def hooked(modules: list[nn.Module], change: Callable[[int, Tensor], Tensor]):
    handles = [
        module.register_forward_hook(lambda _, __, out, place=place: change(place, out))
        for place, module in enumerate(modules)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run(
    adapter: Adapter,
    tokens: Tokens,
    silenced: dict[tuple[int, str], tuple[np.ndarray, Tensor | float]] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (logits, branch name -> outputs (n_blocks, n_tokens, d_model)) of one full forward pass.

    ``silenced`` maps (block, branch) to (tokens, what its contribution is replaced by there).
    """
    branches, scale = branches_of(adapter), scale_of(adapter)
    keys = [(block, name) for block, parts in enumerate(branches, start=1) for name in parts]
    seen: dict[tuple[int, str], Tensor] = {}

    def change(place: int, out: Tensor) -> Tensor:
        key = keys[place]
        if silenced and key in silenced:
            at, by = silenced[key]
            out = torch.where(torch.from_numpy(at)[:, None], torch.as_tensor(by, dtype=out.dtype) * scale, out)
        seen[key] = out[0] / scale
        return out

    with hooked([branches[block - 1][name] for block, name in keys], change):
        logits = adapter.library_logits(adapter.collate([tokens]))[0]
    zero = torch.zeros_like(next(iter(seen.values())))
    return logits, {
        name: torch.stack([seen.get((block, name), zero) for block in range(1, adapter.n_blocks + 1)])
        for name in ("attn", "mlp", "geom")
    }


def skip(
    adapter: Adapter, tokens: Tokens, part: str, source: int, at: np.ndarray, by: Tensor | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return (|u_j - u*_j| (n_blocks, n_tokens), logits*) under do(part, source, at, by).

    A whole block's update is replaced at ``at`` only: elsewhere its branches give what they gave in the clean run.
    """
    _, clean = run(adapter, tokens)
    replaced = {(source, part): (at, by)}
    if part == "layer":
        names, here = [*branches_of(adapter)[source - 1]], torch.from_numpy(at)[:, None]
        everywhere = np.full(tokens.n_tokens, True)
        replaced = {
            (source, name): (
                everywhere,
                torch.where(
                    here, torch.as_tensor(by if name == "mlp" else 0.0).to(clean[name]), clean[name][source - 1]
                ),
            )
            for name in names
        }
    logits, altered = run(adapter, tokens, replaced)
    difference = sum(clean.values()) - sum(altered.values())
    return difference.norm(dim=-1).numpy(), logits.numpy()


@torch.no_grad()
def local(adapter: Adapter, tokens: Tokens, part: str, source: int, at: np.ndarray) -> np.ndarray:
    """Return |u_j - U_j(h_{j-1} - 1_S x_i)|, (n_blocks, n_tokens), 0 up to the source: one block call a target.

    Streams are sums of what the hooks saw; only the target block is evaluated, on the library's module.
    """
    _, clean = run(adapter, tokens)
    stream, context = adapter.embed(adapter.collate([tokens]))
    contribution = sum(clean.values()) if part == "layer" else clean[part]
    result = np.zeros((adapter.n_blocks, tokens.n_tokens))
    for target in range(1, adapter.n_blocks + 1):
        if target > source:
            altered = torch.where(torch.from_numpy(at)[:, None], stream[0] - contribution[source - 1], stream[0])
            updates = adapter.updates(target, altered[None], context)
            total = sum(values[target - 1] for values in clean.values())
            result[target - 1] = (total - updates.total[0]).norm(dim=-1).numpy()
        stream = stream + sum(values[target - 1] for values in clean.values())
    return result
