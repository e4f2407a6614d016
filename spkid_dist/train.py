"""Train the context-window MLP: from options to weights, on one process or many.

Read from the top: `_train` opens the data, makes the model, looks for a checkpoint to go on from, and goes through the epochs;
`_train_epoch` is the loop over global batches, and `spkid_dist.training.engine` has what is done with one. Every rank takes its
share of each global batch, and the loss is weighted so that the gradient is the mean over the global batch, whatever the
shares' sizes: W ranks learn what one learns.

Shapes: B windows of a rank's share, C*D inputs.
"""

if __name__ == "__main__":  # before the imports, which take seconds in which a signal may arrive
    from spkid_dist.commands.cli import run_command

    run_command("train")

import signal
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from shards.errors import SpkidError, Stopped
from spkid_dist.config import TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.model import model_from_options, network_options, set_full_batch, set_moments
from spkid_dist.process.allocator import keep_freed_memory
from spkid_dist.process.freecpus import FreeCpus, go_on_with_threads, leave_cpus_to_others
from spkid_dist.process.interruption import Interrupted
from spkid_dist.process.lostdevice import explain_lost_device
from spkid_dist.process.memory import explain_memory
from spkid_dist.process.threads import torch_threads
from spkid_dist.ranks.accelerator import make_accelerator
from spkid_dist.ranks.console import RunLog
from spkid_dist.ranks.together import by_main, explain_lost_ranks, raise_everywhere
from spkid_dist.streaming.ledger import LedgerError
from spkid_dist.trained import ID_NAME, options_of, training_id
from spkid_dist.training.checkpoint import FOLDER_NAME, CheckpointFolder
from spkid_dist.training.checkpointing import Keeper
from spkid_dist.training.engine import choose_engine, make_engine, prepare
from spkid_dist.training.evaluator import Evaluator
from spkid_dist.training.feed import Feed
from spkid_dist.training.folder import TrainingFolder
from spkid_dist.training.footprint import footprint
from spkid_dist.training.learning import Schedule, compile_model, make_optimizer
from spkid_dist.training.losses import FiniteGuard, Tally
from spkid_dist.training.preemption import STOP_NAME, Pace, StopRequest
from spkid_dist.training.profiling import StepProfile
from spkid_dist.training.replay import STEPS_A_GRAPH
from spkid_dist.training.report import Summary, TrainStatistics, weights_name
from spkid_dist.training.resume import go_on
from spkid_dist.training.run import Run
from spkid_dist.training.startup import check_ranks_alike, log_start, open_data, open_save_path
from spkid_dist.training.state import Stateful, TrainingState, join_ledgers
from spkid_dist.training.step import StepParts
from spkid_dist.training.steplog import StepLog
from spkid_dist.training.stopwatch import Watch
from spkid_dist.training.tracking import finish_tracking, start_tracking
from spkid_dist.training.validation import validate_epoch

PLOT_SECONDS = 30.0  # from one drawing of the curves to the next: it takes as long as a short epoch


