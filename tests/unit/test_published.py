"""The sheet of published models: each row tells everything a user chooses by, and none of it is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from plm_depth import published
from plm_depth.__main__ import main
from plm_depth.config import read_models
from plm_depth.models import registry
from plm_depth.prices import itemsize

ROOT = Path(__file__).parents[2]
MODELS = read_models(ROOT / "config" / "models.tsv")
ISSUE = ("display_name", "dtype", "n_parameters", "licence", "gated", "needs_acceptance")


@pytest.mark.parametrize("name", MODELS)
def test_every_row_has_what_follows_from_its_family_and_sizes(name):
    row = MODELS[name]
    assert {key: row.get(key) for key in published.derived(row)} == published.derived(row)
    assert all(key in row for key in ISSUE) and ("hub" in row or "archive" in row)
    assert row["objective"] == registry.FAMILIES[row["family"]].objective
    assert row["memory_gb"] == pytest.approx(itemsize(row) * row["n_parameters"] / 1e9, rel=5e-3)


@pytest.mark.parametrize("name", MODELS)
def test_the_format_of_a_row_is_a_layout_that_its_family_reads(name):
    row = MODELS[name]
    assert row["format"] in registry.adapter_class(row["family"]).layouts
    assert ("archive" in row) == (row["format"] == "authors")


def test_formats_are_told_by_the_files_that_are_fetched():
    own = {"family": "esmc", "hub": "org/name"}
    assert published.format_of(own) == "native"
    assert published.format_of({**own, "files": "data/weights/esmc_300m_2024_12_v0.pth"}) == "pth"
    assert published.format_of({**own, "family": "esm2", "files": "*.pt"}) == "fair_esm"
    assert published.format_of({**own, "family": "esm2", "files": "config.json,*.bin"}) == "hub"
    assert published.format_of({**own, "family": "progen2"}) == "community"


def test_what_a_model_reads_are_the_parts_that_its_family_reads():
    said = {row["family"]: row["modalities"] for row in MODELS.values()}
    assert {family for family, text in said.items() if text != "sequence"} == {"saprot", "dplm2", "esm3"}
    assert said["esm3"] == "sequence,codes,coordinates" and said["saprot"] == "sequence,3di"


def test_the_command_prints_a_line_a_model(capsys):
    assert main(["models", "--sheet", str(ROOT / "config" / "models.tsv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(MODELS)]] == list(MODELS)
    row = next(line for line in lines if line.startswith("esm3_open"))
    assert row.split()[1:7] == ["esm3", "mlm", "sequence,codes,coordinates", "pth", "48", "1536"]
    assert "login+licence" in row and "commit+digests" in row and "5.61 GB" in row
    assert any(line.startswith(f"{len(MODELS)} models") for line in lines)
    unpinned = {name for name, r in MODELS.items() if not {"revision", "sha256", "archive_sha256"} & set(r)}
    assert {line.split()[0] for line in lines if " nothing " in line} == unpinned


def test_a_sheet_that_cannot_be_read_is_status_2_with_one_message(tmp_path, capsys):
    assert main(["models", "--sheet", str(tmp_path / "none.tsv")]) == 2
    assert "none.tsv does not exist" in capsys.readouterr().err
    (tmp_path / "odd.tsv").write_text("model\tdisplay_name\tfamily\thub\na\tA\tesm9\torg/name\n")
    assert main(["models", "--sheet", str(tmp_path / "odd.tsv")]) == 2
    assert "no family 'esm9'" in capsys.readouterr().err


def test_the_command_loads_no_library_of_models():
    program = (
        "import sys; from plm_depth.__main__ import main; main(['models']); "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(ROOT / "workflow"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
