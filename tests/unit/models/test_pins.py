"""What a config asks for of a checkpoint, and when what was fetched is that."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from plm_depth.models import manifest, pins, registry
from plm_depth.models.download import File, choose, main
from plm_depth.models.pins import MANIFEST, PinError, fulfils, options_of, request_of, settled

FIXTURES = Path(__file__).parents[2] / "fixtures"
COMMIT, OTHER = "a" * 40, "b" * 40
LAYOUTS = [
    ("esm2", "esm2/hub"),
    ("esm2", "esm2/fair_esm"),
    ("esm1b", "esm1b/hub"),
    ("saprot", "saprot/hub"),
    ("saprot", "saprot/fair_esm"),
    ("dplm", "dplm/hub"),
    ("dplm2", "dplm2/hub"),
    ("esmc", "esmc/native"),
    ("esmc", "esmc/pth"),
    ("esm3", "esm3/pth"),
    ("progen2", "progen2/authors"),
    ("progen2", "progen2/community"),
    ("progen3", "progen3/hub"),
]


def entry(**more) -> dict[str, object]:
    return {"model": "m", "family": "esm2", "hub": "org/name", **more}


def fetched(folder: Path, asked: dict[str, object], digests: dict[str, str] | None = None) -> dict[str, object]:
    """Write what a download of one empty file would have left."""
    folder.mkdir()
    digests = digests or {"config.json": "1" * 64}
    source = {"archive": asked["archive"], "sha256": "3" * 64} if "archive" in asked else {"repo": "org/new_name"}
    source = {"revision": COMMIT, **source} if "repo" in source else source
    for name in digests:
        (folder / name).touch()
    return manifest.write(folder, {**source, "asked": asked}, digests)


def listed(*names: str) -> list[File]:
    return [File(name, 1, None, None) for name in names]


def chosen(family: str, *names: str) -> list[str]:
    """Return what is fetched by default of a repository with these files."""
    import logging

    alternatives = request_of(entry(family=family))["files"]
    return [file.name for file in choose(listed(*names), alternatives, {}, logging.getLogger("test"))]


# ----------------------------------------------------------------------------------------------------- default files


@pytest.mark.parametrize(("family", "folder"), LAYOUTS)
def test_by_default_a_repository_brings_every_file_that_its_family_reads(family, folder):
    there = [p.relative_to(FIXTURES / folder).as_posix() for p in (FIXTURES / folder).rglob("*") if p.is_file()]
    read = [
        p.relative_to(FIXTURES / folder).as_posix() for p in registry.adapter_class(family).files(FIXTURES / folder)
    ]
    assert set(read) <= set(chosen(family, *there, "README.md", "modeling.py", "training_args.bin"))


def test_every_family_says_what_to_fetch_for_each_of_its_layouts():
    for family, row in registry.FAMILIES.items():
        assert set(row.files) == set(registry.adapter_class(family).layouts), family
        assert any(row.files.values())


def test_of_a_repository_with_several_layouts_the_first_is_fetched_alone():
    hub = ["config.json", "pytorch_model.bin", "vocab.txt"]
    assert chosen("saprot", *hub, "SaProt_650M_AF2.pt") == hub
    assert chosen("saprot", "config.json", "README.md", "SaProt_650M_AF2.pt") == ["SaProt_650M_AF2.pt"]
    assert chosen("esmc", "config.json", "data/weights/esmc_300m.pth") == ["data/weights/esmc_300m.pth"]
    assert chosen("dplm", "config.json", "data/weights/dplm.pth") == []


def test_of_esm3_the_trunk_and_the_structure_encoder_come_and_no_decoder():
    names = [f"data/weights/esm3_{part}.pth" for part in ("sm_open_v1", "structure_encoder_v0", "function_decoder_v0")]
    assert chosen("esm3", "config.json", *names) == names[:2]


# ------------------------------------------------------------------------------------------------------------ request


def test_a_row_of_the_sheet_and_an_entry_of_the_config_ask_alike():
    row = entry(files="config.json,*.bin", sha256=f"b.bin={'2' * 64},a.bin={'1' * 64}", revision=COMMIT)
    own = entry(files=["config.json", "*.bin"], sha256={"a.bin": "1" * 64, "b.bin": "2" * 64}, revision=COMMIT)
    assert request_of(row) == request_of(own)
    assert options_of(request_of(own)) == [
        *("--repo", "org/name", "--revision", COMMIT, "--files", "config.json,*.bin"),
        *("--sha256", f"a.bin={'1' * 64},b.bin={'2' * 64}"),
    ]
    assert options_of(request_of(entry(family="esmc")))[-1].endswith("|*.pth")
    archive = {"family": "progen2", "archive": "https://a/b.tar"}
    assert options_of(request_of(archive)) == ["--archive", "https://a/b.tar", "--archive-sha256", "none"]


def test_options_of_a_request_are_those_that_the_stage_takes(tmp_path):
    asked = request_of(entry(family="esmc", revision=COMMIT, sha256={"config.json": "1" * 64}))
    noted = fetched(tmp_path / "m", asked, {"config.json": hashlib.sha256(b"").hexdigest()})
    asked["sha256"] = {name: about["sha256"] for name, about in noted["files"].items()}
    main([*options_of(asked), "--output", str(tmp_path / "m")])  # is there already: nobody is asked
    with pytest.raises(SystemExit, match=r"config\.json has SHA-256"):
        main([*options_of({**asked, "sha256": {"config.json": "1" * 64}}), "--output", str(tmp_path / "m")])


# -------------------------------------------------------------------------------------------------------- settled


def test_a_pin_that_is_what_was_fetched_changes_no_setting(tmp_path):
    asked = request_of(entry())
    fetched(tmp_path / "m", asked)
    same = [entry(), entry(revision=COMMIT), entry(sha256={"config.json": "1" * 64}), entry(hub="org/new_name")]
    for pinned in (*same, entry(revision=COMMIT, sha256={"config.json": "1" * 64})):
        assert settled(tmp_path / "m", pinned) == asked


@pytest.mark.parametrize(
    "other",
    [
        entry(revision=OTHER),
        entry(hub="org/other"),
        entry(files=["*.bin"]),
        entry(sha256={"config.json": "2" * 64}),
        entry(sha256={"model.safetensors": "1" * 64}),
        entry(revision=OTHER, sha256={"config.json": "2" * 64}),
        {"family": "esm2", "archive": "https://a/b.tar"},
    ],
)
def test_anything_else_is_asked_for_anew(tmp_path, other):
    fetched(tmp_path / "m", request_of(entry()))
    assert settled(tmp_path / "m", other) == request_of(other)


def test_a_wrong_digest_of_the_commit_that_was_fetched_is_refused_with_both(tmp_path):
    fetched(tmp_path / "m", request_of(entry()))
    with pytest.raises(PinError) as caught:
        settled(tmp_path / "m", entry(revision=COMMIT, sha256={"config.json": "2" * 64}))
    said = str(caught.value)
    assert f"config.json has SHA-256 {'1' * 64} at commit {COMMIT}, expected is {'2' * 64}" in said
    assert "Nothing was removed" in said and (tmp_path / "m" / "config.json").exists()


def test_an_archive_is_known_by_its_digest_else_by_its_address(tmp_path):
    archive = {"family": "progen2", "archive": "https://a/b.tar"}
    asked = request_of(archive)
    fetched(tmp_path / "m", asked)
    assert settled(tmp_path / "m", {**archive, "archive_sha256": "3" * 64}) == asked
    assert settled(tmp_path / "m", {**archive, "archive": "https://b/b.tar", "archive_sha256": "3" * 64}) == asked
    moved = {**archive, "archive": "https://b/b.tar"}
    assert settled(tmp_path / "m", moved) == request_of(moved)
    with pytest.raises(PinError, match=f"b.tar has SHA-256 {'3' * 64}, expected is {'4' * 64}"):
        settled(tmp_path / "m", {**archive, "archive_sha256": "4" * 64})


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"files": 1, "asked": {}}', '{"files": {}}', '{"repo": "org/name"}']
)
def test_a_manifest_that_tells_nothing_is_none(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    assert settled(tmp_path, entry(revision=COMMIT)) == request_of(entry(revision=COMMIT))
    assert settled(tmp_path / "nothing", entry()) == request_of(entry())


def test_a_manifest_survives_its_file(tmp_path):
    noted = fetched(tmp_path / "m", request_of(entry(family="esmc", sha256={"config.json": "1" * 64})))
    assert json.loads((tmp_path / "m" / MANIFEST).read_text()) == noted
    assert fulfils(noted, request_of(entry(family="esmc")))


def test_pins_load_no_library_of_models_or_tables():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import plm_depth.models.pins; "
        "sys.exit(bool({'torch', 'transformers', 'pyarrow', 'huggingface_hub'} & set(sys.modules)))"
    )
    folder = str(Path(pins.__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", program, folder], check=False).returncode == 0
