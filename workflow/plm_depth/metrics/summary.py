"""Summary statistics (I): where along its depth a model works, in one number each, with cluster-bootstrap intervals.

The statistics are listed in ``plm_depth.metrics``. All of them are functions of corpus profiles (macro means); an
interval comes from computing the whole profile and then the statistic in every resample. Effective depths by different
definitions disagree by construction; none of them is "the" depth.

Sources: depth score and areas after Csordas, Manning and Potts 2025 (arXiv 2505.13898) and Kapl et al. 2025 (arXiv
2512.08819); KL, overlap and cosine depth after Hu et al. 2025 (arXiv 2512.14064), here with sustained crossings,
because the lens KL is not monotone; variance growth after Sun et al. 2025 (arXiv 2502.05795).
"""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plm_depth.metrics.bootstrap import Bootstrap, BootstrapError, interval
from plm_depth.metrics.corpus import DIFFUSION_GRID, Measurements, over_noise, parts_of, read_clusters
from plm_depth.metrics.lens import SETTLED_NATS
from plm_depth.metrics.options import json_option, resampling_of
from plm_depth.metrics.profile import add_corpus_options, sorted_rows
from plm_depth.progress import stage_log
from plm_depth.tables import COMMON, SUMMARY, TableError, write_table

LOG = logging.getLogger("metrics.summary")


class ThresholdError(ValueError):
    """Thresholds of summary statistics that make no sense; says what was expected."""


# ----------------------------------------------------------------------------------------------------------------
# Statistics of profiles. Block profiles are (..., n_blocks), state profiles (..., n_blocks + 1); leading axes are free.


def depth_score(blocks: np.ndarray) -> np.ndarray:
    """Return the centre of mass of a block profile on relative depth, in (0, 1); NaN if it sums to zero (I1).

    ``n_blocks * depth_score - 1/2`` is the centre of mass with blocks counted from 0.
    """
    n_blocks = blocks.shape[-1]
    at = (np.arange(1, n_blocks + 1) - 0.5) / n_blocks
    return _ratio((blocks * at).sum(-1), blocks.sum(-1))


def sustained_depth(holds: np.ndarray) -> np.ndarray:
    """Return the first layer from which on a condition holds in all layers, / n_blocks; NaN if not even in the last.

    Args:
        holds: (..., n_blocks + 1) bool.
    """
    from_here = np.logical_and.accumulate(holds[..., ::-1], axis=-1)[..., ::-1]
    return _first(from_here)


def first_depth(holds: np.ndarray) -> np.ndarray:
    """Return the first layer at which a condition holds, / n_blocks; NaN if in none."""
    return _first(holds)


def _first(holds: np.ndarray) -> np.ndarray:
    n_blocks = holds.shape[-1] - 1
    return np.where(holds.any(-1), holds.argmax(-1) / n_blocks, np.nan)


def kl_depth(kl: np.ndarray, *, fraction: float, reference: str, sustained: bool = True) -> np.ndarray:
    """Return the relative depth at which the lens KL falls to a fraction of its reference (I2).

    Args:
        kl: (..., n_blocks + 1) lens KL, nats.
        reference: "kl_0" (layer 0) or "kl_max" (largest over the layers).
        sustained: whether it must stay there.
    """
    bound = fraction * (kl[..., :1] if reference == "kl_0" else kl.max(-1, keepdims=True))
    holds = kl <= bound
    return _where_defined(kl, sustained_depth(holds) if sustained else first_depth(holds))


def overlap_depth(overlap: np.ndarray, *, threshold: float) -> np.ndarray:
    """Return the relative depth from which on the overlap stays at or above a threshold (I3)."""
    return _where_defined(overlap, sustained_depth(overlap >= threshold))


