"""Toy transformers whose answers are known exactly, behind the same contract as the real families.

``toy(...)`` makes one with random weights, float64 on the CPU; the plants (``with_...``, ``without_...``, ``rescaled``,
``rotated``) return a changed copy and leave their argument alone. ``walk`` steps through one protein and keeps it all,
``write_activations`` writes the vector tables of that walk the plain way, one protein at a time: the reference for the
batched extraction and the source of the metrics' tests.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plm_depth.activations.keys import of_model
from plm_depth.models.base import Adapter, Batch, Context, SequenceError, Tokens, Updates
from plm_depth.models.branches import Branches
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS, LENS_KEYS, MOMENT_KEYS, MOMENTS, VectorWriter
from plm_depth.views import View, mask_of

BOS, EOS, PAD, MASK = range(4)
LETTERS = "LAGVSERTIDPKQNFYMHWC"  # token order of the residues: deliberately not that of AMINO_ACIDS
N_VOCABULARY = 4 + len(LETTERS)
N_HEADS = 4
EPSILON = 1e-12  # of the norms: tiny, so that a rescaled stream changes nothing that can be seen

# What each coordinate of the stream is for in the plants that need a wall between blocks.
LABEL_READ = slice(0, 2)  # two signs, written by the embedding
READ = slice(0, 16)  # written by the embedding only, zero at the specials; every block reads it
PLANTED = slice(16, 24)  # written by one block, read by one block
WRITTEN = slice(24, 32)  # written by every block, read by the head only


class Norm(nn.Module):
    """LayerNorm ("layer"), root mean square without gain ("rms"), or nothing ("identity")."""

    def __init__(self, kind: str, width: int):
        super().__init__()
        self.kind = kind
        if kind == "layer":
            self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, EPSILON)
        if self.kind == "rms":
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
        return x


class Block(nn.Module):
    """One block; ``attend`` and ``feed`` take a stream and return what is added to it."""

    def __init__(self, kind: str, width: int, hidden: int, scale: float, *, geometric: bool, parallel: bool):
        super().__init__()
        self.scale = scale
        self.norm = Norm(kind, width)
        self.query, self.key, self.value, self.attention_out = (nn.Linear(width, width) for _ in range(4))
        self.mlp_norm = self.norm if parallel else Norm(kind, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, hidden), nn.Linear(hidden, width)
        if geometric:
            self.geometric_norm = Norm(kind, width)
            self.geometric_in, self.geometric_out = nn.Linear(width, width), nn.Linear(width, width)

    def attend(self, stream: Tensor, bias: Tensor) -> Tensor:
        x = self.norm(stream)
        q, k, v = (f(x).unflatten(-1, (N_HEADS, -1)).transpose(-2, -3) for f in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
        return self.attention_out((weights @ v).transpose(-2, -3).flatten(-2)) / self.scale

    def feed(self, middle: Tensor) -> Tensor:
        return self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(middle)))) / self.scale

    def place(self, stream: Tensor, weights: Tensor) -> Tensor:
        """Stand in for geometric attention: a mean over the protein's tokens, through a nonlinearity."""
        pooled = weights @ self.geometric_norm(stream)
        return self.geometric_out(F.gelu(self.geometric_in(self.geometric_norm(stream) + pooled))) / self.scale


