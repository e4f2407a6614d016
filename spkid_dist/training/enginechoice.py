"""Choose the engine of a training: the fastest one that can do all that the options ask for."""

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from shards.errors import UsageError
from spkid_dist.config import TrainConfig
from spkid_dist.training.fused.plan import fused_hindrance

OLDEST_CAPABILITY = 8, 0  # of a GPU: the first with tf32 and bfloat16 products

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


def find_hindrance(config: TrainConfig, accelerator: Accelerator) -> str | None:
    """What of this training, or of this machine, the fused engine can't do; None where it can do all."""
    kind = accelerator.device.type
    on_cpu = kind == "cpu"
    if importlib.util.find_spec("triton") is None:
        return "this installation, which lacks triton (it comes with torch's builds for GPUs)"
    if on_cpu and not _is_interpreted():
        return "a CPU"
    if kind not in ("cpu", "cuda") or (kind == "cuda" and torch.version.hip is not None):
        return f"a device of the kind {kind if torch.version.hip is None else 'hip'}: the kernels are for NVIDIA's"
    if not on_cpu and torch.cuda.get_device_capability(accelerator.device) < OLDEST_CAPABILITY:
        name = torch.cuda.get_device_name(accelerator.device)
        return f"the GPU {name}, which is older than compute capability 8.0"
    return fused_hindrance(
        activation=config.activation,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
        hsize=config.hsize,
        rows=most_rows(config, accelerator),
        mixed_precision=accelerator.mixed_precision,
        compiled=config.compile,
    )


def _is_interpreted() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


def most_rows(config: TrainConfig, accelerator: Accelerator) -> int:
    """Windows of the largest share that a rank may have of a batch: streams are dealt to ranks one by one."""
    ranks, streams = accelerator.num_processes, config.num_streams
    whole, rest = divmod(config.batch_size, streams)
    of_rank: int = -(-streams // ranks)
    return whole * of_rank + min(rest, of_rank)
