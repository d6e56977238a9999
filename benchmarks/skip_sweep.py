"""What the sweep over silenced blocks costs beside doing it plainly, and beside the machine's own products of matrices.

    OMP_NUM_THREADS=1 python benchmarks/skip_sweep.py [--repeats 5] [--proteins 8] [--smoke]
    OMP_NUM_THREADS=1 python benchmarks/skip_sweep.py --tracing        (needs: pip install nnsight)
    python benchmarks/skip_sweep.py --device cuda --shape esm2_650M esm2_3B --dtype bfloat16

Random weights, random proteins of 60-400 residues, the whole update of each block silenced in turn, every later block
and the output read. Shapes: ESM-2 35M with half of the residues silenced and the other half read, and a GPT-J shape
(ProGen2) with four prefix positions. Alternatives take turns; medians; CPU seconds of one thread, on a GPU seconds.

    hooks      plain hooks on the library's model, padded batches, one forward pass per silenced block
    one        the same, one protein at a time
    tracing    a tracing library, one protein, one position and one silenced block a pass, as published studies do it
    sweep      plm_depth.activations.sweep

The numbers of all alternatives are compared before any ratio is printed. Beside the ratios stand residues a second,
peak memory (of a GPU what is allocated, else of the process) and the noise floor. Exit status 1 when a floor is missed.
"""

import argparse
import contextlib
import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from plm_depth.activations.batches import plan
from plm_depth.activations.door import full_precision
from plm_depth.activations.effects import Floor, Protein, Skips, noise_floor, proteins_of
from plm_depth.activations.sweep import OUTPUTS, sweep
from plm_depth.models import checkpoints, registry
from plm_depth.models.base import Adapter
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS
from plm_depth.views import View

LOG = logging.getLogger("benchmark")
TOLERANCE = 1e-5  # of the largest value


@dataclass(frozen=True)
class Shape:
    """One model shape and what is silenced in it."""

    family: str
    sizes: dict[str, int]
    pos_set: str
    draws: int

    @property
    def view(self) -> View:
        return View("n2c", float("nan"), -1) if self.family == "progen2" else View("none", 0.0, -1)


SHAPES = {
    "esm2_8M": Shape("esm2", {"n_blocks": 6, "d_model": 320, "n_heads": 20}, "other", 1),
    "esm2_35M": Shape("esm2", {"n_blocks": 12, "d_model": 480, "n_heads": 20}, "other", 1),
    "esm2_650M": Shape("esm2", {"n_blocks": 33, "d_model": 1280, "n_heads": 20}, "other", 4),
    "esm2_3B": Shape("esm2", {"n_blocks": 36, "d_model": 2560, "n_heads": 40}, "other", 4),
    "gptj": Shape("progen2", {"n_blocks": 12, "d_model": 512, "n_heads": 8, "rotary_dim": 32}, "prefix", 4),
    "gptj_6B": Shape("progen2", {"n_blocks": 33, "d_model": 4096, "n_heads": 16, "rotary_dim": 64}, "prefix", 4),
    "smoke_esm2": Shape("esm2", {"n_blocks": 3, "d_model": 64, "n_heads": 4}, "other", 1),
    "smoke_gptj": Shape("progen2", {"n_blocks": 3, "d_model": 64, "n_heads": 8}, "prefix", 2),
}
Result = dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]  # by (protein, draw): D (blocks, blocks), l2 (blocks,)


