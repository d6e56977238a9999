"""Parts of a forward pass that keep their own precision under autocast."""

from collections.abc import Callable

import torch
from torch import Tensor


def outside_autocast(function: Callable) -> Callable:
    """Return a function of tensors that runs with autocast off, in the dtypes of its arguments."""

    def in_its_own_precision(first: Tensor, *others: object, **options: object) -> object:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *others, **options)

    return in_its_own_precision
