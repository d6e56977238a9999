"""An archive of a checkpoint: fetched and checked, unpacked below its folder or refused, and no trace of it left."""

import contextlib
import gzip
import io
import json
import random
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import stand_in_hub
from plm_depth.download import DownloadError
from plm_depth.models import archives, manifest
from plm_depth.models.archives import unpack
from plm_depth.models.download import from_archive, main
from stand_in_hub import Hub, sha256

WEIGHTS = random.Random(1).randbytes(200_000)
FILES = {"config.json": b"{}", "pytorch_model.bin": WEIGHTS}


def packed(files: dict[str, bytes], *extra: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    """Return a tar archive of files, and of members without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member)
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


ARCHIVE = packed(FILES)


@pytest.fixture
def server(monkeypatch) -> Iterator[Hub]:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with stand_in_hub.running({"model.tar.gz": ARCHIVE}) as server:
        yield server


def url(server: Hub) -> str:
    return f"{server.endpoint}/cdn/model.tar.gz"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_good_archive_becomes_a_folder_with_a_manifest_and_nothing_else(server, tmp_path):
    noted = from_archive(url(server), tmp_path / "checkpoint", sha256=sha256(ARCHIVE))
    assert names(tmp_path) == [f"checkpoint/{n}" for n in ("config.json", manifest.MANIFEST, "pytorch_model.bin")]
    assert (tmp_path / "checkpoint" / "pytorch_model.bin").read_bytes() == WEIGHTS
    assert noted["archive"] == url(server) and noted["sha256"] == sha256(ARCHIVE)
    assert noted["files"]["pytorch_model.bin"] == {"bytes": len(WEIGHTS), "sha256": sha256(WEIGHTS)}
    assert manifest.check(tmp_path / "checkpoint") == noted


def test_without_a_digest_the_one_found_stands_in_the_manifest(server, tmp_path):
    assert from_archive(url(server), tmp_path / "checkpoint")["sha256"] == sha256(ARCHIVE)


def test_a_wrong_digest_is_refused_and_leaves_nothing(server, tmp_path):
    with pytest.raises(DownloadError, match=f"wrong file: its SHA-256 is {sha256(ARCHIVE)}, expected {'0' * 64}"):
        from_archive(url(server), tmp_path / "checkpoint", sha256="0" * 64)
    assert names(tmp_path) == []


def test_a_cut_connection_is_resumed(server, tmp_path):
    server.plan["model.tar.gz"] = [50_000]
    from_archive(url(server), tmp_path / "checkpoint", sha256=sha256(ARCHIVE), sleep=lambda seconds: None)
    assert server.asked("model.tar.gz") == [None, "bytes=50000-"]
    assert (tmp_path / "checkpoint" / "pytorch_model.bin").read_bytes() == WEIGHTS


def test_a_failure_leaves_the_old_folder_as_it_was(server, tmp_path):
    from_archive(url(server), tmp_path / "checkpoint")
    server.files["model.tar.gz"] = server.stated["model.tar.gz"] = packed(FILES | {"../evil": b""})
    with pytest.raises(DownloadError, match=r"model\.tar\.gz.*'\.\./evil' would lie outside"):
        from_archive(f"{url(server)}?another", tmp_path / "checkpoint")
    assert manifest.check(tmp_path / "checkpoint")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


@pytest.mark.parametrize("digest", [None, sha256(ARCHIVE)])
def test_an_archive_that_came_whole_is_not_fetched_again_after_a_full_disk(server, tmp_path, monkeypatch, digest):
    usage = shutil.disk_usage
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full if Path(path).suffix == ".part" else usage(path))
    with pytest.raises(DownloadError, match=r"1000 bytes free, 200000 needed; make room; .*archive is kept"):
        from_archive(url(server), tmp_path / "checkpoint", sha256=digest)
    assert names(tmp_path) == ["checkpoint.archive", "checkpoint.archive.json"]
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    server.seen.clear()
    noted = from_archive(url(server), tmp_path / "checkpoint", sha256=digest)
    assert server.seen == [] and noted["sha256"] == sha256(ARCHIVE)
    assert names(tmp_path) == [f"checkpoint/{n}" for n in ("config.json", manifest.MANIFEST, "pytorch_model.bin")]


def left_after_a_full_disk(server: Hub, folder: Path, monkeypatch) -> None:
    usage = shutil.disk_usage
    full = type("Usage", (), {"free": 1000})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: full if Path(path).suffix == ".part" else usage(path))
        with pytest.raises(DownloadError, match="make room"):
            from_archive(url(server), folder)
    server.seen.clear()


def test_a_kept_archive_that_changed_or_is_of_another_address_is_fetched_again(server, tmp_path, monkeypatch):
    left_after_a_full_disk(server, tmp_path / "changed", monkeypatch)
    (tmp_path / "changed.archive").write_bytes(ARCHIVE[:-1])
    from_archive(url(server), tmp_path / "changed")
    assert server.asked("model.tar.gz") == [None] and names(tmp_path / "changed") == sorted([*FILES, manifest.MANIFEST])
    left_after_a_full_disk(server, tmp_path / "other", monkeypatch)
    from_archive(f"{url(server)}?another", tmp_path / "other")
    assert server.asked("model.tar.gz") == [None]


@pytest.mark.parametrize("form", ["server", "file"])
def test_too_little_room_for_an_archive_and_what_comes_out_of_it_is_said_before_it_is_fetched(
    server, tmp_path, monkeypatch, form
):
    (tmp_path / "model.tar.gz").write_bytes(ARCHIVE)
    where = url(server) if form == "server" else (tmp_path / "model.tar.gz").as_uri()
    usage = type("Usage", (), {"free": 2 * len(ARCHIVE) - 1})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match=rf"{usage.free} bytes free, {2 * len(ARCHIVE)} more needed for .*model"):
        from_archive(where, tmp_path / "checkpoint")
    assert names(tmp_path) == ["model.tar.gz"]
    usage.free += 1
    from_archive(where, tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint" / "pytorch_model.bin").read_bytes() == WEIGHTS


def test_an_archive_that_is_there_is_left_alone_whether_pinned_since_or_moved(server, tmp_path):
    folder = tmp_path / "checkpoint"
    first = from_archive(url(server), folder)
    server.close()
    assert from_archive(url(server), folder) == first
    assert from_archive(url(server), folder, sha256=sha256(ARCHIVE)) == first
    assert from_archive("https://elsewhere.invalid/a.tar", folder, sha256=sha256(ARCHIVE)) == first
    with pytest.raises(DownloadError, match=rf"has SHA-256 {sha256(ARCHIVE)}, expected is {'0' * 64}.*Nothing was rem"):
        from_archive(url(server), folder, sha256="0" * 64)
    assert manifest.check(folder) == first


@pytest.mark.parametrize("digest", [None, sha256(ARCHIVE)])
def test_an_archive_of_an_earlier_run_that_cannot_be_told_is_fetched_again(server, tmp_path, digest):
    (tmp_path / "checkpoint.archive").write_bytes(packed({"other": b"other"}))
    from_archive(url(server), tmp_path / "checkpoint", sha256=digest)
    assert "config.json" in names(tmp_path / "checkpoint") and server.asked("model.tar.gz") == [None]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_each_compression_is_unpacked(tmp_path, mode):
    (tmp_path / "a.tar").write_bytes(packed({"./config.json": b"{}", "sub/weights.bin": b"w"}, mode=mode))
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert names(tmp_path / "out") == ["config.json", "sub/weights.bin"]


def test_one_folder_around_everything_is_taken_off(tmp_path):
    (tmp_path / "a.tar").write_bytes(packed({f"progen2-small/{name}": content for name, content in FILES.items()}))
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert names(tmp_path / "out") == ["config.json", "pytorch_model.bin"]
    assert names(tmp_path) == ["a.tar", "out/config.json", "out/pytorch_model.bin"]


def device() -> tarfile.TarInfo:
    member = tarfile.TarInfo("null")
    member.type = tarfile.CHRTYPE
    return member


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (packed(FILES | {"../evil": b"x"}), r"'\.\./evil' would lie outside the folder: refused"),
        (packed(FILES | {"a/../../evil": b"x"}), "would lie outside the folder: refused"),
        (packed(FILES | {"/tmp/evil_of_a_test": b"x"}), "'/tmp/evil_of_a_test' would lie outside the folder"),
        (packed(FILES, link("evil", "/etc")), "'evil' is no regular file"),
        (packed(FILES, link("evil", "config.json")), "'evil' is no regular file"),
        (packed(FILES, link("evil", "config.json", tarfile.LNKTYPE)), "'evil' is no regular file"),
        (packed(FILES, device()), "'null' is no regular file"),
        (packed(FILES | {"./config.json": b"[]"}), r"'\./config\.json' comes twice"),
        (packed({}), "holds no file"),
        (b"<html>not found</html>" * 100, "not a whole tar archive"),
        (b"", "not a whole tar archive"),
        (ARCHIVE[: len(ARCHIVE) // 2], "not a whole tar archive"),
        (packed(FILES, mode="w")[:100_000], "not a whole tar archive"),
        (gzip.compress(b"no tar"), "not a whole tar archive"),
    ],
)
def test_what_is_no_plain_archive_is_refused_and_named(tmp_path, content, said):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DownloadError, match=said):
        unpack(tmp_path / "a.tar", tmp_path / "deep" / "out")
    assert names(tmp_path) == ["a.tar"] and not Path("/tmp/evil_of_a_test").exists()


def test_a_damaged_byte_is_found_by_the_checksum_of_gzip(tmp_path):
    content = bytearray(ARCHIVE)
    content[len(content) // 2] ^= 255
    (tmp_path / "a.tar").write_bytes(bytes(content))
    with pytest.raises(DownloadError, match="not a whole tar archive"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


def test_what_comes_behind_the_end_of_the_tar_is_bounded_too(tmp_path):
    (tmp_path / "a.tar").write_bytes(gzip.compress(packed({"a": b"a"}, mode="w") + bytes(1_000_000)))
    unpack(tmp_path / "a.tar", tmp_path / "out")
    with pytest.raises(DownloadError, match="more than 100000 bytes unpacked"):
        unpack(tmp_path / "a.tar", tmp_path / "out", most_bytes=100_000)


def test_an_archive_that_grows_too_large_or_too_many_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(packed({"zeros": bytes(100_000), "more": bytes(100_000)}))
    with pytest.raises(DownloadError, match=r"'more': at least 200000 bytes .* expected at most 150000"):
        unpack(tmp_path / "a.tar", tmp_path / "out", most_bytes=150_000)
    monkeypatch.setattr(archives, "MOST_MEMBERS", 1)
    with pytest.raises(DownloadError, match=r"in 2 members; expected at most .* in 1"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert names(tmp_path) == ["a.tar"]


def test_the_stage_unpacks_a_local_archive_and_a_failure_ends_in_one_line(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(ARCHIVE)
    folder = tmp_path / "checkpoint"
    main(["--archive", (tmp_path / "a.tar.gz").as_uri(), "--archive-sha256", sha256(ARCHIVE), "--output", str(folder)])
    assert json.loads((folder / manifest.MANIFEST).read_text())["sha256"] == sha256(ARCHIVE)
    (tmp_path / "b.tar").write_bytes(packed({"../evil": b""}))
    with contextlib.chdir(tmp_path), pytest.raises(SystemExit) as caught:
        main(["--archive", "b.tar", "--output", str(tmp_path / "other")])
    assert caught.value.code.startswith("download_checkpoint: b.tar: ") and "\n" not in caught.value.code
    assert (tmp_path / "b.tar").exists() and not (tmp_path / "other").exists()
