"""What jobs ask for grows with the price of the job and with the attempt."""

import pytest

from plm_depth import sizing
from plm_depth.activations.cost import Cost
from plm_depth.prices import Price

GB = 10**9


def price(flops: float = 0.0, *, weights_gb: float = 0.0, room_gb: float = 4, itemsize: int = 4) -> Price:
    memory = (weights_gb + room_gb) * GB
    return Price("extract_activations", "x", "m", Cost(flops=flops), itemsize, memory_bytes=memory)


def minutes(of: Price | None, **changes: object) -> int:
    return sizing.minutes(of, **({"device": "cuda", "threads": 4, "room_gb": 4} | changes))


def test_a_resource_doubles_with_every_attempt():
    assert [sizing.growing(1000)(None, attempt) for attempt in (1, 2, 3)] == [1000, 2000, 4000]


def test_memory_holds_the_weights_once_and_its_room_doubles():
    assert sizing.memory_mb(price(weights_gb=1.5), room_gb=4) == 5500
    assert sizing.memory_mb(price(weights_gb=1.5), room_gb=4, attempt=3) == 17500


def test_time_grows_with_work_weights_and_attempts_and_falls_with_speed():
    short, long = minutes(price(1e15)), minutes(price(1e18))
    assert sizing.SHORTEST <= short < long
    assert minutes(price(1e18), attempt=2) == 2 * long
    assert minutes(price(1e18, itemsize=2)) < long < minutes(price(1e18), tflops=1)
    assert minutes(price(1e15), device="cpu") > short
    assert minutes(price(1e15), device="cpu", threads=8) < minutes(price(1e15), device="cpu")
    assert minutes(price(1e15, itemsize=2), device="cpu") == minutes(price(1e15), device="cpu")
    assert minutes(price(1e15, weights_gb=60)) > short
    assert short % 10 == long % 10 == 0


def test_a_model_of_unknown_size_asks_for_the_room_and_a_few_hours():
    assert sizing.memory_mb(None, room_gb=4) == 4000
    assert minutes(None) == sizing.UNPRICED and minutes(None, attempt=2) == 2 * sizing.UNPRICED


@pytest.mark.parametrize("longest, expected", [(512, 256), (2000, 64), (3000, 43), (400_000, 1)])
def test_shards_of_longer_proteins_hold_fewer_and_never_none(longest, expected):
    assert sizing.shard_size_of(65536, min_length=50, max_length=longest) == expected
