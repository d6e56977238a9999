"""The split: whole clusters, the share asked for, and no dependence on order."""

import random
from collections import Counter
from pathlib import Path

import dnaio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plm_depth.sequences import SourceError
from plm_depth.sequences.cluster import align, least_score
from plm_depth.sequences.cluster import main as cluster_main
from plm_depth.sequences.sample import main as sample_main
from plm_depth.sequences.split import held_out_clusters, main
from plm_depth.tables import CLUSTERS, SEQUENCES, read_table, write_table

MINI = Path(__file__).parents[3] / "resources" / "mini" / "sequences.fasta"


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pool")
    paths = {"sample": folder / "sample.parquet", "clusters": folder / "clusters.parquet"}
    sample_main(
        f"--fasta {MINI} --size 200 --seed 1 --min-length 40 --max-length 400 --sample {paths['sample']} "
        f"--left-out {folder / 'left_out.parquet'}".split()
    )
    cluster_main(f"--sample {paths['sample']} --output {paths['clusters']}".split())
    return paths


def split(pool: dict[str, Path], folder: Path, held_out: float = 0.4, seed: int = 1) -> tuple[dict, dict]:
    train, valid = folder / "train.fasta", folder / "valid.fasta"
    main(
        f"--sample {pool['sample']} --clusters {pool['clusters']} --held-out {held_out} --seed {seed} "
        f"--train {train} --valid {valid}".split()
    )
    return tuple({record.id: record.sequence for record in dnaio.open(path)} for path in (train, valid))


def clusters(pool: dict[str, Path]) -> dict[str, str]:
    table = read_table(pool["clusters"], CLUSTERS)
    return dict(zip(table.column("sequence_id").to_pylist(), table.column("cluster_id").to_pylist()))


def test_the_two_sides_together_are_the_pool_in_rank_order(pool, tmp_path):
    train, valid = split(pool, tmp_path)
    table = read_table(pool["sample"], SEQUENCES)
    proteins = dict(zip(table.column("sequence_id").to_pylist(), table.column("sequence").to_pylist()))
    assert train | valid == proteins
    assert not set(train) & set(valid)
    for side in (train, valid):
        assert list(side) == [name for name in proteins if name in side]


def test_the_held_out_share_is_the_one_asked_for(pool, tmp_path):
    for held_out in (0.1, 0.4, 0.75):
        _, valid = split(pool, tmp_path, held_out)
        assert held_out - 0.02 < len(valid) / 200 <= held_out


def test_no_cluster_and_no_similar_pair_is_on_both_sides(pool, tmp_path):
    cluster_of = clusters(pool)
    assert max(Counter(cluster_of.values()).values()) > 1
    for seed in range(5):
        train, valid = split(pool, tmp_path, seed=seed)
        assert not {cluster_of[name] for name in train} & {cluster_of[name] for name in valid}
    searched = sum(map(len, (train | valid).values()))
    for a in train.values():
        for b in valid.values():
            found = align(a, b)
            significant = found.score >= least_score(min(len(a), len(b)), searched, 1e-3)
            assert not (significant and found.identity >= 0.3 and found.coverage >= 0.5)


def test_another_seed_holds_out_other_proteins(pool, tmp_path):
    first, second = (set(split(pool, tmp_path, seed=seed)[1]) for seed in (1, 2))
    assert 0 < len(first & second) < 60


def test_the_split_does_not_depend_on_the_order_of_the_tables(pool, tmp_path):
    expected = split(pool, tmp_path)
    order = random.Random(0).sample(range(200), 200)
    shuffled = {"sample": tmp_path / "s.parquet", "clusters": tmp_path / "c.parquet"}
    write_table(read_table(pool["sample"], SEQUENCES).take(order), SEQUENCES, shuffled["sample"])
    write_table(read_table(pool["clusters"], CLUSTERS).take(order[::-1]), CLUSTERS, shuffled["clusters"])
    assert split(shuffled, tmp_path) == expected


@given(st.lists(st.integers(1, 12), min_size=2, max_size=30), st.floats(0.05, 0.95), st.integers(0, 9), st.randoms())
def test_the_held_out_side_is_never_larger_than_asked_nor_short_of_a_cluster_passed_over(sizes, share, seed, rng):
    cluster_ids = [f"C{i}" for i, size in enumerate(sizes) for _ in range(size)]
    try:
        chosen = held_out_clusters(cluster_ids, held_out=share, seed=seed)
    except SourceError:
        assert min(sizes) > share * len(cluster_ids) - 1e-6
        return
    shuffled = rng.sample(cluster_ids, len(cluster_ids))
    assert held_out_clusters(shuffled, held_out=share, seed=seed) == chosen
    n_held_out = sum(name in chosen for name in cluster_ids)
    assert 0 < n_held_out <= share * len(cluster_ids) + 1e-6
    passed_over = [size for i, size in enumerate(sizes) if f"C{i}" not in chosen]
    assert passed_over
    assert share * len(cluster_ids) - n_held_out < min(passed_over) + 1


def test_a_share_that_floating_point_makes_smaller_is_filled():
    singletons = [f"C{i}" for i in range(100)]
    assert len(held_out_clusters(singletons, held_out=0.29, seed=1)) == 29


def test_a_pool_that_is_one_cluster_cannot_be_split():
    with pytest.raises(SourceError, match=r"10 proteins in 1 cluster\(s\), the largest of 10: no whole cluster fits"):
        held_out_clusters(["C"] * 10, held_out=0.4, seed=1)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 40.0])
def test_a_share_outside_zero_and_one_is_an_error(share):
    with pytest.raises(SourceError, match=r"--held-out .*: expected a share between 0 and 1"):
        held_out_clusters(list("abc"), held_out=share, seed=1)


def test_clusters_of_another_sample_are_refused(pool, tmp_path):
    other = {"sample": pool["sample"], "clusters": tmp_path / "other.parquet"}
    cluster_of = clusters(pool)
    del cluster_of[next(iter(cluster_of))]
    cluster_of["X1"] = "X1"
    columns = {"sequence_id": list(cluster_of), "cluster_id": list(cluster_of.values())}
    write_table(columns, CLUSTERS, other["clusters"])
    with pytest.raises(SystemExit, match="1 of its proteins missing, 1 others"):
        split(other, tmp_path)
    assert not (tmp_path / "train.fasta").exists()


def test_a_protein_in_two_clusters_is_refused(pool, tmp_path):
    other = {"sample": pool["sample"], "clusters": tmp_path / "other.parquet"}
    cluster_of = clusters(pool)
    twice = next(iter(cluster_of))
    columns = {"sequence_id": [*cluster_of, twice], "cluster_id": [*cluster_of.values(), "elsewhere"]}
    write_table(columns, CLUSTERS, other["clusters"])
    with pytest.raises(SystemExit, match="a protein stands in it twice"):
        split(other, tmp_path)