class Transformer(nn.Module):
    """The toy as its own library would write it: one forward pass, no stepping."""

    def __init__(
        self, *, n_blocks: int, d_model: int, norm: str, parallel: bool, causal: bool, scale: float, geometric: bool
    ):
        super().__init__()
        self.parallel, self.causal = parallel, causal
        self.embedding = nn.Parameter(torch.empty(N_VOCABULARY, d_model))
        self.place = nn.Parameter(torch.empty(512, d_model))
        self.blocks = nn.ModuleList(
            Block(norm, d_model, 2 * d_model, scale, geometric=geometric and k == 0, parallel=parallel)
            for k in range(n_blocks)
        )
        self.final_norm = Norm(norm, d_model)
        self.head_dense, self.head_norm = nn.Linear(d_model, d_model), Norm(norm, d_model)
        self.head_out = nn.Linear(d_model, N_VOCABULARY)

    def attention_bias(self, valid: Tensor) -> Tensor:
        """Return 0 where a token may look and -inf where not, (n_rows, 1, n_tokens, n_tokens)."""
        allowed = valid[:, None, None, :].expand(-1, 1, valid.shape[1], -1)
        if self.causal:
            allowed = allowed & torch.ones(valid.shape[1], valid.shape[1], dtype=torch.bool).tril()
        return torch.zeros(allowed.shape, dtype=self.embedding.dtype).masked_fill(~allowed, -math.inf)

    @staticmethod
    def pooling(valid: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weights of a mean over the real tokens, (n_rows, 1, n_tokens)."""
        weights = valid.to(dtype)
        return (weights / weights.sum(1, keepdim=True))[:, None, :]

    def head(self, stream: Tensor) -> Tensor:
        return self.head_out(self.head_norm(F.gelu(self.head_dense(self.final_norm(stream)))))

    def forward(self, ids: Tensor, valid: Tensor) -> Tensor:
        x = self.embedding[ids] + self.place[: ids.shape[1]]
        bias, pooling = self.attention_bias(valid), self.pooling(valid, x.dtype)
        for block in self.blocks:
            if self.parallel:
                x = x + (block.attend(x, bias) + block.feed(x))
                continue
            x = x + block.attend(x, bias)
            if hasattr(block, "geometric_out"):
                x = x + block.place(x, pooling)
            x = x + block.feed(x)
        return self.head(x)


class Toy(Adapter):
    """Adapter of the toy: masked ("mlm"), "diffusion", or causal ("ar", both directions, no mask token)."""

    family = "toy"
    max_residues = 500

    def __init__(self, module: Transformer, objective: str):
        self.module = module.eval()
        self.dtype = str(module.embedding.dtype).removeprefix("torch.")
        self.objective = objective
        self.is_parallel = module.parallel
        self.n_blocks, self.d_model = len(module.blocks), module.embedding.shape[1]
        self.residue_ids = np.array([4 + LETTERS.index(letter) for letter in AMINO_ACIDS])
        names = ["<bos>", "<eos>", "<pad>", "<mask>", *LETTERS]
        self.vocabulary = dict(enumerate(names))
        self.pad_id, self.mask_id = PAD, MASK
        if objective == "ar":
            self.read_offset, self.directions, self.mask_id = -1, ("n2c", "c2n"), None
            self.can_branch = True
            del self.vocabulary[MASK]  # an unused row of the head

    def encode(self, sequence: str, *, masked: np.ndarray | None = None, direction: str = "none") -> Tokens:
        self.check_sequence(sequence, AMINO_ACIDS)
        hidden = self.check_masked(sequence, masked)
        if direction not in self.directions:
            raise SequenceError(f"direction {direction!r}, expected one of {self.directions}")
        ids = self.residue_ids[[AMINO_ACIDS.index(letter) for letter in sequence]]
        residue_tokens = np.arange(1, len(sequence) + 1)
        if hidden.any():
            ids = np.where(hidden, MASK, ids)
        if direction == "c2n":
            return Tokens(np.array([EOS, *ids[::-1], BOS]), residue_tokens[::-1].copy(), hidden, direction)
        return Tokens(np.array([BOS, *ids, EOS]), residue_tokens, hidden, direction)

    def embed(self, batch: Batch) -> tuple[Tensor, Context]:
        stream = self.module.embedding[batch.ids] + self.module.place[: batch.ids.shape[1]]
        bias = self.module.attention_bias(batch.valid)
        return stream, Context({"bias": bias, "pooling": self.module.pooling(batch.valid, stream.dtype)})

    def branch(self, context: Context, branches: Branches) -> Context:
        sees = torch.from_numpy(branches.attends)
        bias = torch.zeros(sees.shape, dtype=self.module.embedding.dtype).masked_fill(~sees, -math.inf)
        return Context({"bias": bias[None, None]})  # a geometric branch reads the whole protein: not in causal toys

    def attention_update(self, block: int, stream: Tensor, context: Context) -> Tensor:
        return self.module.blocks[block - 1].attend(stream, context["bias"])

    def mlp_update(self, block: int, middle: Tensor, context: Context) -> Tensor:
        return self.module.blocks[block - 1].feed(middle)

    def geometric_update(self, block: int, stream: Tensor, context: Context) -> Tensor | None:
        at = self.module.blocks[block - 1]
        return at.place(stream, context["pooling"]) if hasattr(at, "geometric_out") else None

    def read_out(self, stream: Tensor) -> Tensor:
        return self.module.head(stream)

    def library_logits(self, batch: Batch) -> Tensor:
        return self.module(batch.ids, batch.valid)

    def reinitialise(self, seed: int) -> None:
        """Draw all weights anew, as ``toy(seed=seed)`` does."""
        initialise(self.module, seed)


@torch.no_grad()
def initialise(module: Transformer, seed: int) -> None:
    """Draw every parameter from a generator keyed by the seed: matrices of unit gain, small biases, gains near 1."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        if "norm" in name:
            noise = noise * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        elif parameter.ndim == 1:
            noise = noise * 0.1
        elif name == "place":
            noise = noise * 0.3
        elif name != "embedding":
            noise = noise / math.sqrt(parameter.shape[1])
        parameter.copy_(noise)


class Counting(Toy):
    """A toy that counts calls and rows of blocks and may run out of memory above some tokens."""

    def __init__(self, adapter: Toy, memory: int = 10**9):
        super().__init__(adapter.module, adapter.objective)
        self.calls = self.rows = self.largest = self.failures = 0
        self.memory = memory

    def updates(self, block, stream, context):
        tokens = stream.shape[0] * stream.shape[1]
        if tokens > self.memory:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate everything")
        self.calls, self.rows, self.largest = self.calls + 1, self.rows + len(stream), max(self.largest, tokens)
        return super().updates(block, stream, context)


def toy(
    *,
    seed: int = 0,
    variant: str = "sequential",
    norm: str = "layer",
    objective: str | None = None,
    n_blocks: int = 6,
    d_model: int = 32,
    geometric: bool = False,
) -> Toy:
    """Return a toy with random weights.

    Args:
        variant: "sequential", "parallel", "scaled" (updates divided by sqrt(n_blocks / 36)) or "causal" (sequential,
            objective "ar"); "parallel" with ``objective="ar"`` is causal too.
        norm: "layer", "rms" (without gain) or "identity".
        objective: "mlm", "diffusion" or "ar"; by default "ar" for "causal" and "mlm" for the others.
        geometric: a third update between attention and MLP in block 1 (not in parallel blocks).
    """
    if variant not in ("sequential", "parallel", "scaled", "causal"):
        raise ValueError(f"variant {variant!r}")
    objective = objective or ("ar" if variant == "causal" else "mlm")
    module = Transformer(
        n_blocks=n_blocks,
        d_model=d_model,
        norm=norm,
        parallel=variant == "parallel",
        causal=objective == "ar",
        scale=math.sqrt(n_blocks / 36) if variant == "scaled" else 1.0,
        geometric=geometric,
    ).double()
    initialise(module, seed)
    return Toy(module.requires_grad_(False), objective)


# ----------------------------------------------------------------------------------------------------------------
# Plants


def _planted(change: Callable[..., None]) -> Callable[..., Toy]:
    """Make a function that changes a toy in place one that returns a changed copy."""

    def plant(adapter: Toy, *args, **kwargs) -> Toy:
        changed = copy.deepcopy(adapter)
        with torch.no_grad():
            change(changed, *args, **kwargs)
        return changed

    plant.__name__, plant.__doc__ = change.__name__, change.__doc__
    return plant


def _silence(linear: nn.Linear) -> None:
    linear.weight.zero_()
    linear.bias.zero_()


@_planted
def with_zero_block(adapter: Toy, block: int) -> None:
    """Block ``block`` adds exactly nothing: its output projections (weights and biases) are zero."""
    at = adapter.module.blocks[block - 1]
    _silence(at.attention_out)
    _silence(at.mlp_out)
    if hasattr(at, "geometric_out"):
        _silence(at.geometric_out)


@_planted
def with_twin_blocks(adapter: Toy, block: int, twin: int) -> None:
    """Block ``twin`` gets the weights of block ``block``: swapping them changes nothing."""
    adapter.module.blocks[twin - 1].load_state_dict(adapter.module.blocks[block - 1].state_dict())


@_planted
def without_attention(adapter: Toy) -> None:
    """No block moves anything between positions: all attention output projections are zero."""
    for block in adapter.module.blocks:
        _silence(block.attention_out)


@_planted
def without_mlp(adapter: Toy) -> None:
    """All MLP output projections are zero."""
    for block in adapter.module.blocks:
        _silence(block.mlp_out)


@_planted
def rescaled(adapter: Toy, factor: float) -> None:
    """The stream is ``factor`` times larger (embeddings and output projections); norms hide it from all readers."""
    module = adapter.module
    module.embedding *= factor
    module.place *= factor
    for block in module.blocks:
        outputs = [block.attention_out, block.mlp_out]
        outputs += [block.geometric_out] if hasattr(block, "geometric_out") else []
        for linear in outputs:
            linear.weight *= factor
            linear.bias *= factor


@_planted
def rotated(adapter: Toy, seed: int = 0) -> None:
    """The basis of the stream is turned by a random orthogonal matrix; invisible with gain-free RMS or no norms."""
    module = adapter.module
    if module.final_norm.kind == "layer":
        raise ValueError("a rotation is visible through LayerNorm; use norm='rms' or 'identity'")
    random = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(adapter.d_model, adapter.d_model, generator=random, dtype=torch.float64))[0]
    module.embedding.copy_(module.embedding @ turn)
    module.place.copy_(module.place @ turn)
    readers, writers = [module.head_dense], []
    for block in module.blocks:
        readers += [block.query, block.key, block.value, block.mlp_in]
        writers += [block.attention_out, block.mlp_out]
        if hasattr(block, "geometric_out"):
            readers.append(block.geometric_in)
            writers.append(block.geometric_out)
    for linear in readers:
        linear.weight.copy_(linear.weight @ turn)
    for linear in writers:
        linear.weight.copy_(turn.T @ linear.weight)
        linear.bias.copy_(linear.bias @ turn)


