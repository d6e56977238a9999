"""A whole study from download to report, small; then what reruns when something changes."""

import hashlib
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from plm_depth import tables
from small_study import CONFIG, copy_repository, planned, snakemake

pytestmark = pytest.mark.workflow

# Of the sections that the tiny study has.
FIGURES = [
    *(
        "block_influence",
        "contributions",
        "cosines",
        "depth_agreement",
        "depth_definitions",
        "depth_summary",
        "entropy",
    ),
    *("fitness", "fitness_assays", "fitness_depth", "lens_kl", "lens_overlap", "output_change", "settling"),
    *("skip_matrices", "training_loss", "update_norms", "variance", "verdicts"),
]
MODELS = ["esm2_tiny", "progen2_tiny"]
JUDGED = ["judge_claims dataset=mini"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A copy of the repository in which the tiny study has run."""
    folder = copy_repository(tmp_path_factory.mktemp("study"))
    shutil.copytree(folder / "workflow", folder / "unchanged")
    result = snakemake(folder, "--cores", "2")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
    return folder


@pytest.fixture
def study(finished: Path) -> Iterator[Path]:
    """The finished study, whose code and config a test may change; both are put back afterwards."""
    yield finished
    (finished / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    shutil.copytree(finished / "unchanged", finished / "workflow", dirs_exist_ok=True)


def configure(study: Path, **changes: object) -> None:
    (study / "tiny.yaml").write_text(yaml.safe_dump({**yaml.safe_load(CONFIG), **changes}), encoding="utf-8")


def change(study: Path, module: str, old: str, new: str) -> None:
    path = study / "workflow" / "plm_depth" / module
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{module} does not hold {old!r}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def figures_drawn() -> list[str]:
    """Return the jobs behind all figures, when anything they read is new."""
    return sorted(["gather_depths dataset=mini", *(f"draw_{name} dataset=mini" for name in FIGURES)])


def of_models(*rules: str, models: list[str] = MODELS, variants: tuple[str, ...] = ("null", "trained")) -> list[str]:
    jobs = []
    for rule in rules:
        for model in models:
            if rule in ("measure_contributions", "measure_lens"):
                jobs += [f"{rule} dataset=mini model={model} variant={variant}" for variant in variants]
            elif rule == "measure_effects":
                jobs += [f"{rule} dataset=mini model={model} shard=0 variant={variant}" for variant in variants]
            elif rule in ("train_checkpoint", "describe_checkpoint", "correlate_fitness"):
                jobs.append(f"{rule} model={model}")
            elif rule == "score_variants":
                jobs.append(f"{rule} model={model} shard=0")
            else:
                jobs.append(f"{rule} dataset=mini model={model}")
    return sorted(jobs)


def passes(shards: list[int], models: list[str] = MODELS) -> list[str]:
    return sorted(
        f"extract_activations dataset=mini model={model} shard={shard} variant={variant}"
        for model in models
        for variant in ("null", "trained")
        for shard in shards
    )


# ----------------------------------------------------------------------------------------------------------------


def test_every_result_of_the_study_is_there_and_readable(finished):
    results = finished / "results" / "tiny"
    records = (results / "figures" / "mini" / "records.csv").read_text().split()
    assert records[:3] == ["reason,n_records", "sampled,6", "in_reserve,30"]
    verdicts = tables.read_table(results / "verdicts" / "mini.parquet", tables.VERDICT).to_pydict()
    assert set(verdicts["verdict"]) <= {"inconclusive"}, "six proteins prove nothing"
    for model in MODELS:
        card = json.loads((results / "cards" / f"{model}.json").read_text())
        assert card["n_blocks"] == 2 and card["d_model"] == 16
        profile = tables.read_table(results / "profiles" / "mini" / f"{model}.parquet", tables.PROFILE)
        assert set(profile.column("null_model").to_pylist()) == {"trained", "randinit", "shuffle_seq"}
        assert tables.read_table(results / "summary" / "mini" / f"{model}.parquet", tables.SUMMARY).num_rows > 0
        fitness = tables.read_table(results / "fitness" / f"{model}.parquet", tables.FITNESS)
        assert set(fitness.column("null_model").to_pylist()) == {"trained", "randinit"}
        settling = tables.read_table(results / "fitness" / "summary" / f"{model}.parquet", tables.SUMMARY)
        assert {"retention_depth", "best_layer"} == set(settling.column("stat").to_pylist())
        loss = tables.read_table(results / "losses" / f"{model}.parquet", tables.LOSS)
        assert set(loss.column("split").to_pylist()) == {"train", "valid"}
    for figure in FIGURES:
        for ending in ("svg", "csv", "html"):
            assert (results / "figures" / "mini" / f"{figure}.{ending}").stat().st_size > 100


def test_training_and_analysed_proteins_are_disjoint(finished):
    results = finished / "results" / "tiny"
    sample = tables.read_table(results / "datasets" / "mini" / "sample.parquet", tables.SEQUENCES)
    train = (results / "training" / "train.fasta").read_text()
    assert not [name for name in sample.column("sequence_id").to_pylist() if name in train]


def test_every_job_left_a_log_and_a_benchmark(finished):
    logs = finished / "logs"
    assert (logs / "results/tiny/extract_activations/mini/esm2_tiny/trained/0.log").stat().st_size > 0
    assert "/s" in (logs / "results/tiny/train_checkpoint/esm2_tiny.log").read_text()
    assert (logs / "benchmarks/results/tiny/train_checkpoint/esm2_tiny.jsonl").stat().st_size > 0


def test_a_finished_study_has_nothing_to_do(finished):
    assert planned(finished) == []
    assert "Nothing to be done" in (snakemake(finished, "--dry-run").stdout + snakemake(finished, "--dry-run").stderr)


def test_a_reworded_comment_reruns_nothing(study):
    change(study, "metrics/lens.py", '"""', '"""Said otherwise. ')
    change(study, "activations/extract.py", "import argparse\n", "import argparse  # of options\n")
    assert planned(study) == []


def test_a_changed_figure_redraws_that_figure_alone(study):
    path = study / "workflow" / "plm_depth" / "figures" / "variance.py"
    path.write_text(path.read_text() + "\nCOLOUR = 'changed'\n")
    assert planned(study) == ["draw_variance dataset=mini"]


def test_a_changed_metric_measures_again_and_redraws_without_a_forward_pass(study):
    path = study / "workflow" / "plm_depth" / "metrics" / "contributions.py"
    path.write_text(path.read_text() + "\nCHANGED = 1\n")
    expected = of_models("measure_contributions", "profile_layers", "summarise_depth") + figures_drawn() + JUDGED
    assert planned(study) == sorted(expected)


def test_a_changed_summary_threshold_reruns_the_summary_and_the_figures(study):
    configure(study, summary={"kl_fraction": [0.5], "overlap": 0.5})
    assert planned(study) == sorted(of_models("summarise_depth") + figures_drawn())


def test_an_added_model_runs_its_own_branch_and_redraws(study):
    models = yaml.safe_load(CONFIG)["models"]
    added = {**models[0], "model": "dplm_tiny", "family": "dplm"}
    configure(study, models=[*models, added])
    expected = of_models(
        "train_checkpoint",
        "describe_checkpoint",
        "measure_contributions",
        "measure_lens",
        "profile_layers",
        "summarise_depth",
        "measure_effects",
        "reduce_effects",
        "score_variants",
        "correlate_fitness",
        models=["dplm_tiny"],
    )
    expected += passes([0], models=["dplm_tiny"]) + figures_drawn() + JUDGED + ["list_models dataset=mini"]
    expected += ["tabulate_records dataset=mini"]  # it says what every family does with letters beside the 20
    assert planned(study) == sorted(expected)


def test_a_doubled_sample_passes_only_its_new_shards(study):
    datasets = yaml.safe_load(CONFIG)["datasets"]
    configure(study, datasets=[{**datasets[0], "size": 12}])
    expected = ["cut_sample dataset=mini", "cluster_dataset dataset=mini", "cut_shard dataset=mini shard=1"]
    expected += ["tabulate_records dataset=mini"]
    expected += passes([1])
    expected += of_models(
        "measure_contributions", "measure_lens", "profile_layers", "summarise_depth", "reduce_effects"
    )
    assert planned(study) == sorted(expected + figures_drawn() + JUDGED)


def test_more_proteins_for_skip_effects_measure_only_the_new_shards(study):
    config = yaml.safe_load(CONFIG)
    configure(study, datasets=[{**config["datasets"][0], "size": 12}], effects={**config["effects"], "size": 12})
    jobs = planned(study)
    assert [job for job in jobs if job.startswith("measure_effects")] == sorted(
        f"measure_effects dataset=mini model={model} shard=1 variant={variant}"
        for model in MODELS
        for variant in ("null", "trained")
    )
    assert [job for job in jobs if job.startswith("extract")] == passes([1])


def test_another_seed_or_filter_is_another_sample_and_renews_every_shard(study):
    datasets = yaml.safe_load(CONFIG)["datasets"]
    configure(study, datasets=[{**datasets[0], "max_length": 120}])
    assert set(passes([0])) | {"cut_shard dataset=mini shard=0"} <= set(planned(study))


def test_a_grown_sample_and_another_setting_at_once_leave_no_old_shard_behind(study):
    datasets = yaml.safe_load(CONFIG)["datasets"]
    configure(study, datasets=[{**datasets[0], "size": 12}], cache={"anchors": 3, "dtype": "float16"})
    assert [job for job in planned(study) if job.startswith("extract")] == passes([0, 1])


def test_a_changed_margin_judges_again_and_redraws_the_verdicts_alone(study):
    configure(study, verdicts={"late_over_early": 0.8})
    drawn = [job for job in figures_drawn() if job.startswith("draw_verdicts")]
    assert planned(study) == sorted(JUDGED + drawn)


def test_more_variants_score_again_and_another_interval_only_correlates_again(study):
    fitness = yaml.safe_load(CONFIG)["fitness"]
    names = ("fitness", "gather_depths", "depth_agreement", "depth_definitions")
    drawn = [job for job in figures_drawn() if any(name in job for name in names)]
    configure(study, fitness={**fitness, "resamples": 150})
    assert planned(study) == sorted(of_models("correlate_fitness") + drawn)
    configure(study, fitness={**fitness, "max_variants": 25})
    expected = ["tabulate_assays", *of_models("score_variants", "correlate_fitness"), *drawn]
    assert planned(study) == sorted(expected)


def test_settings_that_cannot_change_a_number_rerun_nothing(study):
    compute = yaml.safe_load(CONFIG)["compute"]
    configure(study, compute={**compute, "token_budget": 1024, "threads": 2, "memory_gb": 2})
    assert planned(study) == []


def test_null_models_are_added_without_touching_the_trained_passes(study):
    nulls = yaml.safe_load(CONFIG)["nulls"]
    configure(study, nulls=[*nulls, {"null_model": "shuffle_w", "seed": 0}])
    jobs = planned(study)
    assert [job for job in jobs if "variant=trained" in job] == []
    assert [job for job in jobs if job.startswith("extract")] == [job for job in passes([0]) if "variant=null" in job]


def test_a_killed_run_leaves_no_partial_file_and_goes_on(study):
    target = "results/tiny/profiles/mini/esm2_tiny.parquet"
    before = hashlib.sha256((study / target).read_bytes()).hexdigest()
    (study / target).unlink()
    (study / f"{target}.tmp.1").write_bytes(b"left by a killed writer")
    result = snakemake(study, "--cores", "1", target)
    assert result.returncode == 0, result.stderr
    assert hashlib.sha256((study / target).read_bytes()).hexdigest() == before
    assert snakemake(study, "--cores", "1").returncode == 0


def test_a_local_folder_enters_by_config_alone(study):
    models = yaml.safe_load(CONFIG)["models"]
    mine = {"model": "mine", "family": "esm2", "path": "results/tiny/checkpoints/esm2_tiny"}
    configure(study, models=[*models, mine])
    jobs = planned(study)
    assert "describe_checkpoint model=mine" in jobs and "train_checkpoint model=mine" not in jobs


def test_the_report_is_whole_and_says_that_toys_are_no_evidence(finished):
    result = snakemake(finished, "--report", "report.zip")
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(finished / "report.zip") as report:
        names = report.namelist()
        assert any(name.endswith("report.html") for name in names)
        svgs = [name for name in names if name.endswith(".svg")]
        assert len(svgs) >= len(FIGURES)
        report.extractall(finished / "unpacked")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: the report was built but not opened in a browser")
    page = next((finished / "unpacked").rglob("report.html"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={finished / 'profile'}"]
    options += ["--virtual-time-budget=8000", "--dump-dom", page.as_uri()]
    dom = subprocess.run([chromium, *options], capture_output=True, text=True, check=False, timeout=600).stdout
    text = re.sub(r"<[^>]+>", " ", dom)
    assert "toy" in text and "no evidence" in text
    assert "Figures" in text


def test_the_run_card_is_written_last_and_a_setting_without_influence_does_not_rewrite_it(finished, study):
    card = json.loads((finished / "results" / "tiny" / "run_card.json").read_text())
    assert "--cores" in card["command"] and card["config"]["study"] == "tiny"
    newest = max(path.stat().st_mtime for path in (finished / "results" / "tiny" / "figures").rglob("*.svg"))
    assert (finished / "results" / "tiny" / "run_card.json").stat().st_mtime >= newest
    configure(study, compute={"device": "cpu", "token_budget": 999, "threads": 1, "memory_gb": 1})
    said = snakemake(study, "--dry-run")
    assert "write_run_card" not in said.stdout + said.stderr
    path = study / "workflow" / "plm_depth" / "figures" / "variance.py"
    path.write_text(path.read_text() + "\nCOLOUR = 'changed'\n")
    said = snakemake(study, "--dry-run")
    assert "rule write_run_card" in said.stdout + said.stderr
