"""Measure training from the stream against the same steps on one cached batch, and those against the matrix rate.

What a training does beside its steps (log lines, validation, checkpoints) is left out. All cases share one network and
optimiser, in one process, in turn, with as many threads as a training has; one more takes the cached batch's steps with one
thread, which tells whether the threads help or wait for one another. A run is an epoch, or as much of it as takes some seconds.
"""

import itertools
import math
import time
from collections.abc import Iterator

from spkid_dist.bench.limits import matrix_case
from spkid_dist.bench.rows import ALONE, CACHED, TRAIN, Findings, make_row, middle
from spkid_dist.bench.stream import on_threads, open_stream, run_windows
from spkid_dist.bench.timetable import LONGEST_SECONDS, RUN_SECONDS
from spkid_dist.bench.workbench import Case, Workbench
from spkid_dist.config import TrainConfig
from spkid_dist.config.choices import DEFAULT_SHUFFLE_WINDOWS
from spkid_dist.dataset import WindowDataset
from spkid_dist.measure.steps import TrainingSteps
from spkid_dist.process.replay import STEPS_A_GRAPH
from spkid_dist.training.feed import Feed, OneBatch, Steps
from spkid_dist.training.step import stream_dtype

STREAMED, MATRIX = "training from the stream", "matrix products"
PILOT_STEPS = 10
ASKED_SHARE, ASKED_WAITING = 0.95, 0.03
TRAINING_OPTIONS = ("batch_size", "in_frames", "hsize", "num_layers", "mixed_precision", "engine", "tf32")
NumberedSteps = tuple[Steps, int]
KINDS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}


def measure_train(bench: Workbench) -> Findings:
    """Measure both; the notes tell what is asked: 95 % of the cached batch's rate, and less than 3 % waiting for data."""
    data = open_stream(bench, DEFAULT_SHUFFLE_WINDOWS, dtype=stream_dtype(bench.config.mixed_precision, "none"))
    steps = training_steps(bench, data)
    cached = cached_batch(data)
    count = steps_of_a_run(bench, data, steps_rate(bench, steps, cached))
    waited = WaitedStream(endless_steps(data))
    kind = KINDS[bench.config.mixed_precision]
    product = matrix_case(bench, kind)
    limit = f"{MATRIX}, {kind}"
    cases: dict[str, Case] = {
        CACHED: steps_case(bench, steps, itertools.repeat((cached, 0)), count),
        STREAMED: steps_case(bench, steps, waited, count),
        limit: lambda: product() / steps.flops_per_window,
    }
    if bench.threads > 1 and bench.device.type == "cpu":
        cases[ALONE] = on_threads(1, cases[CACHED])
    shares: list[float] = []
    cases[STREAMED] = waited.shares_of(cases[STREAMED], shares)
    rates = bench.rates(cases)
    data.close()
    rows = [
        make_row(
            TRAIN, CACHED, "windows/s", rates[CACHED], limit=(limit, rates[limit]), windows_per_unit=1.0, on_path=True
        ),
        make_row(TRAIN, STREAMED, "windows/s", rates[STREAMED], limit=(CACHED, rates[CACHED]), windows_per_unit=1.0),
    ]
    if ALONE in rates:
        rows.append(make_row(TRAIN, ALONE, "windows/s", rates[ALONE], windows_per_unit=1.0))
    share, waiting = rows[1].share or 0.0, middle(shares[1:])
    notes = [
        f"training from the stream: {share:.1%} of the rate on a cached batch (asked: {ASKED_SHARE:.0%} or more)",
        f"training steps: engine {steps.engine}, {steps.flops_per_window:,.0f} operations per window",
        f"waiting for data: {waiting:.1%} of the training's time (asked: less than {ASKED_WAITING:.0%})",
    ]
    figures = {"rates": rates, "waiting": shares[1:], "flops_per_window": steps.flops_per_window}
    return Findings(rows=rows, notes=notes, figures=figures)


