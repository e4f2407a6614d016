"""What goes before a training: sharding, merging, looking, verifying."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shards.errors import UsageError
from shards.sources.features import FeatureOptions
from shards.sources.registry import SOURCES
from shards.speakers import SpeakerRule, speaker_by_component, speaker_by_regex, speaker_by_tsv, speaker_by_utt2spk
from spkid_dist.config.checks import Options, at_least
from spkid_dist.cpus import available_cpus


@dataclass(frozen=True, kw_only=True)
class SpeakerFlags(Options):
    """How an utterance's speaker is found; at most one of the flags is given."""

    speaker_component: int | None = None
    """which component of a list line names the speaker, from 1; not given: as in the dataset or training that is used, or 2"""
    speaker_regex: str | None = None
    """regular expression on a list line; its only group, or the one named `speaker`, is the speaker"""
    speaker_tsv: Path | None = None
    """table of speakers: a line KEY<TAB>SPEAKER an utterance"""
    utt2spk: Path | None = None
    """table of speakers as Kaldi writes it: a line KEY SPEAKER an utterance"""

    def __post_init__(self) -> None:
        """Check that the flags don't contradict each other; raises UsageError."""
        super().__post_init__()
        given = [f"--{name}" for name in SpeakerFlags.__annotations__ if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)}: each names the speakers another way; give one of them")

    def speaker_rule(self) -> SpeakerRule | None:
        """The rule that a flag asks for; None where none is given.

        Raises:
            InputError: a table is missing or damaged.
            UsageError: the flag's value can't be.
        """
        if self.speaker_component is not None:
            return speaker_by_component(self.speaker_component)
        if self.speaker_regex is not None:
            return speaker_by_regex(self.speaker_regex)
        if self.speaker_tsv is not None:
            return speaker_by_tsv(self.speaker_tsv)
        return None if self.utt2spk is None else speaker_by_utt2spk(self.utt2spk)


@dataclass(frozen=True, kw_only=True)
class SlurmFlags(Options):
    """How the tasks of --slurm_array are submitted."""

    cluster: Literal["slurm", "local"] = "slurm"
    """local: processes of this machine instead, to try it; sbatch's options mean nothing to them"""
    partition: str | None = None
    """partition of the tasks; not given: Slurm's default"""
    timeout_min: int = 240
    """minutes that a task may take"""
    mem_gb: float | None = None
    """memory of a task; not given: Slurm's default"""
    sbatch: tuple[str, ...] = ()
    """more options of sbatch, as NAME=VALUE, such as account=speech qos=long"""
    log_dir: Path = Path("slurm_logs")
    """folder of the tasks' logs and results, which all machines see"""

    def __post_init__(self) -> None:
        """Check the values; raises UsageError."""
        super().__post_init__()
        at_least(1, **{"slurm.timeout_min": self.timeout_min})
        if self.mem_gb is not None and not 0 < self.mem_gb < float("inf"):
            raise UsageError(f"--slurm.mem_gb {self.mem_gb}: expected more than 0")
        for option in self.sbatch:
            if not re.fullmatch(r"[a-z][a-z-]*=.+", option):
                raise UsageError(f"--slurm.sbatch {option}: expected NAME=VALUE, such as qos=long")

    def sbatch_options(self) -> dict[str, str]:
        """Options of sbatch by name, besides time, memory and CPUs."""
        partition = {} if self.partition is None else {"partition": self.partition}
        return partition | dict(option.split("=", 1) for option in self.sbatch)


