"""The network of ESM3, in plain torch: no library that can be installed here has it.

Module names are those of the official flat state dict, so that it loads strictly. Blocks are ESM C's, with a geometric
attention branch in the first; every branch is divided by sqrt(n_blocks / 36) before it enters the stream.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

N_SEQUENCE = 64  # rows of the sequence track, for 33 tokens
CHAIN_BREAK, MASK, PAD, BOS, EOS = 31, 32, 1, 0, 2  # of the sequence track
N_STRUCTURE_CODES = 4096
STRUCTURE_MASK, STRUCTURE_EOS, STRUCTURE_BOS, STRUCTURE_PAD, STRUCTURE_BREAK = 4096, 4097, 4098, 4099, 4100
N_STRUCTURE = 4101
N_SS8, N_SASA, N_RESIDUE = 11, 19, 1478
N_FUNCTION, N_FUNCTION_TRACKS = 260, 8
HEADS_AT_ONCE = 32  # of geometric attention, whose 256 heads would fill the memory with pairs of tokens
HEADS = {
    "sequence": N_SEQUENCE,
    "structure": N_STRUCTURE_CODES,
    "ss8": N_SS8,
    "sasa": N_SASA,
    "function": N_FUNCTION * N_FUNCTION_TRACKS,
    "residue": N_RESIDUE,
}


@dataclass(frozen=True)
class Frames:
    """A rotation and an origin for each residue.

    Attributes:
        rotation: (..., n_tokens, 3, 3), columns are the axes.
        origin: (..., n_tokens, 3), Angstrom.
        known: (..., n_tokens) bool, whether N, CA and C are there; the others have the frame of the mean structure.
    """

    rotation: Tensor
    origin: Tensor
    known: Tensor

    def rotate(self, vectors: Tensor) -> Tensor:
        """Return vectors (..., n_tokens, n_vectors, 3) turned by each token's rotation."""
        return torch.einsum("...ij,...vj->...vi", self.rotation, vectors)

    def rotate_back(self, vectors: Tensor) -> Tensor:
        """Return vectors (..., n_tokens, n_vectors, 3) turned by the inverse of each token's rotation."""
        return torch.einsum("...ji,...vj->...vi", self.rotation, vectors)

    def place(self, vectors: Tensor) -> Tensor:
        """Return vectors (..., n_tokens, n_vectors, 3) turned and moved to each token's origin."""
        return self.rotate(vectors) + self.origin[..., None, :]


def backbone_frames(coordinates: Tensor) -> Frames:
    """Return the frames of backbones, (n_rows, n_tokens, 3 or more, 3) with N, CA, C first, Angstrom.

    A residue with an atom that is not finite has no frame of its own; it gets that of the mean N, CA and C of its row,
    or the identity at the origin where the whole row has none.
    """
    backbone = coordinates[..., :3, :]
    known = (torch.isfinite(backbone) & (backbone < 1e6)).all(-1).all(-1)
    backbone = backbone.where(known[..., None, None], backbone.new_zeros(()))
    mean = backbone.sum(1) / (known.sum(-1)[:, None, None] + 1e-8)
    rotation, origin = _frame(backbone)
    mean_rotation, mean_origin = _frame(mean)
    identity = torch.eye(3, dtype=rotation.dtype, device=rotation.device)
    mean_rotation = mean_rotation.where(known.any(-1)[:, None, None], identity)
    return Frames(
        rotation.where(known[..., None, None], mean_rotation[:, None]),
        origin.where(known[..., None], mean_origin[:, None]),
        known,
    )


