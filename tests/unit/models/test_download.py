"""A checkpoint from the hub comes whole, at one commit, checked, or not at all."""

import hashlib
import json
from pathlib import Path

import httpx2 as httpx
import pytest
from huggingface_hub import errors

from plm_depth.models.base import CheckpointError
from plm_depth.models.download import MANIFEST, download

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "model.py": b"import os"}


class Hub:
    """A stand-in: hands out FILES that match the patterns and remembers what was asked."""

    def __init__(self, error: Exception | None = None):
        self.error, self.asked = error, []

    def resolve(self, repo: str, revision: str) -> str:
        return COMMIT

    def fetch(self, *, repo_id: str, revision: str, allow_patterns: list[str], local_dir: Path) -> None:
        self.asked.append((repo_id, revision))
        for name, content in FILES.items():
            if any(Path(name).match(pattern) for pattern in allow_patterns):
                local_dir.mkdir(parents=True, exist_ok=True)
                (local_dir / name).write_bytes(content)
                if self.error:
                    raise self.error


def get(tmp_path: Path, hub: Hub, patterns=("*.json", "*.safetensors"), **options) -> Path:
    folder = tmp_path / "checkpoint"
    download("org/name", "main", patterns, folder, fetch=hub.fetch, resolve=hub.resolve, **options)
    return folder


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "http://localhost/x"))


def test_only_the_files_asked_for_come_at_the_commit_that_main_is(tmp_path):
    hub = Hub()
    folder = get(tmp_path, hub)
    assert hub.asked == [("org/name", COMMIT)]
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", MANIFEST]
    assert json.loads((folder / MANIFEST).read_text())["revision"] == COMMIT


def test_a_right_digest_passes_and_a_wrong_one_is_refused_and_fetched_anew_next_time(tmp_path):
    right = hashlib.sha256(b"weights").hexdigest()
    assert get(tmp_path, Hub(), digests={"model.safetensors": right}).is_dir()
    with pytest.raises(CheckpointError, match=r"SHA-256 .* expected 000"):
        get(tmp_path / "other", Hub(), digests={"model.safetensors": "0" * 64})
    assert not (tmp_path / "other" / "checkpoint").exists()
    assert not (tmp_path / "other" / "checkpoint.part" / "model.safetensors").exists()
    with pytest.raises(CheckpointError, match="was not fetched"):
        get(tmp_path / "third", Hub(), digests={"other.bin": right})


def test_nothing_matched_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no file matches"):
        get(tmp_path, Hub(), patterns=("*.bin",))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.GatedRepoError("no", response=response(401)), "gated.*accept their licence"),
        (errors.RepositoryNotFoundError("no", response=response(404)), "no such repository"),
        (errors.RevisionNotFoundError("no", response=response(404)), "no such commit"),
        (httpx.ConnectError("unreachable"), "snakemake prefetch"),
        (httpx.ReadTimeout("stalled"), "snakemake prefetch"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_each_failure_says_what_to_do_and_leaves_no_folder(tmp_path, error, said):
    with pytest.raises(CheckpointError, match=f"(?i){said}"):
        get(tmp_path, Hub(error))
    assert not (tmp_path / "checkpoint").exists()


def test_what_was_fetched_is_kept_for_the_next_try(tmp_path):
    with pytest.raises(CheckpointError):
        get(tmp_path, Hub(httpx.ConnectError("cut")))
    assert (tmp_path / "checkpoint.part" / "config.json").exists()
    assert (get(tmp_path, Hub()) / "model.safetensors").read_bytes() == b"weights"
