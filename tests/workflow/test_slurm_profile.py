"""What the Slurm profile would submit, told by dry runs, without a cluster; test_on_slurm.py submits it."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from small_study import CONFIG, ROOT, copy_repository, snakemake

pytestmark = pytest.mark.workflow

PROFILES = ROOT / "profiles"
RULES = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")))
SOURCES = re.split(r"\nrule ", RULES)[1:]
ON_GPUS = {rule.split(":")[0] for rule in SOURCES if "gpu=" in rule}
# A dry run does not tell them apart: these run where Snakemake runs.
LOCAL = {
    rule.split(":")[0]
    for rule in re.split(r"\nrule ", RULES)[1:]
    if re.search(r"^    localrule: True", rule, re.MULTILINE)
}


@dataclass
class Submission:
    """One sbatch: the rules of its jobs, and what its first job says of itself."""

    rules: list[str]
    text: str

    def asks(self, resource: str) -> int:
        return int(re.search(rf"\b{resource}=(\d+)", self.text).group(1))


def submissions(folder: Path, profile: str, config: str, *options: str) -> list[Submission]:
    """Return what a dry run with a profile would submit."""
    command = ["--dry-run", "--workflow-profile", f"profiles/{profile}", *options]
    result = snakemake(folder, *command, configfile=config)
    text = result.stdout + result.stderr
    assert result.returncode == 0, text[-3000:]
    found: list[Submission] = []
    for block in re.split(r"\n(?=\[|    \[)", text):
        if "Group job" in block.split("\n")[0]:
            found.append(Submission([], ""))
        elif rule := re.search(r"^( *)rule (\w+):", block, flags=re.MULTILINE):
            indent, name = rule.groups()
            if name in {"default", *LOCAL}:
                continue
            if not indent:
                found.append(Submission([], ""))
            found[-1].rules.append(name)
            found[-1].text += block
    return found


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    return copy_repository(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def paper(repository) -> list[Submission]:
    """What the paper study with skip effects submits."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config["effects"] = {"size": 128, "shard_size": 64}
    config["datasets"] = config["datasets"][:1]
    (repository / "paper.yaml").write_text(yaml.safe_dump(config))
    return submissions(repository, "slurm", "paper.yaml")


def of(found: list[Submission], rule: str, model: str) -> Submission:
    return next(one for one in found if one.rules == [rule] and f"model={model}," in one.text)


def test_the_paper_study_is_hundreds_of_submissions_most_of_them_on_gpus(paper):
    n_models = len(yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["models"])
    assert 100 < len(paper) < 1000
    on_gpus = Counter(one.rules[0] for one in paper if "gpu=1" in one.text)
    assert on_gpus["extract_activations"] == n_models * 4 * 2 and on_gpus["measure_effects"] == n_models * 2 * 2
    assert on_gpus.total() > len(paper) / 2
    metrics = [one for one in paper if "profile_layers" in one.rules]
    assert len(metrics) == n_models and {len(one.rules) for one in metrics} == {6}


def test_small_jobs_of_one_kind_go_together_and_downloads_are_not_submitted(paper):
    by_rule = Counter(name for one in paper for name in set(one.rules))
    assert by_rule["draw_candidates"] == by_rule["cut_shard"] == 1
    drawn = [one.rules for one in paper if any(name.startswith("draw_") for name in one.rules)]
    assert len([rules for rules in drawn if "draw_contributions" in rules]) == 1
    assert max(len(rules) for rules in drawn) >= 9
    for rule in ("reduce_effects", "reduce_ablation", "reduce_attribution"):
        together = sorted(one.rules.count(rule) for one in paper if rule in one.rules)
        assert together and set(together[1:]) <= {4}, rule
    assert {"download_source", "download_structure", "download_checkpoint", "list_models", "tabulate_records"} <= LOCAL


