"""The residual stream of proteins at every layer, as features: its mean over the residues, and of single residues.

    python -m plm_depth.activations.embed --card P --sequences P... --nulls JSON --inputs JSON --residues all...
        --seed N [--conditions JSON --backbone P] --output stream.parquet

For probes and for whoever wants embeddings of every layer: the states of ``activations.extract`` (same batches, same
walk, so that equal settings give equal numbers) without moments and without read-outs, of as many residues as are
wanted, under every view that is asked for. By default the views are the clean ones, and both directions of an
autoregressive model.

Rows (``tables.STREAM_KEYS``) come as in the stream of ``activations.extract``: the proteins in the order of their
batches (longest first), each whole: position -1, its mean over all residues (with ``--pooled mean``), then residues by
ascending position: ``--residues all`` every residue, N that many drawn among its canonical residues (the anchors of
``extract`` under the same seed), ``none`` none; one answer for all files of proteins, or one for each. A model whose
tokens hold several residues has its means only, logged. ``--every N`` keeps the layers 0, N, 2 N, ... and the last one.

With ``--norm final`` every state is what the model would hand out if it ended there: the stream after the model's
final norm (families without one give the stream). The default is the stream itself.

With ``--attention P`` the attention maps of a few of these proteins are written, too (``activations.attention``).

Memory does not grow with the proteins: numbers are reduced to the stored dtype on the device, and a batch holds at most
ROOM bytes of them whatever the token budget.
"""

import argparse
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from plm_depth.activations import EMBED_VERSION
from plm_depth.activations.attention import chosen, write_maps
from plm_depth.activations.batches import WINDOW, plan, run_halving
from plm_depth.activations.door import (
    ExtractionError,
    add_model_options,
    add_structure_options,
    check_sequences,
    loaded,
    read_shard,
    running,
    shown_by,
    views_for,
    with_structures,
)
from plm_depth.activations.extract import (
    MEAN_POSITION,
    Item,
    constants_of,
    item_of,
    naming,
    pooled,
    pooling_of,
    stream_keys,
    widened,
)
from plm_depth.activations.nulls import Null, NullError, applied, parse_nulls
from plm_depth.models.base import Adapter, Structure
from plm_depth.progress import Progress
from plm_depth.sequences import SourceError
from plm_depth.sequences.fasta import clean, raw_accession, raw_batches
from plm_depth.tables import STREAM_KEYS, VectorWriter
from plm_depth.views import View

ROOM = 1 << 30  # bytes of one batch's stream in the machine's memory
CLEAN_INPUTS = (
    '{"ar": {"directions": ["n2c", "c2n"]}, "mlm": {"noise": [], "draws": 1, "clean": true},'
    ' "diffusion": {"noise": [], "draws": 1, "clean": true}}'
)


def embedded_item(
    adapter: Adapter, sequence_id: str, sequence: str, view: View, *, n_residues: int | None, **shown: object
) -> Item:
    """Return a protein as one view shows it, its anchors the residues that are wanted.

    Args:
        n_residues: how many to draw, see ``extract.item_of``; None: all of them.
        shown: seed, condition and structure, as in ``extract.item_of``.
    """
    item = item_of(adapter, sequence_id, sequence, view, n_anchors=n_residues or 0, **shown)
    return item if n_residues is not None else replace(item, anchors=np.arange(len(sequence)))


