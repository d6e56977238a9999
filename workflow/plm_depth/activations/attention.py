"""Attention maps at pairs of residues, as features for contacts; part of ``activations.embed``.

Of each head of each block: the map between residues (tokens that are none left aside) plus its transpose, less what
rows and columns alone explain (average product correction: Dunn et al. 2008; Rao et al. 2021). One protein at a time,
so that memory grows with the square of the longest protein only.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plm_depth.activations.extract import Item, item_of, naming, widened
from plm_depth.activations.nulls import Null, applied
from plm_depth.models.base import Adapter
from plm_depth.progress import Progress
from plm_depth.randomness import key_of
from plm_depth.tables import ATTENTION_KEYS, NEAREST_PAIR, VectorWriter
from plm_depth.views import View


def chosen(sequences: Sequence[tuple[str, str]], n: int, *, seed: int) -> list[tuple[str, str]]:
    """Return the n proteins with the smallest hashes of (seed, "contacts", sequence_id), in that order."""
    return sorted(sequences, key=lambda pair: key_of(seed, "contacts", pair[0]))[:n]


def corrected(maps: Tensor) -> Tensor:
    """Return maps (..., n, n) plus their transposes, less the average product of row and column sums."""
    symmetric = maps + maps.transpose(-1, -2)
    rows = symmetric.sum(-1, keepdim=True)
    total = rows.sum(-2, keepdim=True)
    return symmetric - rows * rows.transpose(-1, -2) / torch.where(total == 0, torch.ones_like(total), total)


@torch.inference_mode()
def pair_maps(adapter: Adapter, item: Item, blocks: Sequence[int]) -> np.ndarray:
    """Return the corrected maps of one protein, (n_blocks_kept, n_pairs, n_heads) float32; pairs by i, then j."""
    batch = adapter.collate([item.tokens], adapter.device)
    residues = torch.from_numpy(item.tokens.residue_tokens).to(adapter.device)
    i, j = torch.triu_indices(len(residues), len(residues), NEAREST_PAIR, device=adapter.device)
    with adapter.precision():
        stream, context = adapter.embed(batch)
    kept = torch.float64 if stream.dtype == torch.float64 else torch.float32
    stream, found = stream.to(kept), []
    for block in range(1, max(blocks) + 1):
        with adapter.precision():
            if block in blocks:
                maps = adapter.attention_maps(block, stream, context)[0].to(kept)
                found.append(corrected(maps[:, residues][:, :, residues])[:, i, j].T.float().cpu().numpy())
            stream = adapter.add(stream, widened(adapter.updates(block, stream, context), kept))
    return np.stack(found)


def write_maps(
    adapter: Adapter,
    sequences: Sequence[tuple[str, str]],
    *,
    output: str | Path,
    about: dict[str, object],
    nulls: Sequence[Null],
    views: Sequence[View],
    blocks: Sequence[int],
    seed: int,
    log: logging.Logger,
) -> int:
    """Write the attention maps of proteins (ATTENTION_KEYS) under the sequence alone; return the rows.

    A family that does not tell its maps, or whose tokens hold several residues, gets a table without rows, logged.

    Args:
        about: what is constant over the table.
        blocks: which blocks, ascending.
    """
    tells = adapter.has_attention_maps and adapter.tokens_are_residues
    if not tells:
        log.warning(f"{adapter.family} does not tell its attention maps at residues: the table of them is empty")
    first = next(_items(adapter, sequences[:1], views[:1], seed), None) if tells else None
    width = pair_maps(adapter, first[1], blocks[:1]).shape[-1] if first else 1
    progress = Progress(log, total=len(nulls) * len(views) * len(sequences) * tells, unit="attention maps")
    with VectorWriter(output, ATTENTION_KEYS, blocks, width, "float32", about) as writer:
        for null in nulls if tells else []:
            with applied(adapter, null), naming(str(about["model_id"]), null):
                for view, item in _items(adapter, sequences, views, seed):
                    i, j = np.triu_indices(len(item.sequence), NEAREST_PAIR)
                    keys = {
                        "sequence_id": [item.sequence_id] * len(i),
                        "n_residues": len(item.sequence),
                        "null_model": null.null_model,
                        "null_seed": null.seed,
                        "condition": "seq",
                        "direction": view.direction,
                        "noise_t": view.noise_t,
                        "mask_draw": view.mask_draw,
                        "i": i,
                        "j": j,
                    }
                    if len(i):
                        writer.append(keys, pair_maps(adapter, item, blocks))
                    progress.advance()
    progress.finish()
    return writer.n_rows


def _items(
    adapter: Adapter, sequences: Sequence[tuple[str, str]], views: Sequence[View], seed: int
) -> Iterator[tuple[View, Item]]:
    for view in views:
        for sequence_id, sequence in sequences:
            yield view, item_of(adapter, sequence_id, sequence, view, seed=seed)
