"""Retrieval of relatives: who is right, who is wrong, and what cosines find."""

import numpy as np

from plm_depth.metrics import homology
from plm_depth.metrics.homology import parts_of, retrieve
from plm_depth.randomness import generator

GROUPS = ["a", "a", "a", "a", "b", "b", "c"]
PARTS = ["1", "1", "2", "", "1", "1", "1"]


def kinship(groups, parts, clusters=None):
    """Return who is right and who wrong; by default every protein is a cluster of its own."""
    return homology.kinship(groups, parts, range(len(groups)) if clusters is None else clusters)


def test_right_is_another_part_of_the_same_group_and_wrong_is_another_group():
    right, wrong = kinship(GROUPS, PARTS)
    assert np.argwhere(right).tolist() == [[0, 2], [1, 2], [2, 0], [2, 1]]
    assert wrong[0].tolist() == [False] * 4 + [True] * 3
    # Without a part, or with nothing to find, a protein asks nothing.
    assert not right[3:].any() and not wrong[3:].any()


def test_proteins_of_one_similarity_cluster_are_neither_right_nor_wrong_for_each_other():
    groups, parts = ["a", "a", "a", "b", "b"], ["1", "2", "3", "1", "2"]
    clusters = ["x", "x", "y", "y", "z"]
    right, wrong = kinship(groups, parts, clusters)
    # 0 and 1 are alike; so are 2 and 3, of two groups.
    assert np.argwhere(right).tolist() == [[0, 2], [1, 2], [2, 0], [2, 1], [3, 4], [4, 3]]
    assert not wrong[2, 3] and not wrong[3, 2] and wrong[0, 3] and wrong[2, 4]
    # With everything alike, there is nothing to ask.
    right, wrong = kinship(groups, parts, ["x"] * 5)
    assert not right.any() and not wrong.any()


def test_where_no_part_of_a_group_is_known_its_clusters_stand_for_parts():
    groups, parts, clusters = ["a", "a", "b", "b", "b"], ["1", "", "", "", ""], ["u", "v", "w", "w", "x"]
    found = parts_of(groups, parts, clusters)
    assert found == ["1", "", "cluster w", "cluster w", "cluster x"]
    right, _ = kinship(groups, found, clusters)
    assert np.argwhere(right).tolist() == [[2, 4], [3, 4], [4, 2], [4, 3]]


def test_planted_kin_are_found_and_chance_is_the_share_of_the_right():
    x = np.array([[1, 0.1, 0], [1, 0, 0.1], [1, 0.1, 0.1], [1, 0, 0], [0, 1, 0], [0, 1, 0.1], [0, 0, 1.0]])
    found = retrieve(x, *kinship(GROUPS, PARTS))
    assert found.top1[:3].tolist() == [1, 1, 1] and found.first_error[:3].tolist() == [1, 1, 1]
    assert np.isnan(found.top1[3:]).all()
    np.testing.assert_allclose(found.chance[:3], [1 / 4, 1 / 4, 2 / 5])


def test_the_share_before_the_first_error_counts_the_nearer_ones():
    groups, parts = ["a", "a", "a", "b"], ["1", "2", "3", "1"]
    angle = np.array([0, 0.1, 0.5, 0.3])
    x = np.stack([np.cos(angle), np.sin(angle)], 1)
    found = retrieve(x, *kinship(groups, parts))
    assert found.first_error[0] == 0.5 and found.top1[0] == 1
    assert found.first_error[2] == 0 and found.top1[2] == 0


def test_a_wrong_one_as_near_as_a_right_one_wins_and_a_zero_vector_finds_nothing():
    groups, parts = ["a", "a", "b"], ["1", "2", "1"]
    assert retrieve(np.ones((3, 4)), *kinship(groups, parts)).top1[:2].tolist() == [0, 0]
    assert retrieve(np.zeros((3, 4)), *kinship(groups, parts)).top1[0] == 0


def test_rotation_and_length_change_nothing():
    random = generator(0, "homology")
    groups, parts = random.choice(list("abc"), 40), random.choice(list("12"), 40)
    x = random.normal(size=(40, 6))
    plain = retrieve(x, *kinship(groups, parts))
    rotation = np.linalg.qr(random.normal(size=(6, 6)))[0]
    other = retrieve(x @ rotation * random.random((40, 1)), *kinship(groups, parts))
    np.testing.assert_array_equal(plain.top1, other.top1)
    np.testing.assert_array_equal(plain.first_error, other.first_error)


def test_random_vectors_find_relatives_as_often_as_chance_says():
    random = generator(1, "homology")
    top1, chance = [], []
    for _ in range(150):
        groups, parts = random.choice(list("abc"), 30), random.choice(list("12"), 30)
        found = retrieve(random.normal(size=(30, 8)), *kinship(groups, parts))
        top1.append(np.nanmean(found.top1))
        chance.append(np.nanmean(found.chance))
    assert abs(np.mean(top1) - np.mean(chance)) < 3 * np.std(top1) / np.sqrt(150)
