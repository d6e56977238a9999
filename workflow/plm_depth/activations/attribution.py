"""Attribution and erasure of a shard: which blocks and states make the prediction, and how long it needs them (E1-E3).

    python -m plm_depth.activations.attribution --card P --sequences P --reference P --nulls JSON --inputs JSON
        --settings JSON --seed N --attribution P --erasure P

The target F is a sum over the read positions of a view: of log-probabilities (``logp``, nats) or of probabilities
(``prob``) of the true residues. Methods:

* ``gate``: every block's update is multiplied by a gate that goes from 0 to 1, all gates together. The attribution of a
  block is the integral of F's derivative by its gate along the way; the sum over blocks is F of the whole model less F
  of the read-out of layer 0. Gates are there per token, which costs nothing more and says where a block did it.
* ``gate_part``: the same with gates of their own for the attention, MLP and geometric updates.
* ``layer``, ``attn``, ``mlp``: integrated gradients on a state or an update, from its mean over the protein's residues
  to itself, at all residues together; specials keep theirs (``specials`` moves them, too).
* ``erasure``: the state of one position, or of all before a point, is replaced by the mean state of that layer over a
  reference sample; read at the other positions.

Integrals are sums over ``steps`` points, taken at the middle of equal steps (``midpoint``). Gates are at s ** ``power``
where s takes equal steps: the same way, walked slowly at its beginning, where norms make F change fast (a state that is
zero, as of a masked residue of ESM-2, has no direction before the first gate opens). ``left`` is the rule of earlier
published code: equal shares from 0 on, the end not met.

How well the parts add up is known exactly: the ends of F are computed, too. ``completeness_err`` is the difference
between the sum of the attributions and that of the ends, over the larger of the latter and the sum of the absolute
attributions (of blocks for gates, of positions for states). Rows above ``COMPLETE`` are written and logged, and the
corpus statistics leave them out and count them. Where routing is discrete (mixtures of experts) the gradient does not
see it change, and the error says how much that matters.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from plm_depth.activations import ATTRIBUTION_VERSION, batches, keys
from plm_depth.activations.door import (
    ExtractionError,
    add_model_options,
    check_sequences,
    loaded,
    read_shard,
    running,
    views_for,
)
from plm_depth.activations.erasure import Erasure, erase, mean_states
from plm_depth.activations.extract import widened
from plm_depth.activations.gradients import TARGETS, Readers, frozen, pull_back, walk
from plm_depth.activations.interventions import position_sets
from plm_depth.activations.nulls import Null, applied, as_seen, parse_nulls
from plm_depth.activations.settings import SettingsError, check_counts, check_names, check_switches, read_settings
from plm_depth.activations.sweep import OUTPUTS
from plm_depth.models.base import Adapter, Context, SequenceError, Tokens
from plm_depth.models.fast import Steps, steps
from plm_depth.progress import Progress
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS, ATTR_SEQ, COMPLETE, ERASE_SEQ, TableWriter
from plm_depth.views import View, mask_of

METHODS = ("gate", "gate_part", "layer", "attn", "mlp", "erasure")
GATED = {"gate": ("layer",), "gate_part": ("attn", "mlp", "geom")}  # the parts of an update that have a gate
RULES = ("midpoint", "left")
VOCABULARIES = ("aa20", "full")
ERASED = ("l2", "kl_fo")  # output changes that are kept
PREFIX = -1  # position of the rows in which all positions before a point are erased


@dataclass(frozen=True)
class Settings:
    """What is attributed and how; see the module.

    Attributes:
        methods: some of ``METHODS``.
        targets: some of ``gradients.TARGETS``.
        vocab: "aa20" (probabilities renormalised over the canonical residues) or "full" (all real tokens).
        steps: points of an integral.
        rule, power: how they are placed; the power is about gates.
        specials: whether integrated gradients on states move tokens that are no residues, too.
        positions: residues of a protein that are erased one by one, drawn per protein (fewer where it has fewer).
        reference: proteins behind the mean states, the first of ``--reference``.
    """

    methods: tuple[str, ...] = ("gate", "erasure")
    targets: tuple[str, ...] = ("logp", "prob")
    vocab: str = "aa20"
    steps: int = 64
    rule: str = "midpoint"
    power: float = 4.0
    specials: bool = False
    positions: int = 16
    reference: int = 32

    def __post_init__(self) -> None:
        check_names(self, "--settings", methods=METHODS, targets=TARGETS)
        for name, known in (("vocab", VOCABULARIES), ("rule", RULES)):
            if getattr(self, name) not in known:
                raise SettingsError(f"--settings: {name} is {getattr(self, name)!r}; expected {' or '.join(known)}")
        check_counts(self, "--settings", steps=1, positions=1, reference=1)
        if isinstance(self.power, bool) or not isinstance(self.power, int | float) or not 1 <= self.power <= 8:
            raise SettingsError(f"--settings: power is {self.power!r}; expected a number from 1 to 8")
        check_switches(self, "--settings", "specials")


def points_of(rule: str, n: int, power: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of the way at which F is differentiated, and their weights, (n,) each; see the module."""
    if rule == "left":
        return np.arange(n) / n, np.full(n, 1 / n)
    s = (np.arange(n) + 0.5) / n
    # The weights of the midpoints of s add up to 1 up to rounding of the rule itself; a linear F must come out exact.
    weights = power * s ** (power - 1) / n
    return s**power, weights / weights.sum()