def _only(matrix: Tensor, keep: slice, axis: int) -> None:
    """Zero a weight matrix outside ``keep`` along an axis (1: what is read, 0: what is written)."""
    mask = torch.zeros(matrix.shape[axis], dtype=matrix.dtype)
    mask[keep] = 1
    matrix *= mask[None, :] if axis else mask[:, None]


def _wall(adapter: Toy) -> None:
    """Let every block read READ and write WRITTEN only; READ is zero at the specials, PLANTED everywhere."""
    module = adapter.module
    if adapter.d_model != 32 or any(hasattr(block, "geometric_out") for block in module.blocks):
        raise ValueError("this plant is made for d_model=32 without a geometric branch")
    _only(module.embedding, READ, 1)
    module.embedding[[BOS, EOS, PAD]] = 0
    module.place.zero_()
    for block in module.blocks:
        for linear in (block.query, block.key, block.value, block.mlp_in):
            _only(linear.weight, READ, 1)
        for linear in (block.attention_out, block.mlp_out):
            _only(linear.weight, WRITTEN, 0)
            linear.bias[: WRITTEN.start] = 0


def _write_planted(adapter: Toy, source: int) -> None:
    """Let the MLP of block ``source`` write PLANTED as a function of READ that is zero where READ is zero."""
    block = adapter.module.blocks[source - 1]
    block.mlp_in.bias.zero_()  # GELU(0) = 0
    rows = block.mlp_out.weight[WRITTEN].clone()
    block.mlp_out.weight[PLANTED] = 3 * rows.flip(1)


