"""A checkpoint comes whole, at one commit, checked, or not at all: from a hub that misbehaves on request."""

import json
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import stand_in_hub
from plm_depth.download import DownloadError
from plm_depth.models import manifest
from plm_depth.models.download import MARGIN, File, choose, from_hub, main
from stand_in_hub import COMMIT, Hub, refuse, sha256, stall

WORKFLOW = Path(__file__).parents[3] / "workflow"
WEIGHTS = random.Random(0).randbytes(300_000)
FILES = {
    "config.json": b"{}",
    "vocab.txt": b"<cls>\n",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle" * 1000,
    "modeling.py": b"import os",
    "data/weights/model.pth": b"nested" * 1000,
}
PATTERNS = ("*.json", "*.txt", "*.safetensors")
NAMES = ["config.json", "model.safetensors", "vocab.txt"]


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with stand_in_hub.running(FILES) as hub:
        yield hub


@pytest.fixture
def waits() -> list[float]:
    return []


def fetch(hub: Hub, folder: Path, waits: list[float] | None = None, patterns=PATTERNS, revision="main", **options):
    options = {"repo": "org/name", "timeout": 5.0, "attempts": 3, **options}
    sleep = ([] if waits is None else waits).append
    alternatives = options.pop("alternatives", [patterns])
    options |= {"endpoint": hub.endpoint, "sleep": sleep}
    return from_hub(revision=revision, alternatives=alternatives, output=folder, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_files_asked_for_come_at_the_commit_that_main_is_with_a_manifest(hub, tmp_path, waits):
    noted = fetch(hub, tmp_path / "checkpoint", waits)
    assert names(tmp_path) == sorted(f"checkpoint/{name}" for name in [*NAMES, manifest.MANIFEST])
    assert (tmp_path / "checkpoint" / "model.safetensors").read_bytes() == WEIGHTS
    assert noted == {
        "repo": "org/name",
        "revision": COMMIT,
        "licence": "mit",
        "gated": False,
        "asked": {"repo": "org/name", "revision": "main", "files": [list(PATTERNS)], "sha256": {}},
        "files": {name: {"bytes": len(FILES[name]), "sha256": sha256(FILES[name])} for name in NAMES},
    }
    assert json.loads((tmp_path / "checkpoint" / manifest.MANIFEST).read_text()) == noted
    assert waits == []


def test_files_in_folders_of_the_repository_keep_their_place(hub, tmp_path):
    fetch(hub, tmp_path / "checkpoint", patterns=["data/weights/model.pth"])
    assert names(tmp_path / "checkpoint") == ["data/weights/model.pth", manifest.MANIFEST]


def test_the_login_goes_to_the_hub_and_not_to_where_it_keeps_its_bytes(hub, tmp_path):
    fetch(hub, tmp_path / "checkpoint")
    logins = {"api": set(), "org": set(), "cdn": set()}
    for method, path, headers in hub.seen:
        if method == "GET":
            logins[path.split("/")[1]].add({k.lower(): v for k, v in headers.items()}.get("authorization"))
    assert logins == {"api": {"Bearer hf_secret"}, "org": {"Bearer hf_secret"}, "cdn": {None}}


def test_a_digest_of_the_sheet_is_compared_before_anything_is_fetched(hub, tmp_path):
    fetch(hub, tmp_path / "right", digests={"model.safetensors": sha256(WEIGHTS), "config.json": sha256(b"{}")})
    hub.seen.clear()
    with pytest.raises(DownloadError, match=rf"has SHA-256 {sha256(WEIGHTS)}, the sheet of models expects 000"):
        fetch(hub, tmp_path / "wrong", digests={"model.safetensors": "0" * 64})
    assert hub.asked("model.safetensors") == [] and not (tmp_path / "wrong").exists()
    with pytest.raises(DownloadError, match=r"model\.pth has a digest in the sheet of models, but `files` does not"):
        fetch(hub, tmp_path / "wrong", digests={"data/weights/model.pth": "0" * 64})


def test_a_digest_of_the_sheet_holds_for_files_whose_digest_the_hub_does_not_state(hub, tmp_path):
    with pytest.raises(DownloadError, match=r"config.json has SHA-256 .* expects 000"):
        fetch(hub, tmp_path / "checkpoint", digests={"config.json": "0" * 64})
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(("name", "said"), [("model.safetensors", "wrong file"), ("config.json", "not the file that")])
def test_bytes_that_are_not_what_the_hub_lists_are_refused_and_the_next_run_is_clean(hub, tmp_path, name, said):
    hub.files[name] = FILES[name][:-1] + b"?"
    with pytest.raises(DownloadError, match=said):
        fetch(hub, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists() and not (tmp_path / "checkpoint.part" / name).exists()
    hub.files[name] = FILES[name]
    fetch(hub, tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint" / name).read_bytes() == FILES[name]


def test_a_cut_connection_is_resumed_where_it_broke(hub, tmp_path, waits):
    hub.plan["model.safetensors"] = [100_000, 50_000]
    fetch(hub, tmp_path / "checkpoint", waits)
    assert hub.asked("model.safetensors") == [None, "bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "checkpoint" / "model.safetensors").read_bytes() == WEIGHTS


def test_a_later_run_goes_on_where_an_earlier_one_was_given_up(hub, tmp_path, waits):
    hub.plan["model.safetensors"] = [200_000, 0, 0]
    with pytest.raises(DownloadError, match=r"2 attempts in a row brought nothing new \(200000 bytes so far\)"):
        fetch(hub, tmp_path / "checkpoint", waits, attempts=2)
    assert not (tmp_path / "checkpoint").exists()
    hub.plan.clear()
    hub.seen.clear()
    fetch(hub, tmp_path / "checkpoint", waits)
    assert hub.asked("model.safetensors") == ["bytes=200000-"]
    assert hub.asked("config.json") == [], "whole files of the earlier run are not fetched again"
    assert names(tmp_path) == sorted(f"checkpoint/{name}" for name in [*NAMES, manifest.MANIFEST])


def test_what_an_earlier_attempt_with_other_settings_left_does_not_come_in(hub, tmp_path):
    hub.plan["data/weights/model.pth"] = [100, 0]
    with pytest.raises(DownloadError):
        fetch(hub, tmp_path / "checkpoint", attempts=1, patterns=["*.py", "data/*"])
    left = names(tmp_path / "checkpoint.part")
    assert "modeling.py" in left and "data/weights/model.pth.tmp.partial" in left
    fetch(hub, tmp_path / "checkpoint")
    assert names(tmp_path / "checkpoint") == sorted([*NAMES, manifest.MANIFEST])


def test_a_stall_times_out_and_is_taken_up_again(hub, tmp_path, waits):
    release = threading.Event()
    hub.plan["vocab.txt"] = [stall(0, 6, release)]
    fetch(hub, tmp_path / "checkpoint", waits, timeout=1)
    release.set()
    assert (tmp_path / "checkpoint" / "vocab.txt").read_bytes() == FILES["vocab.txt"]
    assert waits == [1.0]


def test_a_hub_that_does_not_answer_is_asked_again_and_then_given_up(hub, tmp_path, waits):
    release = threading.Event()
    hub.refusals[f"/api/models/org/name/revision/{COMMIT}"] = [lambda handler: release.wait(10)] * 3
    with pytest.raises(DownloadError, match=r"could not be asked .*ReadTimeout.*`snakemake prefetch`"):
        fetch(hub, tmp_path / "checkpoint", waits, revision=COMMIT, timeout=0.2)
    release.set()
    assert waits == [1.0, 2.0]


def test_a_busy_hub_is_asked_again(hub, tmp_path, waits):
    hub.refusals["/api/models/org/name/revision/main"] = [refuse(503), refuse(429)]
    fetch(hub, tmp_path / "checkpoint", waits)
    assert waits == [1.0, 2.0]


def test_a_refusal_that_will_not_pass_is_final(hub, tmp_path, waits):
    hub.refusals["/api/models/org/name/revision/main"] = [refuse(403)] * 3
    with pytest.raises(DownloadError, match=r"could not be asked .*403"):
        fetch(hub, tmp_path / "checkpoint", waits)
    assert waits == []


@pytest.mark.parametrize("code", [401, 403])
def test_gated_weights_are_said_with_the_way_in(hub, tmp_path, waits, code):
    hub.gate = (code, "GatedRepo")
    with pytest.raises(DownloadError, match=r"gated\. Accept their licence on the model's page, then log in"):
        fetch(hub, tmp_path / "checkpoint", waits)
    assert waits == [] and not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"revision": "f" * 40}, "org/name at ffff.*no such commit; correct `revision`"),
        ({"repo": "org/other"}, "org/other at main: no such repository, or it needs a login"),
        ({"patterns": ["*.json"]}, r"none of its 6 files is one of weights .*matches \*\.json; correct `files`"),
        ({"alternatives": [["*.gguf"], ["*.pt"]]}, r"matches \*\.gguf or \*\.pt; correct `files`"),
        ({"attempts": 0}, "attempts 0; expected at least 1"),
    ],
)
def test_what_is_not_there_is_said_at_once(hub, tmp_path, waits, options, said):
    with pytest.raises(DownloadError, match=said):
        fetch(hub, tmp_path / "checkpoint", waits, **options)
    assert waits == [] and names(tmp_path) == []


