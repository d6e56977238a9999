"""Probes of a whole model: planted answers at known layers, controls, folds, and the tables they are written to."""

import hashlib
import json
import logging

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plm_depth.metrics import homology
from plm_depth.metrics.bootstrap import Bootstrap
from plm_depth.metrics.probe_curves import (
    LEAST_CLUSTERS,
    LEAST_SEEN,
    Curve,
    Settings,
    fold_of_chains,
    homology_folds,
    seen_in_training,
    splits_beside,
)
from plm_depth.metrics.probes import main, probe
from plm_depth.metrics.probing import ProbeError, Split
from plm_depth.metrics.stream import Stream
from plm_depth.randomness import generator
from plm_depth.tables import (
    AMINO_ACIDS,
    ANNOTATIONS,
    ATTENTION_KEYS,
    BACKBONE,
    CLUSTERS,
    PROBE,
    PROBES,
    STREAM_KEYS,
    TableError,
    VectorWriter,
    read_table,
    write_table,
)

WIDTH, N_BLOCKS, PLANTED = 12, 4, 2  # the answers are there from layer PLANTED on
N_SITES = 6


class World:
    """Chains and families with planted answers, and streams of invented models in which they can be read."""

    def __init__(self, folder, *, n_chains=12, length=36, seed=0, letters="ACDEFG"):
        self.folder, random = folder, generator(seed, "world")
        self.chains = {f"C{i:02d}": "".join(random.choice(list(letters), size=length)) for i in range(n_chains)}
        self.state = {name: random.choice(list("HEC"), size=length) for name in self.chains}
        self.site = {name: random.integers(N_SITES, size=length) for name in self.chains}
        self.hse = {name: random.normal(size=length) for name in self.chains}
        self.rsa = {name: np.full(length, np.nan) for name in self.chains}
        members = [(f"M{g}{p}{i}", f"G{g}", f"P{p}") for g in range(3) for p in range(3) for i in range(3)]
        self.members = [*members, ("M_lone", "G9", "")]
        self.superfamily, self.cluster_of = {}, {}
        self.random = random
        self.write_tables()

    def write_tables(self):
        rows = {name: [] for name in BACKBONE.names}
        for name, sequence in self.chains.items():
            for position, letter in enumerate(sequence):
                # Residues of one site are in one place, sites are far apart.
                at = np.array([100.0 * self.site[name][position], 0, 0], np.float32)
                row = {
                    "sequence_id": name,
                    "sequence_hash": hashlib.sha256(sequence.encode()).hexdigest(),
                    "position": position,
                    "aa": letter,
                    "is_resolved": True,
                    "after_break": position == 0,
                    "plddt": np.nan,
                    **{atom: at.tolist() for atom in ("n", "ca", "c", "o", "cb")},
                    "three_di": "D",
                    "ss8": "-",
                    "ss3": self.state[name][position],
                    "rsa": self.rsa[name][position],
                    "hse_up": self.hse[name][position],
                }
                for column, value in row.items():
                    rows[column].append(value)
        write_table(rows, BACKBONE, self.folder / "backbone")
        known = [(name, "structures", self.superfamily.get(name, ""), "") for name in self.chains]
        known += [(name, "families", group, part) for name, group, part in self.members]
        write_table(dict(zip(ANNOTATIONS.names, zip(*known))), ANNOTATIONS, self.folder / "annotations")
        names = [name for name, *_ in known]
        cluster = [
            f"{name[0]}{int(name[1:]) // 2}" if name in self.chains else self.cluster_of.get(name, name)
            for name in names
        ]
        write_table({"sequence_id": names, "cluster_id": cluster}, CLUSTERS, self.folder / "clusters")

    def vectors(self, name, layer, noise):
        """Return the mean and the residues of a protein at a layer, (1 + n, WIDTH)."""
        if name not in self.chains:
            group = next(g for n, g, _ in self.members if n == name)
            kin = np.array([group == g for g in ("G0", "G1", "G2")]) * 12.0
            return np.r_[kin * (layer >= PLANTED), noise.normal(size=WIDTH - 3)][None]
        x = noise.normal(size=(len(self.chains[name]), WIDTH))
        if layer >= PLANTED:
            x[:, :3] = np.array([list("HEC")]) == self.state[name][:, None]
            x[:, 3] = self.hse[name]
            x[:, 4 : 4 + N_SITES] = 3 * np.eye(N_SITES)[self.site[name]]
        return np.r_[x.mean(0, keepdims=True), x]

    def write_stream(self, path, *, views=(("trained", "none", 0.0),), order=None, objective="mlm", **constants):
        about = {
            "model_id": "toy",
            "family": "toy",
            "objective": objective,
            "n_blocks": N_BLOCKS,
            "d_model": WIDTH,
            "dtype": "float32",
            "readout": "seq",
            "tokens_are_residues": True,
            "seed": 0,
            "version": 1,
            **constants,
        }
        names = [*self.chains, *(name for name, *_ in self.members)]
        with VectorWriter(path, STREAM_KEYS, range(N_BLOCKS + 1), WIDTH, "float32", about) as writer:
            for null, direction, noise_t in views:
                for name in names if order is None else [names[i] for i in order]:
                    noise = generator("noise", null, direction, noise_t, name)
                    # An untrained network knows nothing; reading backwards comes to it a layer later.
                    late = {"trained": 0, "randinit": 99}[null] + (direction == "c2n")
                    x = np.stack([self.vectors(name, layer - late, noise) for layer in range(N_BLOCKS + 1)])
                    writer.append(self.keys(name, x.shape[1], null, direction, noise_t), x)
        return path

    def write_maps(self, path, *, views=(("trained", "none", 0.0),), names=None, n_heads=3):
        """Write attention maps of which the second head of blocks from PLANTED on sees who shares a site."""
        about = {"model_id": "toy", "n_blocks": N_BLOCKS}
        with VectorWriter(path, ATTENTION_KEYS, range(1, N_BLOCKS + 1), n_heads, "float32", about) as writer:
            for null, direction, noise_t in views:
                for name in names or self.chains:
                    i, j = np.triu_indices(len(self.chains[name]), 6)
                    maps = 1e-6 * generator("maps", null, name).normal(size=(N_BLOCKS, len(i), n_heads))
                    if null == "trained":
                        maps[PLANTED - 1 :, :, 1] += 1e-5 * (self.site[name][i] == self.site[name][j])
                    keys = self.keys(name, len(i), null, direction, noise_t)
                    del keys["position"]
                    writer.append({**keys, "n_residues": len(self.chains[name]), "i": i, "j": j}, maps)
        return path

    def keys(self, name, n, null, direction, noise_t):
        return {
            "sequence_id": [name] * n,
            "n_residues": n - 1,
            "null_model": null,
            "null_seed": -1 if null == "trained" else 0,
            "condition": "seq",
            "direction": direction,
            "noise_t": noise_t,
            "mask_draw": -1,
            "position": list(range(-1, n - 1)),
        }

    def probe(self, stream, **settings):
        n_boot, attention = settings.pop("n_boot", 50), settings.pop("attention", None)
        settings = {"folds": 4, "penalties": (1e-3, 1e-1), "residues": 30, **settings}
        probe(
            stream=stream,
            annotations=self.folder / "annotations",
            clusters=self.folder / "clusters",
            backbone=self.folder / "backbone",
            settings=Settings(**settings),
            n_boot=n_boot,
            seed=1,
            probe=self.folder / "probe",
            probes=self.folder / "probes",
            attention=attention,
        )
        return read(self.folder / "probe", PROBE), read(self.folder / "probes", PROBES)


