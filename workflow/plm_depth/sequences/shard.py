"""Take the proteins of ranks [first, last) out of a sample.

    python -m plm_depth.sequences.shard --sample sample.parquet --first R --last R --output shard.parquet

A shard holds nothing that depends on the size of the sample: as a sample is a prefix of any larger one with the same
seed and filters, growing it leaves the bytes of the old shards as they were.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from plm_depth.progress import stage_log
from plm_depth.sequences import SourceError
from plm_depth.tables import SEQUENCES, TableError, read_table, write_table


def ranks(sample: pa.Table, first: int, last: int) -> pa.Table:
    """Return the rows of ranks first..last-1 of a sample (SEQUENCES), in rank order.

    Raises:
        SourceError: an empty or reversed range, a range beyond the sample, or ranks that are not 0..n-1 in order.
    """
    if not 0 <= first < last:
        raise SourceError(f"--first {first} --last {last}: expected 0 <= first < last")
    if last > sample.num_rows:
        raise SourceError(f"--last {last}: the sample has {sample.num_rows} proteins; lower it, or sample more")
    if not np.array_equal(sample.column("rank").to_numpy(), np.arange(sample.num_rows)):
        raise SourceError(
            "the ranks of the sample are not 0, 1, 2, ...; expected the table written by sequences.sample"
        )
    return sample.select(SEQUENCES.names).slice(first, last - first)


def shard(*, sample: str | Path, first: int, last: int, output: str | Path) -> int:
    """Write the ranks first..last-1 of a sample (SEQUENCES); return the number of proteins."""
    try:
        rows = ranks(read_table(sample, SEQUENCES), first, last)
    except SourceError as error:
        raise SourceError(f"{sample}: {error}") from error
    return write_table(rows, SEQUENCES, output)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.sequences.shard", description=__doc__.split("\n")[0])
    parser.add_argument("--sample", required=True, help="the sample (SEQUENCES)")
    parser.add_argument("--first", type=int, required=True, help="first rank, from 0")
    parser.add_argument("--last", type=int, required=True, help="one beyond the last rank")
    parser.add_argument("--output", required=True, help="the shard (SEQUENCES)")
    options = vars(parser.parse_args(argv))
    with stage_log("shard", SourceError, TableError, OSError) as log:
        n = shard(**options)
        log.info("%d proteins, ranks %d to %d", n, options["first"], options["last"] - 1)


if __name__ == "__main__":
    main()