def test_nobody_there_is_an_error_that_tells_of_prefetch(hub, tmp_path, waits):
    hub.close()
    with pytest.raises(DownloadError, match=r"could not be asked .*ConnectError.*`snakemake prefetch`"):
        fetch(hub, tmp_path / "checkpoint", waits)
    assert waits == [1.0, 2.0]


def test_too_little_room_is_said_before_anything_is_fetched_and_counts_what_came(hub, tmp_path, monkeypatch):
    needed = sum(len(FILES[name]) for name in NAMES)
    usage = type("Usage", (), {"free": needed + MARGIN - 1})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match=rf"{usage.free} bytes free .* {needed + MARGIN} needed"):
        fetch(hub, tmp_path / "checkpoint")
    assert hub.asked("model.safetensors") == []
    (tmp_path / "checkpoint.part" / "config.json").write_bytes(b"{}")
    fetch(hub, tmp_path / "checkpoint")


def test_a_folder_that_is_there_and_undamaged_is_left_alone(hub, tmp_path):
    first = fetch(hub, tmp_path / "checkpoint")
    hub.seen.clear()
    assert fetch(hub, tmp_path / "checkpoint") == first
    assert [path for _, path, _ in hub.seen if "resolve" in path] == []


def test_a_folder_of_another_commit_or_of_other_files_is_replaced(hub, tmp_path):
    folder = tmp_path / "checkpoint"
    for change in ({"revision": "f" * 40}, {"repo": "org/other"}):
        noted = fetch(hub, folder)
        (folder / manifest.MANIFEST).write_text(json.dumps({**noted, **change}))
        assert fetch(hub, folder) == noted == manifest.check(folder)
    fetch(hub, folder, patterns=["*.bin"])
    assert names(folder) == [manifest.MANIFEST, "pytorch_model.bin"]


