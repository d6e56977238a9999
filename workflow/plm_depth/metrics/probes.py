"""Linear probes of every layer: what can be read of structure and kin, how deep, and how much is the model's own.

    python -m plm_depth.metrics.probes --stream P --annotations P --clusters P [--backbone P] [--attention P]
        --settings JSON --resamples N --seed N --probe P --probes P

Reads the stream of one model (``activations.embed``): residues of the chains, means of the members of families. The
protocol is that of ``metrics.probing``. Tasks: those of ``metrics.residue_tasks``; ``contacts`` by a logistic probe of
residue pairs (products and absolute differences of 64 principal components), and by one of the attention maps of each
block alone, where they are at hand (``layer`` is then the block); ``homology`` by cosine retrieval and by a
logistic probe that is tested on parts of a group that it did not see.

Folds keep together the chains of one similarity cluster and of one group (superfamily) where it is known; in homology
they keep together what shares a part or a similarity cluster. What would rest on too few clusters or residues is not
scored: the table says so (stat ``undefined``). Of an autoregressive model each direction is read, and both side by
side. A model whose tokens hold several residues has homology only.

Settings (JSON): tasks, folds, residues (rows a chain), contact_chains, pairs (training pairs of a chain, contacts and
others each), capacity, spaces (pca, full), penalties, controls, directions, tolerance, retention.
"""

import argparse
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from plm_depth.metrics.bootstrap import Bootstrap, BootstrapError, interval
from plm_depth.metrics.corpus import read_clusters
from plm_depth.metrics.probe_curves import (
    LOG,
    Curve,
    ResiduePlan,
    Settings,
    Undefined,
    attention_curves,
    contact_curves,
    fold_of_chains,
    homology_curves,
    pair_plan,
    residue_curves,
)
from plm_depth.metrics.probing import Notes, ProbeError, Score, best_layer, plateau, retention_depth, shallowest
from plm_depth.metrics.profile import sorted_rows
from plm_depth.metrics.residue_tasks import SS3, TASKS, read_chains, rows_of
from plm_depth.metrics.stream import AttentionMaps, Stream
from plm_depth.progress import Progress, stage_log
from plm_depth.tables import ANNOTATIONS, COMMON, PROBE, PROBE_KEYS, PROBES, TableError, read_table, write_table

# ----------------------------------------------------------------------------------------------------------------
# Rows of the tables


def fold_rows(curve: Curve) -> Iterator[dict[str, object]]:
    """Yield the PROBE rows of a curve."""
    for metric in curve.metrics:
        for fold in range(len(curve.n_train)):
            rows = curve.rows[curve.fold[curve.rows] == fold]
            value = curve.score(metric, curve.test, rows=rows, resample=False).value
            for number, layer in enumerate(curve.layers):
                yield {
                    **curve.columns,
                    "metric": metric,
                    "layer": layer,
                    "dim": int(curve.dim[number][fold]),
                    "fold": fold,
                    "value": float(value[number]),
                    "n_train": int(curve.n_train[fold]),
                    "n_test": len(rows),
                    "lambda": float(curve.penalty[number][fold]),
                }


def summary_rows(curves: Sequence[Curve], settings: Settings) -> list[dict[str, object]]:
    """Return the PROBES rows of all curves."""
    found: list[dict[str, object]] = []
    by_key: dict[tuple, dict[str, list[tuple[Curve, Score]]]] = {}
    for curve in curves:
        for metric in curve.metrics:
            test = curve.score(metric, curve.test)
            found += _rows_of(curve, metric, test, settings)
            group = by_key.setdefault(_question(curve, metric), {})
            group.setdefault(str(curve.columns["control"]), []).append((curve, test))
    for curve in curves:
        if curve.asked is not None:
            share = len(curve.asked) / len(curve.owner)
            found.append(_row(curve, curve.metrics[0], "seen_share", share, np.full(1, np.nan), math.nan))
    for key, group in by_key.items():
        one_hot = by_key.get(_one_hot(key), {}).get("onehot", [])
        for curve, whole in group.get("none", []):
            for stat, others in (
                ("selectivity", group.get("kmer", [])),
                ("over_untrained", group.get("untrained", [])),
                ("over_onehot", one_hot),
            ):
                if others:
                    metric, rows = key[-1], others[0][0].asked
                    test = whole if rows is None else curve.score(metric, curve.test, rows=rows)
                    # Several untrained networks: their mean. A control without layers stands beside every layer.
                    value = test.value - np.mean([other.value for _, other in others], axis=0)
                    resampled = test.resampled - np.mean([other.resampled for _, other in others], axis=0)
                    for number, layer in enumerate(curve.layers):
                        at = {"layer": layer, "rows": rows}
                        found.append(_row(curve, metric, stat, value[number], resampled[number], math.nan, **at))
    return found