def _frame(backbone: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotation (..., 3, 3) and origin (..., 3) of N, CA, C, (..., 3, 3): x from C to CA, N in the xy plane."""
    n, ca, c = backbone.unbind(-2)
    first = _unit(ca - c)
    second = n - ca
    second = _unit(second - (first * second).sum(-1, keepdim=True) * first)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1), ca


def _unit(vector: Tensor) -> Tensor:
    return vector / ((vector**2).sum(-1, keepdim=True) + 1e-10).sqrt()


class GeometricAttention(nn.Module):
    """Attention between residues by the places and directions of vectors in their frames.

    Args:
        d_model: width of the stream.
        n_heads: geometric heads, of three-dimensional vectors.
        bias: whether linear maps and norm have one (the structure encoder's do).
        zero_unknown: whether residues without a frame get nothing (in the trunk they do not).
    """

    def __init__(self, d_model: int, n_heads: int, *, bias: bool = False, zero_unknown: bool = True):
        super().__init__()
        self.n_heads, self.zero_unknown = n_heads, zero_unknown
        self.s_norm = nn.LayerNorm(d_model, bias=bias)
        self.proj = nn.Linear(d_model, 15 * n_heads, bias=bias)
        self.out_proj = nn.Linear(3 * n_heads, d_model, bias=bias)
        self.distance_scale_per_head = nn.Parameter(torch.zeros(n_heads))
        self.rotation_scale_per_head = nn.Parameter(torch.zeros(n_heads))

    def forward(self, stream: Tensor, frames: Frames, same: Tensor | None) -> Tensor:
        """Return the branch, (n_rows, n_tokens, d_model).

        Args:
            stream: (n_rows, n_tokens, d_model).
            frames: of the tokens.
            same: (n_rows, n_tokens, n_tokens) bool, pairs of one sequence (they score 1 higher), None for all.
        """
        vectors = self.proj(self.s_norm(stream)).unflatten(-1, (5 * self.n_heads, 3))
        with torch.autocast(stream.device.type, enabled=False):  # positions in Angstrom need all their digits
            vectors = vectors.to(frames.rotation.dtype)
            q_rotated, k_rotated, value, q_placed, k_placed = vectors.split(self.n_heads, dim=-2)
            q_rotated, k_rotated, value = (frames.rotate(v).transpose(1, 2) for v in (q_rotated, k_rotated, value))
            q_placed, k_placed = (frames.place(v).transpose(1, 2) for v in (q_placed, k_placed))
            pairs = value.new_ones(value.shape[0], value.shape[2], value.shape[2]) if same is None else same
            bias = pairs.to(value.dtype).masked_fill(~frames.known[:, None, :], torch.finfo(value.dtype).min)
            mixed = []
            for first in range(0, self.n_heads, HEADS_AT_ONCE):
                some = slice(first, first + HEADS_AT_ONCE)
                scores = self._scores(some, q_rotated, k_rotated, q_placed, k_placed) + bias[:, None]
                mixed.append(scores.softmax(-1) @ value[:, some])
            mixed = frames.rotate_back(torch.cat(mixed, dim=1).transpose(1, 2)).flatten(-2)
        if self.zero_unknown:
            mixed = mixed.masked_fill(~frames.known[..., None], 0.0)
        return self.out_proj(mixed.to(stream.dtype))

    def _scores(self, heads: slice, q_rotated: Tensor, k_rotated: Tensor, q_placed: Tensor, k_placed: Tensor) -> Tensor:
        """Return the scores of some heads, (n_rows, n_some, n_tokens, n_tokens)."""
        direction = q_rotated[:, heads] @ k_rotated[:, heads].transpose(-1, -2) / math.sqrt(3)
        q, k = q_placed[:, heads], k_placed[:, heads]
        squared = torch.zeros_like(direction)
        for axis in range(3):  # one axis at a time: a third of the memory
            squared += (q[..., axis, None] - k[..., None, :, axis]) ** 2
        distance = squared.sqrt() / math.sqrt(3)
        return (
            direction * functional.softplus(self.rotation_scale_per_head[heads])[:, None, None]
            - distance * functional.softplus(self.distance_scale_per_head[heads])[:, None, None]
        )


class SelfAttention(nn.Module):
    """Rotary attention with norms on whole queries and keys, without biases."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.n_heads, self.head_dim = n_heads, d_model // n_heads
        self.layernorm_qkv = nn.Sequential(nn.LayerNorm(d_model), nn.Linear(d_model, 3 * d_model, bias=False))
        self.q_ln = nn.LayerNorm(d_model, bias=False)
        self.k_ln = nn.LayerNorm(d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, stream: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.layernorm_qkv(stream).chunk(3, dim=-1)
        q, k = self.q_ln(q).to(q.dtype), self.k_ln(k).to(k.dtype)
        q, k, v = (x.unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(-2))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class SwiGLU(nn.Module):
    """The first half of the coordinates gates the second."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate) * up


def feed_forward(d_model: int, d_mlp: int, *, bias: bool = False) -> nn.Sequential:
    """Return norm, gated MLP and output map."""
    return nn.Sequential(
        nn.LayerNorm(d_model),
        nn.Linear(d_model, 2 * d_mlp, bias=bias),
        SwiGLU(),
        nn.Linear(d_mlp, d_model, bias=bias),
    )


class Block(nn.Module):
    """Attention, in the first block geometric attention, and MLP, each divided by ``divisor``."""

    def __init__(self, d_model: int, n_heads: int, d_mlp: int, divisor: float, n_geometric_heads: int | None):
        super().__init__()
        self.divisor = divisor
        self.attn = SelfAttention(d_model, n_heads)
        self.geom_attn = GeometricAttention(d_model, n_geometric_heads) if n_geometric_heads else None
        self.ffn = feed_forward(d_model, d_mlp)

    def forward(self, stream: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor, frames, same) -> Tensor:
        stream = stream + self.attn(stream, mask, cos, sin) / self.divisor
        if self.geom_attn is not None and frames is not None:  # without frames the branch is exactly zero
            stream = stream + self.geom_attn(stream, frames, same) / self.divisor
        return stream + self.ffn(stream) / self.divisor


class Encoder(nn.Module):
    """The sum of the embeddings of all tracks."""

    def __init__(self, d_model: int):
        super().__init__()
        self.sequence_embed = nn.Embedding(N_SEQUENCE, d_model)
        self.plddt_projection = nn.Linear(16, d_model)
        self.structure_per_res_plddt_projection = nn.Linear(16, d_model)
        self.structure_tokens_embed = nn.Embedding(N_STRUCTURE, d_model)
        self.ss8_embed = nn.Embedding(N_SS8, d_model)
        self.sasa_embed = nn.Embedding(N_SASA, d_model)
        self.function_embed = nn.ModuleList(
            nn.Embedding(N_FUNCTION, d_model // N_FUNCTION_TRACKS, padding_idx=0) for _ in range(N_FUNCTION_TRACKS)
        )
        self.residue_embed = nn.EmbeddingBag(N_RESIDUE, d_model, mode="sum", padding_idx=0)

    def forward(self, tracks: Mapping[str, Tensor]) -> Tensor:
        function = [embed(tracks["function"][..., i]) for i, embed in enumerate(self.function_embed)]
        residue = tracks["residue"]
        bag = self.residue_embed(residue.flatten(0, 1)).unflatten(0, residue.shape[:2])
        return (
            self.sequence_embed(tracks["sequence"])
            + self.plddt_projection(_radial(tracks["average_plddt"]))
            + self.structure_per_res_plddt_projection(_radial(tracks["per_res_plddt"]))
            + self.structure_tokens_embed(tracks["structure"])
            + self.ss8_embed(tracks["ss8"])
            + self.sasa_embed(tracks["sasa"])
            + torch.cat(function, dim=-1)
            + bag
        )


def _radial(values: Tensor) -> Tensor:
    """Return 16 radial functions, evenly on 0..1, of values (...): (..., 16)."""
    centres = torch.linspace(0, 1, 16, device=values.device, dtype=values.dtype)
    return (-(((values[..., None] - centres) * 16) ** 2)).exp()


def head(d_model: int, n_out: int) -> nn.Sequential:
    """Return the read-out of one track, after the final norm."""
    return nn.Sequential(nn.Linear(d_model, d_model), nn.GELU(), nn.LayerNorm(d_model), nn.Linear(d_model, n_out))


class Esm3Network(nn.Module):
    """ESM3's trunk with its embeddings and heads.

    Args:
        n_blocks, d_model, n_heads, d_mlp, n_geometric_heads: sizes.
    """

    def __init__(self, *, n_blocks: int, d_model: int, n_heads: int, d_mlp: int, n_geometric_heads: int):
        super().__init__()
        self.sizes = {
            "n_blocks": n_blocks,
            "d_model": d_model,
            "n_heads": n_heads,
            "d_mlp": d_mlp,
            "n_geometric_heads": n_geometric_heads,
        }
        self.encoder = Encoder(d_model)
        divisor = math.sqrt(n_blocks / 36)
        self.transformer = nn.Module()
        self.transformer.blocks = nn.ModuleList(
            Block(d_model, n_heads, d_mlp, divisor, n_geometric_heads if block == 0 else None)
            for block in range(n_blocks)
        )
        self.transformer.norm = nn.LayerNorm(d_model, bias=False)
        self.output_heads = nn.ModuleDict({f"{track}_head": head(d_model, rows) for track, rows in HEADS.items()})

    def rotary(self, n_tokens: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, (1, 1, n_tokens, head_dim), of positions from 0."""
        dim = self.sizes["d_model"] // self.sizes["n_heads"]
        frequencies = 1.0 / 10000 ** (torch.arange(0, dim, 2, device=like.device, dtype=torch.float32) / dim)
        angles = torch.arange(n_tokens, device=like.device, dtype=torch.float32)[:, None] * frequencies
        angles = torch.cat([angles, angles], dim=-1)[None, None]
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    def start(self, sequence: Tensor, valid: Tensor, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, object]]:
        """Return h_0 and what the blocks need besides it.

        Args:
            sequence: (n_rows, n_tokens) tokens of the sequence track.
            valid: (n_rows, n_tokens) bool; padded tokens see each other only.
            inputs: further tracks, each optional: structure_tokens, structure_coords, per_res_plddt, average_plddt.
        """
        kind = self.encoder.plddt_projection.weight.dtype
        kind = torch.float64 if kind == torch.float64 else torch.float32
        shape = sequence.shape
        structure = inputs.get("structure_tokens", torch.full_like(sequence, STRUCTURE_MASK))
        structure = structure.masked_fill(structure == -1, STRUCTURE_MASK)
        for here, there in (
            (BOS, STRUCTURE_BOS),
            (PAD, STRUCTURE_PAD),
            (EOS, STRUCTURE_EOS),
            (CHAIN_BREAK, STRUCTURE_BREAK),
        ):
            structure = structure.masked_fill(sequence == here, there)

        def number(name: str, default: float) -> Tensor:
            value = inputs.get(name, torch.tensor(default, device=sequence.device))
            return value.to(kind).expand(shape)

        stream = self.encoder(
            {
                "sequence": sequence,
                "structure": structure,
                "ss8": torch.zeros_like(sequence),
                "sasa": torch.zeros_like(sequence),
                "function": sequence.new_zeros(*shape, N_FUNCTION_TRACKS),
                "residue": sequence.new_zeros(*shape, 16),
                "average_plddt": number("average_plddt", 1.0),
                "per_res_plddt": number("per_res_plddt", 0.0),
            }
        )
        same = None if bool(valid.all()) else valid[:, :, None] == valid[:, None, :]
        cos, sin = self.rotary(shape[1], stream)
        frames = backbone_frames(inputs["structure_coords"].to(kind)) if "structure_coords" in inputs else None
        return stream, {
            "mask": None if same is None else same[:, None],
            "same": same,
            "cos": cos,
            "sin": sin,
            "rotation": None if frames is None else frames.rotation,
            "origin": None if frames is None else frames.origin,
            "known": None if frames is None else frames.known,
        }

    def forward(self, sequence: Tensor, valid: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits of every track; see ``start`` for the arguments."""
        stream, context = self.start(sequence, valid, inputs)
        frames = frames_of(context)
        for block in self.transformer.blocks:
            stream = block(stream, context["mask"], context["cos"], context["sin"], frames, context["same"])
        final = self.transformer.norm(stream)
        return {track: self.output_heads[f"{track}_head"](final) for track in HEADS}


def frames_of(context: Mapping[str, object]) -> Frames | None:
    """Return the frames of a context, or None where no row has coordinates."""
    if context["rotation"] is None:
        return None
    return Frames(context["rotation"], context["origin"], context["known"])
