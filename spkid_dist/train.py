"""Train the context-window MLP: from options to weights, on one process or many.

Read from the top: `train` opens the data, makes the model and goes through the epochs; `_train_epoch` is the loop over
global batches. Every rank takes its share of each global batch, and the loss is weighted so that the gradient is the mean
over the global batch, whatever the shares' sizes: W ranks learn what one learns.

Shapes: B windows of a rank's share, G of the global batch, C*D inputs, W ranks.
"""

import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn import functional

from shards.corpus import check_speakers, find_speakers, read_list, write_speakers
from shards.errors import InputError, UsageError
from shards.files import atomic_writer, make_folder
from shards.sources.fmatrix import FmatrixSource
from shards.store import StoreOptions
from spkid_dist.cache import cached_shards
from spkid_dist.config import TrainConfig
from spkid_dist.console import RunLog, shard_progress
from spkid_dist.dataset import WindowDataset
from spkid_dist.learning import Schedule, compile_model, make_optimizer, seed_dropout, training_loss
from spkid_dist.model import describe_model, model_from_options, set_moments
from spkid_dist.report import TrainStatistics, save_options

EVALUATION_BATCH = 8192  # windows a step of all ranks together; no result depends on it


@dataclass(frozen=True)
class TrainResult:
    """What a training came to; `best_weights` is the file of the lowest validation loss, `va_loss` and `va_acc` its."""

    best_weights: Path
    best_epoch: int
    va_loss: float
    va_acc: float
    epochs: int


