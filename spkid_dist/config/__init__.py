"""The options of the commands: frozen dataclasses whose fields are the flags and whose field docs are the help.

What a value must be is checked once, here; what it must be together with the data is checked where the data is opened.
Imports nothing of the rest of this package.
"""

from typing import TYPE_CHECKING

from shards.lazy import lazy_names

if TYPE_CHECKING:
    from spkid_dist.config.bench import BenchConfig as BenchConfig
    from spkid_dist.config.commands import DemoConfig as DemoConfig
    from spkid_dist.config.commands import DoctorConfig as DoctorConfig
    from spkid_dist.config.commands import IndexConfig as IndexConfig
    from spkid_dist.config.commands import InfoConfig as InfoConfig
    from spkid_dist.config.commands import ReportConfig as ReportConfig
    from spkid_dist.config.commands import ResultsConfig as ResultsConfig
    from spkid_dist.config.commands import VerifyConfig as VerifyConfig
    from spkid_dist.config.decisions import CalibrateConfig as CalibrateConfig
    from spkid_dist.config.decisions import TrialsConfig as TrialsConfig
    from spkid_dist.config.identification import EmbedConfig as EmbedConfig
    from spkid_dist.config.identification import IdentifyConfig as IdentifyConfig
    from spkid_dist.config.scoring import ExportConfig as ExportConfig
    from spkid_dist.config.scoring import ScoreConfig as ScoreConfig
    from spkid_dist.config.sharding import MergeConfig as MergeConfig
    from spkid_dist.config.sharding import ShardConfig as ShardConfig
    from spkid_dist.config.sharding import SlurmFlags as SlurmFlags
    from spkid_dist.config.sharding import SpeakerFlags as SpeakerFlags
    from spkid_dist.config.simulate import SimulateConfig as SimulateConfig
    from spkid_dist.config.training import TrainConfig as TrainConfig

_MODULES = {
    "BenchConfig": "bench",
    "CalibrateConfig": "decisions",
    "DemoConfig": "commands",
    "DoctorConfig": "commands",
    "EmbedConfig": "identification",
    "ExportConfig": "scoring",
    "IdentifyConfig": "identification",
    "IndexConfig": "commands",
    "InfoConfig": "commands",
    "MergeConfig": "sharding",
    "ReportConfig": "commands",
    "ResultsConfig": "commands",
    "ScoreConfig": "scoring",
    "ShardConfig": "sharding",
    "SimulateConfig": "simulate",
    "SlurmFlags": "sharding",
    "SpeakerFlags": "sharding",
    "TrainConfig": "training",
    "TrialsConfig": "decisions",
    "VerifyConfig": "commands",
}
__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
