"""Per-protein tables of one model, brought to one value a protein: mask draws averaged, noise levels last.

What ``profile`` and ``summary`` share. A measurement is what one row of a profile says: a quantity at a layer, of a
class of positions, under a view and a null model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from plm_depth.metrics.bootstrap import Bootstrap, BootstrapError
from plm_depth.metrics.groups import codes_of, row_codes
from plm_depth.tables import (
    AMINO_ACIDS,
    CLUSTERS,
    COMMON,
    CONTRIB_SEQ,
    LENS_SEQ,
    TableError,
    iterate_table,
    read_metadata,
    read_table,
)
from plm_depth.views import MEAN_OVER_NOISE

DIFFUSION_GRID = (0.1, 0.3, 0.5, 0.7, 0.9)
OVERLAPS = {"ov1": 1, "ov5": 5}  # quantity: tokens compared
UNREAD = ("sumsq", "argmax_pos", "rank_hist")  # columns of the per-protein tables that no corpus value is made of
KEYS = (*(name for name in COMMON if name != "mask_draw"), "table", "quantity", "pos_class", "vocab", "layer")


@dataclass(frozen=True)
class Measurements:
    """Values per protein of several measurements.

    Attributes:
        keys: a column per name of ``KEYS``, (n_measurements,).
        mean, p95, max: (..., n_measurements, n_sequences), with the noise levels to be averaged in front, if any; NaN
            where a protein has no defined value; p95 is NaN throughout for the lens.
        total, n, n_nan: the same shape, sum and number of values over positions and draws, and of undefined ones.
    """

    keys: dict[str, np.ndarray]
    mean: np.ndarray
    p95: np.ndarray
    max: np.ndarray
    total: np.ndarray
    n: np.ndarray
    n_nan: np.ndarray

    def __len__(self) -> int:
        return len(self.keys["layer"])

    def take(self, chosen: np.ndarray) -> "Measurements":
        """Return the chosen measurements (an index or bool array over them)."""
        arrays = {name: getattr(self, name)[..., chosen, :] for name in ("mean", "p95", "max", "total", "n", "n_nan")}
        return Measurements({name: column[chosen] for name, column in self.keys.items()}, **arrays)


def read_clusters(path: str | Path) -> dict[str, str]:
    """Return the cluster id of each sequence id.

    Raises:
        TableError: the table is damaged, empty, or holds a protein twice.
    """
    table = read_table(path, CLUSTERS)
    sequence_ids, cluster_ids = (table.column(name).to_pylist() for name in ("sequence_id", "cluster_id"))
    clusters = dict(zip(sequence_ids, cluster_ids))
    if not clusters or len(clusters) != len(sequence_ids):
        raise TableError(f"{path}: {len(sequence_ids)} rows for {len(clusters)} proteins; expected one row per protein")
    return clusters


def parts_of(paths: Sequence[str | Path], *, table: str, bootstrap: Bootstrap) -> Iterator[Measurements]:
    """Yield the measurements of per-protein tables of one model, of one network and at most a few layers at a time.

    Args:
        paths: the tables of all variants (trained and null models).
        table: "contributions" or "lens".
        bootstrap: its proteins are the columns of the results.
    Raises:
        TableError: tables of different models, a row that stands twice, a protein without a cluster.
    """
    seen: dict[tuple, str] = {}
    model = None
    for path in paths:
        layers: set[tuple] = set()
        n_vocabulary = _n_vocabulary(path) if table == "lens" else None
        schema = LENS_SEQ if table == "lens" else CONTRIB_SEQ
        for rows in iterate_table(path, schema, columns=[name for name in schema.names if name not in UNREAD]):
            for network in _networks(rows):
                part = measurements(
                    network, table=table, bootstrap=bootstrap, n_vocabulary=n_vocabulary, path=str(path)
                )
                identity = tuple(part.keys[name][0] for name in ("model_id", "n_blocks", "d_model", "dtype"))
                if model not in (None, identity):
                    raise TableError(
                        f"{path}: of model {identity}, but the tables before it of {model}; give one model's"
                    )
                model = identity
                null = (part.keys["null_model"][0].item(), part.keys["null_seed"][0].item())
                found = {(*null, layer) for layer in part.keys["layer"].tolist()}
                again = layers & found
                if again:
                    layer = min(layer for *_, layer in again)
                    raise TableError(
                        f"{path}: layer {layer} is split over row groups; write it again with this version"
                    )
                layers |= found
                if seen.setdefault(null, str(path)) != str(path):
                    raise TableError(f"null model {null} stands in {seen[null]} and in {path}; give each table once")
                yield part


def _networks(rows: pa.Table) -> Iterator[pa.Table]:
    """Yield the rows of each null model and seed, in the order of their names."""
    if not rows.num_rows:
        return
    first, number = row_codes([codes_of(rows.column(name)) for name in ("null_model", "null_seed")])
    if len(first) == 1:
        yield rows
        return
    for i in range(len(first)):
        yield rows.filter(pa.array(number == i))


def _n_vocabulary(path: str | Path) -> int:
    try:
        return int(read_metadata(path)["n_vocabulary"])
    except (KeyError, ValueError):
        raise TableError(f"{path}: its metadata do not say n_vocabulary; write it again with metrics.lens") from None


def measurements(
    rows: pa.Table, *, table: str, bootstrap: Bootstrap, n_vocabulary: int | None = None, path: str = "table"
) -> Measurements:
    """Return the measurements of rows of CONTRIB_SEQ or LENS_SEQ, draws averaged within each protein.

    The lens also gets the overlaps less chance, ov1_cc and ov5_cc.

    Raises:
        TableError: a row that stands twice, or a protein without a cluster.
    """
    columns = {name: codes_of(rows.column(name)) for name in rows.column_names if name in (*KEYS, "mask_draw", "lens")}
    if table == "lens":
        columns["pos_class"] = columns.pop("lens")
    sequence = codes_of(rows.column("sequence_id"))
    try:
        place = bootstrap.index(sequence.values.tolist())[sequence.codes]
    except BootstrapError as error:
        raise TableError(f"{path}: {error}") from None
    named = {name: columns[name] for name in KEYS if name in columns}
    first, number = row_codes(list(named.values()))
    n_sequences = len(bootstrap.sequence_ids)
    cell = number * n_sequences + place
    with_draw = np.sort(cell * (len(columns["mask_draw"].values) + 1) + columns["mask_draw"].codes)
    if (with_draw[1:] == with_draw[:-1]).any():
        raise TableError(f"{path}: a protein has two rows for one quantity, layer and view; give each table once")
    shape = (len(first), n_sequences)

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(cell, weights=values, minlength=len(first) * n_sequences).reshape(shape)

    def over_draws(values: np.ndarray) -> np.ndarray:
        is_defined = ~np.isnan(values)
        count = summed(is_defined)
        return np.divide(summed(np.where(is_defined, values, 0.0)), count, out=np.full(shape, np.nan), where=count > 0)

    n, total = (rows.column(name).to_numpy().astype(np.float64) for name in ("n", "sum"))
    largest = np.full(len(first) * n_sequences, np.nan)
    np.fmax.at(largest, cell, rows.column("max").to_numpy().astype(np.float64))
    is_contributions = table == "contributions"
    p95 = rows.column("p95").to_numpy().astype(np.float64) if is_contributions else np.full(len(cell), np.nan)
    keys = {name: column.values[column.codes[first]] for name, column in named.items()}
    keys["table"] = np.full(len(first), table)
    if is_contributions:
        keys["vocab"] = np.full(len(first), "none")
    found = Measurements(
        {name: keys[name] for name in KEYS},
        mean=over_draws(np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)),
        p95=over_draws(p95) if is_contributions else np.full(shape, np.nan),
        max=largest.reshape(shape),
        total=summed(total),
        n=summed(n),
        n_nan=summed(rows.column("n_nan").to_numpy()),
    )
    return found if n_vocabulary is None else _with_corrected_overlaps(found, n_vocabulary)


def _with_corrected_overlaps(found: Measurements, n_vocabulary: int) -> Measurements:
    """Add the overlaps less what chance gives: (O - k/V) / (1 - k/V)."""
    parts = [found]
    for quantity, k in OVERLAPS.items():
        one = found.take(found.keys["quantity"] == quantity)
        size = np.where(one.keys["vocab"] == "aa20", len(AMINO_ACIDS), n_vocabulary)[:, None]
        chance = k / size
        parts.append(
            replace(
                one,
                keys={**one.keys, "quantity": np.full(len(one), f"{quantity}_cc")},
                mean=(one.mean - chance) / (1 - chance),
                max=(one.max - chance) / (1 - chance),
                total=(one.total - chance * one.n) / (1 - chance),
            )
        )
    return concatenated(parts)


def concatenated(parts: Sequence[Measurements]) -> Measurements:
    """Return the measurements of several parts over the same proteins."""
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts], axis=-2)
        for name in ("mean", "p95", "max", "total", "n", "n_nan")
    }
    return Measurements({name: np.concatenate([p.keys[name] for p in parts]) for name in KEYS}, **arrays)


def over_noise(found: Measurements, grid: Sequence[float]) -> Measurements | None:
    """Return, for diffusion models, the measurements at the noise levels of the grid, stacked on a leading axis.

    The keys say noise_t -1 (``views.MEAN_OVER_NOISE``); a mean over the leading axis is the mean over the grid. Clean
    and fully masked inputs and levels off the grid stay out. None if nothing was measured on a diffusion model.

    Raises:
        TableError: a level of the grid was not measured.
    """
    levels = np.unique(np.asarray(grid, np.float32))
    noise = found.keys["noise_t"].astype(np.float32)
    is_on_grid = (found.keys["objective"] == "diffusion") & np.isin(noise, levels)
    if not (found.keys["objective"] == "diffusion").any():
        return None
    kept = found.take(is_on_grid)
    others = [kept.keys[name] for name in KEYS if name != "noise_t"]
    first, number = row_codes([codes_of(pa.chunked_array([pa.array(column)])) for column in others])
    level = np.searchsorted(levels, kept.keys["noise_t"].astype(np.float32))
    place = np.full((len(levels), len(first)), -1, np.int64)
    place[level, number] = np.arange(len(kept))
    if (place < 0).any() or not len(first):
        measured, wanted = ([round(float(t), 6) for t in np.unique(values)] for values in (noise, levels))
        raise TableError(
            f"noise levels {measured} were measured, but the mean is to be over {wanted}; give --grid the levels that "
            "every quantity has"
        )
    keys = {name: column[first] for name, column in kept.keys.items()}
    keys["noise_t"] = np.full(len(first), MEAN_OVER_NOISE)
    arrays = {name: getattr(kept, name)[place] for name in ("mean", "p95", "max", "total", "n", "n_nan")}
    return Measurements(keys, **arrays)
