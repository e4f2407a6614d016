"""The options of `spkid bench`: what is measured, on which corpus, with which network."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shards.errors import UsageError
from spkid_dist.config import SpeakerFlags

What = Literal["limits", "shard", "stream", "train", "score", "resume", "scaling", "report"]


@dataclass(frozen=True, kw_only=True)
class BenchConfig(SpeakerFlags):
    """Measure every stage against this machine's limits; also under `accelerate launch -m spkid_dist.bench`.

    Without --shards and --db_path it makes a synthetic corpus.
    """

    what: Annotated[What, tyro.conf.Positional] = "report"
    """one stage; or all of them, the slowest one, and what to change (report)"""
    shards: str | None = None
    """measure on this dataset of `spkid shard`: its folder, or URL that fsspec reads (s3://bucket/name)"""
    db_path: Path | None = None
    """measure on the feature files below this folder; beside --shards: for sharding, and for scoring from files"""
    list_file: Annotated[Path | None, tyro.conf.arg(name="list")] = None
    """utterance list of --db_path, one a line, no extension; not given: cfg/all.train"""
    spk2idx: Path = Path("cfg/spk2idx.json")
    """speaker name -> class index (JSON) of --db_path; the list's speakers, sorted, where it does not exist"""
    ext: str = "mcp"
    """extension of the feature files"""
    frames: int = 587_000
    """frames of the synthetic corpus, about; of your own corpus a run takes about as many, and fewer on a slow machine"""
    speakers: int = 40
    """speakers of the synthetic corpus"""
    mean_frames: int = 250
    """frames of an utterance of the synthetic corpus, on average"""
    num_features: int = 20
    """features of a frame of the synthetic corpus"""
    in_frames: int = 21
    """frames stacked into one input"""
    batch_size: int = 1000
    """windows of a global batch, of all processes together"""
    hsize: int = 100
    """units of each hidden layer"""
    num_layers: int = 3
    """hidden layers"""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """arithmetic of the matrix products"""
    engine: Literal["auto", "eager", "graph", "fused"] = "auto"
    """what does the steps of a training, as `spkid train --engine`"""
    tf32: bool = False
    """use TF32 for float32 matrix products on a GPU, as `spkid train --tf32`"""
    repeats: int = 5
    """counted runs of each case, after one to warm up; cases take turns"""
    threads: int | None = None
    """threads of each process, and processes that shard; not given: as many threads as a training has
    (OMP_NUM_THREADS where it is set, else torch's choice), and one sharding process per CPU"""
    processes: int | None = None
    """scaling: trainings by 1, 2, 4, ... up to so many processes; not given: one per GPU, or one per CPU"""
    buffer_bytes: int = 256_000_000
    """limits: memory to copy, and file to read; it should be more than the processor's cache"""
    folder: Path | None = None
    """folder to work in, on the disk to be measured; not given: where the system has its temporary files"""
    out: Path | None = None
    """folder for report.md and report.json, written anew after each stage, and at the end report.png"""

    def __post_init__(self) -> None:
        """Check the values' ranges and what goes together; raises UsageError."""
        super().__post_init__()
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
