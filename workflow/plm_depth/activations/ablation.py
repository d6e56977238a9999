"""Depth ablation of a shard: what is left of the prediction when blocks are removed, exchanged or reversed (metrics D).

    python -m plm_depth.activations.ablation --card P --sequences P --clusters P --first R --last R --nulls JSON
        --inputs JSON --ablations JSON --seed N [--conditions JSON --backbone P] --output P

``--sequences`` holds all proteins that are ablated, of which ranks ``first`` .. ``last - 1`` are this shard, and
``--clusters`` their similarity clusters. Written is the table ABLATE_SEQ: over the 20 canonical residues at the read
positions of each view, nll, acc1, kl_to_full and flip1 (``plm_depth.activations.detours``) of these runs, named by
``op``, ``start`` (blocks passed before the change) and ``length`` (blocks that it concerns):

    full            the model as it is; start n_blocks, length 0
    background      no model: the composition of other proteins; nll and acc1 only
    exit            read out at layer ``start``: the logit lens
    remove          one block left out
    remove_block    ``length`` blocks in a row left out, ``policy`` says which
    swap_adj        a block and its neighbour exchanged
    swap_block      a span of ``length`` blocks and the next one exchanged
    reverse         a span in reverse order
    repeat          a span passed twice
    parallel        all blocks of a span read the stream before it
    mean            the update of one block replaced by its mean over other proteins

Policies of remove_block: ``angular``, the span whose ends are closest in angle, over residues of other proteins;
``deepest``, the last ones but the very last; ``tail``, the last ones (as exit); ``random``, spans drawn by (seed,
"removal", n_blocks, length), the same for every protein; ``exhaustive``, all spans.

"Other proteins": the clusters are dealt into two folds, and a protein is ablated as the proteins of the other fold
say (spans, means, composition). Nothing is chosen on a protein, or on a relative of one, that it is evaluated on.

``moves_geometric`` flags runs in which a block with a geometric branch (ESM3: block 1) is not where it was.

Option ``pseudo_perplexity``: of that many proteins (lowest ranks) of masked models, every residue is also masked alone,
for full, background, exit and remove; ``reads`` is then ``single``.
"""

import argparse
import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plm_depth.activations import ABLATION_VERSION, keys
from plm_depth.activations.batches import WINDOW, padding_on, windows
from plm_depth.activations.detours import (
    QUANTITIES,
    Detour,
    in_its_place,
    removal,
    repetition,
    reversal,
    side_by_side,
    swap,
    travel,
)
from plm_depth.activations.door import (
    ExtractionError,
    add_model_options,
    add_structure_options,
    add_window_option,
    check_sequences,
    loaded,
    running,
    shown_by,
    views_for,
    with_structures,
)
from plm_depth.activations.effects import geometric_blocks
from plm_depth.activations.extract import Item, item_of, widened
from plm_depth.activations.nulls import Null, applied, as_seen, parse_nulls
from plm_depth.activations.settings import SettingsError, check_counts, check_names, read_settings
from plm_depth.activations.sweep import Work
from plm_depth.metrics.corpus import read_clusters
from plm_depth.models.base import Adapter, Structure
from plm_depth.progress import Progress
from plm_depth.randomness import generator
from plm_depth.tables import ABLATE_SEQ, AMINO_ACIDS, SEQUENCES, TableError, TableWriter, read_table
from plm_depth.views import View

OPS = ("exit", "remove", "remove_block", "swap_adj", "swap_block", "reverse", "repeat", "parallel", "mean")
POLICIES = ("angular", "deepest", "tail", "random", "exhaustive")
SPANNED = {"swap_block": swap, "reverse": reversal, "repeat": repetition, "parallel": side_by_side}
REORDERS = ("swap_adj", "swap_block", "reverse", "parallel")  # ops that put a block elsewhere
FOLDS = 2
ROWS_AT_ONCE = 50_000  # rows that are written together
WORKS_AT_ONCE = 2_000  # proteins (or masked copies of one) that are planned together


