"""Fetch a checkpoint, from the hub at one commit or from an archive: the only stage here that reaches the network.

python -m plm_depth.models.download --repo organisation/name --revision COMMIT --files PATTERNS --output FOLDER
python -m plm_depth.models.download --archive URL --archive-sha256 S --output FOLDER
python -m plm_depth.models.download --check FOLDER

The folder appears whole, with a manifest of every file's size and SHA-256, or not at all. Until then its files wait
beside it in ``FOLDER.part``, where a cut or stalled download goes on, also in a later run. A folder that is there and
holds what is asked for is compared with its manifest and left alone; no server is asked for it. One that holds
something else stays until what replaces it is whole.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import NamedTuple, TypeVar

from plm_depth import download as shared
from plm_depth.download import ATTEMPTS, TIMEOUT, TRY_AGAIN, DownloadError, back_off
from plm_depth.models import archives, manifest, pins
from plm_depth.models.manifest import digest_of
from plm_depth.progress import start_log
from plm_depth.tables import write_text

LONGEST_NAME = 200  # characters of a file's name in a repository, folders included
MARGIN = 500_000_000  # bytes that a download leaves free for others
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
T = TypeVar("T")


class File(NamedTuple):
    """One file of a repository, as the hub states it: LFS files by SHA-256, the others by git's name of the blob."""

    name: str
    n_bytes: int
    sha256: str | None
    blob: str | None


class Listing(NamedTuple):
    """A repository at one commit; ``repo`` is its present name, to which the hub redirects old ones."""

    repo: str
    commit: str
    licence: str | None
    gated: bool
    files: list[File]


# --------------------------------------------------------------------------------------------------------- the hub


def from_hub(
    repo: str,
    revision: str | None,
    alternatives: Sequence[Sequence[str]],
    output: str | Path,
    *,
    digests: Mapping[str, str] | None = None,
    endpoint: str | None = None,
    attempts: int = ATTEMPTS,
    timeout: float = TIMEOUT,
    pause: Callable[[int], float] = back_off,
    sleep: Callable[[float], None] = time.sleep,
    log: logging.Logger | None = None,
) -> dict[str, object]:
    """Fetch the files of ``repo`` that match patterns into the folder ``output``; return its manifest.

    A name such as "main" is first resolved to its commit of 40 hexadecimal digits, which the manifest holds; give it in
    the sheet of models to pin it. Every file is compared with what the hub states of it at that commit. Of weights
    that match both as safetensors and as pickles (``model*.safetensors``, ``pytorch_model*.bin``) only the former are
    fetched. A folder that is there already, by its manifest the same and undamaged, is left alone.

    Args:
        revision: a commit of 40 hexadecimal digits, a branch or a tag; None: what is there already, else "main".
        alternatives: patterns of file names, with ``*``; the first list that matches weights is taken.
        digests: SHA-256 by file name, from the sheet of models; compared before anything is fetched where the hub
            states one, else before the folder appears.
        endpoint: address of the hub; None: HF_ENDPOINT, or the public one.
        attempts, timeout, pause, sleep: see ``plm_depth.download.download``.
        log: where progress goes.
    Raises:
        DownloadError: no network, no such repository or commit, gated weights, a wrong digest, too little room, or
            nothing matched; with the mend. What was there before stays.
    """
    log = log or logging.getLogger(__name__)
    output, digests = Path(output), digests or {}
    request = {"repo": repo, "revision": revision, "files": [list(patterns) for patterns in alternatives]}
    request["sha256"] = dict(sorted(digests.items()))
    if kept := _kept(output, request, log):
        return kept
    revision = revision or "main"
    where = f"{repo} at {revision}"
    hub = _hub()
    retry = {"attempts": attempts, "pause": pause, "sleep": sleep}
    listing = _ask(lambda: _listing(hub, repo, revision, endpoint, timeout), where, log, **retry)
    where = f"{repo} at {listing.commit}"
    wanted = choose(listing.files, alternatives, digests, log)
    if not wanted:
        tried = " or ".join(", ".join(patterns) for patterns in alternatives)
        raise DownloadError(
            f"{where}: none of its {len(listing.files)} files is one of weights ({', '.join(WEIGHTS)}) and matches "
            f"{tried}; correct `files` in the sheet of models, or in the entry of the config"
        )
    _compare_with_sheet(wanted, digests, where)
    source = {"repo": listing.repo, "revision": listing.commit, "licence": listing.licence, "gated": listing.gated}
    source["asked"] = request
    if present := _present(output, source, wanted, log):
        return present

    partial = output.with_name(f"{output.name}.part")
    partial.mkdir(parents=True, exist_ok=True)
    _take_over(output, partial, wanted)
    _check_room(partial, wanted, where)
    login = _login(hub)
    found: dict[str, str] = {}
    for n, file in enumerate(wanted, start=1):
        path = partial / file.name
        if path.is_file() and (digest := _digest_if_whole(path, file)):
            log.info("%s: here already, from an earlier run", file.name)
        else:
            log.info("%s: %.1f MB, file %d of %d", file.name, file.n_bytes / 1e6, n, len(wanted))
            url = hub.hf_hub_url(listing.repo, file.name, revision=listing.commit, endpoint=endpoint)
            # Asked first by the hub's own client, whose errors tell gated weights from absent ones.
            _ask(lambda url=url: hub.get_hf_file_metadata(url, timeout=timeout), where, log, **retry)
            digest = shared.download(
                url, path, sha256=file.sha256, headers=login, timeout=timeout, log=log, **retry
            )  # resumes
            if _digest_if_whole(path, file) is None:
                path.unlink()
                raise DownloadError(
                    f"{where}: {file.name} is not the file that the hub lists ({file.n_bytes} bytes, git blob "
                    f"{file.blob}); it was removed, run again"
                )
        if digests.get(file.name, digest) != digest:
            path.unlink()
            raise DownloadError(_not_the_sheets(where, file.name, digest, digests[file.name]))
        found[file.name] = digest
    _remove_others(partial, found)
    noted = manifest.write(partial, source, found)
    _replace(output, partial)
    return noted