def read(path, schema):
    return pl.from_arrow(read_table(path, schema)).with_columns(pl.col(pl.Categorical).cast(pl.String))


def by_layer(table, **where):
    where = {"control": "none", "stat": "score", **where}
    found = table.filter(*(pl.col(name) == value for name, value in where.items() if name in table.columns))
    layers = found["layer"].to_list()
    assert len(set(layers)) == len(layers) and layers
    return dict(zip(layers, found["value"].to_list()))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def tables(world):
    """Return the tables of a trained and an untrained network on all tasks."""
    views = (("trained", "none", 0.0), ("randinit", "none", 0.0))
    stream = world.write_stream(world.folder / "stream", views=views)
    return world.probe(stream, tasks=("ss3", "hse", "rsa", "contacts", "homology"))


# ----------------------------------------------------------------------------------------------------------------
# What is found


def test_planted_states_are_read_from_the_layer_that_has_them_and_not_before(tables):
    found = by_layer(tables[1], task="ss3", metric="accuracy")
    assert set(found) == set(range(N_BLOCKS + 1))
    for layer, value in found.items():
        assert value == 1.0 if layer >= PLANTED else abs(value - 1 / 3) < 0.12
    hse = by_layer(tables[1], task="hse", metric="spearman")
    assert min(hse[layer] for layer in range(PLANTED, N_BLOCKS + 1)) > 0.99
    assert max(abs(hse[layer]) for layer in range(PLANTED)) < 0.2


