"""Which proteins go through the model together: batches within a token budget, and what to do when memory runs out.

Nothing measured depends on the batches beyond rounding; they only set speed and peak memory. Rounding, too, is the same
for any shards that are cut between windows: only proteins of one window share a batch.
"""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from plm_depth.sizing import WINDOW

T = TypeVar("T")

MAX_PADDING = 0.1  # share of a batch's tokens that may be padding


class BatchError(ValueError):
    """A batch that cannot be planned, or a single protein that does not fit into memory."""


def plan(
    n_tokens: Sequence[int],
    *,
    token_budget: int,
    max_padding: float = MAX_PADDING,
    window: int | None = None,
    log: logging.Logger | None = None,
) -> list[list[int]]:
    """Return batches of item indices, the longest items first.

    Items of similar length share a batch: rows x padded length stays within ``token_budget`` and at most
    ``max_padding`` of it is padding. Longest first, so that memory runs out at the start or not at all. The result
    depends on the lengths and their order alone; items of equal length stay in order. Every index occurs once.

    Args:
        n_tokens: tokens of each item, specials included, each >= 1.
        token_budget: largest rows x padded length of a batch, >= 1. A longer item gets a batch of its own, logged.
        max_padding: share in [0, 1]; 0 puts only items of equal length together.
        window: only items of one window of so many, in their order, share a batch; None: any.
    Raises:
        BatchError: a budget or a length below 1, or a share outside [0, 1].
    """
    if token_budget < 1:
        raise BatchError(f"token budget {token_budget}: expected at least 1 token; raise --token-budget")
    if not 0 <= max_padding <= 1:
        raise BatchError(f"max_padding {max_padding}: expected a share in [0, 1]")
    if any(n < 1 for n in n_tokens):
        raise BatchError("an item without tokens cannot be batched")
    batches = [
        batch
        for items in windows(range(len(n_tokens)), window or max(1, len(n_tokens)))
        for batch in _plan(items, n_tokens, token_budget, max_padding)
    ]
    batches.sort(key=lambda batch: -n_tokens[batch[0]])
    too_long = sum(n > token_budget for n in n_tokens)
    if too_long and log is not None:
        log.warning(
            f"{too_long} of {len(n_tokens)} proteins are longer than the budget of {token_budget} tokens "
            f"(longest {max(n_tokens)}); each runs alone"
        )
    return batches


def _plan(items: Sequence[int], n_tokens: Sequence[int], token_budget: int, max_padding: float) -> list[list[int]]:
    batches: list[list[int]] = []
    longest = used = 0  # padded length and real tokens of the open batch
    for item in sorted(items, key=lambda i: -n_tokens[i]):
        rows = len(batches[-1]) + 1 if batches else 1
        area = rows * longest
        if batches and area <= token_budget and area - (used + n_tokens[item]) <= max_padding * area:
            batches[-1].append(item)
            used += n_tokens[item]
        else:
            batches.append([item])
            longest = used = n_tokens[item]
    return batches


def windows(items: Sequence[T], size: int = WINDOW) -> Iterator[Sequence[T]]:
    """Yield ``size`` items at a time, in order; the last ones may be fewer."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def padding_on(kind: str) -> float:
    """Return the share of padding that pays on a kind of device: none on "cpu", where short batches cost less."""
    return 0.0 if kind == "cpu" else MAX_PADDING


def run_halving(
    batch: Sequence[T], run: Callable[[list[T]], object], *, log: logging.Logger, name: Callable[[T], str] = str
) -> Iterator[tuple[list[T], object]]:
    """Yield (items, run(items)) for the whole batch, or for ever smaller parts of it where memory runs out.

    Parts are halves, in order, so that the yielded items joined are the batch. ``run`` must leave nothing behind when
    it fails: results are taken from its return value only.

    Raises:
        BatchError: one item alone does not fit; names it.
        Exception: whatever else ``run`` raises, unchanged.
    """
    parts = [list(batch)]
    while parts:
        items = parts.pop(0)
        problem = None
        try:
            result = run(items)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        # Outside of the except clause: its traceback would keep the failed attempt's tensors alive.
        if problem is None:
            yield items, result
            continue
        release_memory()
        if len(items) == 1:
            raise BatchError(
                f"out of memory for {name(items[0])} alone ({problem}); use a device with more memory, "
                "a half-precision dtype for this model, or lower max_length of the data set"
            )
        middle = (len(items) + 1) // 2
        log.warning(
            f"out of memory with {len(items)} proteins: going on with {middle} and {len(items) - middle} "
            f"(lower the token budget to avoid this): {problem}"
        )
        parts[:0] = [items[:middle], items[middle:]]


def run_groups(
    order: Sequence[T],
    size: int,
    run: Callable[[list[T], list[list[T]]], object],
    *,
    is_halved: bool,
    log: logging.Logger,
    name: str,
) -> Iterator[tuple[list[T], object]]:
    """Yield (group, run(group, groups to come)) for groups of ``size`` items, in order; of no items one empty group.

    Args:
        is_halved: whether a group for which memory runs out is halved; else, and for a single item, that is an error.
        name: of the items, for messages.
    Raises:
        Exception: what ``run`` raises.
    """
    groups = [list(order[at : at + size]) for at in range(0, len(order), size)] or [[]]
    while groups:
        group = groups.pop(0)
        is_whole = True
        try:
            result = run(group, groups)
        except (RuntimeError, MemoryError) as error:
            if not is_halved or len(group) < 2 or not is_out_of_memory(error):
                raise
            is_whole = False
        # Outside of the except clause, as in ``run_halving``.
        if is_whole:
            yield group, result
            continue
        release_memory()
        middle = (len(group) + 1) // 2
        log.warning(f"out of memory with {len(group)} {name}: going on with {middle} at a time")
        groups[:0] = [group[:middle], group[middle:]]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that the device's or the machine's memory ran out."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY)


# The CPU allocator and cuBLAS report exhaustion as a plain RuntimeError.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def release_memory() -> None:
    """Give back what a failed attempt left behind."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
