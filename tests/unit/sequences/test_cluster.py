"""Clusters: alignments against another program, planted relatives, and no similar pair across clusters."""

import csv
import itertools
import math
import random
import re
import time
from pathlib import Path

import dnaio
import numpy as np
import pytest
from Bio.Align import PairwiseAligner, substitution_matrices
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from plm_depth.sequences import SourceError
from plm_depth.sequences.cluster import KAPPA, LAMBDA, align, clusters_of, least_score, main
from plm_depth.sequences.sample import main as sample_main
from plm_depth.tables import CLUSTERS, SEQUENCES, read_table

MINI = Path(__file__).parents[3] / "resources" / "mini"
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
PAPER = {"identity": 0.3, "coverage": 0.5}


def protein(seed: int, length: int = 150) -> str:
    return "".join(random.Random(seed).choices(AMINO_ACIDS, k=length))


def relative(of: str, identity: float, seed: int) -> str:
    """Return a copy in which a share of the residues, evenly drawn, is replaced by other ones."""
    rng = random.Random(seed)
    changed = set(rng.sample(range(len(of)), round((1 - identity) * len(of))))
    return "".join(rng.choice(AMINO_ACIDS.replace(c, "")) if i in changed else c for i, c in enumerate(of))


def cluster(proteins: dict[str, str], **options) -> dict[str, str]:
    return dict(zip(proteins, clusters_of(list(proteins), list(proteins.values()), **(PAPER | options))))


def families() -> dict[str, tuple[str, str]]:
    """Return the family and the residues of each labelled protein."""
    with open(MINI / "families" / "families.tsv", newline="") as file:
        return {
            f"{row['member']}/{row['start']}": (row["family_id"], row["sequence"])
            for row in csv.DictReader(file, delimiter="\t")
        }


def biopython() -> PairwiseAligner:
    aligner = PairwiseAligner(mode="local", open_gap_score=-11, extend_gap_score=-1)
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")
    return aligner


def test_scores_are_those_of_biopython():
    proteins = [residues for _, residues in families().values()] + mini()
    aligner = biopython()
    for a, b in (random.Random(i).sample(proteins, 2) for i in range(300)):
        assert align(a, b).score == aligner.score(a, b)


def mini() -> list[str]:
    with dnaio.open(MINI / "sequences.fasta") as reader:
        return [record.sequence for record in reader]


def test_identity_and_coverage_are_those_of_an_alignment_biopython_finds_as_good():
    """Ties make several alignments best; ours must be among them."""
    relatives = [residues for family, residues in families().values() if family in ("PF00042", "PF00134", "PF00041")]
    aligner = biopython()
    checked = 0
    for a, b in (random.Random(i).sample(relatives, 2) for i in range(150)):
        ours = align(a, b)
        if ours.score < 60:
            continue
        found = set()
        for theirs in itertools.islice(aligner.align(a, b), 200):
            counts = theirs.counts()
            columns = counts.identities + counts.mismatches + counts.gaps
            spans = [(block[-1][-1] - block[0][0]) / n for block, n in zip(theirs.aligned, (len(a), len(b)))]
            if len(a) == len(b):
                span = max(spans)
            else:
                span = spans[0] if len(a) < len(b) else spans[1]
            found.add((round(counts.identities / columns, 9), round(span, 9)))
        assert (round(ours.identity, 9), round(ours.coverage, 9)) in found
        checked += 1
    assert checked > 20


def test_identity_counts_gap_columns_and_coverage_is_of_the_shorter():
    core = protein(1, 60)
    other = "W" * 100 + core[:30] + core[32:] + "P" * 5  # two residues lost; both ends foreign
    found = align(core, other)
    assert found.identity == pytest.approx(58 / 60)
    assert found.coverage == 1.0  # the shorter one lies in it from its first to its last residue
    assert align(core + "W" * 60, other + protein(9, 20)).coverage == pytest.approx(60 / 120, abs=0.02)


def test_of_two_equally_long_proteins_the_one_that_is_covered_more_counts():
    core = protein(1, 60)
    less, more = "W" * 20 + core, "P" * 15 + core[:30] + "GGGGG" + core[30:]
    assert len(less) == len(more) == 80
    assert align(less, more).coverage == align(more, less).coverage == 65 / 80
    less, more = less.replace("W" * 20, "A" * 20), more.replace("P" * 15, "W" * 15)
    assert align(less, more).coverage == align(more, less).coverage == 65 / 80


