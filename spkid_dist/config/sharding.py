"""The options of `spkid shard` and `spkid merge`."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shards.errors import UsageError
from shards.sources.featureoptions import FeatureOptions
from shards.sources.limits import MAX_FEATURES, MAX_FRAMES, UtteranceLimit
from shards.sources.registry import SOURCES, check_source
from shards.speakers import SpeakerRule, speaker_by_component, speaker_by_regex, speaker_by_tsv, speaker_by_utt2spk
from spkid_dist.config.checks import Options, at_least, check_utf8


@dataclass(frozen=True, kw_only=True)
class SpeakerFlags(Options):
    """How an utterance's speaker is found; at most one of the flags is given."""

    speaker_component: int | None = None
    """Component of a list line that names the speaker, from 1. Default: as in the dataset or training, else 2."""
    speaker_regex: str | None = None
    """Regular expression that finds the speaker in a list line, by its only group or the group named `speaker`."""
    speaker_tsv: Path | None = None
    """Table of speakers with lines KEY<TAB>SPEAKER, one per utterance."""
    utt2spk: Path | None = None
    """Table of speakers in Kaldi's format, with lines KEY SPEAKER, one per utterance."""

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
    """Where the tasks run: slurm, or local processes to try it out (these ignore the options of sbatch)."""
    partition: str | None = None
    """Slurm partition of the tasks. Default: Slurm's own."""
    timeout_min: int = 240
    """Minutes that a task may take."""
    mem_gb: float | None = None
    """Memory per task in GB. Default: Slurm's own."""
    sbatch: tuple[str, ...] = ()
    """More options for sbatch as NAME=VALUE, such as account=speech qos=long."""
    log_dir: Path = Path("slurm_logs")
    """Folder for the tasks' logs and results; all machines must see it."""

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
    """Write features or audio as a dataset of shards.

    A dataset is a folder of tar files (the shards), a manifest and a table of utterances.
    """

    db_path: Path = Path("mcp")
    """Folder of the feature or audio files, or a Kaldi data folder."""
    source: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(SOURCES) + ",MODULE:CLASS}")] = "fmatrix"
    """Kind of the files, or a class of your own that reads them. Audio becomes features as the flags --features.* say."""
    list_file: Annotated[Path | None, tyro.conf.arg(name="list")] = None
    """List of utterances: one per line, without extension. Default: cfg/all.train, or all of a Kaldi folder."""
    spk2idx: Path = Path("cfg/spk2idx.json")
    """Speaker map (JSON): speaker name -> class index. Made from the list, sorted, if it does not exist."""
    ext: str | None = None
    """Extension of the files. Default: the usual one of the source, such as mcp, npy or wav."""
    num_features: int | None = None
    """Values per frame of fmatrix files without a header: float32, little-endian, as SPTK writes. Default: the header says."""
    kaldi_cmvn: Literal["mean", "variance"] | None = None
    """Normalise by the cmvn.scp of a Kaldi folder: subtract the mean, or with variance also divide by the deviation."""
    kaldi_vad: bool = False
    """Keep only the frames that the vad.scp of a Kaldi folder calls speech."""
    features: FeatureOptions = field(default_factory=FeatureOptions)
    """How audio becomes features."""
    ffmpeg: bool = False
    """Decode audio that libsndfile does not know, such as m4a, aac and webm, with the program ffmpeg."""
    out: str
    """New or empty folder, or URL for fsspec (s3://bucket/name). An unfinished job with the same options is continued."""
    seed: int = 0
    """Random seed of the storage order."""
    block_frames: int = 8192
    """Frames per block, the unit of reading."""
    shard_bytes: int = 256_000_000
    """Approximate size of a shard in bytes."""
    dtype: Literal["float32", "float16"] = "float32"
    """Number format of the stored values. float16 rounds them; the largest relative error is reported."""
    workers: int = 1
    """Number of processes that write shards side by side; the bytes do not depend on it."""
    max_frames: int = MAX_FRAMES
    """Most frames of an utterance in a file; a longer one is an error. Frames times features: at most 64 times this."""
    skip_bad: bool = False
    """Leave out missing or damaged utterances, and list them. All files are read once more for that."""
    append: bool = False
    """Add the utterances to the finished dataset in --out, a local folder. Its shards stay; new ones follow."""
    task: str | None = None
    """Write one share of the shards: i/N (from 0; join them with spkid merge), auto (Slurm), auto/N (Kubernetes)."""
    slurm_array: int | None = None
    """Submit this many tasks as a Slurm array, wait for them, and join their shards."""
    slurm: SlurmFlags = field(default_factory=SlurmFlags)
    """How the Slurm array is submitted."""
    json: bool = False
    """Print the JSON summary on a terminal as well. Elsewhere (a pipe, a file) it is always the last line."""

    def __post_init__(self) -> None:
        """Check the source and the flags that go with it; raises UsageError."""
        super().__post_init__()
        at_least(1, workers=self.workers)
        UtteranceLimit(self.max_frames)
        check_utf8(ext=self.ext, speaker_regex=self.speaker_regex)
        self._check_shares()
        if self.append and "://" in self.out:
            raise UsageError(f"--append --out {self.out}: only a local folder is appended to; copy the dataset to one")
        check_source(self.source)
        if self.num_features is not None:
            at_least(1, num_features=self.num_features)
            if self.source != "fmatrix" or self.num_features > MAX_FEATURES:
                raise UsageError(
                    f"--num_features {self.num_features}: expected 1 to {MAX_FEATURES}, with --source fmatrix; other kinds of "
                    "file say their number of features"
                )
        if self.source != "kaldi" and (self.kaldi_cmvn is not None or self.kaldi_vad):
            raise UsageError(f"--source {self.source}: the flags --kaldi_* are for --source kaldi; leave them out")
        if self.source != "audio" and self.features != FeatureOptions():
            raise UsageError(f"--source {self.source}: the flags --features.* are for --source audio; leave them out")
        if self.source != "audio" and self.ffmpeg:
            raise UsageError(f"--source {self.source}: --ffmpeg is for --source audio; leave it out")

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
    """Folder or URL given to the tasks as --out."""
