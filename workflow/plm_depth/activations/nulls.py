"""Null models: the same measurement on a network, or on inputs, that cannot know proteins.

``randinit``     the architecture with the weights its library initialises it with;
``shuffle_w``    the trained numbers, permuted inside each weight tensor: every tensor's distribution, no structure;
``shuffle_seq``  the trained weights, the residues of each protein permuted, each with what is known of its structure:
                 its composition, no sequence.

``trained`` is the model itself.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from plm_depth import json_text
from plm_depth.models.base import Adapter, Structure
from plm_depth.models.structures import in_order
from plm_depth.randomness import generator

KINDS = ("trained", "randinit", "shuffle_w", "shuffle_seq")
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class NullError(ValueError):
    """A list of null models that says something else than it should."""


@dataclass(frozen=True)
class Null:
    """One null model (or the trained model): ``null_model`` is one of KINDS, ``seed`` is -1 for "trained" only."""

    null_model: str
    seed: int

    def __post_init__(self) -> None:
        if self.null_model not in KINDS:
            raise NullError(f"null model {self.null_model!r}: expected one of {', '.join(KINDS)}")
        is_seed = isinstance(self.seed, int) and not isinstance(self.seed, bool)
        if not is_seed or (self.seed != -1 if self.null_model == "trained" else not 0 <= self.seed < 2**15):
            raise NullError(
                f"seed {self.seed!r} of {self.null_model}: expected -1 for trained and 0..32767 for the null models"
            )

    def __str__(self) -> str:
        return self.null_model if self.seed < 0 else f"{self.null_model} (seed {self.seed})"


def parse_nulls(text: str) -> list[Null]:
    """Return the null models of a JSON list such as ``[{"null_model": "randinit", "seed": 0}]``.

    Raises:
        NullError: not such a list, an empty one, or one that names a null model twice.
    """
    try:
        nulls = [Null(**entry) for entry in json_text.parse(text)]
    except (json.JSONDecodeError, TypeError) as error:
        raise NullError(
            '--nulls: expected a JSON list like [{"null_model": "randinit", "seed": 0}], got '
            f"{json_text.shown(text)} ({error})"
        ) from error
    if not nulls or len(set(nulls)) < len(nulls):
        raise NullError(f"--nulls: expected at least one null model and none twice, got {text!r}")
    return nulls


@contextlib.contextmanager
def applied(adapter: Adapter, null: Null) -> Iterator[Adapter]:
    """Yield the adapter with the weights of a null model; afterwards its own weights are back, bit by bit.

    The weights are changed in place (no second model on the device) and kept meanwhile in the machine's memory. For
    "trained" and "shuffle_seq" nothing is touched.
    """
    if null.null_model not in ("randinit", "shuffle_w"):
        yield adapter
        return
    kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _tensors(adapter.module).items()}
    try:
        if null.null_model == "randinit":
            adapter.reinitialise(null.seed)
        else:
            shuffle_weights(adapter.module, null.seed)
        yield adapter
    finally:
        _restore(adapter.module, kept)


def as_seen(
    null: Null, sequence_id: str, sequence: str, structure: Structure | None = None
) -> tuple[str, Structure | None]:
    """Return residues and structure of a protein as a null model is shown them: permuted alike for "shuffle_seq"."""
    if null.null_model != "shuffle_seq":
        return sequence, structure
    if structure is not None:
        structure = in_order(structure, shuffled_order(len(sequence), null.seed, sequence_id))
    return shuffle_sequence(sequence, null.seed, sequence_id), structure


def shuffle_sequence(sequence: str, seed: int, sequence_id: str) -> str:
    """Return the residues in the order ``shuffled_order``."""
    return "".join(sequence[i] for i in shuffled_order(len(sequence), seed, sequence_id))


def shuffled_order(n_residues: int, seed: int, sequence_id: str) -> np.ndarray:
    """Return an order of the residues, (n_residues,) int, from a generator keyed by (seed, "shuffle_seq", sequence_id).

    The residue that comes to stand at ``i`` is the one that stood at ``order[i]``.
    """
    return generator(seed, "shuffle_seq", sequence_id).permutation(n_residues)


@torch.no_grad()
def shuffle_weights(module: torch.nn.Module, seed: int) -> None:
    """Permute the elements inside each parameter, in place; buffers (rotary frequencies, masks) are left alone.

    Each parameter has its own generator, keyed by (seed, "shuffle_w", name); a tied parameter is permuted once, under
    its first name. The same permutation on every device and for every dtype.
    """
    for name, parameter in module.named_parameters():
        bits = parameter.detach().cpu().contiguous().flatten().view(_BITS[parameter.element_size()]).numpy().copy()
        generator(seed, "shuffle_w", name).shuffle(bits)
        parameter.copy_(torch.from_numpy(bits).view(parameter.dtype).reshape(parameter.shape))


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


@torch.no_grad()
def _restore(module: torch.nn.Module, kept: dict[str, torch.Tensor]) -> None:
    tensors = _tensors(module)
    if tensors.keys() != kept.keys():
        raise NullError(f"a null model changed the names of the tensors: {sorted(tensors.keys() ^ kept.keys())}")
    for name, tensor in tensors.items():
        tensor.copy_(kept[name])
