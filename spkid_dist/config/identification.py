"""The options of `spkid identify` and `spkid embed`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from shards.errors import UsageError
from shards.sources.limits import MAX_FRAMES, UtteranceLimit
from spkid_dist.config.checks import Options, at_least
from spkid_dist.config.places import BESIDE_EMBEDDINGS, Outputs, with_beside
from spkid_dist.config.scoring import Paths, ScoringFlags


@dataclass(frozen=True, kw_only=True)
class IdentifyConfig(Options):
    """Say who speaks in a recording, by a trained model.

    A file that can't be read has a line on standard error; the others are answered, and the exit code is 1.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """Folder of the training, its --save_path: its best weights are used, and their calibration if they have one."""
    files: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Files of the kind that the model was trained on: recordings or features. Default: standard input, as for -."""
    max_frames: int = MAX_FRAMES
    """Most frames of a recording; a longer one is an error. Frames times features: at most 64 times this."""
    top: int = 3
    """Number of speakers per answer, the most likely first."""
    json: bool = False
    """Print one JSON object per file and line."""
    tsv: bool = False
    """Print a table with tabs between its columns; tabs and line breaks in names are written as \\t and \\n."""

    def __post_init__(self) -> None:
        """Check the values; raises UsageError."""
        super().__post_init__()
        at_least(1, top=self.top)
        UtteranceLimit(self.max_frames)
        if self.json and self.tsv:
            raise UsageError("--json and --tsv: each prints the answers another way; give one of them")
        if self.files.count("-") > 1:
            raise UsageError("-: standard input can be read once; give it once")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(ScoringFlags):
    """Write an embedding of each utterance: a vector. Vectors of one speaker's utterances are similar.

    It is the mean and the deviation of the last hidden layer's outputs, over the windows of the utterance.
    Under `accelerate launch -m spkid_dist embed` each process computes a share.
    """

    model: Paths = ()
    """Folder of a training, whose best weights are taken. Give it, or --weights_ckpt."""
    weights_ckpt: Paths = ()
    """Weights file, such as ckpt/bestval_e19_weights.ckpt, in place of --model."""
    te_list_file: Path | None = None
    """List of the utterances to embed: one per line, without extension. Default: spk_rec.test, or all of --te_shards or of a
    Kaldi folder."""
    out: Path = Path("embeddings.npz")
    """File to write: .npz (keys and embeddings), .npy (embeddings, beside it .keys) or .ark (Kaldi, beside it .scp)."""

    def __post_init__(self) -> None:
        """Check that there is one model; raises UsageError."""
        super().__post_init__()
        if len(self.models) + len(self.weights) > 1:
            raise UsageError(
                "several models: the units of one network are not those of another; embed by each model, into files of its own"
            )

    @property
    def outputs(self) -> Outputs:
        """The embeddings, and the file beside them that names their keys."""
        return {"out": with_beside(self.out, BESIDE_EMBEDDINGS.get(self.out.suffix, ()))}
