"""The same block updates with fewer passes over memory, for the measurements that evaluate blocks many times.

``steps(adapter)`` returns an object with the adapter's ``updates`` and ``mlp_update``. For the families it knows it
works on the library's own weights with fused operators: one product for query, key and value, rotation as a complex
product, the activation in one pass, and no score matrix in memory. Results agree with the library's within rounding;
every other family, and every model in double precision, gets the adapter itself. An adapter names the blocks that it
walks in ``fast_blocks``.

Weights are copied when ``steps`` is called: call it again after weights have changed.
"""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plm_depth.models.base import Adapter, Context, Updates

TOKENS_AT_ONCE = 2048  # rows x tokens that pass a block together on a CPU


class Steps(Protocol):
    """What evaluates blocks: an adapter, or its fast counterpart."""

    def updates(self, block: int, stream: Tensor, context: Context) -> Updates: ...

    def mlp_update(self, block: int, middle: Tensor, context: Context) -> Tensor: ...


def steps(adapter: Adapter) -> Steps:
    """Return the fast counterpart of an adapter where there is one, else the adapter."""
    if next(adapter.module.parameters()).dtype == torch.float64:
        return adapter
    maker = _maker(adapter)
    return adapter if maker is None else maker(adapter)


def _maker(adapter: Adapter) -> "type[_Fast] | None":
    """Return the class that the adapter names, unless a class below changed what its blocks do."""
    kind = type(adapter)
    named_by = next(owner for owner in kind.__mro__ if "fast_blocks" in vars(owner))
    walk = ("updates", "attention_update", "mlp_update")
    same = all(getattr(kind, name) is getattr(named_by, name) for name in walk)
    return MAKERS[adapter.fast_blocks] if adapter.fast_blocks is not None and same else None


