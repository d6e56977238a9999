"""The columns of ``tables.COMMON`` that every table of this room has: which model, and how it was shown a protein."""

from typing import Protocol

from plm_depth.activations.nulls import Null
from plm_depth.models.base import Adapter
from plm_depth.views import View


class Protein(Protocol):
    """What has an identifier and residues."""

    sequence_id: str
    sequence: str


def of_model(adapter: Adapter, model_id: str) -> dict[str, object]:
    """Return what is constant over a model, JSON values."""
    return {
        "model_id": model_id,
        "family": adapter.family,
        "objective": adapter.objective,
        "n_blocks": adapter.n_blocks,
        "d_model": adapter.d_model,
        "dtype": adapter.dtype,
        "readout": "seq",
    }


def of_null(null: Null, condition: str = "seq") -> dict[str, object]:
    """Return which network it was, and what it was shown of a protein."""
    return {"null_model": null.null_model, "null_seed": null.seed, "condition": condition}


def of_view(view: View) -> dict[str, object]:
    """Return how a protein was shown."""
    return {"direction": view.direction, "noise_t": view.noise_t, "mask_draw": view.mask_draw}


def of_protein(
    adapter: Adapter, model_id: str, null: Null, view: View, protein: Protein, condition: str = "seq"
) -> dict[str, object]:
    """Return all of ``tables.COMMON`` and ``tables.PER_SEQUENCE`` for the rows of one protein."""
    common = of_model(adapter, model_id) | of_null(null, condition) | of_view(view)
    return common | {"sequence_id": protein.sequence_id, "n_residues": len(protein.sequence)}
