"""Take training steps alone: network, optimiser and engine as in `spkid train`, and nothing around them."""

import torch
from accelerate import Accelerator

from spkid_dist.config import TrainConfig
from spkid_dist.model import model_from_options, network_options
from spkid_dist.order import EpochOrder
from spkid_dist.ranks.console import RunLog
from spkid_dist.trained import options_of
from spkid_dist.training.engine import make_engine
from spkid_dist.training.enginechoice import choose_engine
from spkid_dist.training.feed import Steps
from spkid_dist.training.job import Job
from spkid_dist.training.learner import make_learner
from spkid_dist.training.preemption import StopRequest


class TrainingSteps:
    """Takes steps of a training as `config` says, on this rank's shares of the batches of `order`.

    `engine` is the name of what does them; `flops_per_window` are the operations of the matrix products.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainConfig,
        *,
        num_features: int,
        num_speakers: int,
        order: EpochOrder,
        frames_dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(config.seed)
        of_data = {"input_dim": num_features, "num_spks": num_speakers}
        options = options_of(config) | of_data
        network = model_from_options(options)
        self.flops_per_window = network_options(options).flops_per_window
        self.engine = choose_engine(config, accelerator).name
        learner = make_learner(config, accelerator, network, self.engine, order.num_windows)
        learner.model.train()
        job = Job(config=config, accelerator=accelerator, log=RunLog(shown=False), request=StopRequest())
        placed = accelerator.device.type == "cuda"
        self._engine = make_engine(self.engine, job, learner, placed=placed, frames_dtype=frames_dtype)

    def take(self, steps: Steps, step: int) -> None:
        """Take the steps; the first one's number in an epoch, `step`, says how many windows all ranks have."""
        self._engine.run(steps, 0, step)
