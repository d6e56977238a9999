"""MMseqs2 as the tool that finds similar pairs: its clusters beside our own, and what happens where it is missing."""

import csv
import hashlib
import logging
import random
from pathlib import Path

import pytest

from plm_depth.sequences import SourceError, mmseqs
from plm_depth.sequences.cluster import clusters_of, main
from plm_depth.tables import AMINO_ACIDS, CLUSTERS, SEQUENCES, read_metadata, read_table, write_table

FAMILIES = Path(__file__).parents[3] / "resources" / "mini" / "families" / "families.tsv"
SETTINGS = {"identity": 0.3, "coverage": 0.5, "max_evalue": 1e-3}
LOG = logging.getLogger("test")


def needs_program():
    if not mmseqs.is_installed():
        pytest.skip("MMseqs2 is not installed: clusters by it were not tested")


def write_sample(path, proteins):
    ids, sequences = zip(*proteins.items())
    table = {
        "sequence_id": list(ids),
        "sequence_hash": [hashlib.sha256(s.encode()).hexdigest() for s in sequences],
        "rank": list(range(len(ids))),
        "n_residues": [len(s) for s in sequences],
        "sequence": list(sequences),
    }
    write_table(table, SEQUENCES, path)


def related(seed=0, n_families=6, n_members=4, length=150):
    """Return families of relatives at 60 % identity, unrelated to each other, and the family of each."""
    rng = random.Random(seed)
    proteins, family = {}, {}
    for f in range(n_families):
        parent = rng.choices(AMINO_ACIDS, k=length)
        for m in range(n_members):
            changed = set(rng.sample(range(length), length * 4 // 10)) if m else set()
            name = f"F{f}M{m}"
            proteins[name] = "".join(rng.choice(AMINO_ACIDS) if i in changed else c for i, c in enumerate(parent))
            family[name] = f
    return proteins, family


def as_parts(names):
    return {frozenset(i for i, other in enumerate(names) if other == name) for name in names}


def test_on_labelled_families_nearly_the_same_proteins_are_together_as_by_aligning_all_pairs():
    needs_program()
    with FAMILIES.open(newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t")]
    ids, sequences = [f"{r['member']}/{r['start']}" for r in rows], [r["sequence"] for r in rows]
    family = [r["family_id"] for r in rows]
    ours = clusters_of(ids, sequences, **SETTINGS)
    theirs = mmseqs.cluster_members(sequences, **SETTINGS)
    pairs = [(i, j) for i in range(len(ids)) for j in range(i)]
    together = sum(ours[i] == ours[j] for i, j in pairs)
    agree = sum(ours[i] == ours[j] and theirs[i] == theirs[j] for i, j in pairs)
    assert together > 300 and agree > 0.85 * together
    assert not any(theirs[i] == theirs[j] and family[i] != family[j] for i, j in pairs)


def test_the_stage_takes_the_program_and_says_which_tool_it_was(tmp_path):
    needs_program()
    proteins, family = related()
    write_sample(tmp_path / "a.parquet", dict(list(proteins.items())[:10]))
    write_sample(tmp_path / "b.parquet", dict(list(proteins.items())[10:]))
    output = tmp_path / "new" / "clusters.parquet"
    main(["--sample", f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet", "--tool", "auto", "--output", str(output)])
    table = read_table(output, CLUSTERS)
    assert table.column("sequence_id").to_pylist() == list(proteins)
    found = table.column("cluster_id").to_pylist()
    assert as_parts(found) == as_parts(list(family.values()))
    assert found == clusters_of(list(proteins), list(proteins.values()), **SETTINGS)  # by name, too
    assert read_metadata(output)["tool"] == f"mmseqs {mmseqs.version()}"
    assert [path.name for path in output.parent.iterdir()] == ["clusters.parquet"]


def test_where_the_program_is_missing_auto_aligns_all_pairs_and_mmseqs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    proteins, family = related(n_families=2)
    write_sample(tmp_path / "s.parquet", proteins)
    options = ["--sample", f"{tmp_path}/s.parquet", "--output", f"{tmp_path}/c.parquet"]
    with pytest.raises(SystemExit, match="no program 'mmseqs' on the PATH; install MMseqs2 or use tool builtin"):
        main([*options, "--tool", "mmseqs"])
    assert not (tmp_path / "c.parquet").exists()
    main([*options, "--tool", "auto"])
    assert read_metadata(tmp_path / "c.parquet")["tool"] == "builtin"
    found = read_table(tmp_path / "c.parquet", CLUSTERS).column("cluster_id").to_pylist()
    assert as_parts(found) == as_parts(list(family.values()))


def test_a_program_that_fails_is_quoted_and_one_that_loses_a_protein_refused(tmp_path, monkeypatch):
    program = tmp_path / "mmseqs"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program.write_text("#!/bin/sh\necho out of disk >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(SourceError, match=r"mmseqs easy-cluster failed \(3\): out of disk"):
        mmseqs.cluster_members(["MKV"], **SETTINGS)
    program.write_text('#!/bin/sh\nprintf "0\\t0\\n" > $3_cluster.tsv\n')
    assert mmseqs.cluster_members(["MKV"], **SETTINGS) == [0]
    with pytest.raises(SourceError, match="no cluster to 1 of 2 proteins"):
        mmseqs.cluster_members(["MKV", "MKL"], **SETTINGS)