def choose(
    files: Sequence[File], alternatives: Sequence[Sequence[str]], digests: Mapping[str, str], log: logging.Logger
) -> list[File]:
    """Return the files to fetch: those that match a pattern, without pickles of weights that come as safetensors too.

    The first list of patterns counts that matches a file of weights; nothing if none does.

    Raises:
        DownloadError: a file name that would leave the folder.
    """
    from huggingface_hub.utils import filter_repo_objects

    def matching(patterns: Sequence[str]) -> list[File]:
        return list(filter_repo_objects(files, allow_patterns=list(patterns), key=lambda file: file.name))

    found = (matching(patterns) for patterns in alternatives)
    with_weights = (some for some in found if any(fnmatch(file.name, kind) for file in some for kind in WEIGHTS))
    chosen = next(with_weights, [])
    if any(fnmatch(file.name, "model*.safetensors") for file in chosen):
        twice = [f.name for f in chosen if fnmatch(f.name, "pytorch_model*.bin*") and f.name not in digests]
        if twice:
            log.info("left out, the weights come as safetensors too: %s", ", ".join(twice))
        chosen = [file for file in chosen if file.name not in twice]
    for file in chosen:
        name = PurePosixPath(file.name)
        strange = not file.name.isprintable() or "\\" in file.name or len(file.name) > LONGEST_NAME
        if strange or name.is_absolute() or ".." in name.parts or file.name == manifest.MANIFEST:
            raise DownloadError(f"{file.name[:80]!r}: a file name that this workflow does not write; narrow `files`")
    return chosen


def _hub() -> ModuleType:
    # Every other rule runs with the hub switched off. Telemetry has no business here.
    os.environ["HF_HUB_OFFLINE"] = "0"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub

    return huggingface_hub


def _login(hub: ModuleType) -> dict[str, str]:
    headers = hub.utils.build_hf_headers()
    return {name: value for name, value in headers.items() if name.lower() == "authorization"}


