"""The door of every figure: options, tables read and checked, the picture and its numbers written together.

    python -m plm_depth.figures.<figure> --profiles P... --summaries P... --losses P... --skips P... --verdicts P...
        --geometries P... --pairs P... --ablations P... --fitness P... --fitness_summaries P... --probes P...
        --depths P... --taus P...
        --attributions P... --attribution_maps P... --tuned_lenses P... --structure_heads P...
        --models JSON --svg P --csv P --html P

Every figure takes all options and reads only what it needs.
"""

import argparse
import contextlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import matplotlib
import polars as pl
import pyarrow as pa
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from plm_depth import json_text
from plm_depth.conditions import CONDITIONS
from plm_depth.figures.number_table import as_csv, as_html
from plm_depth.figures.select import FigureError, Model, Study, clean_rows, models_of, primary_rows, with_depths
from plm_depth.figures.style import RC
from plm_depth.progress import start_log
from plm_depth.tables import (
    ABLATION,
    ATTRIBUTION,
    ATTRIBUTION_MAP,
    DEPTH_TAU,
    DEPTHS,
    FITNESS,
    GEOM,
    LOSS,
    PROBES,
    PROFILE,
    SKIP,
    SUMMARY,
    VERDICT,
    TableError,
    read_table,
    replacing,
)

CONDITION_WORDS = {"seq": "sequence", "seq_struct": "with structure", "struct": "structure alone"}
TABLES = {
    "profiles": PROFILE,
    "summaries": SUMMARY,
    "losses": LOSS,
    "skips": SKIP,
    "verdicts": VERDICT,
    "geometries": GEOM,
    "pairs": GEOM,
    "ablations": ABLATION,
    "fitness": FITNESS,
    "fitness_summaries": SUMMARY,
    "probes": PROBES,
    "depths": DEPTHS,
    "taus": DEPTH_TAU,
    "attributions": ATTRIBUTION,
    "attribution_maps": ATTRIBUTION_MAP,
    "tuned_lenses": PROFILE,
    "structure_heads": PROFILE,
}
# Of these tables figures show the rows of the structure head, of all others the other rows.
OF_STRUCTURES = ("structure_heads",)
# Inputs follow from the scorer (``figures.fitness`` chooses rows), or are clean ones (``figures.probed``).
AT_OWN_INPUTS = ("fitness", "fitness_summaries", "probes")


@dataclass(frozen=True)
class FigureStage:
    """What one figure is.

    Attributes:
        name: of the module, the files and the caption.
        title: one line, above the figure and its table.
        reads: the tables it needs, keys of ``TABLES``.
        numbers: from a study to everything that is drawn: ``select.NUMBERS``, or at least model, quantity and value.
        draw: from these numbers and the models to the picture; it sees nothing else.
        is_of_residues: whether it shows read-outs of residues; models whose tokens hold several are then left out.
        is_by_condition: whether every model stands once for each of several conditions that it was measured under, by
            the name "model condition"; models with one condition are left out.
    """

    name: str
    title: str
    reads: Sequence[str]
    numbers: Callable[[Study], pl.DataFrame]
    draw: Callable[[pl.DataFrame, Sequence[Model]], Figure]
    is_of_residues: bool = False
    is_by_condition: bool = False


def run(stage: FigureStage, argv: Sequence[str] | None = None) -> None:
    """Read the options of a figure's command, make its three files.

    Raises:
        SystemExit: with one message, where options or tables do not allow the figure.
    """
    options = _parser(stage).parse_args(argv)
    log = start_log(f"figures.{stage.name}")
    try:
        tables = {name: getattr(options, name) for name in stage.reads}
        study = read_study(options.models, tables, is_by_condition=stage.is_by_condition)
        if stage.is_of_residues:
            study = of_residues(study, log)
        numbers = stage.numbers(study)
        log_counts(numbers, study.models, log)
        write(stage, numbers, study.models, svg=options.svg, csv=options.csv, html=options.html)
    except (FigureError, TableError, OSError) as error:
        raise SystemExit(f"figures.{stage.name}: {error}") from error
    log.info("wrote %s, %s, %s", options.svg, options.csv, options.html)


def _parser(stage: FigureStage) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m plm_depth.figures.{stage.name}", description=stage.title)
    for name in TABLES:
        used = "needed" if name in stage.reads else "not read by this figure"
        parser.add_argument(f"--{name}", nargs="*", type=Path, default=[], metavar="P", help=used)
    parser.add_argument("--models", type=Path, required=True, metavar="JSON", help="the models: order, names, depth")
    parser.add_argument("--svg", type=Path, required=True, metavar="P", help="the picture")
    parser.add_argument("--csv", type=Path, required=True, metavar="P", help="its numbers")
    parser.add_argument("--html", type=Path, required=True, metavar="P", help="its numbers as a page")
    return parser


def read_study(models: Path, tables: Mapping[str, Sequence[Path]], *, is_by_condition: bool = False) -> Study:
    """Return models and tables of a study, the tables at primary inputs.

    Args:
        models: the file of models, JSON.
        tables: paths by kind, keys of ``TABLES``; every kind needs at least one.
        is_by_condition: see ``FigureStage``.
    Raises:
        FigureError: the file of models is not what it should be, no table of a kind was given, or a table holds a
            model that is not listed.
        TableError: a table is missing, corrupt or of another schema.
    """
    try:
        listed = models_of(json_text.parse(models.read_text(encoding="utf-8")))
    except ValueError as error:  # not JSON, or not UTF-8
        if isinstance(error, FigureError):
            raise
        raise FigureError(f"{models}: not JSON ({error}); expected a list of models") from error
    read = {}
    for name, paths in tables.items():
        if not paths:
            raise FigureError(f"--{name} is empty, but this figure is drawn from them; give all tables of the study")
        is_primary = name not in AT_OWN_INPUTS and not is_by_condition
        about = {"is_primary": is_primary, "of_structures": name in OF_STRUCTURES}
        read[name] = pl.concat([_read(path, TABLES[name], listed, **about) for path in paths])
    with_sizes = [table for table in read.values() if "n_blocks" in table.columns]
    study = Study(models=with_depths(listed, with_sizes), **read)
    return by_condition(study, list(read)) if is_by_condition else study


