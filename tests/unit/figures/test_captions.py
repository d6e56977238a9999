"""The report's captions: one for every figure, valid, and honest about toys."""

import pkgutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from docutils.core import publish_parts
from jinja2 import Environment, StrictUndefined

import plm_depth.figures
from plm_depth.figures import entropy, select, settling, skip_matrices, verdicts
from plm_depth.figures.style import effect_norm
from plm_depth.metrics.verdicts import CLAIMS

ROOT = Path(plm_depth.figures.__file__).parents[3]
FIGURES = sorted(
    path.stem
    for path in Path(plm_depth.figures.__file__).parent.glob("*.py")
    if "STAGE = FigureStage(" in path.read_text(encoding="utf-8")
)
CAPTIONS = {path.stem: path for path in (ROOT / "workflow" / "report").glob("*.rst")}
TOY = {"model": "toy", "family": "f", "recipe": {"n_blocks": 4, "d_model": 64, "steps": 10}}
OWN = {"model": "mine_", "family": "f", "path": "/data/mine"}


class Snakemake:
    """What a caption sees."""

    wildcards = SimpleNamespace(dataset="d")

    def __init__(self, config):
        self.config = config


def config_of(*models) -> dict:
    return {
        "study": "my_study",
        "models": list(models),
        "sources": [{"name": "s", "url": "s.fasta"}],
        "datasets": [{"name": "d", "source": "s", "size": 10}],
    }


CONFIGS = {
    "mini": yaml.safe_load((ROOT / "config" / "mini.yaml").read_text()),
    "paper": yaml.safe_load((ROOT / "config" / "config.yaml").read_text()),
    "toys and others": config_of("published", TOY, OWN),
    "own": config_of(OWN),
}


def page(name: str, config: dict) -> str:
    """Return a caption as Snakemake's report makes it, refusing every docutils warning and every unknown variable."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    text = environment.from_string(CAPTIONS[name].read_text()).render(
        snakemake=Snakemake(config), categories=[], files=[]
    )
    strict = {"halt_level": 2, "report_level": 2}
    return publish_parts(text, writer="html", settings_overrides=strict)["html_body"]


def test_every_figure_has_a_caption_and_every_caption_a_module():
    modules = {name for _, name, _ in pkgutil.iter_modules(plm_depth.figures.__path__)}
    assert set(CAPTIONS) <= modules | {"workflow"}
    assert set(FIGURES) <= set(CAPTIONS)
    assert len(FIGURES) >= 10


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", sorted(CAPTIONS))
def test_captions_are_valid_for_every_kind_of_study(name, config):
    assert len(page(name, CONFIGS[config])) > 300


@pytest.mark.parametrize("name", [*FIGURES, "workflow"])
def test_captions_warn_of_toys_exactly_where_there_are_some(name):
    assert "no evidence about real" in page(name, CONFIGS["toys and others"]).replace("\n", " ")
    assert "toy" not in page(name, CONFIGS["own"]).lower()
    assert "no evidence about real" in page(name, CONFIGS["mini"]).replace("\n", " ")
    assert "no evidence" not in page(name, CONFIGS["paper"])


def test_the_front_page_tells_study_data_and_models():
    text = page("workflow", CONFIGS["toys and others"])
    for word in ("my_study", "10 proteins", "published", "toy", "4 blocks", "mine_"):
        assert word in text
    held_out = config_of(TOY)
    held_out["datasets"][0]["part"] = "held_out"
    assert "no similarity cluster with the training proteins" in page("workflow", held_out)
    assert "no similarity cluster with the training proteins" not in page("workflow", CONFIGS["own"])


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "training_loss"])
def test_captions_of_measurements_speak_of_the_untrained_network_and_the_interval(name):
    text = page(name, CONFIGS["own"])
    assert "ntrained" in text and "similarity" in text and "autoregressive" in text


def test_the_caption_of_contributions_says_that_they_fall_in_untrained_networks_too():
    assert "In an untrained pre-norm network, too" in page("contributions", CONFIGS["own"]).replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("skip_matrices", "In untrained networks, too, effects among late blocks are smaller"),
        ("output_change", "there, too, late blocks may change it less than early ones"),
        ("block_influence", "Untrained networks show that, too"),
        ("verdicts", "beyond the margin, but an untrained network shows it, too"),
    ],
)
def test_captions_of_effects_say_what_speaks_against_them(name, phrase):
    text = page(name, CONFIGS["own"]).replace("\n", " ")
    assert phrase in text and "off-distribution" in text


def test_the_caption_of_the_verdicts_explains_every_outcome_and_claim():
    text = page("verdicts", CONFIGS["own"]).replace("\n", " ")
    for word, _ in verdicts.OUTCOMES.values():
        assert f"<strong>{word}</strong>:" in text
    for claim, statement in CLAIMS.items():
        assert claim in text
        assert claim in ("K3", "K4") or f"{claim}: {statement}" in text


def test_the_caption_of_the_matrices_says_when_a_cell_is_grey_and_where_the_scale_ends():
    text = page("skip_matrices", CONFIGS["own"]).replace("\n", " ")
    assert skip_matrices.FLOOR_SHARE == 0.5 and "in more than half of the proteins" in text
    assert effect_norm().vmax == 1 and "The colour scale ends at 1;" in text


def test_captions_give_the_constants_that_the_figures_use():
    assert f"{entropy.UNIFORM_NATS:.3f}" in page("entropy", CONFIGS["own"])
    assert f"{entropy.BACKGROUND_NATS:g} nats" in page("entropy", CONFIGS["own"]).replace("\n", " ")
    for row in settling.ROWS[:2]:
        assert row.quantity.removeprefix("settled_") in page("settling", CONFIGS["own"])
    assert f"{100 * select.PRIMARY_NOISE:g} %" in page("lens_kl", CONFIGS["own"])
