"""ProtBERT on ``BertForMaskedLM``: a post-norm network, in which "update" and "lens" mean something else.

A post-norm block normalises the stream after each addition: mid = N(h + A(h)), h' = N'(mid + F(mid)). The updates of
this adapter are what the stream really changes by, a = mid - h and m = h' - mid, so that h' = h + a + m still holds.
They carry the norms' rescaling beside the branches: keep that in mind when their sizes are compared with those of
pre-norm families. The read-out is the head alone: no final norm exists, every h was just normalised by its own block.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from plm_depth.models import attention_masks, checkpoints
from plm_depth.models.alphabets import PROTBERT_RESIDUES, PROTBERT_TOKENS, Alphabet
from plm_depth.models.base import Batch, CheckpointError, Context
from plm_depth.models.hub import HubAdapter
from plm_depth.tables import write_text

# Tensors of pre-training that no logit of a masked residue depends on.
UNUSED = [
    r"bert\.pooler\.dense\.(weight|bias)",
    r"cls\.seq_relationship\.(weight|bias)",
    r"bert\.embeddings\.position_ids",
]
AS_X = dict.fromkeys("UZOB", "X")  # as the family prepares its sequences
# Settings that the network is made from, under the library's names, and what is taken for those that may be absent.
SETTINGS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    "max_position_embeddings",
)
DEFAULTS = {
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
}


class ProtBert(HubAdapter):
    """ProtBERT and ProtBERT-BFD; hub folders."""

    family = "protbert"
    objective = "mlm"
    max_residues = 2046
    head = "cls"
    alphabet: ClassVar[Alphabet] = Alphabet(PROTBERT_TOKENS, PROTBERT_RESIDUES, read_as=AS_X)
    frame = ("[CLS]", "[SEP]")
    mask_id = PROTBERT_TOKENS.index("[MASK]")
    pad_id = PROTBERT_TOKENS.index("[PAD]")

    def __init__(self, module: torch.nn.Module, dtype: str = "float32"):
        super().__init__(module, dtype)
        self.max_residues = min(type(self).max_residues, module.config.max_position_embeddings - 2)

    # --------------------------------------------------------------------------------------------------- walk

    def embed(self, batch: Batch) -> tuple[Tensor, Context]:
        """Return h_0 (after the norm on the embeddings) and the key-padding mask."""
        stream = self.module.bert.embeddings(input_ids=batch.ids)
        return stream, Context({"mask": attention_masks.bidirectional(self.module.config, stream, batch)})

    def attention_update(self, block: int, stream: Tensor, context: Context) -> Tensor:
        middle, _ = self.module.bert.encoder.layer[block - 1].attention(stream, context["mask"])
        return middle - stream

    def mlp_update(self, block: int, middle: Tensor, context: Context) -> Tensor:
        return self.module.bert.encoder.layer[block - 1].feed_forward_chunk(middle) - middle

    # -------------------------------------------------------------------------------------------------- files

    @classmethod
    def files(cls, folder: Path, layout: str | None = None) -> list[Path]:
        """Return the files that ``load`` reads."""
        cls.check_layout(layout)
        return checkpoints.hub_files(folder, *(["vocab.txt"] if (folder / "vocab.txt").is_file() else []))

    @classmethod
    def from_config(cls, raw: Mapping[str, object], path: Path, dtype: str) -> Self:
        """See ``HubAdapter``; a ``vocab.txt`` beside the weights must be the one known here."""
        expected = {
            "model_type": ("bert",),
            "vocab_size": (len(PROTBERT_TOKENS),),
            "hidden_act": ("gelu",),
            "position_embedding_type": ("absolute", None),
            "is_decoder": (False, None),
            "tie_word_embeddings": (True, None),
        }
        checkpoints.check_settings(raw, expected, path, cls.family)
        vocabulary = path.with_name("vocab.txt")
        if vocabulary.is_file() and tuple(vocabulary.read_text(encoding="utf-8").split()) != PROTBERT_TOKENS:
            raise CheckpointError(f"{vocabulary}: other tokens, or in another order, than ProtBERT's")
        tensors = checkpoints.read_weights(path.parent)
        module = cls.module_of(cls._config(raw, path))
        return cls(checkpoints.filled(module, tensors, path.parent, dtype=dtype, ignored=UNUSED), dtype)

    @classmethod
    def network(cls, config) -> torch.nn.Module:
        from transformers.models.bert.modeling_bert import BertForMaskedLM

        return BertForMaskedLM(config)

    @classmethod
    def _config(cls, raw: Mapping[str, object], path: Path):
        from transformers.models.bert.configuration_bert import BertConfig

        return BertConfig(
            **checkpoints.settings(raw, path, SETTINGS, DEFAULTS),
            hidden_act="gelu",
            pad_token_id=cls.pad_id,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )

    @classmethod
    def build(
        cls,
        *,
        n_blocks: int,
        d_model: int,
        n_heads: int,
        d_mlp: int | None = None,
        n_positions: int = 2048,
        dropout: float = 0.0,
        seed: int,
    ) -> Self:
        """Return an untrained ProtBERT.

        Args:
            n_blocks, d_model, n_heads: sizes; d_model a multiple of n_heads.
            d_mlp: width of the MLP, 4 d_model by default.
            n_positions: rows of the position table; the published models have 40000.
            dropout: hidden dropout in training mode.
            seed: of the library's random initialisation.
        Raises:
            ValueError: sizes that do not fit.
        """
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not a multiple of the number of heads, {n_heads}")
        raw = {
            "vocab_size": len(PROTBERT_TOKENS),
            "hidden_size": d_model,
            "num_hidden_layers": n_blocks,
            "num_attention_heads": n_heads,
            "intermediate_size": d_mlp or 4 * d_model,
            "max_position_embeddings": n_positions,
            "hidden_dropout_prob": dropout,
        }
        return cls(cls.module_of(cls._config(raw, Path("sizes")), seed))

    def save(self, folder: Path | str) -> None:
        """Write the hub's layout: config, ``pytorch_model.bin`` and the vocabulary."""
        folder = Path(folder)
        raw = checkpoints.values_of(self.module.config, (*SETTINGS, *DEFAULTS))
        raw |= {"architectures": ["BertForMaskedLM"], "hidden_act": "gelu", "model_type": "bert"}
        checkpoints.write_folder(folder, raw, self.module.state_dict(), "pytorch_model.bin")
        write_text("\n".join(PROTBERT_TOKENS) + "\n", folder / "vocab.txt")
