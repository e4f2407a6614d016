"""The options of `spkid bench`: what is measured, on which corpus, with which network."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shards.errors import UsageError
from shards.sources.limits import MAX_FRAMES, UtteranceLimit
from spkid_dist.config import SpeakerFlags
from spkid_dist.config.checks import check_fingerprints

What = Literal["limits", "shard", "stream", "train", "score", "resume", "scaling", "report"]


@dataclass(frozen=True, kw_only=True)
class BenchConfig(SpeakerFlags):
    """Measure every stage against this machine's limits.

    Without --shards and --db_path it makes a synthetic corpus.
    For several processes, start it with `accelerate launch -m spkid_dist bench` and the same flags.
    """

    what: Annotated[What, tyro.conf.Positional] = "report"
    """Stage to measure; `report` measures all of them, and says which is the slowest and what to change."""
    shards: str | None = None
    """Measure on this dataset of `spkid shard`: its folder, or a URL for fsspec (s3://bucket/name)."""
    fingerprint: str | None = None
    """Fingerprint that --shards must have, as `spkid info` prints it. Default: any."""
    db_path: Path | None = None
    """Measure on the feature files in this folder; beside --shards, for sharding and for scoring from files."""
    list_file: Annotated[Path | None, tyro.conf.arg(name="list")] = None
    """List of utterances below --db_path: one per line, without extension. Default: cfg/all.train."""
    spk2idx: Path = Path("cfg/spk2idx.json")
    """Speaker map (JSON) of --db_path: speaker name -> class index. Without it, the speakers of the list, sorted."""
    ext: str = "mcp"
    """Extension of the feature files."""
    max_frames: int = MAX_FRAMES
    """Most frames of an utterance in a file; a longer one is an error. Frames times features: at most 64 times this."""
    frames: int = 587_000
    """Approximate frames of the synthetic corpus; on your own corpus, about the frames of a run."""
    speakers: int = 40
    """Speakers of the synthetic corpus."""
    mean_frames: int = 250
    """Average frames per utterance of the synthetic corpus."""
    num_features: int = 20
    """Features per frame of the synthetic corpus."""
    in_frames: int = 21
    """Frames stacked into one window."""
    batch_size: int = 1000
    """Windows per batch, over all processes together."""
    hsize: int = 100
    """Units per hidden layer."""
    num_layers: int = 3
    """Number of hidden layers."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Arithmetic of the matrix products."""
    engine: Literal["auto", "eager", "graph", "fused"] = "auto"
    """What does the training steps, as in `spkid train --engine`."""
    tf32: bool = False
    """Use TF32 for float32 matrix products on a GPU, as in `spkid train --tf32`."""
    repeats: int = 5
    """Counted runs of each case, after one warm-up run; cases take turns."""
    threads: int | None = None
    """Threads per process, and sharding processes. Default: as many threads as a training uses, a process per CPU."""
    processes: int | None = None
    """For `scaling`: train with 1, 2, 4, ... up to this many processes. Default: one per GPU, or one per CPU."""
    buffer_bytes: int = 256_000_000
    """For `limits`: size of the memory that is copied and of the file that is read; larger than the processor's cache."""
    folder: Path | None = None
    """Folder for temporary files, on the disk to be measured. Default: the system's temporary folder."""
    out: Path | None = None
    """Folder for report.md and report.json, rewritten after each stage, and report.png at the end."""
    json: bool = False
    """Print the JSON summary on a terminal as well. Elsewhere (a pipe, a file) it is always the last line."""

    def __post_init__(self) -> None:
        """Check the values' ranges and what goes together; raises UsageError."""
        super().__post_init__()
        check_fingerprints(self.shards, "shards", self.fingerprint)
        UtteranceLimit(self.max_frames)
        least = {"mean_frames": 4, "buffer_bytes": 4096}
        names = ("frames", "speakers", "mean_frames", "num_features", "in_frames", "batch_size", "hsize", "num_layers")
        for name in (*names, "repeats", "threads", "processes", "buffer_bytes"):
            value = getattr(self, name)
            if value is not None and value < least.get(name, 1):
                raise UsageError(f"--{name} {value}: expected {least.get(name, 1)} or more")
        if self.db_path is None and self.list_file is not None:
            raise UsageError("--list: lists files below --db_path; give it too")
        if self.what == "shard" and self.shards is not None and self.db_path is None:
            raise UsageError("shard --shards: a dataset is sharded already; give --db_path, or neither of them")
