"""Calibrated scores: posteriors and log-likelihood ratios."""

import numpy as np

from spkid_dist.scoring.calibration import Scale, log_likelihood_ratios, log_posteriors


def _scores(spread: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, spread, (50, 7))


def test_log_likelihood_ratio_is_the_score_minus_the_log_mean_of_its_rivals() -> None:
    scores = _scores(3.0)
    for row, ratios in zip(scores, log_likelihood_ratios(scores), strict=True):
        for claimed, ratio in enumerate(ratios):
            rivals = np.delete(row, claimed)
            assert np.isclose(ratio, row[claimed] - np.log(np.exp(rivals).mean()))


def test_log_likelihood_ratio_keeps_its_digits_where_the_posterior_rounds_to_one() -> None:
    scores = np.array([[0.0, -200.0, -300.0]])
    assert np.allclose(log_likelihood_ratios(scores), [[200 + np.log(2), -200 + np.log(2), -300 + np.log(2)]])


def test_log_likelihood_ratio_of_speakers_that_are_impossible_is_infinite() -> None:
    ratios = log_likelihood_ratios(np.array([[0.0, -np.inf], [-1e30, 0.0]]))
    assert np.array_equal(ratios, [[np.inf, -np.inf], [-1e30, 1e30]])


def test_scores_stay_as_they_are_given() -> None:
    scores = np.array([[0.0, -900.0, -900.0], [1.0, 2.0, 3.0]])
    before = scores.copy()
    log_likelihood_ratios(scores)
    assert np.array_equal(scores, before)


def test_posteriors_sum_to_one_and_keep_the_order_of_scores() -> None:
    scores = _scores(100.0)
    posteriors = np.exp(log_posteriors(scores))
    assert np.allclose(posteriors.sum(axis=1), 1)
    assert np.array_equal(posteriors.argmax(axis=1), scores.argmax(axis=1))


def test_scale_lies_between_the_mean_and_the_sum() -> None:
    means, windows = -np.ones((2, 3)), np.array([4, 9])
    assert np.array_equal(Scale().scaled(means, windows), means)
    assert np.allclose(Scale(length_exponent=1.0).scaled(means, windows)[:, 0], [-4, -9])
    assert np.allclose(Scale(temperature=2.0, length_exponent=0.5).scaled(means, windows)[:, 0], [-1, -1.5])
