"""Make the package and its Python reachable from every rule, whatever the caller has activated."""

import json
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path


def export(workflow_folder: str) -> None:
    """Put ``workflow_folder`` on PYTHONPATH and this interpreter's folder first on PATH, for all commands started.

    The Snakefile is evaluated in every job, on clusters too, so calling this there reaches each command.
    """

    def prepend(variable: str, entry: str) -> None:
        others = [part for part in os.environ.get(variable, "").split(os.pathsep) if part and part != entry]
        os.environ[variable] = os.pathsep.join([entry, *others])

    prepend("PYTHONPATH", workflow_folder)
    prepend("PATH", os.path.dirname(sys.executable))
    # Stages say how many threads they use; a library that takes all cores would slow its neighbours down.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The run card names the command of the run; the commands of its jobs inherit it.
    os.environ.setdefault("PLM_DEPTH_COMMAND", shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]))
    # Only the download rules reach the network; they switch this off for themselves.
    os.environ["HF_HUB_OFFLINE"] = "1"


# What the last run was called with, word by word; Snakemake's own log loses the quotes.
LAST_RUN = Path(".snakemake") / "plm_depth_last_run.json"


def remember(words: Iterable[str]) -> None:
    """Write down with what options and targets Snakemake was called in this folder, for ``plm_depth resume``."""
    LAST_RUN.parent.mkdir(exist_ok=True)
    temporary = LAST_RUN.with_suffix(f".tmp.{os.getpid()}")
    temporary.write_text(json.dumps({"options": list(words)}), encoding="utf-8")
    temporary.replace(LAST_RUN)


def remembered(folder: str | Path = ".") -> list[str] | None:
    """Return what ``remember`` wrote in ``folder``, None if there is nothing (readable)."""
    try:
        options = json.loads((Path(folder) / LAST_RUN).read_text(encoding="utf-8"))["options"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return options if isinstance(options, list) and all(isinstance(word, str) for word in options) else None


def unwritable(paths: Iterable[str]) -> Path | None:
    """Return a folder in which one of ``paths`` is to be made and that cannot be written, None if there is none."""
    for folder in sorted({Path(path).parent for path in paths}):
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            return folder
    return None
