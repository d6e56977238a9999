"""plm-depth: how protein language models use their depth.

The words of this package, used everywhere with one meaning:

residual stream   what a token carries between blocks, before any final norm; ``h_0`` enters block 1.
layer k           blocks passed, 0..n_blocks: the stream after k blocks.
block k           takes layer k - 1 to layer k, 1..n_blocks.
update            what is added to the stream, after any scale: attention update ``a``, MLP update ``m``, ``u = a + m``.
read-out          final norm and the whole head: stream to logits; at an inner layer, the logit lens.
relative depth    layer / n_blocks for states, (block - 1/2) / n_blocks for blocks; derived, never stored.
position          0-based place of a residue in the sequence, from the N terminus; token: the model's own index.
view              one way of showing a sequence to a model: reading direction, noise level (share masked), mask draw.
null model        the same measurement on a network or input that cannot know proteins: ``randinit``, ``shuffle_w``,
                  ``shuffle_seq``; the model itself is ``trained``.

Rooms, in the order of the data: ``sequences``, ``models``, ``training``, ``activations``, ``metrics``, ``figures``.
Every arrow between them is a file whose columns stand in ``plm_depth.tables``.
"""

__version__ = "0.1.0"
