"""The Slurm profile on a real Slurm: a private one of one node, whose daemons run as long as a test.

Where Slurm is not installed these tests say so; the continuous integration installs it.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from plm_depth.digest import digests
from small_study import CONFIG, KERNELS, ROOT, STUDY_S, copy_repository, snakemake

SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
NEEDED = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "sbatch", "sacct")
MISSING = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}") is None]
pytestmark = [
    pytest.mark.workflow,
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed ({', '.join(MISSING)}): nothing was submitted"),
]

SCRIPT = ROOT / "tests" / "slurm_one_node.sh"
MINI = "config/mini.yaml"
WAIT_S = 1800
FAST = ["--slurm-init-seconds-before-status-checks", "2", "--max-status-checks-per-second", "1"]
# A job that needs more memory than its first attempt asks for, and one that tells its GPU.
RULES = """

rule fill:
    output:
        "filled.txt",
    resources:
        mem_mb=growing(700),
        runtime=growing(5),
    shell:
        "python -c 'import time; kept = bytearray(600 * 10**6); time.sleep(8)' && echo full > {output}"


rule tell_gpu:
    output:
        "gpu_{name}.txt",
    resources:
        gpu=1,
        mem_mb=1000,
        runtime=5,
    shell:
        "echo $CUDA_VISIBLE_DEVICES > {output} && sleep 20"
"""


@dataclass(frozen=True)
class Submission:
    """One sbatch, as the accounts of Slurm have it.

    Attributes:
        state: the last one.
        memory, asked: what it asked for: memory, and everything.
        what: the rule or group and the wildcards of the job.
    """

    number: str
    state: str
    memory: str
    asked: str
    what: str


@dataclass
class Cluster:
    """A running Slurm.

    Attributes:
        variables: of the environment in which its commands reach it.
    """

    folder: Path
    variables: dict[str, str]

    def script(self, command: str, *options: str) -> str:
        """Start, stop or ask the cluster."""
        result = subprocess.run(
            ["bash", str(SCRIPT), command, str(self.folder), *options],
            env={**os.environ, "SLURM_ONE_NODE_PORT": self.variables["SLURM_ONE_NODE_PORT"]},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def ask(self, *command: str) -> list[list[str]]:
        """Return what a command of Slurm prints, lines split at bars."""
        result = subprocess.run(command, env=self.variables, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return [line.split("|") for line in result.stdout.splitlines()]

    def running(self, rule: str) -> list[str]:
        """Return the numbers of the running jobs of a rule or group."""
        jobs = self.ask("squeue", "--noheader", "--states=RUNNING", "--format=%i|%k")
        return [number for number, comment in jobs if rule in comment]

    def lose_the_controller(self, run: subprocess.Popen) -> None:
        """Kill the controller while a run waits for its jobs, leave it dead for a while, and start it again.

        The controller writes what it knows to the disk up to five seconds late, and a job of those seconds is unknown
        to the one that comes after: no client can mend that. So the run submits nothing until the last was written.
        """
        os.killpg(run.pid, signal.SIGSTOP)
        stopped = time.time()
        state = self.folder / "var" / "ctld" / "job_state"
        while time.time() < stopped + 10 and (not state.exists() or state.stat().st_mtime <= stopped):
            time.sleep(0.2)
        os.kill(int((self.folder / "run" / "slurmctld.pid").read_text()), signal.SIGKILL)
        os.killpg(run.pid, signal.SIGCONT)
        time.sleep(5)
        self.script("start")

    def submissions(self) -> list["Submission"]:
        """Return all jobs that were ever submitted, in the order of their numbers."""
        jobs = self.ask(
            "sacct", "-X", "-n", "-P", "--starttime=now-1days", "--format=JobIDRaw,State,ReqMem,ReqTRES,Comment"
        )
        # "CANCELLED by 0" is CANCELLED.
        return [
            Submission(number, state.split()[0], memory, asked, what)
            for number, state, memory, asked, what in sorted(jobs, key=lambda job: int(job[0]))
        ]


def until(what: str, found: Callable[[], object], process: subprocess.Popen | None = None) -> object:
    """Wait until ``found`` returns something and return it; a process that ends meanwhile is a failure."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if value := found():
            return value
        assert process is None or process.poll() is None, f"ended while waiting for {what}"
        time.sleep(0.3)
    raise AssertionError(f"waited {WAIT_S} s for {what}")


