"""The only room that knows the device: batches, one forward pass, cached activations."""

# Of the tables that ``activations.extract`` writes. Raise it by hand when a change can alter a number: it is a setting
# of the GPU stages, so that a reworded comment costs no forward pass. Readable without importing torch.
VERSION = 2

# The same for the tables that ``activations.effects`` writes.
EFFECTS_VERSION = 2

# The same for the tables that ``activations.embed`` writes.
EMBED_VERSION = 2

# The same for the table that ``activations.ablation`` writes.
ABLATION_VERSION = 2

# The same for the tables that ``activations.variants`` writes.
FITNESS_VERSION = 2

# The same for the tables that ``activations.attribution`` writes.
ATTRIBUTION_VERSION = 1

# The same for what ``activations.tuned_lens`` writes.
TUNED_LENS_VERSION = 1

# The same for the table that ``activations.structure_heads`` writes.
STRUCTURE_HEADS_VERSION = 1
