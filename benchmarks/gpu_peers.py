"""The training step as a user writes it in plain torch, on a GPU: what the engines are compared with.

    python benchmarks/gpu_peers.py [--batch_size 1000] [--num_features 20] [--hsize 100] [--speakers 157]
        [--precision fp32|tf32|bf16] [--seconds 2] [--only loader-0 plain graphs compiled]

Random frames and labels; a window is 21 frames. Each program trains the classic network by Adam (fused) and sums its losses:

- loader-N: a map-style dataset of windows in the host's memory, a DataLoader of N workers with pinned memory
- plain: frames on the device, batches gathered there by a permutation, one operation after the other
- graphs: the same, 20 steps in one CUDA graph, with the gather in it
- compiled: the same graphs, network and loss through torch.compile

On a CPU `graphs` is the same loop without a graph, and `compiled` runs only where it is named. The last line is JSON.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

IN_FRAMES, LAYERS, LR = 21, 3, 0.001
STEPS_A_GRAPH = 20
WARM_UP_STEPS = 5
RUNS = 3  # of which the middle one counts
LOADERS = {"loader-0": 0, "loader-8": 8}
PEERS = (*LOADERS, "plain", "graphs", "compiled")
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained, and for how long."""

    batch_size: int
    num_features: int
    hsize: int
    speakers: int
    precision: str
    seconds: float
    frames: int

    @property
    def device(self) -> torch.device:
        """A GPU where there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Windows(Dataset[Batch]):
    """Windows of random frames (T, D) in memory."""

    def __init__(self, task: Task) -> None:
        draw = torch.Generator().manual_seed(0)
        self.frames = torch.randn(task.frames + IN_FRAMES, task.num_features, generator=draw)
        self.labels = torch.randint(task.speakers, (task.frames,), generator=draw)

    def __len__(self) -> int:
        """How many windows."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        """A window (C*D,) and its label."""
        return self.frames[index : index + IN_FRAMES].reshape(-1), self.labels[index]


class Trainer:
    """Network, optimiser and loss as torch's tutorials have them; `lost` sums the losses on the device."""

    def __init__(self, task: Task, *, compiled: bool = False) -> None:
        torch.manual_seed(0)
        torch.backends.cuda.matmul.allow_tf32 = task.precision == "tf32"
        widths = [IN_FRAMES * task.num_features] + [task.hsize] * LAYERS
        layers: list[nn.Module] = []
        for inputs, units in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, units), nn.ReLU()]
        self._network = nn.Sequential(*layers, nn.Linear(task.hsize, task.speakers)).to(task.device)
        on_gpu = task.device.type == "cuda"
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=LR, fused=True, capturable=on_gpu)
        self._autocast = torch.autocast(
            task.device.type, torch.bfloat16, enabled=task.precision == "bf16", cache_enabled=False
        )
        self._loss = torch.compile(self._plain_loss) if compiled else self._plain_loss
        self.lost = torch.zeros((), device=task.device)

    def _plain_loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with self._autocast:
            logits = self._network(x)
        return functional.cross_entropy(logits.float(), y)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Learn from a batch x (B, C*D), y (B,)."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(x, y)
        loss.backward()
        self._optimizer.step()
        self.lost += loss.detach()


def loader_steps(task: Task, workers: int) -> Iterator[int]:
    """Train from a DataLoader without end; yields the windows of each step."""
    trainer = Trainer(task)
    loader = DataLoader(
        Windows(task), batch_size=task.batch_size, shuffle=True, num_workers=workers, pin_memory=task.device.type == "cuda",
        persistent_workers=workers > 0, drop_last=True,
    )  # fmt: skip
    while True:
        for x, y in loader:
            trainer.step(x.to(task.device, non_blocking=True), y.to(task.device, non_blocking=True))
            yield len(y)


class Resident:
    """Frames and labels on the device, and the order of an epoch; `at` is where the next batch begins."""

    def __init__(self, task: Task) -> None:
        windows = Windows(task)
        self._batch_size = task.batch_size
        frames = windows.frames.to(task.device)
        size = (len(windows), IN_FRAMES * task.num_features)
        self._windows = frames.as_strided(size, (task.num_features, 1))
        self._labels = windows.labels.to(task.device)
        self._order = torch.randperm(len(windows), device=task.device)
        self._numbers = torch.arange(task.batch_size, device=task.device)
        self._at = torch.zeros((), dtype=torch.int64, device=task.device)

    def next(self) -> Batch:
        """The next batch of the order, round and round; nothing of it waits for the host."""
        chosen = self._order[(self._at + self._numbers) % len(self._order)]
        self._at += self._batch_size
        return self._windows.index_select(0, chosen), self._labels[chosen]


def plain_steps(task: Task) -> Iterator[int]:
    """Train on frames that lie on the device, one operation after the other."""
    trainer, data = Trainer(task), Resident(task)
    while True:
        trainer.step(*data.next())
        yield task.batch_size


def graph_steps(task: Task, *, compiled: bool = False) -> Iterator[int]:
    """The same by graphs of several steps."""
    trainer, data = Trainer(task, compiled=compiled), Resident(task)

    def steps() -> None:
        for _ in range(STEPS_A_GRAPH):
            trainer.step(*data.next())

    replay: Callable[[], None] = steps
    if task.device.type == "cuda":
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                trainer.step(*data.next())
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            steps()
        replay = graph.replay
    while True:
        replay()
        yield STEPS_A_GRAPH * task.batch_size


def start(name: str, task: Task) -> Iterator[int]:
    """The steps of a peer."""
    if name in LOADERS:
        return loader_steps(task, LOADERS[name])
    return plain_steps(task) if name == "plain" else graph_steps(task, compiled=name == "compiled")


def rate(name: str, task: Task) -> float:
    """Windows per second of a peer: the middle one of a few runs."""
    steps = start(name, task)
    for _ in range(WARM_UP_STEPS):
        next(steps)
    rates = []
    for _ in range(RUNS):
        _wait(task)
        began, windows = time.perf_counter(), 0
        while windows == 0 or time.perf_counter() - began < task.seconds / RUNS:
            windows += sum(itertools.islice(steps, STEPS_A_GRAPH))  # what is started ahead is little beside the run
            _wait(task)
        rates.append(windows / (time.perf_counter() - began))
    return statistics.median(rates)


def _wait(task: Task) -> None:
    if task.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Time the peers, one after the other; one that fails is a row with its error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=1000)
    parser.add_argument("--num_features", type=int, default=20)
    parser.add_argument("--hsize", type=int, default=100)
    parser.add_argument("--speakers", type=int, default=157)
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the runs of each peer")
    parser.add_argument("--frames", type=int, default=600_000)
    parser.add_argument("--only", nargs="+", choices=PEERS)
    options = parser.parse_args()
    chosen = options.only or [name for name in PEERS if torch.cuda.is_available() or name != "compiled"]
    task = Task(**{name: value for name, value in vars(options).items() if name != "only"})
    rows = []
    for name in chosen:
        row = {"name": name, "batch_size": task.batch_size, "precision": task.precision}
        try:
            rows.append(row | {"windows_per_second": rate(name, task)})
        except (RuntimeError, OSError, ImportError) as error:
            rows.append(row | {"error": str(error).splitlines()[0][:200]})
        print(f"{name}: {rows[-1].get('windows_per_second', rows[-1].get('error'))}", flush=True)
    print(json.dumps({"device": task.device.type, "rows": rows}))


if __name__ == "__main__":
    main()
