"""What jobs ask for grows with the price of the job and with the attempt."""

import re
from pathlib import Path

import pytest
import yaml

from plm_depth import sizing
from plm_depth.activations.cost import Cost
from plm_depth.prices import Price, Tables, tables_of
from small_study import resolved

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize("longest, expected", [(512, 256), (2000, 64), (3000, 64), (400_000, 64)])
def test_shards_of_longer_proteins_hold_fewer_but_never_less_than_what_shares_batches(longest, expected):
    assert sizing.shard_size_of(65536, min_length=50, max_length=longest) == expected


# ------------------------------------------------------------------------------------- metrics, by the tables they read


def tables(model: str, variant: str | None = None, *, size: int = 5000, **changes: object) -> Tables:
    """Return the tables of a model of the paper study, with another number of proteins."""
    config = {**yaml.safe_load((ROOT / "config" / "config.yaml").read_text()), **changes}
    config["datasets"][0] |= {"size": size}
    return tables_of(resolved(config), "uniref50", model, variant)


# Gigabytes that benchmarks/metrics_scale.py measured at 5,000 proteins, and CPU minutes: docs/scale.md.
MEASURED = [
    ("contributions", "dplm_150m", "null", 4.75, 0),
    ("lens", "dplm_150m", "null", 2.70, 0),
    ("contributions", "esm2_650m", "trained", 0.68, 1.5),
    ("lens", "esm2_650m", "trained", 0.47, 2.6),
    ("profile", "esm2_8m", None, 1.57, 0.5),
    ("summary", "esm2_8m", None, 1.62, 0.3),
    ("profile", "esm2_15b", None, 1.67, 3.4),
    ("summary", "esm2_15b", None, 1.71, 1.8),
    ("profile", "progen2_small", None, 1.06, 0.6),
    ("profile", "progen2_large", None, 1.11, 1.3),
    ("summary", "progen2_large", None, 1.18, 0.6),
    ("profile", "dplm_150m", None, 3.36, 6.5),
    ("summary", "dplm_150m", None, 3.56, 2.7),
    ("profile", "dplm_650m", None, 3.51, 6.7),
    ("summary", "dplm_650m", None, 3.48, 3.4),
]


@pytest.mark.parametrize("stage, model, variant, gigabytes, cpu_minutes", MEASURED)
def test_metrics_ask_for_what_they_were_measured_to_take(stage, model, variant, gigabytes, cpu_minutes):
    of = tables(model, variant)
    asked = sizing.metrics_mb(stage, of, resamples=2000)
    assert 1.1 * gigabytes < asked / 1000 < 2.5 * gigabytes
    assert sizing.metrics_minutes(stage, of) > 1.5 * cpu_minutes


@pytest.mark.parametrize("stage", sizing.METRICS)
def test_metrics_ask_for_more_with_proteins_networks_and_attempts(stage):
    def asked(*where, attempt: int = 1, **changes: object) -> tuple[int, int]:
        of = tables(*where, **changes)
        return sizing.metrics_mb(stage, of, resamples=2000, attempt=attempt), sizing.metrics_minutes(stage, of)

    memory, minutes = asked("dplm_3b")
    small = asked("dplm_3b", size=1024)
    assert small[0] < memory / 1.5 and small[1] <= minutes and minutes % 10 == 0
    assert asked("dplm_3b", attempt=2)[0] == 2 * memory
    assert asked("dplm_3b", "trained")[0] < memory
    assert asked("esm2_3b")[0] < memory, "three views instead of six"
    few = [{"null_model": "randinit", "seed": 0}]
    assert asked("dplm_3b", nulls=few)[0] < memory


def test_views_and_shards_are_counted_as_the_config_has_them():
    of = tables("dplm_3b", "null", size=1024)
    assert (of.layers, of.networks, of.all_networks, of.views, of.groups) == (37, 5, 6, 6, 6 * 1024)
    assert of.shard_tokens == of.tokens / 4 == 6 * 256 * 283
    assert of.reads == pytest.approx((1 + 0.1 + 0.3 + 0.5 + 0.7 + 0.9) * 1024 * 281, rel=0.01)
    assert tables("dplm_3b", "trained").networks == 1


def test_every_stage_of_the_metrics_asks_by_its_own_tables():
    rules = re.split(r"\nrule ", (ROOT / "workflow" / "rules" / "metrics.smk").read_text())[1:]
    for stage in sizing.METRICS:
        (rule,) = (rule for rule in rules if f"plm_depth.metrics.{stage} " in rule)
        assert f'mem_mb=memory_of_metrics("{stage}")' in rule and f'runtime=minutes_of_metrics("{stage}")' in rule
