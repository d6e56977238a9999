"""One pass over the proteins of a shard: what the metrics need of every layer, and no more.

    python -m plm_depth.activations.extract --card P --sequences P --nulls JSON --inputs JSON --seed N
        [--conditions JSON --backbone P] --moments P --lens P --stream P

For each null model, condition and view, every protein goes through the model once, block by block. After each block its
state and updates are reduced on the device to a few inner products a token (``tables.MOMENTS``), the read-out at the
read positions and the stream at a few anchors; the reduced numbers go to the machine's memory and the vectors are
forgotten, so that memory grows neither with the blocks nor with the proteins.

Conditions. "seq" shows the sequence; "seq_struct" the structure too, also at hidden residues; "struct" the structure
alone: every residue is hidden. Masks, seeds and the positions that are read are the same under all of them, so that
they can be compared position by position; a clean view of "struct" has nothing to read.

Rows. Within a (null model, condition, view) the proteins come in the order of their batches (longest first), each
protein whole and by ascending position; readers go by the keys, never by the order.

* moments: every token. ``pos_class`` is masked or unmasked for canonical residues, special for every other token: those
  that are no residues, at positions -1, -2, ... before the first residue and n_residues, n_residues + 1, ... after the
  last, counted outwards along the protein (not the reading direction), and letters outside the 20 at their own place.
  Where a token holds several residues (``Adapter.tokens_are_residues`` is false) it has one row, at the first of them.
* lens: the positions that the view reads (``Adapter.read_positions``); columns are the real tokens in id order. No rows
  for a model without a residue-level read-out, which is logged.
* stream: clean and autoregressive views of the models in STREAM_NULLS: position -1 is the mean over all residues, then
  the anchors, canonical residues drawn per protein by (seed, "anchors", sequence_id), the same for every model. The
  shuffled nulls have no rows: geometry compares the trained network with an untrained one, on real proteins.
"""

import argparse
import contextlib
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from plm_depth.activations import VERSION, keys
from plm_depth.activations.batches import WINDOW, BatchError, plan, run_halving
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
from plm_depth.activations.nulls import Null, applied, as_seen, parse_nulls
from plm_depth.models.base import Adapter, SequenceError, Structure, Tokens, Updates
from plm_depth.progress import Progress
from plm_depth.randomness import generator
from plm_depth.tables import (
    AMINO_ACIDS,
    LENS_KEYS,
    MOMENT_KEYS,
    MOMENTS,
    STREAM_KEYS,
    VectorWriter,
)
from plm_depth.views import View, mask_of

STREAM_NULLS = ("trained", "randinit")
MEAN_POSITION = -1
_INDEX_OF = {letter: index for index, letter in enumerate(AMINO_ACIDS)}
_CLASSES = pa.array(["masked", "unmasked", "special"])
_MASKED, _UNMASKED, _SPECIAL = range(3)


# ----------------------------------------------------------------------------------------------------------------
# One protein under one view


@dataclass(frozen=True)
class Item:
    """One protein as it is measured.

    Attributes:
        sequence_id, sequence: the protein; under "shuffle_seq" the sequence is the permuted one.
        tokens: as the model reads it.
        token_order: (n_tokens,) token indices by ascending position.
        positions: (n_tokens,) position of each of those; see the module for tokens that are no residues.
        classes: (n_tokens,) int, index into masked, unmasked, special.
        reads: (n_reads,) positions that are read out, ascending.
        anchors: (n_anchors,) positions whose stream is kept, ascending; None where the view keeps no stream.
    """

    sequence_id: str
    sequence: str
    tokens: Tokens
    token_order: np.ndarray
    positions: np.ndarray
    classes: np.ndarray
    reads: np.ndarray
    anchors: np.ndarray | None


