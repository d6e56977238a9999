"""Fetch a checkpoint from the hub at one commit: the only stage of this room that reaches the network."""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from plm_depth.models.base import CheckpointError
from plm_depth.progress import start_log
from plm_depth.tables import write_text

MANIFEST = "plm_depth_download.json"


def download(
    repo: str,
    revision: str,
    patterns: Sequence[str],
    output: str | Path,
    *,
    digests: Mapping[str, str] | None = None,
    fetch: Callable[..., object] | None = None,
    resolve: Callable[[str, str], str] | None = None,
) -> str:
    """Fetch the files of ``repo`` that match ``patterns`` into the folder ``output``; return the commit fetched.

    A name such as "main" is first resolved to its commit of 40 hexadecimal digits, which is written into the manifest
    beside the files; give it in the sheet of models to pin it. Files are kept beside the final folder while they are
    fetched, so that a cut download resumes; the folder appears whole or not at all.

    Args:
        digests: SHA-256 by file name, checked before the folder appears.
        fetch, resolve: the hub's ``snapshot_download`` and a function (repo, revision) -> commit; for tests.
    Raises:
        CheckpointError: no network, no such repository or commit, gated weights, or nothing matched; with the mend.
    """
    os.environ["HF_HUB_OFFLINE"] = "0"  # every other rule runs with the hub switched off
    import httpx2 as httpx
    import huggingface_hub
    from huggingface_hub import errors

    fetch = fetch or huggingface_hub.snapshot_download
    resolve = resolve or (lambda name, at: huggingface_hub.HfApi().model_info(name, revision=at).sha)
    output = Path(output)
    partial = output.with_name(f"{output.name}.part")
    where = f"{repo} at {revision}"
    try:
        commit = resolve(repo, revision)
        fetch(repo_id=repo, revision=commit, allow_patterns=list(patterns), local_dir=partial)
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{where}: the weights are gated. Accept their licence on the model's page, then log in "
            "(`hf auth login`) and run again"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"{where}: no such repository, or it needs a login (`hf auth login`)") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{where}: no such commit; correct `revision` in the sheet of models") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise CheckpointError(
            f"{where}: could not be fetched ({type(error).__name__}: {error}). On a node without network run "
            "`snakemake prefetch` on one that has it first, or give a folder (`path`) in the config; what was fetched "
            f"so far is kept in {partial}"
        ) from error
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    files = sorted(p for p in partial.rglob("*") if p.is_file()) if partial.is_dir() else []
    if not files:
        raise CheckpointError(f"{where}: no file matches {', '.join(patterns)}; correct `files` in the sheet of models")
    for name, expected in (digests or {}).items():
        if not (partial / name).is_file():
            raise CheckpointError(
                f"{where}: {name} has a digest in the sheet of models but was not fetched; see `files`"
            )
        with (partial / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            (partial / name).unlink()
            raise CheckpointError(
                f"{where}: {name} has SHA-256 {found}, expected {expected}; the file was removed, run again. "
                "If it stays so, the repository has changed: check it before you correct `sha256` in the sheet"
            )
    listing = {str(p.relative_to(partial)): p.stat().st_size for p in files}
    write_text(json.dumps({"repo": repo, "revision": commit, "bytes": listing}, indent=1), partial / MANIFEST)
    if output.exists():
        shutil.rmtree(output)
    os.replace(partial, output)
    return commit


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", required=True, help="organisation/name")
    parser.add_argument("--revision", required=True, help="commit of 40 hexadecimal digits, or a branch")
    parser.add_argument("--files", required=True, help="patterns to fetch, separated by commas")
    parser.add_argument("--sha256", default="", help="file=digest, several separated by commas")
    parser.add_argument("--output", required=True, help="folder to make")
    options = parser.parse_args(argv)
    log = start_log("download_checkpoint")
    digests = dict(pair.split("=", 1) for pair in options.sha256.split(",") if pair)
    try:
        commit = download(options.repo, options.revision, options.files.split(","), options.output, digests=digests)
    except CheckpointError as error:
        raise SystemExit(f"download_checkpoint: {error}") from None
    log.info(f"{options.repo} at {commit} is in {options.output}")


if __name__ == "__main__":
    main()
