"""Skip effects of one model over the corpus (B4, B5): matrices, their reductions, output changes and locality.

    python -m plm_depth.metrics.skip --skip P... --output-change P... --clusters P --output P

Within a protein the mask draws and the draws of random position sets are averaged first, then proteins count once each;
for diffusion models the mean over the noise levels is taken last. Written is the table SKIP:

    effect        D_ij, what silencing block i (``src``) changes in the update of block j (``tgt``), tgt >= src
    influence     s_i, mean of D_ij over the later blocks j > i; undefined for the last block
    dependence    c_j, mean of D_ij over the earlier blocks i < j; undefined for the first block
    EE, LL, EL    mean of D_ij within the early half (i < j <= h), within the late half (n - h < i < j), and from early
                  to later blocks (i <= h < j), h = floor(n / 2): EE and LL have the same entries per lag
    LL/EE         their ratio: below 1, late blocks depend less on each other than early blocks do
    l2, kl_fo, tv, flip1, dnll      output change
    {influence,l2,dnll}_{depth_score,n80,participation,half_contrast}      where that profile sits: centre of mass on
                  relative depth (I1), share of the blocks that hold 80 % and participation (I6), late less early over
                  both (I9); of dnll its growth only. Influence is a profile of the n - 1 blocks that have a later one:
                  where it is the same for all of them, these are 1/2, 80 %, 1 and 0, however deep the model
    locality      share of a block's output effect (l2) that travels between positions: output change at positions that
                  keep the block over output change when no position does; 0 for the last block by construction

Aggregates over positions: ``mean`` of the ratios, ``ratio`` of sums (robust against small denominators), ``p95`` and
``max`` (over positions, draws, proteins; no interval; it grows with the sample). After Csordas, Manning and Potts 2025
(arXiv 2505.13898), whose matrices are maxima.
"""

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from plm_depth.metrics.bootstrap import Bootstrap, interval
from plm_depth.metrics.corpus import DIFFUSION_GRID, read_clusters
from plm_depth.metrics.groups import codes_of, row_codes
from plm_depth.metrics.options import add_resampling_options, resampling_of
from plm_depth.metrics.profile import sorted_rows
from plm_depth.metrics.summary import depth_score
from plm_depth.progress import Progress, stage_log
from plm_depth.tables import COMMON, SKIP, SKIP_OUT_SEQ, SKIP_SEQ, TableError, iterate_table, write_table
from plm_depth.views import MEAN_OVER_NOISE

LOG = logging.getLogger("metrics.skip")
MATRICES = ("mean", "ratio", "p95", "max")
OUTPUTS = ("mean", "p95", "max")
SUMMARISED = ("l2", "dnll")  # output changes whose profile over blocks is summarised
VIEW = tuple(name for name in COMMON if name != "mask_draw")  # what one measurement has in common
SWEPT = ("part", "pos_set", "local", "ablation")
READ = ("vocab", "quantity")
ROWS_AT_ONCE = 20_000  # of per-protein tables, in memory together

# ----------------------------------------------------------------------------------------------------------------
# Reductions of matrices (..., n_blocks, n_blocks), source before target; only entries above the diagonal are read.


def influence(effect: np.ndarray) -> np.ndarray:
    """Return s_i = mean of D_ij over j > i, (..., n_blocks); NaN for the last block. Undefined entries are left out."""
    return _mean(np.where(_later(effect.shape[-1]), effect, np.nan), -1)


def dependence(effect: np.ndarray) -> np.ndarray:
    """Return c_j = mean of D_ij over i < j, (..., n_blocks); NaN for the first block. Leaves undefined entries out."""
    return _mean(np.where(_later(effect.shape[-1]), effect, np.nan), -2)