def train(config: TrainConfig) -> TrainResult:
    """Train on the data of `config` and write weights, options and curves to its `save_path`.

    Called by every process of a launch; rank 0 writes.

    Raises:
        InputError: data or `save_path` missing, damaged or not fitting together.
        UsageError: an option that can't be, alone or on this machine.
    """
    accelerator = make_accelerator(config)
    log = RunLog(shown=accelerator.is_main_process)
    try:
        result = _train(replace(config, mixed_precision=accelerator.mixed_precision), accelerator, log)
    finally:
        log.close()
    accelerator.end_training()
    # The model's wrapper keeps the process group alive, whose threads abort the process if it ends before them.
    accelerator.free_memory()
    return result


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The process's Accelerator.

    Raises:
        UsageError: the launcher meant several processes, but this one is alone; fp16 on a CPU.
    """
    precision = None if config.mixed_precision == "launcher" else config.mixed_precision
    on_cpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    if on_cpu and (precision or os.environ.get("ACCELERATE_MIXED_PRECISION")) == "fp16":
        raise UsageError("--mixed_precision fp16: needs a GPU; on a CPU give bf16 or no")
    accelerator = Accelerator(mixed_precision=precision)
    if accelerator.gradient_accumulation_steps != 1:
        raise UsageError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {accelerator.gradient_accumulation_steps}: each batch is a step "
            "here; leave it 1 and set --batch_size"
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and accelerator.num_processes == 1:
        raise UsageError(
            f"WORLD_SIZE is {launched}, but this process is alone: it would train by itself; on CPUs launch with "
            f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {launched} -m spkid_dist.train ..."
        )
    return accelerator


def _train(config: TrainConfig, accelerator: Accelerator, log: RunLog) -> TrainResult:
    make_folder(config.save_path)
    log.open_file(config.save_path / "train.log")
    if any(config.save_path.glob("*_weights.ckpt")):
        log.line(f"{config.save_path}: holds weights of an earlier training; those that this one does not replace stay")
    torch.manual_seed(config.seed)
    tr_data, va_data = open_data(config, accelerator, log)
    manifest = tr_data.data.manifest
    extra = {"input_dim": manifest.num_features, "num_spks": len(manifest.speakers)}
    model = model_from_options(asdict(config) | extra)
    set_moments(model, manifest.mean, manifest.std)
    _log_start(log, config, accelerator, tr_data, va_data, model)
    if accelerator.is_main_process:
        identity = {
            "speakers": manifest.speakers,
            "source": manifest.source,
            "tr_fingerprint": tr_data.data.fingerprint,
        }
        save_options(config.save_path, config, extra | identity)
    if config.compile:
        compile_model(model, accelerator.device)
    optimizer, schedule = make_optimizer(config, model), Schedule(config, len(tr_data))
    model, optimizer = accelerator.prepare(model, optimizer)

    statistics = TrainStatistics()
    best: TrainResult | None = None
    for epoch in range(config.epoch):
        _train_epoch(config, accelerator, log, model, optimizer, schedule, tr_data, statistics)
        va_loss, va_acc = evaluate(accelerator, model, va_data)
        statistics.va_loss.append(va_loss)
        statistics.va_acc.append(va_acc)
        improved = best is None or va_loss < best.va_loss
        name = f"{'bestval_' if improved else ''}e{epoch}_weights.ckpt"
        log.line(
            f"VALIDATION: epoch {epoch} loss: {va_loss:.4f} acc: {va_acc:.4f} "
            f"{'better' if improved else 'not better'}, saved {config.save_path / name}"
        )
        if accelerator.is_main_process:
            save_weights(accelerator.unwrap_model(model), config.save_path / name)
            statistics.save(config.save_path)
        if schedule.after_validation(va_loss):
            log.line(f"learning rate: multiplied by {config.step_factor}")
        if improved:
            best = TrainResult(config.save_path / name, epoch, va_loss, va_acc, epoch + 1)
        assert best is not None
        best = replace(best, epochs=epoch + 1)
        if epoch - best.best_epoch >= config.patience:
            log.line(f"stopping: no better validation loss for {config.patience} epochs")
            break
    assert best is not None
    log.line(f"best: epoch {best.best_epoch}, loss {best.va_loss:.4f}, acc {best.va_acc:.4f}: {best.best_weights}")
    return best


def open_data(config: TrainConfig, accelerator: Accelerator, log: RunLog) -> tuple[WindowDataset, WindowDataset]:
    """The training and the validation stream of this rank; feature files are sharded first.

    Raises:
        InputError: data missing or damaged, or the two do not fit together.
    """
    folders: tuple[str | Path, str | Path]
    if config.tr_shards is not None and config.va_shards is not None:
        folders = config.tr_shards, config.va_shards
    else:
        folders = _shard_features(config, accelerator, log)
    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    store = {"store": StoreOptions(cache_dir=config.shard_cache, cache_bytes=config.shard_cache_bytes)}
    windows = {"in_frames": config.in_frames, "edge": config.edge, "num_streams": config.num_streams}
    normalize = "utterance" if config.normalize == "utterance" else "none"
    pools = {"shuffle_windows": config.shuffle_windows, "seed": config.seed, "normalize": normalize}
    options: dict[str, Any] = windows | pools | place | store
    tr_data = WindowDataset(folders[0], batch_size=config.batch_size, **options)
    va_data = WindowDataset(folders[1], batch_size=EVALUATION_BATCH, shuffle=False, **options)
    tr_manifest, va_manifest = tr_data.data.manifest, va_data.data.manifest
    for what, ours, theirs in (
        ("features per frame", tr_manifest.num_features, va_manifest.num_features),
        ("speakers", tr_manifest.speakers, va_manifest.speakers),
        ("options of audio features", tr_manifest.source.get("features"), va_manifest.source.get("features")),
    ):
        if ours != theirs:
            raise InputError(
                f"{folders[1]}: its {what} are not those of the training set {folders[0]}; shard both with the same "
                "--spk2idx and alike features"
            )
    return tr_data, va_data


def _shard_features(config: TrainConfig, accelerator: Accelerator, log: RunLog) -> tuple[Path, Path]:
    source = FmatrixSource(config.db_path, config.ext)
    paths = config.tr_list_file, config.va_list_file
    listed = [read_list(path, config.speaker_component) for path in paths]
    speakers = find_speakers(paths[0], listed[0], config.spk2idx)
    check_speakers(paths[1], listed[1], config.spk2idx, speakers)
    folders = []
    for path, utterances in zip(paths, listed, strict=True):
        with log.bar(len(utterances), "utterances") as bar:
            folder = cached_shards(
                path,
                utterances,
                source,
                speakers,
                cache_dir=config.cache_dir,
                makes_it=accelerator.is_local_main_process,
                say=log.line,
                progress=shard_progress(bar),
            )
        folders.append(folder)
    if accelerator.is_main_process and write_speakers(config.spk2idx, speakers):
        log.line(f"{config.spk2idx}: made from the speakers of {paths[0]}")
    return folders[0], folders[1]


class Tally:
    """Sums of loss, right answers and windows since the last call of `reduce`; kept on the device, so no step waits."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, log_probs: torch.Tensor, y: torch.Tensor, loss_sum: torch.Tensor) -> None:
        """Count one share: log_probs (B, num_spks), y (B,), and the sum of its losses."""
        self._sums[0] += loss_sum.detach()
        self._sums[1] += (log_probs.detach().argmax(dim=1) == y).sum()
        self._sums[2] += len(y)

    def reduce(self, accelerator: Accelerator) -> tuple[float, float]:
        """Mean loss and accuracy over all ranks, and start anew. Waits for the device and for all ranks."""
        loss, right, count = accelerator.reduce(self._sums, reduction="sum").tolist()
        self._sums.zero_()
        return loss / count, right / count


