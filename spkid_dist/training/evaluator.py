"""Compute mean loss and accuracy of a network on a whole set; on a GPU by graphs of many steps, as in training.

Shapes: B windows of a rank's share, C*D inputs.
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch.nn import functional

from spkid_dist.dataset import WindowDataset
from spkid_dist.process.replay import Replay
from spkid_dist.streaming.ring import PlacedSteps, WindowRing
from spkid_dist.training.feed import Feed, Steps
from spkid_dist.training.losses import Tally
from spkid_dist.training.step import network_input
from spkid_dist.training.steptable import StepTable


class Evaluator:
    """Evaluates `network` on batches of up to `batch_size`; its weights may change in between, but not their addresses."""

    def __init__(self, accelerator: Accelerator, network: torch.nn.Module, batch_size: int) -> None:
        self._accelerator = accelerator
        self._network = network
        self._tally = Tally(accelerator.device)
        self._replay = Replay(accelerator.device)
        self._table = StepTable(accelerator.device, self._tally.sums, batch_size)

    @torch.no_grad()
    def evaluate(self, data: WindowDataset, after_steps: Callable[[int], None]) -> tuple[float, float]:
        """Mean loss and accuracy over all windows of `data`, each once; calls `after_steps` with each number of steps done."""
        self._network.eval()
        feed, done = Feed(data), 0
        while done < len(data):
            steps = feed.next(len(data) - done)
            self._take(steps)
            done += len(steps)
            after_steps(len(steps))
        return self._tally.read(self._accelerator).means()

    def _take(self, steps: Steps) -> None:
        if isinstance(steps, PlacedSteps):
            self._table.send(steps)
            self._replay.do_all(steps.ring.version, steps.count, lambda count: self._step(steps.ring, count))
            return
        for x, y in steps.batches():
            self._add(x, y)

    def _step(self, ring: WindowRing, count: int) -> None:
        self._add(*self._table.gather(ring, count))
        self._table.cursor.add_(1)

    def _add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        with self._accelerator.autocast():
            log_probs = self._network(network_input(x))
        log_probs = log_probs.float()
        self._tally.add(log_probs, y, functional.nll_loss(log_probs, y, reduction="sum"))
