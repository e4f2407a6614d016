"""The command `spkid trials`: score claims of speakers, and measure misses, false alarms and their costs."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.files import atomic_writer, make_folder, write_atomic, write_json
from spkid_dist.config import TrialsConfig
from spkid_dist.process.memory import explain_memory
from spkid_dist.process.restoring import process_as_found
from spkid_dist.process.threads import torch_threads
from spkid_dist.ranks.console import RunLog
from spkid_dist.ranks.sharing import Processes
from spkid_dist.scoring.cosine import COSINE, CosineScores
from spkid_dist.scoring.detection import DetectionFigures, detection_figures
from spkid_dist.scoring.models import find_models
from spkid_dist.scoring.pictures import draw_det
from spkid_dist.scoring.resultfiles import results_held
from spkid_dist.scoring.run import scoring_run
from spkid_dist.scoring.triallist import TrialList, read_trials
from spkid_dist.scoring.trialscores import FileScores, ModelScores, TrialScores

PICTURE = ".det.png"
LINES_AT_A_TIME = 1 << 16


@dataclass(frozen=True)
class TrialResult:
    """The outcome for N trials: the same on every process.

    Attributes:
        trials: the list.
        scores: of each trial, (N,) float64.
        calibrated: whether these are calibrated log-likelihood ratios.
        figures: error rates and costs; None where all trials are targets, or none is.
    """

    trials: TrialList
    scores: NDArray[np.float64]
    calibrated: bool
    figures: DetectionFigures | None


@torch_threads()
def score_trials(config: TrialsConfig) -> TrialResult:
    """Score a trial list, write scores, figures and the DET curve, and print the figures.

    Called by every process of a launch; rank 0 writes.

    Raises:
        InputError: list, utterances, speakers or model missing, damaged or not fitting together.
        UsageError: an option that can't be on this machine.
    """
    if not config.needs_model:
        with process_as_found(), explain_memory(lambda: "give the list in parts"):
            processes = Processes("trials")
            log = RunLog(shown=processes.is_main)
            return _measure(config, read_trials(config.trials), _scores_of_files(config, log), processes, log)
    trials = read_trials(config.trials)  # before the model, which takes longer
    with scoring_run(config, "trials") as run:
        return _measure(config, trials, ModelScores(config, run), run.processes, run.log)


def _scores_of_files(config: TrialsConfig, log: RunLog) -> TrialScores:
    if config.scores is not None:
        scores = FileScores(config.scores, wanted=config.calibration)
        scores.check_origin(find_models(config.models, config.weights, config.train_cfg), log.line)
        return scores
    return CosineScores(config.embedding_files, config.enrol, config.center)


def _measure(
    config: TrialsConfig, trials: TrialList, source: TrialScores, processes: Processes, log: RunLog
) -> TrialResult:
    num_targets = int(trials.target.sum())
    log.line(
        f"{len(trials):,} trials ({num_targets:,} targets) of {len(trials.claims):,} claims and "
        f"{len(trials.utterances):,} utterances"
    )
    if trials.repeated:
        log.line(f"{trials.repeated:,} of them stand in the list more than once, and are counted each time")
    with (
        results_held(config.out.with_suffix(".json"), "out", log.line)
        if processes.is_main
        else contextlib.nullcontext()
    ):
        scores = source.score(trials)
        _check_finite(trials, scores)
        figures = detection_figures(scores, trials.target, config.p_target, calibrated=source.calibrated)
        result = TrialResult(trials, scores, source.calibrated, figures)
        if processes.is_main:
            _write(config, result, source, log)
    return result


def _check_finite(trials: TrialList, scores: NDArray[np.float64]) -> None:
    """Raise InputError where a score is no finite number."""
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise InputError(
            f"{trials.path}:{trials.lines[wrong[0]]}: the score of this trial is {scores[wrong[0]]}, expected a finite number "
            f"({len(wrong)} of {len(scores)} are not finite); score with other weights, or without --mixed_precision"
        )


def _write(config: TrialsConfig, result: TrialResult, source: TrialScores, log: RunLog) -> None:
    """Write scores, figures and picture, and say the figures. Nothing of an earlier list stands beside them."""
    make_folder(config.out.parent)
    beside = config.outputs["out"][1:]
    for path in beside:
        _remove(path)
    with atomic_writer(config.out) as file:
        for text in _lines(result):
            file.write(text.encode())
    if result.figures is None:
        kind = "a target" if result.trials.target.all() else "no target"
        log.line(f"every trial is {kind}, so there are no error rates and no costs")
    else:
        result.figures.say(log.line)
    if not result.calibrated:
        why = "cosines are no log-likelihood ratios" if source.kind == COSINE else "the scores are not calibrated"
        remedy = "; run spkid calibrate for them" if config.calibration and source.kind != COSINE else ""
        log.line(f"{why}, so actDCF and Cllr are left out{remedy}")
    write_json(beside[0], _facts(config, result, source))
    names = [".json"]
    if result.figures is not None and config.pictures:
        write_atomic(beside[1], draw_det(result.figures.curve, result.figures.costs))
        names.append(PICTURE)
    log.line(f"{len(result.scores):,} trials scored: {config.out}; beside it {', '.join(names)}")


def _lines(result: TrialResult) -> Iterator[str]:
    """The lines of the scores, some thousand at a time."""
    trials = result.trials
    for first in range(0, len(trials), LINES_AT_A_TIME):
        part = slice(first, first + LINES_AT_A_TIME)
        columns = (trials.claim[part].tolist(), trials.utterance[part].tolist(), result.scores[part].tolist())
        yield "".join(
            f"{trials.claims[claim]} {trials.utterances[utterance]} {score:.9g}\n"
            for claim, utterance, score in zip(*columns, strict=True)
        )


def _facts(config: TrialsConfig, result: TrialResult, source: TrialScores) -> dict[str, Any]:
    """All printed figures, as JSON values."""
    trials, num_targets = result.trials, int(result.trials.target.sum())
    counts = {"targets": num_targets, "others": len(trials) - num_targets}
    return {
        "trials": str(config.trials),
        "form": trials.form,
        "count": len(trials),
        "repeated": trials.repeated,
        "score": source.kind,
        "calibrated": result.calibrated,
        **source.facts,
        **(counts if result.figures is None else result.figures.facts()),
    }


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: this file of an earlier run can't be removed: {error.strerror}; remove it, or give another --out"
        ) from None
