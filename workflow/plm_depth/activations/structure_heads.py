"""The structure head of a model, read out at every layer: how far each layer is from the last one, and from the truth.

    python -m plm_depth.activations.structure_heads --card P --sequences P --first R --last R --nulls JSON --inputs JSON
        --conditions JSON --backbone P [--codes P] --seed N --output P

Proteins, masks, conditions and read positions are those of the logit lens (``activations.extract``); what is read is
the structure of the residue instead of its amino acid (``Adapter.read_out_structure``), at the token where the family
has it. A head tells up to 8192 classes apart, too many to keep their logits: they are reduced on the device, in
float64, to the quantities of ``metrics.lens``, over all classes. Where the class of a residue is not known, the
quantities that compare with it are NaN.

A structure that was shown to the model is only copied by its read-out. Every row says so (``is_shown``); under "seq" no
structure is shown, also at visible residues.
"""

import argparse
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plm_depth.activations import STRUCTURE_HEADS_VERSION, keys
from plm_depth.activations.batches import WINDOW, plan, run_halving
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
from plm_depth.activations.extract import Item, item_of, lens_keys, naming, states_at
from plm_depth.activations.nulls import Null, applied, as_seen, parse_nulls
from plm_depth.activations.settings import SettingsError
from plm_depth.metrics.lens import BELOW_ZERO, LAYER_QUANTITIES, SETTLED
from plm_depth.models.base import Adapter, Structure
from plm_depth.progress import Progress
from plm_depth.tables import STRUCTURE_KEYS, VectorWriter
from plm_depth.views import View

QUANTITIES = tuple(name for name in LAYER_QUANTITIES if name not in SETTLED)
OF_THE_TRUTH = ("p_true", "rank_true", "acc1", "nll")  # undefined where the true class is not known
NUMBERS_AT_ONCE = 2**22  # logits of one layer that are reduced together, 32 MB an array


@dataclass(frozen=True)
class Read:
    """One protein under one view, and the structures that are read of it.

    Attributes:
        item: the protein; its ``reads`` are the positions.
        tokens: (n_reads,) tokens at which they are read.
        true: (n_reads,) class of each, -1 where it is not known.
        is_shown: (n_reads,) bool, whether the model was shown it.
    """

    item: Item
    tokens: np.ndarray
    true: np.ndarray
    is_shown: np.ndarray


def read_of(
    adapter: Adapter,
    sequence_id: str,
    sequence: str,
    view: View,
    *,
    seed: int,
    condition: str,
    shown: Structure | None,
    known: Structure,
) -> Read:
    """Return a protein as one view shows it to one model, and what is read of it.

    Args:
        seed: of the masks.
        condition: one of ``conditions.CONDITIONS``.
        shown: what the model is shown of the structure, under the conditions with one.
        known: all that is known of the structure.
    Raises:
        SequenceError: the model cannot read this protein; names it.
    """
    item = item_of(adapter, sequence_id, sequence, view, seed=seed, condition=condition, structure=shown)
    is_shown = adapter.shows_structure(sequence, masked=item.tokens.masked, structure=shown, condition=condition)
    true = adapter.true_structure(known, len(sequence))
    at = item.reads
    return Read(item, adapter.structure_reads(item.tokens)[at], true[at], is_shown[at])


# ----------------------------------------------------------------------------------------------------------------
# From logits to quantities, as in metrics.lens


@dataclass(frozen=True, eq=False)
class ReadOut:
    """The distribution that one layer reads out at some positions.

    Attributes:
        logits, log_p, p: (n_positions, n_classes).
        entropy: (n_positions,) nats.
        first: (n_positions,) index of the most probable class.
        top5: (n_positions, 5 or fewer) indices of the most probable ones.
    """

    logits: Tensor
    log_p: Tensor
    p: Tensor
    entropy: Tensor
    first: Tensor
    top5: Tensor


