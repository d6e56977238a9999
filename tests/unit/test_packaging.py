"""What others install, run and list this workflow by: container, research object, catalogue."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest
import yaml

from plm_depth import __version__

ROOT = Path(__file__).parents[2]
PROFILE = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"


# ----------------------------------------------------------------------------------------------------------------
# The container


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, (name, rest), lines that go on joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    return [tuple(line.split(None, 1)) for line in lines]


def test_the_container_has_the_python_of_the_environments_and_is_slim():
    (image,) = [rest for name, rest in instructions() if name == "FROM"]
    conda = yaml.safe_load((ROOT / "envs" / "main.yaml").read_text())["dependencies"]
    (python,) = [word for word in conda if isinstance(word, str) and word.startswith("python ")]
    assert image == f"python:{python.removeprefix('python =')}-slim"


def test_nothing_after_the_system_packages_runs_as_root():
    found = instructions()
    users = [i for i, (name, _) in enumerate(found) if name == "USER"]
    assert users and all(found[i][1] not in ("root", "0") for i in users)
    as_root = [rest for name, rest in found[: users[0]] if name == "RUN"]
    assert len(as_root) == 1 and as_root[0].startswith("apt-get update")
    assert "make setup" not in as_root[0], "the environment belongs to the user"


def test_the_environment_is_made_from_the_lock_before_the_workflow_is_copied():
    found = instructions()
    setup = next(i for i, (name, rest) in enumerate(found) if name == "RUN" and rest.startswith("make setup"))
    copied = [rest.split()[-2:] for name, rest in found[:setup] if name == "COPY"]
    assert ["Makefile", "./"] in copied and ["envs", "envs"] in copied
    assert ["COPY", "--chown=plm . ."] in [list(pair) for pair in found[setup:]]
    makefile = (ROOT / "Makefile").read_text()
    (install,) = re.findall(r"pip install .*", makefile)
    assert "-r envs/requirements.in -c envs/requirements.lock" in install
    assert not [rest for name, rest in found if name == "RUN" and "pip install" in rest], "by make setup alone"


def test_what_the_container_copies_is_there_and_what_a_run_makes_is_not_copied():
    for name, rest in instructions():
        if name == "COPY":
            for source in [word for word in shlex.split(rest) if not word.startswith("--")][:-1]:
                assert (ROOT / source).exists(), source
    assert instructions()[-1] == ("CMD", '["make", "study"]')
    assert re.search(r"^study:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_container_leaves_out_what_git_leaves_out():
    def as_docker_says_it(pattern: str) -> str:
        name = pattern.removeprefix("!").rstrip("/")
        anywhere = "" if name.startswith("/") else "**/"  # git: without a slash in front, in every folder
        return "!" * pattern.startswith("!") + anywhere + name.lstrip("/")

    of_git = (ROOT / ".gitignore").read_text().split()
    assert {".venv/", ".snakemake/", "/results/*", "/logs/", "/resources/checkpoints/"} <= set(of_git)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored == [".git", *map(as_docker_says_it, of_git)]


def variables() -> dict[str, str]:
    """Return what ENV sets, in all its lines."""
    words = [word for name, rest in instructions() if name == "ENV" for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def test_a_clone_mounted_over_the_workflow_does_not_hide_the_environment():
    found = instructions()
    (folder,) = [rest for name, rest in found if name == "WORKDIR"]
    venv = PurePosixPath(variables()["VENV"])
    assert venv.is_absolute() and not venv.is_relative_to(folder)
    assert variables()["PATH"].split(":")[0] == f"{venv}/bin"
    names = [name if name != "RUN" else rest.split()[0] for name, rest in found]
    assert names.index("ENV") < names.index("make"), "the environment is made where it is looked for"
    (as_root,) = [rest for name, rest in found[: names.index("USER")] if name == "RUN"]
    assert {folder, str(venv)} <= set(re.search(r"install --directory --owner=plm ([^&]*)", as_root)[1].split())
    header = (ROOT / "Dockerfile").read_text().split("\nFROM")[0]
    runs = [line for line in header.splitlines() if "docker run" in line]
    assert runs and all(f'--user "$(id -u):$(id -g)" -v "$PWD:{folder}" plm-depth ' in line for line in runs)


def test_a_user_who_is_not_in_the_image_has_a_name_a_place_for_caches_and_folders_to_write_to():
    assert variables()["HOME"] == "/tmp" and variables()["USER"] == "plm"
    assert variables()["PIP_NO_CACHE_DIR"] == "1", "or the wheels are in the image twice"
    last = [rest for name, rest in instructions() if name == "RUN"][-1]
    assert {".", "results", "resources"} <= set(re.search(r"chmod a\+rwx ([^&]*)", last)[1].split())


def test_a_signal_reaches_snakemake_below_make():
    found = dict(instructions())
    assert json.loads(found["ENTRYPOINT"]) == ["tini", "-g", "--"] and found["STOPSIGNAL"] == "SIGINT"
    assert " tini " in next(rest for name, rest in instructions() if name == "RUN")


def test_an_environment_of_an_earlier_build_is_not_set_up_again_when_the_container_starts():
    found = instructions()
    copied = found.index(("COPY", "--chown=plm . ."))
    touched = [rest for name, rest in found[copied:] if name == "RUN"]
    assert touched and 'touch "$VENV/.ready"' in touched[0]
    assert "READY = $(VENV)/.ready\n" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("where", ["inside the folder", "elsewhere"])
def test_make_uses_an_environment_wherever_it_lies_and_sets_it_up_when_its_pins_are_newer(tmp_path, where):
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / "envs", folder / "envs")
    shutil.copy(ROOT / "Makefile", folder)
    venv = folder / ".venv" if where == "inside the folder" else tmp_path / "venv"
    venv.mkdir()
    (venv / ".ready").touch()
    bare = {name: value for name, value in os.environ.items() if name not in ("VENV", "MAKEFLAGS", "MAKELEVEL")}
    more = {} if where == "inside the folder" else {"VENV": str(venv)}

    def would_run(target: str) -> list[str]:
        command = ["make", "--dry-run", target]
        done = subprocess.run(command, cwd=folder, env=bare | more, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    for target in ("study", "check"):
        lines = [line for line in would_run(target) if not line.startswith("echo ")]
        assert lines and all(f'PATH="{venv}/bin:$PATH" ' in line for line in lines), lines
    os.utime(venv / ".ready", (0, 0))
    assert any("pip install" in line for line in would_run("study"))


# ----------------------------------------------------------------------------------------------------------------
# The research object


@pytest.fixture(scope="module")
def entities() -> dict[str, dict]:
    crate = json.loads((ROOT / "ro-crate-metadata.json").read_text(encoding="utf-8"))
    assert crate["@context"] == "https://w3id.org/ro/crate/1.1/context"
    found = {entity["@id"]: entity for entity in crate["@graph"]}
    assert len(found) == len(crate["@graph"]), "an id that stands twice"
    return found


def test_the_crate_says_that_it_is_a_workflow_and_what_its_main_file_is(entities):
    about = entities["ro-crate-metadata.json"]
    assert about["about"] == {"@id": "./"} and {"@id": PROFILE} in about["conformsTo"]
    root = entities["./"]
    for key in ("name", "description", "datePublished", "license", "mainEntity", "hasPart", "creator", "author"):
        assert root[key], key
    assert entities[root["publisher"]["@id"]]["@type"] == "Organization"
    assert entities["README.md"]["about"] == {"@id": "./"}
    main = entities[root["mainEntity"]["@id"]]
    assert set(main["@type"]) == {"File", "SoftwareSourceCode", "ComputationalWorkflow"}
    for key in ("name", "programmingLanguage", "license", "creator", "version"):
        assert main[key], key
    language = entities[main["programmingLanguage"]["@id"]]
    assert language["@type"] == "ComputerLanguage" and language["name"] == "Snakemake"
    pins = (ROOT / "envs" / "requirements.in").read_text()
    assert f"snakemake=={language['version']}\n" in pins
    assert main["version"] == root["version"] == __version__


def test_every_file_of_the_crate_is_there_and_every_reference_has_an_entity(entities):
    for name, entity in entities.items():
        kinds = entity["@type"] if isinstance(entity["@type"], list) else [entity["@type"]]
        if "File" in kinds:
            assert (ROOT / name).is_file(), name
        elif kinds == ["Dataset"]:
            assert (ROOT / name).is_dir(), name

    def references(value: object) -> list[str]:
        if isinstance(value, dict):
            return (
                [value["@id"]] if set(value) == {"@id"} else [r for inner in value.values() for r in references(inner)]
            )
        return [r for inner in value for r in references(inner)] if isinstance(value, list) else []

    for entity in entities.values():
        for reference in references([value for key, value in entity.items() if key != "@id"]):
            assert reference in entities or reference.startswith("https://"), reference
    parts = {part["@id"] for part in entities["./"]["hasPart"]}
    files = {name for name, entity in entities.items() if "File" in entity["@type"]}
    assert files <= parts


def test_every_file_tells_its_format_and_no_list_stands_for_one_value(entities):
    """What RO-Crate 1.1 recommends, as its validator (roc-validator on PyPI) found it missing."""
    for name, entity in entities.items():
        if "File" in entity["@type"]:
            assert re.fullmatch(r"[a-z]+/[a-z0-9.+-]+", entity["encodingFormat"]), name
        for key, value in entity.items():
            assert not (isinstance(value, list) and len(value) == 1), (name, key)


# ----------------------------------------------------------------------------------------------------------------
# The catalogue


def test_the_catalogue_finds_what_its_standard_usage_asks_for():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}
    assert all(isinstance(usage["software-stack-deployment"][way], bool) for way in ("conda", "apptainer"))
    assert isinstance(usage["report"], bool)
    for path in ("workflow/Snakefile", "config/README.md", "README.md", "LICENSE"):
        assert (ROOT / path).is_file()
    readme = (ROOT / "README.md").read_text().lower()
    assert "snakemake" in readme and "workflow" in readme
    assert {path.suffix for path in (ROOT / "workflow" / "rules").iterdir() if path.is_file()} == {".smk"}
    has_conda = [path for path in (ROOT / "workflow" / "rules").glob("*.smk") if "conda:" in path.read_text()]
    assert usage["software-stack-deployment"]["conda"] == bool(has_conda)


def test_version_and_licence_are_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["license"] == "MIT"
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{__version__}"' in project and 'license = "MIT"' in project
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
