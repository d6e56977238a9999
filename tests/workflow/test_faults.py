"""Things made to go wrong: the run says so in words, and the next one ends with the numbers of a quiet one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from plm_depth.digest import Digest, digests
from small_study import CONFIG, copy_repository, planned, snakemake

pytestmark = pytest.mark.workflow

STUDY = "results/tiny"
MOMENTS = f"{STUDY}/activations/mini/esm2_tiny/trained/0/moments.parquet"
LENS = f"{STUDY}/activations/mini/esm2_tiny/trained/0/lens.parquet"
CONTRIBUTIONS = f"{STUDY}/metrics/mini/esm2_tiny/trained/contributions.parquet"
EXTRACTION_LOG = f"logs/{STUDY}/extract_activations/mini/esm2_tiny/trained/0.log"
WAIT_S = 1800


def smallest(folder: Path, **changes: object) -> Path:
    """Make a copy of the repository the study of one model, without optional sections; return the folder."""
    config = yaml.safe_load(CONFIG)
    kept = ("study", "seed", "sources", "training", "datasets", "models", "inputs", "nulls", "bootstrap", "compute")
    config = {key: config[key] for key in kept} | {"figures": ["variance"], **changes}
    config["models"] = config["models"][:1]
    # As the default config, too: a config is laid over that one, and gets its sections.
    for name in ("tiny.yaml", "config/config.yaml"):
        (folder / name).write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> Path:
    """A study that ran to its end undisturbed."""
    folder = smallest(copy_repository(tmp_path_factory.mktemp("quiet")))
    result = snakemake(folder, "--cores", "1")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def expected(quiet) -> list[Digest]:
    return digests([quiet / "results"])


@pytest.fixture
def study(quiet, tmp_path) -> Path:
    """A copy of the undisturbed study, in which a test breaks something."""
    return shutil.copytree(quiet, tmp_path / "study", symlinks=True)


def make_due(study: Path, *, passes: bool = True) -> None:
    """Remove a metric, and the tables of the pass behind it: both jobs are due where ``CONTRIBUTIONS`` is asked for."""
    (study / CONTRIBUTIONS).unlink()
    for file in (study / MOMENTS).parent.iterdir() if passes else []:
        file.unlink()


def run_once(study: Path, *options: str) -> subprocess.CompletedProcess:
    return snakemake(study, "--cores", "1", *options, CONTRIBUTIONS)


def ends_as_expected(study: Path, expected: list[Digest]) -> None:
    result = run_once(study)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert digests([study / "results"]) == expected
    assert planned(study) == []


@pytest.fixture
def start(study) -> Iterator[Callable[[], subprocess.Popen]]:
    """A function that starts Snakemake in the study and does not wait; what still runs is killed after the test."""
    started = []

    def start_run() -> subprocess.Popen:
        command = [sys.executable, "-m", "snakemake", "--configfile", "tiny.yaml", "--cores", "1", CONTRIBUTIONS]
        environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}
        with (study / "started.log").open("w") as log:
            started.append(subprocess.Popen(command, cwd=study, env=environment, stdout=log, stderr=subprocess.STDOUT))
        return started[-1]

    yield start_run
    for run in started:
        if run.poll() is None:
            run.kill()
            run.wait()


def until(what: str, found: Callable[[], object]) -> object:
    """Wait until ``found`` returns something, and return it."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.005)
    raise AssertionError(f"waited {WAIT_S} s for {what}")


def writers(study: Path, file: str) -> list[int]:
    """Return the processes that are writing a file under its temporary name."""
    path = study / file
    return [int(one.suffix[1:]) for one in path.parent.glob(f"{path.name}.tmp.*")]


def resume(study: Path) -> subprocess.CompletedProcess:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(study / "workflow"), "HOME": os.environ.get("HOME", "/")}
    command = [sys.executable, "-m", "plm_depth", "resume"]
    return subprocess.run(command, cwd=study, env=environment, capture_output=True, text=True, check=False)


