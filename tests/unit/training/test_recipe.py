"""Recipes: what is accepted, what is refused and how it is said, and the learning rate."""

import json
from itertools import pairwise

import pytest

from plm_depth.training.recipe import Recipe, RecipeError, parse_recipe, read_recipe

MINIMAL = {
    "model": "toy",
    "family": "esm2",
    "n_blocks": 2,
    "d_model": 32,
    "n_heads": 4,
    "steps": 10,
    "tokens_per_batch": 256,
    "learning_rate": 1e-3,
    "seed": 1,
    "validate_every": 5,
}


def recipe(**changes: object) -> Recipe:
    return parse_recipe({**MINIMAL, **changes})


def test_a_minimal_recipe_gets_the_published_mask_rate_and_plain_defaults():
    made = recipe()
    assert (made.mask_rate, made.dtype, made.warmup, made.crop) == (0.15, "float32", 0, None)
    assert made.model_sizes == {"n_blocks": 2, "d_model": 32, "n_heads": 4}


def test_further_sizes_are_passed_to_the_family():
    assert recipe(sizes={"rotary_dim": 4}).model_sizes["rotary_dim"] == 4


def test_a_recipe_survives_being_written_and_read():
    made = recipe(sizes={"rotary_dim": 4}, crop=100, weight_decay=0.0)
    assert parse_recipe(json.loads(json.dumps(made.as_dict()))) == made


def test_a_misspelt_key_is_refused_with_the_nearest_known_one():
    with pytest.raises(RecipeError, match=r"unknown key 'n_block'; did you mean 'n_blocks'\?"):
        recipe(n_block=2)


def test_a_key_like_no_other_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"unknown key 'zzz'; known: model, family"):
        recipe(zzz=2)


@pytest.mark.parametrize("key", sorted(MINIMAL))
def test_every_missing_key_is_named(key):
    with pytest.raises(RecipeError, match=f"missing {key}"):
        parse_recipe({k: v for k, v in MINIMAL.items() if k != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", ""),
        ("family", 3),
        ("n_blocks", 0),
        ("n_blocks", 2.0),
        ("d_model", True),
        ("steps", 0),
        ("tokens_per_batch", "256"),
        ("validate_every", 0),
        ("seed", -1),
        ("seed", None),
        ("warmup", -1),
        ("warmup", 11),
        ("mlm_steps", 11),
        ("mlm_steps", 0.5),
        ("initializer_range", 0),
        ("crop", 0),
        ("learning_rate", 0.0),
        ("learning_rate", 2.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "fast"),
        ("weight_decay", -0.1),
        ("weight_decay", float("inf")),
        ("clip_norm", 0),
        ("mask_rate", 0.0),
        ("mask_rate", 1.5),
        ("mask_rate", True),
        ("dtype", "float16"),
        ("sizes", [1]),
        ("sizes", {"n_blocks": 3}),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(key, value):
    with pytest.raises(RecipeError, match=key):
        recipe(**{key: value})


def test_something_that_is_no_mapping_is_refused():
    with pytest.raises(RecipeError, match="expected a mapping of keys to values, found list"):
        parse_recipe([1])


def test_a_recipe_is_read_from_text_and_from_a_file(tmp_path):
    text = json.dumps(MINIMAL)
    path = tmp_path / "recipe.json"
    path.write_text(text)
    assert read_recipe(text) == read_recipe(str(path)) == recipe()


def test_a_bad_recipe_file_is_named(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({**MINIMAL, "steps": -1}))
    with pytest.raises(RecipeError, match=r"recipe\.json: recipe: steps is -1; expected a whole number of at least 1"):
        read_recipe(str(path))


def test_text_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="not JSON"):
        read_recipe("{model: toy}")
    path = tmp_path / "recipe.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"recipe\.json: .*not JSON"):
        read_recipe(str(path))


def test_a_missing_recipe_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.json: cannot be read"):
        read_recipe(str(tmp_path / "none.json"))


def test_the_learning_rate_climbs_in_a_line_and_falls_along_half_a_cosine():
    made = recipe(steps=110, warmup=10, learning_rate=0.1)
    rates = [made.learning_rate_at(step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.01 * k for k in range(1, 11)])
    assert rates[10] == pytest.approx(0.1)
    assert rates[60] == pytest.approx(0.05)  # half way down
    assert 0 < rates[-1] < 1e-4
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_without_warm_up_the_first_step_has_the_peak_rate():
    assert recipe(learning_rate=0.1).learning_rate_at(0) == pytest.approx(0.1)
    assert recipe(learning_rate=0.1, warmup=10).learning_rate_at(9) == pytest.approx(0.1)