class Setting:
    """A model, its proteins, and what every alternative measures."""

    def __init__(self, shape: Shape, lengths: Sequence[int], *, device: str, dtype: str, token_budget: int):
        self.shape, self.device, self.token_budget = shape, device, token_budget
        self.adapter: Adapter = registry.build(shape.family, shape.sizes, seed=0)
        if dtype != "float32":
            checkpoints.cast_parameters(self.adapter.module, dtype)
            self.adapter.dtype = dtype
        self.adapter.module.to(device)
        random = generator(0, "benchmark", "proteins")
        self.sequences = [
            (f"P{i}", "".join(random.choice(list(AMINO_ACIDS), size=length))) for i, length in enumerate(lengths)
        ]
        skips = Skips(parts=("layer",), pos_sets=(shape.pos_set,), local=False, draws=shape.draws)
        self.blocks = {"layer": tuple(range(1, self.adapter.n_blocks + 1))}
        self.proteins = [p for pair in self.sequences for p in self._proteins(pair, skips)]
        self.adapter.can_branch = False  # the plain alternatives run every set on whole rows
        self.plain = [p for pair in self.sequences for p in self._proteins(pair, skips)]
        del self.adapter.can_branch  # the family's own answer again

    def _proteins(self, pair: tuple[str, str], skips: Skips) -> list[Protein]:
        return proteins_of(self.adapter, *pair, self.shape.view, skips, seed=0, blocks=self.blocks)

    @property
    def max_padding(self) -> float:
        """Return the padding that the stage allows on this device."""
        return 0.0 if self.device == "cpu" else 0.1

    def floor(self) -> Floor:
        """Return how far apart equal runs are."""
        given = {"token_budget": self.token_budget, "max_padding": self.max_padding, "log": LOG}
        with torch.inference_mode():
            return noise_floor(self.adapter, self.shape.view, ("layer",), seed=0, **given)

    def sweep(self) -> Result:
        found: Result = {}
        outcomes = sweep(
            self.adapter,
            [protein.work for protein in self.proteins],
            token_budget=self.token_budget,
            max_padding=self.max_padding,
            log=LOG,
        )
        for index, outcome in outcomes:
            protein = self.proteins[index]
            for swept in protein.sweeps:
                lanes = slice(swept.first, swept.first + len(swept.sources))
                read = swept.positions.read
                ratio = outcome.change[lanes][..., read] / outcome.size[:, read]
                kept = read[protein.work.reads]
                l2 = outcome.output["aa20"][lanes, OUTPUTS.index("l2")][:, kept]
                found[protein.sequence_id, swept.positions.draw] = ratio.mean(-1), l2.mean(-1)
        return found

    # --------------------------------------------------------------------------------------------- done plainly

    @property
    def layers(self) -> Sequence[torch.nn.Module]:
        module = self.adapter.module
        return module.transformer.h if self.shape.family == "progen2" else module.esm.encoder.layer

    def forward(self, ids: Tensor, valid: Tensor) -> Tensor:
        options = {"use_cache": False} if self.shape.family == "progen2" else {}
        with self.adapter.precision():
            return self.adapter.module(input_ids=ids, attention_mask=valid.long(), **options).logits

    def jobs(self) -> list[tuple[Protein, int]]:
        """Return (protein, index of its sweep), long ones first: a job is a protein with one position set."""
        jobs = [(protein, k) for protein in self.plain for k in range(len(protein.sweeps))]
        return sorted(jobs, key=lambda job: -job[0].work.n_tokens)

    @torch.inference_mode()
    def hooks(self, token_budget: int) -> Result:
        """One forward pass per silenced block, jobs of similar length side by side, padded by a tenth at most."""
        found: Result = {}
        jobs = self.jobs()
        for batch in plan([protein.work.n_tokens for protein, _ in jobs], token_budget=token_budget):
            found |= self._hooked([jobs[k] for k in batch])
        return found

    def _hooked(self, jobs: Sequence[tuple[Protein, int]]) -> Result:
        batch = self.adapter.collate([protein.work.tokens for protein, _ in jobs], self.device)
        n_tokens = batch.ids.shape[1]
        skip = torch.zeros(len(jobs), n_tokens, 1, dtype=torch.bool)
        for row, (protein, k) in enumerate(jobs):
            skip[row, : protein.work.n_tokens, 0] = torch.from_numpy(protein.sweeps[k].positions.skip)
        skip = skip.to(self.device)
        clean: list[Tensor] = []
        silenced, changes = 0, torch.zeros(len(self.layers), len(jobs), n_tokens, device=self.device)

        def record(number: int, inputs: tuple, output: object) -> object:
            after = output[0] if isinstance(output, tuple) else output
            if silenced == number:
                after = torch.where(skip, inputs[0], after)
            update = after - inputs[0]
            if not silenced:
                clean.append(update)
            else:
                changes[number - 1] = torch.linalg.vector_norm(update - clean[number - 1], dim=-1)
            if silenced != number:
                return None
            return (after, *output[1:]) if isinstance(output, tuple) else after

        handles = [
            layer.register_forward_hook(lambda _, inputs, output, number=number: record(number, inputs, output))
            for number, layer in enumerate(self.layers, start=1)
        ]
        try:
            before = self.forward(batch.ids, batch.valid)
            sizes = torch.stack([torch.linalg.vector_norm(update, dim=-1) for update in clean])
            kept = []
            for block in range(1, len(self.layers) + 1):
                silenced = block
                after = self.forward(batch.ids, batch.valid)
                kept.append((changes.clone(), after))
        finally:
            for handle in handles:
                handle.remove()
        return {
            (protein.sequence_id, protein.sweeps[k].positions.draw): self._reduced(
                protein, k, sizes[:, row], [c[:, row] for c, _ in kept], before[row], [a[row] for _, a in kept]
            )
            for row, (protein, k) in enumerate(jobs)
        }

    def _reduced(
        self, protein: Protein, k: int, sizes: Tensor, changes: list[Tensor], before: Tensor, after: list[Tensor]
    ) -> tuple[np.ndarray, np.ndarray]:
        read = torch.from_numpy(np.flatnonzero(protein.sweeps[k].positions.read)).to(sizes.device)
        ratio = torch.stack(changes)[..., read] / sizes[:, read]
        for source in range(len(changes)):
            ratio[source, :source] = 0  # what a hook could not see has not changed
        reads = protein.work.reads[protein.sweeps[k].positions.read[protein.work.reads]]
        at = torch.from_numpy(reads).to(sizes.device)
        columns = torch.as_tensor(self.adapter.residue_ids, device=sizes.device)
        p = before[at][:, columns].double().softmax(-1)
        q = torch.stack([x[at][:, columns] for x in after]).double().softmax(-1)
        return ratio.mean(-1).cpu().numpy(), torch.linalg.vector_norm(p - q, dim=-1).mean(-1).cpu().numpy()

    @torch.inference_mode()
    def tracing(self) -> Result:
        """The way of published studies: one trace a protein, position and silenced block."""
        from nnsight import NNsight

        traced = NNsight(self.adapter.module)
        layers = traced.transformer.h if self.shape.family == "progen2" else traced.esm.encoder.layer
        is_tuple = self.shape.family == "progen2"
        options = {"use_cache": False} if is_tuple else {}
        found: Result = {}
        for protein, k in self.jobs():
            batch = self.adapter.collate([protein.work.tokens], self.device)
            given = {"input_ids": batch.ids, "attention_mask": batch.valid.long(), **options}
            skip = torch.from_numpy(protein.sweeps[k].positions.skip)[:, None].to(self.device)
            with traced.trace(**given):
                clean = [].save()
                for layer in layers:
                    entering = layer.input
                    clean.append((layer.output[0] if is_tuple else layer.output) - entering)
                before = traced.output.logits.save()
            kept = []
            for block in range(len(layers)):
                with traced.trace(**given):
                    changes = [].save()
                    for number, layer in enumerate(layers):
                        entering = layer.input
                        leaving = layer.output
                        after = leaving[0] if is_tuple else leaving
                        if number == block:
                            after = torch.where(skip, entering, after)
                            layer.output = (after, *leaving[1:]) if is_tuple else after
                        changes.append(torch.linalg.vector_norm(after - entering - clean[number], dim=-1)[0])
                    logits = traced.output.logits.save()
                kept.append((torch.stack(list(changes)), logits[0]))
            sizes = torch.stack([torch.linalg.vector_norm(update, dim=-1)[0] for update in clean])
            found[protein.sequence_id, protein.sweeps[k].positions.draw] = self._reduced(
                protein, k, sizes, [c for c, _ in kept], before[0], [a for _, a in kept]
            )
        return found

    # -------------------------------------------------------------------------------------------------- FLOPs

    def flops(self) -> float:
        """Return the operations of the sweep: products with weights and attention products, block evaluations only."""
        return sum(self._flops(p.work.n_tokens, self._seen(p)) * self._evaluations() for p in self.proteins)

    def linear_flops(self) -> float:
        return sum(self._flops(p.work.n_tokens, 0) * self._evaluations() for p in self.proteins)

    def plain_flops(self) -> float:
        """Return the operations of one full forward pass per silenced block, and the clean one."""
        passes = (len(self.layers) + 1) * len(self.layers)
        return sum(self._flops(p.work.n_tokens, p.work.n_tokens**2) * passes for p, _ in self.jobs())

    def _evaluations(self) -> float:
        n = len(self.layers)
        return n * (n + 1) / 2

    def _flops(self, n_tokens: int, seen: float) -> float:
        d = self.adapter.d_model
        return 24 * d * d * n_tokens + 4 * d * seen

    @staticmethod
    def _seen(protein: Protein) -> float:
        branches = protein.work.branches
        if branches is None:
            return protein.work.n_tokens**2
        ends = zip(branches.points, branches.spans)
        return branches.trunk**2 / 2 + sum((s.stop - s.start) * (p + s.stop - s.start) for p, s in ends)