# ----------------------------------------------------------------------------------------------------------------
# One protein


@dataclass(frozen=True, eq=False)
class Protein:
    """One protein as one view shows it, and its clean run.

    Attributes:
        sequence_id, sequence: the protein; under "shuffle_seq" the sequence is the permuted one.
        tokens: as the model reads it.
        residues: (n_tokens,) bool, canonical residues.
        readers: which read-outs F sums over.
        states: of the clean run, layer by layer, (1, n_tokens, d_model).
        context: of the blocks.
    """

    sequence_id: str
    sequence: str
    tokens: Tokens
    residues: np.ndarray
    readers: Readers
    states: list[Tensor]
    context: Context


@torch.no_grad()
def protein_of(
    adapter: Adapter, sequence_id: str, sequence: str, view: View, settings: Settings, *, seed: int
) -> Protein | None:
    """Return a protein under a view, None where the view reads nothing of it.

    Raises:
        SequenceError: the model cannot read this protein; names it.
        ExtractionError: a state of its clean run is NaN or infinite.
    """
    tokens, residues = encoded(adapter, sequence_id, sequence, view, seed)
    positions = adapter.read_positions(sequence, tokens, which=view.reads)
    if not len(positions):
        return None
    reads = tokens.residue_tokens[positions] + adapter.read_offset
    true = adapter.residue_ids[[AMINO_ACIDS.index(sequence[position]) for position in positions]]
    device = adapter.device
    ids = columns_of(adapter, settings.vocab)
    place = {int(token): column for column, token in enumerate(ids)}
    readers = Readers(
        torch.from_numpy(reads).to(device),
        torch.from_numpy(ids).to(device),
        torch.tensor([place[int(token)] for token in true], device=device),
        settings.targets,
    )
    # Not under inference mode: what is made there cannot be differentiated through.
    with adapter.precision():
        stream, context = adapter.embed(adapter.collate([tokens], device))
    states = walk(adapter, context, stream.to(torch.promote_types(stream.dtype, torch.float32)))
    for layer, state in enumerate(states):
        if not bool(torch.isfinite(state).all()):
            raise ExtractionError(
                f"the state of protein {sequence_id} is NaN or infinite from layer {layer} on; check the weights (the "
                "card's digests) or use a wider dtype; nothing was written"
            )
    return Protein(sequence_id, sequence, tokens, residues, readers, states, context)


def encoded(adapter: Adapter, sequence_id: str, sequence: str, view: View, seed: int) -> tuple[Tokens, np.ndarray]:
    """Return a protein as a view shows it, and which tokens are canonical residues, (n_tokens,) bool.

    Raises:
        SequenceError: the model cannot read this protein; names it.
    """
    masked = mask_of(view, len(sequence), seed, sequence_id)
    try:
        tokens = adapter.encode(sequence, masked=masked if masked.any() else None, direction=view.direction)
    except SequenceError as error:
        raise SequenceError(f"protein {sequence_id}: {error}") from error
    residues = np.full(tokens.n_tokens, False)
    residues[tokens.residue_tokens] = [letter in AMINO_ACIDS for letter in sequence]
    return tokens, residues


