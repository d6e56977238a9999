"""What a model costs when it ends after each of its layers: parameters, bytes and operations a token.

python -m plm_depth.activations.savings --card P --tokens 256 --output savings.parquet
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from plm_depth.activations.cost import Size, forward_cost
from plm_depth.progress import start_log
from plm_depth.tables import SAVINGS, TableError, write_table

log = logging.getLogger("activations.savings")

N_TOKENS = 256
ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class SavingsError(ValueError):
    """A card from which costs cannot be told."""


def savings(card: Mapping[str, object], *, n_tokens: int = N_TOKENS) -> dict[str, object]:
    """Return the columns of SAVINGS, a row a layer, for the model of a card.

    Operations are those of ``activations.cost``. The width of the MLP follows from the parameters of one block; where a
    block holds a mixture of experts all of them are counted, though a token passes some only.

    Args:
        card: see ``models.describe``.
        n_tokens: length of the protein, which sets the share of attention.
    Raises:
        SavingsError: a card that was written before depths were counted, or a length below 1.
    """
    if n_tokens < 1:
        raise SavingsError(f"--tokens {n_tokens}: expected at least 1")
    counts = card.get("n_parameters_by_depth")
    if not isinstance(counts, list) or len(counts) != card["n_blocks"] + 1:
        raise SavingsError(
            f"the card of {card['model_id']} does not tell the parameters of each depth; describe the checkpoint again"
        )
    width, n_blocks = card["d_model"], card["n_blocks"]
    layers = np.arange(n_blocks + 1)
    flops = []
    for layer in layers.tolist():
        per_block = (counts[layer] - counts[0]) / max(layer, 1)
        d_mlp = max(0.0, per_block - 4 * width**2) / (2 * width)  # four attention matrices, two of the MLP
        size = Size(layer, width, round(d_mlp), is_causal=card["objective"] == "ar")
        flops.append(forward_cost(size, n_tokens).flops / n_tokens)
    return {
        "model_id": card["model_id"],
        "n_blocks": n_blocks,
        "layer": layers,
        "n_parameters": counts,
        "weight_bytes": np.array(counts) * ITEMSIZE[card["dtype"]],
        "flops_per_token": np.array(flops),
        "n_tokens": n_tokens,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.activations.savings", description=__doc__.split("\n")[0])
    parser.add_argument("--card", type=Path, required=True, help="card of the checkpoint (models.describe)")
    parser.add_argument("--tokens", type=int, default=N_TOKENS, help="tokens of a protein (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="the table (SAVINGS)")
    options = parser.parse_args(argv)
    start_log(log.name)

    from plm_depth.models.base import CheckpointError
    from plm_depth.models.describe import read_card

    try:
        write_table(savings(read_card(options.card), n_tokens=options.tokens), SAVINGS, options.output)
    except (CheckpointError, SavingsError, TableError, OSError) as error:
        raise SystemExit(f"savings: {error}") from error


if __name__ == "__main__":
    main()
