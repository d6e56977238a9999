"""ProGen2 on ``GPTJForCausalLM``: parallel blocks, read in both directions, a fused projection to take apart."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from plm_depth.models import attention_masks, checkpoints
from plm_depth.models.alphabets import PROGEN2_RESIDUES, PROGEN2_TOKENS, Alphabet
from plm_depth.models.base import Batch, CheckpointError, Context
from plm_depth.models.branches import Branches
from plm_depth.models.hub import HubAdapter
from plm_depth.models.precision import outside_autocast

# Settings of a published config under the library's names.
SETTINGS = (
    *("n_layer", "n_embd", "n_head", "n_positions", "rotary_dim", "vocab_size", "layer_norm_epsilon"),
    *("initializer_range", "attn_pdrop", "embd_pdrop", "resid_pdrop"),
)
N_PARTITIONS = 8  # the fused projection was laid out for eight devices
FUSED = re.compile(r"(transformer\.h\.\d+\.attn)\.qkv_proj\.weight")
CONSTANTS = [r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"]  # causal mask and its filler, not parameters


class ProGen2(HubAdapter):
    """ProGen2: one LayerNorm per block, attention and MLP read the same input; N-to-C and C-to-N reading.

    A protein is ``1`` residues ``2``, for "c2n" all of it reversed.
    """

    family = "progen2"
    objective = "ar"
    is_parallel = True
    can_branch = True
    has_attention_maps = True
    fast_blocks = "gptj"
    read_offset = -1
    directions = ("n2c", "c2n")
    layouts = ("authors", "community")
    alphabet: ClassVar[Alphabet] = Alphabet(PROGEN2_TOKENS, PROGEN2_RESIDUES)  # further rows are padding
    frame = ("1", "2")
    mask_id = None
    pad_id = 0

    def __init__(self, module: torch.nn.Module, dtype: str = "float32"):
        super().__init__(module, dtype)
        self.max_residues = module.config.n_positions - 2  # two terminals

    # --------------------------------------------------------------------------------------------------- walk

    def embed(self, batch: Batch) -> tuple[Tensor, Context]:
        """Return the token embeddings, the causal mask and the positions."""
        transformer = self.module.transformer
        stream = transformer.drop(transformer.wte(batch.ids))
        mask = attention_masks.causal(self.module.config, stream, batch)
        return stream, Context({"mask": mask, "positions": batch.positions})

    def branch(self, context: Context, branches: Branches) -> Context:
        """Return mask and positions of one protein laid out in branches; see ``Adapter.branch``."""
        device = context["positions"].device
        sees = torch.from_numpy(branches.attends).to(device)
        lowest = torch.finfo(torch.float32).min  # as the library's own mask
        mask = torch.zeros(sees.shape, device=device).masked_fill(~sees, lowest)[None, None]
        source = torch.from_numpy(branches.source).to(device)
        return Context({"mask": mask, "positions": context["positions"][:, source], "branches": branches})

    def _attend(self, block: int, stream: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        layer = self.module.transformer.h[block - 1]
        return layer.attn(
            layer.ln_1(stream), attention_mask=context["mask"], position_ids=context["positions"], use_cache=False
        )

    def attention_update(self, block: int, stream: Tensor, context: Context) -> Tensor:
        return self._attend(block, stream, context)[0]

    def attention_maps(self, block: int, stream: Tensor, context: Context) -> Tensor:
        return self._attend(block, stream, context)[1]

    def mlp_update(self, block: int, middle: Tensor, context: Context) -> Tensor:
        layer = self.module.transformer.h[block - 1]
        return layer.mlp(layer.ln_1(middle))

    def final_norm(self, stream: Tensor) -> Tensor:
        return self.module.transformer.ln_f(stream)

    def log_likelihood(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean log-probability of the tokens that follow another, (n_rows,), in nats.

        As the family scores: over the letters only (ids 5 to 29), and a last target that is a terminal is left out.
        """
        letters = torch.tensor([self.alphabet.id_of[letter] for letter in PROGEN2_RESIDUES], device=logits.device)
        scores = []
        for row, ids, valid in zip(logits, batch.ids, batch.valid, strict=True):
            targets = ids[valid][1:]
            if targets[-1] < letters[0]:
                targets = targets[:-1]
            logp = row[: len(targets), letters].float().log_softmax(-1)
            scores.append(logp.gather(1, (targets - letters[0])[:, None]).mean())
        return torch.stack(scores)

    # -------------------------------------------------------------------------------------------------- files

    @classmethod
    def from_config(cls, raw: Mapping[str, object], path: Path, dtype: str) -> Self:
        """See ``HubAdapter``; the authors' archive and a community copy with other key names are read alike.

        Sizes come from the tensors, head counts and rotary width from the config. ``auto_map`` is never followed.
        """
        if raw.get("model_type") != "progen":
            raise CheckpointError(
                f"{path}: model_type is {raw.get('model_type')!r}, but ProGen2 has 'progen'; is this a checkpoint of "
                "another family?"
            )
        tensors = split_fused(checkpoints.read_weights(path.parent), path.parent)
        module = cls.module_of(cls._config(raw, tensors, path))
        return cls(checkpoints.filled(module, tensors, path.parent, dtype=dtype, ignored=CONSTANTS), dtype)

    @classmethod
    def network(cls, config) -> torch.nn.Module:
        from transformers.models.gptj.modeling_gptj import GPTJForCausalLM

        module = GPTJForCausalLM(config)
        for block in module.transformer.h:  # the family computes scores in float32 at every precision
            block.attn._attn = outside_autocast(block.attn._attn)
        return module

    @classmethod
    def _config(cls, raw: Mapping[str, object], tensors: Mapping[str, Tensor], path: Path):
        rows, width = checkpoints.shape_of(tensors, "transformer.wte.weight", 2, path)
        inner = checkpoints.shape_of(tensors, "transformer.h.0.mlp.fc_in.weight", 2, path)[0]
        n_blocks = checkpoints.count_layers(tensors, r"transformer\.h\.(\d+)\.")
        n_heads = int(checkpoints.setting(raw, path, "n_head"))
        told = {
            "width": (checkpoints.setting(raw, path, "n_embd", "embed_dim", default=width), width),
            "blocks": (checkpoints.setting(raw, path, "n_layer", default=n_blocks), n_blocks),
        }
        for what, (configured, found) in told.items():
            if configured != found:
                raise CheckpointError(f"{path}: {what} {configured} in the config, {found} in the weights")
        if raw.get("activation_function", "gelu_new") != "gelu_new":
            raise CheckpointError(f"{path}: activation_function {raw['activation_function']!r}, ProGen2 has 'gelu_new'")
        if rows < len(cls.alphabet.tokens):
            raise CheckpointError(f"{path}: {rows} rows of embeddings for {len(cls.alphabet.tokens)} tokens")
        if width % n_heads or n_heads % N_PARTITIONS:
            raise CheckpointError(
                f"{path}: {n_heads} heads for width {width}; expected a multiple of {N_PARTITIONS} that divides it"
            )
        return _config(
            vocab_size=rows,
            n_positions=int(checkpoints.setting(raw, path, "n_positions")),
            n_embd=width,
            n_layer=n_blocks,
            n_head=n_heads,
            n_inner=inner,
            rotary_dim=int(checkpoints.setting(raw, path, "rotary_dim")),
            layer_norm_epsilon=float(checkpoints.setting(raw, path, "layer_norm_epsilon", default=1e-5)),
            initializer_range=float(checkpoints.setting(raw, path, "initializer_range", default=0.02)),
            resid_pdrop=float(checkpoints.setting(raw, path, "resid_pdrop", default=0.0)),
            embd_pdrop=float(checkpoints.setting(raw, path, "embd_pdrop", default=0.0)),
            attn_pdrop=float(checkpoints.setting(raw, path, "attn_pdrop", default=0.0)),
        )

    @classmethod
    def build(
        cls,
        *,
        n_blocks: int,
        d_model: int,
        n_heads: int,
        rotary_dim: int | None = None,
        n_positions: int = 1024,
        dropout: float = 0.0,
        seed: int,
    ) -> Self:
        """Return an untrained ProGen2.

        Args:
            n_blocks, d_model, n_heads: sizes; n_heads a multiple of 8 that divides d_model.
            rotary_dim: rotated dimensions of each head, even; by default half of the head, as in the small model.
            n_positions: longest input in tokens, terminals included.
            dropout: of embeddings and both branches in training mode; the published models have none.
            seed: of the library's random initialisation.
        Raises:
            ValueError: sizes that do not fit.
        """
        if d_model % n_heads or n_heads % N_PARTITIONS:
            raise ValueError(
                f"{n_heads} heads for width {d_model}; a multiple of {N_PARTITIONS} that divides it is needed"
            )
        head = d_model // n_heads
        rotary_dim = max(2, head // 4 * 2) if rotary_dim is None else rotary_dim
        if rotary_dim % 2 or not 2 <= rotary_dim <= head:
            raise ValueError(f"rotary_dim {rotary_dim} must be even and at most the {head} dimensions of a head")
        config = _config(
            vocab_size=32,
            n_positions=n_positions,
            n_embd=d_model,
            n_layer=n_blocks,
            n_head=n_heads,
            rotary_dim=rotary_dim,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
        )
        return cls(cls.module_of(config, seed))

    def save(self, folder: Path | str) -> None:
        """Write the authors' archive layout: ``config.json`` and ``pytorch_model.bin`` with the fused projection."""
        config = self.module.config
        raw = checkpoints.values_of(config, SETTINGS) | {
            "activation_function": "gelu_new",
            "architectures": ["ProGenForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "gradient_checkpointing": False,
            "model_type": "progen",
            "n_ctx": config.n_positions,
            "n_inner": None,
            "scale_attn_weights": True,
            "tokenizer_class": "GPT2Tokenizer",
            "torch_dtype": "float32",
            "use_cache": True,
        }
        tensors = dict(self.module.state_dict())
        n = config.n_positions
        causal = torch.ones(n, n).tril().bool()[None, None]
        for block in range(self.n_blocks):
            name = f"transformer.h.{block}.attn"
            parts = [tensors.pop(f"{name}.{part}_proj.weight") for part in "qvk"]
            tensors[f"{name}.qkv_proj.weight"] = fuse(*parts)
            tensors[f"{name}.bias"] = causal
            tensors[f"{name}.masked_bias"] = torch.tensor(-1e9)
        checkpoints.write_folder(Path(folder), raw, tensors, "pytorch_model.bin")


def fuse(q: Tensor, v: Tensor, k: Tensor) -> Tensor:
    """Return the fused projection (3 D, D): eight partitions, in each its share of q, then of v, then of k."""
    width = q.shape[1]
    parts = [part.reshape(N_PARTITIONS, width // N_PARTITIONS, width) for part in (q, v, k)]
    return torch.stack(parts, dim=1).reshape(3 * width, width)


def unfuse(fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, v and k, each (D, D), of a fused projection (3 D, D); see ``fuse``."""
    width = fused.shape[1]
    parts = fused.reshape(N_PARTITIONS, 3, width // N_PARTITIONS, width)
    q, v, k = (parts[:, i].reshape(width, width) for i in range(3))
    return q, v, k


def split_fused(tensors: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Return the tensors with every fused projection replaced by its q, k and v.

    Raises:
        CheckpointError: a fused projection of another shape, or none at all.
    """
    split: dict[str, Tensor] = {}
    n_fused = 0
    for name, tensor in tensors.items():
        match = FUSED.fullmatch(name)
        if not match:
            split[name] = tensor
            continue
        n_fused += 1
        if tensor.ndim != 2 or tensor.shape[0] != 3 * tensor.shape[1] or tensor.shape[1] % N_PARTITIONS:
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(tensor.shape)}; expected (3 D, D), D a multiple of {N_PARTITIONS}"
            )
        for part, value in zip("qvk", unfuse(tensor), strict=True):
            split[f"{match[1]}.{part}_proj.weight"] = value
    if not n_fused:
        raise CheckpointError(f"{where}: no 'transformer.h.*.attn.qkv_proj.weight'; this is not ProGen2's layout")
    return split


def _config(**sizes: object):
    from transformers.models.gptj.configuration_gptj import GPTJConfig

    return GPTJConfig(
        **sizes,
        activation_function="gelu_new",
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="eager",
    )
