"""Go on after a run was lost: a closed terminal, a killed Snakemake, a login node that went down.

    python -m plm_depth resume [--host-is-gone] [OPTIONS OF SNAKEMAKE]

Jobs outlive the Snakemake that submitted them, and a second Snakemake does not know them: its own jobs would write the
same files beside them. So this first makes sure that nothing works in the folder any more (it refuses while a Snakemake
does, and cancels what is left of lost runs on a cluster), then takes the lock away and starts the last run's command.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from plm_depth.runtime import LAST_RUN, remembered

# A Snakemake with one of these does a job for another one, on a node or as its child.
OF_A_JOB = ("--target-jobs", "slurm-jobstep")
# What a log of Snakemake may be about besides running a workflow.
NO_RUN = ("--unlock", "--report", "--dry-run", "--dryrun", "-n", "--lint", "--dag", "--rulegraph", "--summary")
WAIT_S = 300  # for cancelled jobs to leave the queue
LINGER_S = 30  # for their processes to end after that by themselves, and again after they were killed


class ResumeError(RuntimeError):
    """Why a run cannot go on now, and what to do."""


@dataclass(frozen=True)
class Run:
    """One run of Snakemake, as its log tells.

    Attributes:
        host: the machine it was started on, empty if the log does not say.
        options: the command without the program, split at blanks, empty if the log does not say.
        slurm_name: the name that all its jobs have in Slurm's queue, empty if it submitted none.
    """

    host: str
    options: tuple[str, ...]
    slurm_name: str


def runs_of(folder: str | Path) -> list[Run]:
    """Return the runs whose logs lie in ``folder``, the newest first.

    Dry runs, reports, runs of jobs, and runs that found the folder locked and did nothing are left out.
    """
    logs = sorted((Path(folder) / ".snakemake" / "log").glob("*.snakemake.log"), reverse=True)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in logs]
    runs = [read_log(text) for text in texts if "LockException" not in text]
    return [run for run in runs if not set(run.options) & {*NO_RUN, *OF_A_JOB}]


def read_log(text: str) -> Run:
    """Return what a log of Snakemake says about its run."""

    def said(pattern: str) -> str:
        found = re.search(pattern, text, flags=re.MULTILINE)
        return found.group(1).strip() if found else ""

    # Without the quotes that the words had: good enough to tell runs apart, not to repeat one.
    words = said(r"^\s*Command: (.*)$").split()
    program = next((i for i, word in enumerate(words) if _is_snakemake(word)), len(words))
    return Run(said(r"^\s*Host: (.*)$"), tuple(words[program + 1 :]), said(r"^SLURM run ID: (.*)$"))


def _is_snakemake(word: str) -> bool:
    path = Path(word)
    return path.name == "snakemake" or (path.name == "__main__.py" and path.parent.name == "snakemake")


@dataclass(frozen=True)
class Worker:
    """A process that works in the folder.

    Attributes:
        pid, command: of the process.
        is_master: whether it is a Snakemake of its own; else it does a job of one.
    """

    pid: int
    command: tuple[str, ...]
    is_master: bool

    def __str__(self) -> str:
        return f"process {self.pid}: {shlex.join(self.command)}"


def worker_of(pid: int, command: Sequence[str]) -> Worker | None:
    """Return what a process is to this folder by its command, None for one that has nothing to do with it."""
    module = command[2] if command[1:2] == ["-m"] and len(command) > 2 else ""
    if module.startswith("plm_depth."):
        return Worker(pid, tuple(command), False)
    if module == "snakemake" or any(_is_snakemake(word) for word in command[:2]):
        return Worker(pid, tuple(command), not any(sign in command for sign in OF_A_JOB))
    return None


def at_work(folder: str | Path) -> list[Worker]:
    """Return what works in ``folder`` on this machine: Snakemake and stages, without this process and its parents."""
    folder = Path(folder).resolve()
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            worker = worker_of(process.pid, process.cmdline())
            if worker and process.pid not in own and Path(process.cwd()) == folder:
                found.append(worker)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # not ours, or gone meanwhile
    return found


def queued(names: Iterable[str], *, run: Callable[[Sequence[str]], str]) -> list[str]:
    """Return the numbers of my jobs in Slurm's queue that have one of these names."""
    names = set(names)
    lines = run(["squeue", "--me", "--noheader", "--format=%i %j"]).splitlines()
    return [line.split(maxsplit=1)[0] for line in lines if line.split(maxsplit=1)[1:] and line.split()[1] in names]