def columns_of(adapter: Adapter, vocab: str) -> np.ndarray:
    """Return the token ids of a vocabulary, ascending for "full", in the order of AMINO_ACIDS for "aa20"."""
    return np.asarray(adapter.residue_ids if vocab == "aa20" else sorted(adapter.vocabulary), np.int64)


# ----------------------------------------------------------------------------------------------------------------
# Integrated gradients


@dataclass(frozen=True, eq=False)
class Attribution:
    """Integrated gradients of one object of one protein, for each target.

    Attributes:
        object: "gate", "gate_attn", ..., "layer", "attn", "mlp".
        layers: (n_layers,) block or state of each row.
        values: (n_targets, n_layers, n_tokens) float64.
        start, end: (n_targets, n_layers), F at the two ends of the way.
        error: (n_targets, n_layers), completeness error; for gates the same at all layers.
    """

    object: str
    layers: np.ndarray
    values: np.ndarray
    start: np.ndarray
    end: np.ndarray
    error: np.ndarray


def attributions(
    adapter: Adapter, protein: Protein, settings: Settings, *, token_budget: int, log: logging.Logger
) -> list[Attribution]:
    """Return the integrated gradients of one protein by every method of the settings.

    Args:
        token_budget: largest rows x tokens that pass a block together; changes speed and memory only.
    Raises:
        BatchError: one step alone does not fit into memory.
    """
    found = []
    for method in settings.methods:
        if method in GATED:
            found += gate_attributions(adapter, protein, method, settings, token_budget=token_budget, log=log)
        elif method != "erasure":
            found.append(state_attributions(adapter, protein, method, settings, token_budget=token_budget, log=log))
    return found


def gate_attributions(
    adapter: Adapter, protein: Protein, method: str, settings: Settings, *, token_budget: int, log: logging.Logger
) -> list[Attribution]:
    """Return the integrated gradients of the gates of every block, one ``Attribution`` a kind of gate."""
    parts = GATED[method]
    entering, readers = protein.states[0], protein.readers
    shares, weights = points_of(settings.rule, settings.steps, settings.power)

    def run(steps: list[int]) -> np.ndarray:
        gates = torch.from_numpy(shares[steps]).to(entering)
        states = walk(adapter, protein.context, entering.expand(len(steps), -1, -1), gates=gates, parts=parts)
        _, _, grads = pull_back(adapter, protein.context, states, readers, gates=gates, parts=parts)
        by = torch.from_numpy(weights[steps]).to(grads.device)
        return torch.einsum("tbprn,r->tpbn", grads.double(), by).cpu().numpy()

    values = _sum_over_steps(run, settings.steps, protein, token_budget, log)
    with torch.no_grad():
        ends = [readers.score(adapter, state)[:, 0].cpu().numpy() for state in (entering, protein.states[-1])]
    start, end = (np.repeat(one[:, None], adapter.n_blocks, axis=1) for one in ends)
    of_blocks = values.sum(-1)  # (n_targets, n_parts, n_blocks)
    total, size = of_blocks.sum((1, 2)), np.abs(of_blocks).sum((1, 2))
    error = np.repeat(completeness_error(total, size, ends[0], ends[1])[:, None], adapter.n_blocks, axis=1)
    layers = np.arange(1, adapter.n_blocks + 1)
    found = []
    for number, part in enumerate(parts):
        # A geometric branch stands in few blocks if any: the others have no such gate.
        name = method if part == "layer" else f"gate_{part}"
        has = blocks_with_geometry(adapter, protein) if part == "geom" else np.full(adapter.n_blocks, True)
        if has.any():
            found.append(
                Attribution(name, layers[has], values[:, number, has], start[:, has], end[:, has], error[:, has])
            )
    return found


