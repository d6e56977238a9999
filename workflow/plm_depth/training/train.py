"""Stage: train one small model from scratch and write it in its family's official layout.

    python -m plm_depth.training.train --recipe R.json --train T.fasta --valid V.fasta --checkpoint DIR --loss L.parquet

The number of steps is fixed by the recipe: no checkpoint is chosen by its validation loss. The same recipe, proteins,
versions, device and number of threads give the same bytes. The trainer knows the objective of a model, not its family.
"""

import argparse
import logging
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from plm_depth import __version__
from plm_depth.models import registry
from plm_depth.models.base import Adapter, Batch, CheckpointError, SequenceError
from plm_depth.models.devices import claimed
from plm_depth.models.structures import read_codes, read_structures
from plm_depth.progress import Progress, start_log
from plm_depth.randomness import key_of
from plm_depth.tables import LOSS, TableError, replacing_folder, write_table
from plm_depth.training.corpus import (
    CorpusError,
    Protein,
    background,
    batches_of,
    check_disjoint,
    crop_of,
    indices_of,
    read_fasta,
    training_batches,
)
from plm_depth.training.folder import write_notes
from plm_depth.training.objectives import (
    VALIDATION_SEED,
    Example,
    Scored,
    scored,
    structure_example,
    training_example,
    validation_example,
    validation_views,
)
from plm_depth.training.recipe import Recipe, RecipeError, read_recipe

STAGE = "training.train"


class TrainingError(ValueError):
    """A training that went wrong: says at which step and what to change."""


@dataclass
class Tally:
    """Sums of a loss over predicted residues, in nats: of the model, and of the background composition."""

    nats: float = 0.0
    reference: float = 0.0
    n: int = 0

    def add(self, nats: float, reference: float, n: int) -> None:
        self.nats, self.reference, self.n = self.nats + nats, self.reference + reference, self.n + n


@dataclass(frozen=True)
class Point:
    """One point of the training curve; a row of ``tables.LOSS``."""

    step: int
    n_residues: int
    split: str
    nats: float
    n: int
    reference: float


@dataclass
class Trained:
    """A trained model and its curve.

    Attributes:
        adapter: the model, in evaluation mode.
        curve: points in order of steps; the first is the untrained model on the validation proteins.
        with_structure: of the validation proteins with a structure: how many, and their nats per residue when shown
            alone ("seq") and with it ("seq_struct"); and of models with a structure head the nats per residue of their
            structure, shown the sequence alone ("structure"), and what the composition of the structures of the
            training proteins pays, one added to every class ("structure_reference"). None where there are none.
    """

    adapter: Adapter
    curve: list[Point] = field(default_factory=list)
    with_structure: dict[str, float] | None = None

    def last(self, split: str) -> Point:
        """Return the last point of "train" or "valid"."""
        return [point for point in self.curve if point.split == split][-1]


# ----------------------------------------------------------------------------------------------------------------
# Losses


def residue_nats(logits: torch.Tensor, at: Scored, residue_ids: np.ndarray) -> np.ndarray:
    """Return minus the log probability of each canonical target among the 20 amino acids, (n_canonical,) float64 nats.

    Args:
        logits: (n_reads, n_vocabulary).
        at: the reads; those whose true_aa is -1 are left out.
        residue_ids: (20,) token ids of AMINO_ACIDS.
    """
    canonical = torch.from_numpy(np.flatnonzero(at.true_aa >= 0)).to(logits.device)
    target = torch.from_numpy(at.true_aa[at.true_aa >= 0]).to(logits.device)
    columns = torch.from_numpy(np.asarray(residue_ids)).to(logits.device)
    picked = logits.detach().index_select(0, canonical).index_select(1, columns).float()
    return functional.cross_entropy(picked, target, reduction="none").cpu().numpy().astype(np.float64)


