"""Digests of code: a formula counts, a comment does not, and what a stage imports counts too."""

import shutil

import pytest

from plm_depth import code_digest


@pytest.fixture
def package(tmp_path, monkeypatch):
    copy = tmp_path / "plm_depth"
    shutil.copytree(code_digest.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "metrics" / "one.py").write_text('"""Doc."""\nfrom plm_depth.metrics import two\n\nx = 1\n')
    (copy / "metrics" / "two.py").write_text(
        'from plm_depth import progress\n\n\ndef f():\n    """Doc."""\n    return 2\n'
    )
    (copy / "metrics" / "three.py").write_text("y = 3\n")
    monkeypatch.setattr(code_digest, "PACKAGE", copy)
    return copy


def digest() -> str:
    code_digest._read.cache_clear()
    return code_digest.code_of("metrics.one")


def test_a_reworded_docstring_or_comment_changes_nothing(package):
    before = digest()
    (package / "metrics" / "one.py").write_text('"""Another."""\n# why\nfrom plm_depth.metrics import two\n\n\nx = 1\n')
    two = package / "metrics" / "two.py"
    two.write_text(two.read_text().replace("Doc.", "Other words."))
    assert digest() == before


@pytest.mark.parametrize("module", ["one", "two"])
def test_a_changed_formula_changes_the_digest_of_all_that_import_it(package, module):
    before = digest()
    path = package / "metrics" / f"{module}.py"
    path.write_text(path.read_text().replace("x = 1", "x = 5").replace("return 2", "return 5"))
    assert digest() != before


def test_what_is_not_imported_does_not_count_nor_does_progress(package):
    before = digest()
    (package / "metrics" / "three.py").write_text("y = 4\n")
    (package / "progress.py").write_text("clock = None\n")
    assert digest() == before


def test_an_unknown_stage_is_an_error(package):
    with pytest.raises(FileNotFoundError):
        code_digest.code_of("metrics.nothing")


def test_jobs_take_the_digests_of_their_run_and_a_run_takes_none(package, monkeypatch):
    monkeypatch.setenv(code_digest.HANDED_ON, '{"metrics.one": "of another run"}')
    of_run = code_digest.within_run(is_job=False)("metrics.one")
    assert of_run == digest()
    monkeypatch.setattr(code_digest, "code_of", lambda stage: "worked out")
    in_job = code_digest.within_run(is_job=True)
    assert (in_job("metrics.one"), in_job("metrics.two")) == (of_run, "worked out")
