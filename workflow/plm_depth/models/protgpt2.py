"""ProtGPT2 on ``GPT2LMHeadModel``: its tokens are pieces of several residues, so it has no residue-level read-out.

A residue's token is the piece that holds it. States and updates are those of tokens, and a mean over residues weights a
piece by its length. No piece is the prediction of one residue: ``read_positions`` is always empty.
"""

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from plm_depth.models import attention_masks, checkpoints
from plm_depth.models.base import Batch, CheckpointError, Context, SequenceError, Tokens
from plm_depth.models.hub import HubAdapter
from plm_depth.tables import AMINO_ACIDS, write_text

SEPARATOR = "<|endoftext|>"
LINE = 60  # residues between two line breaks in the training text
RESIDUES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Settings of a published config under the library's names.
SETTINGS = (
    *("n_layer", "n_embd", "n_head", "n_positions", "vocab_size", "layer_norm_epsilon"),
    *("attn_pdrop", "embd_pdrop", "resid_pdrop"),
)
CONSTANTS = [r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"]
MATRICES = r"transformer\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.(weight|bias)"


class Pieces:
    """The byte-pair encoding of a checkpoint.

    Args:
        ids: id of every token text.
        merges: pairs of texts in the order in which they are merged.
    """

    def __init__(self, ids: dict[str, int], merges: list[tuple[str, str]]):
        from tokenizers import Tokenizer
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel

        self.ids, self.merges = ids, merges
        self._tokenizer = Tokenizer(BPE(vocab=ids, merges=merges))
        self._tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the encoding of a folder's ``vocab.json`` and ``merges.txt``.

        Raises:
            CheckpointError: a file is missing or not what its name says.
        """
        ids = checkpoints.read_json(folder / "vocab.json")
        path = folder / "merges.txt"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise CheckpointError(f"{path}: not readable ({error}); a ProtGPT2 folder has one") from error
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        if any(len(pair) != 2 for pair in merges) or not all(isinstance(i, int) for i in ids.values()):
            raise CheckpointError(f"{folder}: vocab.json or merges.txt is not a byte-pair encoding")
        if sorted(ids.values()) != list(range(len(ids))) or SEPARATOR not in ids:
            raise CheckpointError(f"{folder / 'vocab.json'}: ids 0 to {len(ids) - 1} with {SEPARATOR!r} were expected")
        try:
            return cls(ids, merges)
        except Exception as error:  # the library raises bare exceptions
            raise CheckpointError(f"{folder}: vocab.json and merges.txt do not fit each other ({error})") from error

    @classmethod
    def of_pairs(cls) -> Self:
        """Return a small encoding for untrained models: all bytes, and all pairs of amino acids."""
        from tokenizers.pre_tokenizers import ByteLevel

        texts = [*sorted(ByteLevel.alphabet()), *(a + b for a, b in product(AMINO_ACIDS, repeat=2)), SEPARATOR]
        return cls({text: i for i, text in enumerate(texts)}, list(product(AMINO_ACIDS, repeat=2)))

    def write(self, folder: Path) -> None:
        """Write ``vocab.json`` and ``merges.txt``."""
        write_text(json.dumps(self.ids, ensure_ascii=False) + "\n", folder / "vocab.json")
        write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in self.merges), folder / "merges.txt")

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids (n,), and for every character of the text the index of its token."""
        encoded = self._tokenizer.encode(text)
        of_character = np.full(len(text), -1)
        for token, (first, past) in enumerate(encoded.offsets):
            of_character[first:past] = token
        return np.array(encoded.ids), of_character


class ProtGpt2(HubAdapter):
    """ProtGPT2: GPT-2 over pieces of residues; hub folders."""

    family = "protgpt2"
    objective = "ar"
    read_offset = -1
    directions = ("n2c",)
    tokens_are_residues = False
    max_residues = 4000
    mask_id = None
    pieces: Pieces

    def __init__(self, module: torch.nn.Module, pieces: Pieces, dtype: str = "float32"):
        self.module, self.pieces, self.dtype = module.eval(), pieces, dtype
        self.n_blocks, self.d_model = module.config.n_layer, module.config.n_embd
        self.pad_id = pieces.ids[SEPARATOR]
        self.residue_ids = np.array([pieces.ids[letter] for letter in AMINO_ACIDS])
        self.vocabulary = {i: text for text, i in sorted(pieces.ids.items(), key=lambda item: item[1])}

    # ------------------------------------------------------------------------------------------------- tokens

    def encode(self, sequence: str, *, masked: np.ndarray | None = None, direction: str = "n2c") -> Tokens:
        """Return separator, line break, pieces with a line break every 60 residues, line break, separator.

        ``residue_tokens`` names the piece that holds a residue, several residues share one.

        Raises:
            SequenceError: see ``Adapter.encode``; more pieces than the model has positions.
        """
        self.check_direction(direction)
        self.check_sequence(sequence, RESIDUES)
        masked = self.check_masked(sequence, masked)
        lines = [sequence[first : first + LINE] for first in range(0, len(sequence), LINE)]
        ids, of_character = self.pieces.encode("\n" + "".join(f"{line}\n" for line in lines))
        positions = np.arange(len(sequence))
        at = of_character[1 + positions + positions // LINE]
        ids = np.concatenate([[self.pad_id], ids, [self.pad_id]])
        n_positions = self.module.config.n_positions
        if len(ids) > n_positions:
            raise SequenceError(
                f"{len(sequence)} residues are {len(ids)} tokens, but {self.family} has {n_positions} positions; lower "
                "max_length of the data set"
            )
        assert (at >= 0).all()
        return Tokens(ids, at + 1, masked, direction)

    def read_positions(self, sequence: str, tokens: Tokens, *, which: str) -> np.ndarray:
        """Return no position: no token is the prediction of one residue."""
        return np.zeros(0, np.int64)

    # --------------------------------------------------------------------------------------------------- walk

    def embed(self, batch: Batch) -> tuple[Tensor, Context]:
        """Return token and position embeddings, and the causal mask."""
        transformer = self.module.transformer
        stream = transformer.drop(transformer.wte(batch.ids) + transformer.wpe(batch.positions))
        return stream, Context({"mask": attention_masks.causal(self.module.config, stream, batch)})

    def attention_update(self, block: int, stream: Tensor, context: Context) -> Tensor:
        layer = self.module.transformer.h[block - 1]
        return layer.attn(layer.ln_1(stream), attention_mask=context["mask"])[0]

    def mlp_update(self, block: int, middle: Tensor, context: Context) -> Tensor:
        layer = self.module.transformer.h[block - 1]
        return layer.mlp(layer.ln_2(middle))

    def final_norm(self, stream: Tensor) -> Tensor:
        return self.module.transformer.ln_f(stream)

    # -------------------------------------------------------------------------------------------------- files

    @classmethod
    def files(cls, folder: Path, layout: str | None = None) -> list[Path]:
        """Return the files that ``load`` reads."""
        cls.check_layout(layout)
        return checkpoints.hub_files(folder, "vocab.json", "merges.txt")

    @classmethod
    def from_config(cls, raw: Mapping[str, object], path: Path, dtype: str) -> Self:
        """See ``HubAdapter``; the byte-pair encoding is beside the weights."""
        folder = path.parent
        pieces = Pieces.read(folder)
        expected = {
            "model_type": ("gpt2",),
            "vocab_size": (len(pieces.ids),),
            "activation_function": ("gelu_new",),
            "scale_attn_weights": (True, None),
            "scale_attn_by_inverse_layer_idx": (False, None),
            "tie_word_embeddings": (True, None),
        }
        checkpoints.check_settings(raw, expected, path, cls.family)
        sizes = {name: checkpoints.setting(raw, path, name) for name in ("n_layer", "n_embd", "n_head", "n_positions")}
        config = _config(**sizes, pieces=pieces, dropout=checkpoints.setting(raw, path, "resid_pdrop", default=0.0))
        tensors = checkpoints.read_weights(folder)
        if not any(name.startswith("transformer.") for name in tensors):  # saved from the trunk alone
            tensors = {name if name.startswith("lm_head.") else f"transformer.{name}": t for name, t in tensors.items()}
        module = checkpoints.filled(
            cls.module_of(config), tensors, folder, dtype=dtype, also=MATRICES, ignored=CONSTANTS
        )
        return cls(module, pieces, dtype)

    @classmethod
    def network(cls, config) -> torch.nn.Module:
        from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel

        return GPT2LMHeadModel(config)

    @classmethod
    def build(
        cls, *, n_blocks: int, d_model: int, n_heads: int, n_positions: int = 1024, dropout: float = 0.0, seed: int
    ) -> Self:
        """Return an untrained ProtGPT2 over a small encoding of bytes and pairs of amino acids.

        Args:
            n_blocks, d_model, n_heads: sizes; d_model a multiple of n_heads.
            n_positions: rows of the position table.
            dropout: in training mode.
            seed: of the library's random initialisation.
        Raises:
            ValueError: sizes that do not fit.
        """
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not a multiple of the number of heads, {n_heads}")
        pieces = Pieces.of_pairs()
        config = _config(
            n_layer=n_blocks,
            n_embd=d_model,
            n_head=n_heads,
            n_positions=n_positions,
            pieces=pieces,
            dropout=dropout,
        )
        return cls(cls.module_of(config, seed), pieces)

    def save(self, folder: Path | str) -> None:
        """Write the hub's layout: config, ``pytorch_model.bin`` and the byte-pair encoding."""
        folder, config = Path(folder), self.module.config
        raw = checkpoints.values_of(config, SETTINGS) | {
            "activation_function": "gelu_new",
            "architectures": ["GPT2LMHeadModel"],
            "bos_token_id": self.pad_id,
            "eos_token_id": self.pad_id,
            "model_type": "gpt2",
            "n_ctx": config.n_positions,
            "torch_dtype": "float32",
        }
        checkpoints.write_folder(folder, raw, self.module.state_dict(), "pytorch_model.bin")
        self.pieces.write(folder)


def _config(*, n_layer: int, n_embd: int, n_head: int, n_positions: int, pieces: Pieces, dropout: float):
    from transformers.models.gpt2.configuration_gpt2 import GPT2Config

    return GPT2Config(
        vocab_size=len(pieces.ids),
        bos_token_id=pieces.ids[SEPARATOR],
        eos_token_id=pieces.ids[SEPARATOR],
        n_positions=n_positions,
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        activation_function="gelu_new",
        layer_norm_epsilon=1e-5,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
