"""Layer choice beside PLMSommelier 1.0: same checkpoint, table, split and probe; scores of every layer, and the time.

    pip install plmsommelier  # into an environment of its own, beside this project's packages; never a dependency
    OMP_NUM_THREADS=1 python benchmarks/layer_choice.py [--model FOLDER] [--repeats 5] [--smoke]

FOLDER is an ESM-2 in the hub's layout; without one, an untrained network of the shape of ESM-2 8M is made. Two tables
of the embedded data are asked: protein families (13 classes) and variants of one domain (numbers), each with a split of
whole clusters made here and written into the table that both read. Both sides take every state after the final norm
and keep it in half precision.

* Nearest neighbours (k = 10, standardised features), their default: each side embeds, fits and scores with its own
  code.
* Their linear probe, their code, on their embeddings and on ours. Of classes (a logistic regression with a penalty) it
  is judged, too. Of numbers it is shown, not judged: it has no penalty there, and where features are nearly dependent
  (layer 0: means of 20 vectors) the last bit of half precision decides its score.

Printed are the largest difference of the embeddings, the scores side by side, whether the layers come in the same order
(pairs closer than TIE on either side count as equal; beside it how many pairs are in opposite order at all, and
Kendall's tau), and the CPU seconds a layer of both, each with its own default
batches, taken in turns in one run, medians. Exit status 1 when order, scores or time are off.
"""

import argparse
import csv
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from plm_depth.activations import embed
from plm_depth.activations.door import full_precision
from plm_depth.activations.nulls import Null
from plm_depth.metrics import choice
from plm_depth.metrics.probing import scores
from plm_depth.models import registry
from plm_depth.randomness import key_of
from plm_depth.sequences import labels
from plm_depth.sequences.cluster import clusters_of
from plm_depth.views import View

MINI = Path(__file__).resolve().parents[1] / "resources" / "mini"
TIE = 0.02  # scores closer than this are taken as equal: half precision moves a neighbour now and then
LARGEST = 0.03  # allowed difference of a score
JUDGED = (("nearest neighbours", "classification"), ("nearest neighbours", "regression"), ("linear", "classification"))
SLOWEST = 1.25  # allowed time over theirs
LOG = logging.getLogger("benchmark")
LOG.setLevel(logging.ERROR)


def tables(folder: Path, *, smoke: bool) -> dict[str, tuple[Path, str]]:
    """Write the two tables with a split of whole groups; return (path, kind) by name."""
    with (MINI / "families" / "families.tsv").open(encoding="utf-8") as file:
        rows = [(row["sequence"], row["family_id"]) for row in csv.DictReader(file, delimiter="\t")]
    names = [str(i) for i in range(len(rows))]
    groups = clusters_of(names, [s for s, _ in rows], identity=0.5, coverage=0.5, log=LOG)
    wild_type = labels.wild_type_of(f"{MINI}/dms/wildtypes.fasta#PABP_YEAST_RRM2")
    with (MINI / "dms" / "PABP_YEAST_RRM2_Melamed2013.csv").open(encoding="utf-8") as file:
        variants = [
            (labels.substituted(wild_type, row["domain_mutant"]), row["score"], row["position"])
            for row in csv.DictReader(file)
        ]
    asked = {
        "families": ([(s, y, g) for (s, y), g in zip(rows, groups)], "classification"),
        "variants": (variants, "regression"),
    }
    made = {}
    for name, (data, kind) in asked.items():
        path = folder / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["sequence", "label", "split"])
            for sequence, label, group in data[:: 3 if smoke else 1]:
                is_valid = key_of("benchmark", group) % 4 == 0
                writer.writerow([sequence, label, "valid" if is_valid else "train"])
        made[name] = path, kind
    return made


class Ours:
    """This project: one pass of ``activations.embed`` over all proteins, then the probe on every layer."""

    def __init__(self, folder: Path, scratch: Path):
        self.adapter = registry.load("esm2", folder)
        self.scratch = scratch

    def embed(self, table: Path, kind: str) -> None:
        columns = labels.Columns(label=("label",), split="split")
        found = labels.read_labels(table, columns=columns, kind=kind)
        labels.write(found, sequences=self.scratch / "s.parquet", labels=self.scratch / "l.parquet")
        pairs = list(zip(found.sequences["sequence_id"], found.sequences["sequence"]))
        embed.embed(
            self.adapter, pairs, output=self.scratch / "stream.parquet", model_id="m", nulls=[Null("trained", -1)],
            views=[View("none", 0.0, -1)], seed=0, n_residues=0, norm="final", token_budget=4096, log=LOG,
        )  # fmt: skip

    def task(self) -> tuple[choice.Task, choice.Features, choice.Sides]:
        task = choice.read_task(self.scratch / "l.parquet")
        alone = {name: name for name in task.sequence_ids.tolist()}
        return (
            task,
            choice.Features(self.scratch / "stream.parquet", task),
            choice.sides_of(task, alone, n_folds=5, seed=0),
        )

    def curve(self) -> list[float]:
        """Return the score of every layer, nearest neighbours."""
        task, features, sides = self.task()
        settings = choice.Settings(probes=("knn",))
        found = choice.predictions(features, task, sides, settings, seed=0, log=LOG)["knn"]["test"]
        rows = sides.outer[0].test
        metric = "pearson" if task.target == "regression" else "mcc"
        return scores(metric, task.y[rows], found[:, rows]).value.tolist()

    def linear(self) -> list[float]:
        """Return the score of every layer, their linear probe on our embeddings."""
        from plmsommelier.select import fit_predict, score

        task, features, sides = self.task()
        train, test = sides.outer[0].train, sides.outer[0].test
        found = []
        for layer in features.layers:
            x = features(layer)
            predicted = fit_predict(x[train], task.y[train], x[test], task.y[test], task=task.target, probe="lr")
            found.append(score(predicted, task.y[test], task.target))
        return found