def measure_streamed(bench: Workbench) -> float:
    """Windows a second of training from the stream, all ranks together: one run, after a quarter of one to warm up."""
    data = open_stream(bench, DEFAULT_SHUFFLE_WINDOWS, dtype=stream_dtype(bench.config.mixed_precision, "none"))
    steps = training_steps(bench, data)
    count = steps_of_a_run(bench, data, steps_rate(bench, steps, cached_batch(data)))
    numbered = endless_steps(data)
    steps_case(bench, steps, numbered, max(1, count // 4))()
    (rate,) = bench.once(steps_case(bench, steps, numbered, count))
    data.close()
    return rate


def pilot(bench: Workbench) -> tuple[float, int]:
    """Windows a second of a few steps, all ranks together, and the features of a frame, D. Called by all ranks."""
    data = open_stream(bench, DEFAULT_SHUFFLE_WINDOWS, dtype=stream_dtype(bench.config.mixed_precision, "none"))
    rate = steps_rate(bench, training_steps(bench, data), cached_batch(data))
    data.close()
    return rate, data.data.manifest.num_features


def steps_rate(bench: Workbench, steps: TrainingSteps, cached: Steps) -> float:
    """Windows a second of a few steps, all ranks together: about what steps take here. Called by all ranks."""
    case = steps_case(bench, steps, itertools.repeat((cached, 0)), PILOT_STEPS)
    case()
    (rate,) = bench.once(case)
    return rate


def steps_of_a_run(bench: Workbench, data: WindowDataset, rate: float) -> int:
    """Steps of a run at about `rate` windows/s: an epoch's, or --frames of it, but no more than some seconds'."""
    windows = min(run_windows(bench, data), rate * RUN_SECONDS)
    return max(1, int(windows) // bench.config.batch_size)


def training_steps(bench: Workbench, data: WindowDataset) -> TrainingSteps:
    """The steps of a training on `data` with the options of the benchmark."""
    options = {name: getattr(bench.config, name) for name in TRAINING_OPTIONS}
    manifest = data.data.manifest
    return TrainingSteps(
        bench.accelerator,
        TrainConfig(**options),
        num_features=manifest.num_features,
        num_speakers=len(manifest.speakers),
        order=data.order,
        frames_dtype=data.frames_dtype,
    )


class WaitedStream(Iterator[NumberedSteps]):
    """Steps, and the seconds that taking them took."""

    def __init__(self, steps: Iterator[NumberedSteps]) -> None:
        self._steps = steps
        self._seconds = 0.0

    def __next__(self) -> NumberedSteps:
        began = time.perf_counter()
        steps = next(self._steps)
        self._seconds += time.perf_counter() - began
        return steps

    def shares_of(self, case: Case, shares: list[float]) -> Case:
        """The case, each of whose runs adds to `shares` the share of its time that was spent here."""

        def run() -> float:
            began, before = time.perf_counter(), self._seconds
            amount = case()
            shares.append((self._seconds - before) / (time.perf_counter() - began))
            return amount

        return run


def cached_batch(data: WindowDataset) -> Steps:
    """This rank's share of the first batch, which stays where it is: once, or on a device as many steps as one graph has."""
    if data.is_placed:
        return data.next_steps(1).repeated(STEPS_A_GRAPH)
    x, y = (tensor.clone() for tensor in next(iter(data)))
    data.set_epoch(0)
    return OneBatch((x, y))


def endless_steps(data: WindowDataset) -> Iterator[NumberedSteps]:
    """The steps of epoch after epoch, as a training takes them, with the number of each first one in its epoch."""
    while True:
        feed, step = Feed(data), 0
        while step < len(data):
            taken = feed.next(len(data) - step)
            yield taken, step
            step += len(taken)


def steps_case(bench: Workbench, steps: TrainingSteps, numbered: Iterator[NumberedSteps], count: int) -> Case:
    """So many steps, or a few more, each with its number in the epoch; the windows of this rank.

    One rank alone ends earlier where they take much longer than they should; several must all take as many.
    """
    longest = LONGEST_SECONDS if bench.world_size == 1 else math.inf

    def run() -> float:
        taken = windows = 0
        end = time.perf_counter() + longest
        while taken < count:
            work, step = next(numbered)
            steps.take(work, step)
            taken, windows = taken + len(work), windows + work.num_windows
            if time.perf_counter() > end:
                break
        bench.wait()
        return windows

    return run
