"""Stage: the card of a run: what made the results that lie beside it, so that they can be made again and compared.

    python -m plm_depth.figures.run_card --config JSON --versions JSON --cards P... --sources JSON --results P...
        --card run_card.json --html P

It is written last, from files that are there: nothing depends on it, and nothing in it makes a job run again. Files are
told by their SHA-256, tables by the digest of their rows (``plm_depth.digest``), which no version of a library and no
order of rows changes.
"""

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from plm_depth import __version__, json_text
from plm_depth.digest import digest_of
from plm_depth.figures.number_table import as_html
from plm_depth.machine import gpus, memory_bytes, processor
from plm_depth.progress import Progress, stage_log
from plm_depth.tables import TableError, write_text

# Variables that can change the last digits of a number, by choosing other kernels or another number of threads.
VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "ATEN_CPU_CAPABILITY"),
    *("ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE"),
)
PINS = Path(__file__).parents[3] / "envs" / "requirements.in"
COMMAND = "PLM_DEPTH_COMMAND"  # set by plm_depth.runtime: the command that started the run
CARD_KEYS = ("model_id", "family", "dtype", "revision", "folder", "files", "n_parameters", "self_check", "versions")


class RunCardError(ValueError):
    """Something that a card cannot be written from; names it."""


def git_state(folder: Path) -> dict[str, object] | None:
    """Return commit and number of changed files of the repository that holds the workflow, None where there is none."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed_files": len(ask("status", "--porcelain").splitlines())}
    except (OSError, subprocess.SubprocessError):
        return None


def packages(pins: Path) -> dict[str, object]:
    """Return the installed version of every package that the environment names, and those that differ from their pin.

    Args:
        pins: envs/requirements.in; absent: nothing is known of pins.
    """
    if not pins.is_file():
        return {"installed": {}, "other_than_pinned": {}}
    installed, other = {}, {}
    for line in pins.read_text(encoding="utf-8").splitlines():
        if not (named := re.match(r"([A-Za-z0-9._-]+)(==(\S+))?", line.strip())):
            continue
        name, pinned = named[1], named[3]
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = None
        if pinned is not None and (installed[name] or "").split("+")[0] != pinned:
            other[name] = pinned
    return {"installed": installed, "other_than_pinned": other}


def hardware() -> dict[str, object]:
    """Return what the machine is that wrote the card; jobs on a cluster may have run on others."""
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "gpus": [{"name": name, "memory_gb": round(size / 1e9, 1)} for name, size in gpus()],
    }


def file_of(path: Path) -> dict[str, object]:
    """Return size and digest of a result: of a table the digest of its rows.

    Raises:
        RunCardError: the file is gone or damaged.
    """
    try:
        if path.suffix == ".parquet":
            found = digest_of(path.name, [path])
            return {"path": path.as_posix(), "rows": found.n_rows, "content": found.content}
        with open(path, "rb") as file:
            return {"path": path.as_posix(), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except (OSError, TableError) as error:
        raise RunCardError(f"{path}: cannot be read ({error}); run the stage that writes it again") from error


def files_in(paths: Sequence[Path]) -> list[Path]:
    """Return results in a fixed order, a folder (a checkpoint) by the files in it."""
    return sorted(
        file for path in paths for file in ([p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path])
    )


def run_card(
    *,
    config: Mapping[str, object],
    versions: Mapping[str, int],
    cards: Sequence[Path],
    sources: Mapping[str, str],
    results: Sequence[Path],
    pins: Path,
    repository: Path,
    unpinned: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, object]:
    """Return the card of a run, as JSON values.

    Args:
        config: as Snakemake merged it.
        versions: hand-raised versions of the stages that run a model.
        cards: of the checkpoints.
        sources: name -> the file it was read from.
        results: tables, figures and folders that the card stands for.
        pins: see ``packages``.
        repository: folder of the workflow.
        unpinned: models that the config fetches without a revision or a digest.

    Raises:
        RunCardError: a file cannot be read.
    """

    def digest(path: Path) -> dict[str, object]:
        found = file_of(path)
        if progress is not None:
            progress.advance()
        return found

    models = []
    for path in cards:
        try:
            about = json_text.parse(path.read_text(encoding="utf-8"))
            models.append({key: about[key] for key in CARD_KEYS})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunCardError(f"{path}: not the card of a checkpoint ({error!r}); describe it again") from error
    return {
        "study": config["study"],
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "plm_depth": __version__,
        "git": git_state(repository),
        "command": os.environ.get(COMMAND),
        "seed": config["seed"],
        "config": config,
        "stage_versions": dict(versions),
        "python": platform.python_version(),
        "packages": packages(pins),
        "hardware": hardware(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "sources": {name: digest(Path(path)) for name, path in sources.items()},
        "models": models,
        "not_pinned": list(unpinned),
        "results": [digest(path) for path in files_in(results)],
    }


def rows_of(card: Mapping[str, object]) -> pl.DataFrame:
    """Return a card as rows (part, item, value) for people; the config by its dotted keys."""
    rows: list[tuple[str, str, str]] = []

    def add(part: str, item: str, value: object) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(part, f"{item}.{key}" if item else str(key), inner)
        elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
            for number, inner in enumerate(value):
                add(part, f"{item}[{number}]", inner)
        else:
            rows.append((part, item, json.dumps(value) if isinstance(value, list | bool) else str(value)))

    git = card["git"] or {}
    for item in ("study", "written", "command", "seed", "plm_depth", "python"):
        add("run", item, card[item])
    add("run", "git commit", git.get("commit", "not a repository"))
    add("run", "files changed since", git.get("changed_files", "not known"))
    for part in ("hardware", "environment", "stage_versions"):
        add(part, "", card[part])
    for name, version in card["packages"]["installed"].items():
        pinned = card["packages"]["other_than_pinned"].get(name)
        add("packages", name, f"{version}" + (f" (pinned: {pinned})" if pinned else ""))
    add("sources", "", {name: about["sha256"] for name, about in card["sources"].items() if "sha256" in about})
    for model in card["models"]:
        for item in ("family", "dtype", "revision", "n_parameters", "self_check"):
            add("models", f"{model['model_id']}: {item}", model[item])
        for file in model["files"]:
            add("models", f"{model['model_id']}: SHA-256 of {file['name']}", file["sha256"])
    for name in card["not_pinned"]:
        add("models", f"{name}: not pinned", "fetched without a revision or a digest; its files are those above")
    add("config", "", card["config"])
    for result in card["results"]:
        add("results", result["path"], result.get("content") or result["sha256"])
    return pl.DataFrame(rows, schema=["part", "item", "value"], orient="row")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.figures.run_card", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="JSON: the config as it was merged")
    parser.add_argument("--versions", required=True, help="JSON: hand-raised versions of stages")
    parser.add_argument("--cards", nargs="*", type=Path, default=[], help="cards of the checkpoints")
    parser.add_argument("--unpinned", nargs="*", default=[], help="models fetched without a revision or a digest")
    parser.add_argument("--sources", required=True, help="JSON: name and file of every source")
    parser.add_argument("--results", nargs="+", type=Path, required=True, help="files that the card stands for")
    parser.add_argument("--card", type=Path, required=True, help="the card, JSON")
    parser.add_argument("--html", type=Path, required=True, help="the same for people")
    options = parser.parse_args(argv)
    with stage_log("figures.run_card", RunCardError) as log:
        given = {}
        for name in ("config", "versions", "sources"):
            text = getattr(options, name)
            try:
                given[name] = json_text.parse(text)
            except json.JSONDecodeError as error:
                raise RunCardError(f"--{name}: not JSON ({error}), got {json_text.shown(text)}") from error
            if not isinstance(given[name], dict):
                raise RunCardError(f"--{name}: {json_text.shown(text)}; expected a JSON object")
        if missing := {"study", "seed"} - set(given["config"]):
            raise RunCardError(f"--config: no {' and '.join(sorted(missing))}; expected the config of a study")
        progress = Progress(log, total=len(given["sources"]) + len(files_in(options.results)), unit="files")
        card = run_card(
            **given,
            cards=options.cards,
            unpinned=options.unpinned,
            results=options.results,
            pins=PINS,
            repository=Path(__file__).parent,
            progress=progress,
        )
        progress.finish()
    write_text(json.dumps(card, indent=1) + "\n", options.card)
    write_text(as_html(rows_of(card), title=f"What made the results of study {card['study']}"), options.html)


if __name__ == "__main__":
    main()