def item_of(
    adapter: Adapter,
    sequence_id: str,
    sequence: str,
    view: View,
    *,
    seed: int,
    n_anchors: int | None = None,
    condition: str = "seq",
    structure: Structure | None = None,
) -> Item:
    """Return a protein as one view shows it to one model.

    Args:
        seed: of masks and anchors.
        n_anchors: anchors per protein (fewer where it has fewer canonical residues); None keeps no stream.
        condition: one of ``conditions.CONDITIONS``; see the module.
        structure: of the protein, for the conditions with one.
    Raises:
        SequenceError: the model cannot read this protein; names it.
    """
    tokens, masked = tokens_of(
        adapter, sequence_id, sequence, view, seed=seed, condition=condition, structure=structure
    )
    positions = token_positions(tokens)
    order = np.argsort(positions, kind="stable")
    canonical = np.array([letter in _INDEX_OF for letter in sequence])
    classes = np.full(tokens.n_tokens, _SPECIAL)
    classes[tokens.residue_tokens] = np.where(tokens.masked, _MASKED, _UNMASKED)
    classes[tokens.residue_tokens[~canonical]] = _SPECIAL
    anchors = None
    if n_anchors is not None:
        choice = np.flatnonzero(canonical)
        draw = generator(seed, "anchors", sequence_id)
        anchors = np.sort(draw.choice(choice, size=min(n_anchors, len(choice)), replace=False))
    reads = adapter.read_positions(sequence, tokens, which=view.reads)
    if view.reads == "masked":
        reads = reads[masked[reads]]  # "struct" hides more residues than the view does
    return Item(sequence_id, sequence, tokens, order, positions[order], classes[order], reads, anchors)


def tokens_of(
    adapter: Adapter,
    sequence_id: str,
    sequence: str,
    view: View,
    *,
    seed: int,
    condition: str = "seq",
    structure: Structure | None = None,
) -> tuple[Tokens, np.ndarray]:
    """Return a protein as a model reads it under a view and a condition, and the residues that the view hides.

    Raises:
        SequenceError: the model cannot read this protein; names it.
    """
    masked = mask_of(view, len(sequence), seed, sequence_id)
    shown: dict[str, object] = {}
    if condition != "seq":
        shown = {"condition": condition, "structure": structure}
    try:
        tokens = adapter.encode(sequence, masked=masked if masked.any() else None, direction=view.direction, **shown)
    except SequenceError as error:
        raise SequenceError(f"protein {sequence_id}: {error}") from error
    return tokens, masked


def token_positions(tokens: Tokens) -> np.ndarray:
    """Return the position of each token, (n_tokens,) int64, all different.

    A residue's token has its position; a token that holds several residues that of the first. Other tokens count
    outwards from the ends of the protein: -1, -2, ... on the side of residue 0, and n_residues, n_residues + 1, ... on
    the other side, after those that stand between residues (line breaks).
    """
    n = len(tokens.residue_tokens)
    # Along the protein from its N terminus, whatever the reading direction.
    backwards = tokens.residue_tokens[0] > tokens.residue_tokens[-1]
    along = np.arange(tokens.n_tokens)[:: -1 if backwards else 1]
    is_residue = np.isin(along, tokens.residue_tokens)
    n_before = int(np.argmax(is_residue))
    before, after = along[:n_before], along[n_before:][~is_residue[n_before:]]
    positions = np.empty(tokens.n_tokens, np.int64)
    positions[before] = np.arange(-n_before, 0)
    positions[after] = n + np.arange(len(after))
    positions[tokens.residue_tokens[::-1]] = np.arange(n)[::-1]  # of several residues the first is written last
    return positions


# ----------------------------------------------------------------------------------------------------------------
# One batch


@dataclass(frozen=True)
class Measured:
    """The numbers of one batch, proteins one after another, layers first.

    Attributes:
        moments: (n_blocks + 1, n_tokens, len(MOMENTS)), NaN where a quantity does not exist.
        logits: (n_blocks + 1, n_reads, n_real_tokens).
        stream: (n_blocks + 1, n_rows, d_model): per protein its mean, then its anchors; no rows without anchors.
    """

    moments: np.ndarray
    logits: np.ndarray
    stream: np.ndarray


