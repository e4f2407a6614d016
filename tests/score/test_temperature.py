"""A fitted scale makes posteriors mean what they say, and says so where a list can't tell."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from shards import InputError
from spkid_dist.scoring.calibration import Scale, log_posteriors
from spkid_dist.scoring.decisionpictures import _draw_reliability
from spkid_dist.scoring.reliability import BINS, reliability, reliability_of
from spkid_dist.scoring.temperature import cross_validated, fit_scale, uncalibrated_scores

pytestmark = pytest.mark.fast


def draw(count, scale, *, num_speakers=30, spread=2.0, seed=0):
    """Mean log-probabilities, windows and true classes of utterances whose posteriors are right at `scale`."""
    generator = np.random.default_rng(seed)
    windows = np.exp(generator.normal(5, 0.6, count)).astype(np.int64) + 1
    scores = generator.normal(0, spread, (count, num_speakers))
    posteriors = np.exp(log_posteriors(scores))
    true = (posteriors.cumsum(axis=1) > generator.random(count)[:, None]).argmax(axis=1)
    return scores * scale.temperature / (windows**scale.length_exponent)[:, None], windows, true


def nll(scale, means, windows, true):
    return reliability(scale.scaled(means, windows), true).nll


@pytest.mark.parametrize(("temperature", "exponent"), [(0.5, 0.2), (3, 0.5), (1e-3, 0.7), (100, 0.9), (1, 0)])
def test_the_scale_that_posteriors_were_drawn_from_is_found(temperature, exponent):
    scale = Scale(temperature=temperature, length_exponent=exponent)
    means, windows, true = draw(4000, scale)
    fit = fit_scale(means, windows, true)
    assert not fit.remarks
    assert fit.scale.length_exponent == pytest.approx(exponent, abs=0.06)
    typical = np.array([150])
    assert fit.scale.scaled(np.ones((1, 1)), typical) == pytest.approx(scale.scaled(np.ones((1, 1)), typical), rel=0.06)
    assert nll(fit.scale, means, windows, true) <= nll(scale, means, windows, true)


def test_no_scale_nearby_is_better():
    means, windows, true = draw(500, Scale(temperature=0.4, length_exponent=0.3), seed=5)
    scale = fit_scale(means, windows, true).scale
    best = nll(scale, means, windows, true)
    for exponent in (0.0, 0.15, scale.length_exponent + 0.02, 0.6, 1.0):

        def at(log_temperature, exponent=exponent):
            near = Scale(temperature=float(np.exp(log_temperature)), length_exponent=exponent)
            return nll(near, means, windows, true)

        assert minimize_scalar(at, bounds=(-10, 10), method="bounded").fun >= best - 1e-6


def test_posteriors_of_other_utterances_are_calibrated():
    scale = Scale(temperature=0.3, length_exponent=0.25)
    means, windows, true = draw(4000, scale)
    others = draw(8000, scale, seed=1)
    before = reliability(uncalibrated_scores(others[0], others[1]), others[2])
    fitted = fit_scale(means, windows, true).scale
    after = reliability(fitted.scaled(others[0], others[1]), others[2])
    assert before.expected_error > 0.1
    assert after.expected_error < 0.02
    assert after.nll < before.nll / 5


def test_half_fitted_on_half_is_measured_on_what_it_has_not_seen():
    means, windows, true = draw(300, Scale(temperature=0.3))
    crossed = cross_validated(means, windows, true)
    first, second = slice(None, None, 2), slice(1, None, 2)
    expected = sum(
        150 * nll(fit_scale(means[a], windows[a], true[a]).scale, means[b], windows[b], true[b])
        for a, b in ((first, second), (second, first))
    )
    assert crossed.utterances == 300
    assert crossed.log_loss == pytest.approx(expected)
    assert cross_validated(means[:3], windows[:3], true[:3]) is None


def test_a_list_without_errors_bounds_the_temperature_and_says_so():
    means, windows, _ = draw(50, Scale(temperature=0.3))
    true = means.argmax(axis=1)
    fit = fit_scale(means, windows, true)
    posteriors = np.exp(log_posteriors(fit.scale.scaled(means, windows)))
    assert posteriors.max(axis=1).mean() == pytest.approx(51 / 52)
    assert fit.scale.length_exponent == 0
    assert fit.remarks[0].startswith("No utterance is wrong, so the temperature can't be fitted. It is set so that")
    wide = fit_scale(1000 * means, windows, true).scale  # scores of another size have another temperature
    assert wide.temperature == pytest.approx(1000 * fit.scale.temperature)


def test_true_speakers_that_score_no_higher_than_others_are_refused():
    means, windows, true = draw(200, Scale())
    worst = means.argmin(axis=1)
    with pytest.raises(InputError, match=r"score no higher than the other speakers.*named as those of the model"):
        fit_scale(means, windows, worst)
    with pytest.raises(InputError, match="score no higher"):
        fit_scale(np.zeros_like(means), windows, true)
    with pytest.raises(InputError, match="score no higher"):
        fit_scale(np.zeros_like(means), windows, np.zeros_like(true))  # all right, but by the order of speakers alone
    assert cross_validated(means, windows, worst) is None


def test_utterances_of_one_length_have_no_exponent():
    means, windows, true = draw(2000, Scale(temperature=0.5))
    fit = fit_scale(means, np.full_like(windows, 37), true)
    assert fit.scale.length_exponent == 0
    assert fit.scale.temperature == pytest.approx(0.5, rel=0.1)
    assert fit.remarks == [
        "All utterances have about the same length, so the length exponent can't be fitted and is 0."
    ]


@pytest.mark.parametrize(("count", "spread"), [(40, 1.0), (2000, 40.0)])
def test_a_short_list_or_one_with_few_errors_says_that_the_fit_is_unsure(count, spread):
    means, windows, true = draw(count, Scale(), spread=spread)
    wrong = int((means.argmax(axis=1) != true).sum())
    assert wrong > 0
    if count > 100:
        keep = np.flatnonzero(means.argmax(axis=1) == true)
        keep = np.concatenate((keep, np.flatnonzero(means.argmax(axis=1) != true)[:5]))
        means, windows, true, wrong = means[keep], windows[keep], true[keep], 5
    too_few = (
        f"{wrong} of {len(true)} utterances are wrong, and at least 10"
        if wrong < 10
        else "40 utterances are given, and at least 100"
    )
    assert (
        f"The fit is unsure: only {too_few} are needed. Give more held-out utterances."
        in fit_scale(means, windows, true).remarks
    )


def test_scores_of_any_size_give_the_same_posteriors():
    means, windows, true = draw(1000, Scale(temperature=0.5, length_exponent=0.3))
    plain = fit_scale(means, windows, true).scale
    for factor in (1e-6, 1e6):
        scale = fit_scale(means * factor - 5e7, windows, true).scale
        np.testing.assert_allclose(
            log_posteriors(scale.scaled(means * factor, windows)),
            log_posteriors(plain.scaled(means, windows)),
            atol=2e-2,
        )


def test_the_expected_calibration_error_of_a_hand_made_example():
    # Bins of 1/15: 0.95 and 0.99 in the last one (from 0.9333), 0.52 and 0.53 in the eighth (0.4667 to 0.5333).
    confidences = np.array([0.95, 0.99, 0.52, 0.53, 0.2])
    right = np.array([True, False, True, True, False])
    found = reliability_of(confidences, right, np.log(np.array([0.95, 0.01, 0.52, 0.53, 0.1])))
    expected = (2 * abs(0.5 - 0.97) + 2 * abs(1 - 0.525) + abs(0 - 0.2)) / 5
    assert found.expected_error == pytest.approx(expected)
    assert found.nll == pytest.approx(-np.log([0.95, 0.01, 0.52, 0.53, 0.1]).mean())
    assert found.counts[[14, 7, 2]].tolist() == [2, 2, 1]
    assert found.utterances == 5


def test_confidences_at_the_borders_of_bins_are_in_the_lower_one():
    counts = reliability_of(np.array([1.0, 14 / 15, 1 / 15, 1e-300]), np.ones(4, bool), np.zeros(4)).counts
    assert (len(counts), counts[14], counts[13], counts[0]) == (BINS, 1, 1, 2)


def test_uncalibrated_confidences_are_those_of_the_summed_log_probabilities():
    means, windows = np.array([[-1.0, -2.0], [-3.0, -1.0]]), np.array([4, 2])
    np.testing.assert_array_equal(uncalibrated_scores(means, windows), [[-4, -8], [-6, -2]])


def test_a_reliability_picture_counts_each_bin_and_sets_small_ones_apart():
    from matplotlib.figure import Figure

    confidences = np.concatenate((np.full(290, 0.99), np.full(12, 0.5), [0.3]))
    found = reliability_of(confidences, confidences > 0.4, -confidences)
    figure = Figure()
    _draw_reliability(figure, found, found)
    for upper, lower in zip(figure.axes[:2], figure.axes[2:], strict=True):
        assert [text.get_text() for text in lower.texts if text.get_text()] == ["1", "12", "290"]
        assert lower.get_yscale() == "log"
        assert min(bar.get_height() for bar in lower.patches if bar.get_height()) > lower.get_ylim()[0]
        heights = {bar.get_linestyle(): round(bar.get_height(), 2) for bar in upper.patches}
        assert heights == {"solid": 1.0, ":": 0.0}


def test_a_loss_of_nothing_has_no_sign():
    """Of one utterance that is surely right, and of log-posteriors that are 0 but for rounding."""
    for scores in (np.array([[0.0, -1000.0]]), np.array([[0.0, -40.0]])):
        assert f"{reliability(scores, np.zeros(1, np.int64)).nll:.4f}" == "0.0000"
