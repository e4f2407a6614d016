"""The command `spkid score`: find the speaker of each utterance with a trained model, by one process or many.

An utterance's speaker is the argmax of the sum of its windows' log-probabilities, in float64. Each process scores its share
and the shares are joined once, at the end; rank 0 writes.
"""

if __name__ == "__main__":  # before the imports, which take seconds in which a signal may arrive
    from spkid_dist.commands.cli import run_command

    run_command("score")

import contextlib
import time

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from spkid_dist.config import ScoreConfig
from spkid_dist.process.threads import torch_threads
from spkid_dist.ranks.sharing import Processes
from spkid_dist.scoring.calibration import Scale, log_likelihood_ratios
from spkid_dist.scoring.calibrationfile import Calibration, use_calibration
from spkid_dist.scoring.confusion import error_rates
from spkid_dist.scoring.decisions import choose_threshold, decide
from spkid_dist.scoring.opening import open_utterances, say_speakers
from spkid_dist.scoring.outcome import ScoreResult
from spkid_dist.scoring.ranking import best_speakers, margins_of
from spkid_dist.scoring.resultfiles import results_held, write_results
from spkid_dist.scoring.rowfile import RowFile, rows_beside, rows_of_all
from spkid_dist.scoring.run import ScoringRun, scoring_run
from spkid_dist.scoring.scorefile import check_place
from spkid_dist.scoring.scorer import GroupScores
from spkid_dist.scoring.trials import TrialCounts, det_curve
from spkid_dist.scoring.utterances import UNKNOWN


@torch_threads()
def score_utterances(config: ScoreConfig) -> ScoreResult:
    """Score utterances, write the results file, the figures and the pictures, and print the error rates.

    Called by every process of a launch; rank 0 writes.

    Raises:
        InputError: list, features, weights or train.opts missing, damaged or not fitting together.
        UsageError: an option that can't be on this machine.
    """
    with scoring_run(config, "score") as run:
        return _score_and_write(config, run)


def _score_and_write(config: ScoreConfig, run: ScoringRun) -> ScoreResult:
    processes, log, speakers = run.processes, run.log, run.model.speakers
    utterances = open_utterances(config, run.model)
    for line in say_speakers(config, run.model, utterances):
        log.line(line)
    calibration = use_calibration(run.weights, log.line) if config.calibration else None
    threshold = choose_threshold(config.threshold, calibration, speakers)
    with contextlib.ExitStack() as stack:
        if processes.is_main:
            stack.enter_context(results_held(config.log_file.with_suffix(".json"), "log_file", log.line))
            if config.scores is not None:
                check_place(config.scores)
                stack.enter_context(results_held(config.scores, "scores", log.line))
        rows = None
        if config.scores is not None and config.top is None:
            rows = stack.enter_context(contextlib.closing(rows_beside(config.scores, len(speakers), processes)))
        share = Share(utterances.count, len(speakers), top=config.top, rows=rows, calibration=calibration)
        began = time.perf_counter()
        for scores in run.score(utterances):
            share.add(scores)
        result = share.join(processes, speakers, began, threshold)
        means = None if rows is None else rows_of_all(rows, utterances.count, len(speakers), processes)
        if processes.is_main:
            write_results(config, result, run.files, processes.world_size, means, log.line)
        elif means is not None:
            for _ in means:  # each process has rows of each piece
                pass
    return result


