"""Hold what a process of a training has from start to end, and the data that it trains and validates on."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from spkid_dist.config import TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.ranks.console import RunLog
from spkid_dist.trained import training_id
from spkid_dist.training.preemption import StopRequest


@dataclass(frozen=True, kw_only=True)
class Job:
    """This process's part in a training: what it was asked for, its place among the ranks, its log, requests to stop."""

    config: TrainConfig
    accelerator: Accelerator
    log: RunLog
    request: StopRequest


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """This rank's streams of the training set and the validation set."""

    training: WindowDataset
    validation: WindowDataset

    @property
    def fingerprints(self) -> dict[str, str]:
        """What a training that goes on must be on as well: name of the set -> fingerprint."""
        return {
            "training set": self.training.data.fingerprint,
            "validation set": self.validation.data.fingerprint,
        }

    @property
    def options(self) -> dict[str, Any]:
        """What `train.opts` has besides the options of the command."""
        manifest = self.training.data.manifest
        return {
            "input_dim": manifest.num_features,
            "num_spks": len(manifest.speakers),
            "speakers": manifest.speakers,
            "source": manifest.source,
            "tr_fingerprint": self.training.data.fingerprint,
            "tr_keys": self.training.windows.key_sum(),
        }

    def training_id(self, options: dict[str, Any]) -> str:
        """The name of the training on these data with these options of the command, as JSON has them."""
        return training_id(options, self.fingerprints | {"selection": self.training.identity["selection"]})

    @contextmanager
    def closed_at_end(self) -> Iterator[None]:
        """Close both streams when the block is left."""
        with closing(self.training), closing(self.validation):
            yield