def test_planted_contacts_are_read_from_the_layer_that_has_them(tables):
    for metric in ("p_at_l_short", "p_at_l_medium"):
        found = by_layer(tables[1], task="contacts", metric=metric)
        chance = tables[1].filter(metric=metric, stat="score")["chance"][0]
        assert abs(chance - 1 / N_SITES) < 0.05
        assert max(found[layer] for layer in range(PLANTED)) < 2 * chance
        assert min(found[layer] for layer in range(PLANTED, N_BLOCKS + 1)) > 0.6 > 2 * chance


def test_planted_kin_are_found_by_cosine_and_by_probes_on_parts_that_were_not_seen(tables):
    kinds = (("top1", "retrieval", "raw", 0.95), ("accuracy", "logistic", "pca256", 0.85))
    for metric, probe_kind, space, least in kinds:
        found = by_layer(tables[1], task="homology", metric=metric, probe=probe_kind, space=space)
        assert min(found[layer] for layer in range(PLANTED, N_BLOCKS + 1)) > least
        assert max(found[layer] for layer in range(PLANTED)) < 0.7
    asked = tables[1].filter(task="homology", probe="logistic", stat="score")["n_rows"].unique().to_list()
    assert asked == [27]  # the member without a part only trains


def test_untrained_networks_and_permuted_labels_score_chance_and_differences_are_of_the_same_residues(tables):
    _, probes = tables
    for control in ("untrained", "perm"):
        for layer, value in by_layer(probes, task="ss3", metric="accuracy", control=control).items():
            assert abs(value - 1 / 3) < 3 * np.sqrt(2 / 9 / 360) + 0.06, (control, layer)
    score = by_layer(probes, task="ss3", metric="accuracy")
    other = by_layer(probes, task="ss3", metric="accuracy", control="untrained")
    difference = by_layer(probes, task="ss3", metric="accuracy", stat="over_untrained")
    assert difference == pytest.approx({layer: score[layer] - other[layer] for layer in score})
    one_hot = by_layer(probes, task="ss3", metric="accuracy", control="onehot")
    over = by_layer(probes, task="ss3", metric="accuracy", stat="over_onehot")
    assert set(one_hot) == {-1} and over[N_BLOCKS] == pytest.approx(score[N_BLOCKS] - one_hot[-1])


def test_selectivity_is_of_the_residues_whose_3_mer_was_there_to_be_learned(tables):
    folds, probes = tables
    rows = probes.filter(task="ss3", metric="accuracy")
    control = rows.filter(control="kmer", stat="score")
    n_seen = control["n_rows"].unique().item()
    assert LEAST_SEEN <= n_seen < 360
    share = rows.filter(control="kmer", stat="seen_share").row(0, named=True)
    assert (share["value"], share["n_rows"], share["layer"]) == (pytest.approx(n_seen / 360), n_seen, -1)
    assert folds.filter(task="ss3", metric="accuracy", control="kmer", layer=1)["n_test"].sum() == n_seen
    selectivity = rows.filter(stat="selectivity")
    assert selectivity["n_rows"].unique().to_list() == [n_seen]
    kmer = by_layer(rows, control="kmer")
    for layer, value in by_layer(rows, stat="selectivity").items():
        # Where the task is solved for all residues, it is for these; before, both are guesses.
        assert value == pytest.approx(1 - kmer[layer]) if layer >= PLANTED else abs(value) < 0.2
    assert set(rows.filter(control="kmer")["stat"]) == {"score", "seen_share"}  # it chooses no layer
    assert "undefined" not in set(rows["stat"])