@given(st.text(AMINO_ACIDS, min_size=1, max_size=60), st.text(AMINO_ACIDS, min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_an_alignment_does_not_depend_on_which_protein_comes_first(a, b):
    one, two = align(a, b), align(b, a)
    assert (one.score, one.coverage) == (two.score, two.coverage)
    assert one.identity == two.identity or (math.isnan(one.identity) and one.score == 0)
    assert 0 <= one.coverage <= 1


def test_a_protein_covers_itself():
    found = align(protein(3), protein(3))
    assert (found.identity, found.coverage) == (1.0, 1.0)


def test_nothing_aligns_where_every_pair_of_residues_scores_below_zero():
    found = align("AAAA", "WWWW")
    assert (found.score, found.coverage) == (0, 0.0)
    assert math.isnan(found.identity)


def test_scores_beyond_eight_and_sixteen_bits_do_not_overflow():
    assert align("W" * 5000, "W" * 5000).score == 55000
    assert cluster({"a": "W" * 5000, "b": "W" * 4000}) == {"a": "a", "b": "a"}


@pytest.mark.parametrize("max_evalue", [1e-3, 10.0])
def test_the_least_score_has_the_largest_evalue(max_evalue):
    score = least_score(150, 54_000, max_evalue)
    assert KAPPA * 150 * 54_000 * math.exp(-LAMBDA * score) == pytest.approx(max_evalue)


def test_planted_relatives_share_a_cluster_and_strangers_do_not():
    founders = {f"F{i}": protein(i, 200) for i in range(20)}
    children = {
        f"{name}c{k}": relative(founders[name], 0.6, int(name[1:]) + 100 * k) for name in founders for k in range(3)
    }
    found = cluster(founders | children)
    for name in founders:
        assert {found[f"{name}c{k}"] for k in range(3)} == {found[name]}
    assert len(set(found.values())) == 20


def test_a_cluster_is_named_after_its_longest_protein_and_ties_after_the_first_accession():
    base = protein(5)
    assert set(cluster({"b": base, "a": base[:-1], "c": base[:-2]}).values()) == {"b"}
    assert set(cluster({"c": base, "b": base, "d": base[:-2]}).values()) == {"b"}


def test_relatives_of_relatives_join_though_they_have_nothing_in_common():
    left, right = protein(1, 120), protein(2, 120)
    ends = {"left": left, "right": right}
    assert len(set(cluster(ends).values())) == 2
    assert set(cluster(ends | {"both": left + right}).values()) == {"both"}


def test_below_the_identity_two_proteins_stay_apart_however_significant():
    kin = str.maketrans("IVLMKRDEFYSTNQ", "VIMLRKEDYFTSQN")  # each residue for one like it
    first = protein(7, 400)
    second = "".join(c if i % 5 == 0 else c.translate(kin) for i, c in enumerate(first))
    pair = {"a": first, "b": second}
    found = align(first, second)
    assert found.score > least_score(400, 800, 1e-30)
    assert found.coverage > 0.9
    assert cluster(pair, identity=found.identity + 0.01) == {"a": "a", "b": "b"}
    assert cluster(pair, identity=found.identity - 0.01) == {"a": "a", "b": "a"}


def test_below_the_coverage_of_the_shorter_two_proteins_stay_apart():
    shared = protein(8, 80)
    pair = {"a": protein(9, 120) + shared, "b": shared + protein(10, 120)}
    found = align(*pair.values())
    assert found.identity > 0.6
    assert 0.35 < found.coverage < 0.5
    assert len(set(cluster(pair).values())) == 2
    assert len(set(cluster(pair, coverage=0.35).values())) == 1
    # the same stretch is most of a shorter protein
    assert len(set(cluster(pair | {"b": shared + protein(10, 40)}).values())) == 1


def test_as_many_shuffled_proteins_are_significant_as_the_evalue_says(caplog):
    """Every pair is searched once, so E = 1 promises one chance hit for every two proteins."""
    shuffled = {f"P{i}": "".join(random.Random(i).sample(s, len(s))) for i, s in enumerate(mini())}
    with caplog.at_level("INFO"):
        assert len(set(cluster(shuffled, identity=1.0, max_evalue=1.0).values())) == 336
    n_significant = int(re.search(r"(\d+) significant", caplog.text)[1])
    assert 168 / 1.4 < n_significant < 168 * 1.4


def test_short_chance_alignments_do_not_join_strangers():
    strangers = {f"S{i}": protein(100 + i, 40) for i in range(60)}
    assert len(set(cluster(strangers).values())) == 60
    loose = cluster(strangers, max_evalue=1e6)  # then 30 % identity over half the protein comes by chance
    assert len(set(loose.values())) < 50


def test_proteins_of_different_clusters_are_never_similar():
    """Against connected components of all pairs, made with another program's alignments."""
    proteins = dict(random.Random(4).sample(sorted((k, v) for k, (_, v) in families().items() if len(v) < 160), 45))
    names, sequences = list(proteins), list(proteins.values())
    n_residues = sum(map(len, sequences))
    aligner = biopython()
    similar = np.zeros((len(names), len(names)), bool)
    for i, j in itertools.combinations(range(len(names)), 2):
        shorter = min(len(sequences[i]), len(sequences[j]))
        evalue = KAPPA * shorter * n_residues * math.exp(-LAMBDA * aligner.score(sequences[i], sequences[j]))
        found = align(sequences[i], sequences[j])
        similar[i, j] = evalue <= 1e-3 and found.identity >= 0.3 and found.coverage >= 0.5
    assert similar.sum() > 30
    n_components, component = connected_components(similar, directed=False)
    found = cluster(proteins)
    assert len(set(found.values())) == n_components
    assert len({(component[i], found[name]) for i, name in enumerate(names)}) == n_components


def test_known_families_are_not_mixed_and_close_relatives_are_found():
    labelled = families()
    found = cluster({name: residues for name, (_, residues) in labelled.items()})
    families_of = {}
    for name, (family, _) in labelled.items():
        families_of.setdefault(found[name], set()).add(family)
    assert all(len(group) == 1 for group in families_of.values())
    globins = {found[name] for name, (family, _) in labelled.items() if family == "PF00042"}
    assert len(globins) <= 3


@given(st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_clusters_do_not_depend_on_the_order(rng):
    proteins = {name: residues for name, (_, residues) in families().items() if len(residues) < 100}
    shuffled = dict(rng.sample(list(proteins.items()), len(proteins)))
    assert cluster(shuffled) == {name: cluster_id for name, cluster_id in cluster(proteins).items()}


def test_the_mini_data_is_clustered_in_seconds(tmp_path, capsys):
    sample, output = tmp_path / "sample.parquet", tmp_path / "clusters.parquet"
    sample_main(
        f"--fasta {MINI / 'sequences.fasta'} --size 336 --seed 1 --min-length 40 --max-length 400 --sample {sample} "
        f"--left-out {tmp_path / 'left_out.parquet'}".split()
    )
    started = time.process_time()
    main(f"--sample {sample} --identity 0.3 --coverage 0.5 --output {output}".split())
    assert time.process_time() - started < 15
    table = read_table(output, CLUSTERS)
    assert table.column("sequence_id").to_pylist() == read_table(sample, SEQUENCES).column("sequence_id").to_pylist()
    found = dict(zip(table.column("sequence_id").to_pylist(), table.column("cluster_id").to_pylist()))
    assert all(found[name] == name for name in set(found.values())), "a representative is in its own cluster"
    assert found["P0C960"] == found["P0C066"], "two lytic transglycosylases of one organism"
    log = capsys.readouterr().err
    assert "56280/56280 pairs" in log
    assert "336 proteins, 54275 residues, 56280 pairs: about" in log


def test_more_pairs_than_allowed_are_refused_with_the_time_they_would_take():
    with pytest.raises(SourceError, match=r"5 proteins are 10 pairs.* more than --max-pairs 9; raise it .*about 0s"):
        clusters_of(list("abcde"), ["ACDEF"] * 5, **PAPER, max_pairs=9)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"identity": 30.0}, "--identity 30.0: expected a share"),
        ({"identity": 0.0}, "--identity 0.0"),
        ({"coverage": 1.5}, "--coverage 1.5"),
        ({"coverage": math.nan}, "--coverage nan"),
        ({"max_evalue": 0.0}, "--max-evalue 0.0"),
    ],
)
def test_bad_thresholds_are_errors(changed, text):
    with pytest.raises(SourceError, match=text):
        cluster({"a": "ACDEF"}, **changed)


def test_an_accession_twice_is_an_error_that_names_it():
    with pytest.raises(SourceError, match="accession b comes twice"):
        clusters_of(["a", "b", "b"], ["ACDEF"] * 3, **PAPER)


def test_one_protein_is_one_cluster():
    assert cluster({"a": "ACDEF"}) == {"a": "a"}


def test_a_failing_stage_says_one_line_and_writes_nothing(tmp_path):
    output = tmp_path / "clusters.parquet"
    with pytest.raises(SystemExit) as caught:
        main(f"--sample {tmp_path / 'nothing.parquet'} --output {output}".split())
    assert "nothing.parquet: not a readable Parquet file" in caught.value.code
    assert not output.exists()
