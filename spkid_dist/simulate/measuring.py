"""Measure the rates of this machine in some seconds: a real stream, real training steps, a real all-reduce.

As many processes as a node is to have, as far as this machine has cores or devices, do the same side by side, so that what they
share (cores, memory) is shared as in a training. A process measures, in this order: its first batch; stacking, out of pools
that are filled; filling; steps of its share of a batch and of an eighth of it, alone; and, when all have met, such steps with
their all-reduce.
"""

import gc
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from numpy.typing import NDArray

from shards import Layout, Utterance, convert, make_plan
from shards.errors import InputError
from shards.files import staging_folder
from shards.resources import available_cpus
from spkid_dist.config import TrainConfig
from spkid_dist.config.network import NetworkOptions
from spkid_dist.dataset import WindowDataset
from spkid_dist.measure.steps import TrainingSteps
from spkid_dist.process.allocator import keep_freed_memory
from spkid_dist.process.restoring import process_as_found
from spkid_dist.process.threads import torch_threads
from spkid_dist.ranks.launched import is_on_cpus
from spkid_dist.simulate.clusterparts import Cluster, CorpusSize, Stream
from spkid_dist.simulate.devicerates import DeviceRates, fit_step
from spkid_dist.streaming.ring import PlacedSteps, WindowRing
from spkid_dist.training.feed import OneBatch, Steps

OTHERWISE = "give --device h100, and rates by the flags"
MEASURED_BYTES = 64_000_000  # of frames: more than most caches hold
LONGEST_SECONDS = 300.0  # of measuring; a process that waits for one that has ended would wait for ever
EXIT_SECONDS = 5.0  # after its result a process has nothing more to do
MEASURED_SECONDS = 0.4  # of each rate
LEAST_CALLS = 5
DEVICE_STEPS = 10  # until a device is waited for
SMALLER_SHARE = 8  # the second size of a step is so many times smaller


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process measures: `windows` a step of its share, in `processes` that meet by a file in `folder`."""

    folder: Path
    processes: int
    windows: int
    network: NetworkOptions
    num_features: int
    in_frames: int
    num_streams: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a process found: seconds, and windows a second."""

    first_batch_seconds: float
    stack_windows_per_second: float
    fill_windows_per_second: float
    step_seconds: float
    small_step_seconds: float
    joint_step_seconds: float
    process_bytes: int


