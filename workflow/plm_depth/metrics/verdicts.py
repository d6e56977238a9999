"""Claims as tests: K1-K6 with margins fixed beforehand, intervals, untrained networks beside, and one of four verdicts.

    python -m plm_depth.metrics.verdicts --skip-seq P... --out-seq P... --lens P... --contributions P... --clusters P
        --margins JSON --models JSON [--ablation P...] [--attribution P...] --output P

    K1  later blocks depend less on earlier computation: LL/EE of the effect matrix between positions < 0.9
    K2  later blocks mainly refine the output: (a) late over early locality < 0.9, and (b) more than half of the fall of
        the lens KL lies in the late half; beside it, of models that were ablated, the share of predictions that change
        when a late block is removed
    K3  more so in deeper models of a family: LL/EE, depth score of the influence, half contrast and n80 of the output
        change are smaller in the deepest than in the shallowest model, two of the four (Holm) and none larger
    K4  for all objectives: every objective has a family of which a model passes K1 and K2, and no family fails. A pass
        of any of the m models of an objective is one chance in m: for it each is judged at level 1 - 0.05 / m, the step
        of Holm's method that decides whether there is any
    K5  with the structure as input: K1 and K2 under condition seq_struct, and depth score, KL depth and retention depth
        as without it, protein by protein (only for models that were measured under seq_struct)

    K6  computation is concentrated in a subset of blocks, and the rest refine: half of the blocks or fewer hold 80 % of
        the loss that the removal of single blocks costs (and of the attributions of gates, where they were measured);
        the other blocks may go one at a time at little cost (median growth of the loss at most 0.05 nats, median share
        of changed predictions at most 5 %); and half of the blocks may go together, keeping 95 % of what the model
        gains over the composition of proteins (only for ablated models)

Verdicts, for a statistic, its margin, and untrained networks of the same architecture:

    pass              the interval lies beyond the margin, and beyond what an untrained network shows
    pass_descriptive  the first only: the pattern is there, but an untrained network shows it too
    fail              the interval lies on the other side of no effect
    inconclusive      anything else, too few clusters, data below the noise floor, a failed check, no untrained network

A shift between conditions (K5) passes if its interval lies inside +- the margin, and fails if it lies outside: its
reason says in which direction. Untrained networks are shown beside; that nothing changes is no claim about training.
In K6, too, only the concentration is held against untrained networks, which have nothing to lose.

Intervals are percentile intervals of one cluster bootstrap shared by all models (paired). Untrained networks differ
from seed to seed far more than resampling proteins tells, so "beyond" is judged against what *another* untrained
network would give: the difference to the mean over the seeds is widened by t(0.975, k - 1) s sqrt(1 + 1/k), s the
spread of k seeds (a prediction interval), in quadrature with the bootstrap. One seed tells no spread: inconclusive.

Primary inputs: autoregressive n2c; masked the noise level next to 15 %; diffusion the mean over the noise grid; mean
aggregates; output and lens over the 20 canonical residues. The same statistic on maxima stands beside (``max_value``).
Verdicts are about these checkpoints, not about a population of models.
"""

import argparse
import functools
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from scipy import stats

from plm_depth import json_text
from plm_depth.metrics.ablation import Profiles, ablations_of, removable_fraction, with_changes
from plm_depth.metrics.attribution import attribution_values, over_draws_and_noise
from plm_depth.metrics.attribution import read as read_attributions
from plm_depth.metrics.bootstrap import LEVEL, Bootstrap, holm, interval
from plm_depth.metrics.corpus import DIFFUSION_GRID, over_noise, parts_of, read_clusters
from plm_depth.metrics.options import add_resampling_options, numbers_option, resampling_of
from plm_depth.metrics.skip import (
    READ,
    SWEPT,
    Sweeps,
    dependence,
    divided,
    effects_of,
    half_contrast,
    halves,
    influence_depth,
    matrix_of,
    n80,
    outputs_of,
    views_in,
    with_noise_mean,
)
from plm_depth.metrics.summary import depth_score, kl_depth, retention_depth
from plm_depth.positions import PRIMARY_POSITIONS
from plm_depth.progress import Progress, stage_log
from plm_depth.tables import (
    ABLATE_SEQ,
    AMINO_ACIDS,
    ATTR_SEQ,
    CONTRIB_SEQ,
    LENS_SEQ,
    SKIP_OUT_SEQ,
    SKIP_SEQ,
    VERDICT,
    TableError,
    iterate_table,
    read_metadata,
    write_table,
)
from plm_depth.views import MEAN_OVER_NOISE

LOG = logging.getLogger("metrics.verdicts")
VERDICTS = ("pass", "pass_descriptive", "fail", "inconclusive")
PRIMARY_NOISE = 0.15
UNTRAINED = "randinit"
WITH_STRUCTURE = "seq_struct"
EXACT = 1e-6  # how far a diagonal that is 1 or 0 by definition may be from it
CLAIMS = {
    "K1": "later blocks depend less on earlier computation",
    "K2": "later blocks mainly refine the output",
    "K3": "more pronounced in deeper models of the family",
    "K4": "holds for all objectives",
    "K5": "holds with the structure as input",
    "K6": "computation is concentrated in a subset of blocks, the rest refine",
}
RETAINED = 0.95  # K6: share of the gain over the composition that is kept when blocks go together
UNIFORM_SHARE = 0.8  # K6: share of the blocks that hold 80 % where all are worth the same
HAIR = 1e-9  # K6: its statistics are shares of few blocks, which may lie exactly at a margin


@dataclass(frozen=True)
class Margins:
    """What was fixed before any result was seen.

    Attributes:
        late_over_early: K1, LL/EE must lie below; no effect is 1.
        locality: K2 (a), late over early locality must lie below; no effect is 1.
        kl_share: K2 (b), share of the fall of the lens KL in the late half must lie above; no effect is 0.5.
        tau: K3, Kendall's tau of a statistic with depth must lie at or below (from three depths on).
        clusters: fewest similarity clusters.
        below_floor: largest share of proteins whose value is below three noise floors.
        null_seeds: fewest untrained networks, at least 2.
        shift: K5, the shift of a depth between conditions must lie inside plus or minus this.
        concentration: K6, share of the blocks that hold 80 % of the loss must not lie above.
        rest_loss, rest_flips: K6, median growth of the loss (nats) and share of changed predictions of the other blocks
            must not lie above.
        removable: K6, share of the blocks that may go together must not lie below.
        late_flips: beside K2, median share of predictions that change when a late block is removed must lie below.
    """

    late_over_early: float = 0.9
    locality: float = 0.9
    kl_share: float = 0.5
    tau: float = -0.6
    clusters: int = 50
    below_floor: float = 0.05
    null_seeds: int = 2
    shift: float = 0.05
    concentration: float = 0.5
    rest_loss: float = 0.05
    rest_flips: float = 0.05
    removable: float = 0.5
    late_flips: float = 0.05

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"--margins: {item.name} is {value!r}; expected a number")
        if self.null_seeds < 2:
            raise ValueError(f"--margins: null_seeds is {self.null_seeds}; the spread needs at least 2")

    @classmethod
    def of(cls, given: object) -> "Margins":
        """Return the margins of a parsed JSON object; those that are not given have their defaults.

        Raises:
            ValueError: an unknown key or a value that is no number.
        """
        known = [item.name for item in fields(cls)]
        if not isinstance(given, Mapping) or not set(given) <= set(known):
            raise ValueError(f"--margins: expected a JSON object with keys among {', '.join(known)}, got {given!r}")
        return cls(**given)