@torch.no_grad()
def blocks_with_geometry(adapter: Adapter, protein: Protein) -> np.ndarray:
    """Return which blocks have a geometric branch, (n_blocks,) bool."""
    if adapter.is_parallel:
        return np.full(adapter.n_blocks, False)
    with adapter.precision():
        return np.array(
            [
                adapter.geometric_update(block, protein.states[block], protein.context) is not None
                for block in range(1, adapter.n_blocks + 1)
            ]
        )


def state_attributions(
    adapter: Adapter, protein: Protein, method: str, settings: Settings, *, token_budget: int, log: logging.Logger
) -> Attribution:
    """Return the integrated gradients on the states ("layer") or updates ("attn", "mlp") of every layer.

    Each object is moved alone; only what comes after it is computed again.
    """
    readers, context = protein.readers, protein.context
    shares, weights = points_of(settings.rule, settings.steps)
    moved = torch.from_numpy(np.full(len(protein.residues), True) if settings.specials else protein.residues)
    moved = moved.to(protein.states[0].device)[:, None]
    layers = np.arange(0 if method == "layer" else 1, adapter.n_blocks + 1)
    shape = (len(settings.targets), len(layers))
    values, start = np.zeros((*shape, len(protein.residues))), np.zeros(shape)
    with torch.no_grad():
        end = np.repeat(readers.score(adapter, protein.states[-1]).cpu().numpy(), len(layers), axis=1)
    for row, layer in enumerate(layers.tolist()):
        whole = _object_of(adapter, protein, method, layer)
        mean = (whole.double() * moved).sum(1, keepdim=True) / moved.sum()
        away = torch.where(moved, whole - mean.to(whole), 0)

        def run(steps: list[int], layer=layer, whole=whole, away=away) -> np.ndarray:
            left = torch.from_numpy(1 - shares[steps]).to(whole)[:, None, None]
            with torch.enable_grad():
                placed = (whole - left * away).requires_grad_()
                leaving = _rest_of_block(adapter, protein, method, layer, placed)
            states = walk(adapter, context, leaving.detach(), first=layer)
            _, grads, _ = pull_back(adapter, context, states, readers, first=layer)
            by = torch.from_numpy(weights[steps]).to(grads.device)
            total = []
            for number, grad in enumerate(grads):
                is_last = number == len(grads) - 1
                (at,) = torch.autograd.grad(leaving, placed, grad, retain_graph=not is_last)
                total.append(torch.einsum("rnd,r->nd", at.double(), by))
            return (torch.stack(total) * away.double()).sum(-1).cpu().numpy()

        values[:, row] = _sum_over_steps(run, settings.steps, protein, token_budget, log)
        with torch.no_grad():
            base = walk(adapter, context, _rest_of_block(adapter, protein, method, layer, whole - away), first=layer)
            start[:, row] = readers.score(adapter, base[-1])[:, 0].cpu().numpy()
    error = completeness_error(values.sum(-1), np.abs(values).sum(-1), start, end)
    return Attribution(method, layers, values, start, end, error)


@torch.no_grad()
def _object_of(adapter: Adapter, protein: Protein, method: str, layer: int) -> Tensor:
    """Return the clean state or update, (1, n_tokens, d_model)."""
    if method == "layer":
        return protein.states[layer]
    before = protein.states[layer - 1]
    with adapter.precision():
        updates = widened(adapter.updates(layer, before, protein.context), before.dtype)
    return updates.attention if method == "attn" else updates.mlp


def _rest_of_block(adapter: Adapter, protein: Protein, method: str, layer: int, placed: Tensor) -> Tensor:
    """Return the state after a block for states or updates (n_rows, n_tokens, d_model) in the place of its own."""
    if method == "layer":
        return placed
    before, context = protein.states[layer - 1].expand_as(placed), protein.context
    with adapter.precision():
        if method == "mlp":
            updates = widened(adapter.updates(layer, before[:1], context), placed.dtype)
            middle = before[:1] + updates.attention if adapter.is_parallel else updates.middle
            return middle.detach() + placed
        middle = before + placed
        if adapter.is_parallel:
            return middle + adapter.mlp_update(layer, before[:1], context).to(placed.dtype).detach()
        geometric = adapter.geometric_update(layer, middle, context)
        if geometric is not None:
            middle = middle + geometric.to(placed.dtype)
        return middle + adapter.mlp_update(layer, middle, context).to(placed.dtype)