def test_a_pin_that_is_what_was_fetched_asks_nobody_and_changes_nothing(hub, tmp_path):
    first = fetch(hub, tmp_path / "checkpoint", revision=None)
    assert first["asked"]["revision"] is None and first["revision"] == COMMIT
    hub.close()
    for pin in ({}, {"revision": COMMIT}, {"revision": COMMIT, "digests": {"model.safetensors": sha256(WEIGHTS)}}):
        assert (
            fetch(hub, tmp_path / "checkpoint", **{"revision": None, **pin})
            == first
            == manifest.check(tmp_path / "checkpoint")
        )


def test_a_wrong_digest_pinned_afterwards_names_file_and_both_and_leaves_the_weights(hub, tmp_path):
    first = fetch(hub, tmp_path / "checkpoint", revision=None)
    hub.seen.clear()
    wrong = {"digests": {"model.safetensors": "0" * 64}}
    said = rf"model.safetensors has SHA-256 {sha256(WEIGHTS)} at commit {COMMIT}, expected is {'0' * 64}"
    with pytest.raises(DownloadError, match=said):
        fetch(hub, tmp_path / "checkpoint", revision=COMMIT, **wrong)
    assert hub.seen == []
    with pytest.raises(DownloadError, match=f"{sha256(WEIGHTS)}, the sheet of models expects {'0' * 64}"):
        fetch(hub, tmp_path / "checkpoint", revision=None, **wrong)  # main may have moved since: the hub is asked
    assert hub.asked("model.safetensors") == [] and manifest.check(tmp_path / "checkpoint") == first


def test_a_manifest_of_before_requests_were_kept_is_completed_without_fetching(hub, tmp_path):
    noted = fetch(hub, tmp_path / "checkpoint", revision=COMMIT)
    old = {key: value for key, value in noted.items() if key != "asked"}
    (tmp_path / "checkpoint" / manifest.MANIFEST).write_text(json.dumps(old))
    hub.seen.clear()
    assert fetch(hub, tmp_path / "checkpoint", revision=COMMIT) == noted == manifest.check(tmp_path / "checkpoint")
    assert hub.asked("model.safetensors") == []