# ----------------------------------------------------------------------------------------------------------------
# Statistics of profiles


def late_over_early(locality: np.ndarray) -> np.ndarray:
    """Return the mean of a profile over the late half over that of the early half; the last block is left out."""
    n_blocks = locality.shape[-1]
    half = n_blocks // 2
    late = locality[..., n_blocks - half : n_blocks - 1]
    if not late.shape[-1]:
        return np.full(locality.shape[:-1], np.nan)
    return divided(late.mean(-1), locality[..., :half].mean(-1))


def outside_80(blocks: np.ndarray) -> np.ndarray:
    """Return which blocks of a profile (..., n_blocks) are not among the fewest that hold 80 % of its sum, bool."""
    order = np.argsort(-blocks, axis=-1, kind="stable")
    ordered = np.take_along_axis(blocks, order, -1)
    before = np.cumsum(ordered, axis=-1) - ordered
    inside = before < (0.8 - 1e-12) * blocks.sum(-1, keepdims=True)
    outside = np.empty(blocks.shape, bool)
    np.put_along_axis(outside, order, ~inside, -1)
    return outside


def median_of_rest(values: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Return the median of values (..., n_blocks) over the blocks ``outside_80`` of a profile; NaN if there is none."""
    outside = outside_80(blocks) & (blocks.sum(-1, keepdims=True) > 0)
    ordered = np.sort(np.where(outside, values, np.nan), axis=-1)  # NaN last
    n = outside.sum(-1)
    middle = [np.take_along_axis(ordered, np.maximum(at, 0)[..., None], -1)[..., 0] for at in ((n - 1) // 2, n // 2)]
    return np.where(n > 0, (middle[0] + middle[1]) / 2, np.nan)


def retention_of_exit(nll: np.ndarray) -> np.ndarray:
    """Return the relative depth from which on the read-out keeps 95 % of what the last layer's gains over chance (I4).

    Args:
        nll: (..., n_blocks + 1) of the true residue among 20, nats, by layer at which the model is left.
    """
    return retention_depth(-nll, fraction=RETAINED, floor=-math.log(len(AMINO_ACIDS)))


def kl_share(kl: np.ndarray) -> np.ndarray:
    """Return the share of the fall of a lens KL (..., n_blocks + 1) that lies in the late half."""
    middle = -(-(kl.shape[-1] - 1) // 2)
    return divided(kl[..., middle] - kl[..., -1], kl[..., 0])


# ----------------------------------------------------------------------------------------------------------------
# What is known of one network


@dataclass(frozen=True, eq=False)
class Statistic:
    """One number of one network, with its resamples.

    Attributes:
        value: on mean aggregates.
        resampled: (n_boot,).
        max_value: the same on maxima, NaN where there is none.
        below_floor: share of proteins below three noise floors.
        n_seq, n_cluster: proteins and similarity clusters behind it.
    """

    value: float
    resampled: np.ndarray
    max_value: float = math.nan
    below_floor: float = 0.0
    n_seq: int = 0
    n_cluster: int = 0


@dataclass(frozen=True, eq=False)
class Network:
    """The statistics of one network, by name, and the checks that it failed, in words."""

    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """One model of the study."""

    model: str
    family: str
    objective: str
    n_blocks: int


@dataclass(frozen=True, eq=False)
class Evidence:
    """One model: itself and untrained networks of its architecture; the same with structure, where it was measured."""

    model: Model
    trained: Network
    untrained: tuple[Network, ...]
    with_structure: "Evidence | None" = None


# ----------------------------------------------------------------------------------------------------------------
# One statistic against its margin and its null


@dataclass(frozen=True)
class Rule:
    """How a statistic is judged.

    Attributes:
        side: -1 if the claim is that it is small, +1 if large.
        margin: the claim holds beyond it.
        no_effect: a failure lies beyond it on the other side.
        is_ratio: compare with untrained networks by quotient, else by difference.
        against_untrained: whether a pass must also lie beyond what an untrained network shows.
    """

    side: int
    margin: float
    no_effect: float
    is_ratio: bool
    against_untrained: bool = True


@dataclass(frozen=True)
class Judgement:
    """A verdict with its interval, what untrained networks give, and the reason in words."""

    verdict: str
    reason: str
    ci_lo: float
    ci_hi: float
    null_value: float = math.nan
    null_lo: float = math.nan
    null_hi: float = math.nan


def judge(
    trained: Statistic, untrained: Sequence[Statistic], rule: Rule, margins: Margins, *, level: float = LEVEL
) -> Judgement:
    """Return the verdict on one statistic; see the module for the four outcomes.

    Args:
        level: of the interval, and of what another untrained network would give, 0..1.
    """
    (low,), (high,), (n_defined,) = interval(trained.resampled[None], level=level)
    null = _null(untrained, rule, level)
    shown = dict(ci_lo=low, ci_hi=high, null_value=null.mean, null_lo=null.low, null_hi=null.high)

    def verdict(which: str, reason: str) -> Judgement:
        return Judgement(which, reason, **shown)

    if math.isnan(trained.value) or n_defined < len(trained.resampled) * LEVEL:
        return verdict("inconclusive", "the statistic is undefined")
    if trained.n_cluster < margins.clusters:
        return verdict("inconclusive", f"{trained.n_cluster} similarity clusters, {margins.clusters} are needed")
    if trained.below_floor > margins.below_floor:
        return verdict(
            "inconclusive", f"{trained.below_floor:.0%} of the proteins are below three times the noise floor"
        )
    beyond_margin = high < rule.margin if rule.side < 0 else low > rule.margin
    opposed = low > rule.no_effect if rule.side < 0 else high < rule.no_effect
    word = "below" if rule.side < 0 else "above"
    if opposed:
        other = "above" if rule.side < 0 else "below"
        what = "the value without effect" if rule.against_untrained else "the margin"
        return verdict("fail", f"the interval lies {other} {rule.no_effect:g}, {what}")
    if not beyond_margin:
        return verdict("inconclusive", f"the interval is not wholly {word} the margin {rule.margin:g}")
    if not rule.against_untrained:
        return verdict("pass", f"the interval lies {word} the margin {rule.margin:g}")
    if null.n < margins.null_seeds:
        return verdict(
            "inconclusive", f"{word} the margin, but {null.n} untrained networks to compare with, "
            f"{margins.null_seeds} are needed"
        )  # fmt: skip
    if null.is_beyond(trained, rule):
        return verdict("pass", f"the interval lies {word} the margin {rule.margin:g} and {word} untrained networks")
    return verdict("pass_descriptive", f"{word} the margin {rule.margin:g}, but an untrained network shows it too")


@dataclass(frozen=True, eq=False)
class _Null:
    """What untrained networks give: mean over seeds and the prediction interval of another one, at a level."""

    level: float
    n: int
    mean: float
    low: float
    high: float
    resampled: np.ndarray | None  # (n_boot,) mean over seeds, on the scale of the comparison
    centre: float
    reach: float  # half width of the prediction interval, on the scale of the comparison

    def is_beyond(self, trained: Statistic, rule: Rule) -> bool:
        """Return whether the trained network lies beyond another untrained one, on the claimed side."""
        scale = _scale(rule)
        distance = scale(np.array(trained.value)) - self.centre
        (low,), (high,), (n_defined,) = interval((scale(trained.resampled) - self.resampled)[None], level=self.level)
        if not n_defined:
            return False
        if rule.side < 0:
            return bool(distance + math.hypot(high - distance, self.reach) < 0)
        return bool(distance - math.hypot(distance - low, self.reach) > 0)


def _scale(rule: Rule) -> Callable[[np.ndarray], np.ndarray]:
    if not rule.is_ratio:
        return lambda x: np.asarray(x, np.float64)
    return lambda x: np.log(np.where(np.asarray(x) > 0, x, np.nan))


def _null(untrained: Sequence[Statistic], rule: Rule, level: float = LEVEL) -> _Null:
    scale = _scale(rule)
    kept = [s for s in untrained if np.isfinite(scale(np.array(s.value)))]
    n = len(kept)
    if not n:
        return _Null(level, 0, math.nan, math.nan, math.nan, None, math.nan, math.nan)
    values = scale(np.array([s.value for s in kept]))
    resampled = np.mean([scale(s.resampled) for s in kept], axis=0)
    centre = float(values.mean())
    reach = math.nan
    if n > 1:
        reach = float(stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) * math.sqrt(1 + 1 / n))
    back = math.exp if rule.is_ratio else float
    low, high = (back(centre - reach), back(centre + reach)) if n > 1 else (math.nan, math.nan)
    return _Null(level, n, back(centre), low, high, resampled, centre, reach)


# ----------------------------------------------------------------------------------------------------------------
# The claims


Row = dict[str, object]


def claims_of_model(evidence: Evidence, margins: Margins, *, level: float = LEVEL) -> list[Row]:
    """Return the rows of K1 and K2 of one model, the claims' own rows last within each; ``level`` as in ``judge``."""
    ratio = Rule(-1, margins.late_over_early, 1.0, True)
    locality = Rule(-1, margins.locality, 1.0, True)
    share = Rule(1, margins.kl_share, 0.5, False)
    rows: list[Row] = []
    for claim, deciding, supporting in (
        (
            "K1",
            [("LL/EE", ratio)],
            [
                ("LL/EE attn", ratio),
                ("LL/EE local", ratio),
                ("LL/EE mean ablation", ratio),
                ("LL/EE resample ablation", ratio),
                ("spearman dependence", Rule(-1, 0.0, 0.0, False)),
            ],
        ),
        (
            "K2",
            [("late/early locality", locality), ("late share of KL fall", share)],
            [("late cos_u", Rule(1, 0.0, 0.0, False)), ("late flips", Rule(-1, margins.late_flips, 1.0, False))],
        ),
    ):
        decided = [_row_of(evidence, claim, name, "decides", rule, margins, level) for name, rule in deciding]
        rows += decided
        rows += [
            _row_of(evidence, claim, name, "supports", rule, margins, level)
            for name, rule in supporting
            if name in evidence.trained.statistics
        ]
        verdict, reason = combined([(str(row["statistic"]), str(row["verdict"])) for row in decided])
        if evidence.trained.failed:
            verdict, reason = "inconclusive", "failed check: " + "; ".join(evidence.trained.failed)
        elif len(decided) == 1:
            reason = str(decided[0]["reason"])
        rows.append(_claim_row(claim, evidence.model.model, verdict, reason, decided))
    return rows


def _row_of(
    evidence: Evidence, claim: str, name: str, role: str, rule: Rule, margins: Margins, level: float = LEVEL
) -> Row:
    trained = evidence.trained.statistics.get(name, Statistic(math.nan, np.array([math.nan])))
    untrained = [network.statistics[name] for network in evidence.untrained if name in network.statistics]
    judgement = judge(trained, untrained, rule, margins, level=level)
    if name not in evidence.trained.statistics:
        judgement = replace(judgement, reason="not measured")
    return _row(claim, evidence.model.model, name, role, trained, judgement, rule.margin)


def _row(
    claim: str, scope: str, name: str, role: str, statistic: Statistic, judgement: Judgement, margin: float
) -> Row:
    return {
        "claim": claim,
        "scope": scope,
        "statistic": name,
        "role": role,
        "value": statistic.value,
        "max_value": statistic.max_value,
        "margin": margin,
        "n_seq": statistic.n_seq,
        "n_cluster": statistic.n_cluster,
        **{item.name: getattr(judgement, item.name) for item in fields(judgement)},
    }


def _claim_row(claim: str, scope: str, verdict: str, reason: str, decided: Sequence[Row]) -> Row:
    nothing = Statistic(math.nan, np.array([math.nan]))
    row = _row(claim, scope, CLAIMS[claim], "claim", nothing, Judgement(verdict, reason, math.nan, math.nan), math.nan)
    for name in ("n_seq", "n_cluster"):
        row[name] = min((int(r[name]) for r in decided), default=0)  # type: ignore[call-overload]
    return row


def combined(parts: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Return the verdict of a claim that needs all of its (name, verdict) parts, and the reason."""
    verdicts = [verdict for _, verdict in parts]
    for verdict in ("fail", "inconclusive", "pass_descriptive"):
        if verdict in verdicts:
            return verdict, f"{verdict}: " + ", ".join(name for name, found in parts if found == verdict)
    return "pass", "all of " + ", ".join(name for name, _ in parts)


DEPTH_STATISTICS = ("LL/EE", "depth score influence", "half contrast output", "n80 output")


def claim_of_family(members: Sequence[Evidence], margins: Margins) -> list[Row]:
    """Return the rows of K3 of one family with at least two depths; no rows otherwise.

    The difference is between the deepest and the shallowest model, resample by resample; its null is the same
    difference between untrained networks of the two architectures, seed by seed. Depth is confounded with width,
    parameters and training: a verdict says what goes along with depth, not what depth does.
    """
    members = sorted(members, key=lambda evidence: (evidence.model.n_blocks, evidence.model.model))
    depths = sorted({evidence.model.n_blocks for evidence in members})
    if len(depths) < 2:
        return []
    shallow = [e for e in members if e.model.n_blocks == depths[0]]
    deep = [e for e in members if e.model.n_blocks == depths[-1]]
    family = members[0].model.family
    if len(shallow) > 1 or len(deep) > 1:
        reason = f"several models of {depths[0]} or {depths[-1]} blocks: depth alone does not tell them apart"
        return [_claim_row("K3", family, "inconclusive", reason, [])]
    rule = Rule(-1, 0.0, 0.0, False)
    rows, taus, p_values = [], {}, {}
    for name in DEPTH_STATISTICS:
        one, other = (e.trained.statistics.get(name) for e in (shallow[0], deep[0]))
        if one is None or other is None:
            continue
        difference = _difference(other, one)
        nulls = [
            _difference(d.statistics[name], s.statistics[name])
            for d, s in zip(deep[0].untrained, shallow[0].untrained)
            if name in d.statistics and name in s.statistics
        ]
        judgement = judge(difference, nulls, rule, margins)
        p_values[name] = _p_value(difference.resampled)
        values = [e.trained.statistics[name].value for e in members if name in e.trained.statistics]
        if len(depths) >= 3 and len(values) == len(members):
            taus[name] = float(stats.kendalltau([e.model.n_blocks for e in members], values).statistic)
            judgement = replace(judgement, reason=f"{judgement.reason}; Kendall tau with depth {taus[name]:.2f}")
        rows.append(
            _row("K3", family, f"{name}, {depths[-1]} - {depths[0]} blocks", "decides", difference, judgement, 0.0)
        )
    verdict, reason = _depth_verdict(rows, p_values, taus, len(depths), margins)
    failed = [text for e in (shallow[0], deep[0]) for text in e.trained.failed]
    if failed:
        verdict, reason = "inconclusive", "failed check: " + "; ".join(failed)
    return [*rows, _claim_row("K3", family, verdict, reason, rows)]


def _depth_verdict(
    rows: Sequence[Row], p_values: Mapping[str, float], taus: Mapping[str, float], n_depths: int, margins: Margins
) -> tuple[str, str]:
    adjusted = holm(list(p_values.values()))
    judged = [(row, p) for row, p in zip(rows, adjusted) if row["verdict"] != "inconclusive"]
    smaller = [row for row, p in judged if row["verdict"] in ("pass", "pass_descriptive") and p <= 1 - LEVEL]
    larger = [row for row in rows if row["verdict"] == "fail"]
    count = f"{len(smaller)} of {len(rows)} statistics smaller (Holm), {len(larger)} larger in the deepest model"
    if len(larger) >= 2 and not smaller:
        return "fail", count
    if len(smaller) < 2 or larger:
        return "inconclusive", count
    if n_depths < 3:
        return "pass_descriptive", f"{count}; two depths only"
    falling = [name for name, tau in taus.items() if tau <= margins.tau]
    if len(falling) < 2:
        return "inconclusive", f"{count}; Kendall tau at or below {margins.tau:g} for {len(falling)} of them only"
    if sum(row["verdict"] == "pass" for row in smaller) >= 2:
        return "pass", f"{count}, and more so than between untrained networks"
    return "pass_descriptive", f"{count}, but between untrained networks too"


def _difference(x: Statistic, y: Statistic) -> Statistic:
    return Statistic(
        x.value - y.value,
        x.resampled - y.resampled,
        x.max_value - y.max_value,
        max(x.below_floor, y.below_floor),
        min(x.n_seq, y.n_seq),
        min(x.n_cluster, y.n_cluster),
    )


def _p_value(resampled: np.ndarray) -> float:
    """Return the two-sided bootstrap p-value of a difference from 0."""
    kept = resampled[~np.isnan(resampled)]
    tail = min((kept >= 0).sum(), (kept <= 0).sum())
    return min(1.0, 2 * (tail + 1) / (len(kept) + 1))


# The last rests on skip effects, the others on profiles.
SHIFTS = ("depth score rel_u", "KL depth", f"retention depth at {RETAINED:g}", "depth score influence")


def claim_of_structure(evidence: Evidence, margins: Margins) -> list[Row]:
    """Return the rows of K5 of one model; no rows if it was not measured under seq_struct.

    K1 and K2 are judged under seq_struct as they are under seq. Shifts are seq_struct less seq, on the same proteins,
    masks, read positions and resamples; of the untrained networks seed by seed.
    """
    shown = evidence.with_structure
    if shown is None:
        return []
    name = evidence.model.model
    rows = []
    for row in claims_of_model(shown, margins):
        if row["role"] != "claim":
            row |= {"claim": "K5", "statistic": f"{row['claim']}, with structure: {row['statistic']}"}
            if math.isnan(row["value"]) and not row["n_seq"]:
                row["reason"] = "not measured with structure"
            rows.append(row)
    for statistic in SHIFTS:
        one, other = (e.trained.statistics.get(statistic) for e in (evidence, shown))
        if one is None or other is None:
            continue
        nulls = [
            _difference(b.statistics[statistic], a.statistics[statistic])
            for a, b in zip(evidence.untrained, shown.untrained)
            if statistic in a.statistics and statistic in b.statistics
        ]
        shift = _difference(other, one)
        judgement = judge_shift(shift, nulls, margins)
        rows.append(_row("K5", name, f"shift of {statistic}", "decides", shift, judgement, margins.shift))
    decided = [row for row in rows if row["role"] == "decides"]
    verdict, reason = combined([(str(row["statistic"]), str(row["verdict"])) for row in decided])
    failed = [*evidence.trained.failed, *shown.trained.failed]
    if failed:
        verdict, reason = "inconclusive", "failed check: " + "; ".join(failed)
    return [*rows, _claim_row("K5", name, verdict, reason, decided)]


CONCENTRATION = ("n80 removal loss", "n80 gate attribution")  # each decides where it was measured


def claim_of_concentration(evidence: Evidence, margins: Margins) -> list[Row]:
    """Return the rows of K6 of one model; no rows if it was not ablated.

    What is said of the other blocks is judged by the margins alone: an untrained network has nothing to lose.
    """
    if CONCENTRATION[0] not in evidence.trained.statistics:
        return []
    bound, removable = margins.concentration, margins.removable
    few = Rule(-1, bound + HAIR, max(UNIFORM_SHARE, bound) - HAIR, False)
    judged_by = [(name, few, bound) for name in CONCENTRATION if name in evidence.trained.statistics]
    for name, bound in (("rest median loss", margins.rest_loss), ("rest median flips", margins.rest_flips)):
        judged_by.append((name, Rule(-1, bound + HAIR, bound + HAIR, False, against_untrained=False), bound))
    together = Rule(1, removable - HAIR, removable - HAIR, False, against_untrained=False)
    judged_by.append((f"removable fraction at {RETAINED:g}", together, removable))
    rows = []
    for name, rule, margin in judged_by:
        row = _row_of(evidence, "K6", name, "decides", rule, margins) | {"margin": margin}
        rows.append(row)
    verdict, reason = combined([(str(row["statistic"]), str(row["verdict"])) for row in rows])
    if evidence.trained.failed:
        verdict, reason = "inconclusive", "failed check: " + "; ".join(evidence.trained.failed)
    return [*rows, _claim_row("K6", evidence.model.model, verdict, reason, rows)]


def judge_shift(shift: Statistic, untrained: Sequence[Statistic], margins: Margins) -> Judgement:
    """Return the verdict on a shift between two conditions: pass if it is none, fail if it is one."""
    (low,), (high,), (n_defined,) = interval(shift.resampled[None])
    null = _null(untrained, Rule(1, 0.0, 0.0, False))
    shown = dict(ci_lo=low, ci_hi=high, null_value=null.mean, null_lo=null.low, null_hi=null.high)
    direction = "deeper" if low > 0 else "shallower" if high < 0 else None
    if math.isnan(shift.value) or n_defined < len(shift.resampled) * LEVEL:
        verdict, reason = "inconclusive", "the statistic is undefined"
    elif shift.n_cluster < margins.clusters:
        verdict = "inconclusive"
        reason = f"{shift.n_cluster} similarity clusters, {margins.clusters} are needed"
    elif shift.below_floor > margins.below_floor:
        verdict = "inconclusive"
        reason = f"{shift.below_floor:.0%} of the proteins are below three times the noise floor"
    elif -margins.shift < low and high < margins.shift:
        verdict, reason = "pass", f"unchanged: the interval lies inside +-{margins.shift:g}"
    elif low > margins.shift or high < -margins.shift:
        verdict, reason = "fail", f"{direction} with the structure: the interval lies outside +-{margins.shift:g}"
    else:
        verdict = "inconclusive"
        reason = f"{direction or 'no direction'}; the interval is neither inside nor outside +-{margins.shift:g}"
    return Judgement(verdict, reason, **shown)


def claim_of_all(members: Sequence[Evidence], margins: Margins) -> list[Row]:
    """Return the rows of K4: one a family, one for all.

    A family fails if one of its models fails K1 or K2, and passes if one passes both; all objectives must have a family
    that passes, and none may fail (intersection-union: no correction for many objectives). That any of the m models of
    an objective passes is judged at level 1 - 0.05 / m (Holm).
    """
    rows, of_family = [], {}
    n_of = Counter(one.model.objective for one in members)
    families = sorted({(one.model.family, one.model.objective) for one in members})
    for family, objective in families:
        level = 1 - (1 - LEVEL) / n_of[objective]
        own = {one.model.model: one for one in members if one.model.family == family}
        failing = [name for name, one in own.items() if "fail" in _both_claims(one, margins, LEVEL)]
        if failing:
            of_family[family] = "fail", f"fails: {', '.join(failing)}"
        else:
            both = {
                name: combined(list(zip(("K1", "K2"), _both_claims(one, margins, level))))[0]
                for name, one in own.items()
            }
            best = next((v for v in ("pass", "pass_descriptive") if v in both.values()), "inconclusive")
            names = ", ".join(name for name, found in both.items() if found == best)
            of_family[family] = best, f"{best} at level {level:.2%}: {names}"
        rows.append(_claim_row("K4", family, of_family[family][0], f"{objective}; {of_family[family][1]}", []))
    objectives = sorted(n_of)
    failing = [family for family, _ in families if of_family[family][0] == "fail"]
    best = {
        objective: {of_family[family][0] for family, own in families if own == objective} for objective in objectives
    }
    if failing:
        verdict, reason = "fail", f"families that fail: {', '.join(failing)}"
    elif len(objectives) < 2:
        verdict, reason = "inconclusive", f"one objective only ({', '.join(objectives)})"
    elif all("pass" in found for found in best.values()):
        verdict, reason = "pass", f"a family passes for each of {', '.join(objectives)}"
    elif all(found & {"pass", "pass_descriptive"} for found in best.values()):
        verdict, reason = "pass_descriptive", f"a family for each of {', '.join(objectives)}, untrained networks too"
    else:
        lacking = [o for o, found in best.items() if not found & {"pass", "pass_descriptive"}]
        verdict, reason = "inconclusive", f"no family passes for {', '.join(lacking)}"
    return [*rows, _claim_row("K4", "all", verdict, reason, [])]


def _both_claims(evidence: Evidence, margins: Margins, level: float) -> tuple[str, str]:
    """Return the verdicts on K1 and K2 of one model."""
    rows = claims_of_model(evidence, margins, level=level)
    found = {row["claim"]: str(row["verdict"]) for row in rows if row["role"] == "claim"}
    return found["K1"], found["K2"]


# ----------------------------------------------------------------------------------------------------------------
# Reading


def evidence_of(
    model: Model,
    effects: Sequence[Path],
    outputs: Sequence[Path],
    lens: Sequence[Path],
    contributions: Sequence[Path],
    bootstrap: Bootstrap,
    grid: Sequence[float] = DIFFUSION_GRID,
    effect_grid: Sequence[float] | None = None,
    *,
    ablation: Sequence[Path] = (),
    ablation_grid: Sequence[float] | None = None,
    attribution: Sequence[Path] = (),
    attribution_grid: Sequence[float] | None = None,
) -> Evidence:
    """Return the statistics of one model and of its untrained networks from the per-protein tables.

    Under condition seq, and where there are profiles under seq_struct, under that too (``Evidence.with_structure``).

    Args:
        grid: noise levels that are averaged for diffusion models, in the lens and the contributions.
        effect_grid: the same in the skip effects, if they were measured at other levels.
        ablation, ablation_grid: ABLATE_SEQ tables, and the levels of those, for K6 and the late flips beside K2, which
            they tell where there are some (else the skip effects at all tokens); condition seq only.
        attribution, attribution_grid: the same with ATTR_SEQ tables.
    Raises:
        TableError: damaged or mixed tables, or a table that lacks the primary input.
    """
    found: dict[_Measured, dict[str, Statistic]] = {}
    failed: dict[_Measured, list[str]] = {}
    subset = PRIMARY_POSITIONS[model.objective]
    skipped = grid if effect_grid is None else effect_grid

    def wants_effect(key: Mapping[str, object]) -> bool:
        return tuple(key.values()) in _kinds_of_effect(subset) or tuple(key.values()) == ("layer", "all", False, "zero")

    def wants_output(key: Mapping[str, object]) -> bool:
        is_plain = (key["part"], key["ablation"], key["vocab"]) == ("layer", "zero", "aa20")
        return is_plain and (key["pos_set"], key["quantity"]) in ((subset, "l2"), ("all", "l2"), ("tokens", "flip1"))

    readers = (
        (effects, SKIP_SEQ, lambda v, p: effects_of(v, p, bootstrap, wanted=wants_effect), _effect_statistics),
        (outputs, SKIP_OUT_SEQ, lambda v, p: outputs_of(v, p, bootstrap, wanted=wants_output), _output_statistics),
    )
    for paths, schema, read, compute in readers:
        views = views_in(paths, schema)
        _check_model(model, views[0][0], paths)
        levels = sorted({float(view["noise_t"]) for view, _ in views})
        views = [(view, parts) for view, parts in views if _is_needed(view, model.objective, levels, skipped)]
        for view, sweeps in with_noise_mean(views, read, skipped):
            if _is_primary(view, model.objective, levels):
                measured = _measured_in(view)
                statistics, problems = compute(sweeps, subset, bootstrap)
                found.setdefault(measured, {}).update(statistics)
                failed.setdefault(measured, []).extend(problems)
    for table, paths in (("lens", lens), ("contributions", contributions)):
        profiles = _profiles(paths, table, model, bootstrap, grid)
        for measured, profile in profiles.items():
            # Without structure claims rest on effects; with it they may have been measured by profiles alone.
            if measured in found or measured[0] == WITH_STRUCTURE:
                compute = _lens_statistics if table == "lens" else _contribution_statistics
                found.setdefault(measured, {}).update(compute(profile, model, bootstrap))

    if ablation:
        views = views_in(ablation, ABLATE_SEQ)
        _check_model(model, views[0][0], ablation)
        levels = sorted({float(view["noise_t"]) for view, _ in views})
        levels_averaged = grid if ablation_grid is None else ablation_grid
        views = [(v, p) for v, p in views if v["condition"] == "seq"]
        views = [(v, p) for v, p in views if _is_needed(v, model.objective, levels, levels_averaged)]
        read = functools.partial(
            ablations_of, bootstrap=bootstrap, ops=("full", "background", "remove", "remove_block")
        )
        for view, measured in with_noise_mean(views, read, levels_averaged):
            if _is_primary(view, model.objective, levels):
                profiles = Profiles(with_changes(measured), model.n_blocks, bootstrap)
                found.setdefault(_measured_in(view), {}).update(_ablation_statistics(profiles))

    if attribution:
        levels_averaged = grid if attribution_grid is None else attribution_grid
        for measured, statistic in _gate_statistics(attribution, model, bootstrap, levels_averaged).items():
            found.setdefault(measured, {})["n80 gate attribution"] = statistic

    def evidence_under(condition: str, with_structure: Evidence | None = None) -> Evidence | None:
        networks = {
            key[1:]: Network(statistics, tuple(failed.get(key, ())))
            for key, statistics in found.items()
            if key[0] == condition
        }
        untrained = tuple(networks[key] for key in sorted(networks) if key[0] == UNTRAINED)
        trained = networks.get(("trained", -1))
        return None if trained is None else Evidence(model, trained, untrained, with_structure)

    evidence = evidence_under("seq", evidence_under(WITH_STRUCTURE))
    if evidence is None:
        raise TableError(f"the tables of {model.model} hold no trained network at the primary input")
    return evidence


_Measured = tuple[str, str, int]  # condition, null model, its seed


def _measured_in(view: Mapping[str, object]) -> _Measured:
    return str(view["condition"]), str(view["null_model"]), int(view["null_seed"])  # type: ignore[call-overload]


def _check_model(model: Model, view: Mapping[str, object], paths: Sequence[Path]) -> None:
    for name in ("family", "objective", "n_blocks"):
        if view[name] != getattr(model, name):
            raise TableError(
                f"{paths[0]}: {name} of {model.model} is {view[name]}, but --models says {getattr(model, name)}"
            )


def _is_needed(view: Mapping[str, object], objective: str, levels: Sequence[float], grid: Sequence[float]) -> bool:
    if view["null_model"] not in ("trained", UNTRAINED) or view["readout"] != "seq":
        return False
    if view["condition"] not in ("seq", WITH_STRUCTURE):
        return False
    if objective == "diffusion":
        return np.float32(view["noise_t"]) in {np.float32(t) for t in grid}
    return _is_primary(view, objective, levels)


def _is_primary(view: Mapping[str, object], objective: str, levels: Sequence[float]) -> bool:
    if objective == "ar":
        return view["direction"] == "n2c"
    if objective == "diffusion":
        return view["noise_t"] == MEAN_OVER_NOISE
    hidden = [t for t in levels if t > 0]
    return bool(hidden) and view["noise_t"] == min(hidden, key=lambda t: abs(t - PRIMARY_NOISE))


def _kinds_of_effect(subset: str) -> dict[tuple, str]:
    """Return the sweeps whose LL/EE is taken, by their ``SWEPT`` columns, and what it is called."""
    return {
        ("layer", subset, False, "zero"): "LL/EE",
        ("attn", subset, False, "zero"): "LL/EE attn",
        ("layer", subset, True, "zero"): "LL/EE local",
        ("layer", subset, False, "mean"): "LL/EE mean ablation",
        ("layer", subset, False, "resample"): "LL/EE resample ablation",
    }


def _effect_statistics(sweeps: Sweeps, subset: str, bootstrap: Bootstrap) -> tuple[dict[str, Statistic], list[str]]:
    """Return LL/EE of each kind of sweep, the trend of the dependence and the depth score of the influence."""
    found, problems = {}, []
    for key, name in _kinds_of_effect(subset).items():
        if key not in sweeps:
            continue
        measured = sweeps[key]
        point, resampled = matrix_of(measured, "mean", bootstrap)
        largest, _ = matrix_of(measured, "max", bootstrap)
        n = len(point)
        later = np.triu(np.full((n, n), True), 1)
        values = measured.values["mean"][later]
        defined = ~np.isnan(values)
        about = _about(defined, measured.below_floor[later], bootstrap)

        def statistic(reduce: Callable[[np.ndarray], np.ndarray], about=about, point=point, resampled=resampled,
                      largest=largest) -> Statistic:  # fmt: skip
            return Statistic(float(reduce(point)), reduce(resampled), float(reduce(largest)), **about)

        found[name] = statistic(lambda matrix: halves(matrix)["LL/EE"])
        if name == "LL/EE":
            found["spearman dependence"] = statistic(lambda matrix: _spearman(dependence(matrix)[..., 1:]))
            found["depth score influence"] = statistic(influence_depth)
            if np.nanmax(np.abs(np.diagonal(point)), initial=0.0) > EXACT:
                problems.append("a block skipped elsewhere changes its own update")
    key = ("layer", "all", False, "zero")
    if key in sweeps:
        diagonal = np.diagonal(matrix_of(sweeps[key], "mean", bootstrap)[0])
        if np.nanmax(np.abs(diagonal - 1), initial=0.0) > EXACT:
            problems.append("a block skipped everywhere keeps part of its own update")
    return found, problems


def _spearman(values: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of (..., n) with 1..n; NaN with fewer than three values."""
    n = values.shape[-1]
    if n < 3:
        return np.full(values.shape[:-1], np.nan)
    ranks = stats.rankdata(values, axis=-1)
    ranks, place = ranks - ranks.mean(-1, keepdims=True), np.arange(n) - (n - 1) / 2
    return divided((ranks * place).sum(-1), np.sqrt(np.square(ranks).sum(-1) * np.square(place).sum()))


def _output_statistics(sweeps: Sweeps, subset: str, bootstrap: Bootstrap) -> tuple[dict[str, Statistic], list[str]]:
    """Return late over early locality, and contrast, n80 and late flips of the output change."""
    found, problems = {}, []

    def key(pos_set: str, quantity: str) -> tuple:
        named = {"part": "layer", "pos_set": pos_set, "local": False, "ablation": "zero", "vocab": "aa20"}
        named["quantity"] = quantity
        return tuple(named[name] for name in (*SWEPT, *READ))

    everywhere, elsewhere = sweeps.get(key("all", "l2")), sweeps.get(key(subset, "l2"))
    if everywhere is not None:
        point, resampled = bootstrap.means(everywhere.values["mean"])
        largest = np.fmax.reduce(everywhere.values["max"], axis=-1)
        about = _about(~np.isnan(everywhere.values["mean"]), everywhere.below_floor, bootstrap)
        for name, reduce in (("half contrast output", half_contrast), ("n80 output", n80)):
            found[name] = Statistic(float(reduce(point)), reduce(resampled.T), float(reduce(largest)), **about)
    if everywhere is not None and elsewhere is not None:
        part, part_resampled = bootstrap.means(elsewhere.values["mean"])
        locality, resampled_locality = divided(part, point), divided(part_resampled, resampled)
        maxima = divided(np.fmax.reduce(elsewhere.values["max"], axis=-1), largest)
        # The last block is out of the statistic: its locality is zero by construction.
        about = _about(
            ~np.isnan(elsewhere.values["mean"])[:-1],
            np.maximum(elsewhere.below_floor, everywhere.below_floor)[:-1],
            bootstrap,
        )
        found["late/early locality"] = Statistic(
            float(late_over_early(locality)),
            late_over_early(resampled_locality.T),
            float(late_over_early(maxima)),
            **about,
        )
        last = elsewhere.below_floor[-1]
        if part[-1] > EXACT and not np.nanmin(last, initial=1.0):
            problems.append("the last block changes the output at other positions")
    flips = sweeps.get(key("tokens", "flip1"))
    if flips is not None:
        found["late flips"] = _late_flips(flips.values["mean"], bootstrap)
    return found, problems


def _late_flips(flips: np.ndarray, bootstrap: Bootstrap) -> Statistic:
    """Return the median over the late half of the share of predictions that change without a block, from (n, n_seq)."""
    half = max(1, len(flips) // 2)
    point, resampled = bootstrap.means(flips)
    about = _about(~np.isnan(flips[-half:]), np.zeros(flips[-half:].shape), bootstrap)
    return Statistic(float(np.median(point[-half:])), np.median(resampled[-half:], axis=0), **about)


def _about(defined: np.ndarray, below: np.ndarray, bootstrap: Bootstrap) -> dict[str, object]:
    """Return below_floor, n_seq and n_cluster of values (n_statistics, n_sequences)."""
    anywhere = defined.any(0)
    flagged = np.where(defined, below, np.nan)
    share = float(np.nanmean(flagged)) if defined.any() else 0.0
    return {"below_floor": share, "n_seq": int(anywhere.sum()), "n_cluster": int(bootstrap.clusters_of(anywhere))}


def _ablation_statistics(profiles: Profiles) -> dict[str, Statistic]:
    """Return what K6, and K2 of late blocks, needs of one network; what was not measured is not there."""
    bootstrap, found = profiles.bootstrap, {}

    def statistic(reduce: Callable[..., np.ndarray], *inputs: np.ndarray) -> Statistic:
        """``reduce`` takes a profile (..., n) for each of the inputs (n, n_sequences)."""
        both = [bootstrap.means(values) for values in inputs]
        (value,), resampled = reduce(*(point[None] for point, _ in both)), reduce(*(r.T for _, r in both))
        stacked = np.concatenate(inputs)
        return Statistic(float(value), resampled, **_about(~np.isnan(stacked), np.zeros(stacked.shape), bootstrap))

    loss, flips = profiles.singles("dnll"), profiles.singles("flip1")
    if flips is not None:
        found["late flips"] = _late_flips(flips, bootstrap)
    if loss is not None and flips is not None:

        def growth(x: np.ndarray) -> np.ndarray:
            return np.maximum(x, 0)

        found["n80 removal loss"] = statistic(lambda x: n80(growth(x)), loss)
        found["rest median loss"] = statistic(lambda x: median_of_rest(x, growth(x)), loss)
        found["rest median flips"] = statistic(lambda x, y: median_of_rest(y, growth(x)), loss, flips)
    spans, lengths = profiles.removals("angular", "nll"), profiles.lengths("angular")
    full, background = profiles.one("full", "nll"), profiles.one("background", "nll")
    if spans and full is not None and background is not None:

        def removable(x: np.ndarray, whole: np.ndarray, floor: np.ndarray) -> np.ndarray:
            return removable_fraction(-x, lengths, -whole[..., 0], -floor[..., 0], RETAINED, profiles.n_blocks)

        found[f"removable fraction at {RETAINED:g}"] = statistic(removable, np.concatenate(spans), full, background)
    return found


def _gate_statistics(
    paths: Sequence[Path], model: Model, bootstrap: Bootstrap, grid: Sequence[float]
) -> dict[_Measured, Statistic]:
    """Return n80 of the attributions of gates (their magnitude, target logp over the 20 canonical residues)."""
    rows = read_attributions(paths, ATTR_SEQ, ("object", "target", "vocab", "layer")).filter(
        (pl.col("object") == "gate") & (pl.col("target") == "logp") & (pl.col("vocab") == "aa20")
        & pl.col("null_model").is_in(["trained", UNTRAINED]) & (pl.col("condition") == "seq")
    )  # fmt: skip
    if rows.is_empty():
        return {}
    values = over_draws_and_noise(attribution_values(rows), grid).filter(pl.col("quantity") == "magnitude")
    levels = sorted(set(rows["noise_t"].cast(pl.Float64).to_list()))
    found = {}
    for (null, seed, direction, noise), own in values.group_by("null_model", "null_seed", "direction", "noise_t"):
        view = {"direction": direction, "noise_t": noise, "condition": "seq", "null_model": null, "null_seed": seed}
        if not _is_primary(view, model.objective, levels):
            continue
        profile = np.full((model.n_blocks, len(bootstrap.sequence_ids)), np.nan)
        profile[own["layer"].to_numpy() - 1, bootstrap.index(own["sequence_id"].to_list())] = own["value"].to_numpy()
        point, resampled = bootstrap.means(profile)
        about = _about(~np.isnan(profile), np.zeros(profile.shape), bootstrap)
        found[_measured_in(view)] = Statistic(float(n80(point)), n80(resampled.T), **about)
    return found


WANTED = {"lens": (("kl_lf", "nll"), "logit", "aa20"), "contributions": (("cos_u", "rel_u"), "residue", "none")}


def _profiles(
    paths: Sequence[Path], table: str, model: Model, bootstrap: Bootstrap, grid: Sequence[float]
) -> dict[_Measured, dict[str, dict[int, np.ndarray]]]:
    """Return per network, quantity and layer the per-protein values (n_sequences,) at the primary input."""
    quantities, pos_class, vocab = WANTED[table]
    found: dict[_Measured, dict[str, dict[int, np.ndarray]]] = {}
    levels: set[float] = set()
    parts = []
    for part in parts_of(paths, table=table, bootstrap=bootstrap):
        levels |= set(part.keys["noise_t"].astype(float).tolist())
        keys = part.keys
        kept = part.take(
            np.isin(keys["quantity"], quantities) & (keys["pos_class"] == pos_class) & (keys["vocab"] == vocab)
            & np.isin(keys["null_model"], ["trained", UNTRAINED])
            & np.isin(keys["condition"], ["seq", WITH_STRUCTURE])
        )  # fmt: skip
        if len(kept):
            parts.append(kept)
    for part in parts:
        averaged = over_noise(part, grid) if model.objective == "diffusion" else None
        keys, values = (part.keys, part.mean) if averaged is None else (averaged.keys, averaged.mean.mean(0))
        for k in range(len(keys["layer"])):
            view = {name: keys[name][k].item() for name in ("direction", "noise_t")}
            if _is_primary(view, model.objective, sorted(levels)):
                measured = _measured_in({name: column[k] for name, column in keys.items()})
                by_layer = found.setdefault(measured, {}).setdefault(str(keys["quantity"][k]), {})
                by_layer[int(keys["layer"][k])] = values[k]
    return found


def _lens_statistics(
    profiles: Mapping[str, Mapping[int, np.ndarray]], model: Model, bootstrap: Bootstrap
) -> dict[str, Statistic]:
    layers, found = range(model.n_blocks + 1), {}
    halved = functools.partial(kl_depth, fraction=0.5, reference="kl_0")
    for quantity, reductions in (
        ("kl_lf", {"late share of KL fall": kl_share, "KL depth": halved}),
        ("nll", {f"retention depth at {RETAINED:g}": retention_of_exit}),
    ):
        profile = profiles.get(quantity, {})
        if sorted(profile) != list(layers):
            raise TableError(f"lens {quantity} of {model.model}: layers {sorted(profile)}, expected {layers}")
        values = np.stack([profile[layer] for layer in layers])
        point, resampled = bootstrap.means(values)
        about = _about(~np.isnan(values), np.zeros(values.shape), bootstrap)
        for name, reduce in reductions.items():
            found[name] = Statistic(float(reduce(point)), reduce(resampled.T), **about)
    return found


def _contribution_statistics(
    profiles: Mapping[str, Mapping[int, np.ndarray]], model: Model, bootstrap: Bootstrap
) -> dict[str, Statistic]:
    blocks = range(1, model.n_blocks + 1)
    late = range(model.n_blocks - model.n_blocks // 2 + 1, model.n_blocks + 1)
    found = {}
    for name, quantity, needed, reduce in (
        ("late cos_u", "cos_u", late, lambda profile: profile.mean(-1)),
        ("depth score rel_u", "rel_u", blocks, depth_score),
    ):
        profile = profiles.get(quantity, {})
        if not set(needed) <= set(profile):
            raise TableError(f"{quantity} of {model.model}: layers {sorted(profile)}, expected 1..{model.n_blocks}")
        values = np.stack([profile[layer] for layer in needed])
        point, resampled = bootstrap.means(values)
        about = _about(~np.isnan(values), np.zeros(values.shape), bootstrap)
        found[name] = Statistic(float(reduce(point)), reduce(resampled.T), **about)
    return found


def models_of(given: object) -> list[Model]:
    """Return the models of a parsed ``--models`` list of objects with model, family, objective and n_blocks.

    Raises:
        ValueError: not such a list, or a model listed twice.
    """
    if not isinstance(given, list) or not given:
        raise ValueError(f"--models: expected a list of at least one model, got {given!r}")
    models = []
    for number, row in enumerate(given, start=1):
        try:
            models.append(Model(str(row["model"]), str(row["family"]), str(row["objective"]), int(row["n_blocks"])))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"--models, entry {number}: expected model, family, objective and n_blocks, got {row!r} ({error!r})"
            ) from None
    names = [model.model for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"--models: a model is listed twice among {', '.join(names)}")
    return models


def by_model(paths: Iterable[str | Path], schema: pa.Schema, *, may_be_empty: bool = False) -> dict[str, list[Path]]:
    """Return the tables of each model; a table holds one model.

    A lens may be without rows, in a model whose tokens are no residues: its metadata then say whose it is.

    Args:
        may_be_empty: whether tables without rows are left out.

    Raises:
        TableError: another table without rows.
    """
    found: dict[str, list[Path]] = {}
    for path in map(Path, paths):
        for rows in iterate_table(path, schema, columns=["model_id"]):
            if rows.num_rows:
                found.setdefault(rows.column("model_id")[0].as_py(), []).append(path)
                break
        else:
            model = read_metadata(path).get("model_id") if schema is LENS_SEQ else None
            if model is not None:
                found.setdefault(model, []).append(path)
            elif not may_be_empty:
                raise TableError(f"{path}: no rows; delete it and run the stage that writes it again")
    return found


def verdicts(
    effects: Sequence[str | Path],
    outputs: Sequence[str | Path],
    lens: Sequence[str | Path],
    contributions: Sequence[str | Path],
    clusters: str | Path,
    output: str | Path,
    *,
    models: Sequence[Model],
    margins: Margins | None = None,
    grid: Sequence[float] = DIFFUSION_GRID,
    effect_grid: Sequence[float] | None = None,
    ablation: Sequence[str | Path] = (),
    ablation_grid: Sequence[float] | None = None,
    attribution: Sequence[str | Path] = (),
    attribution_grid: Sequence[float] | None = None,
    n_boot: int = 2000,
    seed: int = 1,
) -> int:
    """Write the VERDICT table of a study from the per-protein tables of all models; return its number of rows.

    Args:
        ablation, attribution: ABLATE_SEQ and ATTR_SEQ tables of the models that have some; without rows left out.
    Raises:
        TableError: damaged tables, a model without tables, tables of a model that is not listed.
    """
    margins = margins or Margins()
    bootstrap = Bootstrap.of(read_clusters(clusters), n_boot=n_boot, seed=seed)
    tables = {
        "--skip-seq": by_model(effects, SKIP_SEQ),
        "--out-seq": by_model(outputs, SKIP_OUT_SEQ),
        "--lens": by_model(lens, LENS_SEQ),
        "--contributions": by_model(contributions, CONTRIB_SEQ),
    }
    names = {model.model for model in models}
    for option, found in tables.items():
        if set(found) != names:
            raise TableError(
                f"{option} holds tables of {', '.join(sorted(found))}, but --models lists {', '.join(sorted(names))}"
            )
    optional = {
        "ablation": by_model(ablation, ABLATE_SEQ, may_be_empty=True),
        "attribution": by_model(attribution, ATTR_SEQ, may_be_empty=True),
    }
    for option, found in optional.items():
        if not set(found) <= names:
            raise TableError(
                f"--{option} holds tables of {', '.join(sorted(found))}, but --models lists {', '.join(sorted(names))}"
            )
    LOG.info(f"{len(models)} models, {bootstrap.n_clusters} clusters; margins {margins}")
    progress = Progress(LOG, len(models), "models")
    evidence = []
    for model in models:
        paths = [found[model.model] for found in tables.values()]
        more = {option: found.get(model.model, ()) for option, found in optional.items()}
        more |= {"ablation_grid": ablation_grid, "attribution_grid": attribution_grid}
        evidence.append(evidence_of(model, *paths, bootstrap, grid, effect_grid, **more))
        progress.advance()
    progress.finish()
    rows = judged(evidence, margins)
    for row in rows:
        if row["role"] == "claim":
            LOG.info(f"{row['claim']} {row['scope']}: {row['verdict']} ({row['reason']})")
    columns = {name: [row[name] for row in rows] for name in VERDICT.names}
    return write_table(columns, VERDICT, output, seed=str(seed), resamples=str(n_boot))


def judged(evidence: Sequence[Evidence], margins: Margins) -> list[Row]:
    """Return all rows of a study: K1 and K2 by model, K3 by family, K4 by family and for all, K5 and K6 by model."""
    rows = [row for one in evidence for row in claims_of_model(one, margins)]
    families = list(dict.fromkeys(one.model.family for one in evidence))
    for family in families:
        rows += claim_of_family([one for one in evidence if one.model.family == family], margins)
    rows += claim_of_all(evidence, margins)
    rows += [row for one in evidence for row in claim_of_structure(one, margins)]
    return rows + [row for one in evidence for row in claim_of_concentration(one, margins)]


def _json_option(text: str) -> object:
    """Return parsed JSON, given as text or as the name of a file."""
    try:
        return json_text.parse(Path(text).read_text(encoding="utf-8") if text.endswith(".json") else text)
    except (OSError, json.JSONDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{json_text.shown(text)} is neither JSON nor a JSON file: {error}") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.metrics.verdicts", description=__doc__.split("\n")[0])
    parser.add_argument("--skip-seq", nargs="+", required=True, help="SKIP_SEQ tables of all models and variants")
    parser.add_argument("--out-seq", nargs="+", required=True, help="SKIP_OUT_SEQ tables of the same")
    parser.add_argument("--lens", nargs="+", required=True, help="LENS_SEQ tables of the same")
    parser.add_argument("--contributions", nargs="+", required=True, help="CONTRIB_SEQ tables of the same")
    parser.add_argument("--ablation", nargs="*", default=[], help="ABLATE_SEQ tables of the models that were ablated")
    parser.add_argument("--attribution", nargs="*", default=[], help="ATTR_SEQ tables of the models that have some")
    add_resampling_options(parser)
    parser.add_argument("--margins", type=_json_option, default={}, help="JSON object or file; see Margins")
    parser.add_argument("--models", type=_json_option, required=True, help="JSON list or file of the models")
    parser.add_argument("--effect-grid", type=numbers_option, help="the same of the skip effects, if others")
    parser.add_argument("--ablation-grid", type=numbers_option, help="the same of the ablations, if others")
    parser.add_argument("--attribution-grid", type=numbers_option, help="the same of the attributions, if others")
    parser.add_argument("--output", required=True, help="the VERDICT table")
    options = parser.parse_args(argv)
    with stage_log(LOG.name, TableError, ValueError):
        verdicts(
            options.skip_seq,
            options.out_seq,
            options.lens,
            options.contributions,
            options.clusters,
            options.output,
            models=models_of(options.models),
            margins=Margins.of(options.margins),
            effect_grid=options.effect_grid,
            ablation=options.ablation,
            ablation_grid=options.ablation_grid,
            attribution=options.attribution,
            attribution_grid=options.attribution_grid,
            **resampling_of(options),
        )


if __name__ == "__main__":
    main()
