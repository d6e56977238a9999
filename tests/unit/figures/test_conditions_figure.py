"""The figure of conditions: the same models, shown by sequence, with structure, and by structure alone."""

import csv

import polars as pl
import pytest

from plm_depth.figures import conditions, door
from plm_depth.tables import PROFILE, read_table, write_table
from unit.figures import invented

SHOWN, PLAIN = invented.MINI[0], invented.MINI[1]


def options_in(folder, *, with_others=True):
    """Return the options of a study of two models, one of them measured under three conditions."""
    given = invented.write_study([SHOWN, PLAIN], folder)
    path = next(text for text in given if "profile" in text and SHOWN.model in text)
    table = pl.from_arrow(read_table(path, PROFILE)).filter(pl.col("condition") == "seq")
    parts = [table]
    for factor, condition in ((2.0, "seq_struct"), (3.0, "struct")) if with_others else ():
        values = [pl.col(name) * factor for name in ("value", "ci_lo", "ci_hi")]
        parts.append(table.with_columns(*values, condition=pl.lit(condition).cast(table["condition"].dtype)))
    write_table(pl.concat(parts).to_arrow(), PROFILE, path)
    return given


def outputs(folder):
    return [text for kind in ("svg", "csv", "html") for text in (f"--{kind}", str(folder / f"figure.{kind}"))]


def test_each_condition_of_a_model_is_a_line_of_its_own_numbers(tmp_path):
    door.run(conditions.STAGE, [*options_in(tmp_path), *outputs(tmp_path)])
    with (tmp_path / "figure.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["network"] == "trained" and row["quantity"] == "kl_lf"]
    values = {
        name: [float(row["value"]) for row in rows if row["model"] == f"{SHOWN.model} {name}"]
        for name in ("seq", "seq_struct", "struct")
    }
    assert len(values["seq"]) > 1
    assert values["seq_struct"] == pytest.approx([2 * value for value in values["seq"]], rel=1e-4)
    assert values["struct"] == pytest.approx([3 * value for value in values["seq"]], rel=1e-4)
    assert {row["model"].split()[0] for row in rows} == {SHOWN.model}, "a model with one condition is left out"
    picture = (tmp_path / "figure.svg").read_text()
    assert all(words in picture for words in ("with structure", "structure alone"))


def test_without_conditions_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(SystemExit, match="no model was measured under a condition with structure"):
        door.run(conditions.STAGE, [*options_in(tmp_path, with_others=False), *outputs(tmp_path)])