class _Fast(ABC):
    """Shared parts: rows a few at a time, and rotation."""

    def __init__(self, adapter: Adapter):
        self.adapter = adapter

    def updates(self, block: int, stream: Tensor, context: Context) -> Updates:
        """Return what a block adds. On a CPU rows go a few at a time, so that what is between stays in its caches."""
        n_rows, n_tokens = stream.shape[:2]
        shared = all(
            value.shape[0] == 1 for value in context.values.values() if isinstance(value, Tensor) and value.ndim
        )
        n_parts = -(-n_rows * n_tokens // TOKENS_AT_ONCE)
        if stream.device.type != "cpu" or not shared or n_parts < 2 or n_rows < 2:
            return self._updates(block, stream, context)
        rows_at_once = -(-n_rows // n_parts)
        attention = mlp = middle = None
        for start in range(0, n_rows, rows_at_once):
            rows = slice(start, start + rows_at_once)
            part = self._updates(block, stream[rows], context)
            if attention is None:
                attention, mlp = (x.new_empty(n_rows, *x.shape[1:]) for x in (part.attention, part.mlp))
                middle = stream if part.middle.data_ptr() == stream.data_ptr() else torch.empty_like(stream)
            attention[rows], mlp[rows] = part.attention, part.mlp
            if middle is not stream:
                middle[rows] = part.middle
        return Updates(attention, mlp, middle)

    @abstractmethod
    def _updates(self, block: int, stream: Tensor, context: Context) -> Updates:
        """Return what a block adds to the rows given, all at once."""

    @abstractmethod
    def mlp_update(self, block: int, middle: Tensor, context: Context) -> Tensor:
        """Return m_k for the stream that the MLP reads, as ``Adapter.mlp_update``."""


class FastEsm(_Fast):
    """Blocks of ``EsmForMaskedLM``.

    The library rotates the two halves of a head against each other. Rows of the query and key projections are reordered
    so that partners are neighbours, which changes no inner product, and a rotation is one complex product.
    """

    def __init__(self, adapter: Adapter):
        super().__init__(adapter)
        config = adapter.module.config
        self.n_heads = config.num_attention_heads
        self.head = config.hidden_size // self.n_heads
        self.is_rotary = adapter.module.esm.rotary_embeddings is not None
        self.layers = adapter.module.esm.encoder.layer
        self.projections = [self._projection(layer.attention.self) for layer in self.layers]
        self._turned: tuple[Tensor, Tensor] | None = None

    def _projection(self, attention: nn.Module) -> tuple[Tensor, Tensor]:
        def neighbours(x: Tensor) -> Tensor:
            if not self.is_rotary:
                return x
            return x.unflatten(0, (self.n_heads, 2, self.head // 2)).transpose(1, 2).flatten(0, 2)

        with torch.no_grad():
            parts = [neighbours(attention.query.weight), neighbours(attention.key.weight), attention.value.weight]
            biases = [neighbours(attention.query.bias), neighbours(attention.key.bias), attention.value.bias]
            return torch.cat(parts), torch.cat(biases)

    def _updates(self, block: int, stream: Tensor, context: Context) -> Updates:
        layer = self.layers[block - 1]
        weight, bias = self.projections[block - 1]
        qkv = F.linear(layer.attention.LayerNorm(stream), weight, bias).unflatten(-1, (3, self.n_heads, self.head))
        query, key, value = qkv.unbind(-3)
        if self.is_rotary:
            turn = self._rotation(context["cos"], context["sin"])
            query, key = _turned(query, turn), _turned(key, turn)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=context["mask"],
            scale=self.head**-0.5,
        )
        attention = layer.attention.output.dense(mixed.transpose(1, 2).flatten(-2))
        middle = stream + attention
        return Updates(attention, self.mlp_update(block, middle, context), middle)

    def mlp_update(self, block: int, middle: Tensor, context: Context) -> Tensor:
        layer = self.layers[block - 1]
        return layer.output.dense(F.gelu(layer.intermediate.dense(layer.LayerNorm(middle))))

    def _rotation(self, cos: Tensor, sin: Tensor) -> Tensor:
        """Return exp(i angle), (1, n_tokens, n_heads, head / 2), kept for the tables it was made from."""
        if self._turned is None or self._turned[0] is not cos:
            half = self.head // 2
            turn = torch.complex(cos[..., :half].float(), sin[..., :half].float())[:, :, None]
            self._turned = cos, turn.expand(-1, -1, self.n_heads, -1).contiguous()
        return self._turned[1]


class FastGptJ(_Fast):
    """Blocks of ``GPTJForCausalLM``: both branches read one norm; neighbours of a head are rotated."""

    def __init__(self, adapter: Adapter):
        super().__init__(adapter)
        config = adapter.module.config
        self.n_heads, self.head = config.n_head, config.n_embd // config.n_head
        self.n_rotated = config.rotary_dim or self.head
        self.layers = adapter.module.transformer.h
        with torch.no_grad():
            self.projections = [
                torch.cat([layer.attn.q_proj.weight, layer.attn.k_proj.weight, layer.attn.v_proj.weight])
                for layer in self.layers
            ]
        self._turned: tuple[Tensor, Tensor] | None = None

    def _updates(self, block: int, stream: Tensor, context: Context) -> Updates:
        layer = self.layers[block - 1]
        normed = layer.ln_1(stream)
        qkv = F.linear(normed, self.projections[block - 1]).unflatten(-1, (3, self.n_heads, self.head))
        query, key, value = qkv.unbind(-3)
        turn = self._rotation(context["positions"])
        for x in (query, key):
            x[..., : self.n_rotated] = _turned(x[..., : self.n_rotated], turn)
        mixed = self._attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), context)
        attention = layer.attn.out_proj(mixed.flatten(-2))
        return Updates(attention, self._mlp(layer, normed), stream)

    def mlp_update(self, block: int, middle: Tensor, context: Context) -> Tensor:
        layer = self.layers[block - 1]
        return self._mlp(layer, layer.ln_1(middle))

    @staticmethod
    def _mlp(layer: nn.Module, normed: Tensor) -> Tensor:
        return layer.mlp.fc_out(F.gelu(layer.mlp.fc_in(normed), approximate="tanh"))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, context: Context) -> Tensor:
        """Return the mixed values (n_rows, n_tokens, n_heads, head)."""
        attend = F.scaled_dot_product_attention
        branches = context.values.get("branches")
        if branches is None:
            # Rows are padded at their end, which no token of the protein sees.
            return attend(query, key, value, is_causal=True).transpose(1, 2)
        trunk = slice(0, branches.trunk)
        mixed = query.new_empty(query.shape[0], query.shape[2], *query.shape[1::2])
        mixed[:, trunk] = attend(query[:, :, trunk], key[:, :, trunk], value[:, :, trunk], is_causal=True).transpose(
            1, 2
        )
        for point, span in zip(branches.points, branches.spans):
            seen = [torch.cat([x[:, :, :point], x[:, :, span]], dim=2) for x in (key, value)]
            length = span.stop - span.start
            # All of the trunk up to the point, and the branch up to the token itself.
            allowed = torch.ones(length, point + length, dtype=torch.bool, device=query.device).tril(point)
            mixed[:, span] = attend(query[:, :, span], *seen, attn_mask=allowed).transpose(1, 2)
        return mixed

    def _rotation(self, positions: Tensor) -> Tensor:
        """Return exp(i angle), (1, n_tokens, n_heads, n_rotated / 2), kept for the positions it was made for."""
        if self._turned is None or self._turned[0] is not positions:
            table = self.layers[0].attn.embed_positions.to(positions.device)[positions].float()
            sin, cos = table.split(table.shape[-1] // 2, dim=-1)
            turn = torch.complex(cos, sin)[:, :, None].expand(-1, -1, self.n_heads, -1).contiguous()
            self._turned = positions, turn
        return self._turned[1]


MAKERS = {"esm": FastEsm, "gptj": FastGptJ}  # by the library's name of the blocks


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Return neighbours of the last axis rotated, (n_rows, n_tokens, n_heads, even), in float32 and back."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if any(step % 2 for step in pairs.stride()[:-1]):  # a complex number lies at an even place: not in odd heads
        pairs = pairs.contiguous()
    return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2).to(x.dtype)
