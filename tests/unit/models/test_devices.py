"""Processes that start side by side take different GPUs, wait where there is none, and give theirs back when they die.

The GPUs are stand-ins, names of devices; the processes and the locks are real.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from plm_depth.models import devices

WORKFLOW = Path(__file__).parents[3] / "workflow"
JOB = """
import logging, sys
from pathlib import Path
from plm_depth.models.devices import claim
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
number = claim(sys.argv[2].split(","), log=logging.getLogger(), folder=Path(sys.argv[1]), poll_s=0.05)
print("has", number, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[[str], subprocess.Popen]]:
    """A function that starts a job that claims one of some devices and keeps it until its standard input ends."""
    jobs = []

    def start_job(names: str) -> subprocess.Popen:
        command = [sys.executable, "-u", "-c", JOB, str(tmp_path / "locks"), names]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        jobs.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(WORKFLOW)}, **pipes))
        return jobs[-1]

    yield start_job
    for job in jobs:
        job.kill()
        job.wait()
        job.stdin.close(), job.stdout.close()


def said(job: subprocess.Popen) -> str:
    """Return the next line that is not about waiting to be told."""
    return job.stdout.readline().strip()


def test_jobs_side_by_side_take_different_devices_and_a_third_waits_for_one_that_dies(start):
    first, second = start("GPU-a,GPU-b"), start("GPU-a,GPU-b")
    assert sorted(said(job).split()[3] for job in (first, second)) == ["0", "1"]
    numbers = {said(job): job for job in (first, second)}
    assert set(numbers) == {"has 0", "has 1"}
    third = start("GPU-a,GPU-b")
    assert said(third) == "all 2 GPUs are taken by other jobs; waits for one"
    numbers["has 1"].kill()
    assert "works on GPU 1 of 2 (GPU-b)" in said(third)
    assert said(third) == "has 1"


def test_a_job_that_ends_well_gives_its_device_back(start):
    first = start("GPU-a")
    said(first)
    assert said(first) == "has 0"
    second = start("GPU-a")
    assert "waits" in said(second)
    first.stdin.close()
    assert first.wait(timeout=120) == 0
    said(second)
    assert said(second) == "has 0"


def test_the_same_device_under_another_number_is_the_same_device(start):
    first = start("GPU-a")
    said(first), said(first)
    second = start("GPU-b,GPU-a")
    said(second)
    assert said(second) == "has 0"
    third = start("GPU-b,GPU-a")
    assert "waits" in said(third), "a is the first job's, b the second's, whatever their numbers"


@pytest.fixture
def nothing_held(monkeypatch) -> None:
    held: dict[str, int] = {}
    monkeypatch.setattr(devices, "_held", held)
    yield
    for file in held.values():
        os.close(file)


def test_a_process_keeps_the_device_that_it_has(tmp_path, nothing_held, caplog):
    log = logging.getLogger("test")
    numbers = [devices.claim(["GPU-a", "GPU-b"], log=log, folder=tmp_path) for _ in range(3)]
    assert numbers == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["GPU-a.lock"]


def test_without_a_visible_device_it_says_so(tmp_path):
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        devices.claim([], log=logging.getLogger("test"), folder=tmp_path)


def test_a_machine_without_gpus_just_works(monkeypatch, caplog):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_JOB_GPUS", raising=False)
    assert devices.claimed("cpu", log=logging.getLogger("test")) == "cpu"
    assert caplog.text == ""


@pytest.mark.parametrize(
    "variable, value, is_said",
    [("CUDA_VISIBLE_DEVICES", "0", True), ("SLURM_JOB_GPUS", "3", True), ("CUDA_VISIBLE_DEVICES", "-1", False)],
)
def test_a_gpu_that_a_scheduler_gave_in_vain_is_said(variable, value, is_said, monkeypatch, caplog):
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    assert devices.claimed("cpu", log=logging.getLogger("test")) == "cpu"
    assert (f"a GPU was given to this job ({value}), but it works on the CPU" in caplog.text) == is_said


@pytest.mark.parametrize(
    "name, taken, expected", [("cuda", [], "cuda:0"), ("cuda", [0], "cuda:1"), ("cuda:1", [0], "cuda:1")]
)
def test_a_claimed_device_becomes_the_one_that_torch_uses(name, taken, expected, tmp_path, nothing_held, monkeypatch):
    chosen = []
    monkeypatch.setattr(devices, "identities", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    folder = tmp_path / f"plm-depth-gpus-{os.getuid()}"
    folder.mkdir()
    others = [devices._locked(folder / f"GPU-{'ab'[number]}.lock") for number in taken]
    assert devices.claimed(name) == expected and chosen == [int(expected[-1])]
    for file in others:
        os.close(file)
