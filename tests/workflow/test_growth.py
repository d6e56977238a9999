"""What a change of the mini study, every section on, makes due: by dry runs over a study that counts as done."""

import re
from pathlib import Path

import pytest
import yaml

from small_study import copy_repository, planned, snakemake

pytestmark = pytest.mark.workflow

# Rules that run a model: what must not run again for nothing.
RUNS_A_MODEL = {
    "train_checkpoint",
    "extract_activations",
    "measure_effects",
    "ablate_depth",
    "measure_attribution",
    "fit_tuned_lens",
    "read_structure_head",
    "embed_annotated",
    "score_variants",
    "embed_user_proteins",
}


def config_of(repository: Path, name: str, change) -> str:
    config = yaml.safe_load((repository / "config" / "mini.yaml").read_text(encoding="utf-8"))
    change(config)
    (repository / name).write_text(yaml.safe_dump(config), encoding="utf-8")
    return name


def on_models(jobs: list[str]) -> list[str]:
    return [job for job in jobs if job.split()[0] in RUNS_A_MODEL]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A repository in which every file of the mini study exists, empty, as if it had just been made."""
    repository = copy_repository(tmp_path_factory.mktemp("done"))
    told = snakemake(repository, "--dry-run", "--verbose", configfile="config/mini.yaml")
    assert told.returncode == 0, told.stderr[-2000:]
    outputs = re.findall(r"^    output: (.*)$", told.stdout + told.stderr, flags=re.MULTILINE)
    folders = {f"results/mini/checkpoints/{model['model']}" for model in models_of(repository)}
    folders |= {path for line in outputs for path in line.split(", ") if "/truncated/" in path}
    for path in {path for line in outputs for path in line.split(", ")}:
        made = repository / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.mkdir(exist_ok=True) if path in folders else made.touch()
    touched = snakemake(repository, "--cores", "1", "--touch", configfile="config/mini.yaml")
    assert touched.returncode == 0, touched.stderr[-2000:]
    assert planned(repository, configfile="config/mini.yaml") == []
    return repository


def models_of(repository: Path) -> list[dict]:
    return yaml.safe_load((repository / "config" / "mini.yaml").read_text(encoding="utf-8"))["models"]


def test_a_grown_sample_runs_the_new_shard_and_nothing_else_of_any_model(done):
    def grow(config):
        config["datasets"][0]["size"] = 128

    jobs = on_models(planned(done, configfile=config_of(done, "grown.yaml", grow)))
    assert jobs == sorted(
        f"extract_activations dataset=mini model={model['model']} shard=1 variant={variant}"
        for model in models_of(done)
        for variant in ("trained", "null")
    )


def test_a_setting_of_one_section_reruns_that_section_alone(done):
    def change(config):
        config["tuned_lens"]["steps"] += 1
        config["summary"]["overlap"] = 0.4
        config["compute"] |= {"token_budget": 999, "memory_gb": 3}

    jobs = planned(done, configfile=config_of(done, "changed.yaml", change))
    assert {job.split()[0] for job in on_models(jobs)} == {"fit_tuned_lens"}
    assert {"reduce_tuned_lens", "summarise_depth", "draw_tuned_lens"} <= {job.split()[0] for job in jobs}


def test_the_structure_heads_of_more_proteins_are_read_in_new_shards_of_the_models_that_have_one(done):
    def more(config):
        config["structure_heads"]["size"] = 7
        config["compute"]["batch_window"] = 4  # the least that a shard may hold

    jobs = planned(done, configfile=config_of(done, "more.yaml", more))
    with_a_head = ("dplm2_toy_4", "esm3_toy_4", "saprot_toy_4")
    assert on_models(jobs) == [f"read_structure_head dataset=structures model={name} shard=1" for name in with_a_head]
    others = sorted(job for job in jobs if job not in on_models(jobs))
    assert others == [
        "draw_structure_heads dataset=structures",
        *(f"reduce_structure_head dataset=structures model={name}" for name in with_a_head),
    ]


def test_without_their_section_no_structure_head_is_read(done):
    def without(config):
        del config["structure_heads"]

    assert planned(done, configfile=config_of(done, "without.yaml", without)) == []
