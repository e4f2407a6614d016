"""The command `spkid calibrate`: fit temperature, length exponent and threshold to held-out utterances.

All processes have all scores and fit alike, so that an error is every process's. Rank 0 writes the calibration.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.errors import InputError
from shards.files import write_atomic
from shards.holding import HOLD_NAME, FolderHold
from shards.plaintext import shown_place
from spkid_dist.config import CalibrateConfig
from spkid_dist.config.places import check_flags, with_beside
from spkid_dist.process.threads import torch_threads
from spkid_dist.process.versions import installed_version
from spkid_dist.scoring.calibration import Scale, log_likelihood_ratios
from spkid_dist.scoring.calibrationfile import OPEN_SET_SUFFIX, PICTURE_SUFFIX, calibration_path, write_calibration
from spkid_dist.scoring.collecting import collect_scores
from spkid_dist.scoring.decisionpictures import draw_open_set, draw_reliability
from spkid_dist.scoring.opening import open_utterances, say_speakers
from spkid_dist.scoring.openset import (
    OpenSetCurve,
    OpenSetFigures,
    equal_error_threshold,
    open_set_curve,
    open_set_figures,
)
from spkid_dist.scoring.reliability import BINS, Reliability, reliability
from spkid_dist.scoring.run import ScoringRun, scoring_run
from spkid_dist.scoring.strangers import check_strangers, open_strangers
from spkid_dist.scoring.temperature import TemperatureFit, cross_validated, fit_scale, uncalibrated_scores
from spkid_dist.scoring.trainedon import check_held_out
from spkid_dist.scoring.trialscores import check_rivals
from spkid_dist.scoring.utterances import Utterances
from spkid_dist.scoring.weightsdigest import weights_digest
from spkid_dist.trained import read_options


@dataclass(frozen=True, kw_only=True)
class CalibrationResult:
    """The outcome of a calibration: the same on every process.

    Attributes:
        path: the file, beside the weights.
        fit: the scale, and what there is to say of it.
        threshold: on the log-likelihood ratio of the found speaker; None without utterances of unknown speakers.
        utterances: how many there were to fit to.
        wrong: those of them whose speaker is not found.
        before, after: reliability of their posteriors, of the summed log-probabilities and of the fitted scale.
        crossed: that of each half at the scale that is fitted to the other; None where it can't be.
        open_set: the figures at the threshold; None without one.
    """

    path: Path
    fit: TemperatureFit
    threshold: float | None
    utterances: int
    wrong: int
    before: Reliability
    after: Reliability
    crossed: Reliability | None
    open_set: OpenSetFigures | None


@torch_threads()
def calibrate_model(config: CalibrateConfig) -> CalibrationResult:
    """Calibrate a model on held-out utterances, and store the calibration beside its weights.

    Called by every process of a launch; rank 0 writes.

    Raises:
        InputError: utterances or model missing, damaged or not fitting together; the utterances were trained on, or say nothing
            of a calibration.
        UsageError: an option that can't be on this machine.
    """
    with scoring_run(config, "calibrate") as run:
        check_rivals(run.model.speakers)
        path = calibration_path(run.weights)
        check_flags(config, {"model": with_beside(path, (PICTURE_SUFFIX, OPEN_SET_SUFFIX))})
        utterances = open_utterances(config, run.model)
        strangers = None if config.unknown is None else open_strangers(config.unknown, config, run)
        for line in say_speakers(config, run.model, utterances, "The fit leaves them out."):
            run.log.line(line)
        _check_held_out(config, run, utterances)
        if strangers is not None:
            check_strangers(str(config.unknown), run, strangers, utterances)
        with _place_held(run) if run.processes.is_main else contextlib.nullcontext():
            return _calibrate(config, run, utterances, strangers)


def _check_held_out(config: CalibrateConfig, run: ScoringRun, utterances: Utterances) -> None:
    """Refuse utterances that one of the models was trained on; raises InputError."""
    said: dict[str, None] = {}
    hashes = utterances.key_hashes()
    for options in (read_options(one.options) for one in run.files):
        check_held_out(options, hashes, utterances.fingerprint, said.setdefault, force=config.force)
    for line in said:
        run.log.line(line)


def _place_held(run: ScoringRun) -> FolderHold:
    """Keep others from calibrating the same weights meanwhile; where nothing can be written, fail before scoring."""
    path = calibration_path(run.weights)
    remedy = "copy the weights and their train.opts to another folder"
    return FolderHold(path.parent, remedy, run.log.line, name=f".{path.name}{HOLD_NAME}")


def _calibrate(
    config: CalibrateConfig, run: ScoringRun, utterances: Utterances, strangers: Utterances | None
) -> CalibrationResult:
    collected = collect_scores(run, utterances)
    means, windows, true = collected.means, collected.windows, collected.true
    if not len(true):
        raise InputError(
            "no utterance has a true speaker that the model knows, so there is nothing to calibrate on; check the list, and "
            "what names the speakers"
        )
    if collected.step > 1:
        run.log.line(f"one in {collected.step} utterances is used: two numbers need no more")
    fit = fit_scale(means, windows, true)
    scores = fit.scale.scaled(means, windows)
    found = means.argmax(axis=1)
    curve, figures = None, None
    if strangers is not None:
        ratios = log_likelihood_ratios(scores)[np.arange(len(found)), found]
        curve, figures = _fit_threshold(ratios, found == true, ratios_of_strangers(run, strangers, fit.scale))
    result = CalibrationResult(
        path=calibration_path(run.weights),
        fit=fit,
        threshold=None if figures is None else figures.threshold,
        utterances=len(true),
        wrong=int((found != true).sum()),
        before=reliability(uncalibrated_scores(means, windows), true),
        after=reliability(scores, true),
        crossed=cross_validated(means, windows, true),
        open_set=figures,
    )
    if run.processes.is_main:
        _write(config, run, utterances, result, curve)
    return result


def ratios_of_strangers(run: ScoringRun, strangers: Utterances, scale: Scale) -> NDArray[np.float64]:
    """The log-likelihood ratios of the speakers that are found in utterances of others, (U,)."""
    ratios = np.zeros(strangers.count)
    for scores in run.score(strangers):
        all_ratios = log_likelihood_ratios(scale.scaled(scores.means, scores.windows))
        ratios[scores.group.positions] = all_ratios[np.arange(len(all_ratios)), scores.means.argmax(axis=1)]
    return run.processes.sum(ratios)


def _fit_threshold(
    known_ratios: NDArray[np.float64], right: NDArray[np.bool_], strange_ratios: NDArray[np.float64]
) -> tuple[OpenSetCurve, OpenSetFigures]:
    """The open-set curve of both kinds of utterances, and the figures at the threshold of equal errors."""
    ratios = np.concatenate((known_ratios, strange_ratios))
    known = np.arange(len(ratios)) < len(known_ratios)
    right = np.concatenate((right, np.zeros(len(strange_ratios), np.bool_)))
    curve = open_set_curve(ratios, known, right)
    assert curve is not None
    return curve, open_set_figures(ratios, known, right, equal_error_threshold(curve))


def _write(
    config: CalibrateConfig,
    run: ScoringRun,
    utterances: Utterances,
    result: CalibrationResult,
    curve: OpenSetCurve | None,
) -> None:
    """Write the calibration and its pictures, and say the figures. Raises InputError where the weights are others by now."""
    for one in run.files:
        if weights_digest(one.weights) != one.digest:
            raise InputError(
                f"{one.weights}: these weights were replaced while they were calibrated; calibrate them again"
            )
    for line in say_calibration(result):
        run.log.line(line)
    pictures = {PICTURE_SUFFIX: draw_reliability(result.before, result.after)}
    if curve is not None and result.open_set is not None:
        pictures[OPEN_SET_SUFFIX] = draw_open_set(curve, result.open_set)
    for suffix in (PICTURE_SUFFIX, OPEN_SET_SUFFIX):
        result.path.with_suffix(suffix).unlink(missing_ok=True)
    write_calibration(run.weights, result.fit.scale, result.threshold, _facts(config, utterances, result))
    for suffix, picture in pictures.items():
        write_atomic(result.path.with_suffix(suffix), picture)
    beside = ", ".join(result.path.with_suffix(suffix).name for suffix in pictures)
    run.log.line(f"{result.path}: the calibration, which spkid score, identify and trials use; beside it {beside}")


def say_calibration(result: CalibrationResult) -> Iterator[str]:
    """The figures of a calibration, a line each."""
    scale = result.fit.scale
    yield (
        f"{result.utterances} utterances, {result.wrong} wrong: temperature {scale.temperature:.4g}, length exponent "
        f"{scale.length_exponent:.3f}"
    )
    yield from result.fit.remarks
    for when, found in (
        ("before, summed log-probabilities", result.before),
        ("after, on the same utterances", result.after),
        ("after, cross-validated (two halves)", result.crossed),
    ):
        if found is not None:
            yield f"{when}: utterance NLL {found.nll:.4f}, expected calibration error {found.expected_error:.4f}"
    if result.open_set is not None:
        lines: list[str] = []
        result.open_set.say(lines.append)
        yield from lines


def _facts(config: CalibrateConfig, utterances: Utterances, result: CalibrationResult) -> dict[str, Any]:
    """What the calibration's file says of how it was made, as JSON values."""
    return {
        "utterances": result.utterances,
        "wrong": result.wrong,
        "list": None if config.te_list_file is None else str(config.te_list_file),
        "dataset": None if config.te_shards is None else shown_place(config.te_shards),
        "fingerprint": fingerprint_of(utterances),
        "bins": BINS,
        "before": result.before.facts(),
        "after": result.after.facts(),
        "cross_validated": None if result.crossed is None else result.crossed.facts(),
        "remarks": result.fit.remarks,
        "unknown": config.unknown,
        "open_set": None if result.open_set is None else result.open_set.facts(),
        "mixed_precision": config.mixed_precision,
        "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "spkid-dist": installed_version("spkid-dist"),
    }


def fingerprint_of(utterances: Utterances) -> str:
    """What a set of utterances is known by, in whatever order: a hash of their keys' hashes, as hexadecimal."""
    return xxhash.xxh3_128_hexdigest(np.sort(utterances.key_hashes()).tobytes())