def _listing(hub: ModuleType, repo: str, revision: str, endpoint: str | None, timeout: float) -> Listing:
    info = hub.HfApi(endpoint=endpoint).model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
    if not re.fullmatch("[0-9a-f]{40}", info.sha or ""):
        raise DownloadError(f"{repo} at {revision}: the hub names no commit ({info.sha!r})")
    files = []
    for sibling in info.siblings or []:
        if sibling.size is None:
            raise DownloadError(f"{repo} at {revision}: the hub does not state the size of {sibling.rfilename}")
        lfs = sibling.lfs
        files.append(
            File(sibling.rfilename, sibling.size, lfs.sha256 if lfs else None, None if lfs else sibling.blob_id)
        )
    licence = info.card_data.get("license") if info.card_data else None
    return Listing(info.id or repo, info.sha, licence, bool(info.gated), files)


def _ask(
    question: Callable[[], T],
    where: str,
    log: logging.Logger,
    *,
    attempts: int,
    pause: Callable[[int], float],
    sleep: Callable[[float], None],
) -> T:
    """Return what the hub answers, asking again after what may pass.

    Raises:
        DownloadError: what will not pass, or did not in ``attempts`` attempts; with the mend.
    """
    import httpx2
    from huggingface_hub import errors

    for n in range(1, attempts + 1):
        try:
            return question()
        except errors.HFValidationError as error:
            raise DownloadError(f"{where}: no name of a repository; expected organisation/name ({error})") from error
        except errors.GatedRepoError as error:
            raise DownloadError(
                f"{where}: the weights are gated. Accept their licence on the model's page, then log in "
                "(`hf auth login`) and run again"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise DownloadError(f"{where}: no such repository, or it needs a login (`hf auth login`)") from error
        except errors.RevisionNotFoundError as error:
            raise DownloadError(f"{where}: no such commit; correct `revision` in the sheet of models") from error
        except (errors.HfHubHTTPError, httpx2.HTTPError, errors.FileMetadataError, OSError) as error:
            status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
            text = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else 'no answer'}"
            may_pass = status in TRY_AGAIN if status is not None else not isinstance(error, errors.FileMetadataError)
            if n == attempts or not may_pass:
                raise DownloadError(
                    f"{where}: the hub could not be asked ({text}). On a node without network run `snakemake prefetch` "
                    "on one that has it first, or give a folder (`path`) in the config"
                ) from error
            log.info("%s; asking again in %.0f s", text, pause(n))
            sleep(pause(n))
    raise DownloadError(f"{where}: attempts {attempts}; expected at least 1")


def _compare_with_sheet(wanted: Sequence[File], digests: Mapping[str, str], where: str) -> None:
    stated = {file.name: file.sha256 for file in wanted}
    for name, expected in digests.items():
        if name not in stated:
            raise DownloadError(
                f"{where}: {name} has a digest in the sheet of models, but `files` does not fetch it or it is not there"
            )
        if (stated[name] or expected) != expected:
            raise DownloadError(_not_the_sheets(where, name, stated[name], expected))


def _not_the_sheets(where: str, name: str, found: str, expected: str) -> str:
    return (
        f"{where}: {name} has SHA-256 {found}, the sheet of models expects {expected}. Check which of the two is right "
        "before you correct `sha256` or `revision` in the sheet"
    )


def _kept(output: Path, request: pins.Request, log: logging.Logger) -> dict[str, object] | None:
    """Return the manifest of ``output`` if it is of what is asked for, by what it says itself, and undamaged.

    Raises:
        DownloadError: it holds the very files that are asked for, but their digests are not those of the sheet.
    """
    try:
        noted = manifest.read(output)
    except DownloadError:
        return None  # `_present` says so
    if noted is None:
        return None
    try:
        pins.refuse_contradictions(output, noted, request)
    except pins.PinError as error:
        raise DownloadError(str(error)) from None
    if not pins.fulfils(noted, request):
        return None
    try:
        manifest.check(output)
    except DownloadError as error:
        log.info("%s", error)
        return None
    log.info("%s holds what is asked for already, all as it was fetched; nobody was asked", output)
    return noted


