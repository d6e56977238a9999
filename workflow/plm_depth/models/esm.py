"""The families that are an ``EsmForMaskedLM``: same blocks, same head; they differ in objective, tokens and files."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from plm_depth.models import attention_masks, checkpoints
from plm_depth.models.alphabets import ESM_RESIDUES, ESM_TOKENS, Alphabet
from plm_depth.models.base import Batch, CheckpointError, Context
from plm_depth.models.hub import HubAdapter
from plm_depth.tables import write_text

log = logging.getLogger("models.esm")

LAYER_INV_FREQ = r"esm\.encoder\.layer\.\d+\.attention\.self\.rotary_embeddings\.inv_freq"
SHARED_INV_FREQ = "esm.rotary_embeddings.inv_freq"
# Settings that the network is made from, under the library's names, and what is taken for those that may be absent.
SETTINGS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps"),
    *("mask_token_id", "pad_token_id", "position_embedding_type", "max_position_embeddings", "token_dropout"),
)
DEFAULTS = {
    "emb_layer_norm_before": False,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
}
CONTACT_HEAD = r"esm\.contact_head\.regression\.(weight|bias)"  # reads attention maps; no logit depends on it


class Esm(HubAdapter):
    """Common part of the families on ``transformers.EsmForMaskedLM``.

    Class attributes beyond those of ``Adapter``:
        mask_token: text of the token that hides a residue.
        architecture, extra_config, weights_name, stores_tied_decoder, stores_positions: how the family writes its own
            checkpoints; is_tied: whether the head's last matrix is that of the embedding.
        dropout: hidden dropout of the published config (off in evaluation mode).
        position_embeddings: "rotary" or "absolute".
    """

    alphabet: ClassVar[Alphabet] = Alphabet(ESM_TOKENS, ESM_RESIDUES)
    mask_token: ClassVar[str] = "<mask>"
    architecture: ClassVar[str] = "EsmForMaskedLM"
    extra_config: ClassVar[Mapping[str, object]] = {}
    weights_name: ClassVar[str] = "model.safetensors"
    is_tied: ClassVar[bool] = True
    stores_tied_decoder: ClassVar[bool] = False
    stores_positions: ClassVar[bool] = True
    dropout: ClassVar[float] = 0.0
    position_embeddings: ClassVar[str] = "rotary"
    max_residues = 1022
    has_attention_maps = True
    fast_blocks = "esm"
    reads_all_blocks = (CONTACT_HEAD,)

    def __init__(self, module: torch.nn.Module, dtype: str = "float32"):
        super().__init__(module, dtype)
        config = module.config
        self.mask_id, self.pad_id = config.mask_token_id, config.pad_token_id
        if self.position_embeddings == "absolute":  # rows up to the pad id are not positions
            self.max_residues = config.max_position_embeddings - self.pad_id - 1 - 2

    # --------------------------------------------------------------------------------------------------- walk

    def embedded(self, batch: Batch) -> Tensor:
        """Return h_0 (with the library's token dropout scale), (n_rows, n_tokens, d_model)."""
        return self.module.esm.embeddings(input_ids=batch.ids, attention_mask=batch.valid.long())

    def embed(self, batch: Batch) -> tuple[Tensor, Context]:
        """Return h_0, key-padding mask and rotary tables."""
        stream, rotary = self.embedded(batch), self.module.esm.rotary_embeddings
        mask = attention_masks.bidirectional(self.module.config, stream, batch)
        cos, sin = (None, None) if rotary is None else rotary(stream, batch.positions)
        return stream, Context({"mask": mask, "cos": cos, "sin": sin})

    def attention_update(self, block: int, stream: Tensor, context: Context) -> Tensor:
        """Return the output projection of self-attention: ``EsmSelfOutput`` as a whole would add the stream again."""
        attention = self.module.esm.encoder.layer[block - 1].attention
        mixed, _ = attention.self(
            attention.LayerNorm(stream), attention_mask=context["mask"], position_embeddings=_rotary(context)
        )
        return attention.output.dropout(attention.output.dense(mixed))

    def attention_maps(self, block: int, stream: Tensor, context: Context) -> Tensor:
        """Return the weights of the library's plain attention; its fused kernels, which the passes use, keep none."""
        attention = self.module.esm.encoder.layer[block - 1].attention
        mask = context["mask"]
        if mask is not None and mask.dtype == torch.bool:  # plain attention adds its mask to the scores
            mask = torch.zeros_like(mask, dtype=stream.dtype).masked_fill(~mask, torch.finfo(stream.dtype).min)
        config, fused = attention.self.config, attention.self.config._attn_implementation
        config._attn_implementation = "eager"
        try:
            _, maps = attention.self(
                attention.LayerNorm(stream), attention_mask=mask, position_embeddings=_rotary(context)
            )
        finally:
            config._attn_implementation = fused
        return maps

    def mlp_update(self, block: int, middle: Tensor, context: Context) -> Tensor:
        """Return the second linear map of the MLP: ``EsmOutput`` as a whole would add the stream again."""
        layer = self.module.esm.encoder.layer[block - 1]
        return layer.output.dropout(layer.output.dense(layer.intermediate(layer.LayerNorm(middle))))

    def final_norm(self, stream: Tensor) -> Tensor:
        return self.module.esm.encoder.emb_layer_norm_after(stream)

    # -------------------------------------------------------------------------------------------------- files

    @classmethod
    def load(cls, folder: Path | str, *, dtype: str = "float32", layout: str | None = None) -> Self:
        """Return the adapter of a checkpoint folder.

        Args:
            folder: the checkpoint.
            dtype: of the matrices.
            layout: "hub" (config.json and weights) or "fair_esm" (one ``.pt``), for the families published so; by
                default the hub's if there is a config.json.
        Raises:
            CheckpointError: see ``plm_depth.models.checkpoints``.
            ValueError: an unknown layout.
        """
        folder = Path(folder)
        path = folder / "config.json"
        if cls.layout_of(folder, layout) == "fair_esm":
            config, tensors, path = cls.from_fair_esm(fair_esm_file(folder))
        else:
            config = checkpoints.read_config(path)
            tensors = checkpoints.read_weights(folder)
        cls.check_config(config, path)
        if cls.position_embeddings == "absolute":  # ESM-1b has a norm on the embeddings, ESM-1v none: the file says
            config = {**config, "emb_layer_norm_before": "esm.embeddings.layer_norm.weight" in tensors}
        return cls._of(cls._config(config, path), tensors, dtype, path)

    @classmethod
    def layout_of(cls, folder: Path, layout: str | None = None) -> str:
        """Return the layout in which a folder is read: the given one, or what its files say."""
        cls.check_layout(layout)
        if layout is None:
            is_fair_esm = (
                "fair_esm" in cls.layouts and not (folder / "config.json").is_file() and any(folder.glob("*.pt"))
            )
            return "fair_esm" if is_fair_esm else "hub"
        return layout

    @classmethod
    def files(cls, folder: Path, layout: str | None = None) -> list[Path]:
        """Return the files that ``load`` reads."""
        if cls.layout_of(folder, layout) == "fair_esm":
            return sorted(folder.glob(f"{fair_esm_file(folder).stem}*.pt"))
        return checkpoints.hub_files(folder)

    @classmethod
    def check_config(cls, config: Mapping[str, object], path: Path) -> None:
        """Refuse a config of another architecture or family; see ``checkpoints.check_settings``."""
        expected = {
            "model_type": ("esm",),
            "vocab_size": (len(cls.alphabet.tokens),),
            "mask_token_id": (cls.alphabet.id_of[cls.mask_token],),
            "pad_token_id": (cls.alphabet.id_of["<pad>"],),
            "position_embedding_type": (cls.position_embeddings,),
            "hidden_act": ("gelu", None),
            "is_decoder": (False, None),
            "is_folding_model": (False, None),
            "tie_word_embeddings": (True, None) if cls.is_tied else (False, None),
            "add_cross_attention": (False, None),
        }
        checkpoints.check_settings(config, expected, path, cls.family)

    @classmethod
    def network(cls, config) -> torch.nn.Module:
        from transformers.models.esm.modeling_esm import EsmForMaskedLM

        return EsmForMaskedLM(config)

    @classmethod
    def _config(cls, config: Mapping[str, object], path: Path):
        from transformers.models.esm.configuration_esm import EsmConfig

        known = checkpoints.settings(config, path, SETTINGS, DEFAULTS)
        return EsmConfig(**known, tie_word_embeddings=cls.is_tied, attn_implementation="sdpa")

    @classmethod
    def _of(cls, config, tensors: dict[str, Tensor], dtype: str, where: Path) -> Self:
        """Return the adapter of a config and a complete set of tensors under the hub's names."""
        module = cls.module_of(config)
        ignored = [r"esm\.embeddings\.position_ids"]
        if config.position_embedding_type == "rotary":
            ignored.append(r"esm\.embeddings\.position_embeddings\.weight")  # a table that rotary models never read
            per_layer = checkpoints.one_copy(tensors, LAYER_INV_FREQ, where)
            if per_layer is not None:
                tensors[SHARED_INV_FREQ] = per_layer
            if SHARED_INV_FREQ not in tensors:
                log.warning("%s: no rotary frequencies in the file; computed from the config", where)
                tensors[SHARED_INV_FREQ] = module.esm.rotary_embeddings.inv_freq.clone()
        optional = cls.reads_all_blocks
        return cls(checkpoints.filled(module, tensors, where, dtype=dtype, ignored=ignored, optional=optional), dtype)

    @classmethod
    def from_fair_esm(cls, path: Path) -> tuple[dict[str, object], dict[str, Tensor], Path]:
        """Return config, tensors under the hub's names and path of a ``.pt`` that fair-esm reads.

        Raises:
            CheckpointError: fair-esm cannot read it, or it holds other objects than tensors and their settings.
        """
        raise NotImplementedError(f"{cls.family} is not published as a fair-esm file")

    @classmethod
    def build(
        cls,
        *,
        n_blocks: int,
        d_model: int,
        n_heads: int,
        d_mlp: int | None = None,
        dropout: float | None = None,
        seed: int,
    ) -> Self:
        """Return an untrained model of this family.

        Args:
            n_blocks, d_model, n_heads: sizes; d_model a multiple of 2 n_heads.
            d_mlp: width of the MLP, 4 d_model by default.
            dropout: hidden dropout in training mode, by default that of the published config.
            seed: of the library's random initialisation.
        Raises:
            ValueError: sizes that do not fit.
        """
        if d_model % (2 * n_heads):
            raise ValueError(f"d_model {d_model} is not a multiple of 2 n_heads = {2 * n_heads}: heads of even width")
        raw = {
            **cls.template(),
            "hidden_size": d_model,
            "num_hidden_layers": n_blocks,
            "num_attention_heads": n_heads,
            "intermediate_size": d_mlp or 4 * d_model,
            "hidden_dropout_prob": cls.dropout if dropout is None else dropout,
        }
        return cls(cls.module_of(cls._config(raw, Path("sizes")), seed))

    @classmethod
    def template(cls) -> dict[str, object]:
        """Return what all published configs of the family have in common."""
        return {
            "architectures": [cls.architecture],
            "attention_probs_dropout_prob": 0.0,
            "classifier_dropout": None,
            "emb_layer_norm_before": False,
            "esmfold_config": None,
            "hidden_act": "gelu",
            "initializer_range": 0.02,
            "is_folding_model": False,
            "layer_norm_eps": 1e-05,
            "mask_token_id": cls.alphabet.id_of[cls.mask_token],
            "max_position_embeddings": 1026,
            "model_type": "esm",
            "pad_token_id": cls.alphabet.id_of["<pad>"],
            "position_embedding_type": cls.position_embeddings,
            "token_dropout": True,
            "torch_dtype": "float32",
            "use_cache": True,
            "vocab_list": None,
            "vocab_size": len(cls.alphabet.tokens),
            **cls.extra_config,
        }

    def save(self, folder: Path | str) -> None:
        """Write config, weights and vocabulary as the family publishes them."""
        folder = Path(folder)
        raw = self.template() | checkpoints.values_of(self.module.config, (*SETTINGS, *DEFAULTS))
        checkpoints.write_folder(folder, raw, self.published_tensors(), self.weights_name)
        self.write_tokenizer(folder)

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer files of the hub's layout; nothing here reads them."""
        write_text("\n".join(self.alphabet.tokens) + "\n", folder / "vocab.txt")
        write_text(json.dumps({"tokenizer_class": "EsmTokenizer"}) + "\n", folder / "tokenizer_config.json")
        special = {f"{name}_token": f"<{name}>" for name in ("cls", "eos", "mask", "pad", "unk")}
        write_text(json.dumps(special, indent=1) + "\n", folder / "special_tokens_map.json")

    def published_tensors(self) -> dict[str, Tensor]:
        """Return the state dict under the published names: one copy of the rotary frequencies per layer."""
        tensors = dict(self.module.state_dict())
        tied = self.module.lm_head.decoder.weight is self.module.esm.embeddings.word_embeddings.weight
        if tied and not self.stores_tied_decoder:
            del tensors["lm_head.decoder.weight"]
        config = self.module.config
        if config.position_embedding_type == "rotary":
            inv_freq = tensors.pop(SHARED_INV_FREQ)
            for block in range(self.n_blocks):
                name = f"esm.encoder.layer.{block}.attention.self.rotary_embeddings.inv_freq"
                tensors[name] = inv_freq
            # The published files carry a position table that no rotary model reads.
            unused = torch.zeros(config.max_position_embeddings, self.d_model)
            tensors["esm.embeddings.position_embeddings.weight"] = unused
        if self.stores_positions:
            positions = torch.arange(config.max_position_embeddings)[None]
            tensors["esm.embeddings.position_ids"] = positions
        return tensors


def _rotary(context: Context) -> tuple[Tensor, Tensor] | None:
    return None if context["cos"] is None else (context["cos"], context["sin"])


def fair_esm_file(folder: Path) -> Path:
    """Return the one ``.pt`` checkpoint of a folder.

    Raises:
        CheckpointError: there is none, or there are several.
    """
    files = sorted(path for path in folder.glob("*.pt") if not path.stem.endswith("-contact-regression"))
    return checkpoints.only_file(files, folder, ".pt checkpoint")


# Sub-modules of a fair-esm layer and their names in the hub's layout.
FAIR_ESM_LAYER = {
    "self_attn_layer_norm": "attention.LayerNorm",
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn.rot_emb": "attention.self.rotary_embeddings",
    "final_layer_norm": "LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
FAIR_ESM_TOP = {
    "embed_tokens": "esm.embeddings.word_embeddings",
    "embed_positions": "esm.embeddings.position_embeddings",
    "emb_layer_norm_before": "esm.embeddings.layer_norm",
    "emb_layer_norm_after": "esm.encoder.emb_layer_norm_after",
    "contact_head.regression": "esm.contact_head.regression",
    "lm_head.dense": "lm_head.dense",
    "lm_head.layer_norm": "lm_head.layer_norm",
}


def hub_name(name: str, where: Path) -> str:
    """Return the hub's name of a fair-esm tensor.

    Raises:
        CheckpointError: a name that this architecture does not have.
    """
    if name == "lm_head.bias":
        return name
    if name == "lm_head.weight":
        return "lm_head.decoder.weight"
    owner, _, kind = name.rpartition(".")
    if owner in FAIR_ESM_TOP:
        return f"{FAIR_ESM_TOP[owner]}.{kind}"
    if owner.startswith("layers."):
        _, number, part = owner.split(".", 2)
        if part in FAIR_ESM_LAYER:
            return f"esm.encoder.layer.{number}.{FAIR_ESM_LAYER[part]}.{kind}"
    raise CheckpointError(f"{where}: {name} is not a tensor of this architecture")


def read_fair_esm(path: Path, kind: str) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """Return fair-esm's own model of a ``.pt`` file, and its tensors under the hub's names.

    The pickle holds an ``argparse.Namespace`` beside tensors; that and nothing else is let through.

    Args:
        path: the file, under its published name.
        kind: name of fair-esm's class of this family.
    Raises:
        CheckpointError: fair-esm is not installed or cannot read the file, or it holds other objects or another class.
    """
    import argparse
    import pickle
    import warnings

    try:
        from esm import pretrained
    except ImportError as error:
        raise CheckpointError(f"{path}: reading a .pt file needs the package fair-esm; install it") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Regression weights not found")
            model, _ = pretrained.load_model_and_alphabet_local(path)
    except pickle.UnpicklingError as error:
        raise checkpoints.refused_pickle(path, error) from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: fair-esm needs {error.filename} beside it; download both") from error
    except (OSError, RuntimeError, EOFError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: fair-esm cannot read it ({type(error).__name__}: {error}); keep the published file name, "
            "fair-esm chooses the architecture by it"
        ) from error
    if type(model).__name__ != kind:
        raise CheckpointError(f"{path}: a {type(model).__name__} of fair-esm, but this family is its {kind}")
    return model, {hub_name(name, path): value for name, value in model.state_dict().items()}


class Esm2(Esm):
    """ESM-2: rotary, masked language modelling; hub folders and fair-esm's ``esm2_*.pt``."""

    family = "esm2"
    objective = "mlm"
    layouts = ("hub", "fair_esm")

    @classmethod
    def check_config(cls, config: Mapping[str, object], path: Path) -> None:
        if "dplm_type" in config:
            raise CheckpointError(f"{path}: dplm_type is {config['dplm_type']!r}: this is a checkpoint of family dplm")
        super().check_config(config, path)

    @classmethod
    def from_fair_esm(cls, path: Path) -> tuple[dict[str, object], dict[str, Tensor], Path]:
        model, tensors = read_fair_esm(path, "ESM2")
        config = {
            **cls.template(),
            "hidden_size": model.embed_dim,
            "num_hidden_layers": model.num_layers,
            "num_attention_heads": model.attention_heads,
            "intermediate_size": model.layers[0].fc1.out_features,
            "token_dropout": bool(model.token_dropout),
            "hidden_dropout_prob": 0.0,
        }
        return config, tensors, path


class Esm1b(Esm):
    """ESM-1b: learned positions, a norm on the embeddings; hub folders and fair-esm's ``esm1b_*.pt``."""

    family = "esm1b"
    objective = "mlm"
    layouts = ("hub", "fair_esm")
    position_embeddings = "absolute"
    extra_config: ClassVar[Mapping[str, object]] = {"emb_layer_norm_before": True}

    @classmethod
    def from_fair_esm(cls, path: Path) -> tuple[dict[str, object], dict[str, Tensor], Path]:
        model, tensors = read_fair_esm(path, "ProteinBertModel")
        arguments = model.args
        config = {
            **cls.template(),
            "hidden_size": arguments.embed_dim,
            "num_hidden_layers": arguments.layers,
            "num_attention_heads": arguments.attention_heads,
            "intermediate_size": arguments.ffn_embed_dim,
            "max_position_embeddings": model.embed_positions.num_embeddings,
            "token_dropout": bool(getattr(arguments, "token_dropout", False)),
            "hidden_dropout_prob": 0.0,
        }
        return config, tensors, path


class Esm1v(Esm1b):
    """ESM-1v: the network of ESM-1b without the norm on the embeddings; five models, one checkpoint each."""

    family = "esm1v"
    extra_config: ClassVar[Mapping[str, object]] = {}


class Dplm(Esm):
    """DPLM: the network of ESM-2 trained by absorbing diffusion; it gets no time step."""

    family = "dplm"
    objective = "diffusion"
    architecture = "EsmForDPLM"
    extra_config: ClassVar[Mapping[str, object]] = {"dplm_type": "dplm_esm"}
    weights_name = "pytorch_model.bin"
    stores_tied_decoder = True
    stores_positions = False
    dropout = 0.1

    @classmethod
    def check_config(cls, config: Mapping[str, object], path: Path) -> None:
        kind, architectures = config.get("dplm_type"), config.get("architectures") or []
        if kind != "dplm_esm" and not (kind is None and cls.architecture in architectures):
            raise CheckpointError(
                f"{path}: dplm_type is {kind!r} and architectures {architectures}, but a published DPLM has "
                "'dplm_esm'; is this a checkpoint of another family (esm2, dplm2)?"
            )
        super().check_config(config, path)
