"""Modules before training: drawn by their library under a seed, or empty until a checkpoint fills them."""

import copy
from collections.abc import Callable

import torch

from plm_depth.randomness import key_of


def untrained(make: Callable[[], torch.nn.Module], seed: int | None) -> torch.nn.Module:
    """Return the module that ``make`` constructs.

    Args:
        make: constructs a module.
        seed: of the library's random initialisation; the caller's random numbers are left as they were. None leaves
            the parameters unset, which spares the time for a large model that is filled from a file. Parameters that
            the library ties are tied in both cases.
    """
    if seed is None:
        from transformers.initialization import no_init_weights

        with no_init_weights():
            module = make()
        if hasattr(module, "tie_weights"):  # part of the initialisation that was left out
            module.tie_weights()
        return module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_of(seed, "initialisation") % 2**63)
        return make()


def of_depth(config, n_blocks: int):
    """Return a copy of a transformers config with another number of blocks."""
    shallower = copy.deepcopy(config)
    shallower.num_hidden_layers = n_blocks  # the library maps it to the family's own key (n_layer)
    return shallower