class Theirs:
    """PLMSommelier through its public functions."""

    def __init__(self, folder: Path):
        from plmsommelier import load_model

        self.model = load_model(str(folder), device="cpu", dtype=torch.float32)

    def embed(self, table: Path, kind: str) -> None:
        from plmsommelier import embed_layers, load_dataset

        self.data = load_dataset(table, task=kind, label_col="label", sample=None)
        self.train = embed_layers(self.model, self.data.train_seqs)
        self.valid = embed_layers(self.model, self.data.val_seqs)

    def curve(self, probe: str = "knn") -> list[float]:
        from plmsommelier import select_layer

        found = select_layer(self.data, self.train, self.valid, probe=probe, k=10, n_seeds=0)
        return [found.curve[layer] for layer in sorted(found.curve)]


def apart(ours: Ours, theirs: Theirs) -> float:
    """Return the largest difference of two embeddings of a protein, in standard deviations of the layer."""
    _, features, sides = ours.task()
    largest = 0.0
    for layer in features.layers:
        x = features(layer)
        for rows, other in ((sides.outer[0].train, theirs.train), (sides.outer[0].test, theirs.valid)):
            largest = max(largest, float(np.abs(x[rows] - other[layer].astype(np.float32)).max() / x.std()))
    return largest


def same_order(ours: list[float], theirs: list[float]) -> bool:
    """Return whether no two layers stand in opposite orders by more than TIE on either side."""
    a, b = (np.subtract.outer(x, x) for x in (ours, theirs))
    return not ((a > TIE) & (b < -TIE)).any()


def opposite(ours: list[float], theirs: list[float]) -> tuple[int, int]:
    """Return how many pairs of layers stand in opposite orders, by whatever little, and how many pairs there are."""
    a, b = (np.subtract.outer(x, x) for x in (ours, theirs))
    return int((a * b < 0).sum()) // 2, len(ours) * (len(ours) - 1) // 2


def seconds(action, *arguments) -> float:
    started = time.process_time()
    action(*arguments)
    return time.process_time() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="ESM-2 in the hub's layout")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a third of the rows, once")
    options = parser.parse_args()
    full_precision(1)
    failed = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = options.model or scratch / "esm2"
        if options.model is None:
            sizes = {"n_blocks": 6, "d_model": 320, "n_heads": 20}
            registry.save(registry.build("esm2", sizes, seed=0), folder)
        ours, theirs = Ours(folder, scratch), Theirs(folder)
        for table, (path, kind) in tables(scratch, smoke=options.smoke).items():
            times: dict[str, list[float]] = {}
            for _ in range(1 if options.smoke else options.repeats):
                for who, side in (("ours", ours), ("theirs", theirs)):
                    times.setdefault(f"{who} embedding", []).append(seconds(side.embed, path, kind))
                    times.setdefault(f"{who} probes", []).append(seconds(side.curve))
            print(
                f"\n{table} ({kind}), {folder.name}; embeddings differ by {apart(ours, theirs):.2g} of their deviation"
            )
            for probe, mine, other in (
                ("nearest neighbours", ours.curve(), theirs.curve()),
                ("linear", ours.linear(), theirs.curve("lr")),
            ):
                gap = float(np.abs(np.subtract(mine, other)).max())
                order = same_order(mine, other)
                print(f"  {probe}: same order {'yes' if order else 'NO'}, best layer {np.argmax(mine)} and "
                      f"{np.argmax(other)}, largest difference {gap:.4f}")  # fmt: skip
                swapped, n_pairs = opposite(mine, other)
                tau = kendalltau(mine, other).statistic
                print(f"    {swapped} of {n_pairs} pairs of layers in opposite order, tau {tau:.3f}")
                print("    layer  ours    theirs")
                for layer, (x, y) in enumerate(zip(mine, other)):
                    print(f"    {layer:5d}  {x:.4f}  {y:.4f}")
                if (probe, kind) in JUDGED and (not order or gap > LARGEST):
                    failed.append(f"{table}, {probe}")
            n_layers = len(ours.curve())
            middle = {what: statistics.median(found) / n_layers for what, found in times.items()}
            total = [middle[f"{who} embedding"] + middle[f"{who} probes"] for who in ("ours", "theirs")]
            for what, value in middle.items():
                print(f"  {what}: {1000 * value:.1f} ms a layer")
            print(f"  time a layer, ours over theirs: {total[0] / total[1]:.2f}")
            failed += [f"{table}, time"] if total[0] > SLOWEST * total[1] else []
    print("\n" + (f"off: {'; '.join(failed)}" if failed else "same order, same scores, no slower"))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
