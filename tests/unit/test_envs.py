"""Every pin of every environment file agrees with the lock."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ENVS = Path(__file__).parents[2] / "envs"
CONDA_NAMES = {"pytorch": "torch"}


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def locked() -> dict[str, set[str]]:
    lock: dict[str, set[str]] = {}
    for requirement in requirements((ENVS / "requirements.lock").read_text()):
        lock.setdefault(requirement.name, set()).add(str(requirement.specifier).removeprefix("=="))
    return lock


def disagreements(wanted: list[Requirement], lock: dict[str, set[str]]) -> list[str]:
    lines = []
    for requirement in wanted:
        versions = lock.get(CONDA_NAMES.get(requirement.name, requirement.name), set())
        if not versions or not all(requirement.specifier.contains(version) for version in versions):
            lines.append(f"{requirement}: the lock has {sorted(versions) or 'nothing'}")
    return lines


def conda_pins(path: Path) -> list[Requirement]:
    found = []
    for entry in yaml.safe_load(path.read_text())["dependencies"]:
        if isinstance(entry, dict):
            found += [Requirement(line) for line in entry["pip"]]
        elif (name := re.match(r"[\w-]+", entry).group()) not in ("python", "pip"):
            found.append(Requirement(re.sub(r"\s*=+\s*", "==", entry, count=1) if "=" in entry else name))
    return found


def test_the_lock_holds_every_direct_requirement_at_its_version():
    wanted = requirements((ENVS / "requirements.in").read_text())
    assert len(wanted) >= 8
    assert disagreements(wanted, locked()) == []


@pytest.mark.parametrize("path", sorted(ENVS.glob("*.yaml")), ids=lambda p: p.name)
def test_conda_environments_pin_what_pip_pins(path):
    assert disagreements(conda_pins(path), locked()) == []
    direct = {str(r) for r in requirements((ENVS / "requirements.in").read_text())}
    assert {str(r) for r in conda_pins(path)} == direct


def test_a_pin_that_moved_is_noticed():
    lines = disagreements([Requirement("polars==9.9.9"), Requirement("absent==1.0")], locked())
    assert lines[0].startswith("polars==9.9.9: the lock has") and "nothing" in lines[1]


def test_no_pin_names_a_local_build():
    assert "+cpu" not in (ENVS / "requirements.in").read_text() + (ENVS / "requirements.lock").read_text()