def halves(effect: np.ndarray) -> dict[str, np.ndarray]:
    """Return EE, LL, EL and LL/EE, each (...); NaN where there is no entry (fewer than four blocks).

    EE and LL hold the same entries per lag, so that a fall of the effect with the distance of two blocks cancels.
    """
    n = effect.shape[-1]
    half = n // 2
    source, target = np.arange(1, n + 1)[:, None], np.arange(1, n + 1)
    where = {
        "EE": (source < target) & (target <= half),
        "LL": (n - half < source) & (source < target),
        "EL": (source <= half) & (half < target),
    }
    found = {name: _mean(effect[..., chosen], -1) for name, chosen in where.items()}
    found["LL/EE"] = divided(found["LL"], found["EE"])
    return found


def influence_depth(effect: np.ndarray) -> np.ndarray:
    """Return the depth score (I1) of the influence over the blocks that have a later one, in (0, 1)."""
    return depth_score(influence_profile(effect))


def influence_profile(effect: np.ndarray) -> np.ndarray:
    """Return s_i of the blocks that have a later one, (..., n_blocks - 1).

    The last block is no block of influence 0: it has none to influence. Counted as 0 it would make a uniform influence
    look early, the more so the shallower the model.
    """
    return influence(effect)[..., :-1]


def half_contrast(blocks: np.ndarray) -> np.ndarray:
    """Return (late - early) / (late + early) of the half means of a block profile (..., n_blocks), in [-1, 1] (I9)."""
    half = blocks.shape[-1] // 2
    if not half:
        return np.full(blocks.shape[:-1], np.nan)
    early, late = blocks[..., :half].mean(-1), blocks[..., -half:].mean(-1)
    return divided(late - early, late + early)


def n80(blocks: np.ndarray, share: float = 0.8) -> np.ndarray:
    """Return the fewest blocks that hold 80 % of a profile's sum, / n_blocks, in (0, 1]; NaN if the sum is 0 (I6)."""
    if not blocks.shape[-1]:
        return np.full(blocks.shape[:-1], np.nan)
    ordered = np.sort(blocks, axis=-1)[..., ::-1]
    total = blocks.sum(-1)
    # A hair of tolerance, so that ten equal blocks need eight and not nine.
    enough = np.cumsum(ordered, axis=-1) >= (share - 1e-12) * total[..., None]
    return np.where(total > 0, (enough.argmax(-1) + 1) / blocks.shape[-1], np.nan)


def participation(blocks: np.ndarray) -> np.ndarray:
    """Return (sum x)^2 / (n_blocks sum x^2), in (0, 1]; NaN if all are 0 (I6)."""
    return divided(blocks.sum(-1) ** 2, blocks.shape[-1] * np.square(blocks).sum(-1))


# By name, the statistics of a block profile that stand beside it, ``influence_n80`` and the like.
PROFILE_STATISTICS = {
    "depth_score": depth_score,
    "n80": n80,
    "participation": participation,
    "half_contrast": half_contrast,
}


def _later(n: int) -> np.ndarray:
    return np.triu(np.full((n, n), True), 1)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    defined = ~np.isnan(values)
    return divided(np.where(defined, values, 0.0).sum(axis), defined.sum(axis))