def state_moments(stream: Tensor) -> dict[str, Tensor]:
    """Return the moments of a state (..., d_model) by name, each (...)."""
    return {
        "hh": torch.linalg.vecdot(stream, stream),
        "sum_h": stream.sum(-1),
        "max_h2": stream.abs().amax(-1).square(),
    }


def block_moments(before: Tensor, updates: Updates, after: Tensor) -> dict[str, Tensor]:
    """Return the moments of one block by name, each (...), from the updates as added.

    Args:
        before, after: the stream that enters and leaves the block, (..., d_model).
        updates: what the block adds, in the dtype of the stream. No update is ever taken as a difference of states.
    """
    dot = torch.linalg.vecdot
    a, m, mid, u = updates.attention, updates.mlp, updates.middle, updates.total
    moments = {
        "aa": dot(a, a),
        "mm": dot(m, m),
        "uu": dot(u, u),
        "ha": dot(before, a),
        "hu": dot(before, u),
        "am": dot(a, m),
        "mid_mid": dot(mid, mid),
        "mid_m": dot(mid, m),
        "h_next": dot(before, after),
    }
    if updates.geometric is not None:
        g, read = updates.geometric, before + a
        moments |= {"gg": dot(g, g), "mid_g": dot(read, g), "ga_ga": dot(read, read)}
    return moments


def widened(updates: Updates, dtype: torch.dtype) -> Updates:
    """Return the updates in the dtype of the stream, so that half-precision ones are not summed in half precision."""
    geometric = None if updates.geometric is None else updates.geometric.to(dtype)
    return Updates(updates.attention.to(dtype), updates.mlp.to(dtype), updates.middle.to(dtype), geometric)


@torch.inference_mode()
def measure(adapter: Adapter, items: Sequence[Item]) -> Measured:
    """Return the numbers of one batch of proteins, from one walk over the blocks.

    The stream is float32 (float64 in a float64 model); half-precision weights work under autocast, and the reductions
    are outside of it.

    Raises:
        ExtractionError: a number that is not finite; names protein and layer.
    """
    device = adapter.device
    batch = adapter.collate([item.tokens for item in items], device)
    n_columns = batch.ids.shape[1]
    starts = np.arange(len(items)) * n_columns

    def on_device(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device)

    # Indices into the (rows x columns) tokens of the batch.
    tokens = on_device([start + item.token_order for start, item in zip(starts, items)])
    reads = on_device(
        [start + item.tokens.residue_tokens[item.reads] + adapter.read_offset for start, item in zip(starts, items)]
    )
    columns = torch.tensor(list(adapter.vocabulary), device=device)
    anchors = [item.tokens.residue_tokens[item.anchors] for item in items if item.anchors is not None]
    pooling = pooling_of(items, anchors, n_columns, device) if anchors else None

    with adapter.precision():
        stream, context = adapter.embed(batch)
    kept = torch.float64 if stream.dtype == torch.float64 else torch.float32
    stream = stream.to(kept)
    layers = adapter.n_blocks + 1
    n_stream = sum(1 + len(part) for part in anchors)
    host = {"pin_memory": device.type == "cuda"}
    out_moments = torch.full((layers, len(tokens), len(MOMENTS)), torch.nan, dtype=kept, **host)
    out_logits = torch.empty((layers, len(reads), len(columns)), dtype=kept, **host)
    out_stream = torch.empty((layers, n_stream, adapter.d_model), dtype=kept, **host)

    def keep(layer: int, stream: Tensor, moments: Mapping[str, Tensor], logits: Tensor) -> None:
        """Start copying the reduced numbers of one layer to the machine's memory."""
        nan = torch.full_like(moments["hh"], torch.nan)
        rows = torch.stack([moments.get(name, nan) for name in MOMENTS], -1).flatten(0, 1)[tokens]
        out_moments[layer].copy_(rows, non_blocking=True)
        out_logits[layer].copy_(logits[:, columns].to(kept), non_blocking=True)
        if pooling is not None:
            out_stream[layer].copy_(pooled(stream, pooling), non_blocking=True)

    for layer in range(layers):
        moments: dict[str, Tensor] = {}
        if layer:
            with adapter.precision():
                updates = widened(adapter.updates(layer, stream, context), kept)
                after = adapter.add(stream, updates)
            moments = block_moments(stream, updates, after)
            stream = after
            del updates, after
        moments |= state_moments(stream)
        with adapter.precision():
            logits = adapter.read_out(stream.flatten(0, 1)[reads])
        keep(layer, stream, moments, logits)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    measured = Measured(out_moments.numpy(), out_logits.numpy(), out_stream.numpy())
    _check_finite(measured, items)
    return measured