class Share:
    """What this process has scored of all `count` utterances; the others' rows are 0 until the shares are joined.

    `top` is how many of the K speakers are kept with their scores, None for none; `rows` takes the scores of all speakers;
    `calibration` is what scores become log-likelihood ratios with.
    """

    COLUMNS = (
        "found", "mean_log_probs", "margins", "true", "frames", "windows", "wrong_windows", "ratios", "true_ratios"
    )  # fmt: skip
    REAL = ("mean_log_probs", "margins", "ratios", "true_ratios")

    def __init__(
        self,
        count: int,
        num_speakers: int,
        *,
        top: int | None = None,
        rows: RowFile | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self._columns = np.zeros((count, len(self.COLUMNS)))
        self._keys: list[str] = []
        self._positions: list[NDArray[np.int64]] = []
        self._most = None if top is None else min(top, num_speakers)
        self._top = np.zeros((2, count, self._most or 0), np.int32)  # classes, and the bits of their scores
        self._rows = rows
        self._calibration = calibration
        self._scale = Scale() if calibration is None else calibration.scale
        self._trials = TrialCounts()

    def add(self, scores: GroupScores) -> None:
        """Keep the outcome of a group.

        Raises:
            InputError: the network's outputs are no numbers, or there is no room for them.
        """
        group, means = scores.group, scores.means
        found = means.argmax(axis=1)
        best = means[np.arange(len(found)), found]
        margins = margins_of(means, found)
        ratios, true_ratios = self._count_trials(scores, found)
        columns = (found, best, margins, group.true, group.lengths, scores.windows, scores.wrong_windows)
        self._columns[group.positions] = np.stack((*columns, ratios, true_ratios), axis=1)
        self._keys += group.keys
        self._positions.append(group.positions)
        if self._most is not None:
            classes = best_speakers(means, self._most)
            kept = np.take_along_axis(means, classes, axis=1).astype(np.float32)
            self._top[:, group.positions] = classes, kept.view(np.int32)
        if self._rows is not None:
            self._rows.add(group.positions, means.astype(np.float32))

    def _count_trials(
        self, scores: GroupScores, found: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Count the trials of a group; the log-likelihood ratios of found and true speakers, 0 where they are not wanted."""
        true, means, windows = scores.group.true, scores.means, scores.windows
        of_found, of_true = np.zeros((2, len(true)))
        rows = np.flatnonzero(true >= 0) if self._calibration is None else np.arange(len(true))
        if means.shape[1] < 2 or not len(rows):  # a claim has rivals
            return of_found, of_true
        if len(rows) < len(true):
            means, windows = means[rows], windows[rows]
        ratios = log_likelihood_ratios(self._scale.scaled(means, windows))
        known = np.flatnonzero(true[rows] >= 0)
        of_found[rows] = ratios[np.arange(len(rows)), found[rows]]
        of_true[rows[known]] = ratios[known, true[rows[known]]]
        self._trials.add(ratios if len(known) == len(rows) else ratios[known], true[rows[known]])
        return of_found, of_true

    def join(
        self, processes: Processes, speakers: list[str], began: float, threshold: float | None = None
    ) -> ScoreResult:
        """All processes' shares together; waits for all. Each row is one process's, so that sums are exact.

        `threshold` is that of unknown speakers, None for none.
        """
        positions = np.concatenate(self._positions).tolist() if self._positions else []
        keys = sorted(processes.gather(list(zip(positions, self._keys, strict=True))))
        if len(keys) != len(self._columns):
            raise InputError(
                f"{len(keys)} of {len(self._columns)} utterances were found in the dataset's blocks, but its table has all; "
                "build the table again: spkid index"
            )
        columns = dict(zip(self.COLUMNS, processes.sum(self._columns).T, strict=True))
        seconds = time.perf_counter() - began
        trials = processes.sum(np.stack((self._trials.targets, self._trials.others)).astype(np.float64))
        self._trials.targets, self._trials.others = trials.astype(np.int64)
        whole = {name: column.astype(np.int64) for name, column in columns.items() if name not in self.REAL}
        classes, means = (None, None) if self._most is None else processes.sum(self._top)
        decisions = None
        if self._calibration is not None:
            ratios = {name: columns[name] for name in ("ratios", "true_ratios")}
            of_classes = {name: whole[name] for name in ("found", "true")}
            decisions = decide(self._calibration, threshold, len(speakers), **of_classes, **ratios)
        whole["true"] = np.maximum(whole["true"], UNKNOWN)
        return ScoreResult(
            keys=[key for _, key in keys],
            speakers=speakers,
            mean_log_probs=columns["mean_log_probs"],
            margins=columns["margins"],
            rates=error_rates(whole["true"], whole["found"], whole["frames"], whole["windows"], whole["wrong_windows"]),
            det=det_curve(self._trials),
            seconds=seconds,
            top_classes=classes,
            top_means=None if means is None else means.view(np.float32),
            decisions=decisions,
            **whole,
        )


def main() -> None:
    """Run `spkid score` with the process's arguments as its flags."""
    from spkid_dist.commands.cli import run_command

    run_command("score")