def by_condition(study: Study, tables: Sequence[str]) -> Study:
    """Return a study whose models are those of another one under each of their conditions; see ``FigureStage``.

    Args:
        tables: names of the tables, with rows at all inputs.
    Raises:
        FigureError: no model was measured under another condition than "seq".
    """
    found: dict[str, list[pl.DataFrame]] = {name: [] for name in tables}
    models: dict[tuple[str, str], Model] = {}
    for name in tables:
        table = getattr(study, name)
        measured = table.select("model_id", "condition").unique()
        several = measured.group_by("model_id").len().filter(pl.col("len") > 1)["model_id"].to_list()
        for condition in CONDITIONS:
            kept = table.filter(pl.col("model_id").is_in(several))
            rows = primary_rows(kept, condition, of_structures=name in OF_STRUCTURES)
            found[name].append(rows.with_columns(model_id=pl.col("model_id") + f" {condition}"))
            for model in study.models:
                if f"{model.model} {condition}" in found[name][-1]["model_id"]:
                    shown = f"{model.display_name}, {CONDITION_WORDS[condition]}"
                    models[model.model, condition] = replace(
                        model, model=f"{model.model} {condition}", display_name=shown
                    )
    if not models:
        raise FigureError("no model was measured under a condition with structure; leave this figure out of `figures`")
    in_order = [models[m.model, c] for m in study.models for c in CONDITIONS if (m.model, c) in models]
    return replace(study, models=in_order, **{name: pl.concat(parts) for name, parts in found.items()})


def of_residues(study: Study, log: logging.Logger) -> Study:
    """Return a study without the models that have no read-out per residue, because their tokens hold several.

    Raises:
        FigureError: no model is left.
    """
    kept = [model for model in study.models if model.reads_residues]
    left_out = [model.model for model in study.models if not model.reads_residues]
    if left_out:
        log.info("left out, their tokens hold several residues: %s", ", ".join(left_out))
    if not kept:
        raise FigureError("no model of this study reads residues out one by one; leave this figure out of `figures`")
    tables = {
        item.name: table.filter(pl.col("model_id").is_in([model.model for model in kept]))
        for item in fields(study)
        if item.name != "models" and (table := getattr(study, item.name)) is not None and "model_id" in table.columns
    }
    return replace(study, models=kept, **tables)


def _read(
    path: Path, schema: pa.Schema, models: Sequence[Model], *, is_primary: bool = True, of_structures: bool = False
) -> pl.DataFrame:
    """Return one table with plain strings; of tables with inputs and null models, only the rows that figures show.

    Args:
        is_primary: whether the primary inputs of ``select`` are the ones of this table, too.
        of_structures: whether its rows are those of the structure head.
    """
    table = pl.from_arrow(read_table(path, schema).select(schema.names))
    table = table.with_columns(pl.col(pl.Categorical).cast(pl.String))
    if "model_id" in table.columns:
        unknown = set(table["model_id"].unique()) - {model.model for model in models}
        if unknown:
            raise FigureError(
                f"{path}: rows of {sorted(unknown)}, which --models does not list; list them or leave it out"
            )
    if schema is GEOM:
        return clean_rows(table)
    has_other_inputs = is_primary and "null_model" in table.columns and schema is not DEPTHS
    return primary_rows(table, of_structures=of_structures) if has_other_inputs else table


def log_counts(numbers: pl.DataFrame, models: Sequence[Model], log: logging.Logger) -> None:
    """Say how many numbers are drawn, how many are undefined, and which models lack an untrained network."""
    log.info("%d numbers of %d models", numbers.height, numbers["model"].drop_nulls().n_unique())
    undefined = numbers.filter(pl.col("value").is_nan())
    if undefined.height:
        log.info("%d of them are undefined: %s", undefined.height, ", ".join(undefined["quantity"].unique().sort()))
    if "network" in numbers.columns:
        untrained = set(numbers.filter(pl.col("network") == "untrained")["model"])
        missing = [model.model for model in models if model.model not in untrained]
        if missing:
            log.info("no untrained network beside %s", ", ".join(missing))


def write(
    stage: FigureStage, numbers: pl.DataFrame, models: Sequence[Model], *, svg: Path, csv: Path, html: Path
) -> None:
    """Write picture, CSV and page; none stands under its name before all three are written."""
    texts = {svg: as_svg(stage, numbers, models), csv: as_csv(numbers), html: as_html(numbers, title=stage.title)}
    with contextlib.ExitStack() as stack:
        for path, text in texts.items():
            stack.enter_context(replacing(path)).write_text(text, encoding="utf-8")


def as_svg(stage: FigureStage, numbers: pl.DataFrame, models: Sequence[Model]) -> str:
    """Return the picture as SVG; equal numbers give equal bytes: no date, no random names."""
    with matplotlib.rc_context(RC):
        figure = stage.draw(numbers, models)
        text = io.StringIO()
        about = {"Title": stage.title, "Date": None, "Creator": "plm-depth"}
        FigureCanvasSVG(figure).print_svg(text, metadata=about)
    return text.getvalue()