@dataclass(frozen=True)
class TrainResult:
    """What a training came to; `best_weights` is the file of the lowest validation loss, `va_loss` and `va_acc` its."""

    best_weights: Path
    best_epoch: int
    va_loss: float
    va_acc: float
    epochs: int


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
    precision = None if config.mixed_precision == "launcher" else config.mixed_precision
    try:
        with (
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
            return _train_logged(replace(config, mixed_precision=accelerator.mixed_precision), accelerator, request)
    except Interrupted as error:
        if error.number == signal.SIGINT:
            raise
        raise Stopped(f"stopped by {error.number.name} before the training began") from None


def _after_failure(config: TrainConfig) -> str:
    """What to do when the machine is well again."""
    last = CheckpointFolder(config.save_path / FOLDER_NAME, config.keep_checkpoints).last
    if last is None:
        return "there is no checkpoint yet: run the same command again"
    return f"the last checkpoint is {last}: the same command with --resume auto goes on from it"


def _train_logged(config: TrainConfig, accelerator: Accelerator, request: StopRequest) -> TrainResult:
    log = RunLog(shown=accelerator.is_main_process)
    try:
        with open_save_path(config, accelerator, log) as folder:
            return _train(config, folder, accelerator, log, request)
    except SpkidError as error:
        if isinstance(error, Stopped):
            log.line(str(error))
            error.is_said = True
        if error.everywhere:
            error.__traceback__ = error.__cause__ = error.__context__ = None  # they would keep the model alive
        raise
    finally:
        finish_tracking(accelerator, log.line)
        log.close()


def _train(
    config: TrainConfig, folder: TrainingFolder, accelerator: Accelerator, log: RunLog, request: StopRequest
) -> TrainResult:
    torch.manual_seed(config.seed)
    free_cpus = FreeCpus()
    tr_data, va_data = open_data(config, accelerator, log)
    if accelerator.device.type == "cpu":
        leave_cpus_to_others(free_cpus, log.line)
    identity = {"training set": tr_data.data.fingerprint, "validation set": va_data.data.fingerprint}
    check_ranks_alike(config, identity)
    options = network_options(options_of(config) | _decided_by_data(tr_data))
    pools = tr_data.memory_bound + va_data.memory_bound
    needed = footprint(config, options, pools=pools, world_size=accelerator.num_processes)
    needed.check(accelerator.device)
    with closing(tr_data), closing(va_data), explain_memory(lambda: needed.remedy):
        return _train_on(config, folder, accelerator, log, request, tr_data, va_data, identity)


def _train_on(
    config: TrainConfig,
    folder: TrainingFolder,
    accelerator: Accelerator,
    log: RunLog,
    request: StopRequest,
    tr_data: WindowDataset,
    va_data: WindowDataset,
    identity: dict[str, str],
) -> TrainResult:
    manifest = tr_data.data.manifest
    engine = choose_engine(config, accelerator)
    network = model_from_options(options_of(config) | _decided_by_data(tr_data))
    set_moments(network, manifest.mean, manifest.std)
    set_full_batch(network, min(config.batch_size, tr_data.num_windows))
    log_start(log, config, accelerator, tr_data, va_data, network, str(engine))
    if config.compile:
        compile_model(network, accelerator.device)
    optimizer, schedule = make_optimizer(config, network), Schedule(config, len(tr_data))
    model, optimizer = prepare(engine.name, accelerator, network, optimizer)
    # What else changes while training and has a state belongs among them: checkpoints carry them.
    changing: dict[str, Stateful] = {"model": network, "optimizer": optimizer, "schedule": schedule}
    if accelerator.scaler is not None:
        changing["scaler"] = accelerator.scaler
    state = TrainingState(parts=changing, data=tr_data, tally=Tally(accelerator.device), statistics=TrainStatistics())

    checkpoints = CheckpointFolder(config.save_path / FOLDER_NAME, config.keep_checkpoints, folder.check)
    checkpoint = go_on(config, accelerator, log, folder=checkpoints, state=state, data=identity)
    options = options_of(config)
    name = training_id(options, identity | {"selection": tr_data.identity["selection"]})
    if checkpoint is not None:
        name = checkpoint.values.get(ID_NAME, name)
        go_on_with_threads(checkpoint.values.get("threads", torch.get_num_threads()), log.line)
    guard = FiniteGuard(accelerator, model, optimizer)
    watch = Watch()
    first_step = (tr_data.epoch + 1) * len(tr_data) - tr_data.steps_left
    step_log = StepLog(
        config, accelerator, log, state=state, schedule=schedule, guard=guard, watch=watch, first_step=first_step
    )
    keeper = Keeper(
        config,
        accelerator,
        log,
        state=state,
        guard=guard,
        request=request,
        folder=checkpoints,
        data=identity,
        training_id=name,
        watch=watch,
        step_log=step_log,
    )
    options |= _decided_by_data(tr_data) | {ID_NAME: name}
    by_main(accelerator, lambda: folder.begin(checkpoint, checkpoints, state.statistics, options))
    start_tracking(accelerator, config, first_step)
    parts = StepParts(
        config=config,
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        order=tr_data.order,
        tally=state.tally,
        guard=guard,
        frames_dtype=tr_data.frames_dtype,
    )
    run = Run(
        config=config,
        folder=folder,
        accelerator=accelerator,
        log=log,
        model=model,
        network=network,
        engine=make_engine(engine.name, parts, placed=tr_data.is_placed),
        schedule=schedule,
        tr_data=tr_data,
        va_data=va_data,
        state=state,
        guard=guard,
        keeper=keeper,
        plots=Pace(PLOT_SECONDS),
        profile=StepProfile(
            config.profile,
            config.save_path / f"profile-rank{accelerator.process_index}.json",
            on_device=accelerator.device.type != "cpu",
            say=log.line,
        ),
        evaluator=Evaluator(accelerator, network, va_data.batch_size),
        watch=watch,
        step_log=step_log,
    )

    request.hold(config.save_path / STOP_NAME)
    if run.is_finished:
        log.line("this training is finished: nothing to do")
    with run.profile:
        while not run.is_finished:
            _go_through_epoch(run)
    return _result(run)


def _go_through_epoch(run: Run) -> None:
    """An epoch, or the rest of it: training, validation, checkpoint."""
    statistics, watch = run.state.statistics, run.watch
    epoch = statistics.epochs
    if run.tr_data.epoch == epoch:  # else it was stopped after the last batch, and goes on with the validation
        with watch.during("training"):
            _train_epoch(run)
    with watch.during("validation"):
        validate_epoch(run, epoch)
    run.keeper.after_epoch(best=statistics.best_epoch == epoch, finished=run.is_finished)


def _decided_by_data(data: WindowDataset) -> dict[str, Any]:
    """What `train.opts` has besides the options."""
    manifest = data.data.manifest
    network = {"input_dim": manifest.num_features, "num_spks": len(manifest.speakers)}
    return network | {
        "speakers": manifest.speakers,
        "source": manifest.source,
        "tr_fingerprint": data.data.fingerprint,
    }


def _train_epoch(run: Run) -> None:
    """One epoch, or the rest of it: forward, backward and a step for each global batch."""
    data, watch = run.tr_data, run.watch
    run.model.train()
    epoch, steps = data.epoch, len(data)
    step = -(-data.position // run.config.batch_size)
    watch.begin_epoch(data.position)
    feed = Feed(data)
    with run.log.bar(steps, "batches") as bar:
        bar.advance(step)
        while step < steps:
            count = _take_steps(run, feed, epoch, step)
            step += count
            if shown := run.step_log.say(step - 1):
                bar.describe(shown)
            bar.advance(count)
            if step % run.config.log_freq == 0 or step == steps:
                run.step_log.note(epoch, step - 1)
                if step == steps or not data.is_placed:
                    bar.describe(run.step_log.say(step - 1) or "")
            if step == steps:
                _check_epoch(run, epoch)
            run.keeper.after_steps(epoch, step - 1, steps, count=count)


def _take_steps(run: Run, feed: Feed, epoch: int, step: int) -> int:
    """Take the steps from `step` on up to the next one after which there is something else to do; returns how many."""
    steps = len(run.tr_data)
    due = 1
    if run.tr_data.is_placed and not run.profile.is_recording:
        due = min(
            run.step_log.steps_until_due(step, steps), run.keeper.steps_until_due(epoch, step, steps), STEPS_A_GRAPH
        )
    taken = 0
    while taken < due:  # ranks may get them in other pieces
        with run.watch.during("waiting"):
            work = feed.next(due - taken)
        run.engine.run(work, epoch, step + taken)
        taken += len(work)
        run.profile.step()
    return taken


def _check_epoch(run: Run, epoch: int) -> None:
    """Compare what all ranks have consumed with the epoch, and tell of windows that were passed over."""
    data = run.tr_data
    everyone = gather_object([(data.ended_ledger, data.skipped_windows, list(data.bad_blocks.values()))])
    consumed = join_ledgers([ledger for ledger, _, _ in everyone])
    if consumed is not None:
        try:
            data.check_epoch(consumed, epoch)
        except LedgerError as error:
            raise_everywhere(error)
    for rank, (_, skipped, reasons) in enumerate(everyone):
        if skipped:
            run.log.line(
                f"rank {rank}: {skipped} windows passed over so far, of {len(reasons)} bad blocks: {reasons[0]}"
            )


def _result(run: Run) -> TrainResult:
    statistics, config = run.state.statistics, run.config
    if run.is_out_of_patience:
        run.log.line(f"stopped: no better validation loss for {config.patience} epochs")
    best = statistics.best_epoch
    va_loss, va_acc = statistics.va_loss[best], statistics.va_acc[best]
    path = config.save_path / weights_name(best, best=True)
    run.log.line(f"best: epoch {best}, loss {va_loss:.4f}, acc {va_acc:.4f}: {path}")
    # A training that was finished before keeps the summary of the run that ended it.
    if run.watch.seconds["validation"] or not by_main(run.accelerator, lambda: run.folder.has_summary):
        summary = Summary.of(statistics, run.tr_data.num_windows, run.watch, config.save_path)
        by_main(run.accelerator, lambda: run.folder.save_summary(summary))
        for line in summary.lines():
            run.log.line(line)
    return TrainResult(path, best, va_loss, va_acc, statistics.epochs)


def main() -> None:
    """Run `spkid train` with the process's arguments as its flags."""
    from spkid_dist.commands.cli import run_command

    run_command("train")
