"""The sheet of models for people: what follows of each row from its family and its sizes, one line a model.

``python -m plm_depth models`` prints it. No library of models is loaded.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from plm_depth.config import ConfigError, read_models
from plm_depth.models.registry import FAMILIES

SHEET = Path("config/models.tsv")
STORED = (".safetensors", ".bin", ".pth", ".pt")  # how names of weights end
MODALITIES = {"three_di": "3di", "codes": "codes", "coordinates": "coordinates"}  # of a structure, by part
Row = Mapping[str, object]


def objective_of(row: Row) -> str:
    """Return what the family was trained for: mlm, ar or diffusion."""
    return FAMILIES[str(row["family"])].objective


def modalities_of(row: Row) -> str:
    """Return what the family can be shown, separated by commas: the sequence, and the parts of a structure."""
    parts = FAMILIES[str(row["family"])].reads_structure
    return ",".join(["sequence", *(MODALITIES[part] for part in parts)])


def format_of(row: Row) -> str:
    """Return the layout in which the weights come, by its name in the family (``verify --layout``)."""
    layouts = FAMILIES[str(row["family"])].files
    if "archive" in row:
        return next((layout for layout, patterns in layouts.items() if not patterns), next(iter(layouts)))
    wanted = _endings(str(row["files"]).split(",")) if "files" in row else set(STORED)
    return next(layout for layout, patterns in layouts.items() if wanted & _endings(patterns))


def memory_gb_of(row: Row) -> float | None:
    """Return the 10^9 bytes that the weights take in a pass, at the dtype of the row; None without their number."""
    n_parameters = row.get("n_parameters")
    itemsize = 4 if row.get("dtype", "float32") == "float32" else 2
    return float(f"{itemsize * n_parameters / 1e9:.3g}") if isinstance(n_parameters, int) else None


def pinned_by(row: Row) -> str:
    """Return what holds the weights to one version: commit and digests, one of them, or nothing."""
    if "archive" in row:
        return "digest" if "archive_sha256" in row else "nothing"
    held = [name for name, key in (("commit", "revision"), ("digests", "sha256")) if key in row]
    return "+".join(held) or "nothing"


def derived(row: Row) -> dict[str, object]:
    """Return the columns of the sheet that follow from the others, by name."""
    return {
        "memory_gb": memory_gb_of(row),
        "objective": objective_of(row),
        "modalities": modalities_of(row),
        "format": format_of(row),
    }


def _endings(patterns: list[str] | tuple[str, ...]) -> set[str]:
    return {ending for pattern in patterns for ending in STORED if pattern.rstrip("*").endswith(ending)}


# ------------------------------------------------------------------------------------------------------------ command


def table(models: Mapping[str, Row]) -> list[str]:
    """Return the sheet as lines, a row a model in the order of the sheet, under a line of titles."""
    titles = "model family objective reads format blocks width parameters dtype memory licence accept pinned_by paper"
    rows = [tuple(titles.split())]
    for name, row in models.items():
        must = [word for word, key in (("login", "gated"), ("licence", "needs_acceptance")) if row.get(key)]
        memory = memory_gb_of(row)
        rows.append(
            (
                *(name, str(row["family"]), objective_of(row), modalities_of(row), format_of(row)),
                *(str(row.get(key, "?")) for key in ("n_blocks", "d_model")),
                f"{row['n_parameters'] / 1e6:,.0f} M" if "n_parameters" in row else "?",
                str(row.get("dtype", "float32")),
                "?" if memory is None else f"{memory:.3g} GB",
                str(row.get("licence", "?")),
                "+".join(must) or "-",
                pinned_by(row),
                str(row.get("in_study", "no")),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    numbers = {5, 6, 7, 9}
    return [
        "  ".join(
            text.rjust(width) if i in numbers else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command ``models``."""
    parser.add_argument("--sheet", type=Path, default=SHEET, help="the sheet (default: %(default)s)")


def run(sheet: Path) -> int:
    """Print a sheet and return the exit status: 0, or 2 if it cannot be read."""
    try:
        models = read_models(sheet)
        if unknown := {str(row["family"]) for row in models.values()} - set(FAMILIES):
            raise ConfigError([f"{sheet}: no family {name!r}; there are: {', '.join(FAMILIES)}" for name in unknown])
    except ConfigError as error:
        print(f"models: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(models)))
    print(
        f"\n{len(models)} models. memory: of the weights at their dtype; a job asks for more (`snakemake preflight`)."
        "\naccept: what the download needs: a login at the hub, the licence named in accepted_licences."
        "\npaper: whether the paper most likely used it (inferred; its own table was not available)."
    )
    return 0
