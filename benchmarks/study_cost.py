"""What a study costs before it is run: block evaluations, operations, bytes and hours of every model, from its config.

    python benchmarks/study_cost.py [--config config/config.yaml] [--length 250] [--rate32 25e12] [--rate16 250e12]
    OMP_NUM_THREADS=1 python benchmarks/study_cost.py --check       (compares the estimate with a measured run here)

``--rate32`` and ``--rate16`` are the operations a second that the sweep reaches on the device at hand, for float32
weights (TF32 off) and for half-precision ones: the measured product rate times the share that
``benchmarks/skip_sweep.py --device cuda`` prints. The defaults are no measurements; see docs/performance.md.
"""

import argparse
import csv
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from plm_depth.activations.batches import MAX_PADDING
from plm_depth.activations.cost import Cost, Size, forward_cost, hours, plain_cost, sweep_cost, total
from plm_depth.activations.door import full_precision
from plm_depth.activations.effects import FLOOR_LENGTHS, FLOOR_SOURCES, Skips, layouts_of, measure
from plm_depth.activations.interventions import position_sets
from plm_depth.activations.nulls import Null
from plm_depth.models import registry
from plm_depth.models.base import Tokens
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS
from plm_depth.views import View, views_of

ROOT = Path(__file__).resolve().parents[1]
# Settings of the skip effects where the config does not say otherwise.
EFFECTS = {
    "size": 150,
    "skips": {"parts": ["layer", "attn", "mlp"], "pos_sets": ["all", "prefix", "other", "ctx2mask"]},
}


def size_of(row: dict[str, str]) -> Size:
    """Return the size of a row of the model sheet.

    All MLPs are taken to have the weights of a plain one of four widths: gated ones (ESM C, ESM3) have about as many;
    of a mixture of experts this counts the experts that work.
    """
    causal = registry.FAMILIES[row["family"]].objective == "ar"
    parallel = row["family"] == "progen2"
    itemsize = 4 if row["dtype"] == "float32" else 2
    d = int(row["d_model"])
    return Size(int(row["n_blocks"]), d, 4 * d, 32 if causal else 33, parallel, causal, itemsize)


def effects_of(size: Size, view: View, skips: Skips, length: int, token_budget: int) -> tuple[Cost, Cost]:
    """Return the cost of all sweeps of one protein in one view, and of the same done plainly."""

    class Reader:
        can_branch = size.is_causal and size.is_parallel  # ProGen2

    sequence = "A" * length
    n_masked = round((view.noise_t if view.reads == "masked" else 0) * length)
    masked = [position < n_masked for position in range(length)]

    tokens = Tokens(np.zeros(length + 2, np.int64), np.arange(1, length + 1), np.array(masked))
    found = position_sets(skips.pos_sets, sequence, tokens, seed=0, sequence_id="cost", draws=skips.draws)
    costs, plain = [], []
    for branches, sets in layouts_of(Reader(), found, length + 2):
        n_sets = 1 if branches is not None else len(sets)  # sets in branches share their lanes
        parts = [part for part in skips.parts if part != "geom"]  # of one block, where there is one at all
        kinds = len(parts) * len(skips.ablations)
        n_tokens = length + 2 if branches is None else len(branches.source)
        costs.append(
            sweep_cost(
                size,
                n_tokens,
                propagating=n_sets * kinds,
                local=n_sets * len(parts) if skips.local else 0,
                attention=n_sets * len(skips.ablations) if "attn" in skips.parts else 0,
                n_reads=n_tokens,
                token_budget=token_budget,
                branches=branches,
            )
        )
        sweeps = len(sets) * (kinds + (len(parts) if skips.local else 0))
        plain.append(plain_cost(size, length + 2, sweeps, n_reads=length))
    return total(costs), total(plain)