def cosine_depth(cosine: np.ndarray) -> np.ndarray:
    """Return (block - 1/2) / n_blocks of the last block where a profile turns from < 0 to >= 0; NaN if none (I5)."""
    n_blocks = cosine.shape[-1]
    turns = (cosine[..., :-1] < 0) & (cosine[..., 1:] >= 0)
    if n_blocks < 2:
        return np.full(cosine.shape[:-1], np.nan)
    last = n_blocks - turns[..., ::-1].argmax(-1)  # block, from 1, after the last turn
    return _where_defined(cosine, np.where(turns.any(-1), (last - 0.5) / n_blocks, np.nan))


def retention_depth(scores: np.ndarray, *, fraction: float, floor: np.ndarray | float) -> np.ndarray:
    """Return the relative depth from which on a score keeps a fraction of its last value (I4), in [0, 1].

    The first layer l with score >= floor + fraction (last score - floor) in all layers from l on, / n_blocks.

    Args:
        scores: (..., n_blocks + 1) by layer; larger is better.
        fraction: of what the last layer has above the floor, 0..1.
        floor: what knowing nothing gives, (...) or one number.
    Returns:
        (...); NaN where the last layer is not above the floor, or a layer is undefined.
    """
    floor = np.broadcast_to(np.asarray(floor, np.float64), scores.shape[:-1])
    gain = scores[..., -1] - floor
    bound = floor + fraction * gain
    # A hair of tolerance, so that the last layer holds its own bound whatever the rounding.
    holds = scores >= (bound - 1e-12 * np.abs(gain))[..., None]
    return np.where(gain > 0, _where_defined(scores, sustained_depth(holds)), np.nan)


def area(states: np.ndarray) -> np.ndarray:
    """Return the integral of a state profile over relative depth, by the trapezoid rule (I7)."""
    return ((states[..., 1:] + states[..., :-1]) / 2).mean(-1)


def kl_area(kl: np.ndarray) -> np.ndarray:
    """Return the area under KL / KL of layer 0; NaN if that is zero (I7)."""
    return _ratio(area(kl), kl[..., 0])


def median_settling(settled: np.ndarray) -> np.ndarray:
    """Return the first layer at which at least half has settled, / n_blocks (I10).

    Args:
        settled: (..., n_blocks + 1) share that has settled by each layer: the distribution function of the layer.
    """
    return _where_defined(settled, first_depth(settled >= 0.5))


