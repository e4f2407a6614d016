"""The options of `spkid train`."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shards.errors import UsageError
from shards.sources.limits import MAX_FRAMES, UtteranceLimit
from shards.stores.store import StoreOptions
from spkid_dist.config.averaging import Averaging
from spkid_dist.config.checks import Options, at_least, check_context, check_fingerprints, from_zero_below
from spkid_dist.config.choices import DEFAULT_SHUFFLE_WINDOWS, Activation, BestBy, EdgeRule, Normalization, Tracker

MOST_LAYERS = 1000


def default_cache_dir() -> Path:
    """Where `--cache_dir` is if not given, by the XDG Base Directory rules: only an absolute $XDG_CACHE_HOME counts.

    "~" stays as it is: a process without a home folder may still train on shards.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path("~/.cache")) / "spkid-dist"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """Train the network that tells speakers apart.

    For several processes or machines, start it with `accelerate launch -m spkid_dist.train` and the same flags.
    """

    db_path: Path = Path("mcp")
    """Folder of the feature files."""
    tr_list_file: Path = Path("cfg/all.train")
    """List of the training utterances: one per line, without extension."""
    va_list_file: Path = Path("cfg/all.test")
    """List of the validation utterances."""
    ext: str = "mcp"
    """Extension of the feature files."""
    spk2idx: Path = Path("cfg/spk2idx.json")
    """Speaker map (JSON): speaker name -> class index. Made from the training list, sorted, if it does not exist."""
    batch_size: int = 1000
    """Windows per batch, over all processes together."""
    hsize: int = 100
    """Units per hidden layer."""
    in_frames: int = 21
    """Frames stacked into one window."""
    patience: int = 10
    """Stop after this many epochs without a better one, by --best_by."""
    lr: float = 0.001
    """Learning rate."""
    momentum: float = 0.5
    """Momentum of SGD; the other optimisers ignore it."""
    epoch: int = 20
    """Number of epochs."""
    log_freq: int = 20
    """Batches between two log lines."""
    save_path: Path = Path("ckpt")
    """Folder for the weights, curves, log and checkpoints."""

    tr_shards: str | None = None
    """Train on this dataset of `spkid shard` instead of feature files: folder, or URL for fsspec (s3://bucket/name)."""
    va_shards: str | None = None
    """Validate on this dataset of `spkid shard` instead of feature files."""
    fingerprint: tuple[str, ...] | None = None
    """Fingerprint that the training set must have, and behind it that of the validation set, as `spkid info` prints them."""
    shard_cache: Path | None = None
    """Folder for downloads of datasets at URLs, shared by all processes of a machine. Default: downloads are not kept."""
    shard_cache_bytes: int = StoreOptions.cache_bytes
    """Size limit of --shard_cache; files that were not read for the longest time are removed first."""
    cache_dir: Path = field(default_factory=default_cache_dir)
    """Folder for feature files once they are sharded. Default: spkid-dist in $XDG_CACHE_HOME, else in ~/.cache."""
    cache_bytes: int = 100_000_000_000
    """Size limit of --cache_dir; datasets that no training uses, and were not used for the longest time, are removed first."""
    max_frames: int = MAX_FRAMES
    """Most frames of an utterance in a file; a longer one is an error. Frames times features: at most 64 times this."""
    speaker_component: int = 2
    """Component of a list line that names the speaker, counted from 1."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser."""
    edge: EdgeRule = "valid"
    """Windows beyond an utterance's ends: zero frames (zero), repeated edge frames (edge), or none (valid)."""
    seed: int = 0
    """Random seed for the initial weights and the window order."""
    num_streams: int = 64
    """Interleaved sequences of an epoch; at least the number of processes."""
    shuffle_windows: int = DEFAULT_SHUFFLE_WINDOWS
    """Windows in memory that are shuffled together, over all processes; as many again are being read meanwhile."""
    device_memory: int | None = None
    """GPU memory in bytes for each of the two sets; a set that fits is copied once. Default: half of what is free."""
    mixed_precision: Literal["launcher", "no", "bf16", "fp16"] = "launcher"
    """Arithmetic of the matrix products. `launcher`: what accelerate launch says, else float32."""

    weight_decay: float = 0.0
    """Strength of weight decay; adamw applies it apart from the gradient, adam and sgd as part of the gradient."""
    schedule: Literal["constant", "step", "plateau", "cosine", "one_cycle"] = "constant"
    """Learning rate over time: step and plateau multiply it by --step_factor, cosine and one_cycle end near zero."""
    warmup: float | None = None
    """Share of all batches during which the rate rises to --lr. Default: 0, and 0.3 for one_cycle."""
    step_factor: float = 0.5
    """Factor by which --schedule step and plateau multiply the learning rate."""
    step_epochs: int = 3
    """Epochs between two steps of --schedule step; for plateau, epochs without a better one, by --best_by."""
    clip_grad_norm: float | None = None
    """Largest norm of the gradient; a longer gradient is scaled down to it."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all speakers. The validation loss is computed without it."""
    num_layers: int = 3
    """Number of hidden layers."""
    activation: Activation = "relu"
    """Activation function after each hidden layer."""
    dropout: float = 0.0
    """Share of hidden units that each batch leaves out at random."""
    batch_norm: bool = False
    """Normalise each hidden layer over the whole batch, before its activation."""
    normalize: Normalization = "none"
    """Bring features to mean 0 and deviation 1: over the training set (global) or per utterance."""
    engine: Literal["auto", "eager", "graph", "fused"] = "auto"
    """What does the steps: accelerate (eager), CUDA graphs (graph), own kernels (fused, GPUs only), or the fastest."""
    tf32: bool = False
    """Use TF32 for float32 matrix products on a GPU: faster, with 3 instead of 7 decimal digits per product."""
    compile: bool = False
    """Compile the network with torch.compile: slow to start; needs a C++ compiler on a CPU, Triton on a GPU."""

    on_bad_block: Literal["stop", "skip"] = "stop"
    """At a damaged or unreadable block of the training set: stop, or skip and count its windows."""
    tr_speakers: tuple[str, ...] | None = None
    """Train on these speakers of the training set only, given by name. Default: all."""
    tr_utterances: Path | None = None
    """List of the utterances of the training set to train on. Default: all."""
    balance_speakers: bool = False
    """Repeat utterances so that all speakers have about as many windows per epoch."""

    average: str = "epochs:10"
    """Weights to average into a file of their own: of the last N epochs (epochs:N), of all batches (ema:DECAY), or none."""
    best_by: BestBy = "loss"
    """Figure of the validation that decides which epoch is best: loss, accuracy of frames, or wrong utterances."""

    accumulation: int = 1
    """Parts into which each process splits its share of a batch: less memory, the same gradient."""
    resume: str = "never"
    """Where to continue: `never`, `auto` (the last checkpoint in --save_path, if any), or a checkpoint's folder."""
    overwrite: bool = False
    """Delete the files of an earlier training in --save_path. Without it, or --resume, such a folder is refused."""
    checkpoint_steps: int | None = None
    """Batches between checkpoints. Default: only at the end of each epoch."""
    checkpoint_minutes: float | None = None
    """Minutes between checkpoints. Default: only at the end of each epoch."""
    keep_checkpoints: int = 2
    """Number of checkpoints to keep; the one of the best epoch is kept as well."""
    timeout_minutes: float = 10.0
    """Minutes that a process waits for the others before it ends with an error, for example when the network is cut."""

    log_with: Tracker | None = None
    """Send the curves to this tracker as well; its own settings say where (tensorboard: in --save_path)."""
    profile: int | None = None
    """Record this many steps after 3 warm-up steps: profile-rank{r}.json in --save_path, slowest operators in the log."""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        check_context(self.in_frames, self.edge)
        at_least(1, batch_size=self.batch_size, hsize=self.hsize, patience=self.patience, epoch=self.epoch)
        at_least(1, log_freq=self.log_freq, num_streams=self.num_streams, shuffle_windows=self.shuffle_windows)
        at_least(1, shard_cache_bytes=self.shard_cache_bytes, cache_bytes=self.cache_bytes)
        UtteranceLimit(self.max_frames)
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
        if self.fingerprint is not None and not 1 <= len(self.fingerprint) <= 2:
            raise UsageError(
                f"--fingerprint: {len(self.fingerprint)} values, expected that of the training set, and that of the "
                "validation set if wanted"
            )
        check_fingerprints(self.tr_shards, "tr_shards", *(self.fingerprint or ()))
        at_least(1, accumulation=self.accumulation, keep_checkpoints=self.keep_checkpoints)
        if self.accumulation > 1 and self.batch_norm:
            raise UsageError(
                f"--accumulation {self.accumulation}: with --batch_norm a batch is normalised as a whole; leave one of them out"
            )
        Averaging.parse(self.average)
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