def test_a_control_that_nearly_no_residue_can_tell_is_undefined_and_says_how_many_could(tmp_path, caplog):
    world = World(tmp_path, letters=AMINO_ACIDS)
    with caplog.at_level(logging.WARNING):
        folds, probes = world.probe(world.write_stream(tmp_path / "stream"), tasks=("ss3",), controls=("kmer",))
    row = probes.filter(stat="undefined").row(0, named=True)
    assert (row["control"], row["task"], row["param"]) == ("kmer", "ss3", LEAST_SEEN)
    assert row["value"] == row["n_rows"] < LEAST_SEEN and row["n_boot"] == 0
    assert "kmer" not in set(folds["control"]) and "selectivity" not in set(probes["stat"])
    assert (
        f"3-mers of {row['n_rows']} of 360 tested residues stand in their training rows; 50 are needed" in caplog.text
    )


def test_seen_types_are_those_of_the_training_rows_of_the_fold_that_tests():
    types = np.array(["AAA", "AAC", "AAA", "AAC", "AAD", "AAA"])
    outer = [
        Split(0, np.array([2, 3]), np.array([4]), np.array([0, 1])),
        Split(1, np.array([4, 5]), np.array([0, 1]), np.array([2, 3])),
        Split(2, np.array([0, 1]), np.array([2, 3]), np.array([4, 5])),
    ]
    assert seen_in_training(types, outer).tolist() == [0, 1, 2, 5]


def test_depth_in_one_number_is_the_planted_layer(tables):
    _, probes = tables
    rows = probes.filter(task="ss3", metric="accuracy", control="none")
    one = {row["stat"]: row for row in rows.to_dicts() if row["layer"] == -1 and row["stat"] != "retention_depth"}
    assert one["best_layer"]["value"] == one["shallowest"]["value"] == PLANTED
    assert one["shallowest"]["ci_lo"] == one["shallowest"]["ci_hi"] == PLANTED
    assert one["selected"]["value"] == 1.0
    retention = rows.filter(stat="retention_depth")
    assert retention["value"].to_list() == [PLANTED] * 6
    assert set(zip(retention["floor"], retention["param"])) == {
        (floor, share) for floor in ("chance", "layer_0") for share in (0.9, 0.95, 0.99)
    }
    inside = rows.filter(stat="score").sort("layer")["in_plateau"].to_list()
    assert inside == [layer >= PLANTED for layer in range(N_BLOCKS + 1)]


def test_every_fold_has_its_rows_and_the_corpus_value_is_that_of_all_of_them(tables):
    folds, probes = tables
    mine = folds.filter(task="ss3", metric="accuracy", control="none", layer=1)
    assert mine["fold"].to_list() == [0, 1, 2, 3] and mine["n_test"].sum() == 360
    pooled = (mine["value"] * mine["n_test"]).sum() / 360
    assert by_layer(probes, task="ss3", metric="accuracy")[1] == pytest.approx(pooled)
    assert (mine["dim"] == WIDTH).all() and set(mine["lambda"]) <= {1e-3, 1e-1}
    one = probes.filter(task="ss3", metric="accuracy", control="none", stat="score", layer=1).to_dicts()[0]
    assert (one["n_rows"], one["n_seq"], one["n_cluster"], one["n_boot"]) == (360, 12, 6, 50)
    assert one["ci_lo"] < one["value"] < one["ci_hi"]
    retrieval = folds.filter(task="homology", probe="retrieval", metric="top1")
    assert (retrieval["n_train"] == 0).all() and retrieval["lambda"].is_nan().all()


