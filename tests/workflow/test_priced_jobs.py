"""What is priced is what Snakemake would run: job by job, for the studies of this repository."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from plm_depth import preflight
from plm_depth.prices import PRICES, prices
from small_study import CONFIG, copy_repository, resolved, snakemake

pytestmark = pytest.mark.workflow
LARGE = preflight.Machine(64e9, (), 1e11, lambda path: (1, 1e15))


def changed(config: str) -> dict:
    """Return the small study with a model that no data set has, no null model of effects, and an idle source."""
    study = yaml.safe_load(config)
    study["sources"].append({"name": "idle", "url": "https://example.org/idle.fasta"})
    study["datasets"][0] |= {"models": ["progen2_tiny"], "size": 5, "shard_size": 2}
    study["effects"] |= {"size": 64, "shard_size": 4, "null_models": []}
    study["fitness"]["null_models"] = []
    return study


def jobs_of(folder: Path, configs: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return (rule, outputs) of all jobs of a study of which nothing is there."""
    # A later configfile is laid over an earlier one, as people give them.
    said = snakemake(folder, "--configfile", *configs, "--dry-run", "all")
    assert said.returncode == 0, said.stderr
    jobs = []
    for block in re.split(r"\n\n|\n(?=\[)", said.stdout + said.stderr):
        rule = re.search(r"^(?:local)?rule (\w+):", block, flags=re.MULTILINE)
        made = re.search(r"^\s+output: (.*)$", block, flags=re.MULTILINE)
        if rule and made:
            jobs.append((rule.group(1), made.group(1).split(", ")))
    return jobs


@pytest.mark.parametrize(
    "configs",
    [["changed.yaml"], ["config/mini.yaml"], ["config/config.yaml"], ["config/config.yaml", "config/structure.yaml"]],
)
def test_the_priced_outputs_are_those_of_the_jobs_and_a_finished_study_has_nothing_due(tmp_path, configs):
    folder = copy_repository(tmp_path)
    (folder / "changed.yaml").write_text(yaml.safe_dump(changed(CONFIG)))
    config: dict = {}
    for name in configs:
        update_config(config, yaml.safe_load((folder / name).read_text()))
    study = resolved(config, folder)
    jobs = {tuple(outputs): rule for rule, outputs in jobs_of(folder, configs) if rule in PRICES}
    rule_of = {output: rule for outputs, rule in jobs.items() for output in outputs}
    job_of = {output: outputs for outputs in jobs for output in outputs}
    priced = prices(study)
    assert len(jobs) > 5
    none = [price for price in priced if rule_of.get(price.output) != price.rule]
    assert not none, f"{len(none)} of {len(priced)} prices are of no job of their rule: {none[0].output}"
    assert len({job_of[price.output] for price in priced}) == len(priced), "a job with two prices"
    without = set(jobs) - {job_of[price.output] for price in priced}
    assert not without, f"{len(without)} jobs have no price: {min(without)}"
    left = preflight.look(study, is_due=lambda path: path not in rule_of, on=LARGE)
    assert left.due == [] and "nothing expensive" in preflight.text(left)
