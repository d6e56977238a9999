"""ProtBERT on ``BertForMaskedLM``: a post-norm network, in which "update" and "lens" mean something else.

A post-norm block normalises the stream after each addition: mid = N(h + A(h)), h' = N'(mid + F(mid)). The updates of
this adapter are what the stream really changes by, a = mid - h and m = h' - mid, so that h' = h + a + m still holds.
They carry the norms' rescaling beside the branches: keep that in mind when their sizes are compared with those of
pre-norm families. The read-out is the head alone: no final norm exists, every h was just normalised by its own block.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from plm_depth.models import checkpoints
from plm_depth.models.alphabets import PROTBERT_RESIDUES, PROTBERT_TOKENS, Alphabet
from plm_depth.models.base import Adapter, Batch, CheckpointError, Context, Tokens
from plm_depth.models.untrained import of_depth, untrained
from plm_depth.tables import AMINO_ACIDS, write_text

# Tensors of pre-training that no logit of a masked residue depends on.
UNUSED = [
    r"bert\.pooler\.dense\.(weight|bias)",
    r"cls\.seq_relationship\.(weight|bias)",
    r"bert\.embeddings\.position_ids",
]
AS_X = str.maketrans("UZOB", "XXXX")  # as the family prepares its sequences


class ProtBert(Adapter):
    """ProtBERT and ProtBERT-BFD; hub folders."""

    family = "protbert"
    objective = "mlm"
    layouts = ("hub",)
    max_residues = 2046
    head = "cls"
    alphabet: ClassVar[Alphabet] = Alphabet(PROTBERT_TOKENS, PROTBERT_RESIDUES)
    mask_id = PROTBERT_TOKENS.index("[MASK]")
    pad_id = PROTBERT_TOKENS.index("[PAD]")

    def __init__(self, module: torch.nn.Module, dtype: str = "float32"):
        self.module, self.dtype = module.eval(), dtype
        self.n_blocks, self.d_model = module.config.num_hidden_layers, module.config.hidden_size
        self.max_residues = min(type(self).max_residues, module.config.max_position_embeddings - 2)
        self.residue_ids = np.array([self.alphabet.id_of[letter] for letter in AMINO_ACIDS])
        self.vocabulary = dict(enumerate(self.alphabet.tokens))

    # ------------------------------------------------------------------------------------------------- tokens

    def encode(self, sequence: str, *, masked: np.ndarray | None = None, direction: str = "none") -> Tokens:
        """Return ``[CLS]`` residues ``[SEP]``; U, Z, O and B are read as X. See ``Adapter.encode``."""
        self.check_direction(direction)
        self.check_sequence(sequence, self.alphabet.residues)
        masked = self.check_masked(sequence, masked)
        residues = self.alphabet.encode(sequence.translate(AS_X))
        residues[masked] = self.mask_id
        ids = np.concatenate([[self.alphabet.id_of["[CLS]"]], residues, [self.alphabet.id_of["[SEP]"]]])
        assert len(ids) == len(sequence) + 2
        return Tokens(ids, np.arange(1, len(sequence) + 1), masked, direction)

    # --------------------------------------------------------------------------------------------------- walk

    def embed(self, batch: Batch) -> tuple[Tensor, Context]:
        """Return h_0 (after the norm on the embeddings) and the key-padding mask."""
        from transformers.masking_utils import create_bidirectional_mask

        stream = self.module.bert.embeddings(input_ids=batch.ids)
        mask = create_bidirectional_mask(
            config=self.module.config, inputs_embeds=stream, attention_mask=batch.valid.long()
        )
        return stream, Context({"mask": mask})

    def attention_update(self, block: int, stream: Tensor, context: Context) -> Tensor:
        middle, _ = self.module.bert.encoder.layer[block - 1].attention(stream, context["mask"])
        return middle - stream

    def mlp_update(self, block: int, middle: Tensor, context: Context) -> Tensor:
        return self.module.bert.encoder.layer[block - 1].feed_forward_chunk(middle) - middle

    def read_out(self, stream: Tensor) -> Tensor:
        return self.module.cls(stream)

    def library_logits(self, batch: Batch) -> Tensor:
        return self.module(input_ids=batch.ids, attention_mask=batch.valid.long()).logits

    def fresh_module(self, seed: int) -> torch.nn.Module:
        return _module(self.module.config, seed)

    def shallower(self, n_blocks: int) -> Self:
        return type(self)(_module(of_depth(self.module.config, n_blocks), None), self.dtype)

    # -------------------------------------------------------------------------------------------------- files

    @classmethod
    def files(cls, folder: Path, layout: str | None = None) -> list[Path]:
        """Return the files that ``load`` reads."""
        cls.check_layout(layout)
        vocabulary = [folder / "vocab.txt"] if (folder / "vocab.txt").is_file() else []
        return [folder / "config.json", *vocabulary, *checkpoints.weight_files(folder, with_index=True)]

    @classmethod
    def load(cls, folder: Path | str, *, dtype: str = "float32", layout: str | None = None) -> Self:
        """Return the adapter of a hub folder; a ``vocab.txt`` beside the weights must be the one known here.

        Raises:
            CheckpointError: see ``plm_depth.models.checkpoints``.
            ValueError: an unknown layout.
        """
        cls.check_layout(layout)
        folder = Path(folder)
        path = folder / "config.json"
        raw = checkpoints.read_config(path)
        expected = {
            "model_type": ("bert",),
            "vocab_size": (len(PROTBERT_TOKENS),),
            "hidden_act": ("gelu",),
            "position_embedding_type": ("absolute", None),
            "is_decoder": (False, None),
            "tie_word_embeddings": (True, None),
        }
        checkpoints.check_settings(raw, expected, path, cls.family)
        vocabulary = folder / "vocab.txt"
        if vocabulary.is_file() and tuple(vocabulary.read_text(encoding="utf-8").split()) != PROTBERT_TOKENS:
            raise CheckpointError(f"{vocabulary}: other tokens, or in another order, than ProtBERT's")
        tensors = checkpoints.read_weights(folder)
        module = _module(cls._config(raw, path), None)
        checkpoints.cast_parameters(module, dtype)
        checkpoints.fill(module, tensors, folder, ignored=UNUSED)
        module.requires_grad_(False)
        return cls(module, dtype)

    @classmethod
    def _config(cls, raw: Mapping[str, object], path: Path):
        from transformers.models.bert.configuration_bert import BertConfig

        def of(name: str, default: object = None) -> object:
            return checkpoints.setting(raw, path, name, default=default)

        return BertConfig(
            vocab_size=of("vocab_size"),
            hidden_size=of("hidden_size"),
            num_hidden_layers=of("num_hidden_layers"),
            num_attention_heads=of("num_attention_heads"),
            intermediate_size=of("intermediate_size"),
            max_position_embeddings=of("max_position_embeddings"),
            type_vocab_size=of("type_vocab_size", 2),
            layer_norm_eps=of("layer_norm_eps", 1e-12),
            hidden_dropout_prob=of("hidden_dropout_prob", 0.0),
            attention_probs_dropout_prob=of("attention_probs_dropout_prob", 0.0),
            initializer_range=of("initializer_range", 0.02),
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
        return cls(_module(cls._config(raw, Path("sizes")), seed))

    def save(self, folder: Path | str) -> None:
        """Write the hub's layout: config, ``pytorch_model.bin`` and the vocabulary.

        Raises:
            ValueError: weights that are not float32.
        """
        if self.dtype != "float32":
            raise ValueError(f"this model is {self.dtype}; load it in float32 to save it")
        folder, config = Path(folder), self.module.config
        folder.mkdir(parents=True, exist_ok=True)
        raw = {
            "architectures": ["BertForMaskedLM"],
            "attention_probs_dropout_prob": config.attention_probs_dropout_prob,
            "hidden_act": "gelu",
            "hidden_dropout_prob": config.hidden_dropout_prob,
            "hidden_size": config.hidden_size,
            "initializer_range": config.initializer_range,
            "intermediate_size": config.intermediate_size,
            "layer_norm_eps": config.layer_norm_eps,
            "max_position_embeddings": config.max_position_embeddings,
            "model_type": "bert",
            "num_attention_heads": config.num_attention_heads,
            "num_hidden_layers": config.num_hidden_layers,
            "type_vocab_size": config.type_vocab_size,
            "vocab_size": config.vocab_size,
        }
        checkpoints.write_json(raw, folder / "config.json")
        checkpoints.write_pickle(self.module.state_dict(), folder / "pytorch_model.bin")
        write_text("\n".join(PROTBERT_TOKENS) + "\n", folder / "vocab.txt")


def _module(config, seed: int | None) -> torch.nn.Module:
    from transformers.models.bert.modeling_bert import BertForMaskedLM

    return untrained(lambda: BertForMaskedLM(config), seed)
