"""Zero-shot fitness (H): the scores of measured variants at every layer, all layers from the same passes.

    python -m plm_depth.activations.variants --card P --variants P --nulls JSON --scorers JSON --embed-variants N
        --window N --scores P --gram P [--conditions JSON --backbone P --codes P]

With p_k the read-out of layer k, renormalised over the 20 canonical residues, and Mut the substituted positions:

    wt          sum over Mut of ln p_k(new) - ln p_k(old), from one clean pass of the wild type
    mask        the same with all of Mut hidden: one pass per distinct Mut. A diffusion model is then at noise
                |Mut| / residues
    ar          ln P_k(variant) - ln P_k(wild type), summed over residues, in every reading direction of the model;
                terminals are never predicted. Residues read before the first substitution have the same probability
                in both and are not read out
    ar_parity   the same difference of the family's own score (``Adapter.log_likelihood``), read out at every layer
    emb_zs      cos(variant, wild type) - 1 of the mean states over residues
    emb_ridge   no score yet: the inner products of (mean state of a variant - mean state of the wild type), from which
                ``metrics.fitness`` fits; n (n + 1) / 2 numbers a layer, whatever the width of the model

emb_zs and emb_ridge need a pass a variant and are measured for the first ``--embed-variants`` of an assay; an
autoregressive model takes them from the passes of ``ar``. Which scorers a model has follows from its objective; those
of the others are left out, and logged. A model whose tokens are no residues has the two on mean states alone.

Long proteins. A model reads at most ``--window`` residues, and never more than it was made for. A longer wild type is
cut to windows of that size, one for each variant: of windows a quarter of their size apart the one whose middle is next
to the middle of the substituted positions, or, if that lacks one of them, the one around that middle. A variant whose
positions lie further apart than a window is left out, and counted. Wild type and variant are always read in the same
window.
"""

import argparse
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from plm_depth.activations import FITNESS_VERSION, keys
from plm_depth.activations.batches import BatchError, plan, run_halving
from plm_depth.activations.door import add_model_options, add_structure_options, loaded, running, shown_by
from plm_depth.activations.extract import widened
from plm_depth.activations.nulls import Null, applied, parse_nulls
from plm_depth.models.base import Adapter, Batch, SequenceError, Structure, Tokens
from plm_depth.progress import Progress
from plm_depth.tables import AMINO_ACIDS, FITNESS_GRAM, FITNESS_VAR, VARIANTS, TableError, TableWriter, iterate_table

MARGINALS, LIKELIHOODS, EMBEDDINGS = ("wt", "mask"), ("ar", "ar_parity"), ("emb_zs", "emb_ridge")
SCORERS = (*MARGINALS, *LIKELIHOODS, *EMBEDDINGS)
OF_OBJECTIVE = {
    "mlm": (*MARGINALS, *EMBEDDINGS),
    "diffusion": (*MARGINALS, *EMBEDDINGS),
    "ar": (*LIKELIHOODS, *EMBEDDINGS),
}
NULLS = ("trained", "randinit", "shuffle_w")
AT_ONCE = 4096  # passes whose tokens are kept at once: the largest assays have half a million variants
_INDEX_OF = {letter: index for index, letter in enumerate(AMINO_ACIDS)}


class VariantError(ValueError):
    """Variants that cannot be scored; says what was expected, what came, where, and the mend."""


@dataclass(frozen=True)
class Variant:
    """One variant: its place in the assay, its 0-based positions (ascending), old and new residues."""

    number: int
    positions: tuple[int, ...]
    old: str
    new: str


@dataclass(frozen=True)
class Assay:
    """One assay: its wild type and its variants, in the order of the table."""

    assay_id: str
    sequence: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Window:
    """A piece of one wild type as a model reads it, and the variants that are read in it.

    Attributes:
        start: position of its first residue in the wild type.
        sequence: its residues.
        variants: with positions inside the window.
        structure: of these residues, where one is shown.
    """

    start: int
    sequence: str
    variants: tuple[Variant, ...]
    structure: Structure | None = None