def _sum_over_steps(run, n_steps: int, protein: Protein, token_budget: int, log: logging.Logger) -> np.ndarray:
    """Return the sum of ``run`` over the steps, as many together as the budget and the memory allow."""
    at_once = max(1, token_budget // protein.tokens.n_tokens)
    total: np.ndarray | None = None
    for part in np.array_split(np.arange(n_steps), -(-n_steps // at_once)):
        for _, result in batches.run_halving(
            part.tolist(), run, log=log, name=lambda step: f"step {step} of protein {protein.sequence_id}"
        ):
            total = result if total is None else total + result
    return total


def completeness_error(total: np.ndarray, size: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return |total - (end - start)| over the larger of |end - start| and ``size``; 0 where all are 0.

    Args:
        total: sum of the attributions.
        size: sum of their absolute values.
        start, end: F at the two ends.
    """
    gained = end - start
    scale = np.maximum(np.abs(gained), size)
    return np.divide(np.abs(total - gained), scale, out=np.zeros_like(scale), where=scale > 0)


# ----------------------------------------------------------------------------------------------------------------
# Erasure


def erasures_of(
    protein: Protein, view: View, means: Tensor, settings: Settings, *, seed: int
) -> list[tuple[int, np.ndarray, list[Erasure]]]:
    """Return what is erased: (position or ``PREFIX``, (n_reads,) bool which read-outs count, an erasure a layer).

    Erased are canonical residues that the view shows: ``positions`` of them with the smallest uniform numbers keyed by
    (seed, "erasure", sequence_id), the same for every model, and the residues before a point (the first one of the
    position set ``prefix``). Read-outs count that do not read the erased tokens: for autoregressive models later ones
    in reading order, for the others those of other residues; behind a prefix those from the point on. Erasures without
    any such read-out are left out.

    Args:
        means: (n_blocks + 1, d_model), what stands in place of a state.
    """
    tokens, reads = protein.tokens, protein.readers.tokens.cpu().numpy()
    shown = protein.residues.copy()
    shown[tokens.residue_tokens[tokens.masked]] = False
    random = generator(seed, "erasure", protein.sequence_id).random(len(protein.sequence))
    wanted: list[tuple[int, np.ndarray, np.ndarray]] = []
    for position in np.argsort(random, kind="stable"):
        token = tokens.residue_tokens[position]
        counted = reads > token if view.reads == "next" else reads != token
        if shown[token] and counted.any():
            wanted.append((int(position), np.arange(tokens.n_tokens) == token, counted))
        if len(wanted) == settings.positions:
            break
    for prefix in position_sets(
        ["prefix"], protein.sequence, tokens, seed=seed, sequence_id=protein.sequence_id, draws=1
    ):
        at, counted = prefix.skip & shown, prefix.read[reads]
        if at.any() and counted.any():
            wanted.append((PREFIX, at, counted))
    return [
        (position, counted, [Erasure(layer, at, mean) for layer, mean in enumerate(means)])
        for position, at, counted in wanted
    ]


def erased_rows(
    adapter: Adapter,
    protein: Protein,
    view: View,
    means: Tensor,
    settings: Settings,
    evaluator: Steps,
    *,
    seed: int,
    token_budget: int,
    log: logging.Logger,
) -> dict[str, object]:
    """Return the columns of ERASE_SEQ of one protein that differ between its rows; no rows where nothing is erased."""
    wanted = erasures_of(protein, view, means, settings, seed=seed)
    reads = protein.readers.tokens.cpu().numpy()
    # The floor: the state that enters block 1 replaced by itself, everywhere.
    itself = Erasure(0, np.full(protein.tokens.n_tokens, True), protein.states[0][0])
    lanes = [itself, *(lane for _, _, own in wanted for lane in own)]
    changes = erase(
        adapter,
        protein.states[0],
        protein.context,
        lanes if wanted else [],
        reads,
        {settings.vocab: columns_of(adapter, settings.vocab)},
        token_budget=token_budget,
        log=log,
        evaluator=evaluator,
        name=f"protein {protein.sequence_id}",
    )[settings.vocab][:, [OUTPUTS.index(name) for name in ERASED]]
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("layer", "pos", "quantity", "n", "sum", "max", "floor")
    }
    n_layers = adapter.n_blocks + 1
    for number, (position, counted, _) in enumerate(wanted):
        values = changes[1 + number * n_layers : 1 + (number + 1) * n_layers][..., counted]  # layers, quantities, reads
        columns["layer"].append(np.repeat(np.arange(n_layers), len(ERASED)))
        columns["pos"].append(np.full(n_layers * len(ERASED), position))
        columns["quantity"].append(np.tile(ERASED, n_layers))
        columns["n"].append(np.full(n_layers * len(ERASED), counted.sum()))
        columns["sum"].append(values.sum(-1).ravel())
        columns["max"].append(values.max(-1).ravel())
        columns["floor"].append(np.tile(changes[0].max(-1), n_layers))
    return {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in columns.items()}


# ----------------------------------------------------------------------------------------------------------------
# Rows


def attribution_rows(protein: Protein, found: Attribution, settings: Settings) -> dict[str, object]:
    """Return the columns of ATTR_SEQ of one object of one protein that differ between its rows: a row a layer."""
    n_targets, n_layers = found.error.shape
    values = found.values.reshape(n_targets * n_layers, -1)
    at_residues = values[:, protein.tokens.residue_tokens]
    offsets = np.arange(len(values) + 1, dtype=np.int32) * at_residues.shape[1]
    flat = pa.array(at_residues.ravel().astype(np.float32))
    return {
        "layer": np.tile(found.layers, n_targets),
        "object": np.full(len(values), found.object),
        "target": np.repeat(settings.targets, n_layers),
        "vocab": np.full(len(values), settings.vocab),
        "value": values.sum(-1),
        "special": values[:, ~protein.residues].sum(-1),
        "l1": np.abs(values).sum(-1),
        "by_position": pa.ListArray.from_arrays(pa.array(offsets), flat),
        "n_reads": np.full(len(values), len(protein.readers.tokens)),
        "f_end": found.end.ravel(),
        "f_base": found.start.ravel(),
        "completeness_err": found.error.ravel(),
        "n_steps": np.full(len(values), settings.steps),
    }


# ----------------------------------------------------------------------------------------------------------------
# A shard


def measure(
    adapter: Adapter,
    sequences: Sequence[tuple[str, str]],
    *,
    attribution: Path,
    erasure: Path,
    model_id: str,
    nulls: Sequence[Null],
    views: Sequence[View],
    settings: Settings,
    seed: int,
    reference: Sequence[tuple[str, str]] = (),
    token_budget: int = 4096,
    log: logging.Logger,
) -> dict[str, int]:
    """Attribute and erase every (sequence_id, sequence) under every null model and view, and write the two tables.

    Args:
        seed: of masks and erased positions.
        reference: proteins behind the mean states, independent of the shard.
        token_budget: largest rows x tokens that pass a block together; changes speed and memory only.
    Returns:
        Rows written, by table.
    Raises:
        SettingsError, SequenceError, BatchError, TableError, ExtractionError: nothing stands under the final names.
    """
    check_sequences(sequences)
    if "erasure" in settings.methods and not reference:
        raise SettingsError("--settings: erasure needs --reference, the proteins whose mean states stand in")
    about = {"seed": str(seed), "version": str(ATTRIBUTION_VERSION), "settings": json.dumps(settings.__dict__)}
    progress = Progress(log, total=len(nulls) * len(views) * len(sequences), unit="proteins")
    started, n_unread, n_above, n_rows = time.monotonic(), 0, 0, 0
    with (
        TableWriter(attribution, ATTR_SEQ, **about) as attributed,
        TableWriter(erasure, ERASE_SEQ, **about) as erased,
        frozen(adapter),
    ):
        for null in nulls if adapter.tokens_are_residues else ():
            with applied(adapter, null):
                evaluator = steps(adapter)
                for view in views:
                    means = None
                    if "erasure" in settings.methods:
                        means = reference_means(adapter, reference, null, view, seed=seed)
                    for sequence_id, sequence in sorted(sequences, key=lambda pair: -len(pair[1])):
                        shown, _ = as_seen(null, sequence_id, sequence)
                        protein = protein_of(adapter, sequence_id, shown, view, settings, seed=seed)
                        progress.advance()
                        if protein is None:
                            n_unread += 1
                            continue
                        common = keys.of_protein(adapter, model_id, null, view, protein)
                        for found in attributions(adapter, protein, settings, token_budget=token_budget, log=log):
                            rows = attribution_rows(protein, found, settings)
                            n_rows += len(rows["layer"])
                            n_above += int((rows["completeness_err"] > COMPLETE).sum())
                            attributed.append(common | rows)
                        if means is not None:
                            rows = erased_rows(
                                adapter, protein, view, means, settings, evaluator,
                                seed=seed, token_budget=token_budget, log=log,
                            )  # fmt: skip
                            if len(rows["layer"]):
                                erased.append(common | rows | {"vocab": settings.vocab})
    progress.finish()
    if not adapter.tokens_are_residues:
        log.warning(
            f"{model_id}: its tokens are not residues, nothing is read residue by residue; both tables are empty"
        )
    if n_unread:
        log.info(f"{n_unread} proteins x views x null models left out: the view reads nothing of them")
    log.info(
        f"{n_above} of {n_rows} attributions miss completeness by more than {COMPLETE:.0%}; they are written, and left "
        "out of corpus values (more steps, or a larger power, mend it where routing is not discrete)"
    )
    counts = {"attribution": attributed.n_rows, "erasure": erased.n_rows}
    log.info(f"{time.monotonic() - started:.1f} s; rows: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
    return counts


def reference_means(
    adapter: Adapter, reference: Sequence[tuple[str, str]], null: Null, view: View, *, seed: int
) -> Tensor:
    """Return the mean state of every layer over the reference's residues that a view shows to a null."""

    def shown() -> Iterator[tuple[Tokens, np.ndarray]]:
        for sequence_id, sequence in reference:
            seen, _ = as_seen(null, sequence_id, sequence)
            tokens, residues = encoded(adapter, sequence_id, seen, view, seed)
            residues[tokens.residue_tokens[tokens.masked]] = False
            yield tokens, residues

    return mean_states(adapter, shown())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m plm_depth.activations.attribution", description=__doc__.split("\n")[0]
    )
    add_model_options(parser)
    parser.add_argument("--sequences", type=Path, required=True, help="shard (SEQUENCES table)")
    parser.add_argument("--first", type=int, default=0, help="first rank of --sequences that is measured")
    parser.add_argument("--last", type=int, help="rank after the last one (default: all)")
    parser.add_argument("--reference", type=Path, help="SEQUENCES table whose mean states stand in for erased ones")
    parser.add_argument("--nulls", required=True, help="JSON list of {null_model, seed}")
    parser.add_argument("--inputs", required=True, help="JSON: the inputs section of the config")
    parser.add_argument("--settings", default="{}", help="JSON: methods, targets, steps, ...; see the module")
    parser.add_argument("--seed", type=int, required=True, help="of masks and erased positions")
    parser.add_argument("--attribution", type=Path, required=True, help="table ATTR_SEQ")
    parser.add_argument("--erasure", type=Path, required=True, help="table ERASE_SEQ")
    options = parser.parse_args(argv)
    with running("activations.attribution") as log:
        nulls, settings = parse_nulls(options.nulls), read_settings(Settings, options.settings, "--settings")
        if options.first < 0 or (options.last is not None and options.last <= options.first):
            raise SettingsError(f"--first {options.first} --last {options.last}: expected 0 <= first < last")
        sequences = read_shard(options.sequences)[options.first : options.last]
        reference = read_shard(options.reference)[: settings.reference] if options.reference else []
        model_id, adapter = loaded(options, log)
        measure(
            adapter,
            sequences,
            attribution=options.attribution,
            erasure=options.erasure,
            model_id=model_id,
            nulls=nulls,
            views=views_for(adapter, options.inputs, log),
            settings=settings,
            seed=options.seed,
            reference=reference,
            token_budget=options.token_budget,
            log=log,
        )


if __name__ == "__main__":
    main()