def free_ports(n: int) -> int:
    """Return the first of ``n`` ports in a row that nothing listens on."""
    for first in range(20000 + os.getpid() % 1000 * 10, 60000, 10):
        with_all = [socket.socket() for _ in range(n)]
        try:
            for i, one in enumerate(with_all):
                one.bind(("127.0.0.1", first + i))
            return first
        except OSError:
            continue
        finally:
            for one in with_all:
                one.close()
    raise AssertionError("no free ports")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # Not the folder of the test: names of sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="slurm")).resolve()
    variables = {
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "SLURM_CONF": str(folder / "etc" / "slurm.conf"),
        "SLURM_ONE_NODE_PORT": str(free_ports(4)),
    }
    found = Cluster(folder, variables)
    try:
        # More than the machine has: half of a small job is waiting, and groups of four must not wait for each other.
        found.script("start", "--accounting", "--cpus", "8", "--gpus", "2", "--mem-mb", "64000")
        yield found
    finally:
        subprocess.run(["bash", str(SCRIPT), "stop", str(folder)], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def started(cluster) -> Iterator[list[subprocess.Popen]]:
    """What a test starts; killed after it, with the jobs that it left."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    cluster.ask("scancel", "--me")


def start(started: list[subprocess.Popen], cluster: Cluster, folder: Path, *command: str, log: str) -> subprocess.Popen:
    """Start Python with a command in a folder as the one who talks to the cluster, in a session of its own."""
    environment = {"HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8", "PYTHONPATH": str(folder / "workflow")}
    environment |= {"XDG_CACHE_HOME": str(folder / ".cache"), **KERNELS, **cluster.variables}
    with (folder / log).open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started.append(process)
    return process


def is_finished(folder: Path) -> bool:
    """Return whether a dry run finds nothing to do for the mini study of a copy of the repository."""
    result = snakemake(folder, "--dry-run", configfile=MINI)
    assert result.returncode == 0, result.stderr[-3000:]
    return "Nothing to be done" in result.stdout + result.stderr


def test_the_mini_study_survives_a_cancelled_job_a_killed_run_and_a_dead_controller_with_the_same_numbers(
    cluster, started, tmp_path, record_property
):
    there = copy_repository(tmp_path / "there")
    # The study without Slurm is what `make study` left, if it is of this code; else it is run at the end, in a copy.
    here, whose = (ROOT, "make study") if is_finished(ROOT) else (copy_repository(tmp_path / "here"), "a run")
    options = ["--workflow-profile", "profiles/slurm", "--configfile", MINI, *FAST]
    begun = time.monotonic()

    run = start(started, cluster, there, "-m", "snakemake", *options, log="first.log")
    training = until("training", lambda: cluster.running("train_checkpoint"), run)
    cluster.ask("scancel", training[0])
    refused = subprocess.run(
        [sys.executable, "-m", "plm_depth", "resume"],
        cwd=there,
        env={**cluster.variables, "PYTHONPATH": str(there / "workflow")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1 and f"process {run.pid}" in refused.stderr
    until("passes", lambda: cluster.running("extract_activations"), run)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    orphans = cluster.running("extract_activations")
    assert orphans, "jobs outlive the run that submitted them"
    last = max(int(job.number) for job in cluster.submissions())

    run = start(started, cluster, there, "-m", "plm_depth", "resume", log="second.log")
    until("jobs of the second run", lambda: any(int(number) > last for number in cluster.running("rule_")), run)
    cluster.lose_the_controller(run)
    assert run.wait(timeout=STUDY_S) == 0, (there / "second.log").read_text()[-4000:]
    minutes = (time.monotonic() - begun) / 60
    told = (there / "second.log").read_text()
    (cancelled,) = re.findall(r"^cancelled \d+ jobs of a lost run: (.*)$", told, flags=re.MULTILINE)
    assert set(cancelled.split(", ")) & set(orphans)
    assert f"going on with: snakemake {' '.join(options)}" in told
    assert is_finished(there)

    jobs = cluster.submissions()
    (of_the_first,) = (job.what for job in jobs if job.number == training[0])
    states = [job.state for job in jobs if job.what == of_the_first]
    assert (states[0], states[-1]) == ("CANCELLED", "COMPLETED")
    # No job failed, and only what somebody cancelled did not complete.
    completed = [job for job in jobs if job.state == "COMPLETED"]
    others = {job.number: job for job in jobs if job not in completed}
    assert others.keys() <= {training[0], *cancelled.split(", ")}, others
    models = {path.name for path in (there / "results" / "mini" / "checkpoints").iterdir()}
    trained = {job.what for job in completed if "train_checkpoint" in job.what}
    assert len(trained) == len(models) >= 12

    if here != ROOT:
        result = snakemake(here, "--cores", "all", configfile=MINI)
        assert result.returncode == 0, result.stderr[-3000:]
    expected, found = (digests([folder / "results" / "mini"]) for folder in (here, there))
    assert len(expected) > 400 and [table.name for table in found] == [table.name for table in expected]
    assert [table for table in found if table not in expected] == []
    record_property(
        "told",
        f"the mini study through sbatch: {len(jobs)} submissions in {minutes:.1f} minutes;"
        f" all {len(expected)} tables equal those of {whose} without Slurm",
    )


def test_a_job_out_of_memory_is_retried_with_more_and_gpus_are_handed_out_one_by_one(cluster, started, tmp_path):
    folder = copy_repository(tmp_path)
    # As the default config, too: a config is laid over that one, and gets its sections.
    for name in ("tiny.yaml", "config/config.yaml"):
        (folder / name).write_text(CONFIG.replace("device: cpu", "device: auto"), encoding="utf-8")
    with (folder / "Snakefile").open("a", encoding="utf-8") as snakefile:
        snakefile.write(RULES)
    targets = ["filled.txt", "gpu_a.txt", "gpu_b.txt", "results/tiny/losses/esm2_tiny.parquet"]
    options = ["--workflow-profile", "profiles/slurm", "--configfile", "tiny.yaml", *FAST]
    run = start(started, cluster, folder, "-m", "snakemake", *options, *targets, log="run.log")
    assert run.wait(timeout=WAIT_S) == 0, (folder / "run.log").read_text()[-4000:]
    jobs = cluster.submissions()
    first, second = (job for job in jobs if "rule_fill" in job.what)
    assert first.state in ("FAILED", "OUT_OF_MEMORY") and second.state == "COMPLETED"
    assert (first.memory, second.memory) == ("700M", "1400M")
    # Of the study's own jobs, those with a model ask for a GPU, and go on without where torch finds none.
    assert {"gpu" in job.asked for job in jobs if "train_checkpoint" in job.what} == {True}
    assert {"gpu" in job.asked for job in jobs if "training_data" in job.what} == {False}
    assert {(folder / name).read_text().strip() for name in targets[1:3]} == {"0", "1"}