def measure_rates(corpus: CorpusSize, network: NetworkOptions, stream: Stream, cluster: Cluster) -> DeviceRates:
    """The rates of this machine for such a training. Raises InputError where a process that measures ends."""
    wanted = min(cluster.devices_per_node, _num_devices())
    processes = max(wanted, 2) if cluster.ranks > 1 else 1  # an all-reduce takes two
    with staging_folder(Path(tempfile.gettempdir()) / "spkid-simulate", mode=0o700) as folder:
        task = Task(
            folder=folder,
            processes=processes,
            windows=max(1, stream.rank_windows(cluster.ranks, corpus.num_windows)),
            network=network,
            num_features=corpus.num_features,
            in_frames=stream.in_frames,
            num_streams=max(2, stream.num_streams),
        )
        _write_dataset(task, corpus, -(-stream.shuffle_windows // cluster.ranks))
        next(iter(_open(task)))  # compiles the loops where they never ran before
        found = _run_processes(task)
    mean = {name: statistics.fmean(getattr(one, name) for one in found) for name in Measured.__annotations__}
    small = max(1, task.windows // SMALLER_SHARE), mean["small_step_seconds"]
    rounds = max(1, (processes - 1).bit_length())  # as `clustermodel` counts them
    overhead, rate = fit_step(small, (task.windows, mean["step_seconds"]))
    return DeviceRates(
        source=f"measured here, by {processes} process{'es' * (processes > 1)}",
        step_overhead_seconds=overhead,
        compute_windows_per_second=rate,
        stack_windows_per_second=mean["stack_windows_per_second"],
        fill_windows_per_second=mean["fill_windows_per_second"],
        bus_bytes_per_second=None,  # what it takes is in the filling that was measured
        allreduce_hop_seconds=max(0.0, mean["joint_step_seconds"] - mean["step_seconds"]) / rounds,
        first_batch_seconds=mean["first_batch_seconds"],
        process_bytes=round(mean["process_bytes"]),
    )


def _num_devices() -> int:
    """Devices of this machine; without a GPU, the CPUs that this process may use."""
    return available_cpus() if find_device().type == "cpu" else torch.cuda.device_count()


class RandomSource:
    """Utterances of random frames, all of the same length."""

    def __init__(self, num_frames: int, num_features: int) -> None:
        self._shape = num_frames, num_features

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The frames (T, D) of an utterance, whose key is its number."""
        return np.random.default_rng(int(utterance.key)).standard_normal(self._shape, np.float32)

    def where(self, utterance: Utterance) -> str:
        """For messages."""
        return f"utterance {utterance.key}"

    def describe(self) -> dict[str, Any]:
        """The kind of source."""
        return {"kind": "random"}


def _write_dataset(task: Task, corpus: CorpusSize, num_windows: int) -> None:
    """Shard about as many windows as a rank's pools have, but no more than `MEASURED_BYTES` of frames."""
    length = max(task.in_frames + 1, round(corpus.num_frames / corpus.num_utterances))
    value_bytes = corpus.value_bytes * corpus.num_features
    frames = min(num_windows, MEASURED_BYTES // value_bytes, corpus.num_frames)
    listed = [Utterance(f"{number}", f"spk{number % 2}") for number in range(max(2, frames // length))]
    layout = Layout(dtype="float16" if corpus.value_bytes == 2 else "float32", block_frames=corpus.block_frames)
    source = RandomSource(length, corpus.num_features)
    convert(make_plan(listed, ["spk0", "spk1"], source, layout), source, task.folder / "shards")


def _open(task: Task, world_size: int = 1, device_memory: int | None = None) -> WindowDataset:
    """The dataset, all of it in one generation of pools."""
    device = find_device()
    return WindowDataset(
        task.folder / "shards",
        in_frames=task.in_frames,
        batch_size=task.windows * world_size,
        num_streams=task.num_streams,
        shuffle_windows=2**40,
        device=None if device.type == "cpu" else device,
        device_memory=device_memory,
        reuse=True,
        rank=0,
        world_size=world_size,
    )


def _run_processes(task: Task) -> list[Measured]:
    """What each process found. Raises InputError where one ends without, or they take too long; none is left running."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(task.processes)]
    together = context.Barrier(task.processes)
    running = [context.Process(target=_send, args=(task, rank, together, pipe[1])) for rank, pipe in enumerate(pipes)]
    waiting, found = [pipe[0] for pipe in pipes], list[Measured]()
    try:
        for process, (_, sender) in zip(running, pipes, strict=True):
            process.start()
            sender.close()
        until = time.monotonic() + LONGEST_SECONDS
        while waiting:
            ready = wait(waiting, max(0.0, until - time.monotonic()))
            if not ready:
                raise InputError(f"measuring: took more than {LONGEST_SECONDS:g} s; {OTHERWISE}")
            for receiver in ready:
                assert isinstance(receiver, Connection)
                found.append(receiver.recv())
                waiting.remove(receiver)
    except EOFError:
        raise InputError(f"measuring: a process has ended without a result, killed perhaps; {OTHERWISE}") from None
    finally:
        for process in running:
            if process.pid is not None:
                process.join(EXIT_SECONDS if not waiting else 0)
                process.kill()
                process.join()
    return found


def _send(task: Task, rank: int, together: Barrier, sender: Connection) -> None:
    """Called in a process of its own."""
    sender.send(_measure(task, rank, together))
    sender.close()
    gc.collect()
    if task.processes > 1:
        torch.distributed.destroy_process_group()  # its threads may not outlast the interpreter


@torch_threads()
def _measure(task: Task, rank: int, together: Barrier) -> Measured:
    keep_freed_memory()  # as trainings do
    process_bytes = psutil.Process().memory_info().rss
    if task.processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # as launchers of several processes set it
        torch.set_num_threads(1)
    on_cpu = find_device().type == "cpu"
    if not on_cpu:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    first, stack_rate, num_windows = _measure_stacking(task)
    fill_rate = _measure_filling(task)
    steps = StepTimer(task, Accelerator(cpu=on_cpu))
    together.wait(LONGEST_SECONDS)
    alone, smaller = steps.seconds(task.windows), steps.seconds(max(1, task.windows // SMALLER_SHARE))
    joint = alone
    if task.processes > 1:
        with process_as_found():
            joint = StepTimer(task, _join(task, rank, on_cpu)).seconds(task.windows)
    return Measured(
        first_batch_seconds=max(0.0, first - num_windows / fill_rate),
        stack_windows_per_second=stack_rate,
        fill_windows_per_second=fill_rate,
        step_seconds=alone,
        small_step_seconds=smaller,
        joint_step_seconds=joint,
        process_bytes=process_bytes,
    )


def _join(task: Task, rank: int, on_cpu: bool) -> Accelerator:
    """This process as one of a launch; all of them meet."""
    world_size = str(task.processes)
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    meeting = f"file://{task.folder / 'meeting'}" + ("" if on_cpu else f"?rank={rank}&world_size={world_size}")
    timeout = timedelta(seconds=LONGEST_SECONDS)
    return Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(init_method=meeting, timeout=timeout)])


class StepTimer:
    """Times a training's steps on random windows, which lie where its batches would."""

    def __init__(self, task: Task, accelerator: Accelerator) -> None:
        config = TrainConfig(
            batch_size=task.windows * accelerator.num_processes,
            in_frames=task.in_frames,
            hsize=task.network.hsize,
            num_layers=task.network.num_layers,
        )
        self._steps = TrainingSteps(
            accelerator,
            config,
            num_features=task.num_features,
            num_speakers=task.network.num_spks,
            order=_open(task, accelerator.num_processes).order,
        )
        self._network = task.network
        self._in_frames = task.in_frames
        self._joined = accelerator.num_processes > 1
        self._device = accelerator.device

    def seconds(self, windows: int) -> float:
        """The median of several steps of as many windows; processes of a launch call it together."""
        x = torch.randn(windows, self._network.in_features, device=self._device)
        y = torch.randint(self._network.num_spks, (windows,), device=self._device)
        batch: Steps = OneBatch((x, y))
        at_once = 1
        if self._device.type != "cpu":
            at_once = DEVICE_STEPS
            batch = PlacedSteps(WindowRing.of_batch(x, y, self._in_frames), (0,), (windows,)).repeated(at_once)

        def step() -> None:
            self._steps.take(batch, 0)
            if self._device.type != "cpu":
                torch.cuda.synchronize(self._device)

        step()
        return statistics.median(seconds_of(step, self._agree)) / at_once

    def _agree(self, number: int) -> int:
        """The least of all processes' numbers: each makes as many steps."""
        if not self._joined:
            return number
        tensor = torch.tensor([number], device=self._device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MIN)
        return int(tensor)


def seconds_of(call: Callable[[], object], agree: Callable[[int], int] = lambda number: number) -> list[float]:
    """Seconds of each of several calls, over about `MEASURED_SECONDS`; `agree` may change how many there are."""
    taken: list[float] = []
    number = LEAST_CALLS
    while len(taken) < number:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
        if len(taken) == LEAST_CALLS:
            number = agree(max(LEAST_CALLS, int(MEASURED_SECONDS / statistics.fmean(taken))))
    return taken


def find_device() -> torch.device:
    """The device that a training here would have: a GPU, or the CPU where there is none or the launcher is told so."""
    return torch.device("cpu" if is_on_cpus() else "cuda")


def _measure_stacking(task: Task) -> tuple[float, float, int]:
    """Seconds to the first batch, the windows a second of further batches, and how many windows the pools have."""
    began = time.perf_counter()
    data = _open(task)
    batches = _endless(data)
    next(batches)
    first = time.perf_counter() - began
    next(batches)
    seconds = statistics.median(seconds_of(lambda: next(batches)))
    data.close()
    return first, min(task.windows, data.num_windows) / seconds, data.num_windows


def _endless(data: WindowDataset) -> Iterator[object]:
    while True:
        yield from data


def _measure_filling(task: Task) -> float:
    """Windows a second of filling pools, read from the page cache, by passing over them; half a dataset does not stay."""
    data = _open(task, world_size=2, device_memory=0)
    share = data.share.consumed_before(data.num_windows)
    stream = data.open_stream(0, 0)
    stream.skip(share)
    seconds = statistics.median(seconds_of(lambda: stream.skip(share)))
    stream.close()
    return share / seconds