def cancel(names: Sequence[str], *, run: Callable[[Sequence[str]], str], wait_s: float = WAIT_S) -> list[str]:
    """Cancel my jobs of these names, wait until none is left in the queue, and return their numbers.

    Raises:
        ResumeError: some are still there after ``wait_s`` seconds.
    """
    jobs = queued(names, run=run)
    if not jobs:
        return []
    run(["scancel", *jobs])
    until = time.monotonic() + wait_s
    while left := queued(names, run=run):
        if time.monotonic() > until:
            raise ResumeError(f"cancelled jobs do not end: {', '.join(left)}; look at squeue, then try again")
        time.sleep(min(2.0, wait_s / 10))
    return jobs


def command_output(command: Sequence[str]) -> str:
    """Return what a command prints.

    Raises:
        ResumeError: it fails; says how.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ResumeError(
            f"{shlex.join(command)} failed: {result.stderr.strip() or result.returncode}; try again later"
        )
    return result.stdout


def clear(folder: str | Path, *, host_is_gone: bool = False, say: Callable[[str], object] = print) -> None:
    """Make sure that nothing of an earlier run works in ``folder`` any more.

    Args:
        host_is_gone: do not mind that the last run was started on another machine.
        say: what to tell about it.
    Raises:
        ResumeError: something works there, or it cannot be known.
    """
    if working := [worker for worker in at_work(folder) if worker.is_master]:
        raise ResumeError(
            "a Snakemake works in this folder; let it finish, or end it first (Ctrl-C, or kill -INT):" + _lines(working)
        )
    runs = runs_of(folder)
    here = socket.gethostname()
    is_locked = any((Path(folder) / ".snakemake" / "locks").glob("*"))
    if runs and is_locked and runs[0].host not in ("", here) and not host_is_gone:
        raise ResumeError(
            f"the last run was started on {runs[0].host}, and this is {here}: whether it still works cannot be seen "
            "from here; resume there, or, where that machine or that run is gone for good, say --host-is-gone"
        )
    names = [run.slurm_name for run in runs if run.slurm_name]
    cancelled: list[str] = []
    if names:
        if shutil.which("squeue") is None:
            raise ResumeError(
                "earlier runs submitted jobs to Slurm, and there is no squeue here; resume on a login node"
            )
        if cancelled := cancel(names, run=command_output):
            say(f"cancelled {len(cancelled)} jobs of a lost run: {', '.join(cancelled)}")
    left = until_gone(folder, LINGER_S if cancelled else 0)
    if left and cancelled:
        # No Snakemake works here, their jobs were cancelled: where Slurm does not track processes, some outlive that.
        for worker in left:
            say(f"killing what is left of a cancelled job: {worker}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        left = until_gone(folder, LINGER_S)
    if left:
        raise ResumeError("jobs of a lost run still work in this folder; wait for them, or end them:" + _lines(left))


def until_gone(folder: str | Path, wait_s: float) -> list[Worker]:
    """Return what still works in ``folder`` on this machine when nothing does, or after ``wait_s`` seconds."""
    left, until = at_work(folder), time.monotonic() + wait_s
    while left and time.monotonic() < until:
        time.sleep(0.5)
        left = at_work(folder)
    return left


def _lines(workers: Sequence[Worker]) -> str:
    return "".join(f"\n  {worker}" for worker in workers)


def sweep(folder: str | Path) -> list[Path]:
    """Remove and return what dead writers left under temporary names (``tables.replacing``); nothing may work there."""
    left = [path for part in ("results", "resources") for path in (Path(folder) / part).rglob("*.tmp.*")]
    left = [path for path in left if path.suffix[1:].isdigit() and path.is_file()]
    for path in left:
        path.unlink(missing_ok=True)
    return left


def main(argv: Sequence[str] | None = None) -> int:
    """Clear the folder, unlock it, and run Snakemake as the last run did; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth resume", description=__doc__.split("\n")[0])
    parser.add_argument("--host-is-gone", action="store_true", help="the last run's machine or run is gone for good")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of Snakemake (default: those of the last run)")
    parsed = parser.parse_args(argv)
    folder = Path.cwd()
    options = [word for word in parsed.options if word != "--"]
    if not options and (options := remembered(folder)) is None:
        raise SystemExit(
            f"{folder} does not know of a run to resume (no {LAST_RUN}): start it with snakemake, or name its options: "
            "python -m plm_depth resume --cores all ..."
        )
    try:
        clear(folder, host_is_gone=parsed.host_is_gone)
    except ResumeError as error:
        raise SystemExit(str(error)) from None
    if left := sweep(folder):
        print(f"removed {len(left)} unfinished files: {left[0]}{', ...' if len(left) > 1 else ''}")
    snakemake = [sys.executable, "-m", "snakemake", *options]
    unlocked = subprocess.run([*snakemake, "--unlock"], capture_output=True, text=True, check=False)
    if unlocked.returncode != 0:
        raise SystemExit(f"the folder cannot be unlocked:\n{unlocked.stdout}{unlocked.stderr}")
    print(f"going on with: snakemake {shlex.join(options)}", flush=True)
    return subprocess.run(snakemake, check=False).returncode
