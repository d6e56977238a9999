"""Where a block is silenced in the skip effects that claims and figures rest on."""

# By objective: what travels to positions that keep the block, in the direction in which the model reads.
PRIMARY_POSITIONS = {"ar": "prefix", "mlm": "other", "diffusion": "other"}
