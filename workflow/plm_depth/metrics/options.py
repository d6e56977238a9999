"""Options that stages of this room share: JSON values, and how corpus values are averaged and resampled."""

import argparse
import json
import math

from plm_depth import json_text
from plm_depth.metrics.corpus import DIFFUSION_GRID


def json_option(text: str) -> object:
    """Return the value of an option that is JSON."""
    try:
        return json_text.parse(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{json_text.shown(text)} is not JSON: {error}") from None


def numbers_option(text: str) -> list[float]:
    """Return a JSON list of numbers from 0 to 1, as an option gives it."""
    try:
        values = json_text.parse(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(
            f"{json_text.shown(text)} is not JSON ({error}); expected for instance [0.1, 0.5]"
        ) from None
    is_list = isinstance(values, list) and values and all(type(v) in (int, float) for v in values)
    if not is_list or not all(0 < v <= 1 and math.isfinite(v) for v in values):
        raise argparse.ArgumentTypeError(f"{json_text.shown(text)}; expected a list of numbers above 0 and up to 1")
    return [float(v) for v in values]


def add_resampling_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a corpus value: its clusters, its noise levels and its resamples; see ``resampling_of``."""
    parser.add_argument("--clusters", required=True, help="CLUSTERS table of the data set")
    parser.add_argument("--grid", type=numbers_option, default=list(DIFFUSION_GRID), help="noise levels to average")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples of the clusters")
    parser.add_argument("--seed", type=int, default=1, help="of the resamples; the same for every model")


def resampling_of(options: argparse.Namespace) -> dict[str, object]:
    """Return ``grid``, ``n_boot`` and ``seed`` as the functions of this room take them."""
    return {"grid": options.grid, "n_boot": options.resamples, "seed": options.seed}