def loss_of_reads(
    logits: torch.Tensor, at: Scored, residue_ids: np.ndarray, ignorant: np.ndarray
) -> tuple[float, float, int]:
    """Return the sums of nats, of the nats that the background composition pays, and the residues predicted.

    Where a token holds several residues its nats are those of the token among the whole vocabulary, and its residues
    count one by one: nats per residue compare with those of other models, up to what their smaller vocabulary spares.
    """
    if at.held is None:
        nats = residue_nats(logits, at, residue_ids)
        return float(nats.sum()), float(ignorant[at.true_aa[at.true_aa >= 0]].sum()), len(nats)
    holds = np.flatnonzero(at.held.any(1))
    rows = torch.from_numpy(holds).to(logits.device)
    targets = torch.from_numpy(at.targets[holds]).to(logits.device)
    nats = functional.cross_entropy(logits.detach().index_select(0, rows).float(), targets, reduction="none")
    return float(nats.double().sum()), float((at.held @ ignorant).sum()), int(at.held.sum())


def training_loss(logits: torch.Tensor, at: Scored) -> torch.Tensor:
    """Return the weighted cross-entropy over the whole vocabulary, divided by the number of reads (not of weights)."""
    targets = torch.from_numpy(at.targets).to(logits.device)
    weights = torch.from_numpy(at.weights).to(logits.device)
    nats = functional.cross_entropy(logits.float(), targets, reduction="none")
    return (nats * weights).sum() / max(1, len(at.targets))


def structure_nats(adapter: Adapter, examples: Sequence[Example]) -> torch.Tensor:
    """Return minus the log probability of every structure that examples ask for, (n_structure_reads,), in their order.

    Read from a walk over the blocks of those alone that ask for some: few proteins of a corpus have a structure.
    """
    asking = [example for example in examples if len(example.structure_reads)]
    if not asking:
        return torch.zeros(0, device=adapter.device)
    batch = adapter.collate([example.tokens for example in asking], adapter.device)
    stream, context = adapter.embed(batch)
    for block in range(1, adapter.n_blocks + 1):
        stream = adapter.add(stream, adapter.updates(block, stream, context))
    rows = np.repeat(np.arange(len(asking)), [len(example.structure_reads) for example in asking])
    reads = np.concatenate([example.structure_reads for example in asking])
    flat = torch.from_numpy(rows * batch.ids.shape[1] + reads).to(adapter.device)
    logits = adapter.read_out_structure(stream.flatten(0, 1).index_select(0, flat))
    targets = torch.from_numpy(np.concatenate([example.structure_targets for example in asking])).to(adapter.device)
    return functional.cross_entropy(logits.float(), targets, reduction="none")


def _read_logits(adapter: Adapter, batch: Batch, at: Scored) -> torch.Tensor:
    """Return the logits at the reads, (n_reads, n_vocabulary)."""
    logits = adapter.library_logits(batch)
    flat = torch.from_numpy(at.rows * logits.shape[1] + at.reads).to(logits.device)
    return logits.reshape(-1, logits.shape[-1]).index_select(0, flat)


def _collated(adapter: Adapter, examples: Sequence[Example], device: torch.device) -> tuple[Batch, Scored]:
    return adapter.collate([example.tokens for example in examples], device), scored(examples)


# ----------------------------------------------------------------------------------------------------------------
# Training


def train(
    recipe: Recipe,
    train_proteins: Sequence[Protein],
    valid_proteins: Sequence[Protein],
    *,
    device: torch.device | str = "cpu",
    log: logging.Logger | None = None,
) -> Trained:
    """Return a model trained by a recipe, and its curve.

    The numbers of the curve are nats per predicted residue over the 20 amino acids, renormalised, on the reads of
    ``objectives``: for training those since the point before, for validation the mean over the fixed views. The
    reference is the cross-entropy of the training composition on the same residues.

    Raises:
        RecipeError: an unknown family, or sizes that it cannot have.
        CorpusError: a protein is on both sides, or does not fit a batch.
        SequenceError: a protein that the family cannot read, named.
        TrainingError: the loss is not finite.
    """
    log = log or logging.getLogger(STAGE)
    device = torch.device(device)
    check_disjoint(train_proteins, valid_proteins)
    with torch.random.fork_rng(), _deterministic(device):
        adapter = untrained(recipe)
        adapter.module.to(device)
        longest = min(adapter.max_residues, recipe.crop or adapter.max_residues)
        n_tokens = _token_counts(adapter, train_proteins, longest, "training", log)
        _token_counts(adapter, valid_proteins, longest, "validation", log)
        torch.manual_seed(key_of(recipe.seed, "dropout") % 2**63)
        return _train(recipe, adapter, train_proteins, n_tokens, valid_proteins, longest, log)