def growth(variance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how the variance of the stream grows with depth (A4), from least squares over layers k >= 2.

    Returns:
        beta of ln v = c + beta ln k, gamma of ln v = c + gamma k, and AICc of the first less AICc of the second; NaN
        with fewer than 3 layers for the exponents, fewer than 5 for the AICc (three parameters: two coefficients and
        the residual variance), or a variance that is not positive.
    """
    layers = np.arange(variance.shape[-1])[2:].astype(np.float64)
    shape, n = variance.shape[:-1], len(layers)
    if n < 3:
        return tuple(np.full(shape, np.nan) for _ in range(3))
    v = variance[..., 2:]
    y = np.log(np.where(v > 0, v, np.nan))
    centred = y - y.mean(-1, keepdims=True)
    slopes, residuals = [], []
    for x in (np.log(layers), layers):
        x = x - x.mean()
        slope = (centred * x).sum(-1) / (x * x).sum()
        slopes.append(slope)
        residuals.append(((centred - slope[..., None] * x) ** 2).sum(-1))
    if n < 5:
        return slopes[0], slopes[1], np.full(shape, np.nan)
    # Both laws have three parameters, so that the corrections cancel and n ln(RSS) is left of the difference.
    floor = 1e-24 * (centred**2).sum(-1) + np.finfo(np.float64).tiny
    power, exponential = (n * np.log(np.maximum(residual, floor)) for residual in residuals)
    return slopes[0], slopes[1], power - exponential


def _ratio(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.divide(x, y, out=np.full(np.shape(y), np.nan), where=y != 0)


def _where_defined(profile: np.ndarray, statistic: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(profile).any(-1), np.nan, statistic)


# ----------------------------------------------------------------------------------------------------------------
# Relative depth

GRID = np.linspace(0, 1, 101)


def block_depths(n_blocks: int) -> np.ndarray:
    """Return the relative depth of each block, (block - 1/2) / n_blocks."""
    return (np.arange(1, n_blocks + 1) - 0.5) / n_blocks


def state_depths(n_blocks: int) -> np.ndarray:
    """Return the relative depth of each layer, layer / n_blocks."""
    return np.arange(n_blocks + 1) / n_blocks


def on_depths(profile: np.ndarray, depths: np.ndarray, at: np.ndarray = GRID) -> np.ndarray:
    """Return a profile (..., n) known at ``depths`` (n,), linearly interpolated at ``at``; NaN outside, never beyond.

    Profiles of models of the same depth are compared without it: at their own depths it changes nothing.
    """
    right = np.clip(np.searchsorted(depths, at), 1, max(len(depths) - 1, 1))
    if len(depths) == 1:
        return np.where(at == depths[0], profile[..., :1], np.nan)
    left = right - 1
    share = (at - depths[left]) / (depths[right] - depths[left])
    value = np.where(
        share == 1, profile[..., right], profile[..., left] + share * (profile[..., right] - profile[..., left])
    )
    return np.where((at >= depths[0]) & (at <= depths[-1]), value, np.nan)


# ----------------------------------------------------------------------------------------------------------------
# The stage


@dataclass(frozen=True)
class Statistic:
    """One statistic: its names, the profiles it needs and what it computes from them."""

    stat: str
    profile: str
    param: float
    needs: tuple[str, ...]
    compute: Callable[..., np.ndarray]


BLOCK_PROFILES = ("rel_u", "norm_u", "cos_a", "cos_m", "cos_u")
STATE_PROFILES = ("var_h",)
SETTLED = {nats: f"settled_{nats:g}" for nats in SETTLED_NATS}
LENS_PROFILES = ("kl_lf", "ov5", "ov5_cc", "settled_top1", *SETTLED.values())


def statistics_of(thresholds: Mapping[str, object]) -> list[Statistic]:
    """Return the statistics for these thresholds.

    Args:
        thresholds: ``kl_fraction`` (list of fractions in 0..1), ``overlap`` (one threshold) and ``settle`` (list of
            nats, of those that the lens measured); each has a default.
    Raises:
        ThresholdError: an unknown key, or a value out of range.
    """
    known = {"kl_fraction": [0.5, 0.1], "overlap": 0.3, "settle": sorted(SETTLED)}
    if not isinstance(thresholds, Mapping) or set(thresholds) - set(known):
        raise ThresholdError(f"thresholds {thresholds!r}; expected an object with the keys {sorted(known)}")
    chosen = {**known, **thresholds}
    fractions, overlap, settle = _numbers(chosen["kl_fraction"]), chosen["overlap"], _numbers(chosen["settle"])
    if fractions is None or not all(0 <= f <= 1 for f in fractions):
        raise ThresholdError(f"kl_fraction is {chosen['kl_fraction']!r}; expected a list of fractions from 0 to 1")
    if type(overlap) not in (int, float) or not 0 <= overlap <= 1:
        raise ThresholdError(f"overlap is {overlap!r}; expected a number from 0 to 1")
    if settle is None or not set(settle) <= set(SETTLED):
        raise ThresholdError(f"settle is {chosen['settle']!r}; expected a list of some of {sorted(SETTLED)}")
    nan = float("nan")
    found = [Statistic("depth_score", name, nan, (name,), depth_score) for name in ("rel_u", "norm_u")]
    for reference in ("kl_0", "kl_max"):
        for fraction in fractions:
            for stat, sustained in (("kl_depth", True), ("kl_depth_first", False)):
                found.append(
                    Statistic(stat, reference, fraction, ("kl_lf",), _kl_depth(fraction, reference, sustained))
                )
    found.append(
        Statistic("overlap_depth", "ov5_cc", float(overlap), ("ov5_cc",), lambda x: overlap_depth(x, threshold=overlap))
    )
    found.append(Statistic("cosine_depth", "cos", nan, ("cos_a", "cos_m", "cos_u"), _cosine_depth))
    found.append(Statistic("kl_area", "kl_lf", nan, ("kl_lf",), kl_area))
    found += [Statistic("overlap_area", name, nan, (name,), area) for name in ("ov5", "ov5_cc")]
    found += [Statistic("settling", "kl_lf", nats, (SETTLED[nats],), median_settling) for nats in settle]
    found.append(Statistic("settling", "top1", nan, ("settled_top1",), median_settling))
    for number, name in enumerate(("growth_beta", "growth_gamma", "growth_delta_aicc")):
        found.append(Statistic(name, "var_h", nan, ("var_h",), _growth(number)))
    return found


def _numbers(value: object) -> list[float] | None:
    is_list = isinstance(value, list | tuple) and all(type(v) in (int, float) for v in value)
    return [float(v) for v in value] if is_list else None


def _kl_depth(fraction: float, reference: str, sustained: bool) -> Callable[[np.ndarray], np.ndarray]:
    return lambda kl: kl_depth(kl, fraction=fraction, reference=reference, sustained=sustained)


def _growth(number: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda variance: growth(variance)[number]


def _cosine_depth(*cosines: np.ndarray) -> np.ndarray:
    return cosine_depth(sum(cosines) / len(cosines))


@dataclass
class _Profiles:
    """Macro means of the profiles of one view and null model, filled layer by layer.

    Attributes:
        common: the COMMON columns.
        point: layers by quantity; values (layer to number).
        resampled: the same, (n_boot,) each.
        defined: (n_sequences,) bool by quantity: proteins with a value at any layer.
    """

    common: dict[str, object]
    point: dict[str, dict[int, float]]
    resampled: dict[str, dict[int, np.ndarray]]
    defined: dict[str, np.ndarray]

    def profile(self, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a profile with its layers in order, (1, n) and (n_boot, n)."""
        first = 1 if quantity in BLOCK_PROFILES else 0
        layers = range(first, int(self.common["n_blocks"]) + 1)
        found = self.point.get(quantity, {})
        if sorted(found) != list(layers):
            raise TableError(
                f"{quantity} of {self.common['model_id']} ({self.common['null_model']}): layers {sorted(found)}, "
                f"expected {list(layers)}; write the per-protein tables again"
            )
        point = np.array([[found[layer] for layer in layers]])
        return point, np.stack([self.resampled[quantity][layer] for layer in layers], axis=-1)


def summary(
    contributions: Sequence[str | Path],
    lens: Sequence[str | Path],
    clusters: str | Path,
    output: str | Path,
    *,
    thresholds: Mapping[str, object] | None = None,
    grid: Sequence[float] = DIFFUSION_GRID,
    n_boot: int = 2000,
    seed: int = 1,
) -> int:
    """Write the SUMMARY table of one model from its per-protein tables; return its number of rows.

    Every null model and view gets its rows, views that a masked model reads clean (``lens`` copy) only those of the
    contributions: a lens on visible residues shows copying, not prediction. Options as in ``profile.profile``.

    Raises:
        TableError: as in ``profile.profile``, or a profile that lacks a layer.
        ThresholdError: thresholds out of range.
    """
    statistics = statistics_of(thresholds or {})
    bootstrap = Bootstrap.of(read_clusters(clusters), n_boot=n_boot, seed=seed)
    profiles: dict[tuple, _Profiles] = {}
    for table, paths in (("contributions", contributions), ("lens", lens)):
        for part in parts_of(paths, table=table, bootstrap=bootstrap):
            kept = part.take(_is_needed(part))
            if len(kept):
                _collect(profiles, kept, kept.mean, bootstrap)
                stacked = over_noise(kept, grid)
                if stacked is not None:
                    _collect(profiles, stacked, stacked.mean.mean(0), bootstrap)
    if not profiles:
        raise TableError("the per-protein tables hold no rows; nothing to summarise")
    rows = [row for one in profiles.values() for row in _rows(one, statistics, bootstrap)]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    columns = sorted_rows(columns, (*COMMON, "stat", "profile", "param"))
    n_rows = write_table(columns, SUMMARY, output, seed=seed, resamples=n_boot)
    n_undefined = int(np.isnan(columns["value"]).sum())
    LOG.info(f"{n_rows} rows, {n_undefined} undefined (for instance a cosine that never turns)")
    return n_rows


def _is_needed(part: Measurements) -> np.ndarray:
    wanted = (*BLOCK_PROFILES, *STATE_PROFILES, *LENS_PROFILES)
    is_lens = part.keys["table"] == "lens"
    is_primary = np.where(
        is_lens,
        (part.keys["pos_class"] == "logit") & (part.keys["vocab"] == "aa20"),
        part.keys["pos_class"] == "residue",
    )
    return is_primary & np.isin(part.keys["quantity"], wanted)


def _collect(profiles: dict, found: Measurements, values: np.ndarray, bootstrap: Bootstrap) -> None:
    point, resampled = bootstrap.means(values)
    names = [name for name in COMMON if name != "mask_draw"]
    for i in range(len(found)):
        common = {name: found.keys[name][i].item() for name in names}
        key = tuple("NaN" if value != value else value for value in common.values())
        one = profiles.setdefault(key, _Profiles({**common, "mask_draw": -1}, {}, {}, {}))
        quantity, layer = found.keys["quantity"][i].item(), found.keys["layer"][i].item()
        one.point.setdefault(quantity, {})[layer] = point[i]
        one.resampled.setdefault(quantity, {})[layer] = resampled[i]
        has_value = ~np.isnan(values[i])
        one.defined[quantity] = one.defined.get(quantity, np.zeros_like(has_value)) | has_value


def _rows(one: _Profiles, statistics: Sequence[Statistic], bootstrap: Bootstrap) -> list[dict[str, object]]:
    rows = []
    # Without a lens: a clean input, of which only copying is read, or a model whose tokens are no residues.
    has_lens = one.common["noise_t"] != 0 and not set(one.point).isdisjoint(LENS_PROFILES)
    for statistic in statistics:
        if not has_lens and set(statistic.needs) <= set(LENS_PROFILES):
            continue
        profiles = [one.profile(name) for name in statistic.needs]
        value = statistic.compute(*(point for point, _ in profiles))[0]
        resampled = statistic.compute(*(resampled for _, resampled in profiles))
        lower, upper, n_boot = interval(resampled[None])
        defined = np.any([one.defined[name] for name in statistic.needs], axis=0)
        rows.append(
            {
                **one.common,
                "stat": statistic.stat,
                "profile": statistic.profile,
                "param": statistic.param,
                "value": value,
                "ci_lo": lower[0],
                "ci_hi": upper[0],
                "n_seq": int(defined.sum()),
                "n_cluster": int(bootstrap.clusters_of(defined)),
                "n_boot": int(n_boot[0]),
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_corpus_options(parser)
    parser.add_argument(
        "--thresholds", type=json_option, default={}, help='JSON, for instance {"kl_fraction": [0.5], "overlap": 0.3}'
    )
    parser.add_argument("--output", required=True, help="the SUMMARY table")
    options = parser.parse_args(argv)
    with stage_log(LOG.name, TableError, BootstrapError, ThresholdError):
        summary(
            options.contributions,
            options.lens,
            options.clusters,
            options.output,
            thresholds=options.thresholds,
            **resampling_of(options),
        )


if __name__ == "__main__":
    main()
