"""Figures of detection trials against plain counting, against scikit-learn, and against their formulas."""

from itertools import pairwise
from math import log, log2

import numpy as np
import pytest
from scipy.special import ndtri
from sklearn.metrics import det_curve

from spkid_dist.scoring.detection import (
    actual_cost,
    detection_figures,
    exact_curve,
    log_ratio_cost,
    minimum_cost,
    minimum_log_ratio_cost,
)
from spkid_dist.scoring.pictures import _draw_det

pytestmark = pytest.mark.fast


def draw(num_targets, num_others, *, ties=False, separation=2.0, seed=0):
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=num_targets + num_others) * 3
    target = np.arange(len(scores)) < num_targets
    scores[target] += 3 * separation
    order = generator.permutation(len(scores))
    return (scores.round(0) if ties else scores)[order], target[order]


def rates_by_counting(scores, target):
    """(false alarms, misses) at each threshold, from the highest."""
    thresholds = [np.inf, *sorted(set(scores.tolist()), reverse=True)]
    return [((scores[~target] >= t).mean(), (scores[target] < t).mean()) for t in thresholds]


def equal_error_by_counting(scores, target):
    """Where straight lines between neighbouring points cross the diagonal."""
    points = rates_by_counting(scores, target)
    for (x0, y0), (x1, y1) in pairwise(points):
        if y1 <= x1:
            part = (y0 - x0) / ((y0 - x0) - (y1 - x1))
            return x0 + part * (x1 - x0)
    raise AssertionError


SETS = [
    draw(40, 300),
    draw(60, 90, ties=True),
    draw(5, 4, separation=0, seed=3),
    draw(30, 30, separation=-1, seed=4),  # worse than chance
    draw(20, 50, separation=9),  # no errors at all
]


@pytest.mark.parametrize(("scores", "target"), SETS)
@pytest.mark.parametrize("p_target", [0.01, 0.05, 0.5, 0.9])
def test_errors_and_costs_are_those_of_plain_counting(scores, target, p_target):
    figures = detection_figures(scores, target, [p_target], calibrated=True)
    assert figures.curve.equal_error[0] == pytest.approx(equal_error_by_counting(scores, target), abs=1e-12)
    costs = [
        (p_target * miss + (1 - p_target) * alarm) / min(p_target, 1 - p_target)
        for alarm, miss in rates_by_counting(scores, target)
    ]
    (cost,) = figures.costs
    assert cost.minimum == pytest.approx(min(costs), abs=1e-12)
    accepted = scores >= cost.threshold
    assert cost.minimum == pytest.approx(
        (p_target * (~accepted)[target].mean() + (1 - p_target) * accepted[~target].mean())
        / min(p_target, 1 - p_target)
    )
    assert cost.minimum <= min(cost.actual, 1.0) + 1e-12


def test_errors_and_costs_are_those_of_scikit_learn_to_four_digits():
    scores, target = draw(3000, 40_000)
    figures = detection_figures(scores, target, [0.01, 0.05], calibrated=False)
    alarms, misses, _ = det_curve(target, scores)
    nearest = np.argmin(np.abs(alarms - misses))
    assert figures.curve.equal_error[0] == pytest.approx((alarms[nearest] + misses[nearest]) / 2, abs=5e-5)
    for cost in figures.costs:
        expected = (cost.p_target * misses + (1 - cost.p_target) * alarms).min() / cost.p_target
        assert cost.minimum == pytest.approx(expected, abs=1e-12)


def test_cllr_is_its_formula():
    targets, others = [2.0, -1.0, 0.5], [-3.0, 0.25]
    by_hand = (
        sum(log2(1 + 1 / np.exp(score)) for score in targets) / 3 + sum(log2(1 + np.exp(score)) for score in others) / 2
    ) / 2
    assert log_ratio_cost(np.array(targets), np.array(others)) == pytest.approx(by_hand)
    assert log_ratio_cost(np.zeros(3), np.zeros(2)) == pytest.approx(1)  # says nothing: one bit
    assert log_ratio_cost(np.array([np.inf, 800.0]), np.array([-np.inf, -800.0])) == 0


def test_min_cllr_is_cllr_after_pooling_adjacent_violators():
    scores, target = np.array([1.0, 2, 3, 4, 5]), np.array([False, True, False, True, True])
    # Pools: {1}, {2, 3}, {4, 5}: posteriors 0, 1/2, 1; as log-likelihood ratios, with 3 targets and 2 others.
    middle = log(1) - log(3 / 2)
    expected = (log2(1 + np.exp(-middle)) / 3 + log2(1 + np.exp(middle)) / 2) / 2
    assert minimum_log_ratio_cost(scores, target) == pytest.approx(expected)
    assert minimum_log_ratio_cost(np.exp(scores), target) == pytest.approx(expected)


