"""Contacts: beta carbons, pairs, precision at L, and the average product correction, against what is known."""

import logging
from pathlib import Path

import numpy as np
import pytest

from plm_depth.metrics.contacts import (
    DISTANCE,
    SEPARATIONS,
    beta_carbons,
    densities,
    pair_features,
    pairs_of,
    precision_at_length,
)
from plm_depth.metrics.residue_tasks import read_chains
from plm_depth.randomness import generator
from plm_depth.sequences.structures import structures
from plm_depth.tables import BACKBONE, TableError, read_table

MINI = Path(__file__).parents[3] / "resources" / "mini" / "structures"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Return the table of backbones of three chains."""
    folder = tmp_path_factory.mktemp("backbone")
    files = [MINI / f"{name}.pdb" for name in ("1a7g_E", "4cup_A", "7cfn_A")]
    made = {"structures": folder / "s.parquet", "backbone": folder / "b.parquet"}
    structures(files=files, log=logging.getLogger("test"), **made)
    return made["backbone"]


def test_ideal_beta_carbons_stand_where_structures_have_them(backbone):
    table = read_table(backbone, BACKBONE)
    n, ca, c, cb = (np.array(table[name].to_pylist(), float) for name in ("n", "ca", "c", "cb"))
    there = np.isfinite(cb).all(1)
    ideal = beta_carbons(n, ca, c, np.full_like(cb, np.nan))
    off = np.linalg.norm(ideal - cb, axis=1)[there]
    assert there.sum() > 300 and np.median(off) < 0.1 and np.quantile(off, 0.99) < 0.4
    kept = beta_carbons(n, ca, c, cb)
    assert (kept[there] == cb[there]).all() and np.isfinite(kept[np.isfinite(n).all(1)]).all()


def test_chains_come_with_all_that_is_known_of_their_residues(backbone):
    chains = read_chains(backbone, ["4cup_A", "7cfn_A"])
    assert set(chains) == {"4cup_A", "7cfn_A"}
    chain, rows = chains["4cup_A"], read_table(backbone, BACKBONE).to_pylist()
    mine = [row for row in rows if row["sequence_id"] == "4cup_A"]
    assert chain.sequence == "".join(row["aa"] for row in mine)
    assert chain.ss3 == "".join(row["ss3"] for row in mine) and chain.ss3.count("H") > 40  # a bundle of helices
    np.testing.assert_array_equal(chain.hse, [row["hse_up"] for row in mine])
    assert chain.n_resolved == sum(row["is_resolved"] for row in mine)
    with pytest.raises(TableError, match="no rows of 1 chains, the first nobody"):
        read_chains(backbone, ["nobody"])


def test_helices_touch_at_their_turns_and_pairs_are_apart_as_said(backbone):
    chain = read_chains(backbone, ["4cup_A"])["4cup_A"]
    i, j, touch = pairs_of(chain.cb)
    assert (j - i >= 6).all() and len(i) == sum(range(chain.n_resolved - 5))
    exact = np.linalg.norm(chain.cb[i] - chain.cb[j], axis=1) < DISTANCE
    assert (touch == exact).all() and 0.5 < touch.sum() / chain.n_resolved < 3


def test_pairs_without_coordinates_are_left_aside():
    cb = np.zeros((20, 3))
    cb[3] = np.nan
    i, j, touch = pairs_of(cb)
    assert touch.all() and 3 not in {*i, *j} and (0, 6) in set(zip(i.tolist(), j.tolist()))


def test_precision_is_one_for_perfect_scores_and_the_density_for_random_ones():
    random = generator(0, "pairs")
    cb = random.normal(size=(120, 3)) * 8
    i, j, touch = pairs_of(cb)
    perfect = precision_at_length(touch + 0.0, touch, j - i, length=10)
    assert perfect == {"short": 1.0, "medium": 1.0, "long": 1.0}
    worst = precision_at_length(-1.0 * touch, touch, j - i, length=10)
    assert worst == {"short": 0.0, "medium": 0.0, "long": 0.0}
    draws = [precision_at_length(random.random(len(i)), touch, j - i, length=50) for _ in range(400)]
    for name, density in densities(touch, j - i).items():
        mean, error = np.mean([d[name] for d in draws]), np.std([d[name] for d in draws]) / 20
        assert abs(mean - density) < 4 * error
    few = precision_at_length(touch + 0.0, touch, j - i, length=10**6)
    assert few["long"] == densities(touch, j - i)["long"]


def test_a_constant_score_finds_the_density_whatever_the_order_of_the_pairs():
    cb = generator(1, "pairs").normal(size=(80, 3)) * 8
    i, j, touch = pairs_of(cb)
    for length in (1, 30, 10**6):
        found = precision_at_length(np.zeros(len(i)), touch, j - i, length)
        assert found == pytest.approx(densities(touch, j - i))
    half = precision_at_length(np.array([2.0, 1, 1, 1]), np.array([True, True, False, False]), np.full(4, 30), 2)
    assert half["long"] == pytest.approx((1 + 1 / 3) / 2)


def test_a_chain_too_short_for_a_class_has_no_precision_there():
    i, j, touch = pairs_of(np.zeros((15, 3)))
    found = precision_at_length(np.zeros(len(i)), touch, j - i, 15)
    assert found["short"] == 1.0 and np.isnan(found["long"]) and np.isnan(densities(touch, j - i)["long"])
    assert list(SEPARATIONS) == ["short", "medium", "long"]


def test_features_of_a_pair_do_not_depend_on_its_order():
    z = generator(0, "z").normal(size=(5, 3))
    i, j = np.array([0, 1]), np.array([3, 4])
    assert (pair_features(z, i, j) == pair_features(z, j, i)).all()
    np.testing.assert_allclose(pair_features(z, i, j)[1], [*(z[1] * z[4]), *abs(z[1] - z[4])])