def untrained(recipe: Recipe) -> Adapter:
    """Return the model of a recipe with its random initial weights, ready for gradients.

    Raises:
        RecipeError: an unknown family, sizes that it cannot have, or settings that are not for its objective.
    """
    try:
        adapter = registry.build(recipe.family, recipe.model_sizes, seed=recipe.seed)
    except ValueError as error:
        raise RecipeError(f"recipe of {recipe.model}: {error}") from error
    if recipe.mlm_steps and adapter.objective != "diffusion":
        raise RecipeError(
            f"recipe of {recipe.model}: mlm_steps is {recipe.mlm_steps}, but only diffusion models have such a first "
            f"stage and {recipe.family} is {adapter.objective!r}; leave it out"
        )
    if recipe.initializer_range is not None:
        config = getattr(adapter.module, "config", None)
        if not hasattr(config, "initializer_range"):
            raise RecipeError(f"recipe of {recipe.model}: {recipe.family} has no initializer_range; leave it out")
        # In the config, so that it is published with the weights and every re-initialised null model has it too.
        config.initializer_range = recipe.initializer_range
        adapter.reinitialise(recipe.seed)
    adapter.module.requires_grad_(True)
    return adapter


def _train(
    recipe: Recipe,
    adapter: Adapter,
    proteins: Sequence[Protein],
    n_tokens: Sequence[int],
    valid_proteins: Sequence[Protein],
    longest: int,
    log: logging.Logger,
) -> Trained:
    device, ignorant = adapter.device, background(proteins)
    parameters = list(adapter.module.parameters())
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    result, tally, n_residues = Trained(adapter), Tally(), 0

    def validate(step: int) -> None:
        point = validation_point(
            adapter, valid_proteins, ignorant, recipe=recipe, longest=longest, step=step, n_residues=n_residues
        )
        result.curve.append(point)
        log.info(
            f"step {step}: held-out {point.nats:.4f} nats per residue, composition alone {point.reference:.4f} "
            f"(n = {point.n})"
        )

    validate(0)
    progress = Progress(log, total=recipe.steps, unit="steps")
    batches = training_batches(n_tokens, recipe.tokens_per_batch, recipe.seed)
    for step in range(recipe.steps):
        epoch, rows = next(batches)
        pieces = [crop_of(proteins[i], longest, recipe.seed, epoch) for i in rows]
        objective = "mlm" if step < recipe.mlm_steps else adapter.objective
        options = {"objective": objective, "seed": recipe.seed, "epoch": epoch, "mask_rate": recipe.mask_rate}
        examples = [
            training_example(adapter, p.sequence, sequence_id=p.sequence_id, structure=p.structure, **options)
            for p in pieces
        ]
        batch, at = _collated(adapter, examples, device)
        adapter.module.train()
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        with _products(recipe, device):
            logits = _read_logits(adapter, batch, at)
            nats = structure_nats(adapter, examples)
        loss = training_loss(logits, at)
        if len(nats):
            loss = loss + nats.mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        if not (math.isfinite(float(loss.detach())) and math.isfinite(float(norm))):
            raise TrainingError(
                f"{recipe.model}: loss {float(loss.detach())}, gradient norm {float(norm)} at step {step + 1} of "
                f"{recipe.steps}: training diverged and nothing is written; lower learning_rate "
                f"({recipe.learning_rate:g}) or raise warmup ({recipe.warmup})"
            )
        optimiser.step()
        tally.add(*loss_of_reads(logits, at, adapter.residue_ids, ignorant))
        n_residues += sum(len(piece.sequence) for piece in pieces)
        progress.advance()
        if (step + 1) % recipe.validate_every == 0 or step + 1 == recipe.steps:
            if tally.n:
                result.curve.append(
                    Point(step + 1, n_residues, "train", tally.nats / tally.n, tally.n, tally.reference / tally.n)
                )
            tally = Tally()
            validate(step + 1)
    progress.finish()
    adapter.module.requires_grad_(False)
    if structured := [p for p in valid_proteins if p.structure is not None]:
        about = {"recipe": recipe, "longest": longest, "step": recipe.steps, "n_residues": n_residues}
        alone, both = (
            validation_point(adapter, structured, ignorant, with_structure=shown, **about) for shown in (False, True)
        )
        result.with_structure = {"n_proteins": len(structured), "seq": alone.nats, "seq_struct": both.nats}
        log.info(
            f"held-out proteins with a structure (n = {len(structured)}): {alone.nats:.4f} nats per residue from the "
            f"sequence alone, {both.nats:.4f} with the structure"
        )
        if adapter.structure_classes and (found := structure_loss(adapter, proteins, structured, longest)):
            result.with_structure |= found
            log.info(
                "their structures: {structure:.4f} nats per residue from the sequence, composition alone "
                "{structure_reference:.4f}".format(**found)
            )
    return result


