"""The options of `spkid score` and `spkid export`."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shards.errors import UsageError
from shards.files import real_path
from shards.sources.limits import MAX_FRAMES, UtteranceLimit
from shards.stores.store import StoreOptions
from spkid_dist.config.checks import Options, at_least, check_fingerprints
from spkid_dist.config.choices import EXPORT_FORMATS
from spkid_dist.config.places import BESIDE_SCORES, Outputs, check_flags, with_beside
from spkid_dist.config.sharding import SpeakerFlags

# The help of --no_pictures: a switch that is on by default is a flag of the opposite, so it needs the opposite's help.
NO_PICTURES = "draw no pictures of confusions, errors by length and the DET curve."
NO_CALIBRATION = "leave out the calibration that lies beside the weights (`spkid calibrate`)."
Calibrated = Annotated[
    bool, tyro.conf.arg(help=NO_CALIBRATION, help_behavior_hint="(default: use it where there is one)")
]
SCORE_FORMATS = (".npz", ".parquet")
# One path or several: on the command line the flag is repeated, and in Python one path needs no list.
Paths = Annotated[
    Path | tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(constructor=tuple[Path, ...], metavar="PATH")
]


class ModelFlags:
    """What names models, in all commands that take them by flags: folders of trainings, or weights files."""

    model: Path | tuple[Path, ...]
    weights_ckpt: Path | tuple[Path, ...]

    @property
    def models(self) -> tuple[Path, ...]:
        """The folders of --model."""
        return self.model if isinstance(self.model, tuple) else (self.model,)

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files of --weights_ckpt."""
        return self.weights_ckpt if isinstance(self.weights_ckpt, tuple) else (self.weights_ckpt,)


@dataclass(frozen=True, kw_only=True)
class ScoringFlags(ModelFlags, Options):
    """Which model scores which kind of data, and how: what all commands that score have in common."""

    db_path: Path = Path("mcp")
    """Folder of the files to score, of the kind that the model was trained on (audio becomes the same features)."""
    source: Annotated[str | None, tyro.conf.arg(metavar="MODULE:CLASS")] = None
    """Class of your own that reads the files, if the model was trained on its frames."""
    te_shards: str | None = None
    """Score this dataset of `spkid shard` instead of files: its folder or a URL."""
    fingerprint: str | None = None
    """Fingerprint that --te_shards must have, as `spkid info` prints it. Default: any."""
    shard_cache: Path | None = None
    """Folder for downloads of --te_shards at a URL, shared by the machine's processes. Default: not kept."""
    shard_cache_bytes: int = StoreOptions.cache_bytes
    """Size limit of --shard_cache; files that were not read for the longest time are removed first."""
    model: Paths = ()
    """Folder of a training, whose best weights are taken. Give it, or --weights_ckpt. Repeat it to average models."""
    weights_ckpt: Paths = ()
    """Weights file, such as ckpt/bestval_e19_weights.ckpt, in place of --model. Repeat it to average models."""
    train_cfg: Path | None = None
    """The train.opts of the training. Default: the one beside the weights, else ckpt/train.opts."""
    ext: str | None = None
    """Extension of the files. Default: as in the training (mcp for feature files)."""
    max_frames: int = MAX_FRAMES
    """Most frames of an utterance in a file; a longer one is an error. Frames times features: at most 64 times this."""
    batch_size: int | None = None
    """Windows that go through the network at a time. Default: 2048 on a CPU, else 16384."""
    spk2idx: Path | None = None
    """Speaker map (JSON), used if train.opts has no speaker names: speaker name -> class index."""
    workers: int = 4
    """Threads per process that read ahead; at least 16 if --te_shards is a URL."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Arithmetic of the matrix products; sums are float64 in any case."""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        if self.needs_model:
            check_models(self.models, self.weights)
        check_fingerprints(self.te_shards, "te_shards", self.fingerprint)
        at_least(1, workers=self.workers, shard_cache_bytes=self.shard_cache_bytes)
        UtteranceLimit(self.max_frames)
        if self.batch_size is not None:
            at_least(1, batch_size=self.batch_size)
        for name in ("ext", "source"):
            if self.te_shards is not None and getattr(self, name) is not None:
                raise _with_shards(name)
        check_flags(self, self.outputs)

    @property
    def outputs(self) -> Outputs:
        """The files that the command makes: flag -> its file, then those beside it."""
        return {}

    @property
    def needs_model(self) -> bool:
        """Whether a model must be given."""
        return True


