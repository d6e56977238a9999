"""Table of the report: what became of the records of a source, sampled or left out, by reason.

python -m plm_depth.figures.records --left-out P --clusters P --dataset NAME --size N --csv P --html P
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from plm_depth.figures.number_table import as_csv, as_html
from plm_depth.tables import CLUSTERS, LEFT_OUT, TableError, read_metadata, read_table, write_text


def by_fate(counts: pl.DataFrame, size: int) -> pl.DataFrame:
    """Return reason and n_records with the drawn records parted into the sample and the reserve that it grows into."""
    is_drawn = counts["reason"] == "sampled"
    drawn = int(counts.filter(is_drawn)["n_records"].sum())
    parts = pl.DataFrame({"reason": ["sampled", "in_reserve"], "n_records": [size, drawn - size]})
    return pl.concat([parts, counts.filter(~is_drawn)])


def about_clusters(path: Path) -> str:
    """Return in words how many similarity clusters a CLUSTERS table holds and which tool found them."""
    n_clusters = len(set(read_table(path, CLUSTERS).column("cluster_id").to_pylist()))
    tool = read_metadata(path).get("tool", "builtin")
    return f"{n_clusters} similarity clusters in the sample (tool {tool})"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.figures.records", description=__doc__.split("\n")[0])
    parser.add_argument("--left-out", type=Path, required=True, help="LEFT_OUT table")
    parser.add_argument("--clusters", type=Path, required=True, help="CLUSTERS table")
    parser.add_argument("--dataset", required=True, help="name of the data set")
    parser.add_argument("--size", type=int, required=True, help="proteins of the sample")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--html", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        records = by_fate(pl.from_arrow(read_table(options.left_out, LEFT_OUT)), options.size)
        clusters = about_clusters(options.clusters)
    except TableError as error:
        raise SystemExit(f"figures.records: {error}") from None
    write_text(as_csv(records), options.csv)
    title = f"Records of the source of {options.dataset}, by what became of them; {clusters}"
    write_text(as_html(records, title=title), options.html)


if __name__ == "__main__":
    main()
