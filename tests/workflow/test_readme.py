"""Every command of the README is known here and run: by this file, another test, or the continuous integration."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from plm_depth.config import read_models
from small_study import ROOT, copy_repository, snakemake

README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN_BY_CI = {"make study", "make test"}


def commands() -> list[str]:
    """Return the commands of the README's shell blocks, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_no_command_of_the_readme_is_unknown_here():
    here = {
        ".venv/bin/snakemake --cores all",
        ".venv/bin/snakemake --cores all -n",
        ".venv/bin/snakemake --cores all --configfile config/config.yaml config/structure.yaml",
        ".venv/bin/snakemake --cores 1 prefetch",
        ".venv/bin/snakemake choices --cores all --configfile config/my_model.yaml",
        ".venv/bin/snakemake --cores 1 preflight",
        "PYTHONPATH=workflow .venv/bin/python -m plm_depth verify esm2 tests/fixtures/esm2/hub tests/fixtures/esm2",
    }
    assert set(commands()) == here | RUN_BY_CI


def test_the_continuous_integration_runs_the_two_commands():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(re.search(rf"^{command}\b", script, flags=re.MULTILINE) for command in RUN_BY_CI)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"study", "test"} <= set(re.findall(r"^(\w+):", makefile, flags=re.MULTILINE))


@pytest.mark.workflow
def test_the_paper_study_resolves_with_every_variant(tmp_path):
    folder = copy_repository(tmp_path)
    result = snakemake(folder, "--cores", "all", "-n", configfile="config/config.yaml")
    text = result.stdout + result.stderr
    assert result.returncode == 0, text
    models = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["models"]
    assert len(models) >= 14 and set(models) <= set(read_models(ROOT / "config" / "models.tsv"))
    for model in models:
        assert f"resources/checkpoints/{model}" in text
    assert "uniref50.fasta.gz" in text


@pytest.mark.workflow
def test_the_study_with_structures_is_laid_over_the_paper_study_and_gives_the_claims_of_both_inputs(tmp_path):
    folder = copy_repository(tmp_path)
    configs = ["config/config.yaml", "config/structure.yaml"]
    result = snakemake(folder, "--cores", "all", "-n", "--configfile", *configs)  # the last option counts
    text = result.stdout + result.stderr
    assert result.returncode == 0, text
    models = yaml.safe_load((ROOT / "config" / "structure.yaml").read_text())["models"]
    assert models and all(f"resources/checkpoints/{model}" in text for model in models)
    assert "results/structure/verdicts/folds.parquet" in text and "alphafold" in text


def test_the_readme_counts_the_variants_that_the_paper_config_and_the_sheet_have():
    sheet = read_models(ROOT / "config" / "models.tsv")
    inferred = {name for name, row in sheet.items() if row["in_study"] == "inferred"}
    models = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["models"]
    assert f"names {len(models)} of the {len(inferred)} variants that the paper most likely used" in README
    assert f"`config/models.tsv` has {len(sheet)} published variants" in README
    assert inferred - set(models) == {"esm3_open"} and "the last one, ESM3, is gated" in README


@pytest.mark.workflow
@pytest.mark.slow
def test_the_example_of_a_users_model_gives_a_recommendation_and_the_checkpoint_that_ends_there(tmp_path):
    from plm_depth.models import registry
    from plm_depth.tables import read_metadata

    folder = copy_repository(tmp_path)
    result = snakemake(folder, "--cores", "all", "choices", configfile="config/my_model.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    made = folder / "results" / "my_model" / "choices" / "families"
    text = (made / "recommendation.md").read_text()
    assert "143 proteins were used; left out: none" in text and "Toy models: no evidence" in text
    assert re.search(r"Read layer \d of 4\.", text) and (made / "recommendation.html").is_file()
    n_blocks = int(read_metadata(made / "my_esm2.parquet")["cut_after"])
    cut = registry.load("esm2", made / "truncated" / "my_esm2")
    assert cut.n_blocks == n_blocks >= 1
    card = (made / "truncated" / "my_esm2" / "README.md").read_text()
    assert f"cut after block {n_blocks} of 4" in card and f"Layer {n_blocks}: mcc" in card
    assert not (folder / "results" / "my_model" / "activations").exists()
    about = json.loads((made.parent / "run_card.json").read_text())
    assert "choices" in about["command"] and [model["model_id"] for model in about["models"]] == ["my_esm2"]
    assert any("truncated/my_esm2" in result["path"] for result in about["results"])


def test_verify_passes_on_the_numbers_of_the_familys_own_code_and_fails_on_others():
    def verify(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "plm_depth", "verify", *arguments]
        environment = {"PYTHONPATH": str(ROOT / "workflow"), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    good = verify("esm2", "tests/fixtures/esm2/hub", "tests/fixtures/esm2")
    assert good.returncode == 0, good.stdout + good.stderr
    assert "logits" in good.stdout
    other = verify("dplm", "tests/fixtures/dplm/hub", "tests/fixtures/esm2")
    assert other.returncode in (1, 2)


def test_every_file_that_the_readme_links_to_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:workflow|config|tests|docs)/[\w./]+)`", README):
        assert Path(ROOT / path).exists(), path
