"""A study by the conventions of earlier published code: one key of the config, from the start to tables and figures."""

import copy
from pathlib import Path

import pytest
import yaml

from plm_depth import tables
from small_study import CONFIG, copy_repository, planned, snakemake

pytestmark = pytest.mark.workflow
FIGURES = ["block_influence", "output_change", "skip_matrices", "verdicts"]


def config_with(skips: dict) -> dict:
    """Return the tiny study with its autoregressive model alone and these skip effects."""
    config = yaml.safe_load(CONFIG)
    masked, causal = config["models"]
    causal = {**causal, "recipe": copy.deepcopy(masked["recipe"])}
    del config["fitness"]
    return {**config, "models": [causal], "figures": FIGURES, "effects": {"size": 6, "shard_size": 6, "skips": skips}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return copy_repository(tmp_path_factory.mktemp("parity"))


def configure(folder: Path, config: dict) -> None:
    (folder / "parity.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def test_the_key_alone_takes_a_study_to_its_tables_and_figures(folder):
    configure(folder, config_with({"parity": True}))
    jobs = planned(folder, configfile="parity.yaml")
    assert "measure_effects dataset=mini model=progen2_tiny shard=0 variant=trained" in jobs
    assert {job.split()[0] for job in jobs} >= {"judge_claims", *(f"draw_{name}" for name in FIGURES)}
    result = snakemake(folder, "--cores", "2", configfile="parity.yaml")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
    results = folder / "results" / "tiny"
    effects = tables.read_table(
        results / "effects" / "mini" / "progen2_tiny" / "trained" / "0" / "skip.parquet", tables.SKIP_SEQ
    ).to_pylist()
    assert {row["pos_set"] for row in effects} == {"all", "prefix"} and {row["ablation"] for row in effects} == {"zero"}
    whole = [row for row in effects if (row["part"], row["pos_set"], row["local"]) == ("layer", "all", False)]
    assert len(whole) == 6 * 2
    # Every token is read, terminals too, and all of them but the first are silenced: 1 on the diagonal there.
    for row in whole:
        at = row["src"] - 1
        assert row["n"][at] == row["n_residues"] + 2 and row["n_nan"][at] == 0
        assert row["sum"][at] == pytest.approx(row["n"][at] - 1, rel=1e-5)
    verdicts = tables.read_table(results / "verdicts" / "mini.parquet", tables.VERDICT).to_pylist()
    assert {row["claim"] for row in verdicts if row["role"] == "claim"} >= {"K1", "K2"}
    assert not [row["reason"] for row in verdicts if row["role"] == "decides" and row["reason"] == "not measured"]
    for figure in FIGURES:
        assert (results / "figures" / "mini" / f"{figure}.svg").stat().st_size > 1000
    assert planned(folder, configfile="parity.yaml") == []


def test_a_model_that_is_not_autoregressive_ends_the_study_before_any_job(folder):
    config = config_with({"parity": True})
    configure(
        folder, {**config, "models": [*config["models"], {**config["models"][0], "model": "m", "family": "esm2"}]}
    )
    result = snakemake(folder, "--dry-run", configfile="parity.yaml")
    assert result.returncode != 0
    assert "effects.skips.parity" in result.stdout + result.stderr and "others: m;" in result.stdout + result.stderr
