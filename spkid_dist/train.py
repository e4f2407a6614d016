"""Train the context-window MLP: from options to weights, on one process or many.

Read from the top: `train_model` joins the other processes, `_train` opens the data, makes what learns, looks for a
checkpoint to go on from, and goes through the epochs (`spkid_dist.training.loop`); `spkid_dist.training.engine` has
what is done with a batch.
"""

if __name__ == "__main__":  # before the imports, which take seconds in which a signal may arrive
    from spkid_dist.commands.cli import run_command

    run_command("train")

import signal
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from shards.errors import SpkidError, Stopped
from spkid_dist.config import TrainConfig
from spkid_dist.config.choices import BestBy
from spkid_dist.model import model_from_options, network_options, set_full_batch, set_moments
from spkid_dist.process.allocator import keep_freed_memory
from spkid_dist.process.freecpus import FreeCpus, go_on_with_threads, leave_cpus_to_others
from spkid_dist.process.interruption import Interrupted
from spkid_dist.process.memory import explain_memory
from spkid_dist.process.nocompiler import compiler_not_needed
from spkid_dist.process.threads import torch_threads
from spkid_dist.ranks.accelerator import make_accelerator
from spkid_dist.ranks.console import RunLog
from spkid_dist.ranks.lostdevice import explain_lost_device
from spkid_dist.ranks.together import by_main, explain_lost_ranks
from spkid_dist.trained import options_of
from spkid_dist.trainedfolder import Figures, averaged_name, weights_name
from spkid_dist.training.checkpoint import FOLDER_NAME, CheckpointFolder
from spkid_dist.training.engine import make_engine
from spkid_dist.training.enginechoice import choose_engine
from spkid_dist.training.folder import TrainingFolder
from spkid_dist.training.footprint import footprint
from spkid_dist.training.job import Job, TrainingData
from spkid_dist.training.learner import Learner, make_learner
from spkid_dist.training.loop import TrainingLoop
from spkid_dist.training.preemption import STOP_NAME, StopRequest
from spkid_dist.training.report import Summary, environment_of
from spkid_dist.training.resume import go_on
from spkid_dist.training.startup import check_ranks_alike, log_start, open_data, open_save_path
from spkid_dist.training.stopwatch import Stopwatch
from spkid_dist.training.tracking import check_tracker, finish_tracking, start_tracking
from spkid_dist.weights.file import ID_NAME

# What --best_by compares, as the log says it.
BEST_BY: dict[BestBy, str] = {
    "loss": "validation loss",
    "accuracy": "validation accuracy",
    "utterances": "number of wrong utterances",
}


@dataclass(frozen=True)
class TrainResult:
    """What a training came to.

    Attributes:
        best_weights: the weights of the best epoch by --best_by, the first of them being epoch 0.
        best_epoch: that epoch.
        va_loss, va_acc: mean loss and accuracy of these weights on the windows of the validation set.
        epochs: how many epochs were trained.
        va_wrong: how many utterances of the validation set these weights give a wrong speaker.
        averaged_weights: the averaged weights of the last epoch; None where there are none.
        averaged: what the validation found of them.
    """

    best_weights: Path
    best_epoch: int
    va_loss: float
    va_acc: float
    epochs: int
    va_wrong: int | None = None
    averaged_weights: Path | None = None
    averaged: Figures | None = None


@torch_threads()
def train_model(config: TrainConfig) -> TrainResult:
    """Train on the data of `config` and write weights, options, curves and checkpoints to its `save_path`.

    Called by every process of a launch; rank 0 writes.

    Raises:
        InputError: data, checkpoint or `save_path` missing, damaged or not fitting together; the training diverged.
        LostRanksError: another process has ended, or can't be reached.
        UsageError: an option that can't be, alone, on this machine, or for the checkpoint.
        Stopped: the training was told to stop, and can be continued.
    """
    keep_freed_memory()
    check_tracker(config.log_with)
    precision = None if config.mixed_precision == "launcher" else config.mixed_precision
    try:
        with (
            nullcontext() if config.compile else compiler_not_needed(),
            explain_lost_device(lambda: _after_failure(config)),  # around what lets go of the GPU, too
            StopRequest() as request,
            make_accelerator(
                precision=precision,
                timeout_minutes=config.timeout_minutes,
                tracker=config.log_with,
                folder=config.save_path,
            ) as accelerator,
            explain_lost_ranks(accelerator, config.timeout_minutes),
            explain_memory(lambda: "give a smaller --shuffle_windows or --batch_size"),
        ):
            config = replace(config, mixed_precision=accelerator.mixed_precision)
            log = RunLog(shown=accelerator.is_main_process)
            return _train_logged(Job(config=config, accelerator=accelerator, log=log, request=request))
    except Interrupted as error:
        if error.number == signal.SIGINT:
            raise
        raise Stopped(f"stopped by {error.number.name} before the training began") from None