@torch.inference_mode()
def structure_loss(
    adapter: Adapter, proteins: Sequence[Protein], structured: Sequence[Protein], longest: int
) -> dict[str, float]:
    """Return the nats per residue of the structures of held-out proteins, and what the training composition pays.

    Nothing where the class of no residue is known (coordinates alone, of a model that reads codes out).

    Args:
        proteins: of the training, some with a structure.
        structured: held-out ones, all with a structure.
        longest: longer proteins are read in one fixed piece of this many residues.
    """
    adapter.module.eval()
    pieces = [crop_of(p, longest, VALIDATION_SEED) for p in structured]
    examples = [structure_example(adapter, piece.sequence, piece.structure) for piece in pieces]
    asked = np.concatenate([example.structure_targets for example in examples])
    if not len(asked):
        return {}
    nats = torch.cat([structure_nats(adapter, [example]) for example in examples]).double()
    counts = np.ones(len(adapter.structure_classes))
    for protein in proteins:
        if protein.structure is not None:
            true = adapter.true_structure(protein.structure, len(protein.sequence))
            counts += np.bincount(true[true >= 0], minlength=len(counts))
    reference = -np.log(counts / counts.sum())[asked]
    return {"structure": float(nats.mean()), "structure_reference": float(reference.mean())}


@torch.inference_mode()
def validation_point(
    adapter: Adapter,
    proteins: Sequence[Protein],
    ignorant: np.ndarray,
    *,
    recipe: Recipe,
    longest: int,
    step: int,
    n_residues: int,
    with_structure: bool = False,
) -> Point:
    """Return the loss on the fixed validation views: the mean over views of the mean over predicted residues.

    Args:
        ignorant: (20,) nats that the background composition pays for each amino acid.
        longest: longer proteins are read in one fixed piece of this many residues.
        step, n_residues: where the training stands.
        with_structure: show every protein with its structure; all must have one.
    Raises:
        TrainingError: the model's loss is not finite, or no residue was predicted.
    """
    adapter.module.eval()
    pieces = [crop_of(p, longest, VALIDATION_SEED) for p in proteins]
    tallies = []
    for view in validation_views(adapter, recipe.mask_rate):
        tally = Tally()
        examples = [
            validation_example(
                adapter,
                piece.sequence,
                view,
                sequence_id=piece.sequence_id,
                structure=piece.structure if with_structure else None,
            )
            for piece in pieces
        ]
        for rows in batches_of([e.tokens.n_tokens for e in examples], recipe.tokens_per_batch):
            batch, at = _collated(adapter, [examples[i] for i in rows], adapter.device)
            with _products(recipe, adapter.device):
                logits = _read_logits(adapter, batch, at)
            tally.add(*loss_of_reads(logits, at, adapter.residue_ids, ignorant))
        if tally.n == 0:
            raise TrainingError(f"{recipe.model}: no canonical residue to predict in the validation proteins")
        tallies.append(tally)
    point = Point(
        step=step,
        n_residues=n_residues,
        split="valid",
        nats=float(np.mean([t.nats / t.n for t in tallies])),
        n=sum(t.n for t in tallies),
        reference=float(np.mean([t.reference / t.n for t in tallies])),
    )
    if not math.isfinite(point.nats):
        raise TrainingError(
            f"{recipe.model}: held-out loss {point.nats} after step {step}: training diverged and nothing is written; "
            f"lower learning_rate ({recipe.learning_rate:g}) or raise warmup ({recipe.warmup})"
        )
    return point


