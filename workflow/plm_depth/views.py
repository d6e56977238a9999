"""Views: the ways in which one protein is shown to a model (reading direction, share masked, mask draw)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from plm_depth.randomness import generator

MEAN_OVER_NOISE = -1.0  # noise_t of corpus rows that average the views of a diffusion grid


@dataclass(frozen=True)
class View:
    """One way of showing a protein.

    Attributes:
        direction: "n2c" or "c2n" for autoregressive models, else "none".
        noise_t: share of residues hidden, 0 for a clean input, NaN for autoregressive models.
        mask_draw: which draw of the mask, from 0; -1 where nothing is masked.
    """

    direction: str
    noise_t: float
    mask_draw: int

    @property
    def reads(self) -> str:
        """Return which positions are read: "next" (autoregressive), "masked", or "visible" (clean input: a control)."""
        if math.isnan(self.noise_t):
            return "next"
        return "masked" if self.noise_t > 0 else "visible"


def views_of(objective: str, inputs: Mapping[str, Mapping[str, object]]) -> list[View]:
    """Return the views of one objective, in a fixed order.

    Args:
        objective: "ar", "mlm" or "diffusion".
        inputs: the ``inputs`` section of the config: for "ar" ``directions``; for the others ``noise`` (shares in
            (0, 1]), ``draws`` and ``clean``.

    Raises:
        ValueError: a value that is not possible; it is named.
        KeyError, TypeError: a key is missing, or something has another shape.
    """
    wanted = inputs[objective]
    if objective == "ar":
        return [View(direction, math.nan, -1) for direction in wanted["directions"]]
    noise, draws = [float(t) for t in wanted["noise"]], wanted["draws"]
    if wrong := [t for t in noise if not 0 < t <= 1]:
        raise ValueError(f"noise {wrong[0]:g}; expected shares above 0 and up to 1")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws {draws!r}; expected a whole number of at least 1")
    clean = [View("none", 0.0, -1)] if wanted["clean"] else []
    return clean + [View("none", t, draw) for t in noise for draw in range(draws)]


def mask_of(view: View, n_residues: int, seed: int, sequence_id: str) -> np.ndarray:
    """Return which residues are hidden, (n_residues,) bool.

    One uniform number per position and draw; the round(t n) smallest are hidden (at least one), so that the masks of
    one draw are nested over t and do not depend on batch, shard or order.
    """
    masked = np.zeros(n_residues, bool)
    if view.reads == "masked":
        uniform = generator(seed, "mask", sequence_id, view.mask_draw).random(n_residues)
        n_masked = max(1, round(view.noise_t * n_residues))
        masked[np.argsort(uniform, kind="stable")[:n_masked]] = True
    return masked
