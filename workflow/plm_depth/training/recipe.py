"""The recipe of one small model: every choice that can change its weights, checked before anything is read."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

from plm_depth import json_text

DTYPES = ("float32", "bfloat16")


class RecipeError(ValueError):
    """A recipe that cannot be followed: names the key, what it was and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained and how.

    Attributes:
        model: id of the model, as it stands in tables and paths.
        family: family of the model registry; it alone decides the objective.
        n_blocks, d_model, n_heads: sizes.
        sizes: further sizes of the family (for instance rotary_dim, n_positions), passed on as they are.
        steps: optimiser steps.
        tokens_per_batch: tokens of one batch, specials and padding included.
        learning_rate: peak of the learning rate.
        warmup: steps of the linear warm-up; after it a cosine that ends at zero.
        weight_decay: decoupled weight decay of the matrices (never of biases and norms).
        clip_norm: largest norm of the gradient.
        seed: seed of weights, order, crops, masks, directions and noise levels.
        mask_rate: share of residues selected in masked language modelling, and hidden when a masked model is validated;
            for a diffusion model it is that of the first stage and its validation does not depend on it.
        mlm_steps: for diffusion models, how many of the steps come first as masked language modelling with the same
            network; the published models were trained in these two stages.
        initializer_range: standard deviation of the random initial matrices; None: what the family's library takes,
            which is made for widths of about a thousand and slow to leave at a width of 64.
        crop: longest piece of a protein in residues; None: the longest protein that the family was made for.
        validate_every: optimiser steps between two points of the curve; there is one at 0 and one at the end besides.
        dtype: dtype of the matrix products; the weights and their updates stay float32.
    """

    model: str
    family: str
    n_blocks: int
    d_model: int
    n_heads: int
    steps: int
    tokens_per_batch: int
    learning_rate: float
    seed: int
    validate_every: int
    warmup: int = 0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    mask_rate: float = 0.15
    mlm_steps: int = 0
    initializer_range: float | None = None
    crop: int | None = None
    dtype: str = "float32"
    sizes: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("model", "family"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise RecipeError(f"recipe: {name} must be a name, not {value!r}")
        for name in ("n_blocks", "d_model", "n_heads", "steps", "tokens_per_batch", "validate_every"):
            _whole(name, getattr(self, name), at_least=1)
        for name in ("seed", "warmup", "mlm_steps"):
            _whole(name, getattr(self, name), at_least=0)
        if self.initializer_range is not None:
            _number("initializer_range", self.initializer_range, above=0.0, up_to=1.0)
        if self.crop is not None:
            _whole("crop", self.crop, at_least=1)
        _number("learning_rate", self.learning_rate, above=0.0, up_to=1.0)
        _number("clip_norm", self.clip_norm, above=0.0, up_to=math.inf)
        _number("mask_rate", self.mask_rate, above=0.0, up_to=1.0)
        if self.weight_decay != 0:
            _number("weight_decay", self.weight_decay, above=0.0, up_to=math.inf)
        if self.dtype not in DTYPES:
            raise RecipeError(f"recipe: dtype is {self.dtype!r}; allowed: {', '.join(DTYPES)}")
        for name in ("warmup", "mlm_steps"):
            if getattr(self, name) > self.steps:
                raise RecipeError(
                    f"recipe: {name} is {getattr(self, name)}, more than the {self.steps} steps; lower it"
                )
        if not isinstance(self.sizes, Mapping):
            raise RecipeError(f"recipe: sizes must be a mapping of names to sizes, not {self.sizes!r}")
        doubled = sorted({"n_blocks", "d_model", "n_heads"} & set(self.sizes))
        if doubled:
            raise RecipeError(
                f"recipe: sizes holds {', '.join(doubled)}, which are keys of the recipe itself; move them"
            )

    @property
    def model_sizes(self) -> dict[str, object]:
        """Return every size of the model, as the model registry takes them."""
        return {"n_blocks": self.n_blocks, "d_model": self.d_model, "n_heads": self.n_heads, **self.sizes}

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of step ``step`` (0..steps - 1): linear up to the peak, then half a cosine to 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def as_dict(self) -> dict[str, object]:
        """Return the recipe as plain values; ``parse_recipe`` of it gives the recipe again."""
        return {**asdict(self), "sizes": dict(self.sizes)}


def parse_recipe(values: object) -> Recipe:
    """Return the recipe that a mapping of plain values describes.

    Raises:
        RecipeError: an unknown key (with the nearest known one), a missing key, or a value out of its range.
    """
    if not isinstance(values, Mapping):
        raise RecipeError(f"recipe: expected a mapping of keys to values, found {type(values).__name__}")
    known = [f.name for f in fields(Recipe)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise RecipeError(f"recipe: unknown key {key!r}; {hint}known: {', '.join(known)}")
    required = [f.name for f in fields(Recipe) if f.default is MISSING and f.default_factory is MISSING]
    missing = [key for key in required if key not in values]
    if missing:
        raise RecipeError(f"recipe: missing {', '.join(missing)}")
    return Recipe(**values)


def read_recipe(given: str) -> Recipe:
    """Return the recipe given as JSON text (it begins with a brace), or as the path of a JSON file.

    Raises:
        RecipeError: the file is missing, the text is not JSON, or as ``parse_recipe``; a file is named.
    """
    is_text = given.lstrip().startswith(("{", "["))
    where = "" if is_text else f"{given[:200]}: "
    try:
        return parse_recipe(json_text.parse(given if is_text else Path(given).read_text(encoding="utf-8")))
    except OSError as error:
        raise RecipeError(f"{where}cannot be read ({error.strerror}); expected a recipe: JSON, or its file") from error
    except RecipeError as error:
        raise RecipeError(f"{where}{error}") from error
    except ValueError as error:  # not JSON, not UTF-8, or not even a path
        raise RecipeError(f"{where}recipe: not JSON ({error}); expected a recipe, or the path of its file") from error


def _whole(name: str, value: object, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise RecipeError(f"recipe: {name} is {value!r}; expected a whole number of at least {at_least}")


def _number(name: str, value: object, *, above: float, up_to: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= up_to or math.isinf(value):
        limit = f" and at most {up_to:g}" if math.isfinite(up_to) else ""
        raise RecipeError(f"recipe: {name} is {value!r}; expected a number above {above:g}{limit}")