def test_a_task_without_any_label_is_left_out_and_said(world, tables, caplog):
    assert "rsa" not in set(tables[1]["task"])
    with caplog.at_level(logging.WARNING), pytest.raises(ProbeError, match="none of the tasks rsa could be done"):
        world.probe(world.folder / "stream", tasks=("rsa",))
    assert "task rsa: no residue of the 12 chains has a label" in caplog.text


def test_solvent_accessibility_is_read_as_a_number_and_as_exposed_or_not_where_it_is_known(tmp_path):
    world = World(tmp_path)
    for name, state in world.state.items():
        world.rsa[name] = np.where(state == "H", 0.1, 0.4) + 0.01 * world.hse[name]
        world.rsa[name][:5] = np.nan
    world.write_tables()
    stream = world.write_stream(tmp_path / "stream")
    _, probes = world.probe(stream, tasks=("rsa", "exposed"), controls=("kmer", "onehot"), residues=None)
    for task, metric, chance, certain in (("rsa", "spearman", 0.0, 0.9), ("exposed", "auroc", 0.5, 0.999)):
        found = by_layer(probes, task=task, metric=metric)
        assert min(found[layer] for layer in range(PLANTED, N_BLOCKS + 1)) > certain
        assert max(abs(found[layer] - chance) for layer in range(PLANTED)) < 0.15
        scored = probes.filter(task=task, stat="score")
        assert set(scored.filter(pl.col("control") != "kmer")["n_rows"]) == {12 * 31}
        assert LEAST_SEEN <= scored.filter(control="kmer")["n_rows"].unique().item() < 12 * 31
        assert by_layer(probes, task=task, metric=metric, stat="selectivity")[N_BLOCKS] > 0.3


def test_order_and_sharding_of_the_stream_change_nothing(world, tables):
    views = (("randinit", "none", 0.0), ("trained", "none", 0.0))
    order = generator(0, "order").permutation(len(world.chains) + len(world.members))
    stream = world.write_stream(world.folder / "shuffled", views=views, order=order)
    folds, probes = world.probe(stream, tasks=("ss3", "hse", "rsa", "contacts", "homology"))
    assert folds.equals(tables[0], null_equal=True) and probes.equals(tables[1], null_equal=True)


def test_both_directions_are_read_alone_and_side_by_side(world):
    views = tuple((null, direction, np.nan) for null in ("trained", "randinit") for direction in ("n2c", "c2n"))
    stream = world.write_stream(world.folder / "ar", views=views, objective="ar")
    folds, probes = world.probe(stream, tasks=("ss3",), controls=("perm", "untrained"), penalties=(0.01,))
    dims = dict(zip(folds["direction"], folds["dim"]))
    assert dims == {"n2c": WIDTH, "c2n": WIDTH, "both": 2 * WIDTH}
    first = {d: by_layer(probes, task="ss3", metric="accuracy", direction=d, stat="best_layer") for d in dims}
    assert [first[d][-1] for d in ("n2c", "c2n", "both")] == [PLANTED, PLANTED + 1, PLANTED]
    assert set(probes.filter(control="perm")["direction"]) == {"both"}  # controls stand beside the richest input
    assert set(probes.filter(control="untrained")["direction"]) == set(dims)
    only, _ = world.probe(stream, tasks=("ss3",), controls=(), directions=("n2c",), penalties=(0.01,))
    assert set(only["direction"]) == {"n2c"}


def test_a_label_that_a_block_of_a_network_writes_is_chance_before_it_and_certain_after(tmp_path):
    from planted import label_of, toy, with_label
    from plm_depth.activations.embed import embed
    from plm_depth.activations.nulls import Null
    from plm_depth.views import View

    world = World(tmp_path, n_chains=10, length=40, letters=AMINO_ACIDS)
    world.state = {
        name: np.array(["EH"[label_of(letter)] for letter in sequence]) for name, sequence in world.chains.items()
    }
    world.write_tables()
    adapter = with_label(toy(norm="identity"), 3)
    embed(
        adapter,
        list(world.chains.items()),
        output=tmp_path / "stream",
        model_id="toy",
        nulls=[Null("trained", -1)],
        views=[View("none", 0.0, -1)],
        seed=0,
        log=logging.getLogger("test"),
    )
    _, probes = world.probe(tmp_path / "stream", tasks=("ss3",), controls=(), residues=None)
    found = by_layer(probes, task="ss3", metric="accuracy")
    for layer in range(adapter.n_blocks + 1):
        assert found[layer] == 1.0 if layer >= 3 else abs(found[layer] - 0.5) < 0.1


