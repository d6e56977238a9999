"""The checkpoint folder: the family's official layout, a model card, and how the model was trained."""

import json
from collections.abc import Mapping
from pathlib import Path

CARD_NAME = "README.md"
TRAINING_NAME = "plm_depth_training.json"


def model_card(about: Mapping[str, object]) -> str:
    """Return the README of a checkpoint: what it is, what it was trained on, and what it is no evidence for."""
    recipe, final = about["recipe"], about["final"]
    return f"""# {recipe["model"]}

A toy model: {recipe["family"]} with {recipe["n_blocks"]} blocks of width {recipe["d_model"]}, trained from scratch
on a handful of proteins: {about["n_train_proteins"]} proteins of {about["n_train_residues"]} residues,
{recipe["steps"]} steps, {about["n_residues_seen"]} residues with repeats.
Published models of this family saw many millions of proteins.

It shows that a workflow runs. It is no evidence about real protein language models: not about this family, its
training objective, or its depth. It shares no weight with any published model.

| held-out proteins | nats per residue |
| --- | --- |
| this model | {final["valid_nats"]:.4f} |
| composition of the training proteins, no context | {final["valid_reference"]:.4f} |

The recipe, the library versions and the final losses are in `{TRAINING_NAME}`; the other files are the layout that
this family is published in.
"""


def write_notes(about: Mapping[str, object], folder: Path) -> None:
    """Write the model card and the training notes beside the weights; the same input gives the same bytes.

    Weights become as readable as the card: some libraries write them for the user alone, whatever the umask.
    """
    card = folder / CARD_NAME
    card.write_text(model_card(about), encoding="utf-8")
    (folder / TRAINING_NAME).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(card.stat().st_mode)
