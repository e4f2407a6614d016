"""Speaker identification trained at memory speed: streaming, training and scoring of sharded features.

``from spkid_dist import train_model, TrainConfig, score_utterances, ScoreConfig`` is the programs' interface. Each
name is imported when it is first used, so that importing the package loads no torch.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from spkid_dist.commands.calibrate import CalibrationResult as CalibrationResult
    from spkid_dist.commands.calibrate import calibrate_model as calibrate_model
    from spkid_dist.commands.embed import embed_utterances as embed_utterances
    from spkid_dist.commands.trials import TrialResult as TrialResult
    from spkid_dist.commands.trials import score_trials as score_trials
    from spkid_dist.config import CalibrateConfig as CalibrateConfig
    from spkid_dist.config import EmbedConfig as EmbedConfig
    from spkid_dist.config import ExportConfig as ExportConfig
    from spkid_dist.config import ScoreConfig as ScoreConfig
    from spkid_dist.config import TrainConfig as TrainConfig
    from spkid_dist.config import TrialsConfig as TrialsConfig
    from spkid_dist.dataset import WindowDataset as WindowDataset
    from spkid_dist.export import export_model as export_model
    from spkid_dist.mixture import MixedDataset as MixedDataset
    from spkid_dist.score import score_utterances as score_utterances
    from spkid_dist.scoring.embeddingfile import Embeddings as Embeddings
    from spkid_dist.scoring.embeddingfile import read_embeddings as read_embeddings
    from spkid_dist.scoring.identification import Candidate as Candidate
    from spkid_dist.scoring.identification import Identification as Identification
    from spkid_dist.scoring.identification import Model as Model
    from spkid_dist.scoring.identification import load_model as load_model
    from spkid_dist.scoring.outcome import ScoreResult as ScoreResult
    from spkid_dist.scoring.scorefile import read_scores as read_scores
    from spkid_dist.scoring.scores import Scores as Scores
    from spkid_dist.streaming.selection import Selection as Selection
    from spkid_dist.train import TrainResult as TrainResult
    from spkid_dist.train import train_model as train_model

# name: the module that has it; none has the name of a module
_MODULES = {
    "CalibrateConfig": "config",
    "CalibrationResult": "commands.calibrate",
    "Candidate": "scoring.identification",
    "EmbedConfig": "config",
    "Embeddings": "scoring.embeddingfile",
    "ExportConfig": "config",
    "Identification": "scoring.identification",
    "MixedDataset": "mixture",
    "Model": "scoring.identification",
    "ScoreConfig": "config",
    "ScoreResult": "scoring.outcome",
    "Scores": "scoring.scores",
    "Selection": "streaming.selection",
    "TrainConfig": "config",
    "TrainResult": "train",
    "TrialResult": "commands.trials",
    "TrialsConfig": "config",
    "WindowDataset": "dataset",
    "calibrate_model": "commands.calibrate",
    "embed_utterances": "commands.embed",
    "export_model": "export",
    "load_model": "scoring.identification",
    "read_embeddings": "scoring.embeddingfile",
    "read_scores": "scoring.scorefile",
    "score_trials": "commands.trials",
    "score_utterances": "score",
    "train_model": "train",
}
__all__ = list(_MODULES)


def _check_own_shards() -> None:
    """Raise ImportError where Python finds another package `shards` than the one that is installed with this one.

    A folder `shards/` in the current directory does no harm, unless it holds an `__init__.py`: then `python -m` prefers it.
    """
    here, found = Path(__file__).parent, find_spec("shards")
    origin = None if found is None else found.origin
    if origin is None or Path(origin).resolve().parent != here.parent.resolve() / "shards":
        searched = list(found.submodule_search_locations or []) if found else []
        other = origin or (searched[0] if searched else "no folder")
        message = (
            f"the package `shards` of spkid-dist is in {here.parent / 'shards'}, but Python finds {other} first; "
            "rename that, or start from another folder"
        )
        raise ImportError(message, name=__name__)  # with its name, `python -m` shows one line in place of a traceback


_check_own_shards()
_public, _names = import_module("shards.lazy").lazy_names(__name__, _MODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module(f"{__name__}.process.versions").installed_version("spkid-dist")
    return _public(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_names()})
