"""Fit the scale of calibrated scores (`spkid_dist.scoring.calibration`) to utterances whose speakers are known.

Temperature and length exponent minimise the mean negative log-posterior of the true speakers. Two cases have no such minimum:

- All utterances are right: a lower temperature is always better. The mean confidence is then set to (U + 1) / (U + 2), the
  probability that the next utterance is right by Laplace's rule of succession.
- The true speakers score no higher than the others do: a higher temperature is always better. That is an error.

Where the utterances have all about the same number of windows, an exponent says nothing, and is left at 0.

Shapes: U utterances, K speakers.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from spkid_dist.scoring.calibration import Scale, log_posteriors
from spkid_dist.scoring.reliability import Reliability, reliability

LEAST_SPREAD = 0.05  # standard deviation of log(windows) from which on lengths differ
UNSURE_UTTERANCES, UNSURE_ERRORS = 100, 10  # fewer tell little of a temperature
UNSURE = "The fit is unsure: only {}, and at least {} are needed. Give more held-out utterances."
LARGEST_LOG_TEMPERATURE = 15.0  # relative to the spread of the scores
NO_SIGNAL = (
    "the true speakers of these utterances score no higher than the other speakers, so nothing can be calibrated; check that "
    "the list's speakers are named as those of the model"
)


@dataclass(frozen=True, kw_only=True)
class TemperatureFit:
    """A fitted scale, and what there is to say of how it was found, a sentence each."""

    scale: Scale
    remarks: list[str] = field(default_factory=list)


def fit_scale(means: NDArray[np.float64], windows: NDArray[np.int64], true: NDArray[np.int64]) -> TemperatureFit:
    """Fit to mean log-probabilities (U, K) over `windows` (U,) with true classes (U,), all known; K >= 2.

    Raises:
        InputError: no scale makes posteriors better than equal ones for all speakers.
    """
    num_wrong = int((means.argmax(axis=1) != true).sum())
    if num_wrong == 0:
        return _fit_without_errors(means)
    log_windows = np.log(windows.astype(np.float64))
    remarks = []
    if log_windows.std() < LEAST_SPREAD:
        remarks.append("All utterances have about the same length, so the length exponent can't be fitted and is 0.")
        log_windows = np.zeros(len(windows))
    scale = _minimise(means, log_windows, true)
    if num_wrong < UNSURE_ERRORS:
        remarks.append(UNSURE.format(f"{num_wrong} of {len(true)} utterances are wrong", UNSURE_ERRORS))
    elif len(true) < UNSURE_UTTERANCES:
        remarks.append(UNSURE.format(f"{len(true)} utterances are given", UNSURE_UTTERANCES))
    return TemperatureFit(scale=scale, remarks=remarks)


def _minimise(means: NDArray[np.float64], log_windows: NDArray[np.float64], true: NDArray[np.int64]) -> Scale:
    """The scale of the least mean negative log-posterior, by L-BFGS-B with its gradient."""
    from scipy.optimize import minimize

    rows = np.arange(len(true))
    # Scores relative to the best one, in units of their spread, and lengths relative to the mean one: the two parameters
    # are near 0 then, and nearly independent.
    relative = means - means.max(axis=1, keepdims=True)
    spread, centre = float(relative.std()) or 1.0, float(log_windows.mean())
    relative /= spread
    lengths = log_windows - centre

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_inverse, exponent = parameters
        scores = relative * np.exp(log_inverse + exponent * lengths)[:, None]
        posteriors = log_posteriors(scores)
        slopes = (np.exp(posteriors) * scores).sum(axis=1) - scores[rows, true]
        return -float(posteriors[rows, true].mean()), np.array([slopes.mean(), (slopes * lengths).mean()])

    bounds = ((-LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE), (0.0, 1.0 if lengths.any() else 0.0))
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 200}
    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    log_inverse, exponent = map(float, found.x)
    if log_inverse < 0.99 * bounds[0][0] or found.fun >= np.log(means.shape[1]):
        raise InputError(NO_SIGNAL)
    return _scale(float(np.exp(exponent * centre - log_inverse) * spread), exponent)


def _fit_without_errors(means: NDArray[np.float64]) -> TemperatureFit:
    """The temperature at which the mean confidence is what Laplace's rule allows for as many right utterances."""
    from scipy.optimize import brentq

    relative, count = means - means.max(axis=1, keepdims=True), len(means)
    allowed, spread = (count + 1) / (count + 2), float(relative.std()) or 1.0

    def excess(log_temperature: float) -> float:
        posteriors = log_posteriors(relative / (spread * np.exp(log_temperature)))
        return float(np.exp(posteriors.max(axis=1)).mean() - allowed)

    bounds = (-LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE)
    if excess(bounds[0]) < 0:  # two speakers of equal scores have a confidence of at most 1/2 at any temperature
        raise InputError(NO_SIGNAL)
    log_temperature = brentq(excess, *bounds)
    remark = (
        f"No utterance is wrong, so the temperature can't be fitted. It is set so that the mean confidence is {allowed:.4f}. "
        f"This raises the NLL on purpose: {count} right utterances do not prove that the model is never wrong."
    )
    return TemperatureFit(scale=_scale(float(spread * np.exp(log_temperature))), remarks=[remark])


def _scale(temperature: float, length_exponent: float = 0.0) -> Scale:
    """A fitted scale. Raises InputError where it can't be one, as of scores that are all but equal."""
    try:
        return Scale(temperature=temperature, length_exponent=length_exponent)
    except ValueError as error:
        raise InputError(f"the fit found {error}; check the weights, and the list") from None


def cross_validated(
    means: NDArray[np.float64], windows: NDArray[np.int64], true: NDArray[np.int64]
) -> Reliability | None:
    """The reliability of each half of the utterances, every second one, at the scale that is fitted to the other half.

    None with fewer than four utterances, or where one half can't be fitted.
    """
    halves = np.arange(len(true)) % 2 == 0
    if len(true) < 4:
        return None
    measured = []
    for half in (halves, ~halves):
        try:
            scale = fit_scale(means[~half], windows[~half], true[~half]).scale
        except InputError:
            return None
        measured.append(reliability(scale.scaled(means[half], windows[half]), true[half]))
    return measured[0] + measured[1]


def uncalibrated_scores(means: NDArray[np.float64], windows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scores (U, K) without a calibration: log-probabilities summed over the windows, as identification takes them."""
    return Scale(length_exponent=1.0).scaled(means, windows)
