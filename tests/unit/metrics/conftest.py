"""Toy measurements: planted models walked plainly, written as the extraction writes them, and summed up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

import planted
from plm_depth.metrics.contributions import contributions
from plm_depth.metrics.lens import lens
from plm_depth.models.base import Adapter
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS, CLUSTERS, write_table
from plm_depth.views import View, views_of

INPUTS = {
    "ar": {"directions": ["n2c", "c2n"]},
    "mlm": {"noise": [0.15, 0.4], "draws": 2, "clean": True},
    "diffusion": {"noise": [0.1, 0.3, 0.5, 0.7, 0.9, 1.0], "draws": 1, "clean": True},
}


def proteins(n: int, *, seed: int = 0, shortest: int = 12, longest: int = 30) -> list[tuple[str, str]]:
    """Return random (sequence_id, sequence) pairs."""
    random = generator(seed, "proteins")
    lengths = random.integers(shortest, longest, size=n, endpoint=True)
    return [(f"P{i:03d}", "".join(random.choice(list(AMINO_ACIDS), size=length))) for i, length in enumerate(lengths)]


@dataclass(frozen=True)
class Measured:
    """The per-protein tables of one toy and where they stand."""

    contributions_path: Path
    lens_path: Path
    moments: list[Path]
    logits: list[Path]

    @property
    def contributions(self) -> pl.DataFrame:
        return pl.read_parquet(self.contributions_path)

    @property
    def lens(self) -> pl.DataFrame:
        return pl.read_parquet(self.lens_path)

    def mean(self, quantity: str, *, pos_class: str = "residue", **where: object) -> list[float]:
        """Return the mean over all positions of a contribution, by layer."""
        return _means(self.contributions.filter(pl.col("pos_class") == pos_class), quantity, where)

    def lens_mean(self, quantity: str, *, vocab: str = "aa20", lens: str = "logit", **where: object) -> list[float]:
        """Return the mean over all read positions of a lens quantity, by layer."""
        return _means(self.lens.filter((pl.col("vocab") == vocab) & (pl.col("lens") == lens)), quantity, where)


def _means(rows: pl.DataFrame, quantity: str, where: dict[str, object]) -> list[float]:
    for name, value in {"quantity": quantity, **where}.items():
        rows = rows.filter(pl.col(name) == value)
    grouped = rows.group_by("layer").agg(mean=pl.col("sum").sum() / pl.col("n").sum()).sort("layer")
    return grouped["mean"].to_list()


@pytest.fixture
def measure(tmp_path: Path) -> Callable[..., Measured]:
    """Return a function that measures a toy: ``measure(adapter, n=4, views=None, shards=None, dtype="float64")``."""
    count = iter(range(1000))

    def measured(
        adapter: Adapter,
        sample: Sequence[tuple[str, str]] | None = None,
        *,
        views: Sequence[View] | None = None,
        shards: Sequence[Sequence[int]] | None = None,
        **options: object,
    ) -> Measured:
        sample = proteins(4) if sample is None else sample
        views = views_of(adapter.objective, INPUTS) if views is None else views
        folder = tmp_path / f"toy{next(count)}"
        moments, logits = [], []
        for number, members in enumerate(shards or [range(len(sample))]):
            moments.append(folder / f"moments{number}.parquet")
            logits.append(folder / f"lens{number}.parquet")
            shard = [sample[i] for i in members]
            written = {"moments": moments[-1], "lens": logits[-1], "dtype": "float64", **options}
            planted.write_activations(adapter, shard, views, **written)
        contributions(moments, folder / "contributions.parquet")
        lens(logits, folder / "lens.parquet")
        return Measured(folder / "contributions.parquet", folder / "lens.parquet", moments, logits)

    return measured


@pytest.fixture
def write_clusters(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a CLUSTERS table of {sequence_id: cluster_id}."""

    def write(clusters: dict[str, str], name: str = "clusters.parquet") -> Path:
        columns = {"sequence_id": list(clusters), "cluster_id": list(clusters.values())}
        write_table(columns, CLUSTERS, tmp_path / name)
        return tmp_path / name

    return write
