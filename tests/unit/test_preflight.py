"""A study that cannot finish says so before any expensive job, with the mend; one that can says what it will cost."""

import dataclasses
from pathlib import Path

import pytest
import yaml

import stand_in_hub
from plm_depth import preflight
from plm_depth.preflight import Answer, Machine, PreflightError, amount, at_start, duration, head, look, main, text
from plm_depth.prices import prices
from small_study import CONFIG, ROOT, copy_repository, resolved, snakemake

GB = 1e9
LARGE = Machine(64 * GB, (("a GPU", 80 * GB),), 1e11, lambda path: (1, 1e15))
NOBODY = Answer("no connection (refused)", is_reachable=False)


def paper(**changes: object) -> dict:
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    return {**config, "models": ["esm2_8m", "esm2_650m"], **changes}


def tiny(device: str = "cpu", **changes: object) -> dict:
    config = {**yaml.safe_load(CONFIG), **changes}
    config["compute"] = {**config["compute"], "device": device}
    return config


def states(config: dict, on: Machine = LARGE, **options: object) -> dict[str, preflight.Check]:
    options.setdefault("ask", lambda url, headers: Answer(n_bytes=10**9))
    return {check.name: check for check in look(resolved(config), on=on, **options).checks}


def test_a_study_that_fits_has_nothing_that_blocks_and_says_what_it_costs():
    report = look(resolved(paper()), on=LARGE, ask=lambda url, headers: Answer(n_bytes=13 * 10**9))
    assert not report.blocking and report.unit == "GPU hours"
    said = text(report)
    for words in ("extract_activations", "esm2_650m", "2 of 2", "GPU hours", "ok       memory", "ok       network"):
        assert words in said
    sources = [price for price in report.due if price.rule == "download_source"]
    assert [p.disk_bytes for p in sources] == [13 * 10**9], "as large as its server says"