def read_out(logits: Tensor) -> ReadOut:
    """Return the distribution of logits (n_positions, n_classes); a constant added changes nothing."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    return ReadOut(logits, log_p, p, -(p * log_p).sum(-1), logits.argmax(-1), top(logits, 5))


def top(logits: Tensor, k: int) -> Tensor:
    """Return the indices of the k largest logits of each row, in any order, ties to the lower index."""
    n_classes = logits.shape[-1]
    if n_classes <= k:
        return torch.arange(n_classes, device=logits.device).expand(len(logits), -1)
    values, indices = logits.topk(k + 1, dim=-1)
    tied = (values[:, k] == values[:, k - 1]).nonzero().flatten()
    if len(tied):
        indices[tied, :k] = logits[tied].sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return indices[:, :k]


def layer_quantities(at: ReadOut, final: ReadOut, true: Tensor) -> Tensor:
    """Return the ``QUANTITIES`` of one layer at every position, (n_positions, len(QUANTITIES)); see ``metrics.lens``.

    Divergences may be below zero by rounding. What compares with the truth is NaN where it is not known.

    Args:
        at, final: read-outs of the layer and of the last layer.
        true: (n_positions,) true class, -1 where it is not known.
    """
    kind = at.logits.dtype
    difference = at.log_p - final.log_p
    mean = ((at.p + final.p) / 2).clamp_min(torch.finfo(kind).tiny)
    is_known = true >= 0
    place = true.clamp_min(0)[:, None]
    own = at.logits.gather(-1, place)
    is_before = torch.arange(at.logits.shape[-1], device=true.device) < place
    rank = 1 + (at.logits > own).sum(-1) + ((at.logits == own) & is_before).sum(-1)
    log_p = at.log_p.gather(-1, place)[:, 0]
    found = {
        "kl_lf": (at.p * difference).sum(-1),
        "kl_fl": -(final.p * difference).sum(-1),
        "js": -(mean * mean.log()).sum(-1) - (at.entropy + final.entropy) / 2,
        "ov1": at.first == final.first,
        "ov5": (at.top5[:, :, None] == final.top5[:, None, :]).sum((1, 2)).to(kind) / at.top5.shape[-1],
        "entropy": at.entropy,
        "p_true": log_p.exp(),
        "rank_true": rank,
        "acc1": rank == 1,
        "nll": -log_p,
    }
    for name in OF_THE_TRUTH:
        found[name] = found[name].to(kind).masked_fill(~is_known, torch.nan)
    return torch.stack([found[name].to(kind) for name in QUANTITIES], -1)


@torch.inference_mode()
def measure(adapter: Adapter, reads: Sequence[Read]) -> np.ndarray:
    """Return the quantities of every layer of one batch of proteins, (n_blocks + 1, n_reads, len(QUANTITIES)) float64.

    The states at the read tokens stay on the device; the logits of a few of them are there at a time.

    Raises:
        ExtractionError: logits that are not finite, or a divergence below zero by more than rounding.
    """
    states = states_at(adapter, [read.item.tokens for read in reads], [read.tokens for read in reads])
    true = torch.from_numpy(np.concatenate([read.true for read in reads])).to(states.device)
    n_layers, n_reads = states.shape[:2]

    def at(layer: int, part: slice) -> ReadOut:
        with adapter.precision():
            logits = adapter.read_out_structure(states[layer, part])
        return read_out(logits.double())

    found = torch.empty((n_layers, n_reads, len(QUANTITIES)), dtype=torch.float64, device=states.device)
    at_once = max(1, NUMBERS_AT_ONCE // len(adapter.structure_classes))
    for start in range(0, n_reads, at_once):
        part = slice(start, start + at_once)
        final = at(n_layers - 1, part)
        for layer in range(n_layers):
            here = final if layer == n_layers - 1 else at(layer, part)
            found[layer, part] = layer_quantities(here, final, true[part])
    values = found.cpu().numpy()
    owners = np.repeat(range(len(reads)), [len(read.true) for read in reads])
    _check(values, [reads[owner].item.sequence_id for owner in owners])
    divergences = [QUANTITIES.index(name) for name in ("kl_lf", "kl_fl", "js")]
    values[:, :, divergences] = np.maximum(values[:, :, divergences], 0.0)
    return values


def _check(values: np.ndarray, owners: Sequence[str]) -> None:
    """Refuse logits that were not finite (their entropy is not), and divergences that no read-out gives."""
    bad = ~np.isfinite(values[:, :, QUANTITIES.index("entropy")])
    if bad.any():
        layer, row = np.argwhere(bad)[0]
        raise ExtractionError(
            f"structure logits of protein {owners[row]} are NaN or infinite from layer {layer} on; expected finite "
            "numbers: check the checkpoint's digests or use a wider dtype; nothing was written"
        )
    for name in ("kl_lf", "kl_fl", "js"):
        column = values[:, :, QUANTITIES.index(name)]
        if not (column >= BELOW_ZERO).all():
            layer, row = np.argwhere(~(column >= BELOW_ZERO))[0]
            raise ExtractionError(
                f"{name} of the structure head at protein {owners[row]}, layer {layer}, is {column[layer, row]:.3g} "
                f"nats; expected at least {BELOW_ZERO}: check the checkpoint's digests; nothing was written"
            )


# ----------------------------------------------------------------------------------------------------------------
# A shard


def structure_heads(
    adapter: Adapter,
    sequences: Sequence[tuple[str, str]],
    *,
    output: Path,
    model_id: str,
    nulls: Sequence[Null],
    views: Sequence[View],
    seed: int,
    conditions: Sequence[str],
    structures: Mapping[str, Structure],
    token_budget: int = 4096,
    window: int = WINDOW,
    log: logging.Logger,
) -> int:
    """Read out every (sequence_id, sequence) under every null model, condition and view; return the rows written.

    Args:
        output: vector table (``STRUCTURE_KEYS``), its numbers the ``QUANTITIES``; rows as those of the lens.
        seed: of the masks.
        conditions: which of the adapter's.
        structures: by sequence_id, of every protein.
        token_budget: largest rows x padded length of a batch; changes speed and memory only.
        window: proteins, in their order, that may share a batch.
    Raises:
        ExtractionError, SequenceError, BatchError, TableError: nothing stands under the final name.
    """
    if not adapter.structure_classes:
        raise ExtractionError(f"{model_id}: {adapter.family} has no structure head; leave it out of structure_heads")
    check_sequences(sequences)
    known = {sequence_id: adapter.with_codes(structure) for sequence_id, structure in structures.items()}
    shown = with_structures(adapter, sequences, known)
    plans = {}
    for condition in conditions:
        n_tokens = [
            item_of(
                *(adapter, *pair, views[0]), seed=seed, condition=condition, structure=shown[pair[0]]
            ).tokens.n_tokens
            for pair in sequences
        ]
        plans[condition] = plan(n_tokens, token_budget=token_budget, window=window, log=log)
    about = keys.of_model(adapter, model_id) | {
        "readout": "struct",
        "n_classes": len(adapter.structure_classes),
        "seed": seed,
        "version": STRUCTURE_HEADS_VERSION,
        "showing": adapter.showing.as_dict(),
    }
    layers = range(adapter.n_blocks + 1)
    counts = dict.fromkeys(("shown", "unknown"), 0)
    progress = Progress(log, len(nulls) * len(plans) * len(views) * len(sequences), "proteins")
    started = time.monotonic()
    with VectorWriter(output, STRUCTURE_KEYS, layers, len(QUANTITIES), "float32", about, QUANTITIES) as writer:
        for null in nulls:
            with applied(adapter, null), naming(model_id, null):
                for condition, view in itertools.product(plans, views):
                    for batch in plans[condition]:
                        reads = []
                        for index in batch:
                            sequence_id, sequence = sequences[index]
                            seen, own = as_seen(null, sequence_id, sequence, known[sequence_id])
                            one = {"seed": seed, "condition": condition, "known": own}
                            one["shown"] = None if condition == "seq" else own.only(adapter.showing.parts)
                            reads.append(read_of(adapter, sequence_id, seen, view, **one))
                        progress.advance(len(reads))
                        # A clean view of the structure alone, or a short protein of which nothing is hidden.
                        reads = [read for read in reads if len(read.true)]
                        for part, values in (
                            run_halving(reads, lambda some: measure(adapter, some), log=log, name=_name_of)
                            if reads
                            else ()
                        ):
                            writer.append(structure_keys(part, null, view, condition), values)
                            counts["shown"] += sum(int(read.is_shown.sum()) for read in part)
                            counts["unknown"] += sum(int((read.true < 0).sum()) for read in part)
    progress.finish()
    log.info(
        f"{time.monotonic() - started:.1f} s; {writer.n_rows} rows, {counts['shown']} of structures that were shown, "
        f"{counts['unknown']} of structures that are not known"
    )
    return writer.n_rows


def _name_of(read: Read) -> str:
    return f"protein {read.item.sequence_id}"


def structure_keys(reads: Sequence[Read], null: Null, view: View, condition: str) -> dict[str, object]:
    """Return the key columns of the structure read-outs of a batch."""
    found = lens_keys([read.item for read in reads], null, view, condition)
    del found["true_aa"]
    return found | {
        "true_class": np.concatenate([read.true for read in reads]).astype(np.int16),
        "is_shown": np.concatenate([read.is_shown for read in reads]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m plm_depth.activations.structure_heads", description=__doc__.split("\n")[0]
    )
    add_model_options(parser)
    parser.add_argument("--sequences", type=Path, required=True, help="SEQUENCES table that holds the proteins")
    parser.add_argument("--first", type=int, default=0, help="first rank of --sequences that is measured")
    parser.add_argument("--last", type=int, help="rank after the last one (default: all)")
    parser.add_argument("--nulls", required=True, help="JSON list of {null_model, seed}")
    parser.add_argument("--inputs", required=True, help="JSON: the inputs section of the config")
    add_structure_options(parser)
    add_window_option(parser)
    parser.add_argument("--seed", type=int, required=True, help="of the masks")
    parser.add_argument("--output", type=Path, required=True, help="vector table: quantities of every layer")
    options = parser.parse_args(argv)
    with running("activations.structure_heads") as log:
        if options.first < 0 or (options.last is not None and options.last <= options.first):
            raise SettingsError(f"--first {options.first} --last {options.last}: expected 0 <= first < last")
        nulls = parse_nulls(options.nulls)
        sequences = read_shard(options.sequences)[options.first : options.last]
        model_id, adapter = loaded(options, log)
        conditions, structures = shown_by(options, adapter, sequences, log)
        if set(conditions) <= {"seq"}:
            raise ExtractionError(
                f"--conditions {options.conditions}: none with a structure is left for {adapter.family}; expected "
                "seq_struct or struct among them, with the tables of structures (--backbone, --codes)"
            )
        structure_heads(
            adapter,
            sequences,
            output=options.output,
            model_id=model_id,
            nulls=nulls,
            views=views_for(adapter, options.inputs, log),
            seed=options.seed,
            conditions=conditions,
            structures=structures,
            token_budget=options.token_budget,
            window=options.batch_window,
            log=log,
        )


if __name__ == "__main__":
    main()
