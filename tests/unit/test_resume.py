"""What is lost, what still works, and what a folder needs before a run can go on: with real processes."""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plm_depth import resume, runtime
from plm_depth.resume import ResumeError, Run

LOG = """\
Config file config/config.yaml is extended.

SNAKEMAKE
=========
  Host: {host}
  Command: {command}
  Snakefile: /study/Snakefile

Building DAG of jobs...
SLURM run ID: {run}
"""


def log(folder: Path, number: int, *, command: str = "snakemake --cores 2", host: str = "vm", run: str = "") -> None:
    path = folder / ".snakemake" / "log" / f"2026-01-0{number}T000000.000000.snakemake.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = LOG.format(host=host, command=command, run=run)
    path.write_text(text if run else text.rsplit("SLURM", 1)[0])


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen]]:
    """Processes that a test starts; they are ended after it."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def start(started: list[subprocess.Popen], folder: Path, module: str, *arguments: str) -> subprocess.Popen:
    """Start ``python -m module`` in a folder; the module does nothing but wait."""
    file = folder.joinpath("modules", *module.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("import time; print('up', flush=True); time.sleep(60)")
    command = [sys.executable, "-m", module, *arguments]
    environment = {"PYTHONPATH": str(folder / "modules"), "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    started.append(process)
    return process


def test_a_log_tells_machine_command_and_the_name_of_the_jobs(tmp_path):
    log(tmp_path, 1, command="/a/.venv/bin/snakemake --cores 2 --configfile study.yaml", run="plm-depth_12")
    log(tmp_path, 2, command="/a/snakemake/__main__.py --workflow-profile profiles/slurm all", host="login7")
    assert resume.runs_of(tmp_path) == [
        Run("login7", ("--workflow-profile", "profiles/slurm", "all"), ""),
        Run("vm", ("--cores", "2", "--configfile", "study.yaml"), "plm-depth_12"),
    ]


def test_reports_dry_runs_and_the_runs_of_jobs_are_not_what_is_resumed(tmp_path):
    log(tmp_path, 1)
    for number, options in enumerate(
        ["--unlock", "--report r.zip", "-n", "--target-jobs a: --executor slurm-jobstep"], 2
    ):
        log(tmp_path, number, command=f"snakemake --cores 1 {options}")
    log(tmp_path, 7, command="snakemake --cores 4")
    with next((tmp_path / ".snakemake" / "log").glob("2026-01-07*")).open("a") as refused:
        refused.write("LockException:\nError: Directory cannot be locked.\n")
    assert [run.options for run in resume.runs_of(tmp_path)] == [("--cores", "2")]
    assert resume.runs_of(tmp_path / "elsewhere") == []


def test_a_working_snakemake_is_found_by_its_folder_and_refused(tmp_path, started):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    process = start(started, tmp_path / "a", "snakemake", "--cores", "1")
    (worker,) = resume.at_work(tmp_path / "a")
    assert worker.pid == process.pid and worker.is_master
    assert resume.at_work(tmp_path / "b") == []
    with pytest.raises(ResumeError, match=f"(?s)works in this folder.*process {process.pid}: "):
        resume.clear(tmp_path / "a")
    process.kill(), process.wait()
    resume.clear(tmp_path / "a")


@pytest.mark.parametrize(
    "module, arguments", [("plm_depth.metrics.lens", ()), ("snakemake", ("--target-jobs", "x:", "--cores", "1"))]
)
def test_a_job_that_outlived_its_run_is_no_second_run_but_in_the_way(tmp_path, started, module, arguments):
    process = start(started, tmp_path, module, *arguments)
    (worker,) = resume.at_work(tmp_path)
    assert not worker.is_master
    with pytest.raises(ResumeError, match=f"(?s)jobs of a lost run still work.*process {process.pid}"):
        resume.clear(tmp_path)


def test_other_programs_in_the_folder_are_not_in_the_way(tmp_path, started):
    start(started, tmp_path, "http_server", "snakemake")
    assert resume.at_work(tmp_path) == []


def test_a_locked_run_of_another_machine_is_not_touched_unless_it_is_gone(tmp_path):
    log(tmp_path, 1, host="login7")
    resume.clear(tmp_path)
    (tmp_path / ".snakemake" / "locks").mkdir()
    (tmp_path / ".snakemake" / "locks" / "0.output.lock").touch()
    with pytest.raises(ResumeError, match=r"started on login7.*--host-is-gone"):
        resume.clear(tmp_path)
    resume.clear(tmp_path, host_is_gone=True)


def test_only_jobs_of_this_folders_runs_are_cancelled_and_waited_for():
    queue = {"11": "plm-depth_a", "12": "plm-depth_other", "13": "plm-depth_a", "14": "named by hand"}
    seen, ends = [], iter([["13"], ["11"], []])

    def run(command):
        seen.append(command)
        if command[0] == "squeue" and len(seen) > 2:
            for job in next(ends):
                del queue[job]
        return "".join(f"{job} {name}\n" for job, name in queue.items()) if command[0] == "squeue" else ""

    assert resume.cancel(["plm-depth_a", "plm-depth_b"], run=run, wait_s=1) == ["11", "13"]
    assert [command for command in seen if command[0] == "scancel"] == [["scancel", "11", "13"]]
    assert list(queue) == ["12", "14"]


def test_jobs_that_do_not_end_stop_the_resuming():
    def run(command):
        return "11 plm-depth_a\n" if command[0] == "squeue" else ""

    started = time.monotonic()
    with pytest.raises(ResumeError, match="do not end: 11"):
        resume.cancel(["plm-depth_a"], run=run, wait_s=0.2)
    assert time.monotonic() - started < 60


def test_processes_of_cancelled_jobs_may_linger_a_moment_and_others_may_not(tmp_path, started, monkeypatch):
    job = start(started, tmp_path, "snakemake", "--target-jobs", "x:")
    log(tmp_path, 1, run="plm-depth_a")
    monkeypatch.setattr(resume.shutil, "which", lambda name: name)
    monkeypatch.setattr(resume, "cancel", lambda names, *, run: [])
    with pytest.raises(ResumeError, match="still work"):
        resume.clear(tmp_path)
    said = []
    monkeypatch.setattr(resume, "cancel", lambda names, *, run: ["11"])
    monkeypatch.setattr(resume.time, "sleep", lambda seconds: (job.kill(), job.wait()))
    resume.clear(tmp_path, say=said.append)
    assert said == ["cancelled 1 jobs of a lost run: 11"]


def test_processes_of_cancelled_jobs_that_do_not_end_are_killed_and_said(tmp_path, started, monkeypatch):
    job = start(started, tmp_path, "snakemake", "--target-jobs", "x:")
    log(tmp_path, 1, run="plm-depth_a")
    monkeypatch.setattr(resume.shutil, "which", lambda name: name)
    monkeypatch.setattr(resume, "cancel", lambda names, *, run: ["11"])
    monkeypatch.setattr(resume, "LINGER_S", 2)
    said = []
    resume.clear(tmp_path, say=said.append)
    assert said[1].startswith(f"killing what is left of a cancelled job: process {job.pid}: ")
    assert job.wait(timeout=60) == -9


def test_slurm_jobs_of_an_earlier_run_need_a_machine_that_can_see_them(tmp_path, monkeypatch):
    log(tmp_path, 1, run="plm-depth_a")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResumeError, match="no squeue here"):
        resume.clear(tmp_path)


def test_without_a_run_there_is_nothing_to_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="does not know of a run to resume"):
        resume.main([])


def test_the_last_command_goes_on_word_by_word_with_its_quotes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--cores", "2", "--config", 'inputs={"a": [1]}', "--default-resources", "slurm_partition='gpu'", "it's"]
    runtime.remember(words)
    log(tmp_path, 1, command=f"snakemake {' '.join(words)}")
    called = []

    def run(command, **options):
        called.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(resume.subprocess, "run", run)
    assert resume.main([]) == 0
    assert called == [[sys.executable, "-m", "snakemake", *words, *more] for more in (["--unlock"], [])]
    assert shlex.split(capsys.readouterr().out.partition("going on with: snakemake ")[2]) == words
    runtime.remember(["other"])
    assert resume.main(["--", "--cores", "1"]) == 0 and called[-1][3:] == ["--cores", "1"]


def test_what_dead_writers_left_is_swept_and_nothing_else(tmp_path):
    names = ["results/a/x.parquet", "results/a/x.parquet.tmp.123", "results/notes.tmp.old", "elsewhere/y.tmp.1"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert resume.sweep(tmp_path) == [tmp_path / names[1]]
    assert [name for name in names if (tmp_path / name).exists()] == [names[0], *names[2:]]
