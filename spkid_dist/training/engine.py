"""A step of the training: forward, backward and the optimiser, for a rank's share of a global batch.

Three engines do the same arithmetic. ``eager`` goes through accelerate's wrappers and does all that the options ask for.
``graph`` keeps every tensor of a step in its place, so that a GPU replays many steps as one graph, and joins the ranks'
gradients in one all-reduce. ``fused`` does the classic network's step in a few kernels of its own, on GPUs.

Shapes: B windows of a rank's share, G of the global batch, C*D inputs, W ranks.
"""

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from shards.errors import UsageError
from spkid_dist.config import TrainConfig
from spkid_dist.training.deviceengine import DeviceEngine
from spkid_dist.training.feed import Steps
from spkid_dist.training.fusedengine import FusedEngine, find_hindrance
from spkid_dist.training.graph import GraphEngine
from spkid_dist.training.learning import seed_dropout, training_loss
from spkid_dist.training.losses import weigh
from spkid_dist.training.step import Engine, StepParts, network_input


class EagerEngine:
    """Each operation when it comes; the ranks' gradients are joined by DistributedDataParallel."""

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts
        # accelerate's own wrapper of the optimiser serves a scaled loss; without one it only costs time.
        scaled = parts.accelerator.scaler is not None
        self._optimizer = parts.optimizer if scaled else getattr(parts.optimizer, "optimizer", parts.optimizer)
        self._backward = parts.accelerator.backward if scaled else torch.Tensor.backward

    def run(self, steps: Steps, epoch: int, first_step: int) -> None:
        """As `Engine.run`."""
        for step, (x, y) in enumerate(steps.batches(), start=first_step):
            self._step(x, y, epoch, step)

    def _step(self, x: torch.Tensor, y: torch.Tensor, epoch: int, step: int) -> None:
        parts = self._parts
        config, accelerator, model = parts.config, parts.accelerator, parts.model
        # DDP takes the mean over ranks: times W / G it is the mean over the global batch.
        weight = accelerator.num_processes / parts.global_windows(step)
        whole_step = parts.whole_step(epoch, step)
        for group in self._optimizer.param_groups:
            group["lr"] = parts.schedule.lr(whole_step)
        if config.dropout:
            seed_dropout(config.seed, whole_step, accelerator.process_index)
        self._optimizer.zero_grad()
        pieces = [(x, y)]
        if config.accumulation > 1:
            pieces = list(zip(x.tensor_split(config.accumulation), y.tensor_split(config.accumulation), strict=True))
        for number, (x_piece, y_piece) in enumerate(pieces, start=1):  # may be empty: ranks differ in their shares
            last = number == len(pieces)
            with contextlib.nullcontext() if last else accelerator.no_sync(model):  # the ranks meet in the last one
                log_probs = model(network_input(x_piece))
                loss_sum = training_loss(log_probs, y_piece, config.label_smoothing)
                self._backward(weigh(loss_sum, weight))
            parts.guard.note(loss_sum)
            parts.tally.add(log_probs, y_piece, loss_sum)
        parts.guard.check(epoch, step)
        if config.clip_grad_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
        self._optimizer.step()


EngineName = Literal["eager", "graph", "fused"]


@dataclass(frozen=True)
class EngineChoice:
    """The engine of a training; `passed_over` says which faster one can't do it, and why, or is empty."""

    name: EngineName
    passed_over: str = ""

    def __str__(self) -> str:
        """For the log."""
        return self.name + (f" ({self.passed_over})" if self.passed_over else "")


def choose_engine(config: TrainConfig, accelerator: Accelerator) -> EngineChoice:
    """The engine that --engine names; `auto` is the fastest one that can do all that the options ask for.

    Raises:
        UsageError: --engine names one that can't do that; or --tf32 has no effect here.
    """
    _check_tf32(config, accelerator)
    hindrances = {
        "fused": find_hindrance(config, accelerator) or _hindrance(config, accelerator),
        "graph": _hindrance(config, accelerator),
        "eager": None,
    }
    if config.engine != "auto":
        if hindrance := hindrances[config.engine]:
            raise UsageError(f"--engine {config.engine}: not with {hindrance}; leave that out, or give --engine auto")
        return EngineChoice(config.engine)
    if accelerator.device.type == "cpu":
        return EngineChoice("eager" if hindrances["graph"] else "graph")
    if hindrances["fused"] is None:
        return EngineChoice("fused")
    if hindrances["graph"] is None:
        return EngineChoice("graph", f"not fused: {hindrances['fused']}")
    return EngineChoice("eager", f"not graph: {hindrances['graph']}")


def _check_tf32(config: TrainConfig, accelerator: Accelerator) -> None:
    if not config.tf32:
        return
    if accelerator.device.type == "cpu":
        raise UsageError("--tf32: it is a number format of GPUs, and this training runs on CPUs; leave it out")
    if accelerator.mixed_precision != "no":
        raise UsageError(
            f"--tf32: matrix products are {accelerator.mixed_precision} by --mixed_precision; leave one of them out"
        )


def prepare(
    engine: EngineName, accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """`model` on its device, and it and `optimizer` wrapped as the engine needs them."""
    if engine != "eager":
        return model.to(accelerator.device), optimizer
    model, optimizer = accelerator.prepare(model, optimizer)
    return model, optimizer


def make_engine(engine: EngineName, parts: StepParts, *, placed: bool) -> Engine:
    """The engine, once weights and the optimiser's state are those that training begins with.

    `placed` says whether the windows lie on a device.
    """
    torch.backends.cuda.matmul.allow_tf32 = parts.config.tf32
    if engine == "fused":
        return FusedEngine(parts)
    if engine == "graph":
        return DeviceEngine(parts) if placed else GraphEngine(parts)
    return EagerEngine(parts)


def _hindrance(config: TrainConfig, accelerator: Accelerator) -> str | None:
    """The option that the graph engine can't do."""
    kinds = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    for found, name in (
        (config.dropout > 0 and accelerator.device.type == "cpu", "--dropout on a CPU"),
        (config.accumulation > 1, "--accumulation"),
        (config.compile, "--compile"),
        (accelerator.scaler is not None, "--mixed_precision fp16, whose scale is changed from step to step"),
        (
            config.batch_norm and accelerator.num_processes > 1,
            "--batch_norm on several processes, which meet inside a step",
        ),
        (accelerator.distributed_type not in kinds, f"accelerate's {accelerator.distributed_type.value}"),
    ):
        if found:
            return name
    return None
