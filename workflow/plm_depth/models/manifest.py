"""What a download wrote down beside a checkpoint: where it came from, and size and SHA-256 of every file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from plm_depth.download import DownloadError
from plm_depth.models.pins import MANIFEST
from plm_depth.tables import write_text

__all__ = ["MANIFEST", "check", "digest_of", "read", "write"]


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(folder: Path, source: Mapping[str, object], digests: Mapping[str, str]) -> dict[str, object]:
    """Write the manifest of a folder and return it: ``source`` and "files", {name: {"bytes", "sha256"}}.

    Args:
        source: where the files came from: repository and commit, or archive and its digest; and what was "asked" for
            (see ``plm_depth.models.pins``).
        digests: SHA-256 of every file by its name below the folder, with "/" between parts.
    """
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": digests[name]} for name in sorted(digests)}
    manifest = {**source, "files": files}
    write_text(json.dumps(manifest, indent=1) + "\n", folder / MANIFEST)
    return manifest


def read(folder: Path) -> dict[str, object] | None:
    """Return the manifest of a folder, None if it has none (a user's own checkpoint).

    Raises:
        DownloadError: there is one, but it cannot be understood.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        whole = all(isinstance(f["bytes"], int) and isinstance(f["sha256"], str) for f in manifest["files"].values())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise DownloadError(f"{path}: not the manifest of a download; remove {folder} and fetch it again")
    return manifest


def check(folder: Path) -> dict[str, object]:
    """Return the manifest of a folder after comparing every file with it.

    Raises:
        DownloadError: no manifest, or a file is gone or is not the one that was fetched; every such file is named.
    """
    manifest = read(folder)
    if manifest is None:
        raise DownloadError(f"{folder / MANIFEST}: no such file; expected a folder that this workflow has fetched")
    wrong = []
    for name, noted in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is gone")
        elif path.stat().st_size != noted["bytes"]:
            wrong.append(f"{name} has {path.stat().st_size} bytes, {noted['bytes']} were fetched")
        elif (found := digest_of(path)) != noted["sha256"]:
            wrong.append(f"{name} has SHA-256 {found}, {noted['sha256']} was fetched")
    if wrong:
        raise DownloadError(f"{folder}: changed since the download: {'; '.join(wrong)}. Remove it and fetch it again")
    return manifest
