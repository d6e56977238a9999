"""Tuned lens (C5): a linear translator a layer, fitted so that its read-out says what the last layer says.

    python -m plm_depth.activations.tuned_lens --card P --sequences P --clusters P --nulls JSON --inputs JSON
        --settings JSON --seed N --translators P --tuned P --logit P

    p~_k = softmax R(h_k + W_k h_k + b_k),   W_k, b_k from zero, minimising KL(p_n || p~_k);   k = n stays as it is

What the logit lens cannot read from a layer may be not yet computed, or computed in another basis; a translator undoes
the latter (Belrose and others 2023, arXiv 2303.08112). Translators are fitted at the read positions of all views
together, one set for each null model, on proteins of similarity clusters that are not evaluated: a cluster is evaluated
if its uniform number, keyed by (seed, "tuned_lens", cluster_id), is below ``held_out``. Each pass over the training
proteins hides other residues than the evaluation does.

Read-outs of the evaluated proteins are written twice, with and without the translators, at the same positions. Their
metadata hold the composition of the residues that were read in training (``background``), the reference of a predictor
that knows nothing but that.

Steps are measured in the stream's own scale: an update moves a coordinate by about ``learning_rate`` times the size of
the coordinates, whatever the width and the length of the stream.
"""

import argparse
import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plm_depth.activations import TUNED_LENS_VERSION
from plm_depth.activations.batches import plan, run_halving
from plm_depth.activations.door import (
    add_model_options,
    check_sequences,
    loaded,
    read_shard,
    running,
    views_for,
)
from plm_depth.activations.extract import Item, constants_of, item_of, lens_keys, states_at
from plm_depth.activations.gradients import frozen
from plm_depth.activations.nulls import Null, applied, as_seen, parse_nulls
from plm_depth.activations.settings import SettingsError, check_counts, read_settings
from plm_depth.metrics.corpus import read_clusters
from plm_depth.models.base import Adapter
from plm_depth.progress import Progress
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS, LENS_KEYS, VectorWriter, replacing
from plm_depth.views import View

SMALLEST_SCALE = 0.01  # of the last state's coordinates: the scale of a bias where a state is (nearly) zero
OTHER_MASKS = 1000  # mask draws of training count from here, so that none is one of the evaluation


class TunedLensError(ValueError):
    """Proteins or settings that no translator can be fitted with: what was expected, what came and the mend."""


