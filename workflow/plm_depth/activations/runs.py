"""The streams of several runs of the same proteins, side by side in one batch."""

import torch
from torch import Tensor

from plm_depth.models.base import Adapter, Context
from plm_depth.models.fast import Steps


class Runs:
    """The clean run of some proteins and altered ones, at one layer.

    Rows are run-major: row ``(1 + run) * n_works + work``, the clean runs first.

    Attributes:
        streams: (rows, n_tokens, d_model); the altered ones are empty at first.
        n_works: proteins.
    """

    def __init__(self, adapter: Adapter, evaluator: Steps, n_runs: int, clean: Tensor, context: Context):
        """Make room for ``n_runs`` altered runs of proteins whose clean stream is (n_works, n_tokens, d_model)."""
        self.adapter, self.evaluator, self.context, self.n_works = adapter, evaluator, context, len(clean)
        self.streams = clean.new_empty(((1 + n_runs) * self.n_works, *clean.shape[1:]))
        self.streams[: self.n_works] = clean
        self._wide: Context | None = None

    @property
    def clean(self) -> Tensor:
        """Return the streams of the clean runs, (n_works, n_tokens, d_model)."""
        return self.streams[: self.n_works]

    def rows(self, run: int) -> slice:
        """Return which rows an altered run has."""
        return slice((1 + run) * self.n_works, (2 + run) * self.n_works)

    def contexts(self, n_rows: int) -> Context:
        """Return the context of ``n_rows`` rows, run-major (rows of one protein share theirs)."""
        if self.n_works == 1:
            return self.context
        if self._wide is None:
            total = torch.arange(len(self.streams), device=self.streams.device)
            self._wide = self.context.take(total % self.n_works)
        return self._wide.first(n_rows)