def read_assays(path: str | Path) -> list[Assay]:
    """Return the assays of a VARIANTS table, in its order.

    Raises:
        TableError: a damaged table, or substitutions that are not those of the wild type.
    """
    found: dict[str, tuple[str, list[Variant]]] = {}
    for rows in iterate_table(path, VARIANTS, columns=("assay_id", "sequence", "variant", "mutations")):
        for row in rows.to_pylist():
            sequence, variants = found.setdefault(row["assay_id"], (row["sequence"], []))
            variants.append(_variant(row["variant"], row["mutations"], sequence, f"{path}: {row['assay_id']}"))
    if not found:
        raise TableError(f"{path}: no variant; expected at least one")
    return [Assay(name, sequence, tuple(variants)) for name, (sequence, variants) in found.items()]


def _variant(number: int, mutations: str, sequence: str, where: str) -> Variant:
    parts = mutations.split(":")
    positions = tuple(int(part[1:-1]) - 1 for part in parts)
    old, new = "".join(part[0] for part in parts), "".join(part[-1] for part in parts)
    if any(not 0 <= p < len(sequence) or sequence[p] != letter for p, letter in zip(positions, old)):
        raise TableError(f"{where}: {mutations} does not fit its wild type; write the table again (sequences.assays)")
    return Variant(number, positions, old, new)


# ----------------------------------------------------------------------------------------------------------------
# Windows


