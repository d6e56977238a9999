"""Common part of the families whose network is a class of transformers: made, filled, cut and called in one way."""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from plm_depth.models import checkpoints
from plm_depth.models.base import Adapter, Batch
from plm_depth.models.untrained import of_depth, untrained


class HubAdapter(Adapter):
    """An adapter of a module that carries its ``config``, published as a folder of ``config.json`` and weights.

    A family with layouts of other files has its own ``load`` and ``files``.
    """

    layouts = ("hub",)

    def __init__(self, module: torch.nn.Module, dtype: str = "float32"):
        self.module, self.dtype = module.eval(), dtype
        self.n_blocks, self.d_model = module.config.num_hidden_layers, module.config.hidden_size
        self.residue_ids, self.vocabulary = self.alphabet.amino_acids, self.alphabet.vocabulary

    @classmethod
    @abstractmethod
    def network(cls, config) -> torch.nn.Module:
        """Return the library's module for its config, changed where the family differs; draws nothing of its own."""

    @classmethod
    def module_of(cls, config, seed: int | None = None) -> torch.nn.Module:
        """Return a module drawn by its library under a seed, or with its parameters unset; see ``untrained``."""
        return untrained(lambda: cls.network(config), seed)

    def library_logits(self, batch: Batch) -> Tensor:
        return self.module(input_ids=batch.ids, attention_mask=batch.valid.long()).logits

    def fresh_module(self, seed: int) -> torch.nn.Module:
        return self.module_of(self.module.config, seed)

    def shallower(self, n_blocks: int) -> Self:
        cut = copy.copy(self)
        cut.module, cut.n_blocks = self.module_of(of_depth(self.module.config, n_blocks)).eval(), n_blocks
        return cut

    @classmethod
    def load(cls, folder: Path | str, *, dtype: str = "float32", layout: str | None = None) -> Self:
        """Return the adapter of a folder of ``config.json`` and weights.

        Args:
            folder: the checkpoint.
            dtype: of the matrices.
            layout: one of ``layouts``; all are read alike.
        Raises:
            CheckpointError: see ``plm_depth.models.checkpoints``.
            ValueError: an unknown layout.
        """
        cls.check_layout(layout)
        path = Path(folder) / "config.json"
        return cls.from_config(checkpoints.read_config(path), path, dtype)

    @classmethod
    def from_config(cls, raw: Mapping[str, object], path: Path, dtype: str) -> Self:
        """Return the adapter of a config, which this checks, and of the files beside it; not for a ``load`` of its own.

        Args:
            raw: the config.
            path: of the config.
            dtype: of the matrices.
        """
        raise NotImplementedError(f"{cls.__name__} does not say how its checkpoints are read")

    @classmethod
    def files(cls, folder: Path, layout: str | None = None) -> list[Path]:
        """Return the files that ``load`` reads."""
        cls.check_layout(layout)
        return checkpoints.hub_files(folder)
