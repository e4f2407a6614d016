"""The options of every command: frozen dataclasses whose fields are the flags and whose field docs are the help.

What a value must be is checked once, here; what it must be together with the data is checked where the data is opened.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shards.errors import UsageError
from shards.sources.features import FeatureOptions
from shards.sources.registry import SOURCES
from shards.speakers import SpeakerRule, speaker_by_component, speaker_by_regex, speaker_by_tsv, speaker_by_utt2spk
from spkid_dist.windows import EdgeRule, check_context


def _num_cpus() -> int:
    return os.cpu_count() or 1


def _at_least(minimum: float, **values: float) -> None:
    for name, value in values.items():
        if not value >= minimum:  # not `<`: NaN is refused too
            raise UsageError(f"--{name} {value}: expected {minimum} or more")


@dataclass(frozen=True, kw_only=True)
class SpeakerFlags:
    """How an utterance's speaker is found; at most one of the flags is given."""

    speaker_component: int | None = None
    """which component of a list line names the speaker, counted from 1; where no flag tells: 2, or as in the training"""
    speaker_regex: str | None = None
    """regular expression on a list line; its only group, or the one named `speaker`, is the speaker"""
    speaker_tsv: Path | None = None
    """table of speakers: a line KEY<TAB>SPEAKER an utterance"""
    utt2spk: Path | None = None
    """table of speakers as Kaldi writes it: a line KEY SPEAKER an utterance"""

    def __post_init__(self) -> None:
        """Check that the flags don't contradict each other; raises UsageError."""
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

    def __post_init__(self) -> None:
        """Check the source and the flags that go with it; raises UsageError."""
        super().__post_init__()
        _at_least(1, workers=self.workers)
        if self.skip_bad and self.task is not None:
            raise UsageError(
                "--skip_bad reads the whole corpus first, so it does not go with --task; find the bad utterances with "
                "--skip_bad on one machine, and remove them from the list"
            )
        if self.append and "://" in self.out:
            raise UsageError(f"--append --out {self.out}: only a local folder is appended to; copy the dataset to one")
        if self.source not in SOURCES:
            raise UsageError(f"--source {self.source}: expected one of {', '.join(SOURCES)}")
        if self.source != "audio" and self.features != FeatureOptions():
            raise UsageError(f"--source {self.source}: the flags --features.* are for --source audio; leave them out")


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Join the shards that `spkid shard --task` made into a dataset."""

    folder: Annotated[str, tyro.conf.Positional]
    """the --out folder or URL of the tasks"""


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Print what is in a dataset."""

    folder: Annotated[Path, tyro.conf.Positional]
    """folder of a dataset"""
    frame_shift_ms: float = 10.0
    """time from one frame to the next, for the hours"""
    json: bool = False
    """print one JSON object instead"""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        if not self.frame_shift_ms > 0:
            raise UsageError(f"--frame_shift_ms {self.frame_shift_ms}: expected more than 0")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Compare every byte of a dataset with what was written, and name what is damaged."""

    folder: Annotated[Path, tyro.conf.Positional]
    """folder of a dataset"""
    workers: int = field(default_factory=_num_cpus)
    """shards that are read at a time; one a CPU where not given"""
    quick: bool = False
    """compare sizes and headers only"""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        _at_least(1, workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Rebuild a dataset's manifest and tables from its shards."""

    folder: Annotated[Path, tyro.conf.Positional]
    """folder of shards"""
    workers: int = field(default_factory=_num_cpus)
    """shards that are read at a time; one a CPU where not given"""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        _at_least(1, workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train the context-window MLP; the same as `accelerate launch -m spkid_dist.train`."""

    db_path: Path = Path("mcp")
    """folder of feature files"""
    tr_list_file: Path = Path("cfg/all.train")
    """list of the utterances to train on, one a line, no extension"""
    va_list_file: Path = Path("cfg/all.test")
    """list of the utterances to validate on"""
    ext: str = "mcp"
    """extension of the feature files"""
    spk2idx: Path = Path("cfg/spk2idx.json")
    """speaker name -> class index (JSON); made from the training list, sorted, where it does not exist"""
    batch_size: int = 1000
    """windows of a global batch, of all processes together"""
    hsize: int = 100
    """units of each hidden layer"""
    in_frames: int = 21
    """frames stacked into one input"""
    patience: int = 10
    """epochs without a better validation loss before stopping"""
    lr: float = 0.001
    """learning rate"""
    momentum: float = 0.5
    """momentum, of SGD only"""
    epoch: int = 20
    """epochs"""
    log_freq: int = 20
    """batches between log lines"""
    save_path: Path = Path("ckpt")
    """where the model goes"""

    tr_shards: Path | None = None
    """train on this dataset of `spkid shard` instead of feature files"""
    va_shards: Path | None = None
    """validate on this dataset instead of feature files"""
    cache_dir: Path = field(default_factory=lambda: Path.home() / ".cache" / "spkid-dist")
    """where feature files are sharded to, once"""
    speaker_component: int = 2
    """which component of a list line names the speaker, counted from 1"""
    optimizer: Literal["adam", "sgd"] = "adam"
    """how the weights are moved"""
    edge: EdgeRule = "valid"
    """beyond an utterance's ends: zero frames, its edge frames, or only windows that fit (valid)"""
    seed: int = 0
    """of the initial weights and the order of the windows"""
    num_streams: int = 64
    """interleaved sequences of an epoch; at least as many as processes"""
    pool_windows: int = 16384
    """windows of a stream that are shuffled at a time"""
    mixed_precision: Literal["launcher", "no", "bf16", "fp16"] = "launcher"
    """arithmetic of the matrix products; `launcher`: what accelerate launch says, else float32"""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        check_context(self.in_frames, self.edge)
        _at_least(1, batch_size=self.batch_size, hsize=self.hsize, patience=self.patience, epoch=self.epoch)
        _at_least(1, log_freq=self.log_freq, num_streams=self.num_streams, pool_windows=self.pool_windows)
        _at_least(0, momentum=self.momentum, seed=self.seed)
        if self.seed >= 2**63:
            raise UsageError(f"--seed {self.seed}: expected less than 2^63")
        if not self.lr > 0:
            raise UsageError(f"--lr {self.lr}: expected more than 0")
        if (self.tr_shards is None) != (self.va_shards is None):
            raise UsageError("--tr_shards and --va_shards go together: give both, or neither and feature files")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(SpeakerFlags):
    """Score utterances with a trained model: the speaker of each, and error rates where the speakers are known."""

    db_path: Path = Path("mcp")
    """folder of feature files, or of what else the model was trained on: audio becomes features as for the training"""
    te_list_file: Path = Path("spk_rec.test")
    """list of the utterances to score, one a line, no extension"""
    weights_ckpt: Path
    """weights file, such as ckpt/bestval_e19_weights.ckpt"""
    log_file: Path = Path("spk_classification.log")
    """results: a line UTTERANCE<TAB>SPEAKER each"""
    train_cfg: Path = Path("ckpt/train.opts")
    """train.opts of the training that made the weights"""
    ext: str = "mcp"
    """extension of the feature files; of a model trained on NumPy files or audio, theirs unless it is given"""
    verbose: bool = False
    """print each utterance's speaker too"""
    batch_size: int = 16384
    """windows that go through the model at a time"""
    spk2idx: Path | None = None
    """speaker names, where train.opts has none: speaker name -> class index (JSON)"""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        _at_least(1, batch_size=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Make a small synthetic corpus, then shard it, train on it and score it."""

    out: Path = Path("demo")
    """folder for the corpus and the results; made anew each time"""
    seed: int = 0
    """of the corpus"""
