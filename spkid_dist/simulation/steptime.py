"""How long a training step takes here: a real network's forward, backward, all-reduce and optimiser, on random windows.

B windows, C*D inputs.
"""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from spkid_dist.model import model_from_options
from spkid_dist.simulation.clusterparts import Network
from spkid_dist.training.tally import Tally

MEASURED_SECONDS = 0.4  # of each rate
LEAST_CALLS = 5


class StepTimer:
    """Times steps of a network on this process's device; `joint` where the processes of a group all make one."""

    def __init__(self, network: Network, num_features: int, in_frames: int, *, joint: bool) -> None:
        options = {"input_dim": num_features, "in_frames": in_frames, "num_spks": network.outputs}
        layers = {"hsize": network.hsize, "num_layers": network.num_layers}
        self._network = network
        self._device = find_device()
        self._plain = model_from_options(options | layers).to(self._device)
        self._joint = DistributedDataParallel(self._plain) if joint else None
        self._optimizer = torch.optim.Adam(self._plain.parameters(), fused=True)
        self._last_bias = list(self._plain.parameters())[-1]
        self._tally = Tally(self._device)

    def seconds(self, windows: int, *, with_allreduce: bool = False) -> float:
        """The median of several steps of as many windows; processes of a group call it together."""
        x = torch.randn(windows, self._network.inputs)
        y = torch.randint(self._network.outputs, (windows,))
        self._step(x, y, with_allreduce)
        if self._joint is not None:
            torch.distributed.barrier()
        return statistics.median(seconds_of(lambda: self._step(x, y, with_allreduce), agree=self._agree))

    def _step(self, x: torch.Tensor, y: torch.Tensor, with_allreduce: bool) -> None:
        """A step as `spkid_dist.train` makes it, on x (B, C*D) and y (B,) of the host."""
        model = self._joint or self._plain
        self._optimizer.zero_grad()
        alone = self._joint is not None and not with_allreduce
        with self._joint.no_sync() if alone and self._joint is not None else nullcontext():
            x, y = x.to(self._device, non_blocking=True), y.to(self._device, non_blocking=True)
            log_probs = model(x)
            loss = functional.nll_loss(log_probs, y, reduction="sum")
            (loss / len(y)).backward()  # type: ignore[no-untyped-call]
        self._tally.add(log_probs, y, loss)
        assert self._last_bias.grad is not None
        finite = torch.isfinite(self._last_bias.grad.sum())
        if self._device.type == "cpu":
            finite.item()
        self._optimizer.step()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _agree(self, number: int) -> int:
        """The least of all processes' numbers: each makes as many steps."""
        if self._joint is None:
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
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return torch.device("cpu" if told or not torch.cuda.is_available() else "cuda")
