"""A step of the training: forward, backward and the optimiser, for a rank's share of a global batch.

Two engines do the same arithmetic. `EagerEngine` goes through accelerate's wrappers and does all that the options ask for.
`GraphEngine` (`graph`) keeps every tensor of a step in its place, so that a GPU replays the whole step as a graph, and joins
the ranks' gradients in one all-reduce.

Shapes: B windows of a rank's share, G of the global batch, C*D inputs, W ranks.
"""

import contextlib
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from shards.errors import UsageError
from spkid_dist.config import TrainConfig
from spkid_dist.training.finite import weigh
from spkid_dist.training.graph import GraphEngine
from spkid_dist.training.learning import seed_dropout, training_loss
from spkid_dist.training.step import Engine, StepParts, network_input


class EagerEngine:
    """Each operation when it comes; the ranks' gradients are joined by DistributedDataParallel."""

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts

    def step(self, x: torch.Tensor, y: torch.Tensor, epoch: int, step: int) -> None:
        """As `Engine.step`."""
        parts = self._parts
        config, accelerator, model = parts.config, parts.accelerator, parts.model
        # DDP takes the mean over ranks: times W / G it is the mean over the global batch.
        weight = accelerator.num_processes / parts.global_windows(step)
        whole_step = parts.whole_step(epoch, step)
        for group in parts.optimizer.param_groups:
            group["lr"] = parts.schedule.lr(whole_step)
        if config.dropout:
            seed_dropout(config.seed, whole_step, accelerator.process_index)
        parts.optimizer.zero_grad()
        pieces = list(zip(x.tensor_split(config.accumulation), y.tensor_split(config.accumulation), strict=True))
        for number, (x_piece, y_piece) in enumerate(pieces, start=1):  # may be empty: ranks differ in their shares
            last = number == len(pieces)
            with contextlib.nullcontext() if last else accelerator.no_sync(model):  # the ranks meet in the last one
                log_probs = model(network_input(x_piece))
                loss_sum = training_loss(log_probs, y_piece, config.label_smoothing)
                accelerator.backward(weigh(loss_sum, weight))
            parts.guard.note(loss_sum)
            parts.tally.add(log_probs, y_piece, loss_sum)
        parts.guard.check(epoch, step)
        if config.clip_grad_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
        parts.optimizer.step()


EngineName = Literal["eager", "graph"]


def choose_engine(config: TrainConfig, accelerator: Accelerator) -> EngineName:
    """``eager`` or ``graph``, as --engine says; `auto` is graph where no option hinders it.

    Raises:
        UsageError: --engine graph with an option that it can't do.
    """
    hindrance = _hindrance(config, accelerator)
    if config.engine == "graph" and hindrance:
        raise UsageError(f"--engine graph: not with {hindrance}; leave that out, or give --engine auto")
    if config.engine == "auto":
        return "eager" if hindrance else "graph"
    return config.engine


def prepare(
    engine: EngineName, accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """`model` on its device, and it and `optimizer` wrapped as the engine needs them."""
    if engine == "graph":
        return model.to(accelerator.device), optimizer
    model, optimizer = accelerator.prepare(model, optimizer)
    return model, optimizer


def make_engine(engine: EngineName, parts: StepParts) -> Engine:
    """The engine, once weights and the optimiser's state are those that training begins with."""
    return GraphEngine(parts) if engine == "graph" else EagerEngine(parts)


def _hindrance(config: TrainConfig, accelerator: Accelerator) -> str | None:
    """The option that the graph engine can't do."""
    kinds = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    for found, name in (
        (config.dropout > 0, "--dropout, which draws anew in each step"),
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
