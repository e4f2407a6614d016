"""A training and all that it consists of."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator

from spkid_dist.config import TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.ranks.console import RunLog
from spkid_dist.training.checkpointing import Keeper
from spkid_dist.training.evaluator import Evaluator
from spkid_dist.training.folder import TrainingFolder
from spkid_dist.training.learning import Schedule
from spkid_dist.training.losses import FiniteGuard
from spkid_dist.training.preemption import Pace
from spkid_dist.training.profiling import StepProfile
from spkid_dist.training.state import TrainingState
from spkid_dist.training.step import Engine
from spkid_dist.training.steplog import StepLog
from spkid_dist.training.stopwatch import Watch


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training and all that it consists of.

    `network` is what is evaluated and saved; `model` is what the engine trains: it, or a wrapper around it.
    """

    config: TrainConfig
    folder: TrainingFolder
    accelerator: Accelerator
    log: RunLog
    model: torch.nn.Module
    network: torch.nn.Module
    engine: Engine
    schedule: Schedule
    tr_data: WindowDataset
    va_data: WindowDataset
    state: TrainingState
    guard: FiniteGuard
    keeper: Keeper
    plots: Pace
    profile: StepProfile
    evaluator: Evaluator
    watch: Watch
    step_log: StepLog

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or the last `patience` of them were not better."""
        return self.state.statistics.is_finished(self.config.epoch, self.config.patience)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the last `patience` epochs were not better."""
        return self.state.statistics.is_out_of_patience(self.config.patience)
