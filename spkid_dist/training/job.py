"""Hold what a process of a training has from start to end, and the data that it trains and validates on."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from shards.errors import InputError
from spkid_dist.config import TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.ranks.console import RunLog
from spkid_dist.ranks.shardcache import CacheUse
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
    """This rank's streams of the training set and the validation set, and its uses of the cache where they lie there."""

    training: WindowDataset
    validation: WindowDataset
    cached: tuple[CacheUse, ...] = ()

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
        """Close both streams when the block is left. Where damage was found in the cache, the next run makes it anew.

        Raises:
            InputError: that of the block; where it is about the cache, it says so.
        """
        with ExitStack() as stack:
            for use in self.cached:
                stack.callback(use.close)
            stack.enter_context(closing(self.training))
            stack.enter_context(closing(self.validation))
            try:
                yield
            except InputError as error:
                damaged = [use for use in self.cached if use.is_about(error)]
                if not damaged:
                    raise
                explained = InputError(f"{error}; {damaged[0].mark_damaged(str(error))}")
                explained.everywhere = error.everywhere
                raise explained from None
            finally:
                self._mark_passed_over()

    def _mark_passed_over(self) -> None:
        """Have damaged blocks of the training set that were passed over made anew, too."""
        bad = next(iter(self.training.bad_blocks.values()), None)
        if bad is not None and self.cached:
            self.cached[0].mark_damaged(bad)