def _token_counts(
    adapter: Adapter, proteins: Sequence[Protein], longest: int, which: str, log: logging.Logger
) -> list[int]:
    """Return the tokens of every protein (or of its piece), refusing what the family cannot read or predict."""
    counts, n_cropped = [], 0
    for protein in proteins:
        try:
            # Every residue is checked, whichever piece is read later.
            parts = [protein.sequence[i : i + longest] for i in range(0, len(protein.sequence), longest)] or [""]
            tokens = [adapter.encode(part, direction=adapter.directions[0]) for part in parts]
        except SequenceError as error:
            raise SequenceError(f"{which} protein {protein.sequence_id!r}: {error}") from error
        for part, read in zip(parts, tokens, strict=True):
            index = indices_of(part)
            shown = read.ids[read.residue_tokens][index >= 0]
            if adapter.tokens_are_residues and (shown != adapter.residue_ids[index[index >= 0]]).any():
                raise TrainingError(
                    f"{adapter.family}: in {which} protein {protein.sequence_id!r} a token stands for something else "
                    "than one residue; losses are per residue, so this family cannot be trained here"
                )
        if protein.structure is not None:
            piece = crop_of(protein, longest, "longest")
            tokens.append(adapter.encode(piece.sequence, structure=piece.structure, condition="seq_struct"))
        counts.append(max(read.n_tokens for read in tokens))
        n_cropped += len(parts) > 1
    n_residues = sum(len(protein.sequence) for protein in proteins)
    text = f"{which}: {len(proteins)} proteins, {n_residues} residues"
    if n_structures := sum(protein.structure is not None for protein in proteins):
        text += f"; {n_structures} with a structure"
    if n_cropped:
        text += f"; {n_cropped} of them longer than {longest} residues and read in pieces of that length"
    log.info(text)
    return counts


def _products(recipe: Recipe, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.dtype == "bfloat16")


class _deterministic:
    """Deterministic algorithms while inside; on an accelerator an operation that has none is warned about."""

    def __init__(self, device: torch.device):
        self.warn_only = device.type != "cpu"

    def __enter__(self) -> None:
        self.before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        torch.use_deterministic_algorithms(True, warn_only=self.warn_only)

    def __exit__(self, *error: object) -> None:
        torch.use_deterministic_algorithms(self.before[0], warn_only=self.before[1])


# ----------------------------------------------------------------------------------------------------------------
# The stage


def notes(
    recipe: Recipe, result: Trained, train_proteins: Sequence[Protein], valid_proteins: Sequence[Protein]
) -> dict[str, object]:
    """Return what is kept beside the weights: recipe, versions, corpus sizes, final losses; no times, no paths."""
    valid, seen = result.last("valid"), [p for p in result.curve if p.split == "train"]
    return {
        "recipe": recipe.as_dict(),
        "objective": result.adapter.objective,
        "n_parameters": result.adapter.n_parameters,
        "n_train_proteins": len(train_proteins),
        "n_train_residues": sum(len(p.sequence) for p in train_proteins),
        "n_valid_proteins": len(valid_proteins),
        "n_valid_residues": sum(len(p.sequence) for p in valid_proteins),
        "n_residues_seen": valid.n_residues,
        "final": {
            "train_nats": seen[-1].nats if seen else None,
            "valid_nats": valid.nats,
            "valid_reference": valid.reference,
            "valid_n": valid.n,
        },
        **({"with_structure": result.with_structure} if result.with_structure else {}),
        "versions": {"plm_depth": __version__, "torch": torch.__version__, "transformers": version("transformers")},
    }


def curve_columns(recipe: Recipe, curve: Sequence[Point]) -> dict[str, object]:
    """Return the columns of ``tables.LOSS``."""
    names = ("step", "n_residues", "split", "nats", "n", "reference")
    return {"model_id": recipe.model, **{name: [getattr(point, name) for point in curve] for name in names}}


def device_of(name: str) -> torch.device:
    """Return the device of that name; "auto" is the first CUDA device if there is one, else the CPU.

    Raises:
        TrainingError: the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"device {name!r} cannot be used ({error}); use auto or cpu") from error
    return device


def check_can_be_written(recipe: Recipe) -> None:
    """Refuse, before any training, a model that the official layout of its family cannot hold.

    Raises:
        RecipeError: the layout's own words.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            registry.save(untrained(recipe), Path(folder))
        except ValueError as error:
            raise RecipeError(f"recipe of {recipe.model}: {error}") from error