def _train_epoch(
    config: TrainConfig,
    accelerator: Accelerator,
    log: RunLog,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    data: WindowDataset,
    statistics: TrainStatistics,
) -> None:
    """One epoch: forward, backward and a step for each global batch."""
    model.train()
    epoch, steps, num_windows = data.epoch, len(data), data.order.num_windows
    tally = Tally(accelerator.device)
    began = logged = time.perf_counter()
    wait_seconds = 0.0
    batches = iter(data)
    with log.bar(steps, "batches") as bar:
        for step in range(steps):
            asked = time.perf_counter()
            x, y = next(batches)
            wait_seconds += time.perf_counter() - asked
            x, y = x.to(accelerator.device, non_blocking=True), y.to(accelerator.device, non_blocking=True)
            schedule.set_lr(optimizer, epoch * steps + step)
            if config.dropout:
                seed_dropout(config.seed, epoch * steps + step, accelerator.process_index)
            optimizer.zero_grad()
            log_probs = model(x)
            loss_sum = training_loss(log_probs, y, config.label_smoothing)
            global_windows = min(config.batch_size, num_windows - step * config.batch_size)
            # DDP takes the mean over ranks: times W / G it is the mean over the global batch.
            accelerator.backward(loss_sum * (accelerator.num_processes / global_windows))
            if config.clip_grad_norm is not None:
                accelerator.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
            optimizer.step()
            tally.add(log_probs, y, loss_sum)
            bar.advance(1)
            if (step + 1) % config.log_freq == 0 or step + 1 == steps:
                loss, accuracy = tally.reduce(accelerator)
                if not math.isfinite(loss):
                    raise InputError(
                        f"epoch {epoch}, batch {step + 1}: the training loss is {loss}; the training diverged: give a "
                        f"smaller --lr (it is {config.lr})"
                    )
                statistics.tr_loss.append(loss)
                statistics.tr_acc.append(accuracy)
                now = time.perf_counter()
                batches_since = (step % config.log_freq) + 1
                rate = min(batches_since * config.batch_size, num_windows) / (now - logged)
                logged = now
                text = (
                    f"TRAINING: {step + 1}/{steps} epoch {epoch} loss: {loss:.4f} acc: {accuracy:.4f} "
                    f"windows/s: {rate:,.0f} waiting for data: {wait_seconds / (now - began):.1%}"
                )
                log.line(text)
                bar.describe(f"epoch {epoch} loss {loss:.4f} acc {accuracy:.4f}")
    next(batches, None)  # the stream notes the end of the epoch


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, data: WindowDataset) -> tuple[float, float]:
    """Mean loss and accuracy over all windows of `data`, each once."""
    model.eval()
    tally = Tally(accelerator.device)
    for x, y in data:
        x, y = x.to(accelerator.device), y.to(accelerator.device)
        log_probs = model(x)
        tally.add(log_probs, y, functional.nll_loss(log_probs, y, reduction="sum"))
    return tally.reduce(accelerator)


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write the model's `state_dict` to `path` atomically."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    with atomic_writer(path) as file:
        torch.save(state, file)


def _log_start(
    log: RunLog,
    config: TrainConfig,
    accelerator: Accelerator,
    tr_data: WindowDataset,
    va_data: WindowDataset,
    model: torch.nn.Sequential,
) -> None:
    for data, name in ((tr_data, "training"), (va_data, "validation")):
        counts = data.windows
        short = f", {counts.num_short} utterances are shorter than a window" if counts.num_short else ""
        manifest = data.data.manifest
        log.line(f"{name}: {manifest.num_utterances} utterances, {counts.total} windows{short}, {len(data)} batches")
    for name, formula, number in describe_model(model):
        log.line(f"{name:>10}: {formula} = {number} parameters")
    total = sum(parameter.numel() for parameter in model.parameters())
    log.line(f"{'total':>10}: {total} parameters")
    log.line(
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, precision {accelerator.mixed_precision}, "
        f"{config.optimizer}, {torch.get_num_threads()} threads a process"
    )


def main() -> None:
    """The entry of ``python -m spkid_dist.train`` and ``accelerate launch -m spkid_dist.train``."""
    from spkid_dist.cli import run_command

    run_command("train")


if __name__ == "__main__":
    main()