def window_start(n_residues: int, positions: Sequence[int], size: int) -> int | None:
    """Return where the window of a variant begins, None if its positions do not fit into one; see the module."""
    if n_residues <= size:
        return 0
    first, last = min(positions), max(positions)
    if last - first >= size:
        return None
    middle, step = (first + last) / 2, max(1, size // 4)
    starts = [*range(0, n_residues - size, step), n_residues - size]
    start = min(starts, key=lambda s: abs(s + (size - 1) / 2 - middle))
    if not start <= first <= last < start + size:
        start = min(max(math.floor(middle - (size - 1) / 2), 0), n_residues - size)
    return start


def windows_of(assay: Assay, size: int, structure: Structure | None = None) -> tuple[list[Window], int]:
    """Return the windows in which the variants of an assay are read, ascending, and how many variants have none."""
    by_start: dict[int, list[Variant]] = {}
    n_left_out = 0
    for variant in assay.variants:
        start = window_start(len(assay.sequence), variant.positions, size)
        if start is None:
            n_left_out += 1
            continue
        inside = replace(variant, positions=tuple(p - start for p in variant.positions))
        by_start.setdefault(start, []).append(inside)
    windows = []
    for start in sorted(by_start):
        piece = slice(start, start + size)
        shown = None if structure is None else _piece(structure, piece)
        windows.append(Window(start, assay.sequence[piece], tuple(by_start[start]), shown))
    return windows, n_left_out


def _piece(structure: Structure, piece: slice) -> Structure:
    parts = {name: getattr(structure, name) for name in ("three_di", "codes", "coordinates")}
    return Structure(**{name: None if part is None else part[piece] for name, part in parts.items()})


def mutant_of(window: Window, variant: Variant) -> str:
    """Return the residues of a window with the substitutions of one of its variants."""
    letters = list(window.sequence)
    for position, letter in zip(variant.positions, variant.new):
        letters[position] = letter
    return "".join(letters)


# ----------------------------------------------------------------------------------------------------------------
# One batch


@dataclass(frozen=True)
class Reader:
    """A model, how it is shown proteins, and how large its batches are."""

    adapter: Adapter
    condition: str
    token_budget: int
    log: logging.Logger

    def encode(self, sequence: str, window: Window, *, masked: np.ndarray | None = None, direction: str) -> Tokens:
        """Return the tokens of the wild type or a variant of a window; the structure of a hidden residue is shown."""
        shown: dict[str, object] = {}
        if len(self.adapter.conditions) > 1:
            shown = {"condition": self.condition, "structure": window.structure, "struct_at_mask": "keep"}
        return self.adapter.encode(sequence, masked=masked, direction=direction, **shown)

    def batches(self, items: Sequence[Tokens], run) -> Iterator[tuple[list[int], object]]:
        """Yield (places, run(places)) for batches of all items, halved where memory runs out."""
        lengths = [tokens.n_tokens for tokens in items]
        for batch in plan(lengths, token_budget=self.token_budget):
            yield from run_halving(batch, run, log=self.log, name=lambda place: f"pass {place + 1} of {len(items)}")

    def layers(self, batch: Batch) -> Iterator[Tensor]:
        """Yield the stream of every layer, 0..n_blocks, in float32 (float64 in a float64 model)."""
        adapter = self.adapter
        with adapter.precision():
            stream, context = adapter.embed(batch)
        kept = torch.float64 if stream.dtype == torch.float64 else torch.float32
        stream = stream.to(kept)
        yield stream
        for block in range(1, adapter.n_blocks + 1):
            with adapter.precision():
                stream = adapter.add(stream, widened(adapter.updates(block, stream, context), kept))
            yield stream

    def logits(self, stream: Tensor) -> Tensor:
        """Return the logits of the canonical residues, (..., 20) in the order of AMINO_ACIDS, float32 or float64."""
        columns = torch.from_numpy(self.adapter.residue_ids).to(stream.device)
        with self.adapter.precision():
            return self.adapter.read_out(stream)[..., columns].to(stream.dtype)


def logits_at(reader: Reader, items: Sequence[Tokens], positions: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the logits of canonical residues at the given positions of each item, (n_blocks + 1, n_positions, 20)."""
    adapter, found = reader.adapter, [np.empty(0)] * len(items)

    @torch.inference_mode()
    def run(places: list[int]) -> np.ndarray:
        batch = adapter.collate([items[place] for place in places], adapter.device)
        columns = batch.ids.shape[1]
        at = [row * columns + items[p].residue_tokens[positions[p]] for row, p in enumerate(places)]
        reads = torch.from_numpy(np.concatenate(at)).to(adapter.device)
        kept = [reader.logits(stream.flatten(0, 1)[reads]).double().cpu() for stream in reader.layers(batch)]
        return torch.stack(kept).numpy()

    for places, logits in reader.batches(items, run):
        ends = np.cumsum([len(positions[place]) for place in places])[:-1]
        for place, part in zip(places, np.split(logits, ends, axis=1), strict=True):
            found[place] = part
    return found


@dataclass(frozen=True)
class Read:
    """What whole sequences read out to, layers first.

    Attributes:
        likelihood: (n_blocks + 1, n_items) float64, ln P of the residues from the first one on, nats; None if unwanted.
        parity: the same of the family's own score; None if unwanted.
        mean: (n_blocks + 1, n_items, d_model) float64, mean state over the residues; None if unwanted.
    """

    likelihood: np.ndarray | None
    parity: np.ndarray | None
    mean: np.ndarray | None


def read_sequences(
    reader: Reader,
    items: Sequence[Tokens],
    sequences: Sequence[str],
    firsts: Sequence[int] | None,
    *,
    parity: bool = False,
    mean: bool = False,
) -> Read:
    """Return what whole sequences read out to.

    Args:
        items, sequences: as the model reads them, and their residues.
        firsts: token of each from which on residues are predicted; None: nothing is predicted.
        parity, mean: whether the family's own score and the mean states are wanted.
    """
    adapter, n = reader.adapter, len(items)
    shape = (adapter.n_blocks + 1, n)
    likelihood = None if firsts is None else np.empty(shape)
    own = np.empty(shape) if parity else None
    means = np.empty((*shape, adapter.d_model)) if mean else None

    @torch.inference_mode()
    def run(places: list[int]) -> list[list[np.ndarray]]:
        device = adapter.device
        batch = adapter.collate([items[place] for place in places], device)
        columns = batch.ids.shape[1]
        rows = [items[place].residue_tokens for place in places]
        pool = torch.zeros(len(places), columns, dtype=torch.float64)
        for row, tokens in enumerate(rows):
            pool[row].index_add_(0, torch.from_numpy(tokens), torch.full((len(tokens),), 1 / len(tokens)).double())
        pool = pool.to(device)
        if firsts is not None:
            chosen = [np.flatnonzero(tokens >= firsts[place]) for tokens, place in zip(rows, places)]
            source = np.concatenate(
                [row * columns + t[c] + adapter.read_offset for row, (t, c) in enumerate(zip(rows, chosen))]
            )
            target = np.concatenate(
                [[_INDEX_OF[sequences[place][i]] for i in c] for place, c in zip(places, chosen)]
            ).astype(np.int64)
            owner = np.repeat(np.arange(len(places)), [len(c) for c in chosen])
            source, target, owner = (torch.from_numpy(x).to(device) for x in (source, target, owner))
        layers = []
        for stream in reader.layers(batch):
            numbers = []
            if firsts is not None:
                logp = reader.logits(stream.flatten(0, 1)[source]).log_softmax(-1).gather(1, target[:, None])[:, 0]
                sums = torch.zeros(len(places), dtype=torch.float64, device=device)
                numbers.append(sums.index_add_(0, owner, logp.double()).cpu().numpy())
            if parity:
                with adapter.precision():
                    score = adapter.log_likelihood(adapter.read_out(stream), batch)
                numbers.append(score.double().cpu().numpy())
            if mean:
                numbers.append(torch.bmm(pool[:, None], stream.double())[:, 0].cpu().numpy())
            layers.append(numbers)
        return layers

    wanted = [array for array in (likelihood, own, means) if array is not None]
    for places, layers in reader.batches(items, run):
        for layer, numbers in enumerate(layers):
            for array, values in zip(wanted, numbers, strict=True):
                array[layer, places] = values
    return Read(likelihood, own, means)


def suffix_likelihoods(reader: Reader, tokens: Tokens, sequence: str) -> np.ndarray:
    """Return ln P of the residues of one protein from each token on, (n_blocks + 1, n_tokens), nats, from one pass."""
    adapter = reader.adapter
    order = np.argsort(tokens.residue_tokens)
    at = tokens.residue_tokens[order]
    target = torch.tensor([_INDEX_OF[sequence[i]] for i in order], device=adapter.device)

    @torch.inference_mode()
    def run(_: list[int]) -> np.ndarray:
        batch = adapter.collate([tokens], adapter.device)
        source = torch.from_numpy(at + adapter.read_offset).to(adapter.device)
        return np.stack(
            [
                reader.logits(stream[0, source]).log_softmax(-1).gather(1, target[:, None])[:, 0].double().cpu().numpy()
                for stream in reader.layers(batch)
            ]
        )

    [(_, logp)] = reader.batches([tokens], run)
    own = np.zeros((len(logp), tokens.n_tokens))
    own[:, at] = logp
    return np.cumsum(own[:, ::-1], axis=1)[:, ::-1]


# ----------------------------------------------------------------------------------------------------------------
# Scores of the variants of one window, (n_blocks + 1, n_variants) each


def wildtype_marginals(reader: Reader, window: Window) -> np.ndarray:
    """Return the wild-type marginals of a window's variants, from one pass."""
    positions = np.unique([p for variant in window.variants for p in variant.positions])
    tokens = reader.encode(window.sequence, window, direction="none")
    [logits] = logits_at(reader, [tokens], [positions])
    place = {int(p): i for i, p in enumerate(positions)}
    return np.stack(
        [_log_ratio(logits, [place[p] for p in variant.positions], variant) for variant in window.variants], axis=1
    )


def masked_marginals(reader: Reader, window: Window) -> np.ndarray:
    """Return the masked marginals of a window's variants, from one pass per distinct set of positions."""
    sets = list(dict.fromkeys(variant.positions for variant in window.variants))
    logits: list[np.ndarray] = []
    for some in _few(sets):
        items = []
        for positions in some:
            masked = np.zeros(len(window.sequence), bool)
            masked[list(positions)] = True
            items.append(reader.encode(window.sequence, window, masked=masked, direction="none"))
        logits += logits_at(reader, items, [np.array(positions) for positions in some])
    place = {positions: i for i, positions in enumerate(sets)}
    return np.stack(
        [_log_ratio(logits[place[v.positions]], range(len(v.positions)), v) for v in window.variants], axis=1
    )


def _few(items: Sequence) -> Iterator[Sequence]:
    """Yield the items, at most ``AT_ONCE`` together."""
    yield from (items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE))


def _log_ratio(logits: np.ndarray, places: Sequence[int], variant: Variant) -> np.ndarray:
    """Return the sum over positions of ln p(new) - ln p(old); the normaliser of p is in both."""
    new, old = ([_INDEX_OF[letter] for letter in text] for text in (variant.new, variant.old))
    return (logits[:, places, new] - logits[:, places, old]).sum(1)


@dataclass(frozen=True)
class Sequences:
    """Scores that need a pass a variant.

    Attributes:
        ar, parity: (n_blocks + 1, n_variants); None if unwanted.
        zero_shot: (n_blocks + 1, n_embedded), cosine - 1; None if unwanted.
        shift: (n_blocks + 1, n_embedded, d_model), mean state of the variant less that of the wild type; None likewise.
    """

    ar: np.ndarray | None
    parity: np.ndarray | None
    zero_shot: np.ndarray | None
    shift: np.ndarray | None


def sequence_scores(
    reader: Reader, window: Window, direction: str, *, scorers: Sequence[str], embedded: Sequence[bool]
) -> Sequences:
    """Return the scores of a window's variants that need a pass each.

    Args:
        direction: in which the model reads, or "none".
        scorers: those that are wanted.
        embedded: which variants' mean states are wanted.
    """
    likelihood, parity, variants = "ar" in scorers, "ar_parity" in scorers, window.variants
    wildtype = reader.encode(window.sequence, window, direction=direction)
    rest = suffix_likelihoods(reader, wildtype, window.sequence) if likelihood else None
    reference = None
    if parity or any(embedded):
        reference = read_sequences(reader, [wildtype], [window.sequence], None, parity=parity, mean=any(embedded))
    shape = (reader.adapter.n_blocks + 1, len(variants))
    ar = np.full(shape, np.nan) if likelihood else None
    own = np.full(shape, np.nan) if parity else None
    distances, shifts = [], []
    # First the variants whose mean states are wanted, then the others, which only a likelihood needs.
    for mean in (True, False) if likelihood or parity else (True,):
        for group in _few([i for i, is_wanted in enumerate(embedded) if is_wanted == mean]):
            mutants = [mutant_of(window, variants[i]) for i in group]
            items = [reader.encode(mutant, window, direction=direction) for mutant in mutants]
            firsts = None
            if likelihood:
                firsts = [min(tokens.residue_tokens[list(variants[i].positions)]) for tokens, i in zip(items, group)]
            found = read_sequences(reader, items, mutants, firsts, parity=parity, mean=mean)
            if likelihood:
                ar[:, group] = found.likelihood - rest[:, firsts]
            if parity:
                own[:, group] = found.parity - reference.parity
            if mean:
                distance, shift = _distances(found.mean, reference.mean)
                distances.append(distance)
                shifts.append(shift)
    zero_shot, shift = (np.concatenate(parts, axis=1) if parts else None for parts in (distances, shifts))
    return Sequences(ar, own, zero_shot, shift)


def _distances(mean: np.ndarray, wildtype: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return cosine - 1 and difference of mean states (layers, n, d) and the wild type's (layers, 1, d).

    The cosine less 1 is -|x - y|^2 / 2 of unit vectors: variants lie so close that 1 - cosine would cancel.
    """
    with np.errstate(invalid="ignore", divide="ignore"):  # a state of zeros has no direction
        units = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (mean, wildtype)]
    return -np.square(units[0] - units[1]).sum(-1) / 2, mean - wildtype


# ----------------------------------------------------------------------------------------------------------------
# One assay


@dataclass(frozen=True)
class Scored:
    """The scores of one assay by one scorer in one direction: variants (n,), (n_blocks + 1, n), shares hidden (n,)."""

    scorer: str
    direction: str
    variants: np.ndarray
    scores: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Gram:
    """Inner products of one assay in one direction: variants (n,) and (n_blocks + 1, n, n)."""

    direction: str
    variants: np.ndarray
    products: np.ndarray


def score_assay(
    reader: Reader, windows: Sequence[Window], *, scorers: Sequence[str], n_embedded: int
) -> tuple[list[Scored], list[Gram]]:
    """Return all scores of one assay, variants by ascending number.

    Args:
        windows: of the assay.
        scorers: those that this model has, of ``SCORERS``.
        n_embedded: the variants with smaller numbers have their mean states taken.
    """
    numbers = np.array([variant.number for window in windows for variant in window.variants])
    shares = np.array([len(v.positions) / len(window.sequence) for window in windows for v in window.variants])
    scored, grams = [], []

    def keep(scorer: str, direction: str, parts: list[np.ndarray], which: np.ndarray | None = None) -> None:
        of = numbers if which is None else numbers[which]
        by = np.argsort(of)
        noise = shares[by] if scorer == "mask" else np.zeros(len(of))
        scored.append(Scored(scorer, direction, of[by], np.concatenate(parts, axis=1)[:, by], noise))

    for scorer, score in (("wt", wildtype_marginals), ("mask", masked_marginals)):
        if scorer in scorers:
            keep(scorer, "none", [score(reader, window) for window in windows])
    later = [scorer for scorer in scorers if scorer not in MARGINALS]
    if not later:
        return scored, grams
    wants_states = bool(set(later) & set(EMBEDDINGS))
    embedded = [[wants_states and v.number < n_embedded for v in window.variants] for window in windows]
    which = np.concatenate(embedded).astype(bool)
    if not (which.any() or set(later) & set(LIKELIHOODS)):
        return scored, grams
    for direction in reader.adapter.directions:
        parts = [
            sequence_scores(reader, window, direction, scorers=later, embedded=wanted)
            for window, wanted in zip(windows, embedded, strict=True)
        ]
        if "ar" in later:
            keep("ar", direction, [part.ar for part in parts])
        if "ar_parity" in later:
            keep("ar_parity", direction, [part.parity for part in parts])
        if which.any():
            if "emb_zs" in later:
                keep("emb_zs", direction, [p.zero_shot for p in parts if p.zero_shot is not None], which)
            if "emb_ridge" in later:
                shift = np.concatenate([part.shift for part in parts if part.shift is not None], axis=1)
                by = np.argsort(numbers[which])
                shift = shift[:, by]
                grams.append(Gram(direction, numbers[which][by], shift @ shift.transpose(0, 2, 1)))
    return scored, grams


# ----------------------------------------------------------------------------------------------------------------
# A shard


def scorers_for(adapter: Adapter, text: str, log: logging.Logger | None = None) -> list[str]:
    """Return the scorers that are wanted and that the model has, from a JSON list; the others are logged.

    Raises:
        VariantError: not a JSON list of scorers, or one named twice.
    """
    try:
        asked = json.loads(text)
    except json.JSONDecodeError:
        asked = None
    is_list = isinstance(asked, list) and bool(asked) and all(one in SCORERS for one in asked)
    if not is_list or len(set(asked)) < len(asked):
        raise VariantError(f"--scorers: expected a JSON list of some of {', '.join(SCORERS)}, none twice, got {text!r}")
    has = OF_OBJECTIVE[adapter.objective]
    if not adapter.tokens_are_residues:
        has = EMBEDDINGS
    kept = [scorer for scorer in SCORERS if scorer in asked and scorer in has]
    if "ar_parity" in kept and type(adapter).log_likelihood is Adapter.log_likelihood:
        kept.remove("ar_parity")
    left_out = [scorer for scorer in asked if scorer not in kept]
    if left_out and log is not None:
        why = "" if adapter.tokens_are_residues else ", whose tokens are no residues"
        log.info(f"{adapter.family} ({adapter.objective}{why}) has no scorer {', '.join(left_out)}: left out")
    return kept


def passes_of(
    windows: Sequence[Window], *, scorers: Sequence[str], n_embedded: int, n_directions: int
) -> dict[str, tuple[int, int]]:
    """Return how many passes and residues the windows of one assay cost, by what they are for."""
    found: dict[str, tuple[int, int]] = {}

    def add(name: str, n: int, length: int) -> None:
        passes, residues = found.get(name, (0, 0))
        found[name] = (passes + n, residues + n * length)

    for window in windows:
        length = len(window.sequence)
        if "wt" in scorers:
            add("wild type", 1, length)
        if "mask" in scorers:
            add("masked", len({variant.positions for variant in window.variants}), length)
        if set(scorers) & set(LIKELIHOODS):
            add("variants", n_directions * len(window.variants), length)
        elif set(scorers) & set(EMBEDDINGS):
            add("variants", n_directions * sum(v.number < n_embedded for v in window.variants), length)
    return found


def score_variants(
    adapter: Adapter,
    assays: Sequence[Assay],
    *,
    scores: str | Path,
    gram: str | Path,
    model_id: str,
    nulls: Sequence[Null],
    scorers: Sequence[str],
    n_embedded: int = 256,
    window: int = 1022,
    token_budget: int = 4096,
    conditions: Sequence[str] = ("seq",),
    structures: Mapping[str, Structure] | None = None,
    log: logging.Logger,
) -> int:
    """Score the variants of all assays under every null model and condition; write FITNESS_VAR and FITNESS_GRAM.

    Args:
        scorers: those that this model has (``scorers_for``); with none both tables stay empty.
        n_embedded: variants per assay whose mean states are taken.
        window: most residues read at once; see the module.
        token_budget: largest rows x padded length of a batch; changes speed and memory only.
        conditions: "seq", "seq_struct"; assays without a structure are measured under "seq" only, and counted.
        structures: by assay id.
    Returns:
        Rows of scores written.
    Raises:
        VariantError, SequenceError, BatchError: nothing stands under the final names.
    """
    if window < 1 or n_embedded < 0:
        raise VariantError(
            f"--window {window} --embed-variants {n_embedded}: expected at least 1 residue and 0 variants"
        )
    bad = [null.null_model for null in nulls if null.null_model not in NULLS]
    if bad:
        raise VariantError(f"--nulls: {', '.join(bad)}: variants are scored under {', '.join(NULLS)}")
    size, structures = min(window, adapter.max_residues), structures or {}
    work = _work(adapter, assays, size, conditions, structures, scorers, n_embedded, len(nulls), log)
    common = keys.of_model(adapter, model_id)
    total = len(nulls) * sum(len(w.variants) for _, _, windows in work for w in windows) if scorers else 0
    progress = Progress(log, total=total, unit="variants")
    settings = {"version": str(FITNESS_VERSION), "window": str(size), "embed_variants": str(n_embedded)}
    with (
        TableWriter(scores, FITNESS_VAR, **settings) as score_rows,
        TableWriter(gram, FITNESS_GRAM, **settings) as gram_rows,
    ):
        for null in nulls if scorers else ():
            with applied(adapter, null):
                for condition, assay, windows in work:
                    reader = Reader(adapter, condition, token_budget, log)
                    try:
                        scored, grams = score_assay(reader, windows, scorers=scorers, n_embedded=n_embedded)
                        about = common | keys.of_null(null, condition)
                        for one in scored:
                            score_rows.append(_score_columns(one, about, assay.assay_id))
                        for one in grams:
                            gram_rows.append(_gram_columns(one, about, assay.assay_id))
                    except (VariantError, SequenceError, BatchError) as error:
                        raise type(error)(f"{model_id}, {null}, assay {assay.assay_id}: {error}") from error
                    progress.advance(sum(len(w.variants) for w in windows))
    progress.finish()
    log.info(f"rows: scores {score_rows.n_rows}, gram {gram_rows.n_rows}")
    return score_rows.n_rows


def _work(
    adapter: Adapter,
    assays: Sequence[Assay],
    size: int,
    conditions: Sequence[str],
    structures: Mapping[str, Structure],
    scorers: Sequence[str],
    n_embedded: int,
    n_nulls: int,
    log: logging.Logger,
) -> list[tuple[str, Assay, list[Window]]]:
    """Return (condition, assay, windows) in the order in which they are run, and say what they will cost."""
    work, cost = [], {}
    n_cut = n_left_out = n_variants = 0
    for condition in conditions:
        without = [assay.assay_id for assay in assays if condition != "seq" and assay.assay_id not in structures]
        if without:
            log.warning(
                f"condition {condition}: {len(without)} of {len(assays)} assays have no structure of their wild type "
                f"and are left out, the first {without[0]}"
            )
        for assay in assays:
            if assay.assay_id in without:
                continue
            structure = None if condition == "seq" else adapter.with_codes(structures[assay.assay_id])
            windows, n_without = windows_of(assay, size, structure)
            if condition == conditions[0]:
                n_cut += len(assay.variants) if len(assay.sequence) > size else 0
                n_left_out += n_without
                n_variants += len(assay.variants)
            if windows:
                work.append((condition, assay, windows))
            options = {"scorers": scorers, "n_embedded": n_embedded, "n_directions": len(adapter.directions)}
            for name, (passes, residues) in passes_of(windows, **options).items():
                before = cost.get(name, (0, 0))
                cost[name] = (before[0] + passes, before[1] + residues)
    log.info(
        f"{len(assays)} assays, {n_variants} variants; windows of {size} residues: {n_cut} variants of longer wild "
        f"types read in a window, {n_left_out} left out because their positions lie further apart"
    )
    residues = n_nulls * sum(residues for _, residues in cost.values())
    log.info(
        f"{n_nulls} networks x ("
        + (", ".join(f"{name} {passes} passes" for name, (passes, _) in cost.items()) or "nothing to score")
        + f"): {residues:.3g} residues, about {2 * adapter.n_parameters * residues:.2g} operations"
    )
    return work


def _score_columns(one: Scored, about: Mapping[str, object], assay_id: str) -> dict[str, object]:
    if not np.isfinite(one.scores).all():
        layer, place = np.argwhere(~np.isfinite(one.scores))[0]
        raise VariantError(
            f"score {one.scorer} of variant {one.variants[place]} is NaN or infinite at layer {layer}; expected finite "
            "numbers: check the checkpoint's digests or use a wider dtype; nothing was written"
        )
    n_layers, n = one.scores.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * n_layers)
    values = pa.array(np.ascontiguousarray(one.scores.T, np.float32).ravel())
    return {
        **about,
        "direction": one.direction,
        "noise_t": math.nan if one.direction != "none" else one.noise,
        "mask_draw": -1,
        "scorer": one.scorer,
        "lens": "none" if one.scorer in EMBEDDINGS else "logit",
        "assay_id": assay_id,
        "variant": one.variants.astype(np.int32),
        "scores": pa.ListArray.from_arrays(offsets, values),
    }


def _gram_columns(one: Gram, about: Mapping[str, object], assay_id: str) -> dict[str, object]:
    n_layers, n = one.products.shape[:2]
    lower = np.tril_indices(n)
    return {
        **about,
        "direction": one.direction,
        "noise_t": math.nan if one.direction != "none" else 0.0,
        "mask_draw": -1,
        "assay_id": assay_id,
        "layer": np.arange(n_layers, dtype=np.int16),
        "variants": pa.array([one.variants.astype(np.int32)] * n_layers, pa.list_(pa.int32())),
        "gram": pa.array([matrix[lower].astype(np.float32) for matrix in one.products], pa.list_(pa.float32())),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m plm_depth.activations.variants", description=__doc__.split("\n")[0]
    )
    add_model_options(parser)
    parser.add_argument("--variants", type=Path, required=True, help="assays (VARIANTS table)")
    parser.add_argument("--nulls", required=True, help="JSON list of {null_model, seed}")
    parser.add_argument("--scorers", required=True, help=f"JSON list of some of {', '.join(SCORERS)}")
    parser.add_argument(
        "--embed-variants", type=int, default=256, help="variants per assay whose mean states are taken"
    )
    parser.add_argument("--window", type=int, default=1022, help="most residues read at once")
    add_structure_options(parser)
    parser.add_argument("--scores", type=Path, required=True, help="the FITNESS_VAR table")
    parser.add_argument("--gram", type=Path, required=True, help="the FITNESS_GRAM table")
    options = parser.parse_args(argv)
    with running("activations.variants", VariantError) as log:
        nulls = parse_nulls(options.nulls)
        assays = read_assays(options.variants)
        model_id, adapter = loaded(options, log)
        proteins = [(assay.assay_id, assay.sequence) for assay in assays]
        conditions, structures = shown_by(options, adapter, proteins, log)
        score_variants(
            adapter,
            assays,
            scores=options.scores,
            gram=options.gram,
            model_id=model_id,
            nulls=nulls,
            scorers=scorers_for(adapter, options.scorers, log),
            n_embedded=options.embed_variants,
            window=options.window,
            token_budget=options.token_budget,
            conditions=conditions,
            structures=structures,
            log=log,
        )


if __name__ == "__main__":
    main()