@dataclass(frozen=True)
class Settings:
    """How translators are fitted.

    Attributes:
        train: most proteins that they are fitted on, the first of the sample whose clusters are not evaluated.
        size: most proteins that are evaluated, the first of the sample whose clusters are.
        held_out: share of the clusters that is evaluated.
        steps: optimiser steps (Adam, its rate falling linearly to zero); 0 leaves the logit lens.
        batch: proteins of a step.
        learning_rate: of the first step, see the module.
    """

    train: int = 256
    size: int = 128
    held_out: float = 0.5
    steps: int = 250
    batch: int = 8
    learning_rate: float = 0.02

    def __post_init__(self) -> None:
        check_counts(self, "--settings", train=1, size=1, batch=1, steps=0)
        for name, most in (("held_out", 1.0), ("learning_rate", 10.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < most:
                raise SettingsError(f"--settings: {name} is {value!r}; expected a number above 0 and below {most:g}")


def split(
    sequences: Sequence[tuple[str, str]], clusters: Mapping[str, str], settings: Settings, seed: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the proteins to fit on and those to evaluate, in their order; no similarity cluster is in both.

    Raises:
        TunedLensError: a protein without a cluster, or one of the two is empty.
    """
    missing = [sequence_id for sequence_id, _ in sequences if sequence_id not in clusters]
    if missing:
        raise TunedLensError(
            f"{len(missing)} proteins have no cluster, the first {missing[0]!r}; clusters of other data?"
        )
    is_held_out = {
        cluster: generator(seed, "tuned_lens", cluster).random() < settings.held_out
        for cluster in set(clusters.values())
    }
    train = [pair for pair in sequences if not is_held_out[clusters[pair[0]]]][: settings.train]
    evaluated = [pair for pair in sequences if is_held_out[clusters[pair[0]]]][: settings.size]
    if not train or not evaluated:
        raise TunedLensError(
            f"{len(sequences)} proteins of {len(is_held_out)} clusters: {len(train)} to fit on and {len(evaluated)} to "
            "evaluate; expected at least one of each: a larger data set, or another tuned_lens.held_out"
        )
    return train, evaluated


# ----------------------------------------------------------------------------------------------------------------
# Translators


@dataclass(frozen=True, eq=False)
class Translators:
    """Translators of layers 0..n_blocks - 1: weight (n_blocks, d_model, d_model), bias (n_blocks, d_model)."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def zero(cls, adapter: Adapter) -> "Translators":
        """Return translators that change nothing, in the dtype of the stream."""
        kind = torch.promote_types(next(adapter.module.parameters()).dtype, torch.float32)
        shape = (adapter.n_blocks, adapter.d_model)
        return cls(*(torch.zeros(s, dtype=kind, device=adapter.device) for s in ((*shape, shape[1]), shape)))

    def __call__(self, states: Tensor, layers: slice = slice(None)) -> Tensor:
        """Return translated states (n_layers, n_reads, d_model) of the given layers."""
        return states + (states @ self.weight[layers].mT + self.bias[layers, None])


@torch.no_grad()
def states_of(adapter: Adapter, items: Sequence[Item]) -> Tensor:
    """Return the states of every layer at the read positions of a batch, (n_blocks + 1, n_reads, d_model)."""
    reads = [item.tokens.residue_tokens[item.reads] + adapter.read_offset for item in items]
    return states_at(adapter, [item.tokens for item in items], reads)


def batches_of(
    adapter: Adapter, items: Sequence[Item], token_budget: int, log: logging.Logger
) -> Iterator[tuple[list[Item], Tensor]]:
    """Yield proteins and their states, as many together as the budget and the memory allow."""
    for batch in plan([item.tokens.n_tokens for item in items], token_budget=token_budget):
        yield from run_halving(
            [items[i] for i in batch],
            lambda part: states_of(adapter, part),
            log=log,
            name=lambda item: f"protein {item.sequence_id}",
        )


def fit(
    adapter: Adapter,
    proteins: Sequence[tuple[str, str]],
    views: Sequence[View],
    settings: Settings,
    *,
    seed: int,
    token_budget: int,
    log: logging.Logger,
) -> tuple[Translators, np.ndarray, np.ndarray]:
    """Return fitted translators, the losses, and the composition of the residues read.

    Args:
        proteins: (sequence_id, sequence) pairs, as the network is shown them.
        views: taken in turn, one a step.
    Returns:
        Translators; KL(p_n || p~_k) of every step in nats, (steps, n_blocks), over all real tokens; shares of the amino
        acids, (20,), in the order of ``AMINO_ACIDS``.
    Raises:
        TunedLensError: nothing is read in a step, or a loss is not finite.
    """
    columns = torch.tensor(list(adapter.vocabulary), device=adapter.device)
    counts = np.zeros(len(AMINO_ACIDS), np.int64)
    translators, scale = Translators.zero(adapter), None
    weight, bias = translators.weight.clone().requires_grad_(), translators.bias.clone().requires_grad_()
    optimiser = torch.optim.Adam(
        [
            {"params": [weight], "lr": settings.learning_rate / adapter.d_model},
            {"params": [bias], "lr": settings.learning_rate},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / max(settings.steps, 1))
    losses = np.zeros((settings.steps, adapter.n_blocks))
    order = _order(proteins, settings, seed)
    progress = Progress(log, settings.steps, "steps")
    for step in range(settings.steps):
        view = views[step % len(views)]
        items = []
        for index, epoch in next(order):
            sequence_id, sequence = proteins[index]
            shown = view if view.reads == "next" else dataclasses.replace(view, mask_draw=OTHER_MASKS + epoch)
            items.append(item_of(adapter, sequence_id, sequence, shown, seed=seed))
        items = [item for item in items if len(item.reads)]
        n_reads = sum(len(item.reads) for item in items)
        if not n_reads:
            raise TunedLensError(f"step {step}: no residue is read; raise tuned_lens.batch or the noise level")
        for item in items:
            counts += np.bincount([AMINO_ACIDS.index(item.sequence[p]) for p in item.reads], minlength=len(counts))
        optimiser.zero_grad()
        batches = batches_of(adapter, items, token_budget, log)
        if scale is None:  # of all proteins of the first step, however they are batched
            batches = list(batches)
            scale = scale_of([states for _, states in batches])
        for _, states in batches:
            last, states = states[-1], states[:-1]
            with torch.no_grad(), adapter.precision():
                target = _log_p(adapter.read_out(last)[:, columns])
            at_once = max(1, token_budget // len(last))
            for first in range(0, adapter.n_blocks, at_once):
                layers = slice(first, first + at_once)
                moved = Translators(weight, bias * scale)(states[layers], layers)
                with adapter.precision():
                    logits = adapter.read_out(moved)[..., columns]
                loss = (target.exp() * (target - _log_p(logits))).sum((-2, -1)) / n_reads
                loss.sum().backward()
                losses[step, layers] += loss.detach().cpu().numpy()
        if not np.isfinite(losses[step]).all():
            raise TunedLensError(
                f"the loss is NaN or infinite at step {step}; lower tuned_lens.learning_rate or use a wider dtype"
            )
        optimiser.step()
        schedule.step()
        progress.advance()
    progress.finish()
    if scale is not None:
        translators = Translators(weight.detach(), (bias * scale).detach())
    return translators, losses, counts / max(counts.sum(), 1)


def scale_of(parts: Sequence[Tensor]) -> Tensor:
    """Return the size of a coordinate of each layer but the last, (n_blocks, 1), in which its bias is measured."""
    squares = sum(states.double().square().sum((1, 2)) for states in parts)
    sizes = (squares / sum(states[0].numel() for states in parts)).sqrt()
    return torch.maximum(sizes[:-1], SMALLEST_SCALE * sizes[-1]).to(parts[0].dtype)[:, None]


def _log_p(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _order(proteins: Sequence, settings: Settings, seed: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the proteins of each step as (index, pass over the proteins), in another order each pass."""
    waiting: list[tuple[int, int]] = []
    epoch = 0
    while True:
        while len(waiting) < settings.batch:
            order = generator(seed, "tuned_lens order", epoch).permutation(len(proteins))
            waiting += [(int(index), epoch) for index in order]
            epoch += 1
        yield waiting[: settings.batch]
        waiting = waiting[settings.batch :]


@torch.no_grad()
def read_outs(adapter: Adapter, states: Tensor, translators: Translators | None) -> np.ndarray:
    """Return the logits of every layer, (n_blocks + 1, n_reads, n_real_tokens); the last layer is never translated."""
    columns = torch.tensor(list(adapter.vocabulary), device=adapter.device)
    found = []
    for layer, state in enumerate(states):
        if translators is not None and layer < adapter.n_blocks:
            state = translators(state[None], slice(layer, layer + 1))[0]
        with adapter.precision():
            found.append(adapter.read_out(state)[:, columns].to(state.dtype))
    return torch.stack(found).cpu().numpy()


# ----------------------------------------------------------------------------------------------------------------
# A data set


def measure(
    adapter: Adapter,
    sequences: Sequence[tuple[str, str]],
    clusters: Mapping[str, str],
    *,
    translators: Path,
    tuned: Path,
    logit: Path,
    model_id: str,
    nulls: Sequence[Null],
    views: Sequence[View],
    settings: Settings,
    seed: int,
    token_budget: int = 4096,
    log: logging.Logger,
) -> dict[str, int]:
    """Fit translators under every null model, write them, and the read-outs of the evaluated proteins.

    Args:
        sequences: (sequence_id, sequence) of the sample, in rank order.
        clusters: cluster id of each.
        views: clean inputs are left out: they would be read at residues that are shown.
    Returns:
        Rows of the read-outs, and proteins fitted on and evaluated.
    Raises:
        TunedLensError, SequenceError, BatchError, TableError: nothing stands under the final names.
    """
    from safetensors.torch import save_file

    check_sequences(sequences)
    hidden = [view for view in views if view.reads != "visible"]
    if len(hidden) < len(views):
        log.info(f"{len(views) - len(hidden)} clean views left out: they read residues that are shown")
    if not hidden:
        raise TunedLensError("no view is left that reads hidden or next residues; give one in tuned_lens.inputs")
    if not adapter.tokens_are_residues:
        log.warning(f"{model_id}: its tokens are not residues, nothing is read residue by residue; no translator")
    train, evaluated = split(sequences, clusters, settings, seed)
    log.info(f"{len(train)} proteins to fit on, {len(evaluated)} of other clusters to evaluate")
    started = time.monotonic()
    tensors: dict[str, Tensor] = {}
    curves: dict[str, dict[str, list[float]]] = {}
    fitted: list[tuple[Null, Translators]] = []
    background = np.full(len(AMINO_ACIDS), 1 / len(AMINO_ACIDS))
    with frozen(adapter):
        for null in nulls if adapter.tokens_are_residues else ():
            with applied(adapter, null):
                shown = [(i, as_seen(null, i, s)[0]) for i, s in train]
                one, losses, shares = fit(
                    adapter, shown, hidden, settings, seed=seed, token_budget=token_budget, log=log
                )
            fitted.append((null, one))
            if settings.steps:
                if null.null_model != "shuffle_seq":  # residues in another order: the same composition
                    background = shares
                few = max(1, settings.steps // 10)
                ends = {"first": losses[:few].mean(0), "last": losses[-few:].mean(0)}
                curves[str(null)] = {name: values.tolist() for name, values in ends.items()}
                log.info(
                    f"{null}: mean KL over layers from {ends['first'].mean():.3g} to {ends['last'].mean():.3g} nats"
                )
            name = f"{null.null_model}.{null.seed}"
            tensors |= {f"{name}.weight": one.weight.cpu(), f"{name}.bias": one.bias.cpu()}
        about = constants_of(adapter, model_id=model_id, seed=seed) | {
            "version": TUNED_LENS_VERSION,
            "background": background.tolist(),
        }
        names = list(adapter.vocabulary.values())
        layers = range(adapter.n_blocks + 1)
        with (
            VectorWriter(tuned, LENS_KEYS, layers, len(names), "float32", about, names) as tuned_writer,
            VectorWriter(logit, LENS_KEYS, layers, len(names), "float32", about, names) as logit_writer,
            replacing(translators) as temporary,
        ):
            progress = Progress(log, len(fitted) * len(hidden) * len(evaluated), "proteins")
            for null, one in fitted:
                with applied(adapter, null):
                    for view in hidden:
                        items = [item_of(adapter, i, as_seen(null, i, s)[0], view, seed=seed) for i, s in evaluated]
                        for part, states in batches_of(adapter, items, token_budget, log):
                            keys = lens_keys(part, null, view)
                            tuned_writer.append(keys, read_outs(adapter, states, one))
                            logit_writer.append(keys, read_outs(adapter, states, None))
                            progress.advance(len(part))
            progress.finish()
            metadata = {"model_id": model_id, "settings": json.dumps(settings.__dict__), "kl": json.dumps(curves)}
            save_file(tensors, temporary, metadata=metadata)
    counts = {"rows": tuned_writer.n_rows, "train": len(train), "evaluated": len(evaluated)}
    log.info(f"{time.monotonic() - started:.1f} s; rows {counts['rows']}")
    return counts


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m plm_depth.activations.tuned_lens", description=__doc__.split("\n")[0]
    )
    add_model_options(parser)
    parser.add_argument("--sequences", type=Path, required=True, help="the sample (SEQUENCES table)")
    parser.add_argument("--clusters", type=Path, required=True, help="CLUSTERS table of the data set")
    parser.add_argument("--nulls", required=True, help="JSON list of {null_model, seed}")
    parser.add_argument("--inputs", required=True, help="JSON: the inputs section of the config")
    parser.add_argument("--settings", default="{}", help="JSON: train, size, steps, ...; see the module")
    parser.add_argument("--seed", type=int, required=True, help="of masks, of the split and of the order of proteins")
    parser.add_argument("--translators", type=Path, required=True, help="safetensors file of the translators")
    parser.add_argument("--tuned", type=Path, required=True, help="vector table: translated read-outs")
    parser.add_argument("--logit", type=Path, required=True, help="vector table: the same without translators")
    options = parser.parse_args(argv)
    with running("activations.tuned_lens", TunedLensError) as log:
        nulls, settings = parse_nulls(options.nulls), read_settings(Settings, options.settings, "--settings")
        sequences = read_shard(options.sequences)
        clusters = read_clusters(options.clusters)
        model_id, adapter = loaded(options, log)
        measure(
            adapter,
            sequences,
            clusters,
            translators=options.translators,
            tuned=options.tuned,
            logit=options.logit,
            model_id=model_id,
            nulls=nulls,
            views=views_for(adapter, options.inputs, log),
            settings=settings,
            seed=options.seed,
            token_budget=options.token_budget,
            log=log,
        )


if __name__ == "__main__":
    main()
