"""Unknown speakers: the threshold, the counts at it, and the curve against plain counting."""

import numpy as np
import pytest

from spkid_dist.scoring.openset import equal_error_threshold, open_set_curve, open_set_figures

pytestmark = pytest.mark.fast


def draw(count=60, *, ties=False, seed=0):
    generator = np.random.default_rng(seed)
    known = generator.random(count) < 0.6
    right = known & (generator.random(count) < 0.9)
    ratios = generator.normal(size=count) + 2 * right
    return (ratios.round(1) if ties else ratios), known, right


def test_figures_count_each_utterance_once():
    ratios = np.array([3.0, 2.0, 1.0, 0.0, 2.5, 0.5])
    known = np.array([True, True, True, True, False, False])
    right = np.array([True, False, True, False, False, False])
    figures = open_set_figures(ratios, known, right, 1.0)
    assert (figures.false_acceptances.errors, figures.false_acceptances.total) == (1, 2)
    assert (figures.false_rejections.errors, figures.false_rejections.total) == (1, 4)
    assert (figures.misidentifications.errors, figures.misidentifications.total) == (1, 4)
    assert (figures.identified.errors, figures.identified.total) == (2, 4)  # a ratio at the threshold is accepted
    facts = figures.facts()
    assert (facts["identification_rate"]["right"], facts["identification_rate"]["rate"]) == (2, 0.5)
    assert "errors" not in facts["identification_rate"]
    assert facts["false_acceptances"]["low"] < 0.5 < facts["false_acceptances"]["high"]


@pytest.mark.parametrize("ties", [False, True])
def test_the_curve_has_the_figures_of_each_threshold(ties):
    ratios, known, right = draw(ties=ties)
    curve = open_set_curve(ratios, known, right)
    assert curve.thresholds.tolist() == [np.inf, *sorted(set(ratios.tolist()), reverse=True)]
    for threshold, accepted, rejected, identified in zip(
        curve.thresholds, curve.false_acceptances, curve.false_rejections, curve.identified, strict=True
    ):
        figures = open_set_figures(ratios, known, right, threshold)
        assert (accepted, rejected, identified) == pytest.approx(
            (figures.false_acceptances.rate, figures.false_rejections.rate, figures.identified.rate)
        )


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_has_the_most_equal_errors_that_there_are(seed):
    ratios, known, right = draw(41, seed=seed)
    curve = open_set_curve(ratios, known, right)
    figures = open_set_figures(ratios, known, right, equal_error_threshold(curve))
    distance = abs(figures.false_acceptances.rate - figures.false_rejections.rate)
    assert distance == pytest.approx(np.abs(curve.false_acceptances - curve.false_rejections).min())


def test_between_speakers_that_are_told_apart_the_threshold_is_half_way():
    ratios, known = np.array([5.0, 4.0, 3.0, 1.0, 0.0]), np.array([True, True, True, False, False])
    assert equal_error_threshold(open_set_curve(ratios, known, known)) == 2.0


def test_a_threshold_is_finite_where_all_ratios_are_equal():
    ratios, known = np.ones(4), np.array([True, False, True, False])
    assert equal_error_threshold(open_set_curve(ratios, known, known)) == 1.0


@pytest.mark.parametrize("known", [True, False])
def test_utterances_of_one_kind_have_no_curve_and_say_what_can_not_be_counted(known):
    ratios, known = np.arange(4.0), np.full(4, known)
    assert open_set_curve(ratios, known, known) is None
    lines = []
    open_set_figures(ratios, known, known, 2).say(lines.append)
    missing = "false acceptances" if known.all() else "false rejections"
    assert sum(f"there are no {missing} to count" in line for line in lines) == 1
    assert open_set_figures(ratios, known, known, 2).facts()[missing.replace(" ", "_")] is None
