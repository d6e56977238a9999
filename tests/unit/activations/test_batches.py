"""Batches: every item once, within the budget, little padding; memory running out halves them."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plm_depth.activations.batches import (
    MAX_PADDING,
    BatchError,
    is_out_of_memory,
    padding_on,
    plan,
    run_groups,
    run_halving,
)

LOG = logging.getLogger("test")


@given(
    n_tokens=st.lists(st.integers(1, 300), max_size=60),
    token_budget=st.integers(1, 1000),
    max_padding=st.floats(0, 1),
)
def test_every_item_once_within_budget_and_padding(n_tokens, token_budget, max_padding):
    batches = plan(n_tokens, token_budget=token_budget, max_padding=max_padding)
    assert sorted(item for batch in batches for item in batch) == list(range(len(n_tokens)))
    for batch in batches:
        lengths = [n_tokens[item] for item in batch]
        area = len(batch) * max(lengths)
        assert len(batch) == 1 or area <= token_budget
        assert area - sum(lengths) <= max_padding * area + 1e-9
    flat = [n_tokens[item] for batch in batches for item in batch]
    assert flat == sorted(n_tokens, reverse=True)


def test_the_plan_is_the_same_every_time_and_keeps_equal_lengths_in_order():
    n_tokens = [7, 9, 7, 9, 7]
    assert plan(n_tokens, token_budget=18) == plan(list(n_tokens), token_budget=18) == [[1, 3], [0, 2], [4]]


def test_batches_are_filled_as_far_as_budget_and_padding_allow():
    assert plan([10] * 7, token_budget=30) == [[0, 1, 2], [3, 4, 5], [6]]
    assert [len(batch) for batch in plan([100, 95, 50, 49], token_budget=1000, max_padding=0.1)] == [2, 2]
    assert [len(batch) for batch in plan([100, 95, 50, 49], token_budget=1000, max_padding=1.0)] == [4]


def test_an_item_longer_than_the_budget_runs_alone_and_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        assert plan([5, 50, 5], token_budget=10, log=LOG) == [[1], [0, 2]]
    assert "1 of 3 proteins are longer than the budget of 10 tokens (longest 50)" in caplog.text


@pytest.mark.parametrize(
    ("n_tokens", "options", "message"),
    [
        ([3], {"token_budget": 0}, "token budget 0"),
        ([3], {"token_budget": 5, "max_padding": 1.5}, "max_padding"),
        ([3, 0], {"token_budget": 5}, "without tokens"),
    ],
)
def test_impossible_plans_are_refused(n_tokens, options, message):
    with pytest.raises(BatchError, match=message):
        plan(n_tokens, **options)


class FakeDevice:
    """Fits ``room`` items; remembers what it was given."""

    def __init__(self, room: int, error: Exception):
        self.room, self.error, self.tried = room, error, []

    def __call__(self, items):
        self.tried.append(list(items))
        if len(items) > self.room:
            raise self.error
        return [10 * item for item in items]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on_in_order(error, caplog):
    device = FakeDevice(2, error)
    with caplog.at_level(logging.WARNING):
        done = list(run_halving([1, 2, 3, 4, 5, 6, 7], device, log=LOG))
    assert [items for items, _ in done] == [[1, 2], [3, 4], [5, 6], [7]]
    assert [value for _, values in done for value in values] == [10, 20, 30, 40, 50, 60, 70]
    assert caplog.text.count("out of memory") >= 3
    assert "7 proteins: going on with 4 and 3" in caplog.text


def test_a_half_that_is_halved_again_keeps_its_place():
    done = list(run_halving([1, 2, 3, 4, 5, 6, 7], FakeDevice(3, MemoryError()), log=LOG))
    assert [items for items, _ in done] == [[1, 2], [3, 4], [5, 6, 7]]


def test_nothing_is_halved_when_everything_fits():
    device = FakeDevice(9, MemoryError())
    assert list(run_halving([1, 2, 3], device, log=LOG)) == [([1, 2, 3], [10, 20, 30])]
    assert device.tried == [[1, 2, 3]]


def test_one_protein_that_does_not_fit_is_named():
    device = FakeDevice(0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(BatchError, match="out of memory for P_7 alone"):
        list(run_halving([7, 8], device, log=LOG, name=lambda item: f"P_{item}"))


def test_other_errors_pass_through_untouched():
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    device = FakeDevice(0, error)
    with pytest.raises(RuntimeError) as raised:
        list(run_halving([1, 2], device, log=LOG))
    assert raised.value is error
    assert device.tried == [[1, 2]]


def test_the_allocators_own_words_are_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_padding_pays_on_a_gpu_only():
    assert padding_on("cpu") == 0 and padding_on("cuda") == MAX_PADDING > 0


def test_groups_come_in_order_and_know_which_are_to_come():
    seen = []

    def run(group, later):
        seen.append((list(group), [list(one) for one in later]))
        return sum(group)

    found = list(run_groups([5, 3, 1, 4], 3, run, is_halved=True, log=LOG, name="lanes"))
    assert found == [([5, 3, 1], 9), ([4], 4)] and seen == [([5, 3, 1], [[4]]), ([4], [])]
    assert list(run_groups([], 3, run, is_halved=True, log=LOG, name="lanes")) == [([], 0)]


def test_a_group_for_which_memory_runs_out_is_halved_where_it_may(caplog):
    def tight(group, later):
        if len(group) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(later)

    found = list(run_groups(range(5), 5, tight, is_halved=True, log=LOG, name="lanes of P1"))
    assert found == [([0, 1], 2), ([2], 1), ([3, 4], 0)]
    assert "out of memory with 5 lanes of P1: going on with 3 at a time" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        list(run_groups(range(5), 5, tight, is_halved=False, log=LOG, name="lanes"))


def test_another_error_of_a_group_is_passed_on():
    def broken(group, later):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        list(run_groups(range(4), 4, broken, is_halved=True, log=LOG, name="lanes"))