# ----------------------------------------------------------------------------------------------------------------
# Timing


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(calls: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Return the median seconds of each call; they take turns, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            started = clock(device)
            call()
            if turn:
                seconds[name].append(clock(device) - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def products(setting: Setting, dtype: str) -> dict[str, tuple[Callable[[], object], float]]:
    """Return calls of the library's own products at the model's shapes, by number of rows, and their operations."""
    d, kind = setting.adapter.d_model, getattr(torch, dtype)

    def block(rows: int) -> Callable[[int], None]:
        x, h = (torch.randn(rows, width, device=setting.device, dtype=kind) for width in (d, 4 * d))
        weights = [torch.randn(*s, device=setting.device, dtype=kind) for s in ((d, d),) * 4 + ((4 * d, d), (d, 4 * d))]

        def run(repeats: int) -> None:
            for _ in range(repeats):
                for weight in weights:
                    F.linear(h if weight.shape[1] == h.shape[1] else x, weight)

        return run

    calls = {}
    enough = 2e10 if setting.device == "cpu" else 2e13  # operations: long beside starting a call
    for rows in (512, 1024, 2048, 4096) if setting.device == "cpu" else (8192, 16384, 32768):
        n_flops = 24 * d * d * rows
        repeats = min(max(3, int(enough // n_flops)), 200)
        calls[f"products of {rows} rows"] = partial(block(rows), repeats), float(repeats * n_flops)
    return calls


@contextlib.contextmanager
def peak_bytes(device: str) -> Iterator[dict[str, float]]:
    """Yield what will hold the largest memory meanwhile, bytes: allocated on a GPU, else resident of this process."""
    found: dict[str, float] = {}
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the mark begins anew
    else:
        torch.cuda.reset_peak_memory_stats()
    yield found
    found["bytes"] = high_water() if device == "cpu" else float(torch.cuda.max_memory_allocated())


def high_water() -> float:
    """Return the largest resident set of this process, bytes."""
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(status["VmHWM"].split()[0]) * 1024


def compare(found: Result, expected: Result, what: str, tolerance: float) -> None:
    """Refuse to time alternatives that do not give the same numbers."""
    if found.keys() != expected.keys():
        raise SystemExit(f"{what} measured other proteins or positions than the plain way")
    worst = 0.0
    for key, (matrix, output) in found.items():
        if (np.tril(matrix, -1) != 0).any():
            raise SystemExit(f"{what}: a block before the silenced one changed")
        for one, other in ((matrix, expected[key][0]), (output, expected[key][1])):
            worst = max(worst, float(np.abs(one - other).max() / np.abs(other).max()))
    print(f"  {what}: agrees within {worst:.1e} of the largest value")
    if not worst <= tolerance:
        raise SystemExit(f"{what} is {worst:.2g} away from the plain way, above {tolerance:g}; no ratio is printed")


class Board:
    """Ratios beside their aims and floors, or (tiny shapes) ratios alone."""

    def __init__(self, *, judges: bool) -> None:
        self.judges, self.missed = judges, 0

    def show(self, what: str, value: float, aim: float, floor: float, *, at_most: bool = False, unit: str = "") -> None:
        if not self.judges:
            print(f"  {what}: {value:.2f}{unit}")
            return
        met, held = (value <= aim, value <= floor) if at_most else (value >= aim, value >= floor)
        self.missed += not held
        verdict = "aim met" if met else "floor holds" if held else "FLOOR MISSED"
        sense = "at most" if at_most else "at least"
        print(f"  {what}: {value:.2f}{unit} (aim {sense} {aim:g}, floor {floor:g}): {verdict}")


def lengths_of(n: int, longest: int = 400) -> list[int]:
    """Return n lengths of 60..longest, evenly spread, the longest among them."""
    return [round(x) for x in np.linspace(longest, 60, n)] if n > 1 else [longest]


def run_shape(name: str, options: argparse.Namespace, board: Board) -> None:
    on_cpu = options.device == "cpu"
    shape, longest = SHAPES[name], 100 if options.smoke else 400
    setting = Setting(
        shape,
        lengths_of(options.proteins, longest),
        device=options.device,
        dtype=options.dtype,
        token_budget=options.token_budget,
    )
    print(
        f"{name}: {setting.adapter.n_parameters / 1e6:.0f} M parameters, {options.proteins} proteins, {options.dtype}"
    )
    budget = 2048 if on_cpu else options.token_budget
    calls: dict[str, Callable[[], Result]] = {"sweep": setting.sweep, "hooks": lambda: setting.hooks(budget)}
    if on_cpu:
        calls["one"] = lambda: setting.hooks(1)
    if options.tracing and shape.family == "progen2":
        calls["tracing"] = setting.tracing
    tolerance = TOLERANCE if options.dtype == "float32" else 0.1
    with peak_bytes(options.device) as peak:
        setting.sweep()
    expected = setting.hooks(1)
    for what, call in calls.items():
        if what != "one":
            compare(call(), expected, what, tolerance)
    # The machine's products take turns with the sweep too: both see the same clock and the same neighbours.
    timed = products(setting, options.dtype)
    seconds = interleaved(calls | {what: call for what, (call, _) in timed.items()}, options.repeats, options.device)
    best = max(n_flops / seconds.pop(what) for what, (_, n_flops) in timed.items())
    flops = setting.flops()
    for what, value in seconds.items():
        print(f"  {what:8s} {value:8.3f} s")
    n_residues = sum(len(sequence) for _, sequence in setting.sequences)
    print(
        f"  sweep: {n_residues / seconds['sweep']:.0f} residues a second (all blocks, {shape.draws} position sets), "
        f"peak memory {peak['bytes'] / 1e9:.3f} GB; {setting.floor().describe()}"
    )
    print(f"  operations, plain over sweep: {setting.plain_flops() / flops:.2f}")
    print(f"  products at the model's shapes: {best / 1e9:.0f} GFLOP/s; sweep {flops / seconds['sweep'] / 1e9:.0f}")
    if on_cpu and shape.family == "esm2":
        board.show("hooks, padded batches / sweep", seconds["hooks"] / seconds["sweep"], 2.4, 2.0, unit="x")
        board.show("hooks, one at a time / sweep", seconds["one"] / seconds["sweep"], 2.4, 2.0, unit="x")
    elif on_cpu:
        print(f"  hooks / sweep: {seconds['hooks'] / seconds['sweep']:.2f}x")
    if "tracing" in seconds:
        board.show("tracing / sweep", seconds["tracing"] / seconds["sweep"], 3.8, 3.0, unit="x")
    aim, floor = (85, 65) if on_cpu else (50, 35)
    board.show("share of the product rate", 100 * flops / seconds["sweep"] / best, aim, floor, unit=" %")


def growth(name: str, options: argparse.Namespace, board: Board) -> None:
    """Time against the number of proteins, their length and the models, and peak memory against the number."""
    longest = 80 if options.smoke else 300
    few, many, short = ([longest] * 2, [longest] * 4, [longest // 2] * 2)
    settings = {
        key: Setting(SHAPES[name], lengths, device="cpu", dtype="float32", token_budget=options.token_budget)
        for key, lengths in (("few", few), ("many", many), ("short", short), ("other", few))
    }
    calls = {key: settings[key].sweep for key in ("few", "many", "short")}
    calls["both"] = lambda: (settings["few"].sweep(), settings["other"].sweep())
    seconds = interleaved(calls, options.repeats, "cpu")
    print(f"{name}: growth")
    board.show("time for twice the proteins, over twice", seconds["many"] / seconds["few"] / 2, 1.1, 1.2, at_most=True)
    board.show("time for two models, over twice", seconds["both"] / seconds["few"] / 2, 1.1, 1.2, at_most=True)
    per_flop = {key: seconds[key] / settings[key].flops() for key in ("few", "short")}
    board.show(
        "time for twice the length, over its operations", per_flop["few"] / per_flop["short"], 1.1, 1.2, at_most=True
    )
    memory = {
        (what, n): peak_memory(what, name, n, longest, options)
        for what, n in (("idle", 4), ("sweep", 4), ("sweep", 16), ("hooks", 4))
    }
    base = memory["idle", 4]
    print(
        "  peak memory above an idle model, MB: "
        + ", ".join(f"{k[0]} {k[1]}: {v - base:.0f}" for k, v in memory.items())
    )
    board.show(
        "peak memory, 16 proteins over 4", (memory["sweep", 16]) / (memory["sweep", 4]), 1.05, 1.15, at_most=True
    )
    board.show("peak memory, sweep over hooks", memory["sweep", 4] / memory["hooks", 4], 1.3, 1.3, at_most=True)


def peak_memory(what: str, name: str, n: int, longest: int, options: argparse.Namespace) -> float:
    """Return the largest resident set of a process of its own, MB."""
    given = ["--memory", what, "--shape", name, "--proteins", str(n), "--token-budget", str(options.token_budget)]
    command = [sys.executable, __file__, *given, "--longest", str(longest)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the memory run failed: {done.stderr.strip().splitlines()[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def memory_run(options: argparse.Namespace) -> None:
    lengths = [options.longest] * options.proteins
    setting = Setting(
        SHAPES[options.shape[0]], lengths, device="cpu", dtype="float32", token_budget=options.token_budget
    )
    if options.memory == "idle":
        batch = setting.adapter.collate([setting.plain[0].work.tokens])
        with torch.inference_mode():
            setting.forward(batch.ids, batch.valid)
    elif options.memory == "sweep":
        setting.sweep()
    else:
        setting.hooks(2048)
    print(json.dumps(high_water() / 2**20))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, help="default: esm2_35M and gptj")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--proteins", type=int, default=8)
    parser.add_argument("--token-budget", type=int, help="default: 8192 on a CPU, 65536 on a GPU")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--tracing", action="store_true", help="also the tracing way (GPT-J shape); needs nnsight")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes: shows that the script runs, says nothing")
    parser.add_argument("--memory", choices=("idle", "sweep", "hooks"), help=argparse.SUPPRESS)
    parser.add_argument("--longest", type=int, default=400, help=argparse.SUPPRESS)
    options = parser.parse_args()
    full_precision(threads=1 if options.device == "cpu" else None)
    options.token_budget = options.token_budget or (8192 if options.device == "cpu" else 65536)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this machine offers no CUDA device")
    if options.memory:
        memory_run(options)
        return 0
    if options.tracing:
        try:
            import nnsight  # noqa: F401
        except ImportError as error:
            raise SystemExit(
                f"--tracing needs nnsight, which is used nowhere else: pip install nnsight ({error})"
            ) from None
    board = Board(judges=not options.smoke)
    default = ["smoke_esm2", "smoke_gptj"] if options.smoke else ["esm2_35M", "gptj"]
    for name in options.shape or default:
        run_shape(name, options, board)
    if options.device == "cpu":
        growth("smoke_esm2" if options.smoke else "esm2_35M", options, board)
    return 1 if board.missed else 0


if __name__ == "__main__":
    sys.exit(main())
