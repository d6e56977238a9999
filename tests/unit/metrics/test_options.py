"""Options that the stages of the metrics share."""

import argparse

import pytest

from plm_depth.metrics.corpus import DIFFUSION_GRID
from plm_depth.metrics.options import add_resampling_options, json_option, numbers_option, resampling_of


def options_of(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_resampling_options(parser)
    return parser.parse_args(["--clusters", "clusters.parquet", *words])


def test_the_options_of_a_corpus_value_are_those_of_the_functions():
    assert resampling_of(options_of()) == {"grid": list(DIFFUSION_GRID), "n_boot": 2000, "seed": 1}
    given = options_of("--grid", "[0.5, 1]", "--resamples", "7", "--seed", "3")
    assert resampling_of(given) == {"grid": [0.5, 1.0], "n_boot": 7, "seed": 3}
    assert given.clusters == "clusters.parquet"


def test_a_value_that_is_no_json_is_refused():
    assert json_option('{"k": [1]}') == {"k": [1]}
    with pytest.raises(argparse.ArgumentTypeError, match=r"'\{k' is not JSON"):
        json_option("{k")


@pytest.mark.parametrize("text", ["", "[]", "0.1", '["a"]', "[0]", "[1.5]", "[true]", "[NaN]"])
def test_a_grid_is_a_list_of_levels(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        numbers_option(text)
    assert numbers_option("[0.1, 1]") == [0.1, 1.0]