def test_another_commit_fetches_what_changed_and_a_failure_leaves_the_old_folder(hub, tmp_path):
    folder = tmp_path / "checkpoint"
    noted = fetch(hub, folder)
    (folder / manifest.MANIFEST).write_text(json.dumps({**noted, "revision": "f" * 40}))
    hub.files["vocab.txt"] = hub.stated["vocab.txt"] = b"<new>\n"
    hub.plan["vocab.txt"] = [refuse(403)]
    with pytest.raises(DownloadError):
        fetch(hub, folder, revision=COMMIT)
    assert (folder / "vocab.txt").read_bytes() == FILES["vocab.txt"] and manifest.check(folder)["revision"] == "f" * 40
    hub.seen.clear()
    assert fetch(hub, folder, revision=COMMIT)["revision"] == COMMIT
    assert hub.asked("vocab.txt") == [None] and hub.asked("model.safetensors") == []
    assert (folder / "vocab.txt").read_bytes() == b"<new>\n" and manifest.check(folder)
    assert names(tmp_path) == sorted(f"checkpoint/{name}" for name in [*NAMES, manifest.MANIFEST])


def test_a_folder_whose_manifest_is_gone_is_compared_with_the_hub_and_not_fetched_again(hub, tmp_path):
    noted = fetch(hub, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / manifest.MANIFEST).unlink()
    hub.seen.clear()
    assert fetch(hub, tmp_path / "checkpoint") == noted == manifest.check(tmp_path / "checkpoint")
    assert [hub.asked(name) for name in NAMES] == [[], [], []]


def test_a_damaged_folder_is_found_by_its_manifest_and_what_is_damaged_is_fetched_anew(hub, tmp_path):
    folder = tmp_path / "checkpoint"
    fetch(hub, folder)
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"?")
    (folder / "vocab.txt").write_bytes(b"")
    (folder / "config.json").unlink()
    with pytest.raises(DownloadError) as caught:
        manifest.check(folder)
    said = str(caught.value)
    assert "config.json is gone" in said and "vocab.txt has 0 bytes, 6 were fetched" in said
    assert f"{sha256(WEIGHTS)} was fetched" in said
    fetch(hub, folder)
    assert manifest.check(folder)["revision"] == COMMIT
    assert names(tmp_path) == sorted(f"checkpoint/{name}" for name in [*NAMES, manifest.MANIFEST])


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"files": {"a": 1}}', '{"files": {"a": {"bytes": "1"}}}'])
def test_a_manifest_that_is_none_is_an_error(tmp_path, text):
    assert manifest.read(tmp_path) is None
    (tmp_path / manifest.MANIFEST).write_text(text)
    with pytest.raises(DownloadError, match="not the manifest of a download"):
        manifest.read(tmp_path)


def test_weights_that_come_twice_are_fetched_once_as_safetensors_unless_the_sheet_says_otherwise(caplog):
    log = logging.getLogger("test")
    files = [File(name, 1, None, None) for name in ("model.safetensors", "pytorch_model.bin", "config.json")]
    with caplog.at_level("INFO"):
        assert [f.name for f in choose(files, [["*"]], {}, log)] == ["model.safetensors", "config.json"]
    assert "left out, the weights come as safetensors too: pytorch_model.bin" in caplog.text
    assert [f.name for f in choose(files, [["*.bin"]], {}, log)] == ["pytorch_model.bin"]
    assert len(choose(files, [["*"]], {"pytorch_model.bin": "0" * 64}, log)) == 3


@pytest.mark.parametrize("name", ["../evil.bin", "/evil.bin", "a/../../evil.bin", "a\\b.bin", manifest.MANIFEST])
def test_a_file_name_that_would_leave_the_folder_is_refused(hub, tmp_path, name):
    hub.files[name] = hub.stated[name] = b"evil"
    with pytest.raises(DownloadError, match="a file name that this workflow does not write"):
        fetch(hub, tmp_path / "checkpoint", patterns=["*"])
    assert names(tmp_path) == []


def test_the_stage_fetches_and_checks_and_a_failure_ends_in_one_line(hub, tmp_path):
    folder = tmp_path / "checkpoint"
    # A process of its own: the address of the hub and being offline are read when its client is imported.
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(WORKFLOW)}
    command = f"-m plm_depth.models.download --repo org/name --revision {COMMIT} --files *.pt|*.json,*.bin"
    command = [sys.executable, *command.split(), "--sha256", f"config.json={sha256(b'{}')}", "--output", str(folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert f"org/name at {COMMIT} is in {folder} (licence mit)" in result.stderr
    assert names(folder) == ["config.json", manifest.MANIFEST, "pytorch_model.bin"]

    main(["--check", str(folder)])
    (folder / "config.json").write_text("{ }")
    with pytest.raises(SystemExit) as caught:
        main(["--check", str(folder)])
    assert "changed since the download: config.json has 3 bytes, 2 were fetched" in caught.value.code
    assert "\n" not in caught.value.code
    with pytest.raises(SystemExit):
        main(["--repo", "org/name"])
