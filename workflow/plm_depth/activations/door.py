"""The door of the stages that run a model: the options they share, and what these options stand for.

A stage adds ``add_model_options`` and options of its own to its parser. Inside ``running(stage)`` it reads what it
measures, takes the model from ``loaded``, and asks ``views_for`` and ``shown_by`` how proteins are shown to it. What
can go wrong in a foreseeable way ends the process there, in one message.
"""

import argparse
import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from plm_depth import json_text
from plm_depth.activations.batches import BatchError, is_out_of_memory
from plm_depth.activations.interventions import InterventionError
from plm_depth.activations.nulls import NullError
from plm_depth.activations.settings import SettingsError
from plm_depth.conditions import BACKBONE_TELLS, CONDITIONS
from plm_depth.models.base import Adapter, CheckpointError, SequenceError, Showing, Structure
from plm_depth.models.structures import read_codes, read_structures
from plm_depth.progress import stage_log
from plm_depth.sequences import SourceError
from plm_depth.sizing import WINDOW
from plm_depth.tables import SEQUENCES, TableError, read_table
from plm_depth.views import View, views_of


class ExtractionError(ValueError):
    """Something that cannot be measured; says what was expected, what came, where, and the mend."""


FORESEEN = (
    *(BatchError, CheckpointError, ExtractionError, InterventionError, NullError, SequenceError, SettingsError),
    *(SourceError, TableError, OSError),
)


@contextlib.contextmanager
def running(stage: str, *errors: type[Exception]) -> Iterator[logging.Logger]:
    """Yield the log of a stage; what can be foreseen ends the process with one message, the stage's name first.

    Args:
        errors: what the stage foresees besides ``FORESEEN`` and memory that runs out.
    """
    with stage_log(stage, *FORESEEN, *errors) as log:
        try:
            yield log
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise SystemExit(
                f"{stage}: out of memory outside of a batch, where nothing can be halved ({error}); the model itself "
                "needs a device or a machine with more memory, or a half-precision dtype"
            ) from error


# ----------------------------------------------------------------------------------------------------------------
# The model


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the card of the model, and what it runs on, which changes no number; ``loaded`` reads these options."""
    parser.add_argument("--card", type=Path, required=True, help="card of the checkpoint (models.describe)")
    parser.add_argument("--token-budget", type=int, default=4096, help="largest rows x padded length of a batch")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")


def add_window_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--batch-window``: shards that hold whole windows have the very numbers of one shard."""
    parser.add_argument(
        "--batch-window", type=int, default=WINDOW, help="proteins, in their order, that may share a batch"
    )


def loaded(options: argparse.Namespace, log: logging.Logger) -> tuple[str, Adapter]:
    """Return the name and the model that the options of ``add_model_options`` ask for, on its device, ready to run.

    Raises:
        ExtractionError, CheckpointError: an option, a card or a checkpoint that is not what it should be.
    """
    from plm_depth.models.describe import load_from_card, read_card

    device = resolve_device(options.device)
    full_precision(options.threads)
    card = read_card(options.card)
    try:
        adapter = load_from_card(options.card, device)
    except ValueError as error:
        raise ExtractionError(f"{options.card}: {error}") from error
    log.info(f"{card['model_id']} ({adapter.family}, {adapter.n_blocks} blocks) on {device}, {card['dtype']}")
    return card["model_id"], adapter


