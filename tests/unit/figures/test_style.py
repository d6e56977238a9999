import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from plm_depth.figures import style
from plm_depth.figures.select import Model


def model(name: str, family: str, n_blocks: int | None = 4) -> Model:
    return Model(name, name, family, "mlm", family, n_blocks=n_blocks)


def lightness(colour: str) -> float:
    return sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), to_rgb(colour), strict=True))


def test_families_take_colours_by_their_first_appearance():
    models = [model("a", "x"), model("b", "y"), model("c", "x")]
    assert style.family_colours(models) == {"x": style.OKABE_ITO[0], "y": style.OKABE_ITO[1]}


def test_a_ninth_family_takes_the_first_colour_again():
    colours = style.family_colours([model(str(i), str(i)) for i in range(9)])
    assert colours["8"] == colours["0"]
    assert len(set(colours.values())) == 8


@pytest.mark.parametrize("colour", style.OKABE_ITO)
@pytest.mark.parametrize("n", [1, 2, 6])
def test_shades_go_from_light_to_dark_and_none_repeats(colour, n):
    shades = style.shades(colour, n)
    grades = [lightness(shade) for shade in shades]
    assert len(set(shades)) == n
    assert grades == sorted(grades, reverse=True)


def test_one_model_of_a_family_has_the_plain_colour():
    assert style.model_looks([model("a", "x")])["a"][0] == style.OKABE_ITO[0]


def test_deeper_models_are_darker_whatever_their_order():
    looks = style.model_looks([model("deep", "x", 48), model("shallow", "x", 6), model("middle", "x", 30)])
    grades = [lightness(looks[name][0]) for name in ("shallow", "middle", "deep")]
    assert grades == sorted(grades, reverse=True)
    assert len({marker for _, marker in looks.values()}) == 3


def test_models_keep_their_order_where_a_depth_is_unknown():
    models = [model("b", "x", 48), model("a", "x", None)]
    assert style.by_depth(models) == models


def test_lighter_and_darker_reach_white_and_black():
    assert style.lighter("#0072B2", 1) == "#ffffff"
    assert style.darker("#0072B2", 1) == "#000000"
    assert style.lighter("#0072B2", 0) == style.darker("#0072B2", 0) == "#0072b2"


def test_effects_above_one_have_the_colour_of_one():
    norm = style.effect_norm()
    assert [float(norm(value)) for value in (0.0, 0.5, 1.0, 7.0)] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("objective", "noise_t", "words"),
    [
        ("ar", float("nan"), "autoregressive, N to C"),
        ("mlm", 0.15000000596, "masked, 15 % hidden"),
        ("diffusion", -1.0, "diffusion, mean over noise"),
        ("mlm", 0.0, "masked model, nothing hidden"),
        ("diffusion", 0.0, "diffusion model, nothing hidden"),
    ],
)
def test_panel_headings_name_objective_and_input(objective, noise_t, words):
    assert style.objective_words(objective, noise_t) == words


def test_text_width_grows_with_size_and_weight():
    assert style.text_width("width") < style.text_width("width", 12) < style.text_width("width", 12, "bold")


@given(st.text(alphabet=st.characters(codec="latin-1", categories=("L", "N", "P")) | st.just(" "), max_size=60))
def test_wrapped_text_fits_and_loses_no_letter(text):
    width = 1.0
    wrapped = style.wrapped(text, width)
    assert wrapped.replace("\n", "").replace(" ", "") == text.replace(" ", "")
    assert all(style.text_width(line) <= width for line in wrapped.split("\n") if len(line) > 1)


def test_text_is_broken_at_blanks_then_hyphens_and_never_at_a_no_break_space():
    assert style.wrapped("ESM-2 650M, 33\N{NO-BREAK SPACE}blocks", 1.0) == "ESM-2 650M,\n33\N{NO-BREAK SPACE}blocks"
    assert style.wrapped("ProGen2-medium_something", 1.0).split("\n")[0] == "ProGen2-"
    assert style.wrapped("short", 1.0) == "short"
