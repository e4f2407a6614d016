"""The options of `spkid score` and `spkid export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shards.errors import UsageError
from shards.stores.store import StoreOptions
from spkid_dist.config.checks import Options, at_least
from spkid_dist.config.choices import EXPORT_FORMATS
from spkid_dist.config.sharding import SpeakerFlags

# The help of --no_pictures: a switch that is on by default is a flag of the opposite, so it needs the opposite's help.
NO_PICTURES = "draw no pictures of confusions, errors by length and the DET curve."


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(SpeakerFlags):
    """Name the speaker of each utterance with a trained model.

    Where the true speakers are known, error rates are computed as well.
    Under `accelerate launch -m spkid_dist.score` each process scores a share.
    """

    db_path: Path = Path("mcp")
    """Folder of the files to score, of the kind that the model was trained on (audio becomes the same features)."""
    te_list_file: Path | None = None
    """List of the utterances to score: one per line, without extension. Default: spk_rec.test, or all of --te_shards."""
    te_shards: str | None = None
    """Score this dataset of `spkid shard` instead of files: its folder or a URL. It names the speakers."""
    shard_cache: Path | None = None
    """Folder for downloads of --te_shards at a URL, shared by the machine's processes. Default: not kept."""
    shard_cache_bytes: int = StoreOptions.cache_bytes
    """Size limit of --shard_cache; files that were not read for the longest time are removed first."""
    weights_ckpt: Path
    """Weights file, such as ckpt/bestval_e19_weights.ckpt."""
    log_file: Path = Path("spk_classification.log")
    """File for the results, lines UTTERANCE<TAB>SPEAKER; figures (.json) and pictures are written beside it."""
    train_cfg: Path = Path("ckpt/train.opts")
    """The train.opts of the training that made the weights."""
    ext: str | None = None
    """Extension of the files. Default: as in the training (mcp for feature files)."""
    verbose: bool = False
    """Also print the speaker of each utterance."""
    batch_size: int | None = None
    """Windows that go through the network at a time. Default: 2048 on a CPU, else 16384."""
    spk2idx: Path | None = None
    """Speaker map (JSON), used if train.opts has no speaker names: speaker name -> class index."""
    workers: int = 4
    """Threads per process that read ahead; at least 16 if --te_shards is a URL."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Arithmetic of the matrix products; sums are float64 in any case."""
    pictures: Annotated[bool, tyro.conf.arg(help=NO_PICTURES, help_behavior_hint="(default: draw them)")] = True
    """Draw confusions, errors by length and the DET curve, if the true speakers are known."""

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
    """Export a trained model for other programs.

    The folder holds the weights or the graph, and a model.json with all that a caller needs.
    """

    weights_ckpt: Path
    """Weights file, such as ckpt/bestval_e19_weights.ckpt."""
    out: Path
    """Folder to create; it must be empty or not exist."""
    train_cfg: Path = Path("ckpt/train.opts")
    """The train.opts of the training that made the weights."""
    format: str = "safetensors,torch_export"
    """Formats to write, separated by commas: safetensors, torch_export (.pt2), onnx (needs the extra [onnx])."""
    spk2idx: Path | None = None
    """Speaker map (JSON), used if train.opts has no speaker names: speaker name -> class index."""

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
