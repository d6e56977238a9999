"""`snakemake prefetch` fetches what a config names and nothing else; afterwards no rule needs a network."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import stand_in_hub
from plm_depth.models import manifest
from small_study import CONFIG, ROOT, copy_repository, planned, snakemake
from stand_in_hub import COMMIT, refuse

pytestmark = pytest.mark.workflow
FIXTURES = ROOT / "tests" / "fixtures"
RULE = """

rule tell_environment:
    output:
        "environment.txt",
    shell:
        "env > {output}"
"""
DOWNLOADS = [
    "download_checkpoint model=esm2_hub",
    "download_checkpoint model=progen2_tar",
    "download_source filename=sequences.fasta",
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A copy of the repository whose study takes everything from elsewhere, and a rule that tells its environment."""
    folder = copy_repository(tmp_path_factory.mktemp("prefetch"))
    with tarfile.open(folder / "progen2-tiny.tar.gz", "w:gz") as tar:
        for name in ("config.json", "pytorch_model.bin"):
            tar.add(FIXTURES / "progen2" / "authors" / name, arcname=name)
    config = yaml.safe_load(CONFIG)
    del config["training"], config["datasets"][0]["part"]
    config["sources"][0]["url"] = (folder / "resources" / "mini" / "sequences.fasta").as_uri()
    config["models"] = [
        {"model": "esm2_hub", "family": "esm2", "hub": "org/name", "revision": COMMIT},
        {"model": "progen2_tar", "family": "progen2", "archive": (folder / "progen2-tiny.tar.gz").as_uri()},
    ]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with (folder / "Snakefile").open("a", encoding="utf-8") as snakefile:
        snakefile.write(RULE)
    return folder


@pytest.fixture
def hub() -> Iterator[stand_in_hub.Hub]:
    with stand_in_hub.running({p.name: p.read_bytes() for p in (FIXTURES / "esm2" / "hub").iterdir()}) as hub:
        yield hub


def online(hub: stand_in_hub.Hub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "no_proxy": "127.0.0.1,localhost"}


def only_downloads(jobs: list[str]) -> list[str]:
    return [job for job in jobs if job.startswith("download_")]


def test_prefetch_plans_exactly_the_downloads_of_the_paper_config(repository):
    models = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["models"]
    jobs = planned(repository, "prefetch", configfile="config/config.yaml")
    expected = [f"download_checkpoint model={model}" for model in models]
    assert jobs == sorted([*expected, "download_source filename=uniref50.fasta.gz", "prefetch"])


def test_a_licence_that_nobody_accepted_stops_before_any_job(repository):
    config = yaml.safe_load((repository / "tiny.yaml").read_text())
    (repository / "licence.yaml").write_text(yaml.safe_dump({**config, "models": ["progen3_3b"]}))
    result = snakemake(repository, "--dry-run", "prefetch", configfile="licence.yaml")
    said = result.stdout + result.stderr
    assert result.returncode == 1 and "Traceback" not in said
    assert (
        "add 'CC-BY-NC-SA-4.0' to accepted_licences in the config after reading it at https://huggingface.co/" in said
    )


def test_after_a_prefetch_nothing_is_fetched_and_every_other_rule_is_offline(repository, hub):
    assert planned(repository, "prefetch") == sorted([*DOWNLOADS, "prefetch"])
    assert only_downloads(planned(repository)) == DOWNLOADS

    hub.refusals[f"/api/models/org/name/revision/{COMMIT}"] = [refuse(404, "RevisionNotFound")]
    failed = snakemake(repository, "--cores", "1", "prefetch", "--keep-going", variables=online(hub))
    log = repository / "logs" / "download_checkpoint" / "esm2_hub.log"
    assert log.exists(), failed.stdout + failed.stderr
    assert failed.returncode == 1 and "no such commit; correct `revision`" in log.read_text()
    assert "Traceback" not in log.read_text() and only_downloads(planned(repository)) == DOWNLOADS[:1]

    result = snakemake(repository, "--cores", "1", "prefetch", variables=online(hub))
    assert result.returncode == 0, result.stdout + result.stderr
    assert only_downloads(planned(repository)) == []
    for model, source in [("esm2_hub", "repo"), ("progen2_tar", "archive")]:
        assert source in manifest.check(repository / "resources" / "checkpoints" / model)

    hub.close()
    cards = [f"results/tiny/cards/{model}.json" for model in ("esm2_hub", "progen2_tar")]
    # Whatever the caller's environment says.
    result = snakemake(repository, "--cores", "1", "environment.txt", *cards, variables={"HF_HUB_OFFLINE": "0"})
    assert result.returncode == 0, result.stdout + result.stderr
    assert "HF_HUB_OFFLINE=1" in (repository / "environment.txt").read_text().splitlines()
    assert [json.loads((repository / card).read_text())["family"] for card in cards] == ["esm2", "progen2"]


def test_another_commit_in_the_config_fetches_that_checkpoint_again_and_nothing_else(repository):
    config = yaml.safe_load((repository / "tiny.yaml").read_text())
    config["models"][0]["revision"] = "f" * 40
    (repository / "moved.yaml").write_text(yaml.safe_dump(config))
    assert only_downloads(planned(repository, configfile="moved.yaml")) == DOWNLOADS[:1]


# ------------------------------------------------------------------------------------------------- pins, kills, layouts


