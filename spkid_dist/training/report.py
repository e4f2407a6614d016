"""Write the files that a training leaves beside its weights: statistics, curves, summary."""

import math
import platform
import socket
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from accelerate import Accelerator

from shards.files import json_bytes, write_atomic, write_json
from spkid_dist.process.versions import installed_version
from spkid_dist.training.stopwatch import Stopwatch, clock

STATISTICS_NAME = "train_stats.json"
SUMMARY_NAME = "summary.json"
PLOTS_NAME = "log_plots.png"
LEAST_SECONDS = 1e-9  # where the last run had no step to do, rates are 0


@dataclass
class TrainStatistics:
    """Loss and accuracy: `tr_*` a value a log line, `va_*` a value an epoch."""

    tr_loss: list[float] = field(default_factory=list)
    tr_acc: list[float] = field(default_factory=list)
    va_loss: list[float] = field(default_factory=list)
    va_acc: list[float] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Epochs that were trained and validated."""
        return len(self.va_loss)

    @property
    def best_epoch(self) -> int:
        """The first epoch of the lowest validation loss; -1 where none is known. One that is not finite is not known."""
        known = [loss for loss in self.va_loss if loss is not None and math.isfinite(loss)]
        return self.va_loss.index(min(known)) if known else -1

    def was_best(self, epoch: int) -> bool:
        """Whether the epoch's validation loss was the lowest when it was validated."""
        return TrainStatistics(va_loss=self.va_loss[: epoch + 1]).best_epoch == epoch

    def is_out_of_patience(self, patience: int) -> bool:
        """Whether the last `patience` epochs were not better."""
        return bool(self.epochs) and self.epochs - 1 - self.best_epoch >= patience

    def is_finished(self, epochs: int, patience: int) -> bool:
        """Whether a training of so many epochs, at most, has ended."""
        return self.epochs >= epochs or self.is_out_of_patience(patience)

    def save(self, folder: Path) -> bool:
        """Write the statistics into `folder`; returns whether there were none, or others."""
        path = folder / STATISTICS_NAME
        data = json_bytes(asdict(self))
        if path.exists() and path.read_bytes() == data:
            return False
        write_atomic(path, data)
        return True

    def plot(self, folder: Path) -> None:
        """Draw the curves into `folder`; takes half a second."""
        from spkid_dist.training.curves import draw_curves

        curves = draw_curves((self.tr_loss, self.tr_acc), (self.va_loss, self.va_acc), self.best_epoch)
        write_atomic(folder / PLOTS_NAME, curves)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a training came to, and what its last run, since it began or went on, took.

    `windows` are those of all epochs; what begins with `run_` is of the last run. Rates are in windows a second over the
    training steps, `run_waiting_share` is the share of these steps' time spent waiting for data; times are in seconds.
    `run_core_wait_share` is the share of the run that its first process waited for a core, None where the system can't tell.
    """

    save_path: str
    best_weights: str
    best_epoch: int
    va_loss: float
    va_acc: float
    epochs: int
    windows: int
    run_windows: int
    run_windows_per_second: float
    run_waiting_share: float
    run_core_wait_share: float | None
    run_training_seconds: float
    run_validation_seconds: float
    run_checkpoint_seconds: float
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        statistics: TrainStatistics,
        windows_per_epoch: int,
        watch: Stopwatch,
        save_path: Path,
        environment: dict[str, str],
    ) -> "Summary":
        """Sum up a finished training whose last run `watch` has seen in `environment`."""
        best, seconds = statistics.best_epoch, watch.seconds
        training_seconds = seconds["training"] + seconds["waiting"]
        return cls(
            save_path=str(save_path),
            best_weights=weights_name(best, best=True),
            best_epoch=best,
            va_loss=statistics.va_loss[best],
            va_acc=statistics.va_acc[best],
            epochs=statistics.epochs,
            windows=statistics.epochs * windows_per_epoch,
            run_windows=watch.windows,
            run_windows_per_second=watch.windows / max(training_seconds, LEAST_SECONDS),
            run_waiting_share=seconds["waiting"] / max(training_seconds, LEAST_SECONDS),
            run_core_wait_share=watch.core_wait.share,
            run_training_seconds=training_seconds,
            run_validation_seconds=seconds["validation"],
            run_checkpoint_seconds=seconds["checkpoints"],
            environment=environment,
        )

    def save(self, folder: Path) -> None:
        """Write the summary into `folder`."""
        write_json(folder / SUMMARY_NAME, asdict(self))

    def lines(self) -> list[str]:
        """The summary for the log; its best epoch has a line already."""
        for_a_core = "" if self.run_core_wait_share is None else f", for a core: {self.run_core_wait_share:.1%}"
        return [
            f"summary: {self.epochs} epochs, {self.windows:,} windows; in this run {self.run_windows:,} windows, "
            f"{self.run_windows_per_second:,.0f} windows/s, waiting for data: {self.run_waiting_share:.1%}{for_a_core}",
            f"summary: training {clock(self.run_training_seconds)} validation {clock(self.run_validation_seconds)} "
            f"checkpoints {clock(self.run_checkpoint_seconds)}; all files are in {self.save_path}",
        ]


def weights_name(epoch: int, best: bool) -> str:
    """The file of an epoch's weights; `best` where its validation loss was the lowest so far."""
    return f"{'bestval_' if best else ''}e{epoch}_weights.ckpt"


def environment_of(accelerator: Accelerator) -> dict[str, str]:
    """Where a training runs: versions, host, device, number of processes, and the time (UTC)."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = {package: installed_version(package) for package in ("spkid-dist", "torch", "numpy", "accelerate")}
    return {
        "python": platform.python_version(),
        **versions,
        "host": socket.gethostname(),
        "device": f"{device.type} ({name})",
        "processes": str(accelerator.num_processes),
        "threads per process": str(torch.get_num_threads()),
        "precision": str(accelerator.mixed_precision),
        "ended": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