_VIEW = ("condition", "direction", "noise_t", "mask_draw")


def _question(curve: Curve, metric: str) -> tuple:
    """Return what a curve and its controls share; the one-hot control has no view and no space of its own."""
    columns = curve.columns
    if columns["control"] == "onehot":
        return (columns["task"], columns["probe"], None, metric)
    view = tuple(str(columns[name]) for name in _VIEW)
    return (columns["task"], columns["probe"], (columns["space"], *view), metric)


def _one_hot(key: tuple) -> tuple:
    return (*key[:2], None, key[3])


def _row(
    curve: Curve,
    metric: str,
    stat: str,
    value: float,
    resampled: np.ndarray,
    chance: float,
    *,
    rows: np.ndarray | None = None,
    **more: object,
) -> dict[str, object]:
    lower, upper, n_boot = interval(resampled[None])
    rows = curve.rows if rows is None else rows
    proteins = np.zeros(len(curve.bootstrap.sequence_ids), bool)
    proteins[curve.owner[rows]] = True
    return {
        **curve.columns,
        "metric": metric,
        "stat": stat,
        "layer": -1,
        "param": math.nan,
        "floor": "none",
        "in_plateau": False,
        "value": float(value),
        "ci_lo": float(lower[0]),
        "ci_hi": float(upper[0]),
        "chance": chance,
        "n_rows": len(rows),
        "n_seq": int(proteins.sum()),
        "n_grouped": sum(name in curve.known for name in curve.bootstrap.sequence_ids[proteins].tolist()),
        "n_cluster": int(curve.bootstrap.clusters_of(proteins)),
        "n_boot": int(n_boot[0]),
        **more,
    }


def _rows_of(curve: Curve, metric: str, test: Score, settings: Settings) -> Iterator[dict[str, object]]:
    tolerance, layers = settings.tolerance, curve.layers
    if curve.asked is not None:  # a control that is scored on some test rows, and chooses nothing
        for number, layer in enumerate(layers):
            yield _row(curve, metric, "score", test.value[number], test.resampled[number], test.chance, layer=layer)
        return
    valid = curve.score(metric, curve.valid)
    inside = plateau(valid.value, tolerance=tolerance)
    for number, layer in enumerate(layers):
        at = {"layer": layer, "in_plateau": bool(inside[number])}
        yield _row(curve, metric, "score", test.value[number], test.resampled[number], test.chance, **at)
        at = {"layer": layer}
        yield _row(curve, metric, "validation", valid.value[number], valid.resampled[number], test.chance, **at)
    if curve.columns["control"] not in ("none", "untrained") or len(layers) < 2:
        return
    best = best_layer(valid.value, layers), best_layer(valid.resampled.T, layers)
    yield _row(curve, metric, "best_layer", *best, math.nan)
    first = (shallowest(x, layers, tolerance=tolerance) for x in (valid.value, valid.resampled.T))
    yield _row(curve, metric, "shallowest", *first, math.nan, param=tolerance)
    selected = curve.selected(metric)
    if n := selected.n_undefined:
        LOG.info(f"{curve.columns['task']} {metric}: {n} folds without a validation score: the last layer")
    yield _row(curve, metric, "selected", selected.value, selected.resampled, test.chance)
    floors = {"layer_0": (test.value[0], test.resampled[0])} if layers[0] == 0 else {}
    if not math.isnan(test.chance):
        floors["chance"] = (test.chance, test.chance)
    for share in settings.retention:
        for name, (floor, resampled_floor) in floors.items():
            depth = (
                retention_depth(test.value, layers, floor=floor, share=share),
                retention_depth(test.resampled.T, layers, floor=resampled_floor, share=share),
            )
            yield _row(curve, metric, "retention_depth", *depth, math.nan, param=share, floor=name)


