"""Validate networks on a whole set, all in one pass; on a GPU by graphs of many steps, as in training.

Shapes: B windows of a rank's share, C*D inputs, K speakers.
"""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch.nn import functional

from spkid_dist.dataset import WindowDataset
from spkid_dist.process.replay import Replay
from spkid_dist.streaming.ring import PlacedSteps, WindowRing
from spkid_dist.trainedfolder import Figures
from spkid_dist.training.feed import Feed, Steps
from spkid_dist.training.losses import Tally
from spkid_dist.training.step import network_input
from spkid_dist.training.steptable import StepTable
from spkid_dist.training.utterances import DeviceUtterances, OpenUtterances, UtteranceErrors, UtteranceTable


class Evaluator:
    """Evaluates networks on `data`, whose batches have ids; weights may change in between, but not their addresses."""

    def __init__(self, accelerator: Accelerator, networks: Sequence[torch.nn.Module], data: WindowDataset) -> None:
        self._accelerator = accelerator
        self._data = data
        self._utterances = UtteranceTable.of(data)
        num_classes, device = len(data.speakers), accelerator.device
        self._on_device = data.is_placed and DeviceUtterances.fit(self._utterances, num_classes, len(networks), device)
        self._judged = [
            _Judged(
                network,
                DeviceUtterances(self._utterances, num_classes, device)
                if self._on_device
                else OpenUtterances(self._utterances, num_classes),
                device,
            )
            for network in networks
        ]
        self._replay = Replay(accelerator.device)
        self._table = StepTable(accelerator.device, self._judged[0].tally.sums, data.batch_size)

    @torch.no_grad()
    def evaluate(self, count: int, after_steps: Callable[[int], None]) -> list[Figures]:
        """What is found of the first `count` networks on all windows; calls `after_steps` with each number of steps done."""
        for judged in self._judged:
            judged.network.eval()
        feed, done = Feed(self._data), 0
        while done < len(self._data):
            steps = feed.next(len(self._data) - done)
            self._take(steps, count)
            done += len(steps)
            after_steps(len(steps))
        return [judged.read(self._accelerator, self._utterances.count) for judged in self._judged[:count]]

    def _take(self, steps: Steps, count: int) -> None:
        if isinstance(steps, PlacedSteps):
            self._table.send(steps)
            step = self._step if self._on_device else self._step_without_graph
            step(steps, count)
            return
        for x, y in steps.batches():
            self._add(x, y, self._data.window_ids, count)

    def _step(self, steps: PlacedSteps, count: int) -> None:
        ring = steps.ring
        kind = (ring.version, count)
        self._replay.do_all(kind, steps.count, lambda size: self._next(ring, size, count))

    def _step_without_graph(self, steps: PlacedSteps, count: int) -> None:
        for size in steps.count:
            self._next(steps.ring, size, count)

    def _next(self, ring: WindowRing, size: int, count: int) -> None:
        """The next step of the table."""
        x, y = self._table.gather(ring, size)
        self._add(x, y, self._table.gather_ids(ring, size), count)
        self._table.cursor.add_(1)

    def _add(self, x: torch.Tensor, y: torch.Tensor, window_ids: torch.Tensor, count: int) -> None:
        for judged in self._judged[:count]:
            with self._accelerator.autocast():
                log_probs = judged.network(network_input(x))
            judged.add(log_probs.float(), y, window_ids)


class _Judged:
    """A network, and what was found of it so far."""

    def __init__(self, network: torch.nn.Module, errors: UtteranceErrors, device: torch.device) -> None:
        self.network = network
        self.tally = Tally(device)
        self._errors = errors

    def add(self, log_probs: torch.Tensor, y: torch.Tensor, window_ids: torch.Tensor) -> None:
        """Take in a batch: log_probs (B, K) float32, classes y (B,), numbers of the windows (B,)."""
        self.tally.add(log_probs, y, functional.nll_loss(log_probs, y, reduction="sum"))
        self._errors.add(log_probs, window_ids)

    def read(self, accelerator: Accelerator, utterances: int) -> Figures:
        """The figures over all ranks, and start anew; called by all."""
        loss, accuracy = self.tally.read(accelerator).means()
        wrong = self._errors.read(accelerator)
        return Figures(loss=loss, accuracy=accuracy, wrong=wrong, utterances=utterances)
