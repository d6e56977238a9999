"""Two panels for every model: where they stand."""

import pytest

from plm_depth.figures.panel_pairs import BETWEEN, FOOT, PanelPairs
from plm_depth.figures.sheet import MARGIN, Sheet
from plm_depth.figures.style import WIDTH
from unit.figures import invented


def pairs_of(models, caption: str = "name", more: str = "", least_width: float = 0.0) -> tuple[PanelPairs, Sheet]:
    pairs = PanelPairs(models, lambda model, width: (caption, more), least_width=least_width)
    return pairs, Sheet(width=pairs.width, body=pairs.body, title="title", key=(), notes=[])


@pytest.mark.parametrize("models", [invented.MINI[:1], invented.MINI[:2], invented.MINI, invented.LARGE[:12]], ids=len)
def test_every_model_has_two_panels_within_the_sheet_and_none_overlap(models):
    pairs, sheet = pairs_of(models)
    places = [(model.model, x, y) for model, x, y in pairs.places(sheet, "layer", models)]
    assert sorted(name for name, *_ in places) == sorted(model.model for model in models)
    assert pairs.width <= WIDTH + 1e-9
    wide = 2 * pairs.panel + BETWEEN
    for _, x, y in places:
        assert x >= MARGIN and x + wide <= pairs.width - MARGIN
        assert sheet.top < y and y + pairs.panel + FOOT <= sheet.top + pairs.body + 1e-9
    for n, (_, x, y) in enumerate(places):
        for _, other_x, other_y in places[n + 1 :]:
            assert abs(x - other_x) >= wide or abs(y - other_y) >= pairs.panel + FOOT


def test_a_longer_caption_and_a_line_below_the_name_need_room():
    short, long, two = (pairs_of(invented.MINI[:1], *texts)[0].body for texts in (("a",), ("a\nb",), ("a", "b")))
    assert short < long == two


def test_the_sheet_is_at_least_as_wide_as_its_colour_scales():
    assert pairs_of(invented.MINI[:1], least_width=6.0)[0].width == 2 * MARGIN + 6.0
