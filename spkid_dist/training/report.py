"""Write the files that a training leaves beside its weights: statistics, curves, summary."""

import platform
import socket
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from accelerate import Accelerator

from shards.files import write_atomic, write_json
from spkid_dist.process.versions import installed_version
from spkid_dist.trainedfolder import TrainStatistics, averaged_name, weights_name
from spkid_dist.training.stopwatch import Stopwatch, clock

SUMMARY_NAME = "summary.json"
PLOTS_NAME = "log_plots.png"
LEAST_SECONDS = 1e-9  # where the last run had no step to do, rates are 0


def plot_curves(statistics: TrainStatistics, folder: Path) -> None:
    """Draw the curves of a training into `folder`; takes half a second."""
    from spkid_dist.training.curves import draw_curves

    write_atomic(folder / PLOTS_NAME, draw_curves(statistics))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a training came to, and what its last run, since it began or went on, took.

    `va_` is of the best epoch's weights, `avg_` of the averaged ones, None where there are none; `wrong` are utterances of
    `va_utterances`. `windows` are those of all epochs; what begins with `run_` is of the last run. Rates are in windows per
    second over the training steps, `run_waiting_share` is the share of these steps' time spent waiting for data; times are in
    seconds. `run_core_wait_share` is the share of the run that its first process waited for a core, None where the system
    can't tell.
    """

    save_path: str
    best_weights: str
    best_epoch: int
    va_loss: float
    va_acc: float
    va_wrong: int | None
    va_utterances: int | None
    averaged_weights: str | None
    avg_loss: float | None
    avg_acc: float | None
    avg_wrong: int | None
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
        best, last, seconds = statistics.best_epoch, statistics.epochs - 1, watch.seconds
        found, average = statistics.figures(best), statistics.average_figures(last)
        training_seconds = seconds["training"] + seconds["waiting"]
        return cls(
            save_path=str(save_path),
            best_weights=weights_name(best, best=True),
            best_epoch=best,
            va_loss=found.loss,
            va_acc=found.accuracy,
            va_wrong=found.wrong,
            va_utterances=found.utterances,
            averaged_weights=None if average is None else averaged_name(last),
            avg_loss=None if average is None else average.loss,
            avg_acc=None if average is None else average.accuracy,
            avg_wrong=None if average is None else average.wrong,
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
        """The summary for the log, without the figures of weights."""
        for_a_core = "" if self.run_core_wait_share is None else f", for a core: {self.run_core_wait_share:.1%}"
        return [
            f"summary: {self.epochs} epochs, {self.windows:,} windows; in this run {self.run_windows:,} windows, "
            f"{self.run_windows_per_second:,.0f} windows/s, waiting for data: {self.run_waiting_share:.1%}{for_a_core}",
            f"summary: training {clock(self.run_training_seconds)} validation {clock(self.run_validation_seconds)} "
            f"checkpoints {clock(self.run_checkpoint_seconds)}; all files are in {self.save_path}",
        ]


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