@torch.no_grad()
def states_at(adapter: Adapter, tokens: Sequence[Tokens], reads: Sequence[np.ndarray]) -> Tensor:
    """Return the states of every layer at some tokens of proteins, (n_blocks + 1, n_reads, d_model), on the device.

    Args:
        reads: of each protein, indices of its tokens.
    """
    batch = adapter.collate(tokens, adapter.device)
    n_columns = batch.ids.shape[1]
    at = torch.from_numpy(np.concatenate([row * n_columns + some for row, some in enumerate(reads)])).to(adapter.device)
    with adapter.precision():
        stream, context = adapter.embed(batch)
        stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
        kept = [stream.flatten(0, 1)[at]]
        for block in range(1, adapter.n_blocks + 1):
            stream = adapter.add(stream, widened(adapter.updates(block, stream, context), stream.dtype))
            kept.append(stream.flatten(0, 1)[at])
    return torch.stack(kept)


def pooling_of(
    items: Sequence[Item], anchors: list[np.ndarray], n_columns: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Return what ``pooled`` needs of a batch whose proteins all have anchors.

    Args:
        anchors: of each protein, the tokens of its anchors.
        n_columns: padded length of the batch.
    Returns:
        Indices of residue tokens, their protein, residues per protein, indices of anchor tokens, rows of the result.
    """
    residues = np.concatenate([row * n_columns + item.tokens.residue_tokens for row, item in enumerate(items)])
    owner = np.concatenate([np.full(len(item.tokens.residue_tokens), row) for row, item in enumerate(items)])
    counts = np.array([len(item.tokens.residue_tokens) for item in items])
    anchor = np.concatenate([row * n_columns + part for row, part in enumerate(anchors)])
    # The result takes rows of [means; anchors]: each protein's mean, then its anchors.
    sizes = np.array([len(part) for part in anchors])
    ends = np.cumsum(sizes)
    rows = np.concatenate(
        [
            np.concatenate([[row], len(items) + np.arange(end - size, end)])
            for row, (size, end) in enumerate(zip(sizes, ends))
        ]
    )
    return tuple(torch.from_numpy(x).to(device) for x in (residues, owner, counts, anchor, rows))


def pooled(stream: Tensor, pooling: tuple[Tensor, ...]) -> Tensor:
    """Return of a stream (n_rows, n_columns, d_model) each protein's mean over its residues, then its anchors."""
    residues, owner, counts, anchor, rows = pooling
    flat = stream.flatten(0, 1)
    sums = torch.zeros(len(counts), flat.shape[-1], dtype=torch.float64, device=flat.device)
    sums.index_add_(0, owner, flat[residues].double())
    means = (sums / counts[:, None]).to(flat.dtype)
    return torch.cat([means, flat[anchor]])[rows]


def _check_finite(measured: Measured, items: Sequence[Item]) -> None:
    """Refuse NaN and inf; where a block has no such quantity (all its tokens are NaN) there is nothing to check."""
    state = [MOMENTS.index(name) for name in ("hh", "sum_h", "max_h2")]
    always = [index for index, name in enumerate(MOMENTS) if name not in ("gg", "mid_g", "ga_ga")]
    bad_tokens = ~np.isfinite(measured.moments[:, :, state]).all(-1)
    bad_tokens[1:] |= ~np.isfinite(measured.moments[1:, :, always]).all(-1)
    owners = {
        "activations": (bad_tokens, np.repeat(range(len(items)), [len(item.positions) for item in items])),
        "logits": (
            ~np.isfinite(measured.logits).all(-1),
            np.repeat(range(len(items)), [len(item.reads) for item in items]),
        ),
    }
    for what, (bad, owner) in owners.items():
        if bad.any():
            layer, row = np.argwhere(bad)[0]
            raise ExtractionError(
                f"{what} of protein {items[owner[row]].sequence_id} are NaN or infinite from layer {layer} on; "
                "expected finite numbers: check the checkpoint's digests or use a wider dtype; nothing was written"
            )


# ----------------------------------------------------------------------------------------------------------------
# A shard


@dataclass(frozen=True)
class Files:
    """Where the three tables go."""

    moments: Path
    lens: Path
    stream: Path


def extract(
    adapter: Adapter,
    sequences: Sequence[tuple[str, str]],
    *,
    files: Files,
    model_id: str,
    nulls: Sequence[Null],
    views: Sequence[View],
    seed: int,
    n_anchors: int = 8,
    token_budget: int = 4096,
    window: int = WINDOW,
    stream_dtype: str = "float16",
    conditions: Sequence[str] = ("seq",),
    structures: Mapping[str, Structure] | None = None,
    log: logging.Logger,
) -> dict[str, int]:
    """Measure every (sequence_id, sequence) under every null model, condition and view, and write the three tables.

    Args:
        seed: of masks and anchors.
        n_anchors: anchors per protein in the stream table, >= 0.
        token_budget: largest rows x padded length of a batch; changes speed and memory only.
        window: proteins, in their order, that may share a batch.
        stream_dtype: numpy dtype of the stored stream.
        conditions: which of the adapter's.
        structures: by sequence_id, of every protein, for the conditions with structure.
    Returns:
        Rows written, by table name.
    Raises:
        ExtractionError, SequenceError, BatchError, TableError: nothing stands under the final names.
    """
    check_sequences(sequences)
    structures = {} if set(conditions) <= {"seq"} else with_structures(adapter, sequences, structures or {})
    plans, n_all_tokens = {}, 0
    for condition in conditions:
        shown = {"seed": seed, "condition": condition}
        n_tokens = [
            item_of(adapter, *pair, views[0], structure=structures.get(pair[0]), **shown).tokens.n_tokens
            for pair in sequences
        ]
        plans[condition] = batches = plan(n_tokens, token_budget=token_budget, window=window, log=log)
        padded = sum(len(batch) * n_tokens[batch[0]] for batch in batches)
        log.info(
            f"{condition}: {len(sequences)} proteins, {sum(n_tokens)} tokens in {len(batches)} batches "
            f"({1 - sum(n_tokens) / padded:.1%} padding); {len(nulls)} null models x {len(views)} views"
        )
        n_all_tokens += sum(n_tokens)
    layers = range(adapter.n_blocks + 1)
    about = constants_of(adapter, model_id=model_id, seed=seed)
    if structures:
        about["showing"] = adapter.showing.as_dict()
    columns = list(adapter.vocabulary.values())
    progress = Progress(log, total=len(nulls) * len(conditions) * len(views) * len(sequences), unit="proteins")
    started = time.monotonic()
    with (
        VectorWriter(files.moments, MOMENT_KEYS, layers, len(MOMENTS), "float32", about, MOMENTS) as moments,
        VectorWriter(files.lens, LENS_KEYS, layers, len(columns), "float32", about, columns) as lens,
        VectorWriter(files.stream, STREAM_KEYS, layers, adapter.d_model, stream_dtype, about) as stream,
    ):
        for null in nulls:
            with applied(adapter, null), naming(model_id, null):
                for condition, view, items, measured in _measured(
                    adapter, sequences, null, views, plans, structures, seed=seed, n_anchors=n_anchors, log=log
                ):
                    moments.append(moment_keys(items, null, view, condition), measured.moments)
                    lens.append(lens_keys(items, null, view, condition), measured.logits)
                    if items[0].anchors is not None:
                        check_range(items, measured.stream, stream_dtype)
                        stream.append(stream_keys(items, null, view, condition), measured.stream)
                    progress.advance(len(items))
    progress.finish()
    if not lens.n_rows:
        log.warning(f"{model_id}: no residue was read out; the lens table is empty")
    rate = len(nulls) * len(views) * n_all_tokens / max(time.monotonic() - started, 1e-9)
    counts = {"moments": moments.n_rows, "lens": lens.n_rows, "stream": stream.n_rows}
    log.info(f"{rate:.0f} tokens/s; rows: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
    return counts


@contextlib.contextmanager
def naming(model_id: str, null: Null) -> Iterator[None]:
    """Say in an error which model and null model it was."""
    try:
        yield
    except (ExtractionError, BatchError, SequenceError) as error:
        raise type(error)(f"{model_id}, {null}: {error}") from error


def _measured(
    adapter: Adapter,
    sequences: Sequence[tuple[str, str]],
    null: Null,
    views: Sequence[View],
    plans: Mapping[str, Sequence[Sequence[int]]],
    structures: Mapping[str, Structure],
    *,
    seed: int,
    n_anchors: int,
    log: logging.Logger,
) -> Iterator[tuple[str, View, list[Item], Measured]]:
    """Yield condition, view, proteins and numbers of the batches of one null model; ``plans``: batches by condition."""
    for condition, view in itertools.product(plans, views):
        keeps_stream = null.null_model in STREAM_NULLS and view.reads != "masked"
        for batch in plans[condition]:
            items = []
            for index in batch:
                sequence_id, sequence = sequences[index]
                structure = None if condition == "seq" else structures[sequence_id]
                sequence, structure = as_seen(null, sequence_id, sequence, structure)
                wanted = n_anchors if keeps_stream else None
                shown = {"condition": condition, "structure": structure}
                items.append(item_of(adapter, sequence_id, sequence, view, seed=seed, n_anchors=wanted, **shown))
            parts = run_halving(
                items, lambda part: measure(adapter, part), log=log, name=lambda item: f"protein {item.sequence_id}"
            )
            for part, measured in parts:
                yield condition, view, part, measured


def constants_of(adapter: Adapter, *, model_id: str, seed: int) -> dict[str, object]:
    """Return what is constant over the tables of one model: JSON values."""
    return keys.of_model(adapter, model_id) | {
        "tokens_are_residues": adapter.tokens_are_residues,  # else a row of the moments is a piece of several residues
        "seed": seed,
        "version": VERSION,
        # The names of the lens columns of AMINO_ACIDS, in that order.
        "amino_acid_columns": [adapter.vocabulary[int(token)] for token in adapter.residue_ids],
    }


# ----------------------------------------------------------------------------------------------------------------
# Keys of the rows


def _common_keys(
    items: Sequence[Item], null: Null, view: View, condition: str, n_rows: Sequence[int]
) -> dict[str, object]:
    ids = pa.array([item.sequence_id for item in items])
    owner = np.repeat(np.arange(len(items), dtype=np.int32), n_rows)
    return {
        "sequence_id": pa.DictionaryArray.from_arrays(pa.array(owner), ids),
        "n_residues": np.array([len(item.sequence) for item in items], np.int32)[owner],
        **keys.of_null(null, condition),
        **keys.of_view(view),
    }


def moment_keys(items: Sequence[Item], null: Null, view: View, condition: str = "seq") -> dict[str, object]:
    """Return the key columns of the moments of a batch."""
    classes = np.concatenate([item.classes for item in items]).astype(np.int32)
    return _common_keys(items, null, view, condition, [len(item.positions) for item in items]) | {
        "position": np.concatenate([item.positions for item in items]),
        "pos_class": pa.DictionaryArray.from_arrays(pa.array(classes), _CLASSES),
    }


def lens_keys(items: Sequence[Item], null: Null, view: View, condition: str = "seq") -> dict[str, object]:
    """Return the key columns of the lens logits of a batch."""
    hidden = [item.tokens.masked[item.reads] for item in items]
    if view.reads == "next":  # nothing is masked, but the residue that is read stands after all that was seen
        hidden = [np.ones_like(part) for part in hidden]
    true = [np.array([_INDEX_OF[item.sequence[p]] for p in item.reads], np.int16) for item in items]
    return _common_keys(items, null, view, condition, [len(item.reads) for item in items]) | {
        "position": np.concatenate([item.reads for item in items]),
        "true_aa": np.concatenate(true),
        "is_masked": np.concatenate(hidden),
    }


def stream_keys(items: Sequence[Item], null: Null, view: View, condition: str = "seq") -> dict[str, object]:
    """Return the key columns of the stream of a batch: per protein its mean, then its anchors."""
    return _common_keys(items, null, view, condition, [1 + len(item.anchors) for item in items]) | {
        "position": np.concatenate([np.append(MEAN_POSITION, item.anchors) for item in items]),
    }


def check_range(items: Sequence[Item], stream: np.ndarray, dtype: str) -> None:
    """Refuse a stream (n_blocks + 1, n_rows, d_model) that the stored dtype cannot hold.

    Raises:
        ExtractionError: naming protein, layer, value and the option.
    """
    largest = np.abs(stream).max(-1)
    limit = float(np.finfo(dtype).max)
    if (largest > limit).any():
        layer, row = np.argwhere(largest > limit)[0]
        owner = np.repeat(range(len(items)), [1 + len(item.anchors) for item in items])
        raise ExtractionError(
            f"the stream of protein {items[owner[row]].sequence_id} reaches {largest[layer, row]:.3g} at layer "
            f"{layer}; the largest {dtype} is {limit:.6g}: use --stream-dtype float32"
        )


# ----------------------------------------------------------------------------------------------------------------
# The stage


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.activations.extract", description=__doc__.split("\n")[0])
    add_model_options(parser)
    parser.add_argument("--sequences", type=Path, required=True, help="shard (SEQUENCES table)")
    parser.add_argument("--nulls", required=True, help="JSON list of {null_model, seed}")
    parser.add_argument("--inputs", required=True, help="JSON: the inputs section of the config")
    add_window_option(parser)
    add_structure_options(parser)
    parser.add_argument("--anchors", type=int, default=8, help="anchor residues per protein in the stream table")
    parser.add_argument("--seed", type=int, required=True, help="of masks and anchors")
    parser.add_argument("--stream-dtype", default="float16", choices=("float16", "float32"), help="of the stream table")
    parser.add_argument("--moments", type=Path, required=True)
    parser.add_argument("--lens", type=Path, required=True)
    parser.add_argument("--stream", type=Path, required=True)
    options = parser.parse_args(argv)
    with running("activations.extract") as log:
        if options.anchors < 0:
            raise ExtractionError(f"--anchors {options.anchors}: expected 0 or more")
        nulls = parse_nulls(options.nulls)
        sequences = read_shard(options.sequences)
        model_id, adapter = loaded(options, log)
        conditions, structures = shown_by(options, adapter, sequences, log)
        extract(
            adapter,
            sequences,
            files=Files(options.moments, options.lens, options.stream),
            model_id=model_id,
            nulls=nulls,
            views=views_for(adapter, options.inputs, log),
            seed=options.seed,
            n_anchors=options.anchors,
            token_budget=options.token_budget,
            window=options.batch_window,
            stream_dtype=options.stream_dtype,
            conditions=conditions,
            structures=structures,
            log=log,
        )


if __name__ == "__main__":
    main()