def test_contacts_planted_in_one_head_are_read_from_the_maps_of_the_blocks_that_have_them(world, tables, caplog):
    stream = world.folder / "stream"
    views = (("trained", "none", 0.0), ("randinit", "none", 0.0))
    maps = world.write_maps(world.folder / "maps", views=views)
    settings = {"tasks": ("contacts",), "controls": ("untrained",), "penalties": (0.1,)}
    folds, probes = world.probe(stream, attention=maps, **settings)
    mine = probes.filter(probe="attention")
    for metric in ("p_at_l_short", "p_at_l_medium"):
        found = by_layer(mine, metric=metric)
        assert list(found) == [1, 2, 3, 4]  # blocks
        # A chain has about 27 short contacts for 36 best pairs: 0.75 is all there is.
        assert found[PLANTED - 1] < 0.4 and min(found[block] for block in range(PLANTED, N_BLOCKS + 1)) > 0.7
        untrained = by_layer(mine, metric=metric, control="untrained")
        assert max(untrained.values()) < 0.4
    assert set(mine.filter(stat="retention_depth")["floor"]) == {"chance"}  # there is no layer 0
    assert set(folds.filter(probe="attention")["dim"]) == {3}
    few = world.write_maps(world.folder / "few_maps", names=list(world.chains)[:2])
    with caplog.at_level(logging.WARNING):
        _, probes = world.probe(stream, attention=few, **settings)
    assert "attention: maps of 2 chains do not fill 4 folds; left out" in caplog.text
    assert set(probes["probe"]) == {"logistic"}


# ----------------------------------------------------------------------------------------------------------------
# Parts


def test_chains_of_one_superfamily_share_a_fold_though_they_are_not_similar():
    names = [f"C{i}" for i in range(12)]
    sizes = {name: [1.0] for name in names}
    alone = {name: name for name in names}
    group = {name: "" for name in names} | {"C0": "s", "C5": "s", "C9": "s"}
    fold, joined = fold_of_chains(alone, group, sizes, 4, 0)
    assert fold["C0"] == fold["C5"] == fold["C9"] and joined["C5"] == "C0" and joined["C1"] == "C1"
    with pytest.raises(ProbeError, match="2 groups of 12 proteins in 4 folds"):
        fold_of_chains(dict.fromkeys(names, "x") | {"C0": "y"}, dict.fromkeys(names, ""), sizes, 4, 0)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "1", "2", "3"]), st.integers(0, 15)),
        min_size=12,
        max_size=50,
    ),
    st.integers(0, 5),
)
def test_no_training_protein_of_homology_shares_a_cluster_or_a_part_with_one_that_is_tested(members, seed):
    groups, parts, clusters = [g for g, _, _ in members], [p for _, p, _ in members], [f"c{c}" for *_, c in members]
    names = [f"p{i:02d}" for i in range(len(members))]
    parts = homology.parts_of(groups, parts, clusters)
    options = {"n_folds": 4, "seed": seed}
    found = homology_folds(names, groups, parts, clusters, **options)
    right, _ = homology.kinship(groups, parts, clusters)
    if found is None:
        return
    fold, _ = found
    whole = np.array([f"{group} {part}" if part else "" for group, part in zip(groups, parts)])
    clusters = np.array(clusters)
    assert (fold[right.any(1)] >= 0).all(), "every query is tested once"
    for split in splits_beside(fold, int(fold.max()) + 1):
        for some, others in ((split.train, split.test), (split.train, split.valid), (split.valid, split.test)):
            assert not set(clusters[some]) & set(clusters[others])
            assert not (set(whole[some]) & set(whole[others])) - {""}
        tested = set(np.array(groups)[split.test][right.any(1)[split.test]])
        assert all(parts[i] or groups[i] not in tested for i in split.train), "its part may be the one that is tested"
    order = generator(seed, "order").permutation(len(members))
    again = homology_folds(*([one[i] for i in order] for one in (names, groups, parts, clusters.tolist())), **options)
    assert (again[0] == fold[order]).all()


