"""Attribution and the tuned lens as sections of a config: which jobs and figures they bring, and none without them."""

from pathlib import Path

import pytest
import yaml

from small_study import CONFIG, copy_repository, planned

pytestmark = pytest.mark.workflow

ATTRIBUTION = {"models": ["esm2_tiny"], "size": 5, "shard_size": 3, "steps": 2, "positions": 1, "reference": 2}
TUNED_LENS = {"models": ["progen2_tiny"], "steps": 2}
OWN = ("attribution", "tuned_lens")
FIGURES = ["attribution_map", "erasure", "gate_attribution", "tuned_lens"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    return copy_repository(tmp_path_factory.mktemp("study"))


def jobs(repository: Path, **sections: object) -> list[str]:
    """Return the jobs of these sections that a study with them plans."""
    (repository / "own.yaml").write_text(yaml.safe_dump({**yaml.safe_load(CONFIG), **sections}), encoding="utf-8")
    return [
        job
        for job in planned(repository, configfile="own.yaml")
        if job.split()[0].endswith(OWN) or job.split()[0].removeprefix("draw_") in FIGURES
    ]


def test_sections_measure_their_models_and_draw_their_figures(repository):
    assert jobs(repository, attribution=ATTRIBUTION, tuned_lens=TUNED_LENS) == sorted(
        [
            "fit_tuned_lens dataset=mini model=progen2_tiny",
            "reduce_tuned_lens dataset=mini model=progen2_tiny",
            "measure_attribution dataset=mini model=esm2_tiny shard=0",
            "measure_attribution dataset=mini model=esm2_tiny shard=1",
            "reduce_attribution dataset=mini model=esm2_tiny",
            *(f"draw_{figure} dataset=mini" for figure in FIGURES),
        ]
    )


def test_a_figure_whose_method_is_not_measured_is_not_drawn(repository):
    found = jobs(repository, attribution={**ATTRIBUTION, "methods": ["erasure"]})
    assert [job for job in found if job.startswith("draw")] == ["draw_erasure dataset=mini"]


def test_without_the_sections_there_is_nothing_of_them(repository):
    assert jobs(repository) == []