def resolve_device(name: str) -> str:
    """Return the device to use: the given one, or for "auto" cuda where there is one, else cpu.

    Raises:
        ExtractionError: another name, or a device that this machine does not have.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if has_cuda else "cpu"
    if name != "cpu" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise ExtractionError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if name != "cpu" and not has_cuda:
        raise ExtractionError(f"--device {name}: this machine offers no CUDA device; use --device auto or cpu")
    return name


def full_precision(threads: int | None = None) -> None:
    """Switch TF32 off, so that float32 means float32 on every device, and set the number of CPU threads if given.

    Raises:
        ExtractionError: fewer than one thread.
    """
    if threads is not None and threads < 1:
        raise ExtractionError(f"--threads {threads}: expected at least 1")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if threads is not None:
        torch.set_num_threads(threads)


# ----------------------------------------------------------------------------------------------------------------
# Proteins, and how they are shown


def read_shard(path: str | Path) -> list[tuple[str, str]]:
    """Return (sequence_id, sequence) of a shard, in rank order.

    Raises:
        TableError: not a SEQUENCES table, or a row whose length is not what it says.
    """
    table = read_table(path, SEQUENCES)
    rows = zip(*(table.column(name).to_pylist() for name in ("rank", "sequence_id", "sequence", "n_residues")))
    pairs = []
    for _, sequence_id, sequence, n_residues in sorted(rows):
        if len(sequence) != n_residues:
            raise TableError(
                f"{path}: {sequence_id} has {len(sequence)} residues, its row says {n_residues}; "
                "delete the file and run again"
            )
        pairs.append((sequence_id, sequence))
    return pairs


def check_sequences(sequences: Sequence[tuple[str, str]]) -> None:
    """Refuse an empty shard and a protein that stands there twice.

    Raises:
        ExtractionError
    """
    if not sequences:
        raise ExtractionError("the shard holds no proteins; expected at least one: check first and last of the shard")
    seen: set[str] = set()
    for sequence_id, _ in sequences:
        if sequence_id in seen:
            raise ExtractionError(f"protein {sequence_id} stands twice in the shard; every accession may occur once")
        seen.add(sequence_id)


def views_for(adapter: Adapter, inputs: str, log: logging.Logger | None = None) -> list[View]:
    """Return the views of the adapter's objective from the JSON text of the config's ``inputs`` section.

    A study may ask for both directions while a family reads only one: the other is left out, and logged.

    Raises:
        ExtractionError: not JSON, no section for the objective, an unknown direction, or no view that is left.
    """
    try:
        views = views_of(adapter.objective, json_text.parse(inputs))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ExtractionError(
            f"--inputs: expected a JSON object with the inputs of objective {adapter.objective!r} "
            f"(ar: directions; mlm and diffusion: noise, draws, clean), got {json_text.shown(inputs)} ({error!r})"
        ) from error
    asked = {view.direction for view in views}
    if unknown := asked - {"n2c", "c2n", "none"}:
        raise ExtractionError(f"--inputs: directions {sorted(unknown)}: expected n2c or c2n")
    kept = [view for view in views if view.direction in adapter.directions]
    if not kept:
        raise ExtractionError(
            f"--inputs: no view is left for {adapter.family}: {len(views)} asked for, directions {sorted(asked)}; "
            f"it reads {' and '.join(adapter.directions)}"
        )
    if len(kept) < len(views) and log is not None:
        left_out = sorted(asked - set(adapter.directions))
        log.warning(f"{adapter.family} does not read {' and '.join(left_out)}: left out")
    return kept


def conditions_for(
    adapter: Adapter, text: str, *, tells: Sequence[str] = (), log: logging.Logger | None = None
) -> list[str]:
    """Return the conditions that are wanted and that the model can be shown, from a JSON list, in a fixed order.

    A condition that the family does not have, or whose kind of structure is not at hand, is left out, and logged.

    Args:
        tells: the parts of ``Structure`` that are at hand.
    Raises:
        ExtractionError: not a JSON list of conditions, one named twice, or none that is left.
    """
    try:
        asked = json_text.parse(text)
    except json.JSONDecodeError:
        asked = None
    is_list = isinstance(asked, list) and bool(asked) and all(one in CONDITIONS for one in asked)
    if not is_list or len(set(asked)) < len(asked):
        raise ExtractionError(
            f"--conditions: expected a JSON list of some of {', '.join(CONDITIONS)}, none twice, got "
            f"{json_text.shown(text)}"
        )
    kept = []
    for condition in (one for one in CONDITIONS if one in asked):
        problem = None
        if condition not in adapter.conditions:
            problem = "the family does not have it"
        elif condition != "seq" and not set(adapter.reads_structure) & set(tells):
            there = f"only {' and '.join(tells)} are" if tells else "no structure is"
            problem = f"the family reads {' or '.join(adapter.reads_structure)} of a structure, {there} at hand"
        if problem is None:
            kept.append(condition)
        elif log is not None:
            log.warning(f"condition {condition} of {adapter.family} left out: {problem}")
    if not kept:
        raise ExtractionError(
            f"--conditions {text}: none is left for {adapter.family}, which has {', '.join(adapter.conditions)}"
            + (f" and reads {' or '.join(adapter.reads_structure)} of a structure" if adapter.reads_structure else "")
            + "; give --backbone the table of backbones, or leave these conditions out"
        )
    return kept


def add_structure_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about structures, which all stages that run a model share; ``shown_by`` reads them."""
    parser.add_argument("--conditions", default='["seq"]', help="JSON list: seq, seq_struct, struct")
    parser.add_argument("--backbone", type=Path, help="BACKBONE table, for the conditions with structure")
    parser.add_argument("--codes", type=Path, help="CODES table: precomputed structure codes")
    shown = Showing()
    parser.add_argument("--struct-at-mask", choices=("keep", "hide"), default=shown.struct_at_mask, help=(
        "whether the structure of a hidden residue is shown"))  # fmt: skip
    parser.add_argument("--structure-parts", nargs="+", choices=shown.parts, default=shown.parts, help=(
        "what of a structure is shown, where the family reads it and it is known"))  # fmt: skip


def shown_by(
    options: argparse.Namespace, adapter: Adapter, sequences: Sequence[tuple[str, str]], log: logging.Logger
) -> tuple[list[str], dict[str, Structure]]:
    """Return the conditions that the options of ``add_structure_options`` ask for, and the structures they need.

    The model is told how structures are shown (``Adapter.showing``).

    Raises:
        ExtractionError, TableError: see ``conditions_for`` and ``read_structures``.
    """
    tells = tuple(BACKBONE_TELLS) if options.backbone else ()
    codes = read_codes(options.codes, adapter.family, log=log) if options.codes else {}
    if codes:
        tells += ("codes",)
    tells = tuple(part for part in tells if part in options.structure_parts)
    conditions = conditions_for(adapter, options.conditions, tells=tells, log=log)
    if not set(conditions) - {"seq"}:
        return conditions, {}
    adapter.showing = Showing(options.struct_at_mask, tuple(options.structure_parts), is_compared="seq" in conditions)
    return conditions, read_structures(options.backbone, sequences, codes=codes, log=log)


def with_structures(
    adapter: Adapter, sequences: Sequence[tuple[str, str]], structures: Mapping[str, Structure]
) -> dict[str, Structure]:
    """Return what the model is shown of all structures, with the codes of its own tokenizer where it has one.

    Raises:
        ExtractionError: proteins without a structure; names them.
    """
    missing = [sequence_id for sequence_id, _ in sequences if sequence_id not in structures]
    if missing:
        named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ExtractionError(
            f"{len(missing)} of {len(sequences)} proteins have no structure: {named}; conditions with structure "
            "need one of every protein: draw the data set from the structures, or measure condition seq only"
        )
    parts = adapter.showing.parts
    return {sequence_id: adapter.with_codes(structures[sequence_id]).only(parts) for sequence_id, _ in sequences}
