"""The card of a run names everything that made the results, and says so in the same words whenever it is written."""

import json
import re
import shlex
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import yaml

from plm_depth import activations, runtime
from plm_depth.figures import run_card as module
from plm_depth.figures.run_card import file_of, git_state, main, packages, rows_of
from plm_depth.tables import LEFT_OUT, write_table
from small_study import CONFIG, ROOT

CARD = {
    **{"model_id": "m", "family": "esm2", "objective": "mlm", "dtype": "float32", "revision": "local", "folder": "f"},
    **{"files": [{"name": "w.safetensors", "bytes": 3, "sha256": "ab" * 32}], "n_parameters": 7, "self_check": 1e-7},
    "versions": {"torch": "2"},
}


@pytest.fixture
def options(tmp_path) -> list[str]:
    (tmp_path / "m.json").write_text(json.dumps(CARD))
    (tmp_path / "source.fasta").write_text(">a\nMKT\n")
    write_table({"reason": ["sampled"], "n_records": [3]}, LEFT_OUT, tmp_path / "left_out.parquet")
    (tmp_path / "figure.svg").write_text("<svg/>")
    words = ["--config", json.dumps(yaml.safe_load(CONFIG)), "--versions", '{"extraction": 1}']
    words += ["--cards", str(tmp_path / "m.json"), "--sources", json.dumps({"mini": str(tmp_path / "source.fasta")})]
    words += ["--results", str(tmp_path / "left_out.parquet"), str(tmp_path / "figure.svg")]
    return [*words, "--card", str(tmp_path / "out" / "card.json"), "--html", str(tmp_path / "out" / "card.html")]


def test_a_card_holds_versions_revisions_digests_seeds_dtype_hardware_command_config_and_commit(
    options, tmp_path, monkeypatch
):
    monkeypatch.setenv(module.COMMAND, "snakemake --cores 2")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    main(options)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["command"] == "snakemake --cores 2" and card["seed"] == 1 and card["study"] == "tiny"
    assert card["config"] == yaml.safe_load(CONFIG)
    assert card["packages"]["installed"]["torch"] and "numpy" in card["packages"]["installed"]
    assert card["models"][0] == {key: CARD[key] for key in module.CARD_KEYS}
    assert card["sources"]["mini"]["sha256"] == file_of(tmp_path / "source.fasta")["sha256"]
    assert [result["path"].split("/")[-1] for result in card["results"]] == ["figure.svg", "left_out.parquet"]
    assert card["hardware"]["processors"] >= 1 and card["hardware"]["memory_gb"] > 0.1
    assert card["environment"]["ATEN_CPU_CAPABILITY"] == "avx2"
    assert card["stage_versions"] == {"extraction": 1} and card["not_pinned"] == []
    assert card["git"] is None or len(card["git"]["commit"]) == 40
    page = (tmp_path / "out" / "card.html").read_text()
    for words in ("snakemake --cores 2", "SHA-256 of w.safetensors", "models[0].recipe.n_blocks", "What made"):
        assert words in page


def test_a_model_that_was_fetched_without_a_pin_is_named(options, tmp_path):
    main([*options, "--unpinned", "m"])
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["not_pinned"] == ["m"]
    assert ("models", "m: not pinned") in [row[:2] for row in rows_of(card).rows()]


def test_two_cards_of_the_same_results_differ_in_their_time_alone(options, tmp_path):
    main(options)
    first = json.loads((tmp_path / "out" / "card.json").read_text())
    main(options)
    second = json.loads((tmp_path / "out" / "card.json").read_text())
    assert {key for key in first if first[key] != second[key]} <= {"written"}