@_planted
def with_dependency(adapter: Toy, source: int, target: int) -> None:
    """Block ``target`` depends on block ``source`` and on nothing else of any other block.

    The MLP of ``source`` writes a subspace that only ``target`` reads, and ``target`` reads nothing else, without
    biases: silencing ``source`` at every residue silences ``target``'s whole update. Exact with norm="identity"; a
    LayerNorm couples the subspaces through the length of the stream.
    """
    _wall(adapter)
    _write_planted(adapter, source)
    reader = adapter.module.blocks[target - 1]
    for linear in (reader.query, reader.key, reader.value, reader.mlp_in):
        linear.weight[:, PLANTED] = linear.weight[:, : PLANTED.stop - PLANTED.start]
        _only(linear.weight, PLANTED, 1)
        linear.bias.zero_()
    reader.attention_out.bias.zero_()
    reader.mlp_out.bias.zero_()


@_planted
def with_copy(adapter: Toy, source: int, target: int) -> None:
    """Only the attention of block ``target`` carries what block ``source`` wrote to other positions.

    The MLP of ``source`` writes a subspace; ``target``'s attention, uniform over the tokens, averages it, and its MLP
    does nothing: under skips at other positions only (source, target) has an effect. Exact with norm="identity".
    """
    _wall(adapter)
    _write_planted(adapter, source)
    reader = adapter.module.blocks[target - 1]
    _silence(reader.query)
    _silence(reader.key)
    reader.value.weight[:, PLANTED] = reader.value.weight[:, : PLANTED.stop - PLANTED.start]
    _only(reader.value.weight, PLANTED, 1)
    reader.value.bias.zero_()
    reader.attention_out.bias.zero_()
    _silence(reader.mlp_out)