def divided(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return x / y, NaN where y is 0."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.divide(x, y, out=np.full(np.broadcast_shapes(x.shape, y.shape), np.nan), where=y != 0)


# ----------------------------------------------------------------------------------------------------------------
# Per-protein values


@dataclass(frozen=True, eq=False)
class Measured:
    """Per-protein values of one sweep (part, position set, ...) under one view and null model.

    Attributes:
        values: by aggregate, (n_blocks, n_blocks, n_sequences) for effects, (n_blocks, n_sequences) for output changes;
            NaN where a protein has no value.
        n_nan: the same shape, undefined values left out.
        below_floor: the same shape, share of draws whose mean is below three noise floors; NaN where there is no draw.
    """

    values: Mapping[str, np.ndarray]
    n_nan: np.ndarray
    below_floor: np.ndarray


View = dict[str, object]  # the columns VIEW of one measurement
Sweeps = dict[tuple, Measured]  # by (part, pos_set, local, ablation) or, for output changes, + (vocab, quantity)


def views_in(paths: Sequence[str | Path], schema: pa.Schema) -> list[tuple[View, list[tuple[Path, list[int]]]]]:
    """Return the views and null models that per-protein tables hold, each with the parts of the files that hold it.

    Raises:
        TableError: no rows, or tables of more than one model.
    """
    found: dict[tuple, tuple[View, dict[Path, list[int]]]] = {}
    models: dict[tuple, Path] = {}
    for path in map(Path, paths):
        for number, rows in enumerate(iterate_table(path, schema, columns=VIEW)):
            if not rows.num_rows:
                continue
            first, _ = row_codes([codes_of(rows.column(name)) for name in VIEW])
            for view in rows.take(pa.array(first)).to_pylist():
                models.setdefault(tuple(view[name] for name in ("model_id", "n_blocks", "d_model", "dtype")), path)
                key = tuple("NaN" if value != value else value for value in view.values())
                found.setdefault(key, (view, {}))[1].setdefault(path, []).append(number)
    if len(models) > 1:
        (one, at), (other, there) = list(models.items())[:2]
        raise TableError(f"{there}: of model {other}, but {at} of {one}; give the tables of one model")
    if not found:
        raise TableError("the per-protein tables hold no rows; nothing was silenced")
    return [(view, list(parts.items())) for _, (view, parts) in sorted(found.items(), key=lambda item: str(item[0]))]


def effects_of(
    view: View,
    parts: Sequence[tuple[Path, Sequence[int]]],
    bootstrap: Bootstrap,
    *,
    wanted: Callable[[Mapping[str, object]], bool] = lambda _: True,
) -> Sweeps:
    """Return the effects of one view (see ``views_in``), draws averaged within each protein.

    Args:
        bootstrap: its proteins are the last axis of the results.
        wanted: whether a sweep (its ``SWEPT`` columns) is read.
    Raises:
        TableError: a row that stands twice, a protein without a cluster, or lists of another length than n_blocks.
    """
    return _read(view, parts, bootstrap, wanted, SKIP_SEQ)


def outputs_of(
    view: View,
    parts: Sequence[tuple[Path, Sequence[int]]],
    bootstrap: Bootstrap,
    *,
    wanted: Callable[[Mapping[str, object]], bool] = lambda _: True,
) -> Sweeps:
    """Return the output changes of one view; see ``effects_of``. The keys end with vocabulary and quantity."""
    return _read(view, parts, bootstrap, wanted, SKIP_OUT_SEQ)


def _read(
    view: View,
    parts: Sequence[tuple[Path, Sequence[int]]],
    bootstrap: Bootstrap,
    wanted: Callable[[Mapping[str, object]], bool],
    schema: pa.Schema,
) -> Sweeps:
    is_effect = schema is SKIP_SEQ
    names = SWEPT if is_effect else (*SWEPT, *READ)
    accumulated: dict[tuple, _Sums] = {}
    for path, numbers in parts:
        for rows in _by_the_many(iterate_table(path, schema, parts=numbers)):
            rows = _of_view(rows, view)
            codes = [codes_of(rows.column(name)) for name in names]
            first, number = row_codes(codes)
            keys = rows.select(names).take(pa.array(first)).to_pylist()
            wants = np.array([wanted(key) for key in keys], bool)
            order = np.argsort(number, kind="stable")
            ends = np.cumsum(np.bincount(number, minlength=len(keys)))
            for k, key in enumerate(keys):
                if wants[k]:
                    sums = accumulated.setdefault(
                        tuple(key.values()), _Sums(int(view["n_blocks"]), len(bootstrap.sequence_ids), is_effect)
                    )
                    sums.add(rows.take(pa.array(order[ends[k] - (number == k).sum() : ends[k]])), bootstrap, path)
    return {key: sums.measured() for key, sums in sorted(accumulated.items(), key=lambda item: str(item[0]))}


def _by_the_many(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield tables joined to at least ``ROWS_AT_ONCE`` rows, the last one excepted."""
    waiting: list[pa.Table] = []
    for part in parts:
        waiting.append(part)
        if sum(table.num_rows for table in waiting) >= ROWS_AT_ONCE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _of_view(rows: pa.Table, view: View) -> pa.Table:
    keep = np.full(rows.num_rows, True)
    for name in ("null_model", "null_seed", "condition", "readout", "direction", "noise_t"):
        column = codes_of(rows.column(name))
        same = [v == view[name] or (v != v and view[name] != view[name]) for v in column.values.tolist()]
        keep &= np.array(same)[column.codes]
    return rows if keep.all() else rows.filter(pa.array(keep))


class _Sums:
    """Sums over the draws of each protein."""

    def __init__(self, n_blocks: int, n_sequences: int, is_effect: bool):
        self.n_blocks, self.is_effect = n_blocks, is_effect
        # Sequences before blocks: a row of the table is one (protein, source).
        self.shape = (n_sequences, n_blocks, n_blocks) if is_effect else (n_sequences, n_blocks)
        self.names = ("mean", "ratio", "p95") if is_effect else ("mean", "p95")
        self.total = {name: np.zeros(self.shape) for name in self.names}
        self.count = {name: np.zeros(self.shape) for name in self.names}
        self.max = np.full(self.shape, np.nan)
        self.n_nan, self.below, self.draws = np.zeros(self.shape), np.zeros(self.shape), np.zeros(self.shape)
        self.seen: set[tuple] = set()

    def add(self, rows: pa.Table, bootstrap: Bootstrap, path: Path) -> None:
        sequence = codes_of(rows.column("sequence_id"))
        try:
            place = bootstrap.index(sequence.values.tolist())[sequence.codes]
        except ValueError as error:
            raise TableError(f"{path}: {error}") from None
        source, draw, mask_draw = (
            rows.column(name).to_numpy().astype(np.int64) for name in ("src", "draw", "mask_draw")
        )
        keys = set(zip(place.tolist(), source.tolist(), draw.tolist(), mask_draw.tolist()))
        if len(keys) < rows.num_rows or keys & self.seen:
            raise TableError(f"{path}: a protein has two rows for one source, set and draw; give each table once")
        self.seen |= keys
        if source.min(initial=1) < 1 or source.max(initial=1) > self.n_blocks:
            raise TableError(f"{path}: source block {source.max()}, but the model has blocks 1..{self.n_blocks}")
        n, total, n_nan = (self._values(rows, name, path) for name in ("n", "sum", "n_nan"))
        values = {"mean": divided(total, n), "p95": self._values(rows, "p95", path)}
        if self.is_effect:
            values["ratio"] = divided(self._values(rows, "num", path), self._values(rows, "den", path))
        at = (place, source - 1)
        for name in self.names:
            defined = ~np.isnan(values[name])
            np.add.at(self.total[name], at, np.where(defined, values[name], 0.0))
            np.add.at(self.count[name], at, defined)
        np.fmax.at(self.max, at, self._values(rows, "max", path))
        np.add.at(self.n_nan, at, n_nan)
        np.add.at(self.below, at, self._values(rows, "below_floor", path))
        np.add.at(self.draws, at, n > 0)

    def _values(self, rows: pa.Table, name: str, path: Path) -> np.ndarray:
        column = rows.column(name).combine_chunks()
        if not self.is_effect:
            return column.to_numpy(zero_copy_only=False).astype(np.float64)
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        if len(flat) != len(column) * self.n_blocks:
            raise TableError(f"{path}: {name} holds {len(flat)} values in {len(column)} rows of {self.n_blocks} blocks")
        return flat.reshape(len(column), self.n_blocks)

    def measured(self) -> Measured:
        values = {name: divided(self.total[name], self.count[name]) for name in self.names} | {"max": self.max}
        back = {name: np.moveaxis(value, 0, -1) for name, value in values.items()}
        below = np.moveaxis(divided(self.below, self.draws), 0, -1)
        return Measured(back, np.moveaxis(self.n_nan, 0, -1), below)


def mean_over_noise(levels: Sequence[Sweeps]) -> Sweeps:
    """Return the means over noise levels; a protein counts where it is defined at every level.

    Raises:
        TableError: a sweep that was not done at every level.
    """
    keys = [set(sweeps) for sweeps in levels]
    uneven = sorted(set.union(*keys) - set.intersection(*keys), key=str)
    if uneven:
        raise TableError(f"{len(uneven)} sweeps were not done at every noise level of the grid, the first: {uneven[0]}")
    return {
        key: Measured(
            {name: np.mean([sweeps[key].values[name] for sweeps in levels], axis=0) for name in levels[0][key].values},
            np.sum([sweeps[key].n_nan for sweeps in levels], axis=0),
            np.mean([sweeps[key].below_floor for sweeps in levels], axis=0),
        )
        for key in levels[0]
    }


def with_noise_mean(
    views: Sequence[tuple[View, list]], read: Callable[[View, list], Sweeps], grid: Sequence[float]
) -> Iterator[tuple[View, Sweeps]]:
    """Yield every view with its sweeps, and for diffusion models also the mean over the grid (noise_t -1).

    Raises:
        TableError: a level of the grid was not measured.
    """
    wanted = {np.float32(t) for t in grid}
    waiting: dict[tuple, dict[np.float32, Sweeps]] = {}
    for view, parts in views:
        sweeps = read(view, parts)
        yield view, sweeps
        level = np.float32(view["noise_t"])
        if view["objective"] != "diffusion":
            continue
        others = tuple(value for name, value in view.items() if name != "noise_t")
        levels = waiting.setdefault(others, {})
        if level in wanted:
            levels[level] = sweeps
        if len(levels) == len(wanted):
            yield {**view, "noise_t": MEAN_OVER_NOISE}, mean_over_noise(list(waiting.pop(others).values()))
            waiting[others] = {}
    for others, levels in waiting.items():
        measured = {
            np.float32(v["noise_t"]) for v, _ in views if tuple(x for n, x in v.items() if n != "noise_t") == others
        }
        if not wanted <= measured:
            raise TableError(
                f"noise levels {sorted(float(t) for t in measured)} were measured, but the mean is to be over "
                f"{sorted(float(t) for t in wanted)}; give --grid the levels that every sweep has ({len(levels)} found)"
            )


# ----------------------------------------------------------------------------------------------------------------
# Corpus rows


class _Rows:
    """The rows of the SKIP table, column by column."""

    def __init__(self, bootstrap: Bootstrap):
        self.bootstrap = bootstrap
        self.parts: list[dict[str, np.ndarray]] = []

    def add(
        self,
        fixed: Mapping[str, object],
        *,
        agg: str,
        quantity: str,
        src: Sequence[int],
        tgt: Sequence[int],
        value: np.ndarray,
        resampled: np.ndarray | None,
        defined: np.ndarray,
        n_nan: np.ndarray,
        below: np.ndarray,
    ) -> None:
        """Add a row a statistic; resamples are (n_statistics, n_boot), the last two (n_statistics, n_sequences)."""
        n = len(value)
        if resampled is None:
            low = high = np.full(n, np.nan)
            n_boot = np.zeros(n, np.int64)
        else:
            low, high, n_boot = interval(resampled)
        columns = {name: np.full(n, item) for name, item in fixed.items()}
        self.parts.append(
            columns
            | {
                "agg": np.full(n, agg),
                "quantity": np.full(n, quantity),
                "src": np.asarray(src),
                "tgt": np.asarray(tgt),
                "value": value,
                "ci_lo": low,
                "ci_hi": high,
                "n_boot": n_boot,
                "n_seq": defined.sum(-1),
                "n_cluster": self.bootstrap.clusters_of(defined),
                "n_nan": n_nan,
                "below_floor": _mean(np.where(defined, below, np.nan), -1),
            }
        )

    def columns(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}


def matrix_of(measured: Measured, aggregate: str, bootstrap: Bootstrap) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the corpus matrix (n_blocks, n_blocks) and its resamples (n_boot, n_blocks, n_blocks), None for max."""
    values = measured.values[aggregate]
    if aggregate == "max":
        return np.fmax.reduce(values, axis=-1), None
    point, resampled = bootstrap.means(values)
    return point, np.moveaxis(resampled, -1, 0)


def add_effects(rows: _Rows, fixed: Mapping[str, object], measured: Measured) -> None:
    """Add the matrix and its reductions, every aggregate."""
    for aggregate in MATRICES:
        values = measured.values[aggregate]
        n = values.shape[0]
        defined = ~np.isnan(values)
        point, resampled = matrix_of(measured, aggregate, rows.bootstrap)
        source, target = np.triu_indices(n)
        rows.add(
            fixed,
            agg=aggregate,
            quantity="effect",
            src=source + 1,
            tgt=target + 1,
            value=point[source, target],
            resampled=None if resampled is None else resampled[:, source, target].T,
            defined=defined[source, target],
            n_nan=measured.n_nan[source, target].sum(-1),
            below=measured.below_floor[source, target],
        )
        later = _later(n)
        anywhere = defined[later].any(0) if n > 1 else np.zeros(values.shape[-1], bool)
        below = _mean(measured.below_floor[later], 0) if n > 1 else np.full(values.shape[-1], np.nan)
        n_nan = measured.n_nan[later].sum()
        reductions = [("influence", influence, np.arange(1, n + 1), np.full(n, -1))]
        reductions += [("dependence", dependence, np.full(n, -1), np.arange(1, n + 1))]
        for name in ("EE", "LL", "EL", "LL/EE"):
            reductions.append((name, lambda x, name=name: halves(x)[name][..., None], np.array([-1]), np.array([-1])))
        for name, statistic in PROFILE_STATISTICS.items():

            def reduce_profile(x: np.ndarray, statistic=statistic) -> np.ndarray:
                return statistic(influence_profile(x))[..., None]

            reductions.append((f"influence_{name}", reduce_profile, np.array([-1]), np.array([-1])))
        for name, reduce, src, tgt in reductions:
            value = reduce(point)
            rows.add(
                fixed,
                agg=aggregate,
                quantity=name,
                src=src,
                tgt=tgt,
                value=value,
                resampled=None if resampled is None else reduce(resampled).T,
                defined=np.broadcast_to(anywhere, (len(value), len(anywhere))),
                n_nan=np.full(len(value), n_nan),
                below=np.broadcast_to(below, (len(value), len(below))),
            )


def add_outputs(rows: _Rows, fixed: Mapping[str, object], sweeps: Sweeps) -> None:
    """Add output changes and localities of one view."""
    means: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}
    for key, measured in sweeps.items():
        named = dict(zip((*SWEPT, *READ), key))
        quantity = named.pop("quantity")
        for aggregate in OUTPUTS:
            values = measured.values[aggregate]
            if aggregate == "max":
                point, resampled = np.fmax.reduce(values, axis=-1), None
            else:
                point, resampled = rows.bootstrap.means(values)
            if aggregate == "mean":
                means[key] = point, resampled
            n = len(values)
            rows.add(
                {**fixed, **named},
                agg=aggregate,
                quantity=quantity,
                src=np.arange(1, n + 1),
                tgt=np.full(n, -1),
                value=point,
                resampled=resampled,
                defined=~np.isnan(values),
                n_nan=measured.n_nan.sum(-1),
                below=measured.below_floor,
            )
            if quantity in SUMMARISED:
                _add_profile_statistics(rows, {**fixed, **named}, measured, aggregate, quantity, point, resampled)
    for key, measured in sweeps.items():
        whole = locality_base(key)
        if whole not in sweeps or whole == key or key[-1] != "l2":
            continue
        named = dict(zip((*SWEPT, *READ), key))
        named.pop("quantity")
        defined = ~np.isnan(measured.values["mean"]) & ~np.isnan(sweeps[whole].values["mean"])
        n = len(defined)
        rows.add(
            {**fixed, **named},
            agg="mean",
            quantity="locality",
            src=np.arange(1, n + 1),
            tgt=np.full(n, -1),
            value=divided(means[key][0], means[whole][0]),
            resampled=divided(means[key][1], means[whole][1]),
            defined=defined,
            n_nan=measured.n_nan.sum(-1),
            below=measured.below_floor,
        )


def _add_profile_statistics(
    rows: _Rows,
    fixed: Mapping[str, object],
    measured: Measured,
    aggregate: str,
    quantity: str,
    point: np.ndarray,
    resampled: np.ndarray | None,
) -> None:
    """Add where the output change sits (I1, I6, I9); of dnll its growth, a block that helps by its absence is 0."""
    defined = ~np.isnan(measured.values[aggregate])
    for name, statistic in PROFILE_STATISTICS.items():
        rows.add(
            fixed,
            agg=aggregate,
            quantity=f"{quantity}_{name}",
            src=[-1],
            tgt=[-1],
            value=statistic(np.maximum(point, 0))[None],
            resampled=None if resampled is None else statistic(np.maximum(resampled, 0).T)[None],
            defined=defined.any(0)[None],
            n_nan=measured.n_nan.sum()[None],
            below=_mean(np.where(defined, measured.below_floor, np.nan), 0)[None],
        )


def locality_base(key: tuple) -> tuple:
    """Return the sweep that a locality divides by: the same one with every residue silenced."""
    named = dict(zip((*SWEPT, *READ), key))
    if named["pos_set"] == "tokens":
        return key
    return tuple((named | {"pos_set": "all"}).values())


def skip(
    effects: Sequence[str | Path],
    outputs: Sequence[str | Path],
    clusters: str | Path,
    output: str | Path,
    *,
    grid: Sequence[float] = DIFFUSION_GRID,
    n_boot: int = 2000,
    seed: int = 1,
) -> int:
    """Write the SKIP table of one model from its per-protein tables; return its number of rows.

    Args:
        effects, outputs: SKIP_SEQ and SKIP_OUT_SEQ tables of all shards and variants of the model.
        clusters: the CLUSTERS table of the data set.
        grid: noise levels whose mean a diffusion model gets as noise_t -1.
        n_boot, seed: resamples of the clusters, the same for every model of a data set.
    Raises:
        TableError: damaged tables, tables of several models, a protein without a cluster, a noise level without data.
    """
    bootstrap = Bootstrap.of(read_clusters(clusters), n_boot=n_boot, seed=seed)
    LOG.info(f"{len(bootstrap.sequence_ids)} proteins in {bootstrap.n_clusters} clusters, {n_boot} resamples")
    rows = _Rows(bootstrap)
    effect_views, output_views = views_in(effects, SKIP_SEQ), views_in(outputs, SKIP_OUT_SEQ)
    progress = Progress(LOG, len(effect_views) + len(output_views), "views")
    for view, sweeps in with_noise_mean(effect_views, lambda v, p: effects_of(v, p, bootstrap), grid):
        for key, measured in sweeps.items():
            add_effects(rows, {**view, "mask_draw": -1, "vocab": "none", **dict(zip(SWEPT, key))}, measured)
        if view["noise_t"] != MEAN_OVER_NOISE:
            progress.advance()
    for view, sweeps in with_noise_mean(output_views, lambda v, p: outputs_of(v, p, bootstrap), grid):
        add_outputs(rows, {**view, "mask_draw": -1}, sweeps)
        if view["noise_t"] != MEAN_OVER_NOISE:
            progress.advance()
    progress.finish()
    by = (*COMMON, *SWEPT, "vocab", "quantity", "src", "tgt", "agg")
    columns = sorted_rows(rows.columns(), by)
    n_rows = write_table(columns, SKIP, output, seed=str(seed), resamples=str(n_boot))
    LOG.info(f"{n_rows} rows, {int(np.isnan(columns['value']).sum())} without any defined value")
    return n_rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.metrics.skip", description=__doc__.split("\n")[0])
    parser.add_argument("--skip", nargs="+", required=True, help="SKIP_SEQ tables of all shards and variants")
    parser.add_argument("--output-change", nargs="+", required=True, help="SKIP_OUT_SEQ tables of the same")
    add_resampling_options(parser)
    parser.add_argument("--output", required=True, help="the SKIP table")
    options = parser.parse_args(argv)
    with stage_log(LOG.name, TableError, ValueError):
        skip(options.skip, options.output_change, options.clusters, options.output, **resampling_of(options))


if __name__ == "__main__":
    main()
