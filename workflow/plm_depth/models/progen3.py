"""ProGen3 on ``MixtralForCausalLM``: a sparse mixture of experts, queries, keys and values clamped after projection.

The published tensors are renamed, the packed experts parted, and the embedding of the first sequence, a constant for
single proteins, is added to that of the tokens.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from plm_depth.models import attention_masks, checkpoints
from plm_depth.models.alphabets import PROGEN3_RESIDUES, PROGEN3_TOKENS, Alphabet
from plm_depth.models.base import Batch, CheckpointError, Context, Tokens
from plm_depth.models.hub import HubAdapter
from plm_depth.models.precision import outside_autocast

EXPERTS = r"model\.layers\.\d+\.mlp\.experts\.(gate_up|down)_proj"
# Settings that the published config and the library's have under one name.
SETTINGS = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    *("num_experts_per_tok", "max_position_embeddings", "rms_norm_eps", "initializer_range"),
)
N_SEQUENCES = 512  # rows of the published embedding of sequence numbers, of which only row 0 is used here


class ProGen3(HubAdapter):
    """ProGen3: sequential blocks without biases; N-to-C and C-to-N reading."""

    family = "progen3"
    objective = "ar"
    is_mixture = True
    read_offset = -1
    directions = ("n2c", "c2n")
    max_residues = 8190
    alphabet: ClassVar[Alphabet] = Alphabet(PROGEN3_TOKENS, PROGEN3_RESIDUES)
    frame = ("1", "2")
    mask_id = None
    pad_id = 0

    # ------------------------------------------------------------------------------------------------- tokens

    def encode(self, sequence: str, *, masked: np.ndarray | None = None, direction: str | None = None) -> Tokens:
        """Return ``<bos>`` ``1`` residues ``2`` ``<eos>``, for "c2n" with 2, reversed residues, 1; see ``Adapter``."""
        middle = super().encode(sequence, masked=masked, direction=direction)
        start, end = (self.alphabet.id_of[text] for text in ("<bos>", "<eos>"))
        ids = np.concatenate([[start], middle.ids, [end]])
        return replace(middle, ids=ids, residue_tokens=middle.residue_tokens + 1)

    def parse(self, protein: str) -> tuple[str | None, dict[str, object]]:
        """Return the sequence, or None of a protein with spans to fill in, which this adapter does not read."""
        return (None if "[GLM]" in protein else protein), {}

    def batch_of(self, inputs: Mapping[str, Tensor]) -> Batch:
        batch = super().batch_of(inputs)
        return Batch(batch.ids, batch.valid, {"position_ids": inputs["position_ids"].long()})

    # --------------------------------------------------------------------------------------------------- walk

    def embed(self, batch: Batch) -> tuple[Tensor, Context]:
        """Return the token embeddings, the causal mask and the rotary tables."""
        model = self.module.model
        stream = model.embed_tokens(batch.ids)
        mask = attention_masks.causal(self.module.config, stream, batch)
        cos, sin = model.rotary_emb(stream, batch.positions)
        return stream, Context({"mask": mask, "cos": cos, "sin": sin})

    def attention_update(self, block: int, stream: Tensor, context: Context) -> Tensor:
        layer = self.module.model.layers[block - 1]
        update, _ = layer.self_attn(
            hidden_states=layer.input_layernorm(stream),
            position_embeddings=(context["cos"], context["sin"]),
            attention_mask=context["mask"],
        )
        return update

    def mlp_update(self, block: int, middle: Tensor, context: Context) -> Tensor:
        layer = self.module.model.layers[block - 1]
        return layer.mlp(layer.post_attention_layernorm(middle))

    def experts(self, block: int, middle: Tensor) -> Tensor:
        layer = self.module.model.layers[block - 1]
        _, _, taken = layer.mlp.gate(layer.post_attention_layernorm(middle).flatten(0, -2))
        chosen = torch.zeros(len(taken), self.module.config.num_local_experts, dtype=torch.bool, device=taken.device)
        return chosen.scatter_(1, taken, True).unflatten(0, middle.shape[:-1])

    def final_norm(self, stream: Tensor) -> Tensor:
        return self.module.model.norm(stream)

    def library_logits(self, batch: Batch) -> Tensor:
        return self.module(
            input_ids=batch.ids,
            attention_mask=batch.valid.long(),
            position_ids=batch.positions,
        ).logits

    def log_likelihood(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean log-probability of every token after the first, (n_rows,), in nats.

        As the family scores: over the whole vocabulary, terminals and the end are targets too. The published score of a
        protein is the mean of both directions.
        """
        logp = logits[:, :-1].float().log_softmax(-1).gather(-1, batch.ids[:, 1:, None])[..., 0]
        is_target = batch.valid[:, 1:]
        return (logp * is_target).sum(1) / is_target.sum(1)

    # -------------------------------------------------------------------------------------------------- files

    @classmethod
    def network(cls, config) -> torch.nn.Module:
        from transformers.models.mixtral.modeling_mixtral import MixtralForCausalLM

        module = MixtralForCausalLM(config)
        for layer in module.model.layers:
            if config.clip_qkv is not None:
                attention = layer.self_attn
                for part in ("q_proj", "k_proj", "v_proj"):
                    setattr(attention, part, ClampedLinear(getattr(attention, part), float(config.clip_qkv)))
            # Which experts a token takes should not hang on the rounding of half precision.
            layer.mlp.gate.forward = outside_autocast(layer.mlp.gate.forward)
        return module

    @classmethod
    def from_config(cls, raw: Mapping[str, object], path: Path, dtype: str) -> Self:
        """See ``HubAdapter``."""
        expected = {
            "model_type": ("progen3",),
            "vocab_size": (len(PROGEN3_TOKENS),),
            "hidden_act": ("silu", None),
            "gated_mlp": (True, None),
            "tie_word_embeddings": (False, None),
        }
        checkpoints.check_settings(raw, expected, path, cls.family)

        def of(name: str, default: object = None) -> object:
            return checkpoints.setting(raw, path, name, default=default)

        sizes = {
            "n_blocks": of("num_hidden_layers"),
            "d_model": of("hidden_size"),
            "n_heads": of("num_attention_heads"),
            "n_kv_heads": of("num_key_value_heads", of("num_attention_heads")),
            "d_mlp": of("intermediate_size"),
            "n_experts": of("num_experts"),
            "n_active": of("num_experts_per_tok"),
        }
        further = {"clip_qkv": raw.get("clip_qkv"), "rope_theta": of("rope_theta"), "eps": of("rms_norm_eps")}
        config = _config(**sizes, **further)
        folder = path.parent
        tensors = library_names(checkpoints.read_weights(folder), sizes["n_experts"], folder)
        return cls(checkpoints.filled(cls.module_of(config), tensors, folder, dtype=dtype, also=EXPERTS), dtype)

    @classmethod
    def build(
        cls,
        *,
        n_blocks: int,
        d_model: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        d_mlp: int | None = None,
        n_experts: int = 8,
        n_active: int = 2,
        seed: int,
    ) -> Self:
        """Return an untrained ProGen3.

        Args:
            n_blocks, d_model, n_heads: sizes; d_model a multiple of 2 n_heads.
            n_kv_heads: heads of keys and values, a divisor of n_heads; as many by default.
            d_mlp: width of one expert, 3 d_model by default, as published.
            n_experts, n_active: experts of a block, and how many of them a token takes.
            seed: of the library's random initialisation.
        Raises:
            ValueError: sizes that do not fit.
        """
        n_kv_heads = n_kv_heads or n_heads
        if d_model % (2 * n_heads) or n_heads % n_kv_heads:
            raise ValueError(
                f"d_model {d_model}, {n_heads} heads, {n_kv_heads} of keys: multiples of each other needed"
            )
        if not 1 <= n_active <= n_experts:
            raise ValueError(f"{n_active} active experts of {n_experts}")
        sizes = {"n_blocks": n_blocks, "d_model": d_model, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
        sizes |= {"d_mlp": d_mlp or 3 * d_model, "n_experts": n_experts, "n_active": n_active}
        return cls(cls.module_of(_config(**sizes, clip_qkv=8.0), seed))

    def save(self, folder: Path | str) -> None:
        """Write the published layout: ``config.json`` and ``model.safetensors``.

        The embedding of the first sequence is already part of that of the tokens, so its own table is written as zeros.
        """
        config = self.module.config
        clip = config.clip_qkv
        raw = checkpoints.values_of(config, SETTINGS) | {
            "architectures": ["ProGen3ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "clip_qkv": int(clip) if clip is not None and clip == int(clip) else clip,
            "eos_token_id": 2,
            "fused_attention_norm": True,
            "gated_mlp": True,
            "hidden_act": "silu",
            "max_num_sequences": N_SEQUENCES,
            "model_type": "progen3",
            "moe_expert_selection": "switch",
            "moe_implementation": "megablocks",
            "num_experts": config.num_local_experts,
            "pad_token_id": 0,
            "rope_theta": config.rope_parameters["rope_theta"],
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "vocab_size": len(PROGEN3_TOKENS),
        }
        checkpoints.write_folder(Path(folder), raw, published_names(self.module.state_dict()), "model.safetensors")


class ClampedLinear(torch.nn.Linear):
    """A linear map whose outputs are clamped to +-limit; an option that Mixtral does not have."""

    def __init__(self, original: torch.nn.Linear, limit: float):
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.limit = original.in_features, original.out_features, limit
        self.weight, self.bias = original.weight, original.bias

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-self.limit, self.limit)


def library_names(tensors: Mapping[str, Tensor], n_experts: int, where: Path) -> dict[str, Tensor]:
    """Return the published tensors under the names of Mixtral, experts parted and the embedding folded.

    Raises:
        CheckpointError: packed experts of another shape.
    """
    named: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        name = name.replace(".norm_attn_norm.", ".")
        name = name.replace(".block_sparse_moe.router.layer.weight", ".mlp.gate.weight")
        match = re.fullmatch(r"(model\.layers\.\d+)\.block_sparse_moe\.experts\.mlp\.(w1|v1|w2)", name)
        if match:
            if tensor.ndim != 2 or tensor.shape[0] % n_experts:
                raise CheckpointError(f"{where}: {name} has shape {tuple(tensor.shape)}; {n_experts} experts expected")
            packed.setdefault(match[1], {})[match[2]] = tensor.unflatten(0, (n_experts, -1))
        else:
            named[name] = tensor
    for layer, parts in packed.items():
        if "w1" in parts and "v1" in parts:
            named[f"{layer}.mlp.experts.gate_up_proj"] = torch.cat([parts["w1"], parts["v1"]], dim=1)
        if "w2" in parts:
            named[f"{layer}.mlp.experts.down_proj"] = parts["w2"].transpose(1, 2)
    sequence = named.pop("model.embed_seq_id.weight", None)
    if sequence is None or "model.embed_tokens.weight" not in named:
        raise CheckpointError(f"{where}: no 'model.embed_tokens.weight' or no 'model.embed_seq_id.weight'")
    named["model.embed_tokens.weight"] = named["model.embed_tokens.weight"].float() + sequence[0].float()
    return named


def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return Mixtral's tensors under the published names, the inverse of ``library_names``."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".mlp.")
        if part == "gate.weight":
            named[f"{layer}.block_sparse_moe.router.layer.weight"] = tensor
        elif part == "experts.gate_up_proj":
            w1, v1 = tensor.chunk(2, dim=1)
            named[f"{layer}.block_sparse_moe.experts.mlp.w1"] = w1.flatten(0, 1)
            named[f"{layer}.block_sparse_moe.experts.mlp.v1"] = v1.flatten(0, 1)
        elif part == "experts.down_proj":
            named[f"{layer}.block_sparse_moe.experts.mlp.w2"] = tensor.transpose(1, 2).flatten(0, 1)
        else:
            named[re.sub(r"^(model\.layers\.\d+)\.", r"\1.norm_attn_norm.", name)] = tensor
    width = tensors["model.embed_tokens.weight"].shape[1]
    named["model.embed_seq_id.weight"] = torch.zeros(N_SEQUENCES, width)
    return named


def _config(
    *,
    n_blocks: int,
    d_model: int,
    n_heads: int,
    n_kv_heads: int,
    d_mlp: int,
    n_experts: int,
    n_active: int,
    clip_qkv: float | None,
    rope_theta: float = 1e5,
    eps: float = 1e-5,
):
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig

    return MixtralConfig(
        vocab_size=len(PROGEN3_TOKENS),
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_hidden_layers=n_blocks,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        num_local_experts=n_experts,
        num_experts_per_tok=n_active,
        clip_qkv=clip_qkv,
        max_position_embeddings=65536,
        rms_norm_eps=eps,
        rope_parameters={"rope_type": "default", "rope_theta": float(rope_theta)},
        tie_word_embeddings=False,
        pad_token_id=0,
        use_cache=False,
        attn_implementation="sdpa",
        experts_implementation="eager",
    )
