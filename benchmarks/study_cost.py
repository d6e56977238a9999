"""What the passes of a study cost before it is run, by model: the prices of its jobs, and what the sweeps save.

    python benchmarks/study_cost.py [--config config/config.yaml] [--rate32 25e12] [--rate16 250e12]
    OMP_NUM_THREADS=1 python benchmarks/study_cost.py --check       (compares the estimate with a measured run here)

``--rate32`` and ``--rate16`` are the operations a second that the sweep reaches on the device at hand, for float32
weights (TF32 off) and for half-precision ones: the measured product rate times the share that
``benchmarks/skip_sweep.py --device cuda`` prints. The defaults are no measurements; see docs/performance.md.
"""

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from plm_depth.activations.cost import Cost, Size, forward_cost, hours, plain_cost, sweep_cost, total
from plm_depth.config import Study
from plm_depth.models import registry
from plm_depth.prices import itemsize, length_of, prices, size_of, sweeps_of
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS
from plm_depth.views import View, views_of

if TYPE_CHECKING:
    from plm_depth.activations.effects import Skips

ROOT = Path(__file__).resolve().parents[1]


def effects_of(size: Size, view: View, skips: "Skips", length: int, token_budget: int) -> Cost:
    """Return the cost of all sweeps of one protein in one view by the plan that the stage itself makes."""
    from plm_depth.activations.effects import layouts_of
    from plm_depth.activations.interventions import position_sets
    from plm_depth.models.base import Tokens

    class Reader:
        can_branch = size.is_causal and size.is_parallel  # ProGen2

    sequence = "A" * length
    n_masked = round((view.noise_t if view.reads == "masked" else 0) * length)
    masked = [position < n_masked for position in range(length)]

    tokens = Tokens(np.zeros(length + 2, np.int64), np.arange(1, length + 1), np.array(masked))
    found = position_sets(skips.pos_sets, sequence, tokens, seed=0, sequence_id="cost", draws=skips.draws)
    costs = []
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
    return total(costs)


def lines_of(study: Study, *, rate32: float, rate16: float) -> list[str]:
    """Return the table of a study: what its passes cost by model, as ``plm_depth.prices`` has it.

    Beside the prices: how much the sweeps save (``plain/sweep``: the same skip effects done plainly, over the sweep).
    """
    lines = [
        "model            views  pass TFLOP  activ. PFLOP  effects PFLOP  plain/sweep  evaluations  weights TB  hours"
    ]
    sums = {"extract_activations": 0.0, "measure_effects": 0.0}
    costs: dict[tuple[str, str], Cost] = {}
    for price in prices(study):
        if price.rule in sums:
            key = (price.rule, price.model)
            costs[key] = costs.get(key, Cost()) + price.cost
    length = length_of(study, next(iter(study.datasets)))
    skips, budget = study.config["effects"]["skips"], study.config["compute"]["token_budget"]
    for name in study.models:
        if ("measure_effects", name) not in costs:
            continue
        size, entry = size_of(study, name), study.models[name]
        swept, activations = costs["measure_effects", name], costs["extract_activations", name]
        views = views_of(entry["objective"], study.config["inputs"])
        skip_views = views_of(entry["objective"], study.inputs_in("effects", entry["objective"]))
        planned = [sweeps_of(size, view, skips, length, budget) for view in skip_views]
        plain = plain_cost(size, length + 2, sum(n for _, n in planned), n_reads=length)
        saved = plain.flops / total([cost for cost, _ in planned]).flops
        rate = rate32 if itemsize(entry) == 4 else rate16
        used = {"extract_activations": hours(activations, rate=rate), "measure_effects": hours(swept, rate=rate)}
        sums = {rule: sums[rule] + used[rule] for rule in sums}
        lines.append(
            f"{name:16s} {len(views):2d}/{len(skip_views):2d} {forward_cost(size, length + 2).flops / 1e12:10.2f} "
            f"{activations.flops / 1e15:13.2f} {swept.flops / 1e15:14.1f} {saved:12.2f} "
            f"{swept.evaluations:12.3g} {swept.weight_bytes / 1e12:11.1f} "
            f"{used['extract_activations']:7.2f} + {used['measure_effects']:.2f}"
        )
    one, other = sums.values()
    return [*lines, f"hours: activations {one:.1f}, skip effects {other:.1f}, together {one + other:.1f}"]


def study_of(path: Path) -> Study:
    """Return the study of a config of this repository."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Study(
        config,
        {name: entry.objective for name, entry in registry.FAMILIES.items()},
        figures=config.get("figures", []),
        root=ROOT,
        reads_structure={name: entry.reads_structure for name, entry in registry.FAMILIES.items()},
        structure_classes={name: entry.structure_classes for name, entry in registry.FAMILIES.items()},
    )


def check() -> None:
    """Measure the stage on a 35M shape and compare with the cost model at the rate of another, smaller run."""
    from plm_depth.activations.batches import MAX_PADDING
    from plm_depth.activations.door import full_precision
    from plm_depth.activations.effects import FLOOR_LENGTHS, FLOOR_SOURCES, Skips, measure
    from plm_depth.activations.nulls import Null

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
        costs = [effects_of(size, view, skips, n, budget) for n in lengths]
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
    parser.add_argument("--rate32", type=float, default=25e12)
    parser.add_argument("--rate16", type=float, default=250e12)
    parser.add_argument("--check", action="store_true", help="compare with a run on this machine")
    options = parser.parse_args()
    if options.check:
        check()
    else:
        print("\n".join(lines_of(study_of(options.config), rate32=options.rate32, rate16=options.rate16)))


if __name__ == "__main__":
    main()
