"""The tables of costs in docs/ are those that the programs print of config/config.yaml now."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from plm_depth.preflight import GPU_RATES, Machine, look, table
from small_study import ROOT, resolved

sys.path.insert(0, str(ROOT / "benchmarks"))

CONFIG = ROOT / "config" / "config.yaml"
WITH_GPU = Machine(1e12, (("a GPU", 80e9),), 1e11, lambda path: (1, 1e15))


def tables_in(page: Path, first_word: str) -> list[list[list[str]]]:
    """Return the words of the lines of every table of a page (divided by empty lines) that begins with a word."""
    blocks = re.findall(r"^```text\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    parts = [part.splitlines() for block in blocks for part in block.strip().split("\n\n")]
    return [[line.split() for line in lines] for lines in parts if lines[0].startswith(first_word)]


def test_the_page_on_scale_has_the_tables_that_the_preflight_prints():
    study = resolved(yaml.safe_load(CONFIG.read_text()))
    report = look(study, is_due=lambda path: True, on=WITH_GPU, offline=True)
    said = {
        "stage": table(report, lambda price: price.rule, "stage"),
        "model": table(report, lambda price: price.model or "(no model)", "model"),
    }
    for title, lines in said.items():
        assert tables_in(ROOT / "docs" / "scale.md", title) == [[line.split() for line in lines]]


def test_the_page_on_performance_has_the_table_that_the_benchmark_prints_and_its_hours_are_those_of_the_prices():
    from study_cost import lines_of, study_of

    study = study_of(CONFIG)
    lines = lines_of(study, rate32=GPU_RATES[4], rate16=GPU_RATES[2])
    assert tables_in(ROOT / "docs" / "performance.md", "model") == [[line.split() for line in lines]]
    report = look(study, is_due=lambda path: path.endswith("/skip.parquet"), on=WITH_GPU, offline=True)
    said = float(re.search(r"skip effects ([0-9.]+),", lines[-1])[1])
    starts = len(report.due) * 4 / 3600
    assert said == pytest.approx(report.hours_of(report.due) - starts, abs=0.06)