@dataclass(frozen=True, kw_only=True)
class ShardConfig(SpeakerFlags):
    """Shard features or audio: write a dataset of tar shards, manifest and utterance table."""

    db_path: Path = Path("mcp")
    """folder of the files, or Kaldi data folder"""
    source: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(SOURCES) + "}")] = "fmatrix"
    """what the files are; audio becomes features, as --features.* say"""
    list_file: Annotated[Path | None, tyro.conf.arg(name="list")] = None
    """utterance list, one a line, no extension; not given: cfg/all.train, or all of a Kaldi folder's feats.scp"""
    spk2idx: Path = Path("cfg/spk2idx.json")
    """speaker name -> class index (JSON); made from the list, sorted, where it does not exist"""
    ext: str | None = None
    """extension of the files; not given: the usual one of the source, such as mcp, npy or wav"""
    features: FeatureOptions = field(default_factory=FeatureOptions)
    """how audio becomes features"""
    out: str
    """new or empty folder, or URL that fsspec writes to (s3://bucket/name); an unfinished job of the same options goes on"""
    seed: int = 0
    """of the order of storage"""
    block_frames: int = 8192
    """frames of a block, the unit that is read"""
    shard_bytes: int = 256_000_000
    """size of a shard, about"""
    dtype: Literal["float32", "float16"] = "float32"
    """how values are stored; float16 rounds them, and the largest relative error is reported"""
    workers: int = 1
    """processes that make shards side by side; the bytes are the same for any number"""
    skip_bad: bool = False
    """leave out utterances that are missing or damaged, and list them; all are read once more for that"""
    append: bool = False
    """add the utterances to the finished dataset in --out, a local folder; its shards stay as they are, new ones follow"""
    task: str | None = None
    """i/N: only this share of the shards, of N from 0, to be joined by spkid merge; auto: as Slurm says; auto/N: Kubernetes"""
    slurm_array: int | None = None
    """submit this many tasks as a Slurm array, wait for them and join what they made"""
    slurm: SlurmFlags = field(default_factory=SlurmFlags)
    """how the array is submitted"""

    def __post_init__(self) -> None:
        """Check the source and the flags that go with it; raises UsageError."""
        super().__post_init__()
        at_least(1, workers=self.workers)
        self._check_shares()
        if self.append and "://" in self.out:
            raise UsageError(f"--append --out {self.out}: only a local folder is appended to; copy the dataset to one")
        if self.source not in SOURCES:
            raise UsageError(f"--source {self.source}: expected one of {', '.join(SOURCES)}")
        if self.source != "audio" and self.features != FeatureOptions():
            raise UsageError(f"--source {self.source}: the flags --features.* are for --source audio; leave them out")

    def _check_shares(self) -> None:
        if self.slurm_array is None and self.slurm != SlurmFlags():
            raise UsageError("--slurm.*: these flags say how --slurm_array is submitted; give it too")
        if self.slurm_array is not None:
            at_least(1, slurm_array=self.slurm_array)
        given = [f"--{name}" for name in ("task", "slurm_array") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(
                "--task and --slurm_array: the array's tasks find their shares themselves; give one of them"
            )
        if self.skip_bad and given:
            raise UsageError(
                f"--skip_bad reads the whole corpus first, so it does not go with {given[0]}; find the bad utterances with "
                "--skip_bad on one machine, and remove them from the list"
            )


@dataclass(frozen=True, kw_only=True)
class MergeConfig(Options):
    """Join the shards that `spkid shard --task` made into a dataset."""

    folder: Annotated[str, tyro.conf.Positional]
    """the --out folder or URL of the tasks"""


@dataclass(frozen=True, kw_only=True)
class InfoConfig(Options):
    """Print what is in a dataset."""

    folder: Annotated[str, tyro.conf.Positional]
    """folder of a dataset, or URL that fsspec reads (s3://bucket/name)"""
    shard_cache: Path | None = None
    """folder for what is downloaded of a dataset at a URL"""
    frame_shift_ms: float | None = None
    """time from one frame to the next, for the hours; not given: as in the dataset, which knows it of audio, else 10"""
    json: bool = False
    """print one JSON object instead"""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        if self.frame_shift_ms is not None and not 0 < self.frame_shift_ms < math.inf:
            raise UsageError(f"--frame_shift_ms {self.frame_shift_ms}: expected a finite number, more than 0")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(Options):
    """Compare every byte of a dataset with what was written, and name what is damaged."""

    folder: Annotated[Path, tyro.conf.Positional]
    """folder of a dataset"""
    workers: int = field(default_factory=available_cpus)
    """shards that are read at the same time; not given: one per CPU that this process may use"""
    quick: bool = False
    """compare sizes and headers only"""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        at_least(1, workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class IndexConfig(Options):
    """Rebuild a dataset's manifest and tables from its shards."""

    folder: Annotated[Path, tyro.conf.Positional]
    """folder of shards"""
    workers: int = field(default_factory=available_cpus)
    """shards that are read at the same time; not given: one per CPU that this process may use"""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        at_least(1, workers=self.workers)