@dataclass(frozen=True)
class Ablations:
    """What is done to the course of blocks.

    Attributes:
        ops: some of ``OPS``.
        policies: some of ``POLICIES``, for remove_block.
        lengths: blocks that remove_block leaves out; () stands for all lengths from 1 to n_blocks - 1. Lengths that a
            model does not have are left out.
        spans: lengths of the spans of swap_block, reverse, repeat and parallel.
        exhaustive_up_to: deepest model of which all spans are removed.
        draws: spans that the policy random removes of each length.
        selection: proteins of each fold that choose spans and means for the other one.
        pseudo_perplexity: proteins whose residues are also masked one at a time.
    """

    ops: tuple[str, ...] = ("exit", "remove", "remove_block", "swap_adj", "swap_block", "reverse")
    policies: tuple[str, ...] = ("angular", "deepest", "tail", "random", "exhaustive")
    lengths: tuple[int, ...] = ()
    spans: tuple[int, ...] = (2, 3, 4)
    exhaustive_up_to: int = 12
    draws: int = 4
    selection: int = 32
    pseudo_perplexity: int = 0

    def __post_init__(self) -> None:
        check_names(self, "--ablations", ops=OPS, policies=POLICIES)
        for name in ("lengths", "spans"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or any(type(v) is not int or v < 1 for v in values):
                raise SettingsError(
                    f"--ablations: {name} is {list(values)}; expected whole numbers from 1 on, none twice"
                )
        check_counts(self, "--ablations", exhaustive_up_to=0, draws=1, selection=1, pseudo_perplexity=0)

    def removed(self, n_blocks: int) -> list[int]:
        """Return the lengths that remove_block leaves out of a model."""
        return [n for n in self.lengths or range(1, n_blocks) if n < n_blocks]


# ----------------------------------------------------------------------------------------------------------------
# Proteins and folds


@dataclass(frozen=True)
class Protein:
    """One protein: its place in the sample, its fold, and whether this shard ablates it."""

    sequence_id: str
    sequence: str
    rank: int
    fold: int


def read_proteins(sequences: str | Path, clusters: str | Path) -> list[Protein]:
    """Return the proteins of a SEQUENCES table in rank order, dealt into two folds by the clusters of a CLUSTERS table.

    Whole clusters are dealt in turn, in the order of their keyed hashes.

    Raises:
        TableError: damaged tables, a protein without a cluster, or all proteins in one cluster.
    """
    rows = read_table(sequences, SEQUENCES).sort_by("rank").to_pylist()
    of_protein = read_clusters(clusters)
    without = [row["sequence_id"] for row in rows if row["sequence_id"] not in of_protein]
    if without:
        raise TableError(
            f"{clusters}: no cluster of {without[0]} and {len(without) - 1} others; clusters of other proteins?"
        )
    names = sorted({of_protein[row["sequence_id"]] for row in rows}, key=lambda name: generator("fold", name).random())
    if len(names) < FOLDS:
        raise TableError(
            f"{sequences}: all {len(rows)} proteins are in one similarity cluster; choosing and evaluating need at "
            "least two: ablate more proteins (ablation.size)"
        )
    fold = {name: place % FOLDS for place, name in enumerate(names)}
    return [
        Protein(row["sequence_id"], row["sequence"], row["rank"], fold[of_protein[row["sequence_id"]]]) for row in rows
    ]


@dataclass(frozen=True, eq=False)
class Chosen:
    """What the proteins of one fold say about a network under a view.

    Attributes:
        distance: (n_blocks + 1, n_blocks + 1), mean angular distance of the states of two layers, 0 to 1; NaN below
            the diagonal.
        mean: (n_blocks, d_model), mean update of each block over canonical residues.
    """

    distance: np.ndarray
    mean: Tensor

    def closest(self, length: int) -> int:
        """Return the layer i whose state is closest to that of layer i + length; the first one of equals."""
        ends = np.diagonal(self.distance, length)
        if np.isnan(ends).all():
            raise ExtractionError(f"no angular distance at {length} blocks is defined; leave out the policy angular")
        return int(np.nanargmin(ends))


@torch.inference_mode()
def choose(adapter: Adapter, items: Iterable[Item]) -> Chosen:
    """Return angular distances and mean updates of a network over canonical residues, one protein at a time.

    Angles in double precision, their mean first over a protein's residues, then over proteins; residues whose state is
    zero (masked ones at layer 0 of some families) have none. Means of updates are over all residues alike.
    """
    n = adapter.n_blocks
    total, count = np.zeros((n + 1, n + 1)), np.zeros((n + 1, n + 1))
    update, n_residues = torch.zeros(n, adapter.d_model, dtype=torch.float64), 0
    for item in items:
        canonical = np.array([letter in AMINO_ACIDS for letter in item.sequence])
        at = torch.from_numpy(item.tokens.residue_tokens[canonical]).to(adapter.device)
        with adapter.precision():
            stream, context = adapter.embed(adapter.collate([item.tokens], adapter.device))
            stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
            states = [stream[0, at]]
            for block in range(1, n + 1):
                updates = widened(adapter.updates(block, stream, context), stream.dtype)
                stream = adapter.add(stream, updates)
                states.append(stream[0, at])
                update[block - 1] += updates.total[0, at].double().sum(0).cpu()
        n_residues += len(at)
        angle = angles(torch.stack(states, dim=1)).cpu().numpy()
        defined = ~np.isnan(angle)
        n_defined = defined.sum(0)
        total += np.divide(
            np.where(defined, angle, 0.0).sum(0), n_defined, out=np.zeros_like(total), where=n_defined > 0
        )
        count += n_defined > 0
    distance = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    distance[np.tril_indices(n + 1, -1)] = np.nan
    return Chosen(distance, update / max(n_residues, 1))


def angles(states: Tensor) -> Tensor:
    """Return the angular distance (0 equal, 1 opposite) of all pairs of states (n, n_layers, d_model), float64.

    Returns:
        (n, n_layers, n_layers); NaN where a state is zero.
    """
    x = states.double()
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    x = torch.where(length > 0, x / length, torch.nan)
    cosine = (x @ x.transpose(-1, -2)).clamp(-1, 1)
    return 2 / torch.pi * torch.atan2((2 - 2 * cosine).sqrt(), (2 + 2 * cosine).sqrt())


def composition(sequences: Iterable[str]) -> np.ndarray:
    """Return the share of each amino acid, (20,), one of each added so that none is zero."""
    counts = np.ones(len(AMINO_ACIDS))
    for sequence in sequences:
        counts += [sequence.count(letter) for letter in AMINO_ACIDS]
    return counts / counts.sum()


# ----------------------------------------------------------------------------------------------------------------
# What is run


@dataclass(frozen=True)
class Trial:
    """One row of the results: its names, and the run behind it (-1: the clean one)."""

    op: str
    start: int
    length: int
    policy: str = "none"
    moves_geometric: bool = False
    run: int = -1


@dataclass(frozen=True, eq=False)
class Plan:
    """The trials of a protein and the detours that they need, each of which is run once."""

    trials: tuple[Trial, ...]
    detours: tuple[Detour, ...]


def plan(
    n_blocks: int,
    ablations: Ablations,
    *,
    seed: int,
    chosen: Chosen | None = None,
    geometric: Sequence[int] = (),
    ops: Sequence[str] | None = None,
) -> Plan:
    """Return what is run on the proteins of one fold.

    Args:
        seed: of random spans.
        chosen: what the other fold says; needed for the policy angular and the op mean.
        geometric: blocks that have a geometric branch.
        ops: instead of all of ``ablations``.
    """
    detours: list[Detour] = []
    place: dict[tuple, int] = {}  # of each different run among the detours
    trials = [Trial("full", n_blocks, 0)]

    def add(op: str, start: int, length: int, detour: Detour, policy: str = "none") -> None:
        if detour.key not in place:
            place[detour.key] = len(detours)
            detours.append(detour)
        covered = 2 * length if op.startswith("swap") else length
        moved = op in REORDERS and any(start < block <= start + covered for block in geometric)
        trials.append(Trial(op, start, length, policy, moved, place[detour.key]))

    for op in OPS:
        if op not in (ablations.ops if ops is None else ops):
            continue
        if op == "exit":
            for layer in range(n_blocks + 1):
                add(op, layer, n_blocks - layer, removal(layer, n_blocks - layer))
        elif op == "remove":
            for start in range(n_blocks):
                add(op, start, 1, removal(start, 1))
        elif op == "remove_block":
            for policy in ablations.policies:
                for length in ablations.removed(n_blocks):
                    for start in _starts(n_blocks, length, policy, ablations, seed, chosen):
                        add(op, start, length, removal(start, length), policy)
        elif op == "swap_adj":
            for start in range(n_blocks - 1):
                add(op, start, 1, swap(start, 1))
        elif op == "mean":
            for block in range(1, n_blocks + 1):
                add(op, block - 1, 1, in_its_place(block, chosen.mean[block - 1]))
        else:
            for length in ablations.spans:
                covered = 2 * length if op == "swap_block" else length
                for start in range(n_blocks - covered + 1):
                    add(op, start, length, SPANNED[op](start, length))
    return Plan(tuple(trials), tuple(detours))


def _starts(
    n_blocks: int, length: int, policy: str, ablations: Ablations, seed: int, chosen: Chosen | None
) -> list[int]:
    """Return the layers after which a policy removes ``length`` blocks of ``n_blocks``."""
    last = n_blocks - length
    if policy == "angular":
        return [chosen.closest(length)]
    if policy == "deepest":
        return [last - 1]
    if policy == "tail":
        return [last]
    if policy == "random":
        draws = generator(seed, "removal", n_blocks, length).permutation(last + 1)[: ablations.draws]
        return sorted(draws.tolist())
    return list(range(last + 1)) if n_blocks <= ablations.exhaustive_up_to else []


# ----------------------------------------------------------------------------------------------------------------
# A shard


@dataclass(frozen=True)
class Copy:
    """One run of a protein through the model: as a view shows it, or with one residue masked."""

    protein: Protein
    work: Work
    letters: np.ndarray  # (n_reads,) amino acids that are read, index into AMINO_ACIDS


def copy_of(adapter: Adapter, protein: Protein, item: Item) -> Copy:
    """Return a protein as an item shows it, with what is read."""
    letters = np.array([AMINO_ACIDS.index(item.sequence[p]) for p in item.reads], np.int64)
    reads = item.tokens.residue_tokens[item.reads] + adapter.read_offset
    return Copy(protein, Work(protein.sequence_id, item.tokens, (), reads, adapter.residue_ids[letters]), letters)


def single_copies(adapter: Adapter, protein: Protein, sequence: str) -> list[Copy]:
    """Return a protein once for every canonical residue, with that residue masked and read."""
    copies = []
    for position, letter in enumerate(sequence):
        if letter not in AMINO_ACIDS:
            continue
        masked = np.arange(len(sequence)) == position
        tokens = adapter.encode(sequence, masked=masked, direction="none")
        letters = np.array([AMINO_ACIDS.index(letter)])
        reads = tokens.residue_tokens[[position]] + adapter.read_offset
        work = Work(f"{protein.sequence_id}, position {position}", tokens, (), reads, adapter.residue_ids[letters])
        copies.append(Copy(protein, work, letters))
    return copies


@dataclass
class _Sums:
    """Sums over the reads of one protein, filled copy by copy."""

    n_trials: int
    n: int = 0
    total: np.ndarray = field(init=False)
    squares: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        # The last entry is the background.
        self.total = np.zeros((self.n_trials + 1, len(QUANTITIES)))
        self.squares = np.zeros_like(self.total)

    def add(self, values: np.ndarray, background: np.ndarray) -> None:
        self.n += values.shape[-1]
        self.total[:-1] += values.sum(-1)
        self.squares[:-1] += np.square(values).sum(-1)
        self.total[-1, : len(background)] += background.sum(-1)
        self.squares[-1, : len(background)] += np.square(background).sum(-1)


def measure(
    adapter: Adapter,
    proteins: Sequence[Protein],
    *,
    output: Path,
    model_id: str,
    ranks: range,
    nulls: Sequence[Null],
    views: Sequence[View],
    ablations: Ablations,
    seed: int,
    conditions: Sequence[str] = ("seq",),
    structures: Mapping[str, Structure] | None = None,
    token_budget: int = 4096,
    window: int = WINDOW,
    log: logging.Logger,
) -> int:
    """Ablate the proteins of some ranks under every null model, condition and view; write ABLATE_SEQ.

    Args:
        proteins: all that are ablated in the study, whichever shard they are in: they choose for each other.
        ranks: of this shard.
        seed: of masks and random spans.
        conditions, structures: as in ``activations.extract``.
        token_budget: largest rows x tokens held at once; changes speed and memory only.
        window: proteins, by rank, that may share a batch.
    Returns:
        Rows written. A model without a token for each residue gets none, which is logged.
    Raises:
        InterventionError, SequenceError, BatchError, TableError, ExtractionError: nothing stands under the final name.
    """
    pairs = [(protein.sequence_id, protein.sequence) for protein in proteins]
    check_sequences(pairs)
    if not any(protein.rank in ranks for protein in proteins):
        raise ExtractionError(f"no protein of ranks {ranks.start} to {ranks.stop - 1} in the sample")
    structures = {} if set(conditions) <= {"seq"} else with_structures(adapter, pairs, structures or {})
    about = {"seed": str(seed), "version": str(ABLATION_VERSION), "ablations": json.dumps(ablations.__dict__)}
    if structures:
        about["showing"] = json.dumps(adapter.showing.as_dict())
    if not adapter.tokens_are_residues:
        log.warning(f"{model_id}: its tokens are not residues, so that nothing is read residue by residue; no rows")
        with TableWriter(output, ABLATE_SEQ, **about) as table:
            return table.n_rows
    geometric = geometric_blocks(adapter)
    single = ablations.pseudo_perplexity if adapter.objective == "mlm" else 0
    n_own = sum(protein.rank in ranks for protein in proteins)
    progress = Progress(log, total=len(nulls) * len(conditions) * len(views) * n_own, unit="proteins")
    started, unread = time.monotonic(), 0
    with TableWriter(output, ABLATE_SEQ, **about) as table:
        for null in nulls:
            with applied(adapter, null):
                for condition in conditions:
                    shown = structures if condition != "seq" else {}
                    common = keys.of_model(adapter, model_id) | keys.of_null(null, condition)
                    for view in views:
                        unread += _measure_view(
                            adapter, proteins, ranks, view, condition, null, shown, ablations, geometric, common,
                            table=table, progress=progress, seed=seed, token_budget=token_budget, window=window,
                            log=log,
                        )  # fmt: skip
                    if single and condition == "seq":
                        _measure_single(
                            adapter, [p for p in proteins if p.rank < single], ranks, proteins, null, ablations,
                            common, table=table, seed=seed, token_budget=token_budget, window=window, log=log,
                        )  # fmt: skip
    progress.finish()
    if unread:
        log.info(f"{unread} proteins x views left out: no canonical residue is read")
    log.info(f"{time.monotonic() - started:.1f} s; {table.n_rows} rows")
    return table.n_rows


def _measure_view(
    adapter: Adapter,
    proteins: Sequence[Protein],
    ranks: range,
    view: View,
    condition: str,
    null: Null,
    shown: Mapping[str, Structure],
    ablations: Ablations,
    geometric: Sequence[int],
    common: Mapping[str, object],
    *,
    table: TableWriter,
    progress: Progress,
    seed: int,
    token_budget: int,
    window: int,
    log: logging.Logger,
) -> int:
    """Ablate the shard's proteins under one view; return how many have nothing to read."""

    def item(protein: Protein) -> Item:
        sequence, structure = as_seen(null, protein.sequence_id, protein.sequence, shown.get(protein.sequence_id))
        return item_of(
            adapter, protein.sequence_id, sequence, view, seed=seed, condition=condition, structure=structure
        )

    unread = 0
    about = {**common, **keys.of_view(view), "reads": view.reads}
    for fold in range(FOLDS):
        own = [protein for protein in proteins if protein.fold == fold and protein.rank in ranks]
        if not own:
            continue
        others = [protein for protein in proteins if protein.fold != fold]
        chosen = None
        if "mean" in ablations.ops or ("remove_block" in ablations.ops and "angular" in ablations.policies):
            chosen = choose(adapter, (item(protein) for protein in others[: ablations.selection]))
        planned = plan(adapter.n_blocks, ablations, seed=seed, chosen=chosen, geometric=geometric)
        copies = []
        for protein in own:
            one = copy_of(adapter, protein, item(protein))
            if len(one.letters):
                copies.append(one)
            else:
                unread += 1
                progress.advance()
        background = composition(protein.sequence for protein in others)
        for rows in _rows(adapter, copies, planned, background, token_budget, window, log, advance=progress.advance):
            table.append({**about, **rows})
    return unread


def _measure_single(
    adapter: Adapter,
    chosen: Sequence[Protein],
    ranks: range,
    proteins: Sequence[Protein],
    null: Null,
    ablations: Ablations,
    common: Mapping[str, object],
    *,
    table: TableWriter,
    seed: int,
    token_budget: int,
    window: int,
    log: logging.Logger,
) -> None:
    """Mask every residue of some proteins alone."""
    ops = [op for op in ("exit", "remove") if op in ablations.ops]
    planned = plan(adapter.n_blocks, ablations, seed=seed, ops=ops)
    about = {**common, **keys.of_view(View("none", 0.0, -1)), "reads": "single"}
    for fold in range(FOLDS):
        background = composition(protein.sequence for protein in proteins if protein.fold != fold)
        for protein in (one for one in chosen if one.fold == fold and one.rank in ranks):
            copies = single_copies(adapter, protein, as_seen(null, protein.sequence_id, protein.sequence)[0])
            for rows in _rows(adapter, copies, planned, background, token_budget, window, log):
                table.append({**about, **rows})


def _rows(
    adapter: Adapter,
    copies: Sequence[Copy],
    planned: Plan,
    background: np.ndarray,
    token_budget: int,
    window: int,
    log: logging.Logger,
    advance=lambda: None,
) -> Iterator[dict[str, object]]:
    """Run a plan on copies; yield the columns of many rows at a time, copies of one protein summed."""
    max_padding = padding_on(adapter.device.type)
    runs = [1 + trial.run for trial in planned.trials]
    chance = np.stack([-np.log(background), np.arange(len(background)) == background.argmax()])
    whole: dict[str, tuple[Protein, _Sums]] = {}
    left = {copy.protein.sequence_id: 0 for copy in copies}
    for copy in copies:
        left[copy.protein.sequence_id] += 1
    windows_of_ranks = itertools.groupby(copies, key=lambda copy: copy.protein.rank // window)
    for part in (part for _, own in windows_of_ranks for part in windows(list(own), WORKS_AT_ONCE)):
        works = [copy.work for copy in part]
        for index, values in travel(
            adapter, works, planned.detours, token_budget=token_budget, max_padding=max_padding, log=log
        ):
            copy = part[index]
            name = copy.protein.sequence_id
            if not np.isfinite(values).all():
                raise ExtractionError(
                    f"the read-out of protein {name} is NaN or infinite; expected finite numbers: check the "
                    "checkpoint's digests or use a wider dtype; nothing was written"
                )
            _, sums = whole.setdefault(name, (copy.protein, _Sums(len(runs))))
            sums.add(values[runs], chance[:, copy.letters])
            left[name] -= 1
            if not left[name]:
                advance()
            done = [key for key in whole if not left[key]]
            if len(done) * len(runs) * len(QUANTITIES) >= ROWS_AT_ONCE:
                yield _columns([whole.pop(key) for key in done], planned)
    if whole:
        yield _columns(list(whole.values()), planned)


def _columns(measured: Sequence[tuple[Protein, _Sums]], planned: Plan) -> dict[str, object]:
    """Return the columns of ABLATE_SEQ that differ between rows: protein by protein, trial by trial."""
    trials = [*planned.trials, Trial("background", 0, 0)]
    quantity = np.tile(QUANTITIES, len(trials))
    # The background is a distribution, not a run: it has no distance to one.
    keep = ~((np.repeat([t.op for t in trials], len(QUANTITIES)) == "background") & np.isin(quantity, QUANTITIES[2:]))
    n = int(keep.sum())

    def of_trial(name: str) -> np.ndarray:
        values = np.repeat([getattr(trial, name) for trial in trials], len(QUANTITIES))[keep]
        return np.tile(values, len(measured))

    def of_protein(values: Sequence[object]) -> np.ndarray:
        return np.repeat(np.array(values), n)

    columns: dict[str, object] = {
        name: of_trial(name) for name in ("op", "start", "length", "policy", "moves_geometric")
    }
    return columns | {
        "sequence_id": of_protein([protein.sequence_id for protein, _ in measured]),
        "n_residues": of_protein([len(protein.sequence) for protein, _ in measured]),
        "quantity": np.tile(quantity[keep], len(measured)),
        "n": of_protein([sums.n for _, sums in measured]),
        "sum": np.concatenate([sums.total.ravel()[keep] for _, sums in measured]),
        "sumsq": np.concatenate([sums.squares.ravel()[keep] for _, sums in measured]),
    }


# ----------------------------------------------------------------------------------------------------------------
# The stage


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m plm_depth.activations.ablation", description=__doc__.split("\n")[0]
    )
    add_model_options(parser)
    parser.add_argument("--sequences", type=Path, required=True, help="all proteins that are ablated (SEQUENCES)")
    parser.add_argument("--clusters", type=Path, required=True, help="their similarity clusters (CLUSTERS)")
    parser.add_argument("--first", type=int, required=True, help="first rank of this shard")
    parser.add_argument("--last", type=int, required=True, help="one beyond its last rank")
    parser.add_argument("--nulls", required=True, help="JSON list of {null_model, seed}")
    parser.add_argument("--inputs", required=True, help="JSON: the inputs section of the config")
    parser.add_argument("--ablations", required=True, help="JSON: what is done to the course of blocks; see Ablations")
    add_window_option(parser)
    add_structure_options(parser)
    parser.add_argument("--seed", type=int, required=True, help="of masks and random spans")
    parser.add_argument("--output", type=Path, required=True, help="table ABLATE_SEQ")
    options = parser.parse_args(argv)
    with running("activations.ablation") as log:
        nulls, ablations = parse_nulls(options.nulls), read_settings(Ablations, options.ablations, "--ablations")
        proteins = read_proteins(options.sequences, options.clusters)
        model_id, adapter = loaded(options, log)
        pairs = [(protein.sequence_id, protein.sequence) for protein in proteins]
        conditions, structures = shown_by(options, adapter, pairs, log)
        measure(
            adapter,
            proteins,
            output=options.output,
            model_id=model_id,
            ranks=range(options.first, options.last),
            nulls=nulls,
            views=views_for(adapter, options.inputs, log),
            ablations=ablations,
            seed=options.seed,
            conditions=conditions,
            structures=structures,
            token_budget=options.token_budget,
            window=options.batch_window,
            log=log,
        )


if __name__ == "__main__":
    main()