@torch.inference_mode()
def states(
    adapter: Adapter,
    items: Sequence[Item],
    *,
    layers: Sequence[int] | None = None,
    mean: bool = True,
    dtype: str = "float16",
    norm: str = "none",
) -> np.ndarray:
    """Return the stream of one batch at every layer, from one walk over the blocks.

    Args:
        items: proteins with anchors.
        layers: which layers, ascending; all by default.
        mean: whether each protein's mean over its residues comes before its anchors.
        dtype: of the result: "float16" or "float32".
        norm: "none", or "final": every state after the model's final norm.
    Returns:
        (n_layers, n_rows, d_model): the proteins one after another, the rows of each as ``extract.stream_keys``.
    Raises:
        ExtractionError: a number that is not finite, or that the dtype cannot hold; names protein and layer.
    """
    device, kept = adapter.device, getattr(torch, dtype)
    batch = adapter.collate([item.tokens for item in items], device)
    anchors = [item.tokens.residue_tokens[item.anchors] for item in items]
    *of_tokens, rows = pooling_of(items, anchors, batch.ids.shape[1], device)
    if not mean:
        rows = rows[rows >= len(items)]
    pooling = (*of_tokens, rows)
    with adapter.precision():
        stream, context = adapter.embed(batch)
    stream = stream.to(torch.float64 if stream.dtype == torch.float64 else torch.float32)
    layers = list(range(adapter.n_blocks + 1)) if layers is None else list(layers)
    host = {"pin_memory": device.type == "cuda"}
    out = torch.empty((len(layers), len(rows), adapter.d_model), dtype=kept, **host)
    largest = torch.empty((len(layers), len(rows)), dtype=stream.dtype, **host)
    for layer in range(layers[-1] + 1):
        if layer:
            with adapter.precision():
                stream = adapter.add(stream, widened(adapter.updates(layer, stream, context), stream.dtype))
        if layer in layers:
            normed = adapter.final_norm(stream) if norm == "final" else None
            place, wanted = layers.index(layer), pooled(stream if normed is None else normed.to(stream.dtype), pooling)
            out[place].copy_(wanted.to(kept), non_blocking=True)
            largest[place].copy_(wanted.abs().amax(-1), non_blocking=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    _check_range(largest.numpy(), [item.sequence_id for item in items], [len(a) + mean for a in anchors], layers, dtype)
    return out.numpy()


def _check_range(
    largest: np.ndarray, sequence_ids: Sequence[str], n_rows: Sequence[int], layers: Sequence[int], dtype: str
) -> None:
    """Refuse rows whose largest number (n_layers, n_rows) is NaN, infinite or beyond the dtype."""
    limit = float(np.finfo(dtype).max)
    if (bad := ~(largest <= limit)).any():
        place, row = np.argwhere(bad)[0]
        owner, value = np.repeat(sequence_ids, n_rows)[row], largest[place, row]
        what = f"reaches {value:.3g}" if np.isfinite(value) else "is NaN or infinite"
        mend = "use --dtype float32" if np.isfinite(value) else "check the checkpoint's digests or use a wider dtype"
        raise ExtractionError(
            f"the stream of protein {owner} {what} at layer {layers[place]}; expected finite numbers up to "
            f"{limit:.6g}, the largest {dtype}: {mend}; nothing was written"
        )


def embed(
    adapter: Adapter,
    sequences: Sequence[tuple[str, str]],
    *,
    output: str | Path,
    model_id: str,
    nulls: Sequence[Null],
    views: Sequence[View],
    seed: int,
    n_residues: int | Mapping[str, int | None] | None = None,
    mean: bool = True,
    every: int = 1,
    token_budget: int = 4096,
    dtype: str = "float16",
    norm: str = "none",
    conditions: Sequence[str] = ("seq",),
    structures: Mapping[str, Structure] | None = None,
    log: logging.Logger,
) -> int:
    """Write the stream of every (sequence_id, sequence) under every null model, condition and view; return the rows.

    Args:
        nulls: trained, randinit, shuffle_w. (Of permuted residues no label is known.)
        seed: of masks and drawn residues.
        n_residues: residues kept per protein; None keeps all. Or the same by sequence_id.
        mean: whether the mean over all residues is kept.
        every: which layers are kept: 0, every, 2 every, ... and the last.
        token_budget: largest rows x padded length of a batch; changes speed and memory only.
        dtype: of the stored numbers, "float16" or "float32".
        norm: "none", or "final": every state after the model's final norm.
        conditions, structures: as in ``extract.extract``.
    Raises:
        ExtractionError, NullError, SequenceError, BatchError, TableError: nothing stands under the final name.
    """
    check_sequences(sequences)
    if any(null.null_model == "shuffle_seq" for null in nulls):
        raise NullError(
            "shuffle_seq: expected trained, randinit or shuffle_w; residues that change places have no labels"
        )
    if not isinstance(n_residues, Mapping):
        n_residues = dict.fromkeys((sequence_id for sequence_id, _ in sequences), n_residues)
    if not adapter.tokens_are_residues and any(n != 0 for n in n_residues.values()):
        log.warning(f"{model_id}: a token of {adapter.family} holds several residues: means over proteins only")
        n_residues = dict.fromkeys(n_residues, 0)
    if not mean and all(n == 0 for n in n_residues.values()):
        raise ExtractionError("nothing is kept: neither means nor residues; use --pooled mean or --residues")
    structures = {} if set(conditions) <= {"seq"} else with_structures(adapter, sequences, structures or {})
    about = constants_of(adapter, model_id=model_id, seed=seed) | {"version": EMBED_VERSION}
    if norm != "none":
        about["norm"] = norm
    if structures:
        about["showing"] = adapter.showing.as_dict()
    if every < 1:
        raise ExtractionError(f"--every {every}: expected at least 1")
    layers = sorted({*range(0, adapter.n_blocks + 1, every), adapter.n_blocks})
    fitting = max(1, ROOM // (len(layers) * adapter.d_model * np.dtype(dtype).itemsize))
    progress = Progress(log, total=len(nulls) * len(conditions) * len(views) * len(sequences), unit="proteins")

    def item(index: int, view: View, condition: str) -> Item:
        sequence_id, sequence = sequences[index]
        structure = structures.get(sequence_id) if condition != "seq" else None
        shown = {"seed": seed, "condition": condition, "structure": structure}
        return embedded_item(adapter, sequence_id, sequence, view, n_residues=n_residues[sequence_id], **shown)

    plans = {}
    for condition in conditions:
        lengths = [item(index, views[0], condition).tokens.n_tokens for index in range(len(sequences))]
        budget = min(token_budget, max(fitting, *lengths))
        plans[condition] = plan(lengths, token_budget=budget, window=WINDOW, log=log)
    with VectorWriter(output, STREAM_KEYS, layers, adapter.d_model, dtype, about) as writer:
        for null in nulls:
            with applied(adapter, null), naming(model_id, null):
                for condition, view in itertools.product(conditions, views):
                    for batch in plans[condition]:
                        items = [item(index, view, condition) for index in batch]
                        for part, vectors in run_halving(
                            items,
                            lambda part: states(adapter, part, layers=layers, mean=mean, dtype=dtype, norm=norm),
                            log=log,
                            name=lambda one: f"protein {one.sequence_id}",
                        ):
                            writer.append(embed_keys(part, null, view, condition, mean=mean), vectors)
                            progress.advance(len(part))
    progress.finish()
    log.info(f"{writer.n_rows} rows of {len(layers)} layers, {adapter.d_model} numbers ({dtype})")
    return writer.n_rows


def embed_keys(
    items: Sequence[Item], null: Null, view: View, condition: str = "seq", *, mean: bool = True
) -> dict[str, object]:
    """Return the key columns of the stream of a batch: per protein its mean, if it is kept, then its residues."""
    keys = stream_keys(items, null, view, condition)
    if mean:
        return keys
    kept = keys["position"] != MEAN_POSITION
    return {
        name: values.filter(kept) if name == "sequence_id" else values[kept] if np.ndim(values) else values
        for name, values in keys.items()
    }


def read_proteins(path: str | Path) -> list[tuple[str, str]]:
    """Return (sequence_id, sequence) of a SEQUENCES table, in rank order, or of a FASTA file, in its order.

    Raises:
        TableError, SourceError: neither of them, or damaged; an accession or a sequence that is none.
    """
    with open(path, "rb") as file:
        if file.read(4) == b"PAR1":
            return read_shard(path)
    proteins = []
    for records in raw_batches(path):
        for record in records:
            header, _, body = record.partition(b"\n")
            try:
                proteins.append((raw_accession(header).decode(), clean(body).text.decode()))
            except SourceError as error:
                raise SourceError(f"{path}, record {len(proteins) + 1}: {error}") from error
    return proteins


def read_files(
    paths: Sequence[str | Path], residues: Sequence[int | None]
) -> tuple[list[tuple[str, str]], dict[str, int | None]]:
    """Return the proteins of all files, and of each how many residues are kept.

    Raises:
        ExtractionError: neither one answer for all files nor one for each.
        TableError, SourceError: as ``read_proteins``.
    """
    if len(residues) not in (1, len(paths)):
        raise ExtractionError(f"--residues: {len(residues)} answers for {len(paths)} files; expected 1 or {len(paths)}")
    sequences, n_residues = [], {}
    for path, n in zip(paths, list(residues) * (len(paths) if len(residues) == 1 else 1), strict=True):
        proteins = read_proteins(path)
        sequences += proteins
        n_residues |= dict.fromkeys((sequence_id for sequence_id, _ in proteins), n)
    return sequences, n_residues


def residues_option(text: str) -> int | None:
    """Return how many residues a protein keeps: a number, 0 for "none", None for "all"."""
    if text in ("all", "none"):
        return None if text == "all" else 0
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected all, none, or how many, at least 1")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.activations.embed", description=__doc__.split("\n")[0])
    add_model_options(parser)
    parser.add_argument("--sequences", type=Path, nargs="+", required=True, help="SEQUENCES tables or FASTA files")
    parser.add_argument(
        "--nulls", default='[{"null_model": "trained", "seed": -1}]', help="JSON list of {null_model, seed}"
    )
    parser.add_argument("--inputs", default=CLEAN_INPUTS, help="JSON: as the inputs section of the config")
    add_structure_options(parser)
    parser.add_argument(
        "--residues",
        type=residues_option,
        nargs="+",
        default=[None],
        help="all, none, or how many per protein; once, or for each file",
    )
    parser.add_argument("--every", type=int, default=1, help="keep every so many layers, and the last")
    parser.add_argument("--pooled", choices=("mean", "none"), default="mean", help="mean over residues, or not")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the stored numbers")
    parser.add_argument("--norm", choices=("none", "final"), default="none", help="of every state: the final norm")
    parser.add_argument("--seed", type=int, default=0, help="of masks and drawn residues")
    parser.add_argument("--output", type=Path, required=True, help="the vector table")
    parser.add_argument("--attention", type=Path, help="also the attention maps at pairs of residues, to this file")
    parser.add_argument("--attention-proteins", type=int, default=40, help="of at most so many with all residues kept")
    options = parser.parse_args(argv)
    with running("activations.embed") as log:
        nulls = parse_nulls(options.nulls)
        sequences, n_residues = read_files(options.sequences, options.residues)
        model_id, adapter = loaded(options, log)
        conditions, structures = shown_by(options, adapter, sequences, log)
        embed(
            adapter,
            sequences,
            output=options.output,
            model_id=model_id,
            nulls=nulls,
            views=views_for(adapter, options.inputs, log),
            seed=options.seed,
            n_residues=n_residues,
            mean=options.pooled == "mean",
            every=options.every,
            token_budget=options.token_budget,
            dtype=options.dtype,
            norm=options.norm,
            conditions=conditions,
            structures=structures,
            log=log,
        )
        if options.attention:
            whole = [pair for pair in sequences if n_residues[pair[0]] is None]
            blocks = sorted({*range(options.every, adapter.n_blocks + 1, options.every), adapter.n_blocks})
            write_maps(
                adapter,
                chosen(whole, options.attention_proteins, seed=options.seed),
                output=options.attention,
                about=constants_of(adapter, model_id=model_id, seed=options.seed) | {"version": EMBED_VERSION},
                nulls=nulls,
                views=views_for(adapter, options.inputs),
                blocks=blocks,
                seed=options.seed,
                log=log,
            )


if __name__ == "__main__":
    main()