def test_the_digest_of_a_table_is_that_of_its_rows(tmp_path):
    write_table({"reason": ["a", "b"], "n_records": [1, 2]}, LEFT_OUT, tmp_path / "t.parquet")
    before = file_of(tmp_path / "t.parquet")
    pq.write_table(pq.read_table(tmp_path / "t.parquet"), tmp_path / "t.parquet", compression="none")
    assert file_of(tmp_path / "t.parquet") == before
    write_table({"reason": ["a", "b"], "n_records": [1, 3]}, LEFT_OUT, tmp_path / "t.parquet")
    assert file_of(tmp_path / "t.parquet")["content"] != before["content"]


def test_a_folder_stands_for_the_files_in_it(tmp_path):
    for name in ("b/config.json", "b/deep/model.bin", "a.svg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = module.files_in([tmp_path / "b", tmp_path / "a.svg"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.svg", "b/config.json", "b/deep/model.bin"]


def test_commit_and_changed_files_are_those_of_the_repository(tmp_path):
    assert git_state(tmp_path / "nowhere") is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "A"], check=True)
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40 and clean["changed_files"] == 0
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {**clean, "changed_files": 1}


def test_a_package_other_than_pinned_is_named(tmp_path):
    (tmp_path / "pins").write_text("# words\nnumpy==0.0.1\nscipy>=1\nno-such-package==1\n")
    found = packages(tmp_path / "pins")
    assert set(found["other_than_pinned"]) == {"numpy", "no-such-package"}
    assert found["installed"]["no-such-package"] is None and found["installed"]["scipy"]
    assert packages(tmp_path / "absent") == {"installed": {}, "other_than_pinned": {}}
    assert packages(ROOT / "envs" / "requirements.in")["other_than_pinned"] == {}, "of this environment"


def test_the_rows_for_people_hold_every_setting_and_every_result(options, tmp_path):
    main(options)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    rows = rows_of(card)
    settings = dict(rows.filter(part="config").select("item", "value").rows())
    assert settings["inputs.diffusion.noise"] == "[0.3, 0.7]" and settings["models[1].family"] == "progen2"
    assert rows.filter(part="results").height == 2


@pytest.mark.parametrize(
    "change, words",
    [
        (("--config", "{"), "--config: not JSON"),
        (("--config", "[]"), "--config: '[]'; expected a JSON object"),
        (("--config", "{}"), "no seed and study; expected the config of a study"),
        (("--results", "/nowhere.svg"), "/nowhere.svg: cannot be read"),
        (("--results", "/nowhere.parquet"), "/nowhere.parquet: cannot be read"),
        (("--cards", "/nowhere.json"), "/nowhere.json: not the card of a checkpoint"),
    ],
)
def test_what_it_cannot_be_written_from_ends_in_one_message_and_no_card(options, tmp_path, change, words):
    with pytest.raises(SystemExit) as ended:
        main([*options, *change])
    assert words in ended.value.code
    assert not (tmp_path / "out").exists()


def test_jobs_inherit_the_command_that_started_the_run(monkeypatch):
    monkeypatch.delenv(module.COMMAND, raising=False)
    for name in ("PYTHONPATH", "PATH", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "POLARS_MAX_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/snakemake", "--cores", "2", "a b"])
    runtime.export("workflow")
    assert shlex.split(module.os.environ[module.COMMAND]) == ["snakemake", "--cores", "2", "a b"]
    monkeypatch.setattr(sys, "argv", ["snakemake", "--mode", "subprocess"])
    runtime.export("workflow")
    assert "--cores" in module.os.environ[module.COMMAND], "of the run, not of its job"


def test_the_versions_of_all_stages_that_run_a_model_are_handed_to_the_card():
    rules = (ROOT / "workflow" / "rules" / "common.smk").read_text(encoding="utf-8")
    said = rules.partition("def stage_versions():")[2].partition("}")[0]
    known = {name for name in vars(activations) if name.endswith("VERSION")}
    imported = set(re.findall(r"from plm_depth\.\w+ import VERSION as (\w+)", rules))
    assert imported >= {"EXTRACTION", "TRAINING"} and len(known) >= 7
    assert set(re.findall(r": (\w+),", said)) == (known - {"VERSION"}) | imported