def test_log_likelihood_ratios_of_a_known_model_need_no_calibration():
    generator = np.random.default_rng(0)
    target = generator.random(200_000) < 0.3
    x = generator.normal(size=len(target)) + target  # log-likelihood ratio of N(1, 1) against N(0, 1): x - 1/2
    good = detection_figures(x - 0.5, target, [0.3], calibrated=True)
    assert good.cllr == pytest.approx(good.min_cllr, abs=0.002)
    assert good.costs[0].actual == pytest.approx(good.costs[0].minimum, abs=0.01)
    shifted = detection_figures(x + 3, target, [0.3], calibrated=True)
    assert shifted.cllr > 1.3 * shifted.min_cllr
    assert (shifted.curve.equal_error[0], shifted.min_cllr) == pytest.approx((good.curve.equal_error[0], good.min_cllr))


def test_the_threshold_of_actual_costs_is_that_of_bayes():
    scores, target = np.array([log(99) - 1e-9, log(99) + 1e-9, log(99)]), np.array([True, False, True])
    # One of two targets missed, and the only other trial accepted: 0.01 * 1/2 + 0.99 * 1, divided by 0.01.
    assert actual_cost(scores, target, 0.01) == pytest.approx(99.5)


@pytest.mark.parametrize("label", [True, False])
def test_one_class_alone_has_no_figures(label):
    assert detection_figures(np.arange(4.0), np.full(4, label), [0.01], calibrated=True) is None


def test_scores_that_are_not_calibrated_have_no_actual_costs():
    figures = detection_figures(*draw(20, 20), [0.01], calibrated=False)
    assert (figures.cllr, figures.costs[0].actual) == (None, None)
    lines = []
    figures.say(lines.append)
    assert not any("actDCF" in line or ", Cllr" in line for line in lines)
    assert figures.facts()["detection_costs"][0]["actDCF"] is None


def test_equal_scores_for_all_are_worth_nothing():
    curve = exact_curve(np.zeros(10), np.arange(10) < 3)
    assert curve.equal_error[0] == pytest.approx(0.5)
    assert minimum_cost(curve, 0.05) == (1.0, np.inf)


def drawn(curve, costs=()):
    """The lines of a DET picture, (label, x, y) each, in standard deviates, and all its texts."""
    from matplotlib.figure import Figure

    figure = Figure()
    _draw_det(figure, curve, costs)
    (axis,) = figure.axes
    texts = [text.get_text() for text in (*axis.texts, *axis.get_legend().get_texts())]
    return [(line.get_label(), *map(np.asarray, line.get_data())) for line in axis.lines], " ".join(texts)


def test_a_det_picture_has_the_rates_that_were_counted_and_no_others():
    scores, target = draw(40, 300)
    curve = exact_curve(scores, target)
    lines, text = drawn(curve)
    _, x, y = lines[0]
    counted = set(zip(ndtri(curve.false_alarms).tolist(), ndtri(curve.misses).tolist(), strict=True))
    assert len(x) > 10
    assert set(zip(x.tolist(), y.tolist(), strict=True)) <= counted
    assert np.isfinite([x, y]).all()  # no rate of 0
    assert "40 target trials, 300 nontarget trials" in text
    assert "the curve ends where there are no misses, or no false alarms" in text


def test_a_det_picture_marks_the_lowest_costs_and_the_equal_error_rate():
    scores, target = draw(200, 3000)
    figures = detection_figures(scores, target, [0.05, 0.3], calibrated=False)
    lines, text = drawn(figures.curve, figures.costs)
    marks = {label: (float(x[0]), float(y[0])) for label, x, y in lines if len(x) == 1}
    for cost in figures.costs:
        x, y = marks[f"minDCF {cost.minimum:.3f} at p_target {cost.p_target:g}"]
        accepted = scores >= cost.threshold
        assert (x, y) == pytest.approx((ndtri(accepted[~target].mean()), ndtri(1 - accepted[target].mean())))
    rate, _ = figures.curve.equal_error
    assert marks[f"equal error rate {rate:.2%}"] == pytest.approx((ndtri(rate), ndtri(rate)))
    assert "not on these axes" not in text


def test_trials_without_errors_have_no_curve_and_the_picture_says_so():
    figures = detection_figures(np.arange(10.0), np.arange(10) > 6, [0.01], calibrated=False)
    lines, text = drawn(figures.curve, figures.costs)
    assert [len(x) for _, x, _ in lines] == [0, 0, 0, 2]  # the curve, the marks, and the diagonal
    assert "no curve: at each threshold there are either no misses or no false alarms" in text
    assert text.count("(not on these axes)") == 2


def test_a_threshold_that_accepts_nothing_is_said_in_words():
    """Where accepting nothing is cheapest, no number of a score can be named."""
    scores, target = np.array([0.0, 1.0]), np.array([True, False])
    said = []
    detection_figures(scores, target, [0.01], calibrated=True).say(said.append)
    assert any("p_target 0.01: minDCF 1.0000, by rejecting every claim, actDCF" in line for line in said)
    assert not any("inf" in line for line in said)
    said.clear()
    detection_figures(scores, ~target, [0.01], calibrated=False).say(said.append)
    assert "p_target 0.01: minDCF 0.0000 at a score of 1.0000" in said
