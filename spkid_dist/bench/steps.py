"""The steps of a training, alone: network, optimiser and loss as `spkid train` makes them."""

import torch

from spkid_dist.bench.workbench import Workbench
from spkid_dist.config import TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.finite import FiniteGuard
from spkid_dist.learning import Schedule, make_optimizer, training_loss
from spkid_dist.model import model_from_options
from spkid_dist.report import options_of
from spkid_dist.tally import Tally


class TrainingSteps:
    """Takes steps of a training on this rank's shares of global batches."""

    def __init__(self, bench: Workbench, data: WindowDataset) -> None:
        config, manifest = bench.config, data.data.manifest
        options = TrainConfig(
            batch_size=config.batch_size,
            in_frames=config.in_frames,
            hsize=config.hsize,
            num_layers=config.num_layers,
            mixed_precision=config.mixed_precision,
        )
        torch.manual_seed(options.seed)
        of_data = {"input_dim": manifest.num_features, "num_spks": len(manifest.speakers)}
        model = model_from_options(options_of(options) | of_data)
        inputs = config.in_frames * manifest.num_features
        num_weights = sum(weights.numel() for weights in model.parameters() if weights.dim() == 2)
        # A product of B x n by n x m is 2Bnm operations; there are three a layer (output, and gradients of weights and of
        # inputs), but the first layer's inputs need no gradient.
        self.flops_per_window = 6.0 * num_weights - 2.0 * inputs * config.hsize
        self._accelerator, self._weight = bench.accelerator, bench.world_size / config.batch_size
        optimizer = make_optimizer(options, model)
        self._model, self._optimizer = self._accelerator.prepare(model, optimizer)
        self._model.train()
        self._guard = FiniteGuard(self._accelerator, self._model, self._optimizer)
        self._tally = Tally(bench.device)
        self._schedule, self._step = Schedule(options, len(data)), 0

    def take(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """One step on x (B, C*D) and y (B,)."""
        device = self._accelerator.device
        self._schedule.set_lr(self._optimizer, self._step)
        self._optimizer.zero_grad()
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        log_probs = self._model(x)
        loss_sum = training_loss(log_probs, y, 0.0)
        self._accelerator.backward(self._guard.weigh(loss_sum, self._weight))
        self._tally.add(log_probs, y, loss_sum)
        self._guard.before_optimizer(0, self._step)
        self._optimizer.step()
        self._step += 1
