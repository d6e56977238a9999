"""ESM C on ``EsmcForMaskedLM``: updates enter the stream divided by sqrt(n_blocks / 36)."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from plm_depth.models import attention_masks, checkpoints
from plm_depth.models.alphabets import ESM_RESIDUES, ESMC_TOKENS, Alphabet
from plm_depth.models.base import Batch, CheckpointError, Context
from plm_depth.models.hub import HubAdapter

HEAD_DIM = 64  # of every published size; the .pth layout does not say
N_ROWS = 64  # of embedding and head, for 33 tokens
COMPUTED = [r"esmc\.rotary_emb\.(original_)?inv_freq"]

# Settings of a native config under the library's names.
SETTINGS = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim", "intermediate_size"),
    "initializer_range",
)
# Parts of a block in the .pth and their names in the native layout.
PTH_BLOCK = {
    "attn.layernorm_qkv.0.weight": "input_layernorm.weight",
    "attn.layernorm_qkv.0.bias": "input_layernorm.bias",
    "attn.q_ln.weight": "self_attn.q_norm.weight",
    "attn.k_ln.weight": "self_attn.k_norm.weight",
    "attn.out_proj.weight": "self_attn.o_proj.weight",
    "ffn.0.weight": "post_attention_layernorm.weight",
    "ffn.0.bias": "post_attention_layernorm.bias",
    "ffn.3.weight": "mlp.down_proj.weight",
}
# Fused matrices and the parts that their rows hold, in this order.
PTH_FUSED = {
    "attn.layernorm_qkv.1.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "ffn.1.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}
PTH_TOP = {
    "embed.weight": "esmc.embed_tokens.weight",
    "transformer.norm.weight": "esmc.norm.weight",
    **{
        f"sequence_head.{number}.{kind}": f"lm_head.{part}.{kind}"
        for number, part in ((0, "dense"), (2, "layer_norm"), (3, "decoder"))
        for kind in ("weight", "bias")
    },
}


class EsmC(HubAdapter):
    """ESM C 300M, 600M and 6B: native folders and the flat ``.pth`` of the first release."""

    family = "esmc"
    objective = "mlm"
    layouts = ("native", "pth")
    max_residues = 2046
    alphabet: ClassVar[Alphabet] = Alphabet(ESMC_TOKENS, ESM_RESIDUES + "|")  # "|" parts two chains
    mask_id = ESMC_TOKENS.index("<mask>")
    pad_id = ESMC_TOKENS.index("<pad>")

    # --------------------------------------------------------------------------------------------------- walk

    def embed(self, batch: Batch) -> tuple[Tensor, Context]:
        """Return the token embeddings, key-padding mask and rotary tables."""
        esmc = self.module.esmc
        stream = esmc.embed_tokens(batch.ids)
        cos, sin = esmc.rotary_emb(stream, batch.positions)
        mask = attention_masks.bidirectional(self.module.config, stream, batch)
        return stream, Context({"mask": mask, "cos": cos, "sin": sin})

    def attention_update(self, block: int, stream: Tensor, context: Context) -> Tensor:
        layer = self.module.esmc.layers[block - 1]
        update, _ = layer.self_attn(
            layer.input_layernorm(stream), context["mask"], position_embeddings=(context["cos"], context["sin"])
        )
        return update / layer.scaling_factor

    def mlp_update(self, block: int, middle: Tensor, context: Context) -> Tensor:
        layer = self.module.esmc.layers[block - 1]
        return layer.mlp(layer.post_attention_layernorm(middle)) / layer.scaling_factor

    def final_norm(self, stream: Tensor) -> Tensor:
        return self.module.esmc.norm(stream)

    @property
    def update_scale(self) -> float:
        return 1 / self.module.esmc.layers[0].scaling_factor

    def scale_updates(self, factor: float) -> None:
        for layer in self.module.esmc.layers:
            for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                matrix.weight.data.mul_(factor)

    # -------------------------------------------------------------------------------------------------- files

    @classmethod
    def layout_of(cls, folder: Path, layout: str | None = None) -> str:
        """Return the layout in which a folder is read: the given one, or native if there is a config.json."""
        cls.check_layout(layout)
        return layout or ("native" if (folder / "config.json").is_file() or not pth_files(folder) else "pth")

    @classmethod
    def files(cls, folder: Path, layout: str | None = None) -> list[Path]:
        """Return the files that ``load`` reads."""
        if cls.layout_of(folder, layout) == "pth":
            return [one_pth(folder)]
        return checkpoints.hub_files(folder)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        dtype: str = "float32",
        layout: str | None = None,
        n_heads: int | None = None,
    ) -> Self:
        """Return the adapter of a checkpoint folder.

        Args:
            folder: the checkpoint.
            dtype: of the matrices.
            layout: "native" (config.json and weights) or "pth" (one flat state dict, also below data/weights).
            n_heads: for "pth", which does not say; by default heads of 64 dimensions, as in every published size.
        Raises:
            CheckpointError: see ``plm_depth.models.checkpoints``.
            ValueError: an unknown layout.
        """
        folder = Path(folder)
        if cls.layout_of(folder, layout) == "pth":
            where = one_pth(folder)
            tensors = native_names(checkpoints.read_pickle(where), where)
            width = checkpoints.shape_of(tensors, "esmc.embed_tokens.weight", 2, where)[1]
            config = cls._config(
                n_blocks=checkpoints.count_layers(tensors, r"esmc\.layers\.(\d+)\."),
                d_model=width,
                n_heads=heads_of(width, n_heads, where),
                d_mlp=checkpoints.shape_of(tensors, "esmc.layers.0.mlp.gate_proj.weight", 2, where)[0],
            )
        else:
            where = folder / "config.json"
            raw = checkpoints.read_config(where)
            check_config(raw, where)
            tensors = checkpoints.read_weights(folder)
            config = cls._config(
                n_blocks=checkpoints.setting(raw, where, "num_hidden_layers"),
                d_model=checkpoints.setting(raw, where, "hidden_size"),
                n_heads=checkpoints.setting(raw, where, "num_attention_heads"),
                d_mlp=checkpoints.setting(raw, where, "intermediate_size"),
            )
        module = cls.module_of(config)
        return cls(checkpoints.filled(module, tensors, where, dtype=dtype, ignored=COMPUTED), dtype)

    @classmethod
    def network(cls, config) -> torch.nn.Module:
        from transformers.models.esmc.modeling_esmc import EsmcForMaskedLM

        return EsmcForMaskedLM(config)

    @classmethod
    def _config(cls, *, n_blocks: int, d_model: int, n_heads: int, d_mlp: int):
        from transformers.models.esmc.configuration_esmc import EsmcConfig

        return EsmcConfig(
            vocab_size=N_ROWS,
            hidden_size=d_model,
            intermediate_size=d_mlp,
            num_hidden_layers=n_blocks,
            num_attention_heads=n_heads,
            attn_implementation="sdpa",
        )

    @classmethod
    def build(cls, *, n_blocks: int, d_model: int, n_heads: int, d_mlp: int | None = None, seed: int) -> Self:
        """Return an untrained ESM C.

        Args:
            n_blocks, d_model, n_heads: sizes; d_model a multiple of 2 n_heads.
            d_mlp: width of the MLP; by default 8/3 d_model rounded up to a multiple of 256, as published.
            seed: of the library's random initialisation.
        Raises:
            ValueError: sizes that do not fit.
        """
        if d_model % (2 * n_heads):
            raise ValueError(f"d_model {d_model} is not a multiple of 2 n_heads = {2 * n_heads}: heads of even width")
        d_mlp = d_mlp or mlp_width(d_model)
        config = cls._config(n_blocks=n_blocks, d_model=d_model, n_heads=n_heads, d_mlp=d_mlp)
        return cls(cls.module_of(config, seed))

    def save(self, folder: Path | str) -> None:
        """Write the native layout: ``config.json`` and ``model.safetensors``."""
        config = self.module.config
        raw = checkpoints.values_of(config, SETTINGS) | {
            "architectures": ["EsmcForMaskedLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "classifier_dropout": 0.1,
            "dtype": "float32",
            "eos_token_id": 2,
            "hidden_act": "silu",
            "mask_token_id": self.mask_id,
            "max_position_embeddings": 2048,
            "mlp_bias": False,
            "model_type": "esmc",
            "num_key_value_heads": config.num_attention_heads,
            "pad_token_id": self.pad_id,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "tie_word_embeddings": False,
            "vocab_size": N_ROWS,
        }
        checkpoints.write_folder(Path(folder), raw, self.module.state_dict(), "model.safetensors")


def mlp_width(d_model: int) -> int:
    """Return the MLP width of ESM C and ESM3: 8/3 of the width, rounded up to a multiple of 256."""
    return -(-8 * d_model // (3 * 256)) * 256


def heads_of(width: int, n_heads: int | None, where: Path) -> int:
    """Return the number of heads given, else that of heads of 64 dimensions.

    Raises:
        CheckpointError: none is given and the width is no multiple of 64.
    """
    if n_heads is None and width % HEAD_DIM:
        raise CheckpointError(f"{where}: width {width} is not a multiple of {HEAD_DIM}; give the number of heads")
    return n_heads or width // HEAD_DIM


def check_config(raw: Mapping[str, object], where: Path) -> None:
    """Refuse a native config of another architecture.

    Raises:
        CheckpointError: naming the key, its value and what ESM C has.
    """
    expected = {
        "model_type": ("esmc",),
        "vocab_size": (N_ROWS,),
        "hidden_act": ("silu", None),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "tie_word_embeddings": (False, None),
    }
    checkpoints.check_settings(raw, expected, where, "esmc")
    rope = raw.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default" or rope.get("rope_theta", 10000.0) != 10000.0:
        raise CheckpointError(f"{where}: rope_parameters {rope}, but esmc has the default type and base 10000")


def pth_files(folder: Path) -> list[Path]:
    """Return the ``.pth`` files of a folder, or of data/weights below it, as in the published repositories."""
    return sorted([*folder.glob("*.pth"), *(folder / "data/weights").glob("*.pth")])


def one_pth(folder: Path) -> Path:
    """Return the one ``.pth`` of a folder.

    Raises:
        CheckpointError: there is none, or there are several.
    """
    return checkpoints.only_file(pth_files(folder), folder, ".pth (also below data/weights)")


def native_names(tensors: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.pth`` under the names of the native layout, fused matrices taken apart.

    Raises:
        CheckpointError: a name that ESM C does not have, or a fused matrix that cannot be parted.
    """
    native: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        block, part = block_and_part(name)
        if name in PTH_TOP:
            native[PTH_TOP[name]] = tensor
        elif block is not None and part in PTH_BLOCK:
            native[f"esmc.layers.{block}.{PTH_BLOCK[part]}"] = tensor
        elif block is not None and part in PTH_FUSED:
            parts = PTH_FUSED[part]
            if tensor.ndim != 2 or tensor.shape[0] % len(parts):
                raise CheckpointError(
                    f"{where}: {name} has shape {tuple(tensor.shape)}; {len(parts)} equal parts expected"
                )
            for target, value in zip(parts, tensor.chunk(len(parts)), strict=True):
                native[f"esmc.layers.{block}.{target}"] = value
        else:
            raise CheckpointError(f"{where}: {name} is not a tensor of ESM C; is this a checkpoint of another family?")
    return native


def block_and_part(name: str) -> tuple[int | None, str]:
    """Return block number and part of a name ``transformer.blocks.{number}.{part}``, or None and the name."""
    pieces = name.split(".", 3)
    if len(pieces) == 4 and pieces[:2] == ["transformer", "blocks"] and pieces[2].isdigit():
        return int(pieces[2]), pieces[3]
    return None, name