def write_study(repository: Path, name: str, **entry: object) -> str:
    """Write the config of a study of one fetched model, whose name is the study's, and return its file."""
    config = yaml.safe_load((repository / "tiny.yaml").read_text())
    config["study"], config["models"] = name, [{"model": name, "family": "esm2", "hub": "org/name", **entry}]
    config["compute"]["preflight"] = "warn"  # what the stage itself says is of interest here
    (repository / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return f"{name}.yaml"


def test_a_pin_written_after_the_download_fetches_nothing_and_a_wrong_one_removes_nothing(repository, hub):
    folder, card = repository / "resources/checkpoints/pinned", "results/pinned/cards/pinned.json"
    targets = ["prefetch", card]
    config = write_study(repository, "pinned")
    result = snakemake(repository, "--cores", "1", *targets, configfile=config, variables=online(hub))
    assert result.returncode == 0, result.stdout + result.stderr
    first = manifest.check(folder)
    assert first["revision"] == json.loads((repository / card).read_text())["revision"] == COMMIT
    kept = (folder / "model.safetensors").stat()
    digest = first["files"]["model.safetensors"]["sha256"]
    hub.close()

    # What was found: nothing runs, neither the download nor what comes after it.
    for pin in ({"revision": COMMIT}, {"revision": COMMIT, "sha256": {"model.safetensors": digest}}):
        config = write_study(repository, "pinned", **pin)
        assert planned(repository, *targets, configfile=config) == []
        result = snakemake(repository, "--cores", "1", *targets, configfile=config)
        assert result.returncode == 0, result.stdout + result.stderr

    config = write_study(repository, "pinned", revision=COMMIT, sha256={"model.safetensors": "0" * 64})
    result = snakemake(repository, "--cores", "1", *targets, configfile=config)
    said = result.stdout + result.stderr
    assert result.returncode == 1 and "Traceback" not in said
    assert f"model.safetensors has SHA-256 {digest} at commit {COMMIT}, expected is {'0' * 64}" in said

    # Another commit, which cannot be had: the stage runs and fails, now and the next time, and what was there stays.
    config = write_study(repository, "pinned", revision="f" * 40)
    assert only_downloads(planned(repository, *targets, configfile=config)) == ["download_checkpoint model=pinned"]
    with stand_in_hub.running(hub.files) as other:
        result = snakemake(repository, "--cores", "1", *targets, configfile=config, variables=online(other))
    assert result.returncode == 1 and "no such commit" in result.stdout + result.stderr
    assert only_downloads(planned(repository, *targets, configfile=config)) == ["download_checkpoint model=pinned"]
    assert manifest.check(folder) == first

    config = write_study(repository, "pinned", revision=COMMIT)
    result = snakemake(repository, "--cores", "1", "prefetch", configfile=config)  # nobody is there to be asked
    assert result.returncode == 0, result.stdout + result.stderr
    assert manifest.check(folder) == first and planned(repository, "prefetch", configfile=config) == []
    after = (folder / "model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)


def test_a_run_that_is_killed_during_a_download_goes_on_where_it_was(repository, hub):
    config, folder = write_study(repository, "killed", revision=COMMIT), repository / "resources" / "checkpoints"
    content, release = hub.files["model.safetensors"], threading.Event()

    def stop_after_half(handler) -> None:
        handler.send_response(200)
        handler.send_header("ETag", f'"{stand_in_hub.sha256(content)}"')
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])
        handler.wfile.flush()
        release.wait(60)
        handler.close_connection = True

    hub.plan["model.safetensors"] = [stop_after_half]
    command = [sys.executable, "-m", "snakemake", "--configfile", config, "--replace-workflow-config", "--cores", "1"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), **online(hub)}
    environment |= {"XDG_CACHE_HOME": str(repository / ".cache")}
    run = subprocess.Popen([*command, "prefetch"], cwd=repository, env=environment, start_new_session=True)
    half = folder / "killed.part" / "model.safetensors.tmp.partial"
    while run.poll() is None and not (half.is_file() and half.stat().st_size):
        time.sleep(0.05)
    assert run.returncode is None
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    release.set()
    assert not (folder / "killed" / manifest.MANIFEST).exists()

    hub.seen.clear()
    snakemake(repository, "--unlock", configfile=config)
    result = snakemake(repository, "--cores", "1", "prefetch", configfile=config, variables=online(hub))
    assert result.returncode == 0, result.stdout + result.stderr
    assert hub.asked("model.safetensors") == [f"bytes={len(content) // 2}-"] and manifest.check(folder / "killed")
    assert not (folder / "killed.part").exists()


def test_a_repository_of_a_pt_file_works_by_its_hub_id_alone(repository):
    files = {p.name: p.read_bytes() for p in (FIXTURES / "esm2" / "fair_esm").iterdir()}
    config, card = write_study(repository, "fair"), "results/fair/cards/fair.json"
    with stand_in_hub.running({**files, "config.json": b"{}", "README.md": b"A card"}) as hub:
        result = snakemake(repository, "--cores", "1", card, configfile=config, variables=online(hub))
    assert result.returncode == 0, result.stdout + result.stderr
    assert {file["name"] for file in json.loads((repository / card).read_text())["files"]} == set(files)
    assert set(manifest.check(repository / "resources" / "checkpoints" / "fair")["files"]) == set(files)
