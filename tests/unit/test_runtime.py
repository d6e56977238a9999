"""Where jobs find the package, and whether they will be able to write."""

import os

import pytest

from plm_depth import runtime


@pytest.fixture
def sealed(tmp_path, monkeypatch):
    """A folder that cannot be written, to root either."""
    (tmp_path / "sealed").mkdir()
    allowed = os.access
    monkeypatch.setattr(runtime.os, "access", lambda path, mode: path.name != "sealed" and allowed(path, mode))
    return tmp_path / "sealed"


def test_the_folder_that_is_there_decides_for_those_that_will_be_made_in_it(sealed, tmp_path):
    open_one = tmp_path / "open" / "a" / "b.parquet"
    assert runtime.unwritable([str(open_one)]) is None
    assert runtime.unwritable([str(open_one), str(sealed / "a" / "b" / "c.parquet")]) == sealed
    (sealed / "a").mkdir()
    assert runtime.unwritable([str(sealed / "a" / "c.parquet")]) is None


def test_nothing_to_write_is_no_obstacle():
    assert runtime.unwritable([]) is None


def test_package_and_python_are_first_on_their_paths_once(monkeypatch, tmp_path):
    variables = {"PYTHONPATH": f"/elsewhere{os.pathsep}{tmp_path}", "PATH": "/usr/bin", "HF_HUB_OFFLINE": "0"}
    monkeypatch.setattr(runtime.os, "environ", variables)  # not that of the other tests
    for _ in range(2):
        runtime.export(str(tmp_path))
    assert variables["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/elsewhere"
    assert variables["PATH"].split(os.pathsep)[1:] == ["/usr/bin"]
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_what_is_remembered_of_a_run_is_read_again_and_rubbish_is_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runtime.remembered() is None
    runtime.remember(["--config", "a='b c'"])
    assert runtime.remembered(tmp_path) == ["--config", "a='b c'"]
    assert [path.name for path in (tmp_path / ".snakemake").iterdir()] == [runtime.LAST_RUN.name]
    for rubbish in ("", "{", "[]", '{"options": "--cores 1"}', '{"options": [1]}'):
        (tmp_path / runtime.LAST_RUN).write_text(rubbish)
        assert runtime.remembered(tmp_path) is None
