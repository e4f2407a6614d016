"""The options of every command: frozen dataclasses whose fields are the flags and whose field docs are the help.

What a value must be is checked once, here; what it must be together with the data is checked where the data is opened.
"""

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shards.errors import UsageError
from shards.sources.features import FeatureOptions
from shards.sources.registry import SOURCES
from shards.speakers import SpeakerRule, speaker_by_component, speaker_by_regex, speaker_by_tsv, speaker_by_utt2spk
from shards.stores.store import StoreOptions
from spkid_dist.order import DEFAULT_SHUFFLE_WINDOWS
from spkid_dist.streaming.normalization import Normalization
from spkid_dist.streaming.windows import EdgeRule, check_context

Activation = Literal["relu", "gelu", "silu", "tanh", "leaky_relu"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "comet_ml", "clearml", "aim", "dvclive", "swanlab", "trackio"]
EXPORT_FORMATS = ("safetensors", "torch_export", "onnx")
MOST_LAYERS = 1000


def _num_cpus() -> int:
    return os.cpu_count() or 1


def _at_least(minimum: float, **values: float) -> None:
    for name, value in values.items():
        if not value >= minimum:  # not `<`: NaN is refused too
            raise UsageError(f"--{name} {value}: expected {minimum} or more")


def _from_zero_below(bound: float, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < bound:
            expected = "a finite number" if bound == math.inf else f"less than {bound}"
            raise UsageError(f"--{name} {value}: expected 0 or more, and {expected}")


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
class SlurmFlags:
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
        _at_least(1, **{"slurm.timeout_min": self.timeout_min})
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
        _at_least(1, workers=self.workers)
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
            _at_least(1, slurm_array=self.slurm_array)
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
class MergeConfig:
    """Join the shards that `spkid shard --task` made into a dataset."""

    folder: Annotated[str, tyro.conf.Positional]
    """the --out folder or URL of the tasks"""


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Print what is in a dataset."""

    folder: Annotated[str, tyro.conf.Positional]
    """folder of a dataset, or URL that fsspec reads (s3://bucket/name)"""
    shard_cache: Path | None = None
    """folder for what is downloaded of a dataset at a URL"""
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

    tr_shards: str | None = None
    """train on this dataset of `spkid shard` instead of feature files: its folder, or URL that fsspec reads (s3://bucket/name)"""
    va_shards: str | None = None
    """validate on this dataset instead of feature files"""
    shard_cache: Path | None = None
    """folder where what is downloaded of datasets at URLs is kept, for all processes of a machine; not given: nowhere"""
    shard_cache_bytes: int = StoreOptions.cache_bytes
    """what --shard_cache may take; the longest unread goes first"""
    cache_dir: Path = field(default_factory=lambda: Path.home() / ".cache" / "spkid-dist")
    """where feature files are sharded to, once"""
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
    engine: Literal["auto", "eager", "graph"] = "auto"
    """how a step is done: through accelerate's wrappers (eager), or with all tensors in their place, on GPUs as CUDA graphs"""
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
        check_context(self.in_frames, self.edge)
        _at_least(1, batch_size=self.batch_size, hsize=self.hsize, patience=self.patience, epoch=self.epoch)
        _at_least(1, log_freq=self.log_freq, num_streams=self.num_streams, shuffle_windows=self.shuffle_windows)
        _at_least(1, shard_cache_bytes=self.shard_cache_bytes)
        _at_least(0, momentum=self.momentum, seed=self.seed)
        if self.seed >= 2**63:
            raise UsageError(f"--seed {self.seed}: expected less than 2^63")
        if not self.lr > 0:
            raise UsageError(f"--lr {self.lr}: expected more than 0")
        self._check_learning()
        if (self.tr_shards is None) != (self.va_shards is None):
            raise UsageError("--tr_shards and --va_shards go together: give both, or neither and feature files")
        _at_least(1, accumulation=self.accumulation, keep_checkpoints=self.keep_checkpoints)
        if self.accumulation > 1 and self.batch_norm:
            raise UsageError(
                f"--accumulation {self.accumulation}: with --batch_norm a batch is normalised as a whole; leave one of them out"
            )
        if self.checkpoint_steps is not None:
            _at_least(1, checkpoint_steps=self.checkpoint_steps)
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
            raise UsageError(f"--checkpoint_minutes {self.checkpoint_minutes}: expected more than 0")
        if not 0 < self.timeout_minutes <= 10_000:
            raise UsageError(f"--timeout_minutes {self.timeout_minutes}: expected more than 0, up to 10000")
        if self.profile is not None:
            _at_least(1, profile=self.profile)

    def _check_learning(self) -> None:
        _from_zero_below(1, label_smoothing=self.label_smoothing, dropout=self.dropout, warmup=self.warmup or 0.0)
        _from_zero_below(math.inf, weight_decay=self.weight_decay)
        _at_least(1, num_layers=self.num_layers, step_epochs=self.step_epochs)
        if self.num_layers > MOST_LAYERS:
            raise UsageError(f"--num_layers {self.num_layers}: expected {MOST_LAYERS} or less")
        if not 0 < self.step_factor < 1:
            raise UsageError(f"--step_factor {self.step_factor}: expected more than 0 and less than 1")
        if self.clip_grad_norm is not None and not 0 < self.clip_grad_norm < math.inf:
            raise UsageError(f"--clip_grad_norm {self.clip_grad_norm}: expected a finite number above 0")


@dataclass(frozen=True, kw_only=True)
class ResultsConfig:
    """Make one table of the trainings below a folder, from the best validation loss on."""

    folder: Annotated[Path, tyro.conf.Positional]
    """folder in which each folder is the --save_path of a training; the table is its results.tsv"""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Look at what a job would see: ranks, devices, speed between them, shards, clocks; for `accelerate launch` too."""

    shards: str | None = None
    """a dataset of `spkid shard` that every process should see; a folder, or a URL"""
    save_path: Path = Path("ckpt")
    """where the model would go"""
    timeout_minutes: float = 2.0
    """minutes that a process waits for the others"""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        if not 0 < self.timeout_minutes <= 10_000:
            raise UsageError(f"--timeout_minutes {self.timeout_minutes}: expected more than 0, up to 10000")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(SpeakerFlags):
    """Score utterances with a trained model: the speaker of each, and error rates where the speakers are known.

    Under `accelerate launch -m spkid_dist.score` each process scores a share.
    """

    db_path: Path = Path("mcp")
    """folder of feature files, or of what else the model was trained on: audio becomes features as for the training"""
    te_list_file: Path | None = None
    """list of the utterances to score, one a line, no extension; where not given: spk_rec.test, or all of --te_shards"""
    te_shards: str | None = None
    """score this dataset of `spkid shard` instead of feature files: its folder, or a URL; it names the speakers"""
    shard_cache: Path | None = None
    """folder where what is downloaded of --te_shards at a URL is kept, for all processes of a machine; not given: nowhere"""
    shard_cache_bytes: int = StoreOptions.cache_bytes
    """what --shard_cache may take; the longest unread goes first"""
    weights_ckpt: Path
    """weights file, such as ckpt/bestval_e19_weights.ckpt"""
    log_file: Path = Path("spk_classification.log")
    """results: a line UTTERANCE<TAB>SPEAKER each; beside it go a .json of all figures, and pictures"""
    train_cfg: Path = Path("ckpt/train.opts")
    """train.opts of the training that made the weights"""
    ext: str | None = None
    """extension of the files; as in the training where not given (mcp for feature files)"""
    verbose: bool = False
    """print each utterance's speaker too"""
    batch_size: int | None = None
    """windows that go through the model at a time; where not given: 2048 on a CPU, else 16384"""
    spk2idx: Path | None = None
    """speaker names, where train.opts has none: speaker name -> class index (JSON)"""
    workers: int = 4
    """threads of a process that read ahead; 16 at least where --te_shards is a URL"""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """arithmetic of the matrix products; sums are float64 with any"""
    pictures: bool = True
    """draw confusions, errors by length and the DET curve, where the true speakers are known"""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        _at_least(1, workers=self.workers, shard_cache_bytes=self.shard_cache_bytes)
        if self.batch_size is not None:
            _at_least(1, batch_size=self.batch_size)
        if self.log_file.suffix in (".json", ".png"):
            raise UsageError(
                f"--log_file {self.log_file}: its name with .json and .png is for the figures and pictures beside it; "
                "give another ending, such as .log"
            )
        given = [name for name in ("ext", *SpeakerFlags.__annotations__) if getattr(self, name) is not None]
        if self.te_shards is not None and given:
            raise UsageError(f"--{given[0]} with --te_shards: a dataset has its own speakers and files; leave it out")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a trained model for other programs: its weights or graph, and a model.json of all that a caller needs."""

    weights_ckpt: Path
    """weights file, such as ckpt/bestval_e19_weights.ckpt"""
    out: Path
    """folder to make; it must not exist, or be empty"""
    train_cfg: Path = Path("ckpt/train.opts")
    """train.opts of the training that made the weights"""
    format: str = "safetensors,torch_export"
    """what to write, separated by commas: safetensors, torch_export (.pt2), onnx (needs the extra [onnx])"""
    spk2idx: Path | None = None
    """speaker names, where train.opts has none: speaker name -> class index (JSON)"""

    def __post_init__(self) -> None:
        """Check the formats' names; raises UsageError."""
        unknown = [name for name in self.formats if name not in EXPORT_FORMATS]
        if unknown:
            raise UsageError(
                f"--format {unknown[0]!r}: expected some of {','.join(EXPORT_FORMATS)}, separated by commas"
            )

    @property
    def formats(self) -> list[str]:
        """The formats, each once."""
        return list(dict.fromkeys(name.strip() for name in self.format.split(",")))


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Make a small synthetic corpus, then shard it, train on it and score it."""

    out: Path = Path("demo")
    """folder for the corpus and the results; made anew each time"""
    seed: int = 0
    """of the corpus"""
