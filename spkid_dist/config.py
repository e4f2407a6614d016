"""The options of every command: frozen dataclasses whose fields are the flags and whose field docs are the help.

What a value must be is checked once, here; what it must be together with the data is checked where the data is opened.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shards.errors import UsageError
from spkid_dist.windows import EdgeRule, check_context


def _at_least(minimum: float, **values: float) -> None:
    for name, value in values.items():
        if not value >= minimum:  # not `<`: NaN is refused too
            raise UsageError(f"--{name} {value}: expected {minimum} or more")


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """Shard feature files: write a dataset of tar shards, manifest and utterance table."""

    db_path: Path = Path("mcp")
    """folder of feature files"""
    list_file: Annotated[Path, tyro.conf.arg(name="list")] = Path("cfg/all.train")
    """utterance list, one a line, no extension"""
    spk2idx: Path = Path("cfg/spk2idx.json")
    """speaker name -> class index (JSON); made from the list, sorted, where it does not exist"""
    ext: str = "mcp"
    """extension of the feature files"""
    out: Path
    """new or empty folder for the dataset; an unfinished one of the same options is continued"""
    speaker_component: int = 2
    """which component of a list line names the speaker, counted from 1"""
    seed: int = 0
    """of the order of storage"""
    block_frames: int = 8192
    """frames of a block, the unit that is read"""
    shard_bytes: int = 256_000_000
    """size of a shard, about"""


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
        if not self.lr > 0:
            raise UsageError(f"--lr {self.lr}: expected more than 0")
        if (self.tr_shards is None) != (self.va_shards is None):
            raise UsageError("--tr_shards and --va_shards go together: give both, or neither and feature files")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score utterances with a trained model: the speaker of each, and error rates where the speakers are known."""

    db_path: Path = Path("mcp")
    """folder of feature files"""
    te_list_file: Path = Path("spk_rec.test")
    """list of the utterances to score, one a line, no extension"""
    weights_ckpt: Path
    """weights file, such as ckpt/bestval_e19_weights.ckpt"""
    log_file: Path = Path("spk_classification.log")
    """results: a line UTTERANCE<TAB>SPEAKER each"""
    train_cfg: Path = Path("ckpt/train.opts")
    """train.opts of the training that made the weights"""
    ext: str = "mcp"
    """extension of the feature files"""
    verbose: bool = False
    """print each utterance's speaker too"""
    batch_size: int = 16384
    """windows that go through the model at a time"""
    spk2idx: Path | None = None
    """speaker names, where train.opts has none: speaker name -> class index (JSON)"""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        _at_least(1, batch_size=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Make a small synthetic corpus, then shard it, train on it and score it."""

    out: Path = Path("demo")
    """folder for the corpus and the results; made anew each time"""
    seed: int = 0
    """of the corpus"""