def study(options: argparse.Namespace) -> None:
    config = yaml.safe_load(Path(options.config).read_text(encoding="utf-8"))
    sheet = ROOT / config["models_sheet"]
    lines = [line for line in sheet.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    rows = {row["model"]: row for row in csv.DictReader(lines, delimiter="\t")}
    effects = {**EFFECTS, **config.get("effects", {})}
    given = {**EFFECTS["skips"], **effects["skips"]}
    skips = Skips(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    kinds = effects.get("null_models")
    nulls = [n for n in config["nulls"] if kinds is None or n["null_model"] in kinds]
    n_networks = 1 + len(nulls)
    n_proteins = sum(dataset["size"] for dataset in config["datasets"])
    print(
        f"{n_proteins} proteins for activations, {effects['size']} for skip effects, {options.length} residues; "
        f"1 trained and {len(nulls)} null networks; skips {skips}"
    )
    header = (
        "model            views  pass TFLOP  activ. PFLOP  effects PFLOP  plain/sweep  evaluations  weights TB  hours"
    )
    print(header)
    sums = [0.0, 0.0]
    for name in config["models"]:
        row = rows[name]
        size, kind = size_of(row), registry.FAMILIES[row["family"]].objective
        views = views_of(kind, config["inputs"])
        skip_views = views_of(kind, {**config["inputs"], **effects.get("inputs", {})})
        one = forward_cost(size, options.length + 2)
        activations = forward_cost(size, options.length + 2, n_reads=options.length, n_layers_read=size.n_blocks + 1)
        activations = activations * (len(views) * n_proteins * (1 + len(config["nulls"])))
        pairs = [effects_of(size, view, skips, options.length, options.token_budget) for view in skip_views]
        sweeps = total([cost for cost, _ in pairs]) * (effects["size"] * n_networks)
        plain = total([cost for _, cost in pairs]) * (effects["size"] * n_networks)
        rate = options.rate32 if row["dtype"] == "float32" else options.rate16
        used = [hours(activations, rate=rate), hours(sweeps, rate=rate)]
        sums = [x + y for x, y in zip(sums, used)]
        print(
            f"{name:16s} {len(views):2d}/{len(skip_views):2d} {one.flops / 1e12:10.2f} "
            f"{activations.flops / 1e15:13.2f} {sweeps.flops / 1e15:14.1f} {plain.flops / sweeps.flops:12.2f} "
            f"{sweeps.evaluations:12.3g} "
            f"{sweeps.weight_bytes / 1e12:11.1f} {used[0]:7.2f} + {used[1]:.2f}"
        )
    print(f"hours: activations {sums[0]:.1f}, skip effects {sums[1]:.1f}, together {sum(sums):.1f}")


def check() -> None:
    """Measure the stage on a 35M shape and compare with the cost model at the rate of another, smaller run."""
    full_precision(threads=1)
    adapter = registry.build("esm2", {"n_blocks": 12, "d_model": 480, "n_heads": 20}, seed=0)
    size = Size(12, 480, 1920)
    view, budget = View("none", 0.15, 0), 8192

    def run(skips: Skips, lengths: list[int]) -> tuple[float, float]:
        """Return (CPU seconds, operations that the cost model says), noise floor included."""
        random = generator(0, "cost", *lengths)
        letters = list(AMINO_ACIDS)
        proteins = [(f"P{i}", "".join(random.choice(letters, size=n))) for i, n in enumerate(lengths)]
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            measure(
                adapter, proteins, skip=Path(folder) / "s", output_change=Path(folder) / "o", model_id="m",
                nulls=[Null("trained", -1)], views=[view], skips=skips, seed=0, token_budget=budget,
                log=logging.getLogger("cost"),
            )  # fmt: skip
            seconds = time.process_time() - started
        costs = [effects_of(size, view, skips, n, budget)[0] for n in lengths]
        # The noise floor: two proteins in three batches, once beside a longer one; some of the sources, two sets.
        n_lanes = 2 * len([part for part in skips.parts if part != "geom"])
        share = min(1.0, FLOOR_SOURCES / size.n_blocks)
        for n in FLOOR_LENGTHS:
            for length in (n, n, n, round(n / (1 - 2 * MAX_PADDING))):
                swept = sweep_cost(
                    size,
                    length + 2,
                    propagating=n_lanes,
                    attention=2 * int("attn" in skips.parts),
                    n_reads=length,
                    token_budget=budget,
                )
                costs.append(swept * share)
        return seconds, total(costs).flops

    seconds, flops = run(Skips(parts=("layer",), pos_sets=("other",), draws=1, local=False), [300])
    rate = flops / seconds
    print(f"one part, one set, one protein: {flops / 1e9:.0f} GFLOP in {seconds:.1f} s CPU, {rate / 1e9:.0f} GFLOP/s")
    for skips, lengths in (
        (Skips(parts=("layer", "attn", "mlp"), pos_sets=("all", "other", "ctx2mask"), draws=2, local=True), [120, 250]),
        (Skips(parts=("attn",), pos_sets=("other",), draws=4, local=False), [80, 160, 320]),
    ):
        seconds, flops = run(skips, lengths)
        print(
            f"{lengths}, {skips.parts}, {skips.pos_sets}, local {skips.local}: said {flops / rate:.1f} s, "
            f"measured {seconds:.1f} s, ratio {seconds * rate / flops:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default=ROOT / "config" / "config.yaml", type=Path)
    parser.add_argument("--length", type=int, default=250, help="residues of the average protein")
    parser.add_argument("--token-budget", type=int, default=65536)
    parser.add_argument("--rate32", type=float, default=25e12)
    parser.add_argument("--rate16", type=float, default=250e12)
    parser.add_argument("--check", action="store_true", help="compare with a run on this machine")
    options = parser.parse_args()
    if options.check:
        check()
    else:
        study(options)


if __name__ == "__main__":
    main()