def test_requests_follow_the_size_of_the_model_and_the_shard(paper, repository):
    small, large = (of(paper, "extract_activations", name) for name in ("esm2_8m", "esm2_15b"))
    assert small.asks("mem_mb") < 17000 and large.asks("mem_mb") >= 16000 + 1.5 * 2 * 15129
    assert small.asks("runtime") < large.asks("runtime")
    effects = of(paper, "measure_effects", "esm2_650m")
    assert effects.asks("runtime") > 2 * of(paper, "extract_activations", "esm2_650m").asks("runtime")
    config = yaml.safe_load((repository / "paper.yaml").read_text())
    config["datasets"][0] |= {"size": 8192, "shard_size": 4096}
    (repository / "large.yaml").write_text(yaml.safe_dump(config))
    targets = ["results/paper/activations/uniref50/esm2_15b/null/0/moments.parquet"]
    (longer,) = [
        one for one in submissions(repository, "slurm", "large.yaml", *targets) if one.rules == ["extract_activations"]
    ]
    same_kind = next(
        one
        for one in paper
        if one.rules == longer.rules and "model=esm2_15b," in one.text and "variant=null" in one.text
    )
    assert longer.asks("runtime") > 2 * same_kind.asks("runtime")


def test_a_study_without_gpus_asks_for_none(repository):
    found = submissions(repository, "slurm", "tiny.yaml")
    assert [one for one in found if "gpu=1" in one.text] == []
    (repository / "auto.yaml").write_text(CONFIG.replace("device: cpu", "device: auto"))
    asking = {one.rules[0] for one in submissions(repository, "slurm", "auto.yaml") if "gpu=1" in one.text}
    assert {"train_checkpoint", "extract_activations", "measure_effects"} <= asking <= ON_GPUS


def test_every_rule_asks_for_more_at_each_attempt_and_none_retries_by_itself():
    assert re.findall(r"(?:mem_mb|runtime)=\d+", RULES) == []
    assert re.findall(r"^\s+retries:", RULES, flags=re.MULTILINE) == [], "an inner Snakemake would obey it, too"
    for rule in re.split(r"\n(?=rule |    rule:)", RULES)[1:]:
        name = rule.split(":")[0]
        assert "localrule: True" in rule or {"mem_mb=", "runtime="} <= set(re.findall(r"mem_mb=|runtime=", rule)), name


@pytest.mark.parametrize("name", ["slurm", "slurm-site"])
def test_a_profile_names_rules_that_exist_and_holds_what_the_default_one_holds(name):
    profile = yaml.safe_load((PROFILES / name / "config.yaml").read_text())
    figures = {f"draw_{path.stem}" for path in (ROOT / "workflow" / "report").glob("*.rst")}
    rules = set(re.findall(r"^rule (\w+):", RULES, flags=re.MULTILINE)) | figures
    assert set(profile["groups"]) <= rules
    without = {
        f"draw_{name}" for name in ("choice", "letters", "records", "run_card", "workflow")
    }  # other rules' texts
    assert figures - without <= set(profile["groups"]), "a figure is seconds of work"
    assert set(profile["group-components"]) <= set(profile["groups"].values())
    assert set(profile.get("set-resources", {})) <= rules
    default = yaml.safe_load((PROFILES / "default" / "config.yaml").read_text())
    assert {key: value for key, value in default.items() if key != "resources"}.items() <= profile.items()
    assert profile["retries"] >= 1 and "slurm-array-jobs" not in profile
    assert profile["default-resources"]["mem_mb"] >= 1000 and profile["default-resources"]["runtime"] > 0
    assert "resources" not in profile, "a limit of GPUs on one machine would limit a cluster"


def test_the_example_of_a_site_adds_to_the_profile_and_changes_nothing(repository):
    plain, site = (yaml.safe_load((PROFILES / name / "config.yaml").read_text()) for name in ("slurm", "slurm-site"))
    assert plain["default-resources"].items() <= site["default-resources"].items()
    assert all(site[key] == value for key, value in plain.items() if key != "default-resources")
    assert set(site["set-resources"]) == ON_GPUS
    found = submissions(repository, "slurm-site", "auto.yaml" if (repository / "auto.yaml").exists() else "tiny.yaml")
    for one in found:
        partition = "gpu" if one.rules[0] in site["set-resources"] else "cpu"
        assert set(re.findall(r"slurm_partition=(\w+)", one.text)) == {partition}
