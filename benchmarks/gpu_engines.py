"""Each engine's training steps on a GPU, on a batch that stays and from the stream; and the stream alone.

    python benchmarks/gpu_engines.py steps SHARDS --cases fused:fp32:1000:100 graph:bf16:65536:100 ... [--seconds 0.6]
    python benchmarks/gpu_engines.py stream SHARDS [--seconds 1]

A case is ENGINE:PRECISION:BATCH_SIZE:HSIZE. All run in one process, as starting one takes longer than measuring. Each row is
a line of JSON as soon as it is there: windows per second, and for steps the share of the time that was spent waiting for data.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from shards.errors import SpkidError
from spkid_dist.bench.corpus import BenchCorpus
from spkid_dist.bench.train import cached_batch, endless_steps, training_steps
from spkid_dist.bench.workbench import Workbench
from spkid_dist.config.bench import BenchConfig
from spkid_dist.config.choices import DEFAULT_SHUFFLE_WINDOWS
from spkid_dist.dataset import StreamDtype, WindowDataset
from spkid_dist.measure.steps import TrainingSteps
from spkid_dist.process.replay import STEPS_A_GRAPH
from spkid_dist.ranks.accelerator import make_accelerator
from spkid_dist.training.feed import Steps
from spkid_dist.training.step import stream_dtype

RUNS = 3  # of which the middle one counts
PRECISIONS = {"fp32": "no", "tf32": "no", "bf16": "bf16"}
WARM_UP_RUNS = 3  # of a graph's steps: kernels are compiled, graphs captured
POOLS = 20  # that the data make where they do not stay on the device


def main() -> None:
    """Measure the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("steps", "stream"))
    parser.add_argument("shards", help="of the training set")
    parser.add_argument("--cases", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=0.6, help="of the runs of each case")
    options = parser.parse_args()
    if options.what == "stream":
        for row in stream_rows(options.shards, options.seconds):
            print(json.dumps(row), flush=True)
        return
    for case in options.cases:
        engine, precision, batch_size, hsize = case.split(":")
        row = {"engine": engine, "precision": precision, "batch_size": int(batch_size), "hsize": int(hsize)}
        try:
            row |= step_rates(options.shards, row, options.seconds)
        except (SpkidError, RuntimeError) as error:
            row["error"] = " ".join(str(error).split())[:300]
        print(json.dumps(row), flush=True)


def step_rates(shards: str, case: dict[str, str | int], seconds: float) -> dict[str, float]:
    """Windows per second of the steps of a case: on a batch that stays, and from the stream, with the share of waiting."""
    precision = PRECISIONS[str(case["precision"])]
    with make_accelerator(precision=precision, timeout_minutes=10.0) as accelerator:
        config = BenchConfig(
            what="train", shards=shards, engine=case["engine"], batch_size=int(case["batch_size"]),
            hsize=int(case["hsize"]), mixed_precision=precision, tf32=case["precision"] == "tf32",
        )  # fmt: skip
        corpus = BenchCorpus(shards=shards, files=None, work=Path(tempfile.gettempdir()), facts={})
        bench = Workbench(config=config, corpus=corpus, accelerator=accelerator, threads=torch.get_num_threads())
        data = open_dataset(bench, DEFAULT_SHUFFLE_WINDOWS, device_memory=None, dtype=stream_dtype(precision, "none"))
        steps = training_steps(bench, data)
        began = time.perf_counter()
        cached = cached_batch(data)
        found: dict[str, float] = {"first_steps_seconds": 0.0}
        for _ in range(WARM_UP_RUNS):
            steps.take(cached, 0)
        bench.wait()
        found["first_steps_seconds"] = time.perf_counter() - began
        found["cached"] = rate_of(lambda: _take_cached(steps, cached), bench.wait, seconds / 2)[0]
        waited = [0.0]
        streamed, share = rate_of(_streaming(steps, endless_steps(data), waited), bench.wait, seconds / 2, waited)
        data.close()
        return found | {"streamed": streamed, "waiting": share}


def open_dataset(
    bench: Workbench, shuffle_windows: int, *, device_memory: int | None, dtype: StreamDtype
) -> WindowDataset:
    """The stream as a training has it on this device."""
    return WindowDataset(
        bench.shards, in_frames=bench.config.in_frames, batch_size=bench.config.batch_size,
        shuffle_windows=shuffle_windows, device=bench.device, placed=True, device_memory=device_memory, dtype=dtype,
        reuse=True, rank=bench.rank, world_size=bench.world_size,
    )  # fmt: skip


def _take_cached(steps: TrainingSteps, cached: Steps) -> int:
    steps.take(cached, 0)
    return cached.num_windows


def _streaming(steps: TrainingSteps, numbered: Iterator[tuple[Steps, int]], waited: list[float]) -> Callable[[], int]:
    def run() -> int:
        began = time.perf_counter()
        taken, step = next(numbered)
        waited[0] += time.perf_counter() - began
        steps.take(taken, step)
        return taken.num_windows

    return run


def rate_of(
    call: Callable[[], int], wait: Callable[[], None], seconds: float, waited: list[float] | None = None
) -> tuple[float, float]:
    """Windows per second of calls, and the share of the time in `waited`: of the middle one of some runs."""
    runs = []
    for _ in range(RUNS):
        wait()
        before, began, windows = (waited or [0.0])[0], time.perf_counter(), 0
        while windows == 0 or time.perf_counter() - began < seconds / RUNS:
            windows += call()
        wait()
        taken = time.perf_counter() - began
        runs.append((windows / taken, ((waited or [0.0])[0] - before) / taken))
    return statistics.median_low(runs)


def stream_rows(shards: str, seconds: float) -> Iterator[dict[str, str | float]]:
    """Windows per second that reach the device: the whole dataset there, and pools of a twentieth of it."""
    with make_accelerator(precision="no", timeout_minutes=10.0) as accelerator:
        corpus = BenchCorpus(shards=shards, files=None, work=Path(tempfile.gettempdir()), facts={})
        for batch_size, (name, device_memory) in itertools.product((1000, 65_536), (("resident", None), ("pools", 0))):
            config = BenchConfig(what="stream", shards=shards, batch_size=batch_size)
            bench = Workbench(config=config, corpus=corpus, accelerator=accelerator, threads=torch.get_num_threads())
            whole = open_dataset(bench, DEFAULT_SHUFFLE_WINDOWS, device_memory=None, dtype="stored")
            shuffle = DEFAULT_SHUFFLE_WINDOWS if device_memory is None else max(64, whole.num_windows // POOLS)
            data = open_dataset(bench, shuffle, device_memory=device_memory, dtype="stored")
            data.next_steps(1)
            rate, _ = rate_of(lambda data=data: data.next_steps(STEPS_A_GRAPH).num_windows, bench.wait, seconds)  # type: ignore[misc]
            data.close()
            yield {"stream": name, "batch_size": batch_size, "shuffle_windows": shuffle, "windows_per_second": rate}


if __name__ == "__main__":
    main()
