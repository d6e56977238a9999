"""ESM3: ESM C's blocks over the sum of many tracks, with geometric attention in the first block.

Three inputs are told apart: the sequence; with structure tokens; with backbone coordinates, the only one in which the
geometric branch is not exactly zero.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from plm_depth.models import checkpoints
from plm_depth.models import esm3_network as network
from plm_depth.models.alphabets import ESM_RESIDUES, ESMC_TOKENS, Alphabet
from plm_depth.models.base import Adapter, Batch, CheckpointError, Context, SequenceError, Structure, Tokens
from plm_depth.models.esm3_structure import StructureEncoder
from plm_depth.models.esmc import HEAD_DIM, heads_of, mlp_width, pth_files
from plm_depth.models.untrained import untrained
from plm_depth.tables import replacing

TRUNK = "esm3_sm_open_v1.pth"
STRUCTURE_ENCODER = "esm3_structure_encoder_v0.pth"  # beside the trunk; not needed to load the model


class Esm3(Adapter):
    """ESM3-open: the official flat ``.pth``; read out by its sequence head, and by its structure head."""

    family = "esm3"
    objective = "mlm"
    conditions = ("seq", "seq_struct", "struct")
    reads_structure = ("codes", "coordinates")
    structure_classes = tuple(f"{code:04d}" for code in range(network.N_STRUCTURE_CODES))
    layouts = ("pth",)
    max_residues = 2046
    head = "output_heads"
    alphabet: ClassVar[Alphabet] = Alphabet(ESMC_TOKENS, ESM_RESIDUES + "|")  # "|" parts two chains
    mask_id = network.MASK
    pad_id = network.PAD
    extra_padding: ClassVar[Mapping[str, float]] = {
        "structure_tokens": network.STRUCTURE_PAD,
        "structure_coords": np.nan,
        "per_res_plddt": 0.0,
    }
    extra_absent: ClassVar[Mapping[str, float]] = {
        "structure_tokens": -1,  # stands for the mask
        "structure_coords": np.nan,
        "per_res_plddt": 0.0,
    }

    def __init__(self, module: network.Esm3Network, dtype: str = "float32"):
        self.module, self.dtype = module.eval(), dtype
        self.n_blocks, self.d_model = module.sizes["n_blocks"], module.sizes["d_model"]
        self.residue_ids, self.vocabulary = self.alphabet.amino_acids, self.alphabet.vocabulary
        self.structure_encoder: StructureEncoder | Path | None = None  # a path until it is needed
        self.came_with: Path | None = None  # the file of the structure encoder

    # ------------------------------------------------------------------------------------------------- tokens

    def encode(
        self,
        sequence: str,
        *,
        masked: np.ndarray | None = None,
        direction: str = "none",
        structure: Structure | None = None,
        condition: str = "seq",
        struct_at_mask: str | None = None,
    ) -> Tokens:
        """Return ``<cls>`` residues ``<eos>``, with structure tokens and backbone coordinates where they are given.

        Args:
            sequence: residues; "|" parts two chains.
            masked: residues to hide.
            direction: "none".
            structure: ``codes`` (4096 of them), ``coordinates``, or both, for the conditions with structure.
            condition: "seq", "seq_struct", or "struct" (every residue hidden).
            struct_at_mask: whether the structure of a hidden residue is shown ("keep") or hidden too ("hide"); None: as
                ``showing`` says.
        Raises:
            SequenceError: see ``Adapter.encode``; a condition without its structure, or a code that does not exist.
        """
        masked, hidden = self.check_shown(
            sequence, masked=masked, structure=structure, condition=condition, struct_at_mask=struct_at_mask
        )
        tokens = super().encode(sequence, masked=masked, direction=direction)
        extra: dict[str, np.ndarray] = {}
        if condition != "seq":
            track = structure.code_tokens(hidden, n_codes=network.N_STRUCTURE_CODES, mask=network.STRUCTURE_MASK)
            extra["structure_tokens"] = np.concatenate([[network.STRUCTURE_BOS], track, [network.STRUCTURE_EOS]])
            if structure.coordinates is not None:
                backbone = np.array(structure.coordinates, np.float32)
                if backbone.shape[1:] != (3, 3):
                    raise SequenceError(f"coordinates {backbone.shape}; (residues, 3, 3) with N, CA, C expected")
                backbone[hidden] = np.nan
                frame = np.full((1, 3, 3), np.inf, np.float32)
                extra["structure_coords"] = np.concatenate([frame, backbone, frame])
                finite = np.isfinite(extra["structure_coords"]).any((1, 2))
                extra["per_res_plddt"] = finite.astype(np.float32)
        return replace(tokens, extra=extra)

    def with_codes(self, structure: Structure) -> Structure:
        """Return the structure with the codes of its coordinates, on the CPU: one tokenizer for every device and dtype.

        As it came if it has codes or no coordinates, or if the checkpoint holds no structure encoder.

        Raises:
            CheckpointError: the structure encoder is broken.
        """
        if structure.codes is not None or structure.coordinates is None or self.structure_encoder is None:
            return structure
        if isinstance(self.structure_encoder, Path):
            self.structure_encoder = StructureEncoder.load(self.structure_encoder)
        codes = self.structure_encoder.codes(torch.from_numpy(np.array(structure.coordinates, np.float32)))
        return replace(structure, codes=codes.numpy())

    def batch_of(self, inputs: Mapping[str, Tensor]) -> Batch:
        ids = inputs["sequence_tokens"].long()
        valid = inputs["sequence_id"] == 0 if "sequence_id" in inputs else ids != self.pad_id
        names = ("structure_tokens", "structure_coords", "per_res_plddt", "average_plddt")
        return Batch(ids, valid, {name: inputs[name] for name in names if name in inputs})

    # --------------------------------------------------------------------------------------------------- walk

    def embed(self, batch: Batch) -> tuple[Tensor, Context]:
        """Return the sum of all tracks' embeddings, masks, rotary tables and frames."""
        stream, context = self.module.start(batch.ids, batch.valid, batch.extra)
        return stream, Context(context)

    def _block(self, block: int) -> network.Block:
        return self.module.transformer.blocks[block - 1]

    def attention_update(self, block: int, stream: Tensor, context: Context) -> Tensor:
        here = self._block(block)
        return here.attn(stream, context["mask"], context["cos"], context["sin"]) / here.divisor

    def geometric_update(self, block: int, stream: Tensor, context: Context) -> Tensor | None:
        """Return the geometric branch of block 1, exactly zero where no row has coordinates, else None."""
        here = self._block(block)
        if here.geom_attn is None:
            return None
        frames = network.frames_of(context.values)
        if frames is None:
            return torch.zeros_like(stream)
        return here.geom_attn(stream, frames, context["same"]) / here.divisor

    def mlp_update(self, block: int, middle: Tensor, context: Context) -> Tensor:
        here = self._block(block)
        return here.ffn(middle) / here.divisor

    def final_norm(self, stream: Tensor) -> Tensor:
        return self.module.transformer.norm(stream)

    def read_out(self, stream: Tensor) -> Tensor:
        return self.module.output_heads["sequence_head"](self.final_norm(stream))

    def read_out_structure(self, stream: Tensor) -> Tensor:
        return self.module.output_heads["structure_head"](self.final_norm(stream))

    def other_logits(self, stream: Tensor) -> dict[str, Tensor]:
        final = self.final_norm(stream)
        logits = {
            track: self.module.output_heads[f"{track}_head"](final) for track in network.HEADS if track != "sequence"
        }
        logits["function"] = logits["function"].unflatten(-1, (network.N_FUNCTION_TRACKS, network.N_FUNCTION))
        return logits

    def library_logits(self, batch: Batch) -> Tensor:
        return self.module(batch.ids, batch.valid, batch.extra)["sequence"]

    def fresh_module(self, seed: int) -> torch.nn.Module:
        """Return an untrained module: torch's own initialisation, which the official package leaves as it is."""
        return _module(self.module.sizes, seed)

    def shallower(self, n_blocks: int) -> Self:
        cut = type(self)(_module({**self.module.sizes, "n_blocks": n_blocks}, None), self.dtype)
        cut.structure_encoder = cut.came_with = self.came_with
        return cut

    @property
    def update_scale(self) -> float:
        return 1 / self._block(1).divisor

    def scale_updates(self, factor: float) -> None:
        for block in self.module.transformer.blocks:
            branches = [block.attn.out_proj, block.ffn[-1]]
            if block.geom_attn is not None:
                branches.append(block.geom_attn.out_proj)
            for matrix in branches:
                for parameter in matrix.parameters():
                    parameter.data.mul_(factor)

    # -------------------------------------------------------------------------------------------------- files

    @classmethod
    def files(cls, folder: Path, layout: str | None = None) -> list[Path]:
        """Return the files that ``load`` reads: the trunk, and the structure encoder where the folder has it."""
        cls.check_layout(layout)
        named = [path for path in pth_files(folder) if path.name == TRUNK]
        if len(named) != 1:
            there = [path.name for path in pth_files(folder)]
            raise CheckpointError(f"{folder}: {TRUNK} was expected, there or below data/weights; found {there}")
        encoder = named[0].with_name(STRUCTURE_ENCODER)
        return [*named, encoder] if encoder.is_file() else named

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        dtype: str = "float32",
        layout: str | None = None,
        n_heads: int | None = None,
    ) -> Self:
        """Return the adapter of a checkpoint folder with ``esm3_sm_open_v1.pth``, there or below data/weights.

        Args:
            folder: the checkpoint.
            dtype: of the matrices.
            layout: "pth", the only one.
            n_heads: the file does not say; by default heads of 64 dimensions, as published.
        Raises:
            CheckpointError: see ``plm_depth.models.checkpoints``.
            ValueError: an unknown layout.
        """
        where, *encoder = cls.files(Path(folder), layout)
        tensors = checkpoints.read_pickle(where)
        d_model = checkpoints.shape_of(tensors, "encoder.sequence_embed.weight", 2, where)[1]
        first = "transformer.blocks.0"
        sizes = {
            "n_blocks": checkpoints.count_layers(tensors, r"transformer\.blocks\.(\d+)\."),
            "d_model": d_model,
            "n_heads": heads_of(d_model, n_heads, where),
            "d_mlp": checkpoints.shape_of(tensors, f"{first}.ffn.3.weight", 2, where)[1],
            "n_geometric_heads": checkpoints.shape_of(tensors, f"{first}.geom_attn.distance_scale_per_head", 1, where)[
                0
            ],
        }
        adapter = cls(checkpoints.filled(_module(sizes, seed=None), tensors, where, dtype=dtype), dtype)
        adapter.structure_encoder = adapter.came_with = encoder[0] if encoder else None
        return adapter

    @classmethod
    def build(
        cls,
        *,
        n_blocks: int,
        d_model: int,
        n_heads: int,
        d_mlp: int | None = None,
        n_geometric_heads: int | None = None,
        seed: int,
    ) -> Self:
        """Return an untrained ESM3.

        Args:
            n_blocks, d_model, n_heads: sizes; d_model a multiple of 2 n_heads and of 8.
            d_mlp: width of the MLP; by default 8/3 d_model rounded up to a multiple of 256, as published.
            n_geometric_heads: by default d_model / 6, as published.
            seed: of the random initialisation.
        Raises:
            ValueError: sizes that do not fit.
        """
        if d_model % (2 * n_heads) or d_model % network.N_FUNCTION_TRACKS:
            raise ValueError(f"d_model {d_model} must be a multiple of 2 n_heads = {2 * n_heads} and of 8")
        sizes = {
            "n_blocks": n_blocks,
            "d_model": d_model,
            "n_heads": n_heads,
            "d_mlp": d_mlp or mlp_width(d_model),
            "n_geometric_heads": n_geometric_heads or max(1, d_model // 6),
        }
        return cls(_module(sizes, seed))

    def save(self, folder: Path | str) -> None:
        """Write the official flat state dict below data/weights, and the structure encoder that came with it.

        Raises:
            ValueError: heads of another width than 64, which the layout cannot tell.
        """
        if self.d_model != HEAD_DIM * self.module.sizes["n_heads"]:
            raise ValueError(
                f"{self.module.sizes['n_heads']} heads of width {self.d_model}: the official layout does not tell the "
                f"number of heads, so they must have {HEAD_DIM} dimensions"
            )
        path = Path(folder) / "data" / "weights" / TRUNK
        checkpoints.write_pickle(self.module.state_dict(), path)
        if self.came_with is not None:
            with replacing(path.with_name(STRUCTURE_ENCODER)) as temporary:
                shutil.copyfile(self.came_with, temporary)


def _module(sizes: Mapping[str, int], seed: int | None) -> network.Esm3Network:
    return untrained(lambda: network.Esm3Network(**sizes), seed)
