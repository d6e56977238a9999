"""What a measurement costs before it is run: block evaluations, operations, bytes; docs/performance.md explains them.

The unit is a block evaluation of one token: everything a block does to one token of one row. Operations are those of
products (a multiplication and an addition are two), which are nearly all there are; norms, activations and rotations
move memory instead and are part of the share of the product rate that a run reaches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plm_depth.models.branches import Branches


@dataclass(frozen=True)
class Size:
    """One model, as far as the cost goes.

    Attributes:
        n_blocks, d_model: sizes.
        d_mlp: width of the MLP; a gated MLP has 1.5 times the width of a plain one with as many weights.
        n_vocabulary: columns of the head.
        is_parallel: whether attention and MLP of a block read the same input.
        is_causal: whether a token sees tokens before it only.
        itemsize: bytes of a weight.
    """

    n_blocks: int
    d_model: int
    d_mlp: int
    n_vocabulary: int = 33
    is_parallel: bool = False
    is_causal: bool = False
    itemsize: int = 4

    @property
    def mlp_flops(self) -> int:
        """Return the operations of the MLP for one token."""
        return 4 * self.d_model * self.d_mlp

    @property
    def linear_flops(self) -> int:
        """Return the operations of all products with weights of one block for one token."""
        return 8 * self.d_model**2 + self.mlp_flops

    @property
    def block_bytes(self) -> int:
        """Return the bytes of the matrices of one block."""
        return (4 * self.d_model**2 + 2 * self.d_model * self.d_mlp) * self.itemsize

    def attention_flops(self, n_pairs: float) -> float:
        """Return the operations of scores and mixing for ``n_pairs`` pairs of tokens that see each other."""
        return 4 * self.d_model * n_pairs


@dataclass(frozen=True)
class Cost:
    """Sums over whatever was added up.

    Attributes:
        evaluations: blocks x rows x tokens.
        flops: operations of products.
        weight_bytes: weights read, each block once for every group of rows that passes it.
        stream_bytes: streams read and written once at every block, float32: what no implementation can avoid.
    """

    evaluations: float = 0.0
    flops: float = 0.0
    weight_bytes: float = 0.0
    stream_bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.evaluations + other.evaluations,
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.stream_bytes + other.stream_bytes,
        )

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.evaluations * times, self.flops * times, self.weight_bytes * times, self.stream_bytes * times)


def pairs_of(n_tokens: int, *, is_causal: bool, branches: Branches | None = None) -> float:
    """Return how many pairs of tokens of one row are multiplied: the whole square, or its lower half where causal."""
    if branches is not None:
        ends = zip(branches.points, branches.spans)
        return branches.trunk**2 / 2 + sum((s.stop - s.start) * (p + s.stop - s.start) for p, s in ends)
    return n_tokens**2 / 2 if is_causal else float(n_tokens**2)


def forward_cost(size: Size, n_tokens: int, *, n_reads: int = 0, n_layers_read: int = 1) -> Cost:
    """Return the cost of one forward pass of one protein with ``n_reads`` read-outs at ``n_layers_read`` layers."""
    pairs = pairs_of(n_tokens, is_causal=size.is_causal)
    evaluations = size.n_blocks * n_tokens
    flops = evaluations * size.linear_flops + size.n_blocks * size.attention_flops(pairs)
    flops += n_reads * n_layers_read * _head_flops(size)
    return Cost(evaluations, flops, size.n_blocks * size.block_bytes, 8.0 * evaluations * size.d_model)


def sweep_cost(
    size: Size,
    n_tokens: int,
    *,
    propagating: int,
    local: int = 0,
    attention: int = 0,
    n_reads: int = 0,
    token_budget: int = 65536,
    branches: Branches | None = None,
) -> Cost:
    """Return the cost of the sweeps over all source blocks of one protein in one view.

    A lane that enters at block i passes blocks i + 1 .. n, so that a sweep of n lanes costs n (n - 1) / 2 evaluations;
    the clean row passes every block of every group of lanes.

    Args:
        n_tokens: tokens of a row.
        propagating, local: sweeps (one part, position set, draw, ablation) of either kind.
        attention: how many of the propagating ones silence attention, which costs another MLP evaluation a source.
        n_reads: read-outs of each lane and of the clean row.
        token_budget: largest rows x tokens at once; more lanes make more groups, each with its clean row.
    """
    n = size.n_blocks
    lanes = (propagating + local) * n
    capacity = max(1, token_budget // n_tokens - 1)
    groups = -(-lanes // capacity)
    # Groups take lanes in order of their source; a later one starts at its first lane's block.
    starts = [k * capacity * n // max(lanes, 1) for k in range(groups)]
    clean_rows = sum(n - start for start in starts)
    rows = (propagating + local) * n * (n - 1) / 2 + clean_rows
    pairs = pairs_of(n_tokens, is_causal=size.is_causal, branches=branches)
    flops = rows * (n_tokens * size.linear_flops + size.attention_flops(pairs))
    if not size.is_parallel:
        flops += attention * n * n_tokens * size.mlp_flops
    flops += (propagating * n + groups) * n_reads * _head_flops(size)
    evaluations = rows * n_tokens
    return Cost(evaluations, flops, clean_rows * size.block_bytes, 8.0 * evaluations * size.d_model)


def detours_of(n_blocks: int, settings: Mapping[str, object], ops: Sequence[str] | None = None) -> tuple[int, int]:
    """Return how many different changed runs a model has under a section ``ablation``, and the blocks they pass.

    A removal passes the blocks after it; an exchange, a reversal or a repetition its own and those after it.

    Args:
        settings: the section of the config.
        ops: instead of all of its own.
    """
    passed: dict[tuple, int] = {}
    policies = settings["policies"]
    removed = [n for n in settings["lengths"] or range(1, n_blocks) if n < n_blocks]

    def remove(start: int, length: int) -> None:
        passed["remove", start, length] = n_blocks - start - length

    for op in settings["ops"] if ops is None else ops:
        if op == "exit":
            for layer in range(n_blocks + 1):
                remove(layer, n_blocks - layer)
        elif op == "remove":
            for start in range(n_blocks):
                remove(start, 1)
        elif op == "remove_block":
            for length in removed:
                last = n_blocks - length
                if "deepest" in policies:
                    remove(last - 1, length)
                if "tail" in policies:
                    remove(last, length)
                if "exhaustive" in policies and n_blocks <= settings["exhaustive_up_to"]:
                    for start in range(last + 1):
                        remove(start, length)
                    continue  # spans of the other policies are among these
                for k in range(min(settings["draws"], last + 1) * ("random" in policies)):
                    remove(k * (last + 1) // settings["draws"], length)
                if "angular" in policies:
                    passed["angular", length] = last // 2
        elif op == "mean":
            for block in range(1, n_blocks + 1):
                passed[op, block] = n_blocks - block
        else:
            for length in [1] if op == "swap_adj" else settings["spans"]:
                covered = 2 * length if op.startswith("swap") else length
                for start in range(n_blocks - covered + 1):
                    end = start + covered
                    is_neighbours = op == "swap_adj" or (op, length) == ("reverse", 2)
                    name = ("neighbours", start) if is_neighbours else (op, start, length)
                    passed[name] = covered + n_blocks - end
    return len(passed), sum(passed.values())


def detour_cost(
    size: Size, n_tokens: int, *, n_runs: int, n_passed: int, n_reads: int = 0, token_budget: int = 65536
) -> Cost:
    """Return the cost of one protein's changed runs in one view, each read out once.

    Args:
        n_runs, n_passed: see ``detours_of``.
        n_reads: read-outs of each run and of the clean row.
        token_budget: largest rows x tokens held at once; more runs make more groups, each with its clean row.
    """
    capacity = max(1, token_budget // n_tokens - 1)
    groups = -(-n_runs // capacity)
    rows = n_passed + groups * size.n_blocks / 2 + size.n_blocks / 2
    flops = rows * (n_tokens * size.linear_flops + size.attention_flops(pairs_of(n_tokens, is_causal=size.is_causal)))
    flops += (n_runs + groups) * n_reads * _head_flops(size)
    evaluations = rows * n_tokens
    weights = (groups + 1) * size.n_blocks * size.block_bytes
    return Cost(evaluations, flops, weights, 8.0 * evaluations * size.d_model)


def plain_cost(size: Size, n_tokens: int, sweeps: int, *, n_reads: int = 0) -> Cost:
    """Return the cost of the same sweeps as one full forward pass per silenced block, and a clean one each."""
    return forward_cost(size, n_tokens, n_reads=n_reads) * (sweeps * (size.n_blocks + 1))


def _head_flops(size: Size) -> float:
    dense = 0 if size.is_causal else 2 * size.d_model**2  # the masked families' head has a dense layer
    return dense + 2 * size.d_model * size.n_vocabulary


def hours(cost: Cost, *, rate: float) -> float:
    """Return the hours of a cost at ``rate`` operations a second."""
    return cost.flops / rate / 3600


def total(costs: Sequence[Cost]) -> Cost:
    return sum(costs, Cost())
