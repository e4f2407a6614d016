"""Average the weights of a training: over its last epochs, or exponentially over all its steps.

A constant learning rate leaves the weights moving about a minimum: their mean lies nearer to it than any of them. The mean of
the last epochs costs a training nothing but reading their files; the exponential moving average is one more operation per step.
Sources: Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, "Averaging weights leads to wider optima and better generalization",
2018 (SWA); Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", 1992.

The statistics of batch normalisation do not average: those of the averaged weights are computed anew, from the first windows of
the epoch that comes next, which are the same for any number of ranks.
"""

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import get_ema_multi_avg_fn

from shards.errors import InputError
from spkid_dist.config import TrainConfig
from spkid_dist.config.averaging import Averaging
from spkid_dist.dataset import WindowDataset
from spkid_dist.model import GlobalBatchNorm
from spkid_dist.ranks.together import by_main, share_weights
from spkid_dist.trainedfolder import TrainStatistics
from spkid_dist.training.feed import Feed
from spkid_dist.training.outputs import weights_of
from spkid_dist.training.step import network_input
from spkid_dist.weights.archive import is_like
from spkid_dist.weights.file import read_weights, state_digest

STATISTICS_WINDOWS = 2**15  # more than the some 19 batches that running statistics of momentum 0.1 rest on


class WeightAverage(ABC):
    """The average of the weights of `source`, a network on its device, as a network of its own: `network`."""

    def __init__(self, source: torch.nn.Sequential) -> None:
        self._source = source
        self.network = copy.deepcopy(source)

    def to(self, device: torch.device) -> "WeightAverage":
        """The same, on `device`."""
        self.network.to(device)
        return self

    def after_step(self) -> None:  # noqa: B027 - the mean over epochs does nothing
        """Take in the weights after a step; nothing of it waits for a device, and all tensors keep their addresses."""

    @abstractmethod
    def after_epoch(self, accelerator: Accelerator, statistics: TrainStatistics, epoch: int) -> str | None:
        """Make `network` the average after an epoch, whose weights the source has; called by all ranks.

        `statistics` are those of the epochs before it, or also of itself.

        Returns why there is no average after this epoch, None where there is one.
        """

    @abstractmethod
    def describe(self, epoch: int) -> str:
        """Of what it is the average after an epoch."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What checkpoints carry of it."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""


class EpochAverage(WeightAverage):
    """The mean of the weights after the last `epochs` epochs, in float64; of all epochs where there are fewer.

    Those of earlier epochs are read from their files in `folder`, so that they take no memory, and a resumed training has the
    same bits. Checkpoints have the files' digests.
    """

    def __init__(self, source: torch.nn.Sequential, epochs: int, folder: Path) -> None:
        super().__init__(source)
        self._epochs = epochs
        self._folder = folder
        self._digests: dict[int, str] = {}  # of the weights after the last epochs, on rank 0

    def after_epoch(self, accelerator: Accelerator, statistics: TrainStatistics, epoch: int) -> str | None:
        """As `WeightAverage.after_epoch`."""
        missing = by_main(accelerator, lambda: self._average(statistics, epoch))
        if missing is None and accelerator.num_processes > 1:
            share_weights(self.network)
        return missing

    def describe(self, epoch: int) -> str:
        """As `WeightAverage.describe`."""
        first = self._first(epoch)
        return f"epochs {first} to {epoch}" if first < epoch else f"epoch {epoch}"

    def _first(self, epoch: int) -> int:
        return max(0, epoch - self._epochs + 1)

    @torch.no_grad()
    def _average(self, statistics: TrainStatistics, epoch: int) -> str | None:
        """Set the network's weights to the mean; returns which file is missing, if one is. On rank 0."""
        self._digests[epoch] = state_digest(self._source.state_dict())
        self._digests = {one: digest for one, digest in self._digests.items() if self._first(epoch) <= one <= epoch}
        files = weights_of(statistics)
        sums = {name: weight.detach().cpu().double() for name, weight in self._source.named_parameters()}
        for earlier in range(self._first(epoch), epoch):
            path = self._folder / files[earlier]
            try:
                state = read_weights(path).state
            except InputError as error:
                return str(error).partition("; ")[0]
            if not is_like(state, self._source.state_dict()):
                return f"{path} holds no weights of this network"
            written = self._digests.get(earlier)  # checkpoints of earlier versions know none
            if written is not None and state_digest(state) != written:
                return f"{path} is not what was written there"
            for name, total in sums.items():
                total += state[name]
        for name, weight in self.network.named_parameters():
            weight.copy_(sums[name] / (epoch - self._first(epoch) + 1))
        for mine, theirs in zip(self.network.buffers(), self._source.buffers(), strict=True):
            mine.copy_(theirs)
        return None

    def state_dict(self) -> dict[str, Any]:
        """The digests of the weights that are averaged."""
        return {"digests": dict(self._digests)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._digests = dict(state["digests"])


class MovingAverage(WeightAverage):
    """The exponential moving average over all steps, from the initial weights on."""

    def __init__(self, source: torch.nn.Sequential, decay: float) -> None:
        super().__init__(source)
        self._decay = decay
        self._move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._mine, self._theirs = list(self.network.parameters()), list(source.parameters())

    def after_step(self) -> None:
        """As `WeightAverage.after_step`."""
        self._move(self._mine, self._theirs, None)

    def after_epoch(self, accelerator: Accelerator, statistics: TrainStatistics, epoch: int) -> str | None:  # noqa: ARG002
        """As `WeightAverage.after_epoch`: there always is one."""
        with torch.no_grad():
            for mine, theirs in zip(self.network.buffers(), self._source.buffers(), strict=True):
                mine.copy_(theirs)
        return None

    def describe(self, epoch: int) -> str:
        """As `WeightAverage.describe`."""
        return f"epochs 0 to {epoch} with decay {self._decay}"

    def state_dict(self) -> dict[str, Any]:
        """The average, for checkpoints."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.network.load_state_dict(state)


def make_average(config: TrainConfig, network: torch.nn.Sequential) -> WeightAverage | None:
    """What averages the weights of `network` as --average says; None where nothing does."""
    averaging = Averaging.parse(config.average)
    if averaging.kind == "none":
        return None
    if averaging.kind == "epochs":
        return EpochAverage(network, averaging.epochs, config.save_path)
    return MovingAverage(network, averaging.decay)


def is_made_of_files(average: WeightAverage | None) -> bool:
    """Whether a training can go on from a checkpoint that knows nothing of the average, as those of earlier versions."""
    return not isinstance(average, MovingAverage)


@torch.no_grad()
def compute_batch_statistics(network: torch.nn.Sequential, data: WindowDataset, accelerator: Accelerator) -> None:
    """Compute the running statistics of batch normalisation from the first windows of the epoch that `data` begins next.

    Dropout is left out, as it is where the statistics are used. Called by all ranks; the epoch begins anew afterwards.
    """
    layers = [layer for layer in network if isinstance(layer, GlobalBatchNorm)]
    if not layers:
        return
    epoch, skipped = data.epoch, data.skipped_windows
    network.eval()
    for layer in layers:
        layer.begin_statistics()
    feed, left = Feed(data), min(-(-STATISTICS_WINDOWS // data.batch_size), len(data))
    while left:
        steps = feed.next(left)
        for x, _ in steps.batches():
            with accelerator.autocast():
                network(network_input(x))
        left -= len(steps)
    for layer in layers:
        layer.end_statistics()
    data.set_epoch(epoch)
    data.skipped_windows = skipped  # they come again
