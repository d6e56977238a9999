"""Tables of the report: what became of the records of a source, and of letters beside the 20 amino acids.

python -m plm_depth.figures.records --left-out P --clusters P --dataset NAME --size N --csv P --html P
    --letters P [--pool-letters P] [--structures P] --policies JSON --letters-csv P --letters-html P
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from plm_depth.figures.letters import by_letter, policies_option
from plm_depth.figures.number_table import as_csv, as_html
from plm_depth.tables import CLUSTERS, LEFT_OUT, LETTERS, STRUCTURES, TableError, read_metadata, read_table, write_text


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
    parser.add_argument("--letters", type=Path, required=True, help="LETTERS table of the data set")
    parser.add_argument("--pool-letters", type=Path, help="LETTERS table of the training pool")
    parser.add_argument("--structures", type=Path, help="STRUCTURES table, where a data set is made of structures")
    parser.add_argument("--policies", type=policies_option, required=True, help="JSON, see plm_depth.models.letters")
    parser.add_argument("--letters-csv", type=Path, required=True)
    parser.add_argument("--letters-html", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        records = by_fate(pl.from_arrow(read_table(options.left_out, LEFT_OUT)), options.size)
        clusters = about_clusters(options.clusters)
        sources = {"data set": options.letters, "training pool": options.pool_letters}
        tables = {name: pl.from_arrow(read_table(path, LETTERS)) for name, path in sources.items() if path is not None}
        structures = None if options.structures is None else pl.from_arrow(read_table(options.structures, STRUCTURES))
    except TableError as error:
        raise SystemExit(f"figures.records: {error}") from None
    write_text(as_csv(records), options.csv)
    title = f"Records of the source of {options.dataset}, by what became of them; {clusters}"
    write_text(as_html(records, title=title), options.html)
    letters = by_letter(tables, structures, options.policies)
    write_text(as_csv(letters), options.letters_csv)
    title = f"Letters beside the 20 amino acids in the source of {options.dataset}"
    write_text(as_html(letters, title=title), options.letters_html)


if __name__ == "__main__":
    main()
