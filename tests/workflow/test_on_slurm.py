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
import yaml

from plm_depth.digest import digests
from small_study import CONFIG, ROOT, copy_repository, snakemake

SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
NEEDED = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "sbatch", "sacct")
MISSING = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}") is None]
pytestmark = [
    pytest.mark.workflow,
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed ({', '.join(MISSING)}): nothing was submitted"),
]

SCRIPT = ROOT / "tests" / "slurm_one_node.sh"
WAIT_S = 600
FAST = ["--slurm-init-seconds-before-status-checks", "3", "--max-status-checks-per-second", "1"]
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

    def history(self, rule: str) -> list[tuple[str, str]]:
        """Return (state, memory asked for) of all jobs of a rule or group, in the order of their numbers."""
        jobs = self.ask("sacct", "-X", "-n", "-P", "--starttime=now-1hours", "--format=JobIDRaw,State,ReqMem,Comment")
        jobs = sorted(
            (int(number), state.split()[0], memory) for number, state, memory, comment in jobs if rule in comment
        )
        return [(state, memory) for _, state, memory in jobs]


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
        found.script("start", "--accounting", "--cpus", "4", "--gpus", "2")
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
    environment |= {"XDG_CACHE_HOME": str(folder / ".cache"), **cluster.variables}
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


def test_a_study_survives_a_cancelled_job_a_killed_run_and_a_dead_controller_with_the_same_numbers(
    cluster, started, tmp_path
):
    config = yaml.safe_load(CONFIG)
    kept = ("study", "seed", "sources", "training", "datasets", "models", "inputs", "nulls", "effects", "bootstrap")
    config = {key: config[key] for key in (*kept, "compute")}
    config["models"] = config["models"][:1]
    config["figures"] = ["contributions", "lens_kl"]
    config["compute"]["device"] = "auto"  # asks for GPUs, and goes on without where torch finds none
    here, there = (copy_repository(tmp_path / name) for name in ("here", "there"))
    for folder in (here, there):
        # As the default config, too: a config is laid over that one, and gets its sections.
        for name in ("tiny.yaml", "config/config.yaml"):
            (folder / name).write_text(yaml.safe_dump(config), encoding="utf-8")
    options = ["--workflow-profile", "profiles/slurm", "--configfile", "tiny.yaml", *FAST]

    run = start(started, cluster, there, "-m", "snakemake", *options, log="first.log")
    (training,) = until("training", lambda: cluster.running("train_checkpoint"), run)
    cluster.ask("scancel", training)
    until("passes", lambda: cluster.running("extract_activations"), run)
    refused = subprocess.run(
        [sys.executable, "-m", "plm_depth", "resume"],
        cwd=there,
        env={**cluster.variables, "PYTHONPATH": str(there / "workflow")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1 and f"process {run.pid}" in refused.stderr
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    orphans = cluster.running("extract_activations")
    assert orphans, "jobs outlive the run that submitted them"

    run = start(started, cluster, there, "-m", "plm_depth", "resume", log="second.log")
    until("jobs of the second run", lambda: set(cluster.running("rule_")) - set(orphans), run)
    cluster.lose_the_controller(run)
    assert run.wait(timeout=WAIT_S) == 0, (there / "second.log").read_text()[-4000:]
    told = (there / "second.log").read_text()
    (cancelled,) = re.findall(r"^cancelled \d+ jobs of a lost run: (.*)$", told, flags=re.MULTILINE)
    assert set(cancelled.split(", ")) & set(orphans)
    assert f"going on with: snakemake {' '.join(options)}" in told

    assert [state for state, _ in cluster.history("train_checkpoint")] == ["CANCELLED", "COMPLETED"]
    states = [state for state, _ in cluster.history("extract_activations")]
    assert "CANCELLED" in states and states.count("COMPLETED") == 2, "one each for trained and null networks"
    gpus = cluster.ask("sacct", "-X", "-n", "-P", "--starttime=now-1hours", "--format=ReqTRES,Comment")
    asking = {"gpu" in asked for asked, comment in gpus if "extract_activations" in comment}
    assert asking == {True} and {"gpu" in asked for asked, comment in gpus if "cluster_dataset" in comment} == {False}
    assert [state for state, _ in cluster.history("rule_metrics")] == ["COMPLETED"], "six jobs, one submission"

    result = snakemake(here, "--cores", "1")
    assert result.returncode == 0, result.stderr[-3000:]
    expected = digests([here / "results"])
    assert len(expected) > 20 and digests([there / "results"]) == expected


def test_a_job_out_of_memory_is_retried_with_more_and_gpus_are_handed_out_one_by_one(cluster, started, tmp_path):
    folder = copy_repository(tmp_path)
    shutil.copy(folder / "tiny.yaml", folder / "config" / "config.yaml")
    with (folder / "Snakefile").open("a", encoding="utf-8") as snakefile:
        snakefile.write(RULES)
    targets = ["filled.txt", "gpu_a.txt", "gpu_b.txt"]
    options = ["--workflow-profile", "profiles/slurm", "--configfile", "tiny.yaml", *FAST]
    run = start(started, cluster, folder, "-m", "snakemake", *options, *targets, log="run.log")
    assert run.wait(timeout=WAIT_S) == 0, (folder / "run.log").read_text()[-4000:]
    first, second = cluster.history("rule_fill")
    assert first[0] in ("FAILED", "OUT_OF_MEMORY") and second[0] == "COMPLETED"
    assert (first[1], second[1]) == ("700M", "1400M")
    assert {(folder / name).read_text().strip() for name in targets[1:]} == {"0", "1"}
