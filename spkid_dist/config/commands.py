"""The options of commands that look at datasets, machines and trainings."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from shards.errors import UsageError
from shards.resources import available_cpus
from spkid_dist.config.checks import Options, at_least, check_fingerprints


@dataclass(frozen=True, kw_only=True)
class InfoConfig(Options):
    """Print what is in a dataset."""

    folder: Annotated[str, tyro.conf.Positional]
    """Folder of a dataset, or a URL for fsspec (s3://bucket/name)."""
    fingerprint: str | None = None
    """Fingerprint that the dataset must have, as an earlier `spkid info` printed it. Default: any."""
    shard_cache: Path | None = None
    """Folder for downloads of a dataset at a URL."""
    frame_shift_ms: float | None = None
    """Milliseconds between two frames, to compute hours. Default: the dataset's own (if from audio), else 10."""
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        check_fingerprints(self.folder, "folder", self.fingerprint)
        if self.frame_shift_ms is not None and not 0 < self.frame_shift_ms < math.inf:
            raise UsageError(f"--frame_shift_ms {self.frame_shift_ms}: expected a finite number, more than 0")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(Options):
    """Compare every byte of a dataset with what was written."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a dataset."""
    fingerprint: str | None = None
    """Fingerprint that the dataset must have, as `spkid info` prints it; another one is not read. Default: any."""
    workers: int = field(default_factory=available_cpus)
    """Number of shards to read at the same time. Default: one per CPU of this process."""
    quick: bool = False
    """Compare only sizes and headers."""
    json: bool = False
    """Print the JSON summary on a terminal as well. Elsewhere (a pipe, a file) it is always the last line."""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        check_fingerprints(self.folder, "folder", self.fingerprint)
        at_least(1, workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class IndexConfig(Options):
    """Rebuild a dataset's manifest and tables from its shards."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of shards."""
    workers: int = field(default_factory=available_cpus)
    """Number of shards to read at the same time. Default: one per CPU of this process."""
    json: bool = False
    """Print the JSON summary on a terminal as well. Elsewhere (a pipe, a file) it is always the last line."""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        at_least(1, workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class ResultsConfig(Options):
    """Compare the trainings below a folder in one table, the best first."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder whose subfolders are the --save_path of trainings; the table is written there as results.tsv. Or one training."""
    json: bool = False
    """Print a JSON list instead of a table."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """Write one HTML page about a training: curves, errors, options, data, speed."""

    save_path: Annotated[Path, tyro.conf.Positional]
    """Folder of the training, its --save_path."""
    out: Path | None = None
    """File for the page. Default: report.html in the training's folder."""
    score: Path | None = None
    """Figures of a scoring: the JSON file beside the results of `spkid score`. Default: the newest in the training's folder."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Options):
    """Check what a training would find: devices, network, disk, dataset.

    For several processes or machines, start it with `accelerate launch -m spkid_dist doctor` and the same flags.
    """

    shards: str | None = None
    """Dataset of `spkid shard` that every process should see: a folder or a URL."""
    fingerprint: str | None = None
    """Fingerprint that --shards must have, as `spkid info` prints it. Default: any."""
    save_path: Path = Path("ckpt")
    """Folder where a training would write its files."""
    timeout_minutes: float = 2.0
    """Minutes that a process waits for the others."""
    json: bool = False
    """Print the JSON summary on a terminal as well. Elsewhere (a pipe, a file) it is always the last line."""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        check_fingerprints(self.shards, "shards", self.fingerprint)
        if not 0 < self.timeout_minutes <= 10_000:
            raise UsageError(f"--timeout_minutes {self.timeout_minutes}: expected more than 0, up to 10000")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Options):
    """Shard, train on and score a small synthetic corpus."""

    out: Path = Path("demo")
    """Folder for the corpus and the results; replaced on each run."""
    seed: int = 0
    """Random seed of the synthetic corpus."""
