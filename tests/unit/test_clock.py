"""Times in the future are found and set to the present; all others stay as they are."""

import os
from pathlib import Path

import pytest

from plm_depth import clock

NOW = 1.8e9


@pytest.fixture
def tree(tmp_path) -> Path:
    for name, changed in {
        "old": NOW - 1e6,
        "skewed": NOW + 5,
        "deep/ahead": NOW + 7e4,
        "deep/down/ahead": NOW + 7e7,
    }.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (changed, changed))
    for folder in (tmp_path / "tree", tmp_path / "tree" / "deep", tmp_path / "tree" / "deep" / "down"):
        os.utime(folder, (NOW, NOW))
    return tmp_path / "tree"


def test_only_what_is_ahead_is_set_to_the_present(tree):
    wanted = {tree / "deep" / "ahead", tree / "deep" / "down" / "ahead"}
    assert set(clock.ahead([tree], now=NOW)) == wanted
    assert set(clock.settle([tree], now=NOW)) == wanted
    assert {path.stat().st_mtime for path in wanted} == {NOW}
    assert (tree / "old").stat().st_mtime == NOW - 1e6 and (tree / "skewed").stat().st_mtime == NOW + 5
    assert clock.ahead([tree], now=NOW) == []


def test_folders_count_too_and_links_are_not_followed(tree, tmp_path):
    os.utime(tree / "deep", (NOW + 1e5, NOW + 1e5))
    (tmp_path / "link").symlink_to(tree)
    os.utime(tmp_path / "link", (NOW, NOW), follow_symlinks=False)
    assert tree / "deep" in clock.ahead([tree], now=NOW)
    assert clock.ahead([tmp_path / "link"], now=NOW) == []


def test_a_path_that_is_not_there_counts_for_nothing(tmp_path):
    assert clock.settle([tmp_path / "nothing"]) == []


def test_what_cannot_be_changed_stays_and_is_not_returned(tree, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError

    monkeypatch.setattr(clock.os, "utime", refuse)
    assert clock.settle([tree], now=NOW) == []
    assert (tree / "deep" / "ahead").stat().st_mtime == NOW + 7e4
