"""What a model is shown of a protein, besides masks: plain words, so that checking a config loads no numpy or torch."""

CONDITIONS = ("seq", "seq_struct", "struct")  # the sequence, with its structure, the structure alone

# The parts of ``models.base.Structure`` that a BACKBONE table tells.
BACKBONE_TELLS = ("three_di", "coordinates")