def _present(
    output: Path, source: Mapping[str, object], wanted: Sequence[File], log: logging.Logger
) -> dict[str, object] | None:
    """Return the manifest of ``output`` if it holds these files of this commit, undamaged; say why if it does not."""
    if not output.exists() or not any(output.iterdir()):
        return None
    try:
        noted = manifest.check(output)
    except DownloadError as error:
        log.info("%s; what is damaged is fetched anew", error)
        return None
    same = (noted.get("repo"), noted.get("revision")) == (source["repo"], source["revision"])
    if same and set(noted["files"]) == {file.name for file in wanted}:
        log.info("%s holds these files already, all as they were fetched", output)
        return manifest.write(output, source, {name: about["sha256"] for name, about in noted["files"].items()})
    log.info("%s holds other files; it is replaced when the new ones are whole", output)
    return None


def _take_over(output: Path, partial: Path, wanted: Sequence[File]) -> None:
    """Link files of an older folder that may be wanted again into the new one; they are compared like all others."""
    for file in wanted:
        old, new = output / file.name, partial / file.name
        if old.is_file() and old.stat().st_size == file.n_bytes and not new.exists():
            new.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # a file system without links: they are fetched
                os.link(old, new)


def _check_room(partial: Path, wanted: Sequence[File], where: str) -> None:
    """Check the room for what has not come yet: whole files and begun ones of an earlier run count as come."""
    come = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    needed = max(sum(file.n_bytes for file in wanted) - come, 0) + MARGIN
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise DownloadError(
            f"{where}: {free} bytes free in {partial.parent}, {needed} needed ({MARGIN} of them to be left free); make "
            "room, or keep `resources/checkpoints` on a larger disk"
        )


def _digest_if_whole(path: Path, file: File) -> str | None:
    """Return the SHA-256 of a fetched file if it is what the hub lists, else None."""
    if path.stat().st_size != file.n_bytes:
        return None
    digest = digest_of(path)
    if file.sha256 is not None:
        return digest if digest == file.sha256 else None
    if file.blob is not None:
        content = path.read_bytes()  # only small files are no LFS files
        if hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() != file.blob:
            return None
    return digest


