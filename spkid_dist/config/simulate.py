"""The options of `spkid simulate`: a corpus, a cluster, a training, and the rates of a device."""

import math
from dataclasses import dataclass
from typing import Literal

from shards.errors import UsageError
from spkid_dist.config.checks import Options, check_context, check_fingerprints
from spkid_dist.config.choices import DEFAULT_SHUFFLE_WINDOWS, EdgeRule

SIZE_FLAGS = ("frames", "mean_frames", "utterances", "num_features", "speakers", "dtype", "block_frames", "shard_bytes")
WHOLE_FLAGS = ("nodes", "gpus", "batch_size", "hsize", "num_layers", "num_streams", "shuffle_windows")


@dataclass(frozen=True, kw_only=True)
class RateFlags(Options):
    """Rates of one process, in place of those that are measured or that the device's preset has."""

    step_overhead_us: float | None = None
    """Fixed time per step in microseconds, whatever its size."""
    compute_windows: float | None = None
    """Windows per second of forward and backward, apart from the fixed time."""
    stack_windows: float | None = None
    """Windows per second of stacking batches."""
    fill_windows: float | None = None
    """Windows per second of reading from memory, checking and laying out."""
    bus_gbytes: float | None = None
    """Gigabytes per second from the host to the device."""
    allreduce_us: float | None = None
    """Microseconds of a small all-reduce, per doubling of the number of processes."""
    first_batch_seconds: float | None = None
    """Seconds from a process with its imports done to its first batch of a small dataset."""

    def given(self) -> dict[str, float]:
        """The flags that are given, by name."""
        return {name: value for name in RateFlags.__annotations__ if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class SimulateConfig(RateFlags):
    """Predict a training on a cluster: speed, memory, time and price.

    It is arithmetic on rates that are measured here or known of a device; nothing is trained.
    """

    shards: str | None = None
    """Corpus given as a sharded dataset: its folder or URL. Otherwise give its size with the following flags."""
    fingerprint: str | None = None
    """Fingerprint that --shards must have, as `spkid info` prints it. Default: any."""
    frames: int | None = None
    """Frames of the corpus. Give two of --frames, --utterances and --mean_frames."""
    utterances: int | None = None
    """Utterances of the corpus."""
    mean_frames: float | None = None
    """Average frames per utterance."""
    num_features: int | None = None
    """Features per frame. Default: 20."""
    speakers: int | None = None
    """Number of speakers, the classes of the network."""
    dtype: Literal["float32", "float16"] | None = None
    """Number format of the features in the shards. Default: float32."""
    block_frames: int | None = None
    """Frames per block. Default: 8192."""
    shard_bytes: int | None = None
    """Bytes per shard. Default: 256_000_000."""

    nodes: int = 1
    """Number of machines."""
    gpus: int = 1
    """Devices per machine, each with a process; on machines without GPUs, processes per machine."""
    network_gbits: float | None = None
    """Gigabits per second between two machines; needed for more than one."""
    store_gbytes: float | None = None
    """Gigabytes per second that one machine can read from the store. Default: no limit."""
    store_gbytes_in_all: float | None = None
    """Gigabytes per second that all machines together can read from the store. Default: only --store_gbytes limits."""
    memory_gb: float | None = None
    """Gigabytes of memory per machine. Default: memory is not compared."""
    price: float | None = None
    """Price per machine and hour."""

    in_frames: int = 21
    """Frames stacked into one window."""
    edge: EdgeRule = "valid"
    """What a window holds beyond an utterance's first and last frame."""
    batch_size: int = 1000
    """Windows per batch, over all processes together."""
    hsize: int = 100
    """Units per hidden layer."""
    num_layers: int = 3
    """Number of hidden layers."""
    num_streams: int = 64
    """Number of interleaved sequences."""
    shuffle_windows: int = DEFAULT_SHUFFLE_WINDOWS
    """Windows in memory that are shuffled together, over all processes."""

    device: Literal["here", "h100"] = "here"
    """Where the rates come from: measured on this machine in a few seconds (here), or from a data sheet (h100)."""
    json: bool = False
    """Print the JSON summary on a terminal as well. Elsewhere (a pipe, a file) it is always the last line."""

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
        check_fingerprints(self.shards, "shards", self.fingerprint)
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
