"""Prepare what scores utterances with a model, by one process or many, and score this process's share."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.errors import UsageError
from shards.sources.kaldidir import say_unused
from shards.sources.kaldisteps import KaldiSteps
from spkid_dist.config.places import check_places
from spkid_dist.config.scoring import ScoringFlags
from spkid_dist.process.allocator import keep_freed_memory
from spkid_dist.process.freecpus import FreeCpus, leave_cpus_to_others
from spkid_dist.process.memory import explain_memory
from spkid_dist.process.restoring import process_as_found
from spkid_dist.ranks.console import RunLog
from spkid_dist.ranks.lostdevice import explain_lost_device
from spkid_dist.ranks.sharing import Processes
from spkid_dist.scoring.calibrationfile import calibration_path
from spkid_dist.scoring.finite import check_answers
from spkid_dist.scoring.models import ModelFiles, find_models, load_models, say_models
from spkid_dist.scoring.opening import reads_kaldi
from spkid_dist.scoring.scorer import GroupScores, Scorer
from spkid_dist.scoring.utterances import Utterances
from spkid_dist.trained import TrainedModel
from spkid_dist.trainedfolder import STATISTICS_NAME

LINE_SECONDS = 30  # between lines that say how far it is


@dataclass(frozen=True, kw_only=True)
class ScoringRun:
    """This process's part in a scoring: what it was asked for, its place among the processes, its log, and the model."""

    config: ScoringFlags
    processes: Processes
    log: RunLog
    files: list[ModelFiles]
    model: TrainedModel

    @property
    def weights(self) -> list[Path]:
        """The models' weights files."""
        return [one.weights for one in self.files]

    def score(self, utterances: Utterances) -> Iterator[GroupScores]:
        """Score this process's share of the utterances, and show how far it is.

        Raises:
            InputError: an utterance can't be read, or no speaker of it has a finite log-probability.
        """
        config, processes, log = self.config, self.processes, self.log
        rank, world_size = processes.rank, processes.world_size
        log.line(f"{utterances.count} utterances, {world_size} process(es) on {processes.device.type}")
        scorer = Scorer(self.model, processes.device, batch_size=config.batch_size, precision=config.mixed_precision)
        began = said = time.perf_counter()
        done = 0
        with log.bar(utterances.share_size(rank, world_size), "utterances") as bar:
            for scores in scorer.score(utterances.groups(rank, world_size, config.workers)):
                check_answers(scores)
                yield scores
                bar.advance(len(scores.means))
                done += len(scores.means)
                now = time.perf_counter()
                if now - said >= LINE_SECONDS:
                    said = now
                    log.line(f"scored {done:,} utterances, {done / (now - began):,.0f}/s a process")


@contextlib.contextmanager
def scoring_run(config: ScoringFlags, command: str) -> Iterator[ScoringRun]:
    """Load the models, find this process's place in the launch of `command`, and explain what may go wrong meanwhile.

    Raises:
        InputError: weights or train.opts missing, damaged or not fitting together.
        UsageError: an option that can't be on this machine.
    """
    keep_freed_memory()
    remedy = "give a smaller --batch_size, or fewer --workers"
    with explain_lost_device(lambda: "run the same command again"), process_as_found(), explain_memory(lambda: remedy):
        processes = Processes(command)
        log, free_cpus = RunLog(shown=processes.is_main), FreeCpus()
        if config.mixed_precision == "fp16" and processes.device.type == "cpu":
            raise UsageError("--mixed_precision fp16: needs a GPU; on a CPU give bf16 or no")
        files = find_models(config.models, config.weights, config.train_cfg)
        check_places(config.outputs, _files_of(files))
        model = load_models(files, config.spk2idx)
        for line in (*(say_models(files) if config.models or len(files) > 1 else ()), *model.remarks):
            log.line(line)
        used = KaldiSteps.names(model.options["source"]) if reads_kaldi(config, model) else []
        for line in say_unused(config.db_path, used) if reads_kaldi(config, model) else ():
            log.line(line)
        if processes.device.type == "cpu":
            leave_cpus_to_others(free_cpus, log.line)
        yield ScoringRun(config=config, processes=processes, log=log, files=files, model=model)


def _files_of(models: list[ModelFiles]) -> Iterator[tuple[str, Path]]:
    """The files that the models are read from, and what stands beside them for them alone, each with what it is."""
    for one in models:
        yield "the weights", one.weights
        yield "the training's options", one.options
        yield "the training's statistics", one.options.with_name(STATISTICS_NAME)
    yield "the weights' calibration", calibration_path([one.weights for one in models])