def _remove_others(folder: Path, names: Mapping[str, str]) -> None:
    """Remove what an earlier attempt with other settings left."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in names:
            path.unlink()


def _replace(output: Path, partial: Path) -> None:
    if output.exists():
        shutil.rmtree(output)
    os.replace(partial, output)


# ---------------------------------------------------------------------------------------------------------- archives


def from_archive(
    url: str,
    output: str | Path,
    *,
    sha256: str | None = None,
    most_bytes: int = archives.MOST_BYTES,
    log: logging.Logger | None = None,
    **options: object,
) -> dict[str, object]:
    """Fetch a tar archive and unpack it into the folder ``output``; return its manifest.

    An archive that came whole and could not be unpacked for want of room waits beside the folder for the next run. A
    folder that is there already, of this archive and undamaged, is left alone.

    Args:
        url: https://, http://, file:// or a plain path.
        sha256: of the archive; None: not checked, and the one found stands in the manifest.
        most_bytes: unpacked.
        log: where progress goes.
        options: attempts, timeout, pause, sleep; see ``plm_depth.download.download``.
    Raises:
        DownloadError: the archive cannot be had, has another digest, is refused (see ``archives.unpack``), or there is
            too little room for it and as many bytes unpacked, which is said before it is fetched.
    """
    log = log or logging.getLogger(__name__)
    output = Path(output)
    request = {"archive": url, "sha256": sha256}
    if kept := _kept(output, request, log):
        return kept
    archive, partial = output.with_name(f"{output.name}.archive"), output.with_name(f"{output.name}.part")
    about = output.with_name(f"{output.name}.archive.json")
    digest = _digest_of_archive(archive, about, request)
    if digest is not None:
        log.info("%s: here already, from an earlier run", archive)
    else:
        digest = shared.download(url, archive, sha256=sha256, log=log, room_for=2, **options)
        write_text(json.dumps({"archive": url, "sha256": digest}) + "\n", about)
    try:
        archives.unpack(archive, partial, most_bytes=most_bytes)
    except DownloadError as error:
        if isinstance(error, archives.NoRoomError):
            raise DownloadError(f"{url}: {error}; {archive} is kept, the next run goes on with it") from error
        archive.unlink()
        about.unlink(missing_ok=True)
        raise DownloadError(f"{url}: {error}") from error
    names = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
    found = {name: digest_of(partial / name) for name in names}
    noted = manifest.write(partial, {"archive": url, "sha256": digest, "asked": request}, found)
    _replace(output, partial)
    archive.unlink()
    about.unlink(missing_ok=True)
    return noted


def _digest_of_archive(archive: Path, about: Path, request: pins.Request) -> str | None:
    """Return the SHA-256 of an archive that an earlier run left, None if it is not the one asked for, or damaged."""
    if not archive.is_file():
        return None
    try:
        noted = json.loads(about.read_text(encoding="utf-8"))
        expected = request["sha256"] or (noted["sha256"] if noted["archive"] == request["archive"] else None)
    except (OSError, ValueError, KeyError, TypeError):
        expected = request["sha256"]
    return expected if expected is not None and digest_of(archive) == expected else None


# ------------------------------------------------------------------------------------------------------------- door


def _digests_of(text: str) -> dict[str, str]:
    """Return file=digest,... by file."""
    pairs = [pair.partition("=")[::2] for pair in text.split(",") if pair]
    if wrong := [name for name, digest in pairs if not re.fullmatch("[0-9a-f]{64}", digest)]:
        raise DownloadError(f"--sha256: {wrong[0]!r}; expected file=digest with 64 hexadecimal digits")
    return dict(pairs)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.models.download", description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--repo", help="organisation/name on the hub")
    source.add_argument("--archive", help="address of a tar archive: https://, file:// or a path")
    source.add_argument("--check", type=Path, metavar="FOLDER", help="compare a fetched folder with its manifest")
    parser.add_argument("--revision", help="commit of 40 hexadecimal digits (default: what is there, else main)")
    parser.add_argument(
        "--files", default="*", help="patterns to fetch, separated by commas; | between alternatives (default: all)"
    )
    parser.add_argument("--sha256", default="", help="file=digest, several separated by commas")
    parser.add_argument("--archive-sha256", default="none", help="of the archive; none: not checked")
    parser.add_argument("--output", type=Path, help="folder to make")
    parser.add_argument("--receipt", type=Path, help="where a copy of the manifest goes when the folder is whole")
    parser.add_argument("--attempts", type=int, default=ATTEMPTS, help="tries in a row that bring nothing new")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds without a byte that count as a stall")
    options = parser.parse_args(argv)
    if options.check is None and options.output is None:
        parser.error("--output is needed")
    log = start_log("download_checkpoint")
    retry = {"attempts": options.attempts, "timeout": options.timeout, "log": log}
    try:
        if options.check is not None:
            noted = manifest.check(options.check)
            log.info(f"{options.check}: all {len(noted['files'])} files as they were fetched")
        elif options.archive is not None:
            digest = None if options.archive_sha256 == "none" else options.archive_sha256
            noted = from_archive(options.archive, options.output, sha256=digest, **retry)
            log.info(f"{options.archive} is in {options.output}")
        else:
            digests = _digests_of(options.sha256)
            alternatives = [patterns.split(",") for patterns in options.files.split("|")]
            noted = from_hub(options.repo, options.revision, alternatives, options.output, digests=digests, **retry)
            said = f"licence {noted.get('licence') or 'not stated'}{', gated' if noted.get('gated') else ''}"
            log.info(f"{noted['repo']} at {noted['revision']} is in {options.output} ({said})")
        if options.receipt is not None:
            write_text(json.dumps(noted, indent=1) + "\n", options.receipt)
    except (DownloadError, OSError) as error:
        raise SystemExit(f"download_checkpoint: {error}") from None


if __name__ == "__main__":
    main()
