"""Logit lens (C1-C4): how far the read-out of each layer is from the last one's, and from the true residue.

Definitions in ``plm_depth.metrics``; KL(p_k || p_n) is the direction of Csordas, Manning and Potts 2025 (arXiv
2505.13898). Everything is computed in float64 from the cached logits. Ties between logits go to the lower index.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from plm_depth.metrics.groups import Groups, Shard, dictionary, read_groups
from plm_depth.progress import Progress, stage_log
from plm_depth.tables import AMINO_ACIDS, LENS_KEYS, LENS_SEQ, TableError, TableWriter, as_table

LOG = logging.getLogger("metrics.lens")

SETTLED_NATS = (0.1, 0.5)
SETTLED = (*(f"settled_{nats:g}" for nats in SETTLED_NATS), "settled_top1")
LAYER_QUANTITIES = (
    *("kl_lf", "kl_fl", "js", "ov1", "ov5", "entropy", "p_true", "rank_true", "acc1", "nll"),
    *SETTLED,
)
SETTLE_QUANTITIES = tuple(name.replace("settled_", "settle_") for name in SETTLED)
VOCABULARIES = ("aa20", "full")
N_RANKS = 20
BELOW_ZERO = -1e-6  # a divergence this far below zero is rounding; further below it is an error
ROWS_AT_ONCE = 16384


class LensError(ValueError):
    """Logits that no read-out gives."""


@dataclass(frozen=True)
class ReadOut:
    """The distribution that one layer reads out at some positions.

    Attributes:
        logits: (n_tokens_of_the_vocabulary, n_positions) float64.
        log_p, p: the same shape, natural logarithm and probability.
        entropy: (n_positions,) nats.
        first: (n_positions,) index of the most probable token.
        top5: (n_tokens_of_the_vocabulary, n_positions) bool, the five most probable.
    """

    logits: np.ndarray
    log_p: np.ndarray
    p: np.ndarray
    entropy: np.ndarray
    first: np.ndarray
    top5: np.ndarray


def read_out(logits: np.ndarray) -> ReadOut:
    """Return the distribution of logits (n_tokens_of_the_vocabulary, n_positions); a constant added changes nothing."""
    shifted = logits - logits.max(0)
    p = np.exp(shifted)
    total = p.sum(0)
    log_p = shifted - np.log(total)
    p /= total
    return ReadOut(logits, log_p, p, -(p * log_p).sum(0), logits.argmax(0), top(logits, 5))


def top(logits: np.ndarray, k: int) -> np.ndarray:
    """Return which k entries of each column are the largest, bool, ties to the lower index; all if there are fewer."""
    if len(logits) <= k:
        return np.ones(logits.shape, bool)
    by_position = np.ascontiguousarray(logits.T)
    smallest = np.partition(by_position, len(logits) - k, axis=1)[:, len(logits) - k]
    chosen = logits >= smallest
    tied = np.flatnonzero(chosen.sum(0) > k)
    if len(tied):
        best = np.argsort(-by_position[tied], axis=1, kind="stable")[:, :k]
        chosen[:, tied] = False
        chosen[best, tied[:, None]] = True
    return chosen


def layer_quantities(at: ReadOut, final: ReadOut, true: np.ndarray) -> dict[str, np.ndarray]:
    """Return the quantities of one layer at every position, (n_positions,) each; nats, shares, or a rank from 1.

    Args:
        at, final: read-outs of the layer and of the last layer.
        true: (n_positions,) index of the true residue in the vocabulary.
    Raises:
        LensError: a divergence below zero by more than rounding.
    """
    columns = np.arange(len(true))
    difference = at.log_p - final.log_p
    # Both probabilities may underflow to 0; such tokens add nothing, and the logarithm must not see the zero.
    mean = np.maximum((at.p + final.p) / 2, np.finfo(np.float64).tiny)
    js = -(mean * np.log(mean)).sum(0) - (at.entropy + final.entropy) / 2
    is_higher = (at.logits > at.logits[true, columns]).sum(0)
    is_tied_before = (
        (at.logits == at.logits[true, columns]) & (np.arange(len(at.logits))[:, None] < true[None, :])
    ).sum(0)
    rank = 1 + is_higher + is_tied_before
    k = min(5, len(at.logits))
    return {
        "kl_lf": _divergence((at.p * difference).sum(0), "KL(layer || final)"),
        "kl_fl": _divergence(-(final.p * difference).sum(0), "KL(final || layer)"),
        "js": _divergence(js, "the Jensen-Shannon divergence"),
        "ov1": (at.first == final.first).astype(np.float64),
        "ov5": (at.top5 & final.top5).sum(0) / k,
        "entropy": at.entropy,
        "p_true": at.p[true, columns],
        "rank_true": rank.astype(np.float64),
        "acc1": (rank == 1).astype(np.float64),
        "nll": -at.log_p[true, columns],
    }


def _divergence(values: np.ndarray, name: str) -> np.ndarray:
    if (values < BELOW_ZERO).any():
        raise LensError(f"{name} is {values.min():.3g} nats, below {BELOW_ZERO}")
    return np.maximum(values, 0.0)


class Settling:
    """From which layer on each position stays settled, fed with the layers from the last to the first.

    Attributes:
        settled: (len(SETTLED), n_positions) bool, whether all layers fed so far were within the bound.
        first: the same shape, the lowest layer from which on that held.
    """

    def __init__(self, n_positions: int, n_blocks: int):
        self.settled = np.ones((len(SETTLED), n_positions), bool)
        self.first = np.full((len(SETTLED), n_positions), n_blocks, np.int16)

    def feed(self, layer: int, kl_lf: np.ndarray, ov1: np.ndarray, at: slice = slice(None)) -> np.ndarray:
        """Take the next lower layer for the positions ``at``; return ``settled`` at these positions."""
        within = np.stack([*(kl_lf <= nats for nats in SETTLED_NATS), ov1 == 1])
        self.settled[:, at] &= within
        self.first[:, at][self.settled[:, at]] = layer
        return self.settled[:, at]


# ----------------------------------------------------------------------------------------------------------------
# From positions to proteins


def summarise(values: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
    """Return n, n_nan, sum, sumsq (float64) and max of stretches of positions, (..., n_stretches) each.

    Args:
        values: (..., n_positions) float64, all defined.
        starts: (n_stretches,) first position of each, ascending; they cover all positions.
    """
    n = np.diff(np.r_[starts, values.shape[-1]])
    shape = (*values.shape[:-1], len(starts))
    return {
        "n": np.broadcast_to(n, shape),
        "n_nan": np.zeros(shape, np.int64),
        "sum": np.add.reduceat(values, starts, axis=-1),
        "sumsq": np.add.reduceat(values * values, starts, axis=-1),
        "max": np.maximum.reduceat(values, starts, axis=-1),
    }


# ----------------------------------------------------------------------------------------------------------------
# The stage


@dataclass(frozen=True)
class _State:
    """What of one shard lives through the layers."""

    shard: Shard
    starts: np.ndarray
    true: Mapping[str, np.ndarray]
    settling: Mapping[str, Settling]


@dataclass(frozen=True)
class _Vocabulary:
    """Columns of the logits that one vocabulary takes, and where each amino acid stands among them."""

    columns: np.ndarray
    of_amino_acid: np.ndarray


def lens(paths: Sequence[str | Path], output: str | Path, *, name: str = "logit") -> int:
    """Write the LENS_SEQ table of one model from the lens logits of all its shards; return its number of rows.

    Args:
        name: of the lens, "logit" or "tuned"; clean inputs, read at visible residues, are "copy". Where the logits tell
            the composition of residues that nothing was computed from (``background``), its divergence from the last
            layer stands beside them (quantity kl_bg, layer -1).

    Rows stand by layer, from the last to the first, then the settling rows (layer -1); within a layer by vocabulary,
    quantity and group: null model, view and protein. One layer of one shard is in memory at a time, besides its last
    layer and the statistics of one layer of all shards.

    Raises:
        TableError: shards that overlap, differ or are damaged, residues without a column, logits that are not finite.
    """
    groups = read_groups(paths, LENS_KEYS, keep=("true_aa", "is_masked"))
    vocabularies = _vocabularies(groups.shards[0])
    n_blocks = int(groups.constants["n_blocks"])
    lenses = _lenses(groups)
    states = [_state(shard, vocabularies, n_blocks) for shard in groups.shards]
    n_positions = sum(len(shard.order) for shard in groups.shards)
    LOG.info(f"{groups.n_groups} proteins x views x null models, {n_positions} read positions, {len(paths)} shards")
    about = {name: groups.constants[name] for name in ("model_id", "seed", "version") if name in groups.constants}
    about["n_vocabulary"] = len(vocabularies["full"].columns)
    progress = Progress(LOG, n_blocks + 1, "layers")
    with TableWriter(output, LENS_SEQ, **about) as writer:
        for layer in range(n_blocks, -1, -1):
            collected = _Collected(groups, LAYER_QUANTITIES)
            for state in states:
                _add_layer(collected, state, layer, vocabularies, n_blocks)
            writer.append(collected.rows(layer, lenses, name))
            progress.advance()
        collected = _Collected(groups, SETTLE_QUANTITIES)
        for state in states:
            for number, vocabulary in enumerate(VOCABULARIES):
                values = state.settling[vocabulary].first.astype(np.float64)
                collected.add(number, values, state)
        parts = [collected.rows(-1, lenses, name)]
        if "background" in groups.constants:
            collected = _Collected(groups, ("kl_bg",))
            for state in states:
                for number, values in enumerate(
                    _from_background(state, n_blocks, vocabularies, groups.constants["background"])
                ):
                    collected.add(number, values[None], state)
            parts.append(collected.rows(-1, lenses, name))
        # One part a layer: readers take the rows of a layer together.
        writer.append(pa.concat_tables([as_table(part, LENS_SEQ) for part in parts]).unify_dictionaries())
    progress.finish()
    LOG.info(f"{writer.n_rows} rows")
    return writer.n_rows


def _from_background(
    state: "_State", n_blocks: int, vocabularies: Mapping[str, "_Vocabulary"], background: Sequence[float]
) -> list[np.ndarray]:
    """Return KL(background || last layer) of every vocabulary at every read position, (n_positions,) each, in nats."""
    shares = np.asarray(background, np.float64)
    present = shares > 0
    own = float((shares[present] * np.log(shares[present])).sum())
    found = []
    final = _logits(state.shard, n_blocks)
    for name in VOCABULARIES:
        vocabulary = vocabularies[name]
        values = np.empty(len(state.shard.order))
        for start in range(0, len(values), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            log_p = read_out(final[vocabulary.columns, part].astype(np.float64)).log_p
            of_residues = log_p[vocabulary.of_amino_acid]
            values[part] = own - (shares[present, None] * of_residues[present]).sum(0)
        found.append(_divergence(values, "KL(background || final)"))
    return found


def _vocabularies(shard: Shard) -> dict[str, _Vocabulary]:
    names, letters = shard.table.names or [], shard.table.constants.get("amino_acid_columns")
    if not isinstance(letters, list) or len(letters) != len(AMINO_ACIDS) or not set(letters) <= set(names):
        raise TableError(
            f"{shard.table.path}: its columns are {names} and the residues among them {letters}; expected one column "
            f"for each of {AMINO_ACIDS}, in this order. Extract it again"
        )
    residues = np.array([names.index(letter) for letter in letters])
    return {
        "aa20": _Vocabulary(residues, np.arange(len(AMINO_ACIDS))),
        "full": _Vocabulary(np.arange(len(names)), residues),
    }


def _lenses(groups: Groups) -> np.ndarray:
    """Return 1 for the groups that read visible residues of a clean input ("copy"), 0 for the others ("logit")."""
    is_copy = groups.keys["noise_t"] == 0
    for shard in groups.shards:
        is_masked = shard.kept["is_masked"]
        wrong = is_masked == is_copy[shard.group]
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            group, state = shard.group[at], "hidden" if is_masked[at] else "visible"
            raise TableError(
                f"{shard.table.path}: position {shard.position[at]} of {groups.keys['sequence_id'][group]} is {state} "
                f"at noise level {groups.keys['noise_t'][group]}; "
                "clean inputs are read at visible residues, all others at hidden or next ones"
            )
    return is_copy.astype(np.int64)


def _state(shard: Shard, vocabularies: Mapping[str, _Vocabulary], n_blocks: int) -> _State:
    true = shard.kept["true_aa"]
    if len(true) and (true.min() < 0 or true.max() >= len(AMINO_ACIDS)):
        raise TableError(f"{shard.table.path}: true_aa from {true.min()} to {true.max()}, expected 0..19")
    starts = np.flatnonzero(np.r_[True, np.diff(shard.group) != 0]) if len(true) else np.zeros(0, np.int64)
    return _State(
        shard,
        starts,
        {name: vocabulary.of_amino_acid[true].astype(np.int32) for name, vocabulary in vocabularies.items()},
        {name: Settling(len(true), n_blocks) for name in vocabularies},
    )


def _logits(shard: Shard, layer: int) -> np.ndarray:
    """Return the logits of one layer in sorted order, (n_columns, n_rows), in the stored dtype."""
    logits = np.ascontiguousarray(shard.table.layer(layer)[shard.order].T)
    if not np.isfinite(logits).all():
        raise TableError(
            f"{shard.table.path}: logits of layer {layer} are not finite; delete it and run the extraction again"
        )
    return logits


def _add_layer(
    collected: "_Collected", state: _State, layer: int, vocabularies: Mapping[str, _Vocabulary], n_blocks: int
) -> None:
    shard, n_rows = state.shard, len(state.shard.order)
    if not n_rows:
        return
    # The last layer is read again for every other one: kept, those of all shards would be most of what the stage holds.
    final = _logits(shard, n_blocks)
    logits = final if layer == n_blocks else _logits(shard, layer)
    values = np.empty((len(VOCABULARIES), len(LAYER_QUANTITIES), n_rows))
    for start in range(0, n_rows, ROWS_AT_ONCE):
        part = slice(start, min(start + ROWS_AT_ONCE, n_rows))
        for number, name in enumerate(VOCABULARIES):
            columns = vocabularies[name].columns
            last = read_out(final[columns, part].astype(np.float64))
            at = last if layer == n_blocks else read_out(logits[columns, part].astype(np.float64))
            try:
                found = layer_quantities(at, last, state.true[name][part])
            except LensError as error:
                raise TableError(f"{shard.table.path}, layer {layer}: {error}") from error
            settled = state.settling[name].feed(layer, found["kl_lf"], found["ov1"], part)
            found |= {quantity: settled[i] for i, quantity in enumerate(SETTLED)}
            for i, quantity in enumerate(LAYER_QUANTITIES):
                values[number, i, part] = found[quantity]
    for number in range(len(VOCABULARIES)):
        collected.add(number, values[number], state)


class _Collected:
    """Statistics of one layer, per vocabulary, quantity and group, filled shard by shard."""

    def __init__(self, groups: Groups, quantities: Sequence[str]):
        self.groups, self.quantities = groups, quantities
        shape = (len(VOCABULARIES), len(quantities), groups.n_groups)
        self.columns = {name: np.zeros(shape, np.int64) for name in ("n", "n_nan")}
        self.columns |= {name: np.zeros(shape) for name in ("sum", "sumsq", "max")}
        self.ranks = np.zeros((len(VOCABULARIES), groups.n_groups, N_RANKS), np.int32)

    def add(self, vocabulary: int, values: np.ndarray, state: _State) -> None:
        """Add the values (n_quantities, n_positions) of one shard."""
        if not len(state.starts):
            return
        group = state.shard.group[state.starts]
        for name, statistic in summarise(values, state.starts).items():
            self.columns[name][vocabulary][:, group] = statistic
        if "rank_true" in self.quantities:
            rank = values[self.quantities.index("rank_true")].astype(np.int64) - 1
            counted = rank < N_RANKS
            place = state.shard.group[counted].astype(np.int64) * N_RANKS + rank[counted]
            counts = np.bincount(place, minlength=self.groups.n_groups * N_RANKS).reshape(-1, N_RANKS)
            self.ranks[vocabulary] += counts.astype(np.int32)

    def rows(self, layer: int, lenses: np.ndarray, name: str) -> dict[str, object]:
        n_quantities, n_groups = len(self.quantities), self.groups.n_groups
        vocabulary, quantity, group = (x.ravel() for x in np.indices((len(VOCABULARIES), n_quantities, n_groups)))
        ranks = np.zeros((len(VOCABULARIES), n_quantities, n_groups, N_RANKS), np.int32)
        if "rank_true" in self.quantities:
            ranks[:, self.quantities.index("rank_true")] = self.ranks
        return {
            **self.groups.columns(group),
            "layer": np.full(len(group), layer, np.int16),
            "lens": dictionary((name, "copy"), lenses[group]),
            "vocab": dictionary(VOCABULARIES, vocabulary),
            "quantity": dictionary(self.quantities, quantity),
            **{name: column.ravel() for name, column in self.columns.items()},
            "rank_hist": pa.FixedSizeListArray.from_arrays(pa.array(ranks.ravel()), N_RANKS),
        }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logits", nargs="+", required=True, help="lens logits of all shards of one model and variant")
    parser.add_argument("--output", required=True, help="the LENS_SEQ table")
    options = parser.parse_args(argv)
    with stage_log(LOG.name, TableError):
        lens(options.logits, options.output)


if __name__ == "__main__":
    main()
