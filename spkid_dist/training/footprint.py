"""Compute the memory that a training takes, before it begins, and which option decides most of it.

Counted is what every step needs; what libraries take besides is not. Shapes: B windows of a part of a rank's share, C*D inputs,
H units of a hidden layer, K speakers, P parameters.
"""

import os
from dataclasses import dataclass

import torch

from shards.errors import UsageError
from spkid_dist.config import TrainConfig
from spkid_dist.config.averaging import Averaging
from spkid_dist.config.network import NetworkOptions
from spkid_dist.model import BYTES_A_PARAMETER
from spkid_dist.process.memory import free_memory, gigabytes

FLOAT_BYTES = 4
NETWORK, BATCH, POOLS = "network", "batch", "pools"
FLAGS = {NETWORK: "--hsize or --num_layers", BATCH: "--batch_size (or --accumulation 4)", POOLS: "--shuffle_windows"}


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that one process of a training takes: the network with what goes with it, a batch, and the pools.

    With the network go its gradient, what the optimiser keeps, and the averaged weights.

    `checkpoint` is the copy of the network's and the optimiser's state that is written, in the host's memory.
    """

    network: int
    checkpoint: int
    batch: int
    pools: int

    @property
    def remedy(self) -> str:
        """Which option to make smaller: that of the largest part."""
        parts = {NETWORK: self.network + self.checkpoint, BATCH: self.batch, POOLS: self.pools}
        return f"give a smaller {FLAGS[max(parts, key=lambda name: parts[name])]}"

    def check(self, device: torch.device, processes: int | None = None) -> None:
        """Compare with what is free: on the device, and in the host's memory, which `processes` of this machine share.

        `processes` is as the launcher says where it is None.

        Raises:
            UsageError: it is more.
        """
        processes = processes or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        on_device, on_host = self.network + self.batch, self.pools + self.checkpoint
        if device.type == "cuda":
            self._compare(on_device, int(torch.cuda.mem_get_info(device)[0]), f"the device {device} has")
            self._compare(on_host, free_memory(processes), "this process may take")
        else:
            self._compare(on_device + on_host, free_memory(processes), "this process may take")

    def _compare(self, needed: int, free: int, who: str) -> None:
        if needed > free:
            raise UsageError(
                f"this training takes at least {gigabytes(needed)} per process, but {who} {gigabytes(free)}: the network, "
                f"its gradient, its average and the optimiser's state {gigabytes(self.network)}, their checkpoint "
                f"{gigabytes(self.checkpoint)}, a batch {gigabytes(self.batch)}, the windows that are shuffled "
                f"{gigabytes(self.pools)}; {self.remedy}"
            )


def footprint(config: TrainConfig, network: NetworkOptions, *, pools: int, world_size: int) -> Footprint:
    """The memory of a training of `network`; `pools` is `WindowDataset.memory_bound`."""
    moments = {"adam": 2, "adamw": 2, "sgd": 1 if config.momentum else 0}[config.optimizer]
    averaging = Averaging.parse(config.average).kind
    parameters = network.num_parameters * BYTES_A_PARAMETER
    share = -(-config.batch_size // world_size)
    part = -(-share // config.accumulation)
    inputs = network.in_features
    # Kept for the backward pass: each layer's input and output. Of the last layer: log-probabilities and their gradient.
    activations = part * (inputs + network.num_layers * network.hsize + 2 * network.num_spks)
    return Footprint(
        network=parameters * (2 + moments + (averaging != "none")),
        checkpoint=parameters * (1 + moments + (averaging == "ema")),
        batch=FLOAT_BYTES * activations,
        pools=pools,
    )