# ----------------------------------------------------------------------------------------------------------------
# Killed


def test_a_killed_run_is_not_resumed_beside_its_own_job_and_then_goes_on(study, start, expected):
    make_due(study)
    run = start()
    (job,) = until("the job to write", lambda: writers(study, MOMENTS))
    os.kill(job, signal.SIGSTOP)  # so that it outlives its run for as long as this test likes
    run.kill()
    run.wait()
    second = run_once(study)
    assert second.returncode == 1 and "lock" in second.stdout + second.stderr
    refused = resume(study)
    assert refused.returncode == 1 and f"process {job}: " in refused.stderr and "still work" in refused.stderr
    assert not (study / MOMENTS).exists(), "nothing half-written stands under the final name"
    os.kill(job, signal.SIGKILL)
    until(
        "the job to end", lambda: not Path(f"/proc/{job}").exists() or "Z (" in Path(f"/proc/{job}/status").read_text()
    )
    resumed = resume(study)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert f"going on with: snakemake --configfile tiny.yaml --cores 1 {CONTRIBUTIONS}" in resumed.stdout
    assert list((study / "results").rglob("*.tmp.*")) == [], "what dead writers left is gone"
    assert digests([study / "results"]) == expected
    assert planned(study) == []


def test_a_job_killed_while_it_writes_leaves_nothing_that_is_taken_for_whole(study, start, expected):
    make_due(study)
    run = start()
    (job,) = until("the job to write", lambda: writers(study, MOMENTS))
    os.kill(job, signal.SIGKILL)
    assert run.wait(timeout=WAIT_S) == 1
    assert "extract_activations" in (study / "started.log").read_text()
    assert not any((study / name).exists() for name in (MOMENTS, LENS))
    ends_as_expected(study, expected)


def test_two_runs_at_once_in_one_folder_do_not_mix(study, start, expected):
    make_due(study)
    first = start()
    (job,) = until("the job to write", lambda: writers(study, MOMENTS))
    os.kill(job, signal.SIGSTOP)  # so that the first run lasts as long as the second takes to start
    second = run_once(study)
    os.kill(job, signal.SIGCONT)
    assert second.returncode == 1 and "lock" in second.stdout + second.stderr
    assert first.wait(timeout=WAIT_S) == 0
    ends_as_expected(study, expected)


# ----------------------------------------------------------------------------------------------------------------
# Disks


