"""The card of a checkpoint: what it is, which bytes it is made of, and that its adapter reproduces its logits.

Later stages open a model through its card, so that none of them runs on other bytes than those that were described.
"""

import argparse
import json
import logging
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from plm_depth import __version__
from plm_depth.models import manifest
from plm_depth.models.manifest import digest_of
from plm_depth.progress import start_log
from plm_depth.tables import write_text

if TYPE_CHECKING:
    from plm_depth.models.base import Adapter

log = logging.getLogger("models.describe")

# Keys of a card and their JSON types.
CARD = {
    "model_id": str,
    "family": str,
    "objective": str,  # ar, mlm or diffusion
    "folder": str,  # of the checkpoint, as it was given
    "files": list,  # of {"name", "bytes", "sha256"}: the files that were read, names relative to the folder
    "revision": str,  # of the hub, or what the config says of a local folder
    "dtype": str,  # of the matrices in every later forward pass
    "n_blocks": int,
    "d_model": int,
    "n_parameters": int,
    "n_vocabulary": int,  # real tokens, without padding rows
    "max_residues": int,
    "directions": list,
    "self_check": float,  # largest |logits by stepping - logits of the library|, relative to the largest logit
    "versions": dict,
}
# Of cards since the key exists: parameters of the model that ends after 0, 1, ... n_blocks blocks.
BY_DEPTH = "n_parameters_by_depth"


def describe(model_id: str, family: str, folder: Path, *, dtype: str = "float32", revision: str = "local") -> dict:
    """Return the card of a checkpoint (keys: ``CARD``), after loading it and passing its self-check.

    Args:
        revision: of a folder that this workflow did not fetch; of another the manifest of the download tells it.
    Raises:
        ValueError: an unknown family, or a manifest that cannot be understood.
        CheckpointError: the checkpoint is not what its family publishes, see ``registry.load``, or not the files that
            were fetched.
    """
    from plm_depth.models import registry, truncate
    from plm_depth.models.base import CheckpointError

    folder = Path(folder)
    adapter = registry.load(family, folder, dtype=dtype)
    error = adapter.self_check()
    log.info(
        "%s: %s, %d blocks of width %d, %d parameters; stepping differs from the library by %.2g (relative)",
        *(model_id, family, adapter.n_blocks, adapter.d_model, adapter.n_parameters, error),
    )
    noted = manifest.read(folder) or {"files": {}}
    if "archive" in noted:
        revision = f"archive {noted['sha256']}"
    files = []
    for path in adapter.files(folder):
        size, name = path.stat().st_size, path.relative_to(folder).as_posix()
        log.info("%s: digest of %.1f MB", path, size / 1e6)
        files.append({"name": name, "bytes": size, "sha256": digest_of(path)})
        fetched = noted["files"].get(name, {}).get("sha256", files[-1]["sha256"])
        if files[-1]["sha256"] != fetched:
            raise CheckpointError(
                f"{path}: changed since it was fetched (SHA-256 {fetched}, now {files[-1]['sha256']}); remove {folder} "
                "and run again"
            )
    return {
        "model_id": model_id,
        "family": family,
        "objective": adapter.objective,
        "folder": str(folder),
        "files": files,
        "revision": noted.get("revision", revision),
        "dtype": dtype,
        "n_blocks": adapter.n_blocks,
        "d_model": adapter.d_model,
        "n_parameters": adapter.n_parameters,
        BY_DEPTH: truncate.parameters_by_depth(adapter),
        "n_vocabulary": len(adapter.vocabulary),
        "max_residues": adapter.max_residues,
        "directions": list(adapter.directions),
        "self_check": error,
        "versions": {
            "plm_depth": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "safetensors")},
        },
    }


def read_card(path: Path | str) -> dict:
    """Return a card, checked to have all keys of ``CARD`` with their types.

    Raises:
        CheckpointError: missing, not JSON, or not a card.
    """
    from plm_depth.models.base import CheckpointError
    from plm_depth.models.checkpoints import read_json

    card = read_json(Path(path))
    for key, kind in CARD.items():
        if not isinstance(card.get(key), kind):
            raise CheckpointError(
                f"{path}: not the card of a checkpoint: {key!r} should be a {kind.__name__}, it is {card.get(key)!r}; "
                "write it again with plm_depth.models.describe"
            )
    files = card["files"]
    if not all(isinstance(f, dict) and {"name", "bytes", "sha256"} <= set(f) for f in files):
        raise CheckpointError(
            f"{path}: not the card of a checkpoint: 'files' should list name, bytes and sha256 of each; write it again "
            "with plm_depth.models.describe"
        )
    return card


def check_files(card: dict, *, digests: bool = False) -> None:
    """Check that the checkpoint still is the one that was described.

    Args:
        card: see ``read_card``.
        digests: whether to read all bytes again, not only their number.
    Raises:
        CheckpointError: a file is gone, or its size or digest changed.
    """
    from plm_depth.models.base import CheckpointError

    for entry in card["files"]:
        path = Path(card["folder"]) / entry["name"]
        if not path.is_file():
            raise CheckpointError(f"{path}: gone since {card['model_id']} was described; fetch or train it again")
        size = path.stat().st_size
        if size != entry["bytes"] or (digests and digest_of(path) != entry["sha256"]):
            raise CheckpointError(
                f"{path}: not the file that the card of {card['model_id']} describes ({entry['bytes']} bytes, SHA-256 "
                f"{entry['sha256'][:12]}..., now {size} bytes); describe the checkpoint again"
            )


def load_from_card(path: Path | str, device: str = "cpu", *, digests: bool = False) -> "Adapter":
    """Return the model that a card describes, on a device, after its self-check.

    Args:
        path: the card.
        device: see ``registry.load``; a GPU is claimed for this process (``plm_depth.models.devices``).
        digests: whether to compare the SHA-256 of every file, not only its size.
    Raises:
        CheckpointError: the card is none, or the checkpoint changed, or it does not load.
    """
    from plm_depth.models import registry
    from plm_depth.models.devices import claimed

    card = read_card(path)
    check_files(card, digests=digests)
    device = claimed(device, log=log)
    return registry.load(card["family"], Path(card["folder"]), dtype=card["dtype"], device=device)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.models.describe", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="name of the model in this study")
    parser.add_argument("--family", required=True, help="a family of plm_depth.models.registry")
    parser.add_argument("--folder", required=True, type=Path, help="the checkpoint")
    parser.add_argument("--dtype", default="float32", help="of the matrices (default: %(default)s)")
    parser.add_argument("--revision", default="local", help="of the hub (default: %(default)s)")
    parser.add_argument("--output", required=True, type=Path, help="the card, JSON")
    options = parser.parse_args(argv)
    start_log(log.name)

    from plm_depth.models.base import CheckpointError

    try:
        card = describe(options.model, options.family, options.folder, dtype=options.dtype, revision=options.revision)
    except (CheckpointError, ValueError, OSError) as error:
        raise SystemExit(f"describing {options.model} failed: {error}") from None
    write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", options.output)


if __name__ == "__main__":
    main()