def undefined_rows(found: Sequence[Undefined]) -> list[dict[str, object]]:
    """Return the PROBES rows of scores that would say nothing."""
    return [
        {
            **one.columns,
            "stat": "undefined",
            "layer": -1,
            "param": float(one.needed),
            "floor": "none",
            "in_plateau": False,
            "value": float(one.there),
            **dict.fromkeys(("ci_lo", "ci_hi", "chance"), math.nan),
            "n_rows": one.n_rows,
            "n_seq": one.n_seq,
            "n_grouped": one.known,
            "n_cluster": one.n_cluster,
            "n_boot": 0,
        }
        for one in found
    ]


# ----------------------------------------------------------------------------------------------------------------
# The stage


def probe(
    *,
    stream: str | Path,
    annotations: str | Path,
    clusters: str | Path,
    backbone: str | Path | None,
    settings: Settings,
    n_boot: int,
    seed: int,
    probe: str | Path,
    probes: str | Path,
    attention: str | Path | None = None,
    log: logging.Logger = LOG,
) -> tuple[int, int]:
    """Write the PROBE and PROBES tables of one model; return their numbers of rows.

    Raises:
        TableError: a damaged table, a protein that is not in the stream, in the backbones or in a cluster.
        ProbeError: too few groups for the folds, or no task that could be done.
    """
    states = Stream(stream)
    cluster_of = read_clusters(clusters)
    known = read_table(annotations, ANNOTATIONS)
    rows = list(zip(*(known.column(name).to_pylist() for name in ANNOTATIONS.names)))
    if missing := [name for name, *_ in rows if name not in cluster_of]:
        raise TableError(f"{clusters}: no cluster of {len(missing)} annotated proteins, the first {missing[0]}")
    chains = sorted((name, group) for name, source, group, _ in rows if source == "structures")
    members = sorted((name, group, part) for name, source, group, part in rows if source == "families")
    of_residues = [task for task in settings.tasks if task in TASKS]
    wants_chains = bool(of_residues) or "contacts" in settings.tasks
    if wants_chains and not states.table.constants["tokens_are_residues"]:
        log.warning(f"{states.common['model_id']}: its tokens hold several residues: no task of residues or pairs")
        wants_chains = False
    notes, curves, undefined = Notes(), [], []
    n_steps = len(states.table.layers) * len(states.representations(settings.directions))
    progress = Progress(log, total=None, unit="layers and tasks")
    if wants_chains and (backbone is None or not chains):
        raise ProbeError(
            f"tasks {', '.join(settings.tasks)}: {len(chains)} annotated chains and "
            f"{'no' if backbone is None else 'a'} table of backbones; give both, or leave these tasks out"
        )
    if wants_chains:
        of_chain = read_chains(backbone, [name for name, _ in chains])
        sample = rows_of(of_chain, tasks=of_residues or ["ss3"], n_residues=settings.residues, seed=seed)
        sizes = sizes_of(sample)
        fold, group = fold_of_chains(cluster_of, dict(chains), sizes, settings.folds, seed)
        bootstrap = Bootstrap.of({name: cluster_of[name] for name, _ in chains}, n_boot=n_boot, seed=seed)
        known = frozenset(name for name, of_chain_group in chains if of_chain_group)
        log.info(
            f"superfamilies: {len(known)} of {len(chains)} chains have one; folds keep these whole beside clusters"
            if known
            else "superfamilies: no superfamily of the chains is known: folds keep clusters whole, and only these"
        )
        log.info(
            f"{len(chains)} chains of {len(set(group.values()))} groups in {settings.folds} folds, "
            f"{len(sample.owner)} residues; {len(states.table.layers)} layers, {n_steps} passes"
        )
        if of_residues:
            plan = ResiduePlan(
                of_chain,
                sample,
                np.array([fold[name] for name in sample.names])[sample.owner],
                np.array([group[name] for name in sample.names])[sample.owner],
                settings.folds,
                bootstrap,
                bootstrap.index(sample.names)[sample.owner],
            )
            found, few = residue_curves(states, plan, settings, seed, notes, progress)
            curves += found
            undefined += few
        if "contacts" in settings.tasks:
            pairs = pair_plan(of_chain, fold, group, settings=settings, seed=seed)
            curves += contact_curves(states, pairs, bootstrap, settings, seed, notes, progress)
            maps = AttentionMaps(attention) if attention is not None else None
            if maps is not None and maps.proteins:
                curves += attention_curves(states, maps, pairs, bootstrap, settings, progress)
        for curve in curves:
            curve.known = known
    if "homology" in settings.tasks and members:
        found, few = homology_curves(states, members, cluster_of, settings, seed, n_boot, notes, progress)
        for curve in found:
            curve.known = frozenset(name for name, *_ in members)
        curves += found
        undefined += few
        if few and set(settings.tasks) == {"homology"}:
            raise ProbeError(
                f"task homology: {few[0].n_rows} members have kin beyond their part and similarity cluster, in "
                f"{few[0].there} clusters; expected at least {few[0].needed} and three to part: give more families, or "
                "do without this task"
            )
    progress.finish()
    log.info(str(notes))
    if not curves and not undefined:
        raise ProbeError(f"none of the tasks {', '.join(settings.tasks)} could be done; see the log above")
    common = (*COMMON, *PROBE_KEYS)
    n_rows = []
    for path, schema, found, keys in (
        (probe, PROBE, [row for curve in curves for row in fold_rows(curve)], (*common, "layer", "fold")),
        (
            probes,
            PROBES,
            summary_rows(curves, settings) + undefined_rows(undefined),
            (*common, "stat", "param", "floor", "layer"),
        ),
    ):
        columns = {name: np.array([row[name] for row in found]) for name in schema.names}
        n_rows.append(write_table(sorted_rows(columns, keys), schema, path, seed=seed, resamples=n_boot))
    log.info(f"{n_rows[0]} scores of folds, {n_rows[1]} rows of the corpus")
    return n_rows[0], n_rows[1]


