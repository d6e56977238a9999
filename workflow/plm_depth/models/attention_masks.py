"""Which tokens a token reads, as the library's attention takes it: padding is never read."""

from torch import Tensor

from plm_depth.models.base import Batch


def bidirectional(config, stream: Tensor, batch: Batch) -> Tensor | None:
    """Return the mask of attention to all tokens of a row; None where that is all of the batch.

    Args:
        config: of the library's module.
        stream: (n_rows, n_tokens, d_model), for its dtype and device.
        batch: the tokens.
    """
    from transformers import masking_utils

    return masking_utils.create_bidirectional_mask(
        config=config, inputs_embeds=stream, attention_mask=batch.valid.long()
    )


def causal(config, stream: Tensor, batch: Batch) -> Tensor | None:
    """Return the mask of attention to the tokens before and the token itself; see ``bidirectional``."""
    from transformers import masking_utils

    return masking_utils.create_causal_mask(
        config=config,
        inputs_embeds=stream,
        attention_mask=batch.valid.long(),  # never None: jumping positions would be taken for packed sequences
        past_key_values=None,
        position_ids=batch.positions,
    )