def _after_failure(config: TrainConfig) -> str:
    """What to do when the machine is well again."""
    last = CheckpointFolder(config.save_path / FOLDER_NAME, config.keep_checkpoints).last
    if last is None:
        return "there is no checkpoint yet: run the same command again"
    return f"the last checkpoint is {last}: the same command with --resume auto continues from it"


def _train_logged(job: Job) -> TrainResult:
    try:
        with open_save_path(job) as folder:
            return _train(job, folder)
    except SpkidError as error:
        if isinstance(error, Stopped):
            job.log.line(str(error))
            error.is_said = True
        if error.everywhere:
            error.__traceback__ = error.__cause__ = error.__context__ = None  # they would keep the model alive
        raise
    finally:
        finish_tracking(job.accelerator, job.log.line)
        job.log.close()


def _train(job: Job, folder: TrainingFolder) -> TrainResult:
    config, accelerator, log = job.config, job.accelerator, job.log
    torch.manual_seed(config.seed)
    free_cpus = FreeCpus()
    data = open_data(job)
    if accelerator.device.type == "cpu":
        leave_cpus_to_others(free_cpus, log.line)
    check_ranks_alike(config, data.fingerprints)
    options = options_of(config) | data.options
    pools = data.training.memory_bound + data.validation.memory_bound
    needed = footprint(config, network_options(options), pools=pools, world_size=accelerator.num_processes)
    needed.check(accelerator.device)
    with data.closed_at_end(), explain_memory(lambda: needed.remedy):
        engine = choose_engine(config, accelerator)
        network = _make_network(config, data)
        log_start(job, data, network, str(engine))
        learner = make_learner(config, accelerator, network, engine.name, data.training.num_windows)

        checkpoint = go_on(job, learner, data, folder.checkpoints)
        name = data.training_id(options_of(config))
        if checkpoint is not None:
            name = checkpoint.values.get(ID_NAME, name)
            go_on_with_threads(checkpoint.values.get("threads", torch.get_num_threads()), log.line)
        by_main(accelerator, lambda: folder.begin(checkpoint, learner.statistics, options | {ID_NAME: name}))

        start_tracking(accelerator, config, learner.steps.number(data.training.epoch + 1, -data.training.steps_left))
        training = data.training
        steps = make_engine(engine.name, job, learner, placed=training.is_placed, frames_dtype=training.frames_dtype)
        loop = TrainingLoop(job, folder, learner, data, steps)
        job.request.hold(config.save_path / STOP_NAME)
        loop.run()
        return _result(job, folder, learner, loop.step_log.stopwatch)


def _make_network(config: TrainConfig, data: TrainingData) -> torch.nn.Sequential:
    """The network with random weights, which knows the moments of the training set and the size of its batches."""
    manifest = data.training.data.manifest
    network = model_from_options(options_of(config) | data.options)
    set_moments(network, manifest.mean, manifest.std)
    set_full_batch(network, min(config.batch_size, data.training.num_windows))
    return network


def _result(job: Job, folder: TrainingFolder, learner: Learner, stopwatch: Stopwatch) -> TrainResult:
    statistics, config, log = learner.statistics, job.config, job.log
    if statistics.is_out_of_patience(config.patience):
        log.line(f"stopped: no better {BEST_BY[config.best_by]} for {config.patience} epochs")
    best, last = statistics.best_epoch, statistics.epochs - 1
    found, averaged = statistics.figures(best), statistics.average_figures(last)
    # A training that was finished before keeps the summary of the run that ended it.
    if stopwatch.seconds["validation"] or not by_main(job.accelerator, lambda: folder.has_summary):
        environment = environment_of(job.accelerator)
        summary = Summary.of(statistics, learner.steps.num_windows, stopwatch, config.save_path, environment)
        by_main(job.accelerator, lambda: folder.save_summary(summary))
        for line in summary.lines():
            log.line(line)
    path, averaged_path = config.save_path / weights_name(best, best=True), config.save_path / averaged_name(last)
    log.line(f"best: epoch {best}, {found.in_words}: {path}")
    if averaged is not None and learner.average is not None:
        log.line(f"averaged: {learner.average.describe(last)}, {averaged.in_words}: {averaged_path}")
        taken = "the averaged weights" if statistics.is_average_better else "the weights of the best epoch"
        log.line(f"better on the validation set: {taken}; spkid score --model {config.save_path} takes them")
    return TrainResult(
        best_weights=path,
        best_epoch=best,
        va_loss=found.loss,
        va_acc=found.accuracy,
        epochs=statistics.epochs,
        va_wrong=found.wrong,
        averaged_weights=None if averaged is None else averaged_path,
        averaged=averaged,
    )


def main() -> None:
    """Run `spkid train` with the process's arguments as its flags."""
    from spkid_dist.commands.cli import run_command

    run_command("train")
