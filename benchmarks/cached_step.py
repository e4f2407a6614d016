"""Steps of the training on one batch that is in memory, and nothing else: no stream, no log lines, no checkpoints.

    python benchmarks/cached_step.py SHARDS [--batches 1000] [--mixed_precision no|bf16]

The network, the optimiser and the step are those of `spkid train` with its defaults. The last line is JSON: windows and seconds
of the steps after the first ones.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from spkid_dist.config import TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.engine import choose_engine, make_engine, prepare
from spkid_dist.finite import FiniteGuard
from spkid_dist.learning import Schedule, make_optimizer
from spkid_dist.model import model_from_options
from spkid_dist.report import options_of
from spkid_dist.startup import make_accelerator
from spkid_dist.step import Engine, StepParts
from spkid_dist.tally import Tally

WARM_UP = 20


def main() -> None:
    """Take so many steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="of the training set")
    parser.add_argument("--batches", type=int, default=1000, help="after the first ones")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="as that of spkid train")
    options = parser.parse_args()
    config = TrainConfig(mixed_precision=options.mixed_precision)
    accelerator = make_accelerator(config)
    data = WindowDataset(options.shards, in_frames=config.in_frames, batch_size=config.batch_size)
    x, y = (part.to(accelerator.device) for part in next(iter(data)))
    engine = training_engine(config, accelerator, data)
    take_steps(engine, x, y, WARM_UP, accelerator)
    began = time.perf_counter()
    take_steps(engine, x, y, options.batches, accelerator)
    print(json.dumps({"windows": options.batches * len(y), "seconds": time.perf_counter() - began}))


def training_engine(config: TrainConfig, accelerator: Accelerator, data: WindowDataset) -> Engine:
    """What takes the steps of a training with these options."""
    torch.manual_seed(config.seed)
    manifest, kind = data.data.manifest, choose_engine(config, accelerator)
    of_data = {"input_dim": manifest.num_features, "num_spks": len(manifest.speakers)}
    network = model_from_options(options_of(config) | of_data)
    model, optimizer = prepare(kind, accelerator, network, make_optimizer(config, network))
    model.train()
    parts = StepParts(
        config=config,
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        schedule=Schedule(config, len(data)),
        order=data.order,
        tally=Tally(accelerator.device),
        guard=FiniteGuard(accelerator, model, optimizer),
    )
    return make_engine(kind, parts)


def take_steps(engine: Engine, x: torch.Tensor, y: torch.Tensor, count: int, accelerator: Accelerator) -> None:
    """So many steps on x (B, C*D) and y (B,), to their end."""
    for _ in range(count):
        engine.step(x, y, 0, 0)
    if accelerator.device.type != "cpu":
        torch.accelerator.synchronize()


if __name__ == "__main__":
    main()
