"""Structures by accession: fetched, checked, tabulated, and tabulated again when a setting changes."""

import gzip
import hashlib
from pathlib import Path

import pytest
import yaml

from plm_depth.tables import BACKBONE, STRUCTURES, read_table
from small_study import CONFIG, copy_repository, planned, snakemake

pytestmark = pytest.mark.workflow

ENTRY = Path(__file__).parents[1] / "fixtures" / "structures" / "1a8o.cif"


def configure(folder: Path, **structures: object) -> None:
    section = {"source": "pdb", "entries": ["1A8O:A"], "url": (folder / "archive").as_uri() + "/{id}.cif.gz"}
    config = {**yaml.safe_load(CONFIG), "structures": {**section, **structures}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def test_entries_are_fetched_and_tabulated_and_a_wrong_digest_stops_the_run(tmp_path):
    folder = copy_repository(tmp_path)
    (folder / "archive").mkdir()
    data = gzip.compress(ENTRY.read_bytes())
    (folder / "archive" / "1a8o.cif.gz").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    target = "results/tiny/structures/backbone.parquet"

    configure(folder, sha256={"1a8o": "0" * 64})
    assert snakemake(folder, "--cores", "1", target).returncode != 0
    said = (folder / "logs" / "download_structure" / "1a8o.cif.gz.log").read_text()
    assert digest in said and "expected " + "0" * 64 in said and "Traceback" not in said

    configure(folder, sha256={"1a8o": digest})
    assert planned(folder, "prefetch") == ["download_structure filename=1a8o.cif.gz", "prefetch"]
    result = snakemake(folder, "--cores", "1", target)
    assert result.returncode == 0, result.stderr[-3000:]
    (row,) = read_table(folder / "results/tiny/structures/structures.parquet", STRUCTURES).to_pylist()
    assert (row["structure_id"], row["source"], row["sha256"]) == ("1a8o_A", "pdb", digest)
    assert read_table(folder / target, BACKBONE).num_rows == row["n_residues"] == 70
    assert (folder / "results/tiny/structures/sequences.fasta").read_text().startswith(">1a8o_A\nMDIRQG")

    assert planned(folder, target) == []
    configure(folder, sha256={"1a8o": digest}, confidence="plddt")
    assert planned(folder, target) == ["tabulate_structures"]
