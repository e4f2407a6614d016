"""The DET curve and its equal error rate against plain counting and against theory."""

from statistics import NormalDist

import numpy as np
import pytest

from spkid_dist.scoring.trials import NUM_BINS, TrialCounts, bins_of, det_curve, lowest_scores

pytestmark = pytest.mark.fast


def curve_of(scores, true):
    counts = TrialCounts()
    counts.add(np.array(scores, float), np.array(true))
    return det_curve(counts)


def twin(scores, true):
    """Every distinct score as a threshold: (false alarms, misses) from counting."""
    targets = scores[np.arange(len(true)), true]
    others = np.delete(scores.ravel(), np.arange(len(true)) * scores.shape[1] + true)
    thresholds = np.concatenate(([np.inf], np.unique(scores)[::-1]))
    return [((others >= t).mean(), (targets < t).mean()) for t in thresholds]


@pytest.mark.parametrize("signs", [(-1,), (1,), (-1, 1)])
def test_the_curve_is_that_of_plain_counting(signs):
    draw = np.random.default_rng(0)
    sizes = np.exp(draw.normal(size=(40, 6)) * 3).round(3) + 0.001
    scores = sizes * draw.choice(signs, size=sizes.shape)
    true = draw.integers(0, 6, size=40)
    curve = curve_of(scores, true)
    points = set(zip(curve.false_alarms.round(9), curve.misses.round(9), strict=True))
    rounded = np.sign(scores) * (
        np.abs(scores).astype(np.float32).view(np.int32) >> 12
    )  # as the curve's bins round them
    assert points == {(round(a, 9), round(b, 9)) for a, b in twin(rounded, true)}
    exact, (rate, _) = twin(scores, true), curve.equal_error
    assert min(max(a, b) for a, b in exact) == pytest.approx(rate, abs=1 / 40)


def test_bins_are_in_the_order_of_scores_and_hold_what_they_say():
    sizes = np.concatenate(([0.0], np.logspace(-44, 38, 999), [np.inf]))
    scores = np.concatenate((sizes[::-1], -sizes[1:]))  # best first
    bins = bins_of(scores)
    assert (np.diff(bins) >= 0).all()
    assert (bins.min(), bins.max()) == (0, NUM_BINS - 1)
    lowest = lowest_scores(bins.astype(np.int64))
    assert (lowest <= scores.astype(np.float32)).all()
    large = (np.abs(scores) > 1e-30) & np.isfinite(scores)
    np.testing.assert_allclose(lowest[large], scores[large], rtol=2**-10)


@pytest.mark.parametrize("centre", [-30, 0, 30])
def test_equal_errors_of_two_normal_distributions_are_what_theory_says(centre):
    # Targets 2 standard deviations above the others: the rate is the normal distribution's share beyond 1.
    draw = np.random.default_rng(1)
    scores = draw.normal(centre, 1, size=(20_000, 11))
    true = draw.integers(0, 11, size=20_000)
    scores[np.arange(20_000), true] += 2
    rate, threshold = curve_of(scores, true).equal_error
    assert rate == pytest.approx(NormalDist().cdf(-1), abs=0.005)
    assert threshold == pytest.approx(centre + 1, abs=0.05)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([[-1, -2], [-1.5, -3]], 0.0),  # apart
        ([[-2, -1], [-3, -1.5]], 1.0),  # the wrong way round
        ([[-1, -1], [-1, -1]], 0.5),  # no difference
        ([[-1, -4], [-3, -2]], 0.5),  # one of two misses against one of two false alarms
    ],
)
def test_equal_errors_of_small_examples(scores, expected):
    assert curve_of(scores, [0, 0]).equal_error[0] == pytest.approx(expected)


def test_equal_errors_between_two_points_are_interpolated():
    # Points (0, 1/3), then (1/2, 1/3), then (1/2, 0): misses and false alarms meet at 1/3 on the line between the first two.
    counts = TrialCounts()
    counts.targets[[10, 20, 40]] = 1
    counts.others[[30, 50]] = 1
    assert det_curve(counts).equal_error[0] == pytest.approx(1 / 3)


def test_counts_of_parts_add_up_to_those_of_the_whole():
    draw = np.random.default_rng(2)
    scores, true = -draw.gamma(2, size=(50, 4)), draw.integers(0, 4, size=50)
    whole, parts = TrialCounts(), TrialCounts()
    whole.add(scores, true)
    for first in range(0, 50, 7):
        parts.add(scores[first : first + 7], true[first : first + 7])
    np.testing.assert_array_equal(whole.targets, parts.targets)
    np.testing.assert_array_equal(whole.others, parts.others)
    assert (whole.targets.sum(), whole.others.sum()) == (50, 150)


@pytest.mark.parametrize("score", [0.0, -0.0, -1e-40, -1e30, -np.inf, 1e-40, 1e30, np.inf])
def test_extreme_scores_are_counted(score):
    curve = curve_of([[score, -1.0]], [0])
    assert (curve.num_targets, curve.num_others) == (1, 1)
    assert not np.isnan(curve.thresholds).any()


def test_one_speaker_has_no_curve():
    assert curve_of([[-1.0], [-2.0]], [0, 0]) is None
