"""Training, and what is around it."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shards.errors import UsageError
from shards.stores.store import StoreOptions
from spkid_dist.config.checks import Options, at_least, from_zero_below
from spkid_dist.order import DEFAULT_SHUFFLE_WINDOWS
from spkid_dist.streaming.normalization import Normalization
from spkid_dist.streaming.windows import EdgeRule, check_context

Activation = Literal["relu", "gelu", "silu", "tanh", "leaky_relu"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "comet_ml", "clearml", "aim", "dvclive", "swanlab", "trackio"]
MOST_LAYERS = 1000


def default_cache_dir() -> Path:
    """Where `--cache_dir` is if not given, by the XDG Base Directory rules: only an absolute $XDG_CACHE_HOME counts.

    "~" stays as it is: a process without a home folder may still train on shards.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path("~/.cache")) / "spkid-dist"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
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

    tr_shards: str | None = None
    """train on this dataset of `spkid shard` instead of feature files: its folder, or URL that fsspec reads (s3://bucket/name)"""
    va_shards: str | None = None
    """validate on this dataset instead of feature files"""
    shard_cache: Path | None = None
    """folder where what is downloaded of datasets at URLs is kept, for all processes of a machine; not given: nowhere"""
    shard_cache_bytes: int = StoreOptions.cache_bytes
    """what --shard_cache may take; the longest unread goes first"""
    cache_dir: Path = field(default_factory=default_cache_dir)
    """where feature files are sharded to, once; not given: spkid-dist in $XDG_CACHE_HOME, else in ~/.cache"""
    speaker_component: int = 2
    """which component of a list line names the speaker, counted from 1"""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """how the weights are moved"""
    edge: EdgeRule = "valid"
    """beyond an utterance's ends: zero frames, its edge frames, or only windows that fit (valid)"""
    seed: int = 0
    """of the initial weights and the order of the windows"""
    num_streams: int = 64
    """interleaved sequences of an epoch; at least as many as processes"""
    shuffle_windows: int = DEFAULT_SHUFFLE_WINDOWS
    """windows in memory that are shuffled at a time, over all processes; as many again are read meanwhile"""
    device_memory: int | None = None
    """bytes on a GPU for the frames of the training set, and as many for the validation set: a set that fits is copied there
    once, and stays; not given: half of what is free when its first batch is made; 0: it never stays"""
    mixed_precision: Literal["launcher", "no", "bf16", "fp16"] = "launcher"
    """arithmetic of the matrix products; `launcher`: what accelerate launch says, else float32"""

    weight_decay: float = 0.0
    """how strongly weights are drawn to zero: apart from the gradient by adamw, as a part of it by adam and sgd"""
    schedule: Literal["constant", "step", "plateau", "cosine", "one_cycle"] = "constant"
    """the learning rate over time: step and plateau multiply it by --step_factor, cosine and one_cycle end near zero"""
    warmup: float | None = None
    """share of all batches over which the rate rises to --lr; not given: 0, and 0.3 of one_cycle"""
    step_factor: float = 0.5
    """what --schedule step and plateau multiply the rate by"""
    step_epochs: int = 3
    """of --schedule step: epochs from one step to the next; of plateau: epochs without a better validation loss"""
    clip_grad_norm: float | None = None
    """largest norm of the gradient; a longer one is scaled down to it"""
    label_smoothing: float = 0.0
    """share of the target that goes to all speakers alike; the validation loss is without"""
    num_layers: int = 3
    """hidden layers"""
    activation: Activation = "relu"
    """what follows each hidden layer"""
    dropout: float = 0.0
    """share of the hidden units that are left out of a batch at random"""
    batch_norm: bool = False
    """normalise each hidden layer over the global batch, before its activation"""
    normalize: Normalization = "none"
    """features to mean 0 and deviation 1: of the training set (global; kept with the weights) or of each utterance"""
    engine: Literal["auto", "eager", "graph", "fused"] = "auto"
    """what does the training steps: accelerate's wrappers (eager), CUDA graphs of many steps (graph; on CPUs plain calls), or
    kernels made for the classic network (fused; GPUs only); auto takes the fastest that can do what is asked for"""
    tf32: bool = False
    """use TF32 for float32 matrix products on a GPU: faster, with 3 instead of 7 decimal digits in each product"""
    compile: bool = False
    """compile the network (torch.compile): slow to start; needs a C++ compiler on CPUs, triton on GPUs"""

    on_bad_block: Literal["stop", "skip"] = "stop"
    """at a block of the training set that can't be read or is damaged: stop, or pass over its windows and count them"""
    tr_speakers: tuple[str, ...] | None = None
    """speakers of the training set to train on, by name; not given: all"""
    tr_utterances: Path | None = None
    """list of utterances of the training set to train on; not given: all"""
    balance_speakers: bool = False
    """take each speaker's utterances so often that all have about as many windows in an epoch"""

    accumulation: int = 1
    """parts in which each process takes its share of a batch, one after the other: less memory, the same gradient"""
    resume: str = "never"
    """`never`: train from the start; `auto`: go on from the last checkpoint in --save_path, if any; or a checkpoint's folder"""
    overwrite: bool = False
    """delete what an earlier training left in --save_path; without it, or --resume, such a folder is refused"""
    checkpoint_steps: int | None = None
    """batches between checkpoints; there is one at each epoch's end anyway"""
    checkpoint_minutes: float | None = None
    """minutes between checkpoints; there is one at each epoch's end anyway"""
    keep_checkpoints: int = 2
    """checkpoints that are kept, the last ones; that of the best epoch is kept besides"""
    timeout_minutes: float = 10.0
    """minutes that a process waits for the others before it ends with an error, as when the network is cut"""

    log_with: Tracker | None = None
    """give the curves to this tracker too, which its own settings tell where to (tensorboard: into --save_path)"""
    profile: int | None = None
    """record this many steps, after 3 to warm up: profile-rank{r}.json in --save_path, and the longest operators in the log"""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        check_context(self.in_frames, self.edge)
        at_least(1, batch_size=self.batch_size, hsize=self.hsize, patience=self.patience, epoch=self.epoch)
        at_least(1, log_freq=self.log_freq, num_streams=self.num_streams, shuffle_windows=self.shuffle_windows)
        at_least(1, shard_cache_bytes=self.shard_cache_bytes)
        at_least(0, momentum=self.momentum, seed=self.seed)
        if self.device_memory is not None:
            at_least(0, device_memory=self.device_memory)
        if self.seed >= 2**63:
            raise UsageError(f"--seed {self.seed}: expected less than 2^63")
        if not self.lr > 0:
            raise UsageError(f"--lr {self.lr}: expected more than 0")
        self._check_learning()
        if (self.tr_shards is None) != (self.va_shards is None):
            raise UsageError("--tr_shards and --va_shards go together: give both, or neither and feature files")
        at_least(1, accumulation=self.accumulation, keep_checkpoints=self.keep_checkpoints)
        if self.accumulation > 1 and self.batch_norm:
            raise UsageError(
                f"--accumulation {self.accumulation}: with --batch_norm a batch is normalised as a whole; leave one of them out"
            )
        if self.batch_size == 1 and self.batch_norm:
            raise UsageError(
                "--batch_size 1: with --batch_norm a batch needs a deviation; give 2 or more, or leave one out"
            )
        if self.checkpoint_steps is not None:
            at_least(1, checkpoint_steps=self.checkpoint_steps)
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
            raise UsageError(f"--checkpoint_minutes {self.checkpoint_minutes}: expected more than 0")
        if not 0 < self.timeout_minutes <= 10_000:
            raise UsageError(f"--timeout_minutes {self.timeout_minutes}: expected more than 0, up to 10000")
        if self.profile is not None:
            at_least(1, profile=self.profile)

    def _check_learning(self) -> None:
        from_zero_below(1, label_smoothing=self.label_smoothing, dropout=self.dropout, warmup=self.warmup or 0.0)
        from_zero_below(math.inf, weight_decay=self.weight_decay)
        at_least(1, num_layers=self.num_layers, step_epochs=self.step_epochs)
        if self.num_layers > MOST_LAYERS:
            raise UsageError(f"--num_layers {self.num_layers}: expected {MOST_LAYERS} or less")
        if not 0 < self.step_factor < 1:
            raise UsageError(f"--step_factor {self.step_factor}: expected more than 0 and less than 1")
        if self.clip_grad_norm is not None and not 0 < self.clip_grad_norm < math.inf:
            raise UsageError(f"--clip_grad_norm {self.clip_grad_norm}: expected a finite number above 0")


@dataclass(frozen=True, kw_only=True)
class ResultsConfig(Options):
    """Make one table of the trainings below a folder, from the best validation loss on."""

    folder: Annotated[Path, tyro.conf.Positional]
    """folder in which each folder is the --save_path of a training; the table is its results.tsv"""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Options):
    """Look at what a job would see: ranks, devices, speed between them, shards, clocks; for `accelerate launch` too."""

    shards: str | None = None
    """a dataset of `spkid shard` that every process should see; a folder, or a URL"""
    save_path: Path = Path("ckpt")
    """where the model would go"""
    timeout_minutes: float = 2.0
    """minutes that a process waits for the others"""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        if not 0 < self.timeout_minutes <= 10_000:
            raise UsageError(f"--timeout_minutes {self.timeout_minutes}: expected more than 0, up to 10000")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Options):
    """Make a small synthetic corpus, then shard it, train on it and score it."""

    out: Path = Path("demo")
    """folder for the corpus and the results; made anew each time"""
    seed: int = 0
    """of the corpus"""
