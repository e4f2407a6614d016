"""Error rates, their intervals, and who is taken for whom."""

import itertools

import numpy as np
import pytest

from spkid_dist.scoring.confusion import rates_by_length, ratio_interval, wilson_interval, worst_pairs

pytestmark = pytest.mark.fast


def test_wilson_interval_has_its_published_values():
    # Newcombe, Statistics in Medicine 17, 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    published = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)]
    for errors, trials, low, high in published:
        assert wilson_interval(errors, trials) == pytest.approx((low, high), abs=5e-5)


def test_ratio_interval_covers_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        trials = draw.integers(50, 300, size=80)
        rates = draw.beta(2, 18, size=80)  # utterances differ, frames of one are alike
        low, high = ratio_interval(draw.binomial(trials, rates), trials)
        covered += low <= 0.1 <= high
    assert 0.92 <= covered / 400 <= 0.97


def test_worst_pairs_come_first():
    true, found = np.array([0, 0, 1, 1, 1, 2]), np.array([1, 1, 0, 1, 0, 0])
    assert worst_pairs(true, found) == [(0, 1, 2), (1, 0, 2), (2, 0, 1)]


def test_groups_of_lengths_are_disjoint_complete_and_of_equal_size():
    frames = np.random.default_rng(0).integers(10, 400, size=1000)
    groups = rates_by_length(frames, frames < 50)
    assert sum(group.utterances.total for group in groups) == 1000
    assert sum(group.utterances.errors for group in groups) == (frames < 50).sum()
    assert all(a.last < b.first for a, b in itertools.pairwise(groups))
    assert all(110 <= group.utterances.total <= 140 for group in groups)
    assert [group.utterances.errors for group in groups][1:] == [0] * 7


def test_utterances_of_one_length_are_one_group():
    assert [(group.first, group.last) for group in rates_by_length(np.full(5, 30), np.zeros(5, bool))] == [(30, 30)]