def sizes_of(sample) -> dict[str, list[float]]:
    """Return by chain what its folds balance: residues of each state where that is a task, else residues."""
    sizes = {}
    for number, name in enumerate(sample.names):
        mine = sample.owner == number
        if "ss3" in sample.targets:
            state = sample.targets["ss3"][mine]
            sizes[name] = np.bincount(state[state >= 0], minlength=len(SS3)).astype(float).tolist()
        else:
            sizes[name] = [float(mine.sum())]
    return sizes


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.metrics.probes", description=__doc__.split("\n")[0])
    parser.add_argument("--stream", required=True, help="vector table of activations.embed")
    parser.add_argument("--annotations", required=True, help="ANNOTATIONS table")
    parser.add_argument("--clusters", required=True, help="CLUSTERS table of the annotated proteins")
    parser.add_argument("--backbone", help="BACKBONE table, for tasks of residues and contacts")
    parser.add_argument("--attention", help="vector table of attention maps, for contacts by them")
    parser.add_argument("--settings", default="{}", help="JSON; see the module")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples of clusters")
    parser.add_argument("--seed", type=int, required=True, help="of folds, residues, controls and the bootstrap")
    parser.add_argument("--probe", required=True, help="PROBE table to write: scores of each fold")
    parser.add_argument("--probes", required=True, help="PROBES table to write: corpus values")
    options = vars(parser.parse_args(argv))
    with stage_log(LOG.name, TableError, BootstrapError, ProbeError, OSError):
        options["settings"] = Settings.of(options["settings"])
        probe(n_boot=options.pop("resamples"), **options)


if __name__ == "__main__":
    main()