def test_a_full_disk_ends_in_one_message_and_no_file(study, expected):
    make_due(study)
    # Files of more than 100 kB cannot be written: the limit that a process can be given, told as a full disk is.
    environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
    command = f"ulimit -f 100; exec {sys.executable} -m snakemake --configfile tiny.yaml --cores 1 {CONTRIBUTIONS}"
    result = subprocess.run(
        ["bash", "-c", command], cwd=study, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stderr[-3000:]
    said = (study / EXTRACTION_LOG).read_text()
    assert "File too large" in said and "Traceback" not in said, said
    assert "activations.extract: " in said.splitlines()[-1] and "moments.parquet" in said.splitlines()[-1]
    assert not (study / MOMENTS).exists() and writers(study, MOMENTS) == []
    ends_as_expected(study, expected)


def test_a_folder_that_cannot_be_written_is_named_and_the_next_run_goes_on(study, expected):
    make_due(study)
    results = study / STUDY / "activations" / "mini" / "esm2_tiny" / "trained" / "0"
    options = f"--configfile tiny.yaml --cores 1 {CONTRIBUTIONS}"
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": os.environ.get("HOME", "/")}
    command = f"exec {sys.executable} -m snakemake {options}"
    if os.geteuid() == 0:  # whom no mode stops
        mounted = f"mount --bind {results} {results} && mount -o remount,ro,bind {results} && {command}"
        run = ["unshare", "--mount", "bash", "-c", mounted]
    else:
        results.chmod(0o500)
        run = ["bash", "-c", command]
    result = subprocess.run(run, cwd=study, env=environment, capture_output=True, text=True, check=False)
    results.chmod(0o755)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{results.relative_to(study)} cannot be written" in result.stderr and "Traceback" not in result.stderr
    ends_as_expected(study, expected)


# ----------------------------------------------------------------------------------------------------------------
# Damaged


def damage(path: Path) -> None:
    """Change one byte of a page of data, as a bad disk does; size and time stay."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_damaged_activations_are_named_before_a_metric_uses_them_and_computed_again_once_deleted(study, expected):
    make_due(study, passes=False)
    damage(study / MOMENTS)
    result = run_once(study)
    assert result.returncode == 1 and not (study / CONTRIBUTIONS).exists()
    said = (study / f"logs/{STUDY}/measure_contributions/mini/esm2_tiny/trained.log").read_text()
    assert MOMENTS in said and "delete it and run again" in said and "Traceback" not in said
    (study / MOMENTS).unlink()
    ends_as_expected(study, expected)


def test_a_truncated_source_is_refused_by_its_digest_and_the_whole_one_is_taken(tmp_path, quiet):
    folder = copy_repository(tmp_path)
    whole = (folder / "resources" / "mini" / "sequences.fasta").read_bytes()
    source = {"name": "mini", "url": (folder / "offered.fasta").as_uri()}
    source["sha256"] = yaml.safe_load((folder / "config" / "mini.yaml").read_text())["sources"][0]["sha256"]
    smallest(folder, sources=[source])
    (folder / "offered.fasta").write_bytes(whole[: len(whole) // 2])
    target = f"{STUDY}/training/pool.parquet"
    result = snakemake(folder, "--cores", "1", target)
    assert result.returncode == 1
    said = (folder / "logs/download_source/offered.fasta.log").read_text()
    assert source["sha256"] in said and "Traceback" not in said
    assert not (folder / "resources" / "downloads" / "offered.fasta").exists()
    (folder / "offered.fasta").write_bytes(whole)
    result = snakemake(folder, "--cores", "1", target)
    assert result.returncode == 0, result.stderr[-3000:]
    found = digests([folder / "results"])
    assert "tiny/training/pool.parquet" in {one.name for one in found}
    assert [one for one in digests([quiet / "results"]) if one.name in {other.name for other in found}] == found


@pytest.mark.parametrize(
    "value, said",
    [
        (float("nan"), r"layer\.1\.intermediate\.dense\.weight holds NaN or inf"),
        (float("inf"), r"layer\.1\.intermediate\.dense\.weight holds NaN or inf"),
        (1e38, "logits are not finite"),  # it is finite itself
    ],
)
def test_broken_weights_and_activations_end_in_words_and_write_no_number(study, expected, value, said):
    make_due(study)
    weights = study / STUDY / "checkpoints" / "esm2_tiny" / "model.safetensors"
    before = weights.read_bytes(), weights.stat()
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("layer.1.intermediate.dense.weight"))
    tensors[name] = torch.full_like(tensors[name], value)
    with weights.open("rb") as file:
        about = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    save_file(tensors, weights, metadata=about)
    os.utime(weights, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
    result = run_once(study)
    assert result.returncode == 1
    log = (study / EXTRACTION_LOG).read_text()
    assert re.search(said, log) and "Traceback" not in log, log
    assert not (study / MOMENTS).exists()
    weights.write_bytes(before[0])
    os.utime(weights, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
    ends_as_expected(study, expected)


# ----------------------------------------------------------------------------------------------------------------
# Clocks


def test_files_from_the_future_cost_at_most_one_more_run_of_what_reads_them(study, expected):
    tomorrow = time.time() + 86400
    os.utime(study / MOMENTS, (tomorrow, tomorrow))
    # Large files are judged by their time alone; here all are.
    options = ["--max-checksum-file-size", "0"]
    result = snakemake(study, "--cores", "1", *options)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "were written in the future" in result.stderr
    assert (study / MOMENTS).stat().st_mtime < time.time() + 1
    assert digests([study / "results"]) == expected
    assert planned(study, *options) == []