def test_a_protein_whose_part_may_be_the_one_that_is_tested_does_not_train():
    names = [f"p{i}" for i in range(9)]
    groups = ["a"] * 5 + ["b"] * 4
    parts = ["1", "2", "3", "4", "", "1", "2", "3", "4"]
    fold, _ = homology_folds(names, groups, parts, names, n_folds=4, seed=0)
    assert fold[4] == -2 and (np.delete(fold, 4) >= 0).all()


def test_homology_in_too_few_clusters_is_undefined_and_says_so(tmp_path, caplog):
    world = World(tmp_path)
    stream = world.write_stream(tmp_path / "stream")
    # Three clusters that cross the parts: every protein has kin in two others.
    world.cluster_of = {name: f"m{i % 3}" for i, (name, *_) in enumerate(world.members)}
    world.write_tables()
    with caplog.at_level(logging.WARNING):
        folds, probes = world.probe(stream, tasks=("ss3", "homology"), controls=())
    row = probes.filter(task="homology").row(0, named=True)
    assert probes.filter(task="homology").height == 1 and set(folds["task"]) == {"ss3"}
    assert (row["stat"], row["value"], row["param"], row["n_cluster"]) == ("undefined", 3, LEAST_CLUSTERS, 3)
    assert "task homology: undefined: too few clusters, 3 of those that ask; 20 are needed, and" in caplog.text
    with pytest.raises(ProbeError, match="27 members have kin beyond their part and similarity cluster, in 3 clusters"):
        world.probe(stream, tasks=("homology",), controls=())
    pieces = world.write_stream(tmp_path / "pieces", tokens_are_residues=False)
    folds, probes = world.probe(pieces, tasks=("ss3", "homology"))
    assert folds.is_empty() and probes["stat"].to_list() == ["undefined"]


def test_chains_with_a_superfamily_are_counted_and_their_absence_is_said(tmp_path, caplog):
    world = World(tmp_path)
    stream = world.write_stream(tmp_path / "stream")
    with caplog.at_level(logging.INFO):
        _, probes = world.probe(stream, tasks=("ss3",), controls=())
    assert probes["n_grouped"].unique().to_list() == [0]
    assert "no superfamily of the chains is known: folds keep clusters whole, and only these" in caplog.text
    world.superfamily = {"C00": "s", "C07": "s", "C03": "t"}
    world.write_tables()
    with caplog.at_level(logging.INFO):
        _, probes = world.probe(stream, tasks=("ss3",), controls=())
    assert probes["n_grouped"].unique().to_list() == [3]
    assert "3 of 12 chains have one; folds keep these whole beside clusters" in caplog.text


def test_proteins_that_ask_nothing_train_in_every_fold():
    fold = np.array([0, -1, 1, 2, -1, 0, -2])
    for split in splits_beside(fold, 3):
        assert {1, 4} <= set(split.train.tolist())
        assert not {1, 4} & {*split.test.tolist(), *split.valid.tolist()}
        assert 6 not in {*split.train.tolist(), *split.test.tolist(), *split.valid.tolist()}
        assert (fold[split.test] == split.fold).all()