@dataclass(frozen=True, kw_only=True)
class ListFlags(ScoringFlags, SpeakerFlags):
    """A model and the utterances that it scores, whose speakers may be known."""

    te_shards: str | None = None
    """Score this dataset of `spkid shard` instead of files: its folder or a URL. It names the speakers."""
    te_list_file: Path | None = None
    """List of the utterances to score: one per line, without extension. Default: spk_rec.test, or all of --te_shards or of a
    Kaldi folder."""

    def __post_init__(self) -> None:
        """Check that the speakers are named in one way; raises UsageError."""
        super().__post_init__()
        given = [name for name in SpeakerFlags.__annotations__ if getattr(self, name) is not None]
        if self.te_shards is not None and given:
            raise _with_shards(given[0])


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(ListFlags):
    """Name the speaker of each utterance with a trained model.

    Where the true speakers are known, error rates are computed as well.
    Under `accelerate launch -m spkid_dist.score` each process scores a share.
    """

    log_file: Path = Path("spk_classification.log")
    """File for the results, lines UTTERANCE<TAB>SPEAKER; figures (.json) and pictures are written beside it."""
    scores: Path | None = None
    """File for the scores, .npz or .parquet: mean log-probabilities of all speakers, margins, windows."""
    top: int | None = None
    """Keep this many speakers per utterance, the best first, with their scores, in --log_file and --scores."""
    threshold: float | None = None
    """Call an utterance unknown whose speaker has a lower calibrated log-likelihood ratio. Default: the calibration's."""
    calibration: Calibrated = True
    """Use the calibration that lies beside the weights (`spkid calibrate`)."""
    verbose: bool = False
    """Also print the speaker of each utterance."""
    pictures: Annotated[bool, tyro.conf.arg(help=NO_PICTURES, help_behavior_hint="(default: draw them)")] = True
    """Draw confusions, errors by length and the DET curve, if the true speakers are known."""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        super().__post_init__()
        if self.top is not None:
            at_least(1, top=self.top)
        if self.threshold is not None and isnan(self.threshold):
            raise UsageError("--threshold nan: expected a number, such as 2.5")
        check_results_name("log_file", self.log_file, ".log")
        if self.scores is not None:
            _check_scores(self.scores, self.log_file)

    @property
    def outputs(self) -> Outputs:
        """The results with figures and pictures, and the scores."""
        scores = {} if self.scores is None else {"scores": [self.scores]}
        return {"log_file": with_beside(self.log_file, BESIDE_SCORES)} | scores


def _with_shards(flag: str) -> UsageError:
    return UsageError(f"--{flag} with --te_shards: a dataset has its own speakers and files; leave it out")


def check_results_name(flag: str, path: Path, ending: str) -> None:
    """Raise UsageError where the results would have the name of the figures or of a picture beside them."""
    if path.suffix in (".json", ".png"):
        raise UsageError(
            f"--{flag} {path}: its name with .json and .png is for the figures and pictures beside it; give another ending, "
            f"such as {ending}"
        )


def check_models(folders: Sequence[Path], weights: Sequence[Path]) -> None:
    """Raise UsageError where no model is given, one is given in two ways, or one is given twice."""
    if not folders and not weights:
        raise UsageError(
            "no model is given: give the folder of a training by --model, or a weights file by --weights_ckpt"
        )
    if folders and weights:
        raise UsageError("--model and --weights_ckpt: each names the models another way; give one of them")
    for name, paths in (("model", folders), ("weights_ckpt", weights)):
        seen: dict[Path, Path] = {}
        for path in paths:
            before = seen.setdefault(real_path(path), path)
            if before is not path:
                as_what = "" if before == path else f", before as {before}"
                raise UsageError(f"--{name} {path} is given twice{as_what}; give each model once")


def _check_scores(scores: Path, log_file: Path) -> None:
    """Raise UsageError where the file of scores is of no known kind, or is the file of the results."""
    if scores.suffix not in SCORE_FORMATS:
        raise UsageError(f"--scores {scores}: expected a file name that ends in {' or '.join(SCORE_FORMATS)}")
    if real_path(scores) == real_path(log_file):
        raise UsageError(f"--scores {scores}: is the file of --log_file; give another name")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ModelFlags, Options):
    """Export a trained model for other programs.

    The folder holds the weights or the graph, and a model.json with all that a caller needs.
    """

    model: Paths = ()
    """Folder of a training, whose best weights are exported. Give it, or --weights_ckpt."""
    weights_ckpt: Paths = ()
    """Weights file, such as ckpt/bestval_e19_weights.ckpt, in place of --model."""
    out: Path
    """Folder to create; it must be empty or not exist."""
    train_cfg: Path | None = None
    """The train.opts of the training. Default: the one beside the weights, else ckpt/train.opts."""
    format: str = "safetensors,torch_export"
    """Formats to write, separated by commas: safetensors, torch_export (.pt2), onnx (needs the extra [onnx])."""
    spk2idx: Path | None = None
    """Speaker map (JSON), used if train.opts has no speaker names: speaker name -> class index."""

    def __post_init__(self) -> None:
        """Check the model and the formats' names; raises UsageError."""
        super().__post_init__()
        check_models(self.models, self.weights)
        if len(self.models) + len(self.weights) > 1:
            given = ", ".join(map(str, self.models + self.weights))
            raise UsageError(f"export takes one model, and {given} are given; export each into a folder of its own")
        unknown = [name for name in self.formats if name not in EXPORT_FORMATS]
        if unknown:
            raise UsageError(
                f"--format {unknown[0]!r}: expected some of {','.join(EXPORT_FORMATS)}, separated by commas"
            )

    @property
    def formats(self) -> list[str]:
        """The formats, each once."""
        return list(dict.fromkeys(name.strip() for name in self.format.split(",")))
