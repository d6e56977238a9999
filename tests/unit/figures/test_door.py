import csv
import html
import io
import json
import logging
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import polars as pl
import pytest

from plm_depth.figures import contributions, door, lens_kl, training_loss, update_norms
from plm_depth.figures.select import FigureError
from plm_depth.tables import PROFILE, SKIP, VERDICT, TableError, read_table, write_table
from unit.figures import invented

WORKFLOW = Path(door.__file__).parents[2]
NO_DRAWING = door.FigureStage(  # a figure whose picture fails, to see what is left behind
    "broken", "Broken", ["profiles"], contributions.numbers, lambda numbers, models: 1 / 0
)


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list[str]:
    """The options that name all tables of the mini study."""
    return invented.write_study(invented.MINI, tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def few_options(tmp_path_factory) -> list[str]:
    """The options that name the tables of two models, only the rows that figures show."""
    return invented.write_study(invented.MINI[:2], tmp_path_factory.mktemp("few"), with_others=False)


def outputs(folder: Path, name: str = "figure") -> list[str]:
    return [text for kind in ("svg", "csv", "html") for text in (f"--{kind}", str(folder / f"{name}.{kind}"))]


def replaced(options: list[str], option: str, values: list[str]) -> list[str]:
    """Return the options with other values for one of them."""
    start = options.index(option) + 1
    end = next((i for i in range(start, len(options)) if options[i].startswith("--")), len(options))
    return [*options[:start], *values, *options[end:]]


def values_of(options: list[str], option: str) -> list[str]:
    start = options.index(option) + 1
    end = next((i for i in range(start, len(options)) if options[i].startswith("--")), len(options))
    return options[start:end]


# ----------------------------------------------------------------------------------------------------------------
# What a figure's command writes


def test_a_figure_writes_picture_csv_and_page(options, tmp_path):
    door.run(lens_kl.STAGE, [*options, *outputs(tmp_path / "made")])
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["figure.csv", "figure.html", "figure.svg"]
    root = ET.parse(tmp_path / "made" / "figure.svg").getroot()
    assert root.tag.endswith("svg") and root.get("width") == "720pt"
    assert html.escape(lens_kl.TITLE) in (tmp_path / "made" / "figure.html").read_text()


def test_the_csv_is_exactly_the_rows_of_the_tables(options, tmp_path):
    """Read with another library and another path of code: no figure makes a new number."""
    door.run(update_norms.STAGE, [*options, *outputs(tmp_path)])
    with (tmp_path / "figure.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = []
    inputs = {"mlm": ("none", 0.15), "ar": ("n2c", None), "diffusion": ("none", -1.0)}
    for path in values_of(options, "--profiles"):
        for row in read_table(path, PROFILE).to_pylist():
            direction, noise = inputs[row["objective"]]
            if (
                row["null_model"] == "trained"
                and row["direction"] == direction
                and (noise is None or abs(row["noise_t"] - noise) < 1e-6)
                and row["pos_class"] == "residue"
                and row["quantity"] in ("norm_h", "norm_a", "norm_m")
                and row["aggregate"] in ("mean", "max")
            ):
                values = [f"{row[name]:.6g}".replace("nan", "NaN") for name in ("value", "ci_lo", "ci_hi")]
                counts = [str(row[name]) for name in ("layer", "n_seq", "n_cluster", "n_boot")]
                expected.append((row["model_id"], row["quantity"], row["aggregate"], *values, *counts))
    names = ("model", "quantity", "aggregate", "value", "lo", "hi", "layer", "n_seq", "n_cluster", "n_boot")
    found = [tuple(row[name] for name in names) for row in rows if row["network"] == "trained"]
    assert sorted(found) == sorted(expected)
    assert len(found) == 2 * (3 * (5 + 4 + 4) + 3 * (9 + 8 + 8))
    untrained = [row for row in rows if row["network"] == "untrained"]
    assert {row["aggregate"] for row in untrained} == {"mean"} and len(untrained) == len(found) // 2


def test_the_same_tables_give_the_same_bytes_in_another_process(few_options, tmp_path):
    made = []
    for seed in ("0", "1"):
        folder = tmp_path / seed
        subprocess.run(
            [sys.executable, "-m", "plm_depth.figures.contributions", *few_options, *outputs(folder)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(WORKFLOW), "SOURCE_DATE_EPOCH": seed},
            check=True,
            capture_output=True,
        )
        made.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert made[0] == made[1] and len(made[0]) == 3


def test_the_order_in_which_tables_are_given_does_not_matter(few_options, tmp_path):
    other = replaced(few_options, "--profiles", values_of(few_options, "--profiles")[::-1])
    for folder, given in (("a", few_options), ("b", other)):
        door.run(contributions.STAGE, [*given, *outputs(tmp_path / folder)])
    for kind in ("svg", "csv", "html"):
        assert (tmp_path / "a" / f"figure.{kind}").read_bytes() == (tmp_path / "b" / f"figure.{kind}").read_bytes()


def test_the_picture_holds_no_date_and_no_path(few_options, tmp_path):
    door.run(contributions.STAGE, [*few_options, *outputs(tmp_path)])
    svg = (tmp_path / "figure.svg").read_text()
    assert "dc:date" not in svg and str(tmp_path) not in svg
    assert not re.search(r"20\d\d-\d\d-\d\d", svg)
    assert f"<dc:title>{contributions.TITLE}</dc:title>" in svg


def test_the_log_counts_numbers_and_models(options, tmp_path, capfd):
    door.run(contributions.STAGE, [*options, *outputs(tmp_path)])
    assert "216 numbers of 6 models" in capfd.readouterr().err


def test_the_log_counts_undefined_numbers_and_missing_untrained_networks(options, caplog):
    profiles = [Path(path) for path in values_of(options, "--profiles")]
    study = door.read_study(Path(values_of(options, "--models")[0]), {"profiles": profiles})
    numbers = contributions.numbers(study).with_columns(
        value=pl.when((pl.col("model") == "esm2_l4") & (pl.col("layer") == 1)).then(float("nan")).otherwise("value")
    )
    numbers = numbers.filter((pl.col("model") != "dplm_l4") | (pl.col("network") == "trained"))
    with caplog.at_level(logging.INFO):
        door.log_counts(numbers, study.models, logging.getLogger("test"))
    assert "6 of them are undefined: rel_a, rel_m, rel_u" in caplog.text
    assert "no untrained network beside dplm_l4" in caplog.text


# ----------------------------------------------------------------------------------------------------------------
# All or nothing


def test_a_picture_that_fails_leaves_nothing_and_old_files_stay(few_options, tmp_path):
    (tmp_path / "figure.csv").write_text("old")
    with pytest.raises(ZeroDivisionError):
        door.run(NO_DRAWING, [*few_options, *outputs(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["figure.csv"]
    assert (tmp_path / "figure.csv").read_text() == "old"


def test_a_file_that_cannot_be_written_leaves_none_of_the_three(few_options, tmp_path):
    (tmp_path / "figure.html").mkdir()
    with pytest.raises(SystemExit, match=r"figures\.lens_kl: .*figure\.html"):
        door.run(lens_kl.STAGE, [*few_options, *outputs(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["figure.html"]


# ----------------------------------------------------------------------------------------------------------------
# What goes wrong


def failure(stage, arguments) -> str:
    with pytest.raises(SystemExit) as caught:
        door.run(stage, arguments)
    assert isinstance(caught.value.code, str) and "\n" not in caught.value.code
    return caught.value.code


def test_an_absent_model_ends_in_a_message_and_no_file(options, tmp_path):
    fewer = replaced(options, "--profiles", values_of(options, "--profiles")[1:])
    message = failure(contributions.STAGE, [*fewer, *outputs(tmp_path)])
    assert message.startswith("figures.contributions: profiles: no row of esm2_l4")
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_a_model_that_is_not_listed_is_refused(options, tmp_path):
    models = json.loads(Path(values_of(options, "--models")[0]).read_text())
    (tmp_path / "models.json").write_text(json.dumps(models[:-1]))
    given = replaced(options, "--models", [str(tmp_path / "models.json")])
    assert re.search(
        r"dplm_l8.*rows of \['dplm_l8'\], which --models does not list",
        failure(contributions.STAGE, [*given, *outputs(tmp_path)]),
    )


def test_a_needed_table_that_was_not_given_is_named(options, tmp_path):
    for option, stage in (("--profiles", contributions.STAGE), ("--losses", training_loss.STAGE)):
        message = failure(stage, [*replaced(options, option, []), *outputs(tmp_path)])
        assert f"{option} is empty" in message


def test_tables_that_a_figure_does_not_need_are_not_read(few_options, tmp_path):
    given = replaced(few_options, "--losses", [str(tmp_path / "absent.parquet")])
    door.run(contributions.STAGE, [*given, *outputs(tmp_path)])
    assert (tmp_path / "figure.svg").exists()


def test_a_missing_a_truncated_and_another_table_are_named(options, tmp_path):
    profiles = values_of(options, "--profiles")
    truncated = tmp_path / "cut.parquet"
    truncated.write_bytes(Path(profiles[0]).read_bytes()[:1000])
    for path in (tmp_path / "absent.parquet", truncated, values_of(options, "--losses")[0]):
        given = replaced(options, "--profiles", [*profiles[1:], str(path)])
        assert str(path) in failure(contributions.STAGE, [*given, *outputs(tmp_path)])


def test_a_list_of_models_that_is_not_json_is_named(options, tmp_path):
    (tmp_path / "models.json").write_text("models: []")
    given = replaced(options, "--models", [str(tmp_path / "models.json")])
    assert "models.json: not JSON" in failure(contributions.STAGE, [*given, *outputs(tmp_path)])


def test_the_command_exits_with_status_one_and_no_traceback(few_options, tmp_path):
    fewer = replaced(few_options, "--profiles", values_of(few_options, "--profiles")[1:])
    done = subprocess.run(
        [sys.executable, "-m", "plm_depth.figures.lens_overlap", *fewer, *outputs(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(WORKFLOW)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no row of esm2_l4" in done.stderr and "Traceback" not in done.stderr


def test_depths_come_from_the_tables_where_the_list_has_none(few_options, tmp_path):
    models = json.loads(Path(values_of(few_options, "--models")[0]).read_text())
    for model in models:
        del model["n_blocks"]
    (tmp_path / "models.json").write_text(json.dumps(models))
    for folder, given in (
        ("with", few_options),
        ("without", replaced(few_options, "--models", [str(tmp_path / "models.json")])),
    ):
        door.run(contributions.STAGE, [*given, *outputs(tmp_path / folder)])
    assert (tmp_path / "with/figure.svg").read_bytes() == (tmp_path / "without/figure.svg").read_bytes()


def test_the_door_raises_its_own_errors_to_callers_in_python(tmp_path):
    (tmp_path / "models.json").write_text("[]")
    with pytest.raises(FigureError):
        door.read_study(tmp_path / "models.json", {})
    with pytest.raises(TableError):
        door._read(tmp_path / "absent.parquet", PROFILE, [])


def test_skip_effects_are_read_at_primary_inputs_and_verdicts_whole(tmp_path):
    models = invented.models_json(invented.MINI[:2], tmp_path / "models.json")
    skip = {name: 0 for name in SKIP.names} | {
        "model_id": "esm2_l4", "family": "esm2", "objective": "mlm", "n_blocks": 4, "dtype": "float32",
        "null_model": ["trained", "trained", "shuffle_w", "randinit"], "null_seed": [-1, -1, 0, 0], "condition": "seq",
        "readout": "seq", "direction": "none", "noise_t": [0.15, 0.3, 0.15, 0.15], "part": "layer", "pos_set": "all",
        "local": False, "ablation": "zero", "vocab": "none", "quantity": "effect", "agg": "mean",
    }  # fmt: skip
    write_table(skip, SKIP, tmp_path / "skip.parquet")
    text = {"claim": "K1", "scope": "all", "statistic": "s", "role": "claim", "verdict": "fail", "reason": "r"}
    write_table({name: 0 for name in VERDICT.names} | text, VERDICT, tmp_path / "verdicts.parquet")
    study = door.read_study(models, {"skips": [tmp_path / "skip.parquet"], "verdicts": [tmp_path / "verdicts.parquet"]})
    assert study.skips.select("null_model", "noise_t").rows() == [
        ("trained", pytest.approx(0.15)),
        ("randinit", pytest.approx(0.15)),
    ]
    assert study.verdicts["verdict"].to_list() == ["fail"]


def test_csv_text_can_be_read_by_a_data_frame(few_options, tmp_path):
    door.run(lens_kl.STAGE, [*few_options, *outputs(tmp_path)])
    frame = pl.read_csv(io.StringIO((tmp_path / "figure.csv").read_text()))
    assert frame["value"].dtype == pl.Float64 and frame["layer"].dtype == pl.Int64
    assert frame.filter(pl.col("layer") == pl.col("n_blocks"))["value"].max() == 0.0


def test_a_model_without_a_read_out_per_residue_is_left_out_of_figures_of_residues_alone(options, tmp_path, caplog):
    models = json.loads(Path(values_of(options, "--models")[0]).read_text())
    models[0]["reads_residues"] = False
    (tmp_path / "models.json").write_text(json.dumps(models))
    given = replaced(options, "--models", [str(tmp_path / "models.json")])
    for stage, is_there in ((lens_kl.STAGE, False), (update_norms.STAGE, True)):
        door.run(stage, [*given, *outputs(tmp_path, stage.name)])
        with (tmp_path / f"{stage.name}.csv").open(newline="") as file:
            shown = {row["model"] for row in csv.DictReader(file)}
        assert (models[0]["model"] in shown) == is_there and {m["model"] for m in models[1:]} <= shown