@_planted
def with_label(adapter: Toy, block: int) -> None:
    """Block ``block`` writes ``label_of`` each residue into coordinate 2; no linear reader can know it before.

    The embedding holds two signs and the place only; the label is their product, which no linear map finds, and the
    other blocks read only the place. Needs norm="identity".
    """
    module = adapter.module
    if module.final_norm.kind != "identity":
        raise ValueError("the label is planted in absolute coordinates; use norm='identity'")
    module.embedding.zero_()
    module.place[:, :3] = 0
    for letter, token in zip(AMINO_ACIDS, adapter.residue_ids):
        module.embedding[token, LABEL_READ] = torch.tensor(_signs(letter), dtype=module.embedding.dtype)
    for at in module.blocks:
        for linear in (at.query, at.key, at.value, at.mlp_in):
            linear.weight[:, :3] = 0
        for linear in (at.attention_out, at.mlp_out):
            linear.weight[:3] = 0
            linear.bias[:3] = 0
    writer = module.blocks[block - 1]
    # |x + y| - |x - y| = 2 x y for signs, and gelu(z) + gelu(-z) is |z| for large z.
    sharp = 50.0
    writer.mlp_in.weight[:4] = 0
    writer.mlp_in.bias[:4] = 0
    writer.mlp_in.weight[:4, :2] = sharp * torch.tensor([[1.0, 1.0], [-1, -1], [1, -1], [-1, 1]], dtype=torch.float64)
    writer.mlp_out.weight[:, :4] = 0
    writer.mlp_out.weight[2] = 0
    writer.mlp_out.weight[2, :4] = torch.tensor([1.0, 1, -1, -1], dtype=torch.float64) / (2 * sharp)


def _signs(letter: str) -> tuple[float, float]:
    index = AMINO_ACIDS.index(letter)
    return (1.0 if index & 1 else -1.0), (1.0 if index & 2 else -1.0)


def label_of(letter: str) -> int:
    """Return the label, 0 or 1, that ``with_label`` plants for a residue."""
    x, y = _signs(letter)
    return int(x * y > 0)


# ----------------------------------------------------------------------------------------------------------------
# The plain walk


@dataclass(frozen=True)
class Walk:
    """One protein: streams (n_blocks + 1, n_tokens, d_model), updates (n_blocks, ...), logits of every layer."""

    tokens: Tokens
    streams: np.ndarray
    updates: list[Updates]
    logits: np.ndarray


@torch.inference_mode()
def walk(adapter: Adapter, tokens: Tokens) -> Walk:
    """Step through one protein, one row, no padding."""
    batch = adapter.collate([tokens])
    stream, context = adapter.embed(batch)
    streams, updates = [stream[0]], []
    for block in range(1, adapter.n_blocks + 1):
        step = adapter.updates(block, stream, context)
        stream = adapter.add(stream, step)
        geometric = None if step.geometric is None else step.geometric[0]
        updates.append(Updates(step.attention[0], step.mlp[0], step.middle[0], geometric))
        streams.append(stream[0])
    stacked = torch.stack(streams)
    return Walk(tokens, stacked.double().numpy(), updates, adapter.read_out(stacked).double().numpy())


@torch.no_grad()
def along(adapter: Adapter, work, course: Sequence) -> np.ndarray:
    """Return the log-probabilities (n_reads, 20) of one pass over a course, a plain loop over the adapter's blocks.

    Args:
        work: tokens and reads of a protein (``activations.sweep.Work``).
        course: block numbers, groups of blocks that read one stream, and vectors that are added.
    """
    stream, context = adapter.embed(adapter.collate([work.tokens]))
    for step in course:
        if isinstance(step, Tensor):
            stream = stream + step.to(stream)
        elif isinstance(step, tuple | list):
            stream = stream + sum(adapter.updates(block, stream, context).total for block in step)
        else:
            stream = adapter.add(stream, adapter.updates(step, stream, context))
    logits = adapter.read_out(stream[0, torch.from_numpy(work.reads)])
    return logits[:, torch.from_numpy(adapter.residue_ids)].double().log_softmax(-1).numpy()


