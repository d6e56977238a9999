"""One list of a study's models for figures and verdicts: order and names from the config, sizes from the cards.

python -m plm_depth.models.listing --models JSON --cards P... --output P
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from plm_depth import json_text
from plm_depth.models.describe import read_card
from plm_depth.tables import write_text


def listing(models: Sequence[Mapping[str, object]], cards: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Return the models with ``n_blocks``, ``d_model`` and ``n_parameters`` of their cards, in the order given.

    Raises:
        ValueError: a model without a card, or whose card is of another family.
    """
    by_model = {card["model_id"]: card for card in cards}
    rows = []
    for model in models:
        card = by_model.get(model["model"])
        if card is None:
            raise ValueError(f"no card of model {model['model']!r} among {', '.join(map(str, by_model)) or 'none'}")
        if card["family"] != model["family"]:
            raise ValueError(
                f"model {model['model']!r} is {model['family']!r} in the config, {card['family']!r} by its card"
            )
        rows.append({**model, **{key: card[key] for key in ("n_blocks", "d_model", "n_parameters")}})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.models.listing", description=__doc__.split("\n")[0])
    parser.add_argument("--models", required=True, help="JSON list of models of the config")
    parser.add_argument("--cards", nargs="+", type=Path, required=True, help="their cards")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    options = parser.parse_args(argv)

    from plm_depth.models.base import CheckpointError

    try:
        models = json_text.parse(options.models)
        if not isinstance(models, list) or not all(
            isinstance(m, dict) and {"model", "family"} <= set(m) for m in models
        ):
            raise ValueError(
                f"--models: {json_text.shown(options.models)}; expected a JSON list of objects with model and family"
            )
        rows = listing(models, [read_card(path) for path in options.cards])
    except (CheckpointError, ValueError, OSError) as error:
        raise SystemExit(f"models.listing: {error}") from None
    write_text(json.dumps(rows, indent=1) + "\n", options.output)


if __name__ == "__main__":
    main()
