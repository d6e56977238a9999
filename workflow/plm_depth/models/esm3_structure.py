"""ESM3's structure encoder: backbone coordinates to the 4096 structure codes that ESM3 reads.

Each residue is described by itself and its nearest neighbours in space, seen from their frames; the description is
rounded to the nearest row of a codebook. A rigid motion of the whole chain changes nothing.
"""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from plm_depth.models import checkpoints
from plm_depth.models.base import CheckpointError
from plm_depth.models.esm3_network import Frames, GeometricAttention, backbone_frames, feed_forward
from plm_depth.models.untrained import untrained

N_NEIGHBOURS = 16
BINS = 32  # relative positions are told apart up to this distance along the chain


class _Block(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_mlp: int):
        super().__init__()
        self.geom_attn = GeometricAttention(d_model, n_heads, bias=True, zero_unknown=False)
        self.ffn = feed_forward(d_model, d_mlp, bias=True)

    def forward(self, stream: Tensor, frames: Frames) -> Tensor:
        stream = stream + self.geom_attn(stream, frames, None)
        return stream + self.ffn(stream)


class StructureEncoder(nn.Module):
    """The encoder with its codebook.

    Args:
        n_blocks, d_model, d_mlp, n_heads, d_out, n_codes: sizes, read from the file by ``load``.
    """

    def __init__(self, *, n_blocks: int, d_model: int, d_mlp: int, n_heads: int, d_out: int, n_codes: int):
        super().__init__()
        self.relative_positional_embedding = nn.Module()
        self.relative_positional_embedding.embedding = nn.Embedding(2 * BINS + 2, d_model)
        self.transformer = nn.Module()
        self.transformer.blocks = nn.ModuleList(_Block(d_model, n_heads, d_mlp) for _ in range(n_blocks))
        self.pre_vq_proj = nn.Linear(d_model, d_out)
        self.codebook = nn.Module()
        self.codebook.embeddings = nn.Buffer(torch.zeros(n_codes, d_out))
        self.codebook.N = nn.Buffer(torch.zeros(n_codes))
        self.codebook.z_avg = nn.Buffer(torch.zeros(n_codes, d_out))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Return the encoder of the official ``esm3_structure_encoder_v0.pth``, in evaluation mode, float32.

        Raises:
            CheckpointError: see ``plm_depth.models.checkpoints``.
        """
        path = Path(path)
        tensors = checkpoints.read_pickle(path)
        first = "transformer.blocks.0"
        d_out, d_model = checkpoints.shape_of(tensors, "pre_vq_proj.weight", 2, path)
        sizes = {
            "n_blocks": checkpoints.count_layers(tensors, r"transformer\.blocks\.(\d+)\."),
            "d_model": d_model,
            "d_mlp": checkpoints.shape_of(tensors, f"{first}.ffn.3.weight", 2, path)[1],
            "n_heads": checkpoints.shape_of(tensors, f"{first}.geom_attn.distance_scale_per_head", 1, path)[0],
            "d_out": d_out,
            "n_codes": checkpoints.shape_of(tensors, "codebook.embeddings", 2, path)[0],
        }
        module = untrained(lambda: cls(**sizes), None)
        return checkpoints.filled(module, tensors, path, dtype="float32").eval()

    def describe(self, coordinates: Tensor, residue_index: Tensor) -> Tensor:
        """Return the description of each residue before it is rounded, (n_residues, d_out).

        Args:
            coordinates: (n_residues, 3, 3), N, CA and C in Angstrom, not finite where missing.
            residue_index: (n_residues,) int64, numbers along the chain.
        """
        frames = backbone_frames(coordinates[None])
        rotation, origin, known = frames.rotation[0], frames.origin[0], frames.known[0]
        near = neighbours(coordinates[:, 1], known)
        offset = residue_index[near] - residue_index[near[:, :1]]
        stream = self.relative_positional_embedding.embedding(offset.clamp(-BINS, BINS) + BINS + 1)
        around = Frames(rotation[near], origin[near], known[near])
        for block in self.transformer.blocks:
            stream = block(stream, around)
        return self.pre_vq_proj(stream[:, 0].masked_fill(~known[:, None], 0.0))

    @torch.inference_mode()
    def codes(self, coordinates: Tensor, residue_index: Tensor | None = None) -> Tensor:
        """Return the structure code of each residue, (n_residues,) int64.

        Args:
            coordinates: (n_residues, 3, 3), N, CA and C in Angstrom, not finite where missing.
            residue_index: (n_residues,) numbers along the chain, 1, 2, ... by default.
        Raises:
            CheckpointError: the encoder gives NaN.
        """
        if residue_index is None:
            residue_index = torch.arange(1, len(coordinates) + 1, device=coordinates.device)
        described = self.describe(coordinates, residue_index)
        if not torch.isfinite(described).all():
            raise CheckpointError(
                "the structure encoder gives NaN or inf: its checkpoint or the coordinates are broken"
            )
        return torch.cdist(described, self.codebook.embeddings, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)


def neighbours(alphas: Tensor, known: Tensor) -> Tensor:
    """Return the nearest residues of each, itself first, (n_residues, 16 or fewer).

    Args:
        alphas: (n_residues, 3), CA in Angstrom.
        known: (n_residues,) bool, whether the residue has a frame. A pair that lacks one comes after all pairs that do
            not, in the order of its distance along the chain.
    """
    n = len(alphas)
    alphas = alphas.where(known[:, None], alphas.new_zeros(()))
    distance = (alphas[:, None] - alphas[None]).norm(dim=-1)
    order = torch.arange(n, device=alphas.device)
    along = (order[:, None] - order[None]).abs().to(distance.dtype) * 100 + 1e6
    both = known[:, None] & known[None]
    ranked = torch.where(both, distance, along).fill_diagonal_(-1.0)
    return ranked.argsort(dim=-1, stable=True)[:, :N_NEIGHBOURS]
