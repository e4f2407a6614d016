"""What is done with a trained model: scoring and exporting."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shards.errors import UsageError
from shards.stores.store import StoreOptions
from spkid_dist.config.checks import Options, at_least
from spkid_dist.config.sharding import SpeakerFlags

EXPORT_FORMATS = ("safetensors", "torch_export", "onnx")
# The help of --no_pictures: a switch that is on by default is a flag of the opposite, so it needs the opposite's help.
NO_PICTURES = "draw no pictures of confusions, errors by length and the DET curve"


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
    pictures: Annotated[bool, tyro.conf.arg(help=NO_PICTURES, help_behavior_hint="(default: draw them)")] = True
    """draw confusions, errors by length and the DET curve, where the true speakers are known"""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        at_least(1, workers=self.workers, shard_cache_bytes=self.shard_cache_bytes)
        if self.batch_size is not None:
            at_least(1, batch_size=self.batch_size)
        if self.log_file.suffix in (".json", ".png"):
            raise UsageError(
                f"--log_file {self.log_file}: its name with .json and .png is for the figures and pictures beside it; "
                "give another ending, such as .log"
            )
        given = [name for name in ("ext", *SpeakerFlags.__annotations__) if getattr(self, name) is not None]
        if self.te_shards is not None and given:
            raise UsageError(f"--{given[0]} with --te_shards: a dataset has its own speakers and files; leave it out")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Options):
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
        super().__post_init__()
        unknown = [name for name in self.formats if name not in EXPORT_FORMATS]
        if unknown:
            raise UsageError(
                f"--format {unknown[0]!r}: expected some of {','.join(EXPORT_FORMATS)}, separated by commas"
            )

    @property
    def formats(self) -> list[str]:
        """The formats, each once."""
        return list(dict.fromkeys(name.strip() for name in self.format.split(",")))
