"""Several continuations of one protein side by side, for models that read in one direction.

Silencing a block before a point, for several points, repeats the tokens before the smallest point in every run. In one
row they stand once: the trunk holds the tokens up to the largest point, and each point has a branch, a copy of the
tokens from that point on, which sees the trunk up to its point and itself. Every token keeps its place in the protein.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Branches:
    """How a protein of ``n_tokens`` tokens is laid out.

    Attributes:
        n_tokens: tokens of the protein itself.
        trunk: tokens of the trunk, 1..n_tokens.
        points: first token of each branch, each 1..trunk.
    """

    n_tokens: int
    trunk: int
    points: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.trunk <= self.n_tokens or any(not 1 <= point <= self.trunk for point in self.points):
            raise ValueError(f"points {self.points} and trunk {self.trunk} of {self.n_tokens} tokens")

    @cached_property
    def spans(self) -> tuple[slice, ...]:
        """Return where each branch stands in the row."""
        ends = np.cumsum([self.trunk, *(self.n_tokens - point for point in self.points)]).tolist()
        return tuple(slice(start, end) for start, end in pairwise(ends))

    @cached_property
    def source(self) -> np.ndarray:
        """Return which token of the protein each token of the row is, (n_row_tokens,) int64."""
        parts = [np.arange(self.trunk), *(np.arange(point, self.n_tokens) for point in self.points)]
        return np.concatenate(parts)

    @cached_property
    def attends(self) -> np.ndarray:
        """Return which tokens (last axis) each token of the row sees, (n_row_tokens, n_row_tokens) bool."""
        n = len(self.source)
        sees = np.zeros((n, n), bool)
        sees[: self.trunk, : self.trunk] = np.tri(self.trunk, dtype=bool)
        for point, span in zip(self.points, self.spans):
            sees[span, :point] = True
            sees[span, span] = np.tri(span.stop - span.start, dtype=bool)
        return sees
