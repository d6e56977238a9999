"""What a config asks for and pins of a checkpoint from elsewhere, and whether what was fetched before is that.

A request is plain data, kept in the manifest of what it brought: {"repo", "revision", "files", "sha256"} of a
repository (revision: a commit, a branch, or None where nothing is pinned; files: alternatives, each a list of patterns;
sha256: by file), or {"archive", "sha256"} of an archive. So a pin that is written into the sheet after the download is
compared with what is there, and nothing is fetched or removed for it.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from plm_depth.models.registry import FAMILIES

MANIFEST = "plm_depth_download.json"
Request = Mapping[str, object]


def receipt_of(folder: Path | str) -> str:
    """Return the path of the copy of a folder's manifest that stands beside it once the folder is whole."""
    return f"{folder}.receipt.json"


class PinError(ValueError):
    """A pin that what was fetched contradicts."""


def request_of(entry: Mapping[str, object]) -> dict[str, object]:
    """Return what a model of a study asks for.

    Args:
        entry: a row of the sheet (patterns and digests as text) or an entry of the config (as a list and a mapping),
            with ``hub`` or ``archive``. Without ``files``: the layouts that its family reads, the first that is there.
    """
    if "archive" in entry:
        return {"archive": entry["archive"], "sha256": entry.get("archive_sha256")}
    files, digests = entry.get("files"), entry.get("sha256", {})
    if files is None:
        alternatives = [list(some) for some in FAMILIES[str(entry["family"])].files.values() if some]
    else:
        alternatives = [files.split(",") if isinstance(files, str) else list(files)]
    if isinstance(digests, str):
        digests = dict(pair.split("=") for pair in digests.split(","))
    return {
        "repo": entry["hub"],
        "revision": entry.get("revision"),
        "files": alternatives,
        "sha256": dict(sorted(digests.items())),
    }


def options_of(request: Request) -> list[str]:
    """Return a request as the options of ``plm_depth.models.download``."""
    if "archive" in request:
        return ["--archive", request["archive"], "--archive-sha256", request["sha256"] or "none"]
    digests = request["sha256"]
    return [
        *("--repo", request["repo"]),
        *(("--revision", request["revision"]) if request["revision"] else ()),
        *("--files", "|".join(",".join(patterns) for patterns in request["files"])),
        *(("--sha256", ",".join("=".join(pair) for pair in digests.items())) if digests else ()),
    ]


def settled(folder: Path | str, entry: Mapping[str, object]) -> Request:
    """Return the request that a folder answered if that is what a model asks for now, else what it asks for now.

    A rule takes it as its settings: they change, and the rule runs, only when something else than before is wanted.

    Raises:
        PinError: see ``contradictions``.
    """
    request = request_of(entry)
    try:
        noted = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
        refuse_contradictions(folder, noted, request)
        return noted["asked"] if fulfils(noted, request) else request
    except PinError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or damaged: the stage says so
        return request


def fulfils(noted: Mapping[str, object], request: Request) -> bool:
    """Return whether a manifest is of what is asked for: the same files, at the pin if there is one."""
    asked = noted.get("asked")
    if not isinstance(asked, Mapping):
        return False
    if "archive" in request:
        wanted = request["sha256"]
        return noted.get("sha256") == wanted if wanted else noted.get("archive") == request["archive"]
    return (
        request["repo"] in (asked.get("repo"), noted.get("repo"))
        and request["revision"] in (None, noted.get("revision"))
        and request["files"] == asked.get("files")
        and all(digest == _digest(noted, name) for name, digest in request["sha256"].items())
    )


def contradictions(noted: Mapping[str, object], request: Request) -> list[str]:
    """Return what a request says of the very files that were fetched although they are not so, each with both digests.

    Only where they are the same for certain: at one commit of a repository, or from one address of an archive.
    """
    if "archive" in request:
        found, wanted = noted.get("sha256"), request["sha256"]
        if noted.get("archive") != request["archive"] or wanted in (None, found):
            return []
        return [f"{request['archive']} has SHA-256 {found}, expected is {wanted}"]
    asked = noted.get("asked")
    repos = (noted.get("repo"), asked.get("repo") if isinstance(asked, Mapping) else None)
    if request["repo"] not in repos or request["revision"] != noted.get("revision"):
        return []
    return [
        f"{name} has SHA-256 {_digest(noted, name)} at commit {noted['revision']}, expected is {digest}"
        for name, digest in request["sha256"].items()
        if _digest(noted, name) not in (None, digest)
    ]


def refuse_contradictions(folder: Path | str, noted: Mapping[str, object], request: Request) -> None:
    """Raise if what a request says of the files in a folder is not so.

    Raises:
        PinError: naming the files and both digests of each.
    """
    if lines := contradictions(noted, request):
        raise PinError(
            f"{folder}: {'; '.join(lines)}. Nothing was removed: correct the digest in the sheet of models (or the "
            "config) if what was fetched is right, else remove the folder and fetch it again"
        )


def _digest(noted: Mapping[str, object], name: str) -> str | None:
    about = noted["files"].get(name)
    return about["sha256"] if about else None
