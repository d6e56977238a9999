"""Shards: slices of a sample by rank that do not know how large the sample is."""

from pathlib import Path

import pyarrow as pa
import pytest

from plm_depth.sequences.sample import main as sample_main
from plm_depth.sequences.shard import main
from plm_depth.tables import SEQUENCES, read_table, write_table

MINI = Path(__file__).parents[3] / "resources" / "mini" / "sequences.fasta"


def drawn(folder: Path, size: int) -> Path:
    path = folder / f"sample{size}.parquet"
    sample_main(
        f"--fasta {MINI} --size {size} --seed 3 --min-length 40 --max-length 400 --sample {path} "
        f"--left-out {folder / 'left_out.parquet'}".split()
    )
    return path


def shard(sample: Path, first: int, last: int) -> Path:
    output = sample.parent / "shards" / f"{sample.stem}_{first}_{last}.parquet"
    main(f"--sample {sample} --first {first} --last {last} --output {output}".split())
    return output


def test_shards_together_are_the_sample(tmp_path):
    sample = drawn(tmp_path, 50)
    parts = [read_table(shard(sample, a, b), SEQUENCES) for a, b in ((0, 20), (20, 40), (40, 50))]
    assert [part.num_rows for part in parts] == [20, 20, 10]
    assert pa.concat_tables(parts).to_pydict() == read_table(sample, SEQUENCES).to_pydict()


def test_growing_the_sample_leaves_the_bytes_of_old_shards_as_they_were(tmp_path):
    old = shard(drawn(tmp_path, 20), 10, 20)
    new = shard(drawn(tmp_path, 40), 10, 20)
    assert old.read_bytes() == new.read_bytes()


@pytest.mark.parametrize(
    ("first", "last", "text"),
    [
        (0, 21, "--last 21: the sample has 20 proteins"),
        (20, 40, "--last 40: the sample has 20 proteins"),
        (5, 5, "--first 5 --last 5: expected 0 <= first < last"),
        (7, 5, "expected 0 <= first < last"),
    ],
)
def test_a_range_beyond_the_sample_or_empty_is_an_error(tmp_path, first, last, text):
    sample = drawn(tmp_path, 20)
    with pytest.raises(SystemExit) as caught:
        shard(sample, first, last)
    assert text in caught.value.code
    assert str(sample) in caught.value.code
    assert not (tmp_path / "shards").exists()


def test_a_negative_rank_is_an_error(tmp_path):
    sample = drawn(tmp_path, 20)
    with pytest.raises(SystemExit, match="expected 0 <= first < last"):
        main(["--sample", str(sample), "--first=-3", "--last", "5", "--output", str(tmp_path / "x.parquet")])


def test_a_table_whose_ranks_have_gaps_is_refused(tmp_path):
    whole = read_table(drawn(tmp_path, 20), SEQUENCES)
    path = tmp_path / "gaps.parquet"
    write_table(whole.take([0, 2, 1, 3]), SEQUENCES, path)
    with pytest.raises(SystemExit, match=r"gaps\.parquet: the ranks of the sample are not 0, 1, 2"):
        shard(path, 0, 2)


def test_a_missing_sample_is_an_error_without_traceback(tmp_path):
    with pytest.raises(SystemExit, match=r"nothing\.parquet: not a readable Parquet file"):
        shard(tmp_path / "nothing.parquet", 0, 2)