BLOCKS = {
    "disk": (paper(), {"free_bytes": lambda path: (1, 1e9)}, {}, "1 GB free", "make room"),
    "memory": (paper(), {"memory_bytes": 17 * GB}, {}, "for esm2_650m, 17 GB here", "lower compute.memory_gb"),
    "device": (tiny("cuda"), {"gpus": ()}, {}, "device cuda, but no GPU", "compute.device to auto or cpu"),
    "device ": (paper(), {"gpus": (("small", 2 * GB),)}, {}, "esm2_650m needs", "compute.token_budget"),
    "network": (paper(), {}, {"ask": lambda url, headers: NOBODY}, "huggingface.co: no connection", "prefetch"),
    "network ": (
        *(paper(), {}, {"ask": lambda url, headers: Answer("the server says 404 Not Found")}),
        *("uniref50.fasta.gz: the server says 404", "check address and login"),
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_missing_blocks_with_the_mend(name):
    config, machine, options, found, mend = BLOCKS[name]
    check = states(config, dataclasses.replace(LARGE, **machine), **options)[name.strip()]
    assert check.state == "blocks" and found in check.found and mend in check.mend
    assert len(check.mend) > 20


def test_gated_weights_need_a_login_only_while_they_are_to_be_fetched(monkeypatch):
    config = paper(models=["esm3_open"], accepted_licences=["Cambrian-Non-Commercial"])
    monkeypatch.setattr(preflight, "_token", lambda: None)
    check = states(config)["licences"]
    assert check.state == "blocks" and "esm3_open: gated" in check.found and "hf auth login" in check.mend
    monkeypatch.setattr(preflight, "_token", lambda: "hf_of_a_test")
    assert states(config)["licences"].state == "ok"
    monkeypatch.setattr(preflight, "_token", lambda: None)
    assert "licences" not in states(config, is_due=lambda path: "checkpoints" not in path)


def test_every_model_that_is_not_pinned_is_named_while_something_of_it_is_due():
    def lines(config, **options):
        report = look(resolved(config), on=LARGE, offline=True, **options)
        return [line for line in text(report).splitlines() if "not pinned" in line]

    commit, digest = "0" * 40, "a" * 64
    archive = {"family": "progen2", "archive": "https://example.org/a.tar.gz"}
    found = lines(
        tiny(
            models=[
                "esm2_8m",  # with a revision
                {"model": "free", "family": "esm2", "hub": "org/name"},
                {"model": "fixed", "family": "esm2", "hub": "org/name", "revision": commit},
                {"model": "loose", **archive},
                {"model": "tied", **archive, "archive_sha256": digest},
                {"model": "mine", "family": "esm2", "path": "tests/fixtures/esm2/hub"},
            ]
        )
    )
    assert [line.split()[2] for line in found] == ["free", "loose"]
    assert all(line.startswith("warning  pins: ") for line in found)
    assert "org/name has no revision" in found[0] and "into revision once" in found[0]
    assert "a.tar.gz has no digest" in found[1] and "into archive_sha256" in found[1]
    unpinned = tiny(models=[{"model": "free", "family": "esm2", "hub": "org/name"}])
    assert lines(unpinned) and not lines(unpinned, is_due=lambda path: False)


def test_a_null_job_on_a_machine_without_gpu_holds_the_model_too():
    config = paper(models=["esm2_3b"])
    needed = {}
    for name, gpus in (("gpu", LARGE.gpus), ("cpu", ())):
        report = look(resolved(config), on=dataclasses.replace(LARGE, gpus=gpus), offline=True)
        needed[name] = max(price.memory_bytes for price in report.due)
    n = 2839005634
    assert needed == {"gpu": pytest.approx(16 * GB + 6 * n), "cpu": pytest.approx(16 * GB + 8 * n)}


def test_a_login_goes_to_the_hub_and_to_no_other_server(monkeypatch):
    monkeypatch.setattr(preflight, "_token", lambda: "hf_of_a_test")
    asked = {}
    states(
        paper(models=["esm2_8m", "progen2_medium"]),
        ask=lambda url, headers: (asked.setdefault(url, headers) and 0) or Answer(),
    )
    assert {url.split("/")[2]: dict(headers) for url, headers in asked.items()} == {
        "huggingface.co": {"Authorization": "Bearer hf_of_a_test"},
        "storage.googleapis.com": {},
        "ftp.uniprot.org": {},
    }


def test_what_other_machines_lack_cannot_be_seen_and_does_not_block():
    config = paper(compute={"device": "cuda"})
    nothing = dataclasses.replace(LARGE, memory_bytes=GB, gpus=())
    found = states(config, nothing, is_local=False)
    assert found["memory"].state == "warning" and found["device"].state == "unknown"


def test_a_host_that_does_not_answer_is_asked_once():
    asked = []
    states(paper(), ask=lambda url, headers: asked.append(url) or NOBODY)
    assert sorted(url.split("/")[2] for url in asked) == ["ftp.uniprot.org", "huggingface.co"]


def test_offline_no_server_is_asked():
    def fail(url, headers):
        raise AssertionError(url)

    assert states(paper(), offline=True, ask=fail)["network"].state == "unknown"


def test_what_is_there_is_not_due(tmp_path):
    study = resolved(tiny())
    study.root = tmp_path
    every = prices(study)
    report = look(study, on=LARGE)
    assert len(report.due) == len(every)
    for price in every[:3]:
        path = tmp_path / price.output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert look(study, on=LARGE).due == every[3:]


def test_at_the_start_only_the_jobs_of_the_run_are_looked_at_and_only_they_can_end_it(monkeypatch):
    monkeypatch.setattr(preflight, "machine", lambda: dataclasses.replace(LARGE, gpus=()))
    study, said = resolved(tiny("cuda")), []
    at_start(study, ["results/tiny/figures/mini/lens_kl.svg"], is_local=True, say=said.append)
    assert not said, "a figure needs no GPU and costs nothing"
    passes = next(p.output for p in prices(study) if p.rule == "extract_activations")
    with pytest.raises(PreflightError, match="no GPU is seen here"):
        at_start(study, [passes], is_local=True, say=said.append)
    assert "extract_activations" in said[0] and "train_checkpoint" not in said[0]


@pytest.mark.parametrize("mode, n_said", [("warn", 1), ("off", 0)])
def test_the_config_can_make_it_a_warning_or_silent(monkeypatch, mode, n_said):
    monkeypatch.setattr(preflight, "machine", lambda: dataclasses.replace(LARGE, gpus=()))
    config, said = tiny("cuda"), []
    config["compute"]["preflight"] = mode
    study = resolved(config)
    at_start(study, [price.output for price in prices(study)], is_local=True, say=said.append)
    assert len(said) == n_said
    assert all("BLOCKS" in line for line in said)


def test_a_long_study_without_gpu_is_warned_about_and_a_short_one_is_not():
    slow = dataclasses.replace(LARGE, gpus=(), product_rate=1e9)
    assert states(paper(), slow)["device"].state == "warning"
    assert states(tiny("auto"), slow)["device"].state == "ok"


def test_other_versions_than_the_pinned_ones_are_named(monkeypatch, tmp_path):
    (tmp_path / "requirements.in").write_text("numpy==0.0.1\nno-such-package==1.0\nscipy>=1\n")
    monkeypatch.setattr(preflight, "PINS", tmp_path / "requirements.in")
    check = states(tiny())["versions"]
    assert check.state == "warning" and "numpy" in check.found and "no-such-package missing" in check.found
    assert "scipy" not in check.found
    monkeypatch.setattr(preflight, "OLDEST_PYTHON", (99, 0))
    assert states(tiny())["versions"].state == "blocks"


def test_the_hub_is_asked_for_repositories_and_tells_gated_and_absent_ones_apart(monkeypatch):
    with stand_in_hub.running({"config.json": b"{}"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        there = {"model": "m", "family": "esm2", "hub": "org/name", "revision": stand_in_hub.COMMIT}
        assert states(tiny(models=[there]), ask=head)["network"].state == "ok"
        absent = {**there, "hub": "org/absent"}
        check = states(tiny(models=[absent]), ask=head)["network"]
        assert check.state == "blocks" and "org/absent" in check.found and "the server says 40" in check.found


def test_a_file_address_is_looked_up_on_the_disk(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert head((tmp_path / "a").as_uri(), {}) == Answer(n_bytes=5)
    assert "no file" in head((tmp_path / "b").as_uri(), {}).problem


@pytest.mark.parametrize(
    "n, words", [(0, "0 kB"), (1.5e6, "1.5 MB"), (2.5e9, "2.5 GB"), (1.25e12, "1.25 TB"), (999e6, "999 MB")]
)
def test_amounts_are_said_with_their_unit(n, words):
    assert amount(n) == words


@pytest.mark.parametrize("n, words", [(0.001, "4 s"), (0.5, "30 min"), (2.345, "2.35 h"), (240, "10 days")])
def test_hours_are_said_as_people_do(n, words):
    assert duration(n) == words


def test_the_door_prints_the_table_and_ends_with_what_blocks(tmp_path, monkeypatch, capsys):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tiny("cuda")))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(preflight, "machine", lambda: dataclasses.replace(LARGE, gpus=()))
    with pytest.raises(SystemExit, match="cannot finish here; what blocks:\n  - device: device cuda"):
        main(["--config", str(path), "--offline"])
    assert "measure_effects" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, words",
    [
        (b"study: [", "not a readable YAML file"),
        (b"\xff\xfe\x00", "not a readable YAML"),
        (b"study: a", "seed: missing"),
    ],
)
def test_a_bad_config_at_the_door_is_one_message(tmp_path, content, words):
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(SystemExit, match=words) as caught:
        main(["--config", str(tmp_path / "bad.yaml"), "--offline"])
    assert "Traceback" not in str(caught.value)


def test_this_machine_can_be_looked_at():
    here = preflight.machine()
    assert here.memory_bytes > 1e8 and here.product_rate > 1e8
    device, free = here.free_bytes(Path("not/there/yet"))
    assert device > 0 and free > 0


@pytest.mark.workflow
def test_the_command_of_the_readme_prints_the_table_and_blocks(tmp_path):
    folder = copy_repository(tmp_path)
    (folder / "cuda.yaml").write_text(yaml.safe_dump(tiny("cuda")))
    good = snakemake(folder, "--cores", "1", "preflight")
    assert good.returncode == 0 and "extract_activations" in good.stderr, good.stderr
    for target in (["preflight"], []):
        bad = snakemake(folder, "--cores", "1", *target, configfile="cuda.yaml", variables={"CUDA_VISIBLE_DEVICES": ""})
        assert bad.returncode == 1 and "device cuda, but no GPU is seen here" in bad.stderr, bad.stderr
        assert not (folder / "results").exists(), "no job has begun"