def test_the_selected_score_takes_each_fold_at_the_layer_its_validation_rows_chose():
    bootstrap = Bootstrap.of({f"P{i}": f"P{i}" for i in range(6)}, n_boot=3, seed=0)
    fold = np.array([0, 0, 1, 1, 2, 2])
    curve = Curve({}, ("top1",), bootstrap, np.arange(6), fold, None, np.zeros(3))
    nothing = np.full(3, np.nan)
    # Fold 1 validates fold 0, fold 2 validates fold 1, fold 0 validates fold 2.
    curve.add(0, np.array([10.0, 10, 11, 11, 12, 12]), np.array([0.9, 0.9, 0.1, 0.1, 0.9, 0.9]), nothing, nothing)
    curve.add(1, np.array([20.0, 20, 21, 21, 22, 22]), np.array([0.1, 0.1, 0.9, 0.9, 0.1, 0.1]), nothing, nothing)
    found = curve.selected("top1")
    assert found.places.tolist() == [1, 0, 0] and found.n_undefined == 0
    assert found.value == np.mean([20, 20, 11, 11, 12, 12])
    # By hand, resample by resample: layers are chosen anew with the weights of the resample.
    assert found.resampled.shape == (3,)
    for weights, value in zip(bootstrap.weights, found.resampled):
        said = np.empty(6)
        for k in range(3):
            rows, chooser = fold == k, fold == (k + 1) % 3
            score = [
                np.average(valid[chooser], weights=weights[chooser]) if weights[chooser].any() else np.nan
                for valid in curve.valid
            ]
            said[rows] = curve.test[1 if np.isnan(score).all() else int(np.nanargmax(score))][rows]
        assert value == pytest.approx(np.average(said, weights=weights))


def test_a_row_that_is_not_in_the_stream_is_named(world, tables):
    stream = Stream(world.folder / "stream")
    one = stream.representations(("both",))[0]
    with pytest.raises(TableError, match="no rows of 1 proteins, the first nobody; embed them"):
        stream.rows(one, ["nobody"], np.array([0]), np.array([0]))
    with pytest.raises(TableError, match=r"no row of C00 at position 36 under .*embed all residues"):
        stream.rows(one, ["C00"], np.array([0]), np.array([36]))


# ----------------------------------------------------------------------------------------------------------------
# The stage


def call(world, stream, *words):
    options = {
        "--stream": stream,
        "--annotations": world.folder / "annotations",
        "--clusters": world.folder / "clusters",
        "--backbone": world.folder / "backbone",
        "--settings": json.dumps({"tasks": ["ss3"], "folds": 4, "penalties": [0.1], "controls": []}),
        "--resamples": 20,
        "--seed": 1,
        "--probe": world.folder / "cli_probe",
        "--probes": world.folder / "cli_probes",
    }
    main([*(str(part) for option in options.items() for part in option), *map(str, words)])
    return read(world.folder / "cli_probes", PROBES)


def test_the_command_writes_both_tables_and_a_model_of_pieces_has_homology_only(world, tables, capfd):
    assert set(call(world, world.folder / "stream")["task"]) == {"ss3"}
    pieces = world.write_stream(world.folder / "pieces", tokens_are_residues=False)
    settings = '{"tasks": ["ss3", "contacts", "homology"], "penalties": [0.1]}'
    assert set(call(world, pieces, "--settings", settings)["task"]) == {"homology"}
    assert "its tokens hold several residues" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--settings", "{"], "--settings: expected a JSON object"),
        (["--settings", '{"task": []}'], "unknown \\['task'\\]"),
        (["--settings", '{"tasks": ["ss4"]}'], "tasks \\['ss4'\\]; expected some of ss3"),
        (["--settings", '{"penalties": [0]}'], "penalties above 0"),
        (["--settings", '{"tasks": ["ss3"], "folds": 9}'], "6 groups of 12 proteins in 9 folds"),
        (["--stream", "nowhere"], "nowhere"),
        (["--clusters", "CUT"], "no cluster of 39 annotated proteins"),
    ],
)
def test_bad_input_ends_in_one_message(world, tables, words, message):
    if words[1] == "CUT":
        write_table({"sequence_id": ["C00"], "cluster_id": ["C00"]}, CLUSTERS, world.folder / "few")
        words = ["--clusters", world.folder / "few"]
    with pytest.raises(SystemExit, match=f"metrics.probes: .*{message}"):
        call(world, world.folder / "stream", *words)


def test_tasks_of_residues_without_backbones_are_refused(world, tables):
    with pytest.raises(ProbeError, match="12 annotated chains and no table of backbones"):
        probe(
            stream=world.folder / "stream",
            annotations=world.folder / "annotations",
            clusters=world.folder / "clusters",
            backbone=None,
            settings=Settings(),
            n_boot=5,
            seed=0,
            probe=world.folder / "x",
            probes=world.folder / "y",
        )