def moments_of(walked: Walk) -> np.ndarray:
    """Return the moments of every token, (n_blocks + 1, n_tokens, len(MOMENTS)) float64, as plm_depth.tables says."""
    n_layers, n_tokens, _ = walked.streams.shape
    out = np.full((n_layers, n_tokens, len(MOMENTS)), np.nan)

    def dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x * y).sum(-1)

    for layer, h in enumerate(walked.streams):
        values = {"hh": dot(h, h), "sum_h": h.sum(-1), "max_h2": (h * h).max(-1)}
        if layer:
            before = walked.streams[layer - 1]
            step = walked.updates[layer - 1]
            a, m, u, mid = (x.double().numpy() for x in (step.attention, step.mlp, step.total, step.middle))
            values |= {"aa": dot(a, a), "mm": dot(m, m), "uu": dot(u, u), "ha": dot(before, a), "hu": dot(before, u)}
            values |= {"am": dot(a, m), "mid_mid": dot(mid, mid), "mid_m": dot(mid, m), "h_next": dot(before, h)}
            if step.geometric is not None:
                g = step.geometric.double().numpy()
                values |= {"gg": dot(g, g), "mid_g": dot(before + a, g), "ga_ga": dot(before + a, before + a)}
        for name, value in values.items():
            out[layer, :, MOMENTS.index(name)] = value
    return out


def constants_of(adapter: Adapter, model_id: str = "toy") -> dict[str, object]:
    """Return what is constant over the vector tables of one model."""
    letters = [adapter.vocabulary[int(token)] for token in adapter.residue_ids]
    return of_model(adapter, model_id) | {"amino_acid_columns": letters}


def write_activations(
    adapter: Adapter,
    proteins: Sequence[tuple[str, str]],
    views: Sequence[View],
    *,
    moments: Path,
    lens: Path,
    seed: int = 0,
    null_model: str = "trained",
    null_seed: int = -1,
    model_id: str = "toy",
    dtype: str = "float32",
) -> None:
    """Write moments and lens tables of (sequence_id, sequence) pairs under one null model, one protein at a time."""
    layers = range(adapter.n_blocks + 1)
    constants = constants_of(adapter, model_id)
    columns = list(adapter.vocabulary)
    names = [adapter.vocabulary[i] for i in columns]
    with (
        VectorWriter(moments, MOMENT_KEYS, layers, len(MOMENTS), dtype, constants, MOMENTS) as moments_writer,
        VectorWriter(lens, LENS_KEYS, layers, len(columns), dtype, constants, names) as lens_writer,
    ):
        for view in views:
            for sequence_id, sequence in proteins:
                shown = sequence
                if null_model == "shuffle_seq":
                    shown = "".join(generator(null_seed, "shuffle_seq", sequence_id).permutation(list(sequence)))
                n = len(shown)
                masked = mask_of(view, n, seed, sequence_id)
                tokens = adapter.encode(shown, masked=masked if masked.any() else None, direction=view.direction)
                walked = walk(adapter, tokens)
                keys = {
                    "sequence_id": sequence_id,
                    "n_residues": n,
                    "null_model": null_model,
                    "null_seed": null_seed,
                    "condition": "seq",
                    "direction": view.direction,
                    "noise_t": view.noise_t,
                    "mask_draw": view.mask_draw,
                }
                specials = np.setdiff1d(np.arange(tokens.n_tokens), tokens.residue_tokens)
                before = (specials == 0) == (view.direction != "c2n")
                order = np.concatenate([tokens.residue_tokens, specials])
                position = np.concatenate([np.arange(n), np.where(before, -1, n)])
                pos_class = [*np.where(masked, "masked", "unmasked"), *["special"] * len(specials)]
                moments_writer.append(
                    {**keys, "position": position, "pos_class": pos_class}, moments_of(walked)[:, order]
                )
                read = adapter.read_positions(shown, tokens, which=view.reads)
                logits = walked.logits[:, tokens.residue_tokens[read] + adapter.read_offset][..., columns]
                true = np.array([AMINO_ACIDS.index(shown[p]) for p in read], np.int16)
                hidden = np.ones(len(read), bool) if view.reads == "next" else masked[read]
                lens_writer.append({**keys, "position": read, "true_aa": true, "is_masked": hidden}, logits)
