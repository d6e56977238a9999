"""What jobs ask of a cluster: memory and minutes, from their prices, more with every attempt.

Requests, not promises: a job that is killed for want of either is started again with twice as much (the profile's
``retries``). Nothing here reads data, so that a dry run knows every number.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from plm_depth.prices import Price, Tables

# Operations a second (10^12) that a pass is taken to reach where the config does not say (compute.tflops), for float32
# weights: a third of what the preflight assumes, so that an older GPU is asked for long enough.
GPU_TFLOPS = 8.0
CPU_TFLOPS_PER_THREAD = 0.01
HALF_PRECISION = 5.0  # times as fast, on a GPU
SAFETY = 2.0  # minutes asked for, over minutes expected
LOADING = 20e6  # bytes a second of weights: read once from a shared disk, drawn or permuted once for each null model
# Proteins of a data set, in its order, that may share a batch, unless the config says another number. What shares a
# batch decides the last bits of a number, so shards are multiples of it: they have the batches, and the bits, of one.
WINDOW = 64
SHORTEST = 30  # minutes: queues care about hours, a slow disk at the start about minutes
UNPRICED = 240  # minutes of a job whose model has no known size


class Room(NamedTuple):
    """What a stage of the metrics needs, measured at 5,000 proteins (docs/scale.md) and rounded up.

    Tokens are read positions where the stage reads logits. Bytes ``of_shard``: of a token of the largest shard and
    network; ``of_token``: of a token of all of them; ``of_group``: of a protein, view and network; ``of_resample``: of
    a protein in a resample; ``of_layer``: of a layer, view and network; ``of_profile``: of these in a resample.
    Seconds: of a token, or of a group, at one layer.
    """

    of_shard: float
    of_token: float
    of_group: float
    of_resample: float
    of_layer: float
    of_profile: float
    seconds_of_token: float
    seconds_of_group: float


METRICS = {
    "contributions": Room(500, 45, 15e3, 0, 0, 0, 0.9e-6, 0),
    "lens": Room(700, 45, 5e3, 0, 0, 0, 3e-6, 0),
    "profile": Room(0, 0, 18e3, 24, 450e3, 0, 0, 70e-6),
    "summary": Room(0, 0, 18e3, 24, 0, 13 * 16, 0, 35e-6),
}
READS_LOGITS = {"lens"}
START = 600  # megabytes of a process that has read nothing


def growing(amount: int) -> Callable[..., int]:
    """Return a resource of a rule: ``amount`` at the first attempt and twice as much at each further one."""
    return lambda wildcards, attempt: amount * 2 ** (attempt - 1)


def memory_mb(price: "Price | None", *, room_gb: float, attempt: int = 1) -> int:
    """Return the megabytes to ask for: those of the price, whose room to work doubles with attempts.

    Args:
        price: None where the size of the model is unknown: then it is the room alone.
        room_gb: what a pass needs beside the weights (compute.memory_gb).
        attempt: 1 for the first.
    """
    return math.ceil((_weights(price, room_gb) + room_gb * 1e9 * 2 ** (attempt - 1)) / 1e6)


def metrics_mb(stage: str, tables: "Tables", *, resamples: int, attempt: int = 1) -> int:
    """Return the megabytes that a stage of the metrics asks for, doubling with attempts.

    Args:
        stage: a key of ``METRICS``.
        tables: what it reads.
        resamples: of the bootstrap.
        attempt: 1 for the first.
    """
    room = METRICS[stage]
    is_of_logits = stage in READS_LOGITS
    shard, tokens = (tables.shard_reads, tables.reads) if is_of_logits else (tables.shard_tokens, tables.tokens)
    n_bytes = (room.of_shard * shard + room.of_token * tokens + room.of_group * tables.groups) * tables.networks
    n_bytes += room.of_resample * tables.proteins * resamples
    layers = tables.layers * tables.views * tables.all_networks
    n_bytes += (room.of_layer + room.of_profile * resamples) * layers
    return math.ceil(START + n_bytes / 1e6) * 2 ** (attempt - 1)


def metrics_minutes(stage: str, tables: "Tables", *, attempt: int = 1) -> int:
    """Return the minutes that a stage of the metrics asks for, in tens, doubling with attempts."""
    room = METRICS[stage]
    tokens = tables.reads if stage in READS_LOGITS else tables.tokens
    seconds = tables.layers * (
        room.seconds_of_token * tokens * tables.networks + room.seconds_of_group * tables.groups * tables.all_networks
    )
    return math.ceil((SHORTEST + SAFETY * seconds / 60) / 10) * 10 * 2 ** (attempt - 1)


def minutes(
    price: "Price | None",
    *,
    room_gb: float,
    device: str,
    threads: int,
    tflops: float | None = None,
    attempt: int = 1,
) -> int:
    """Return the minutes to ask for, in tens, doubling with attempts.

    Args:
        price: of the job; None where the size of the model is unknown.
        room_gb: as in ``memory_mb``.
        device: of the config; all but ``cpu`` is taken to be a GPU.
        threads: of a pass on a CPU.
        tflops: 10^12 operations a second of float32 weights, where the config states it.
        attempt: 1 for the first.
    """
    if price is None:
        return UNPRICED * 2 ** (attempt - 1)
    if tflops is None:
        tflops = CPU_TFLOPS_PER_THREAD * threads if device == "cpu" else GPU_TFLOPS
    if device != "cpu" and price.itemsize == 2:
        tflops *= HALF_PRECISION
    seconds = price.cost.flops / (tflops * 1e12) + _weights(price, room_gb) / LOADING
    return math.ceil((SHORTEST + SAFETY * seconds / 60) / 10) * 10 * 2 ** (attempt - 1)


def _weights(price: "Price | None", room_gb: float) -> float:
    """Return the bytes of a price that are not room to work."""
    return max(0.0, price.memory_bytes - room_gb * 1e9) if price else 0.0


def shard_size_of(shard_tokens: int, window: int = WINDOW, *, min_length: int, max_length: int) -> int:
    """Return how many proteins have about ``shard_tokens`` residues; the data are not looked at.

    A multiple of ``window``, the proteins that may share a batch, and at least one.
    """
    wanted = 2 * shard_tokens / (min_length + max_length)
    return window * max(1, round(wanted / window))