def structured(
    proteins: Sequence[Protein], family: str, backbone: Path, codes: Path | None, log: logging.Logger
) -> list[Protein]:
    """Return proteins with the structures that a family can be shown; the others as they are.

    Raises:
        TableError: damaged tables.
        RecipeError: the family cannot be shown structures.
    """
    reads = registry.FAMILIES[family].reads_structure
    if not reads:
        raise RecipeError(f"--backbone: {family} cannot be shown a structure; leave it out")
    of_family = read_codes(codes, family, log=log) if codes else {}
    found = read_structures(backbone, [(p.sequence_id, p.sequence) for p in proteins], codes=of_family, log=log)
    return [
        replace(protein, structure=structure)
        if (structure := found.get(protein.sequence_id)) and any(getattr(structure, part) is not None for part in reads)
        else protein
        for protein in proteins
    ]


def run(
    *,
    recipe: str,
    train_fasta: Path,
    valid_fasta: Path,
    checkpoint: Path,
    loss: Path,
    device: str = "auto",
    backbone: Path | None = None,
    codes: Path | None = None,
) -> Trained:
    """Train by a recipe (JSON, or its file) and write the checkpoint folder and the loss table, both or neither.

    Args:
        backbone, codes: BACKBONE and CODES tables; proteins that have a structure there are shown it too.
    """
    log = start_log(STAGE)
    wanted = read_recipe(recipe)
    check_can_be_written(wanted)
    train_proteins, valid_proteins = read_fasta(train_fasta), read_fasta(valid_fasta)
    if backbone is not None:
        train_proteins, valid_proteins = (
            structured(proteins, wanted.family, backbone, codes, log) for proteins in (train_proteins, valid_proteins)
        )
    where = torch.device(claimed(str(device_of(device)), log=log))
    log.info(f"{wanted.model}: {wanted.steps} steps on {where}, {torch.get_num_threads()} threads")
    result = train(wanted, train_proteins, valid_proteins, device=where, log=log)
    result.adapter.module.cpu()
    with replacing_folder(checkpoint) as temporary:
        registry.save(result.adapter, temporary)
        write_notes(notes(wanted, result, train_proteins, valid_proteins), temporary)
        write_table(curve_columns(wanted, result.curve), LOSS, loss)
    log.info(f"{wanted.model}: written to {checkpoint}")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage; a foreseeable failure ends in one message and exit status 1."""
    parser = argparse.ArgumentParser(prog=f"python -m plm_depth.{STAGE}", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", required=True, help="what is trained and how: JSON, or the path of a JSON file")
    parser.add_argument("--train", type=Path, required=True, help="FASTA of the training proteins")
    parser.add_argument("--valid", type=Path, required=True, help="FASTA of the validation proteins")
    parser.add_argument("--backbone", type=Path, help="BACKBONE table: proteins are shown with their structures too")
    parser.add_argument("--codes", type=Path, help="CODES table: precomputed structure codes")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder to write, in the official layout")
    parser.add_argument("--loss", type=Path, required=True, help="Parquet file of the training curve to write")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, help="CPU threads; default: what the libraries choose")
    args = parser.parse_args(argv)
    if args.threads is not None:
        if args.threads < 1:
            raise SystemExit(f"{STAGE}: --threads {args.threads}: expected at least 1")
        torch.set_num_threads(args.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # reproducible matrix products on CUDA
    try:
        run(
            recipe=args.recipe,
            train_fasta=args.train,
            valid_fasta=args.valid,
            checkpoint=args.checkpoint,
            loss=args.loss,
            device=args.device,
            backbone=args.backbone,
            codes=args.codes,
        )
    except torch.OutOfMemoryError as error:
        raise SystemExit(f"{STAGE}: out of memory ({error}); lower tokens_per_batch or crop of the recipe") from error
    except (RecipeError, CorpusError, TrainingError, SequenceError, CheckpointError, TableError, OSError) as error:
        raise SystemExit(f"{STAGE}: {error}") from error


if __name__ == "__main__":
    main()
