"""The same config gives the same numbers, whatever runs side by side and however its proteins are spread over jobs."""

from pathlib import Path

import pytest
import yaml

from plm_depth.digest import Digest, digests
from small_study import CONFIG, copy_repository, snakemake

pytestmark = pytest.mark.workflow


def measured(folder: Path, *, cores: int, shard_size: int, effect_shard_size: int) -> list[Digest]:
    """Run the small study of one model, whose proteins share batches by twos, and return the digests of its tables."""
    folder.mkdir()
    copy_repository(folder)
    config = yaml.safe_load(CONFIG)
    kept = ("study", "seed", "sources", "training", "datasets", "models", "inputs", "nulls", "effects", "bootstrap")
    config = {key: config[key] for key in (*kept, "compute")}
    config["models"] = config["models"][:1]
    config["figures"] = ["variance"]
    config["datasets"][0]["shard_size"] = shard_size
    config["effects"]["shard_size"] = effect_shard_size
    # As the default config, too: a config is laid over that one, and gets its sections.
    for name in ("tiny.yaml", "config/config.yaml"):
        (folder / name).write_text(yaml.safe_dump(config), encoding="utf-8")
    result = snakemake(folder, "--cores", str(cores))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return digests([folder / "results"])


def test_digests_depend_neither_on_cores_nor_on_shards(tmp_path):
    one = measured(tmp_path / "one", cores=1, shard_size=6, effect_shard_size=6)
    other = measured(tmp_path / "other", cores=3, shard_size=2, effect_shard_size=4)
    assert len(one) > 15
    assert [(a.name, a.n_rows, a.content) for a in other] == [(a.name, a.n_rows, a.content) for a in one]
    n_files = {a.name: a.n_files for a in other}
    assert n_files["tiny/activations/mini/esm2_tiny/trained/*/moments.parquet"] == 3
    assert n_files["tiny/effects/mini/esm2_tiny/null/*/skip.parquet"] == 2
