"""The options of `spkid simulate`: a corpus, a cluster, a training, and the rates of a device."""

import math
from dataclasses import dataclass
from typing import Literal

from shards.errors import UsageError
from spkid_dist.config.checks import Options
from spkid_dist.order import DEFAULT_SHUFFLE_WINDOWS
from spkid_dist.streaming.windows import EdgeRule, check_context

SIZE_FLAGS = ("frames", "mean_frames", "utterances", "num_features", "speakers", "dtype", "block_frames", "shard_bytes")
WHOLE_FLAGS = ("nodes", "gpus", "batch_size", "hsize", "num_layers", "num_streams", "shuffle_windows")


@dataclass(frozen=True, kw_only=True)
class RateFlags(Options):
    """Rates of one process, in place of those that are measured or that the device's preset has."""

    step_overhead_us: float | None = None
    """microseconds of a step, whatever its size"""
    compute_windows: float | None = None
    """windows per second of forward and backward, beyond the overhead"""
    stack_windows: float | None = None
    """windows per second of stacking batches"""
    fill_windows: float | None = None
    """windows per second of reading from memory, checking and laying out pools"""
    bus_gbytes: float | None = None
    """gigabytes per second from the host to the device"""
    allreduce_us: float | None = None
    """microseconds of a small all-reduce, for each doubling of the processes"""
    first_batch_seconds: float | None = None
    """seconds from a process with its imports to its first batch, of a small dataset"""

    def given(self) -> dict[str, float]:
        """The flags that are given, by name."""
        return {name: value for name in RateFlags.__annotations__ if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class SimulateConfig(RateFlags):
    """Predict a training on a cluster by arithmetic: speed, memory, shuffle, time, price, and what breaks first."""

    shards: str | None = None
    """the corpus: folder or URL of a sharded dataset; or its size, by the following flags"""
    frames: int | None = None
    """frames of the corpus; it, --utterances, --mean_frames: two of the three"""
    utterances: int | None = None
    """utterances of the corpus"""
    mean_frames: float | None = None
    """frames of an utterance, on average"""
    num_features: int | None = None
    """features of a frame; 20 where not given"""
    speakers: int | None = None
    """speakers, the network's classes"""
    dtype: Literal["float32", "float16"] | None = None
    """of the features in the shards; float32 where not given"""
    block_frames: int | None = None
    """frames of a block; 8192 where not given"""
    shard_bytes: int | None = None
    """bytes of a shard; 256000000 where not given"""

    nodes: int = 1
    """machines"""
    gpus: int = 1
    """devices of a machine, each with a process; on machines without GPUs, its processes"""
    network_gbits: float | None = None
    """gigabits per second between two nodes; needed where there are several"""
    store_gbytes: float | None = None
    """gigabytes per second that one node can read of the store; not given: the store does not limit"""
    store_gbytes_in_all: float | None = None
    """gigabytes per second that all nodes together can read of the store; not given: only --store_gbytes limits"""
    memory_gb: float | None = None
    """gigabytes of memory of a node; not given: it is not compared"""
    price: float | None = None
    """price of a node for an hour"""

    in_frames: int = 21
    """frames stacked into one input"""
    edge: EdgeRule = "valid"
    """what stands beyond an utterance's first and last frame"""
    batch_size: int = 1000
    """windows per batch, of all processes together"""
    hsize: int = 100
    """units of each hidden layer"""
    num_layers: int = 3
    """hidden layers"""
    num_streams: int = 64
    """sequences that are interleaved"""
    shuffle_windows: int = DEFAULT_SHUFFLE_WINDOWS
    """windows that are in memory and shuffled at a time, of all processes together"""

    device: Literal["here", "h100"] = "here"
    """rates of a device: measured on this machine in some seconds, or by a data sheet"""

    def __post_init__(self) -> None:
        """Check the values; raises UsageError."""
        super().__post_init__()
        for name in WHOLE_FLAGS:
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: expected 1 or more")
        positive = ("network_gbits", "store_gbytes", "store_gbytes_in_all", "memory_gb", *RateFlags.__annotations__)
        for name in positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"--{name} {value}: expected more than 0, and a finite number")
        if self.price is not None and not 0 <= self.price < math.inf:
            raise UsageError(f"--price {self.price}: expected 0 or more, and a finite number")
        check_context(self.in_frames, self.edge)
        ranks = self.nodes * self.gpus
        if ranks > self.num_streams:
            raise UsageError(
                f"--num_streams {self.num_streams}: fewer than the {ranks} ranks ({self.nodes} nodes of {self.gpus}), which "
                f"share the streams out; give {ranks} or more"
            )
        if self.nodes > 1 and self.network_gbits is None:
            raise UsageError(f"--nodes {self.nodes}: how fast is the network between them? give --network_gbits")
        self._check_corpus()

    def _check_corpus(self) -> None:
        given = [f"--{name}" for name in SIZE_FLAGS if getattr(self, name) is not None]
        if self.shards is not None:
            if given:
                raise UsageError(f"--shards and {', '.join(given)}: the dataset has its size; give one or the other")
            return
        totals = [name for name in ("frames", "utterances", "mean_frames") if getattr(self, name) is not None]
        if len(totals) != 2 or self.speakers is None:
            raise UsageError(
                "a corpus is needed: --shards FOLDER, or --speakers and two of --frames, --utterances, --mean_frames "
                f"(given: {', '.join(given) or 'none'})"
            )
        for name in SIZE_FLAGS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str) and not 1 <= value < 2**60:
                raise UsageError(f"--{name} {value}: expected 1 or more, below 2^60")
