"""The options of the commands: frozen dataclasses whose fields are the flags and whose field docs are the help.

What a value must be is checked once, here; what it must be together with the data is checked where the data is opened.
`spkid bench` and `spkid simulate` have theirs in their own packages.
"""

from spkid_dist.config.scoring import ExportConfig, ScoreConfig
from spkid_dist.config.sharding import (
    IndexConfig,
    InfoConfig,
    MergeConfig,
    ShardConfig,
    SlurmFlags,
    SpeakerFlags,
    VerifyConfig,
)
from spkid_dist.config.training import DemoConfig, DoctorConfig, ResultsConfig, TrainConfig

__all__ = [
    "DemoConfig",
    "DoctorConfig",
    "ExportConfig",
    "IndexConfig",
    "InfoConfig",
    "MergeConfig",
    "ResultsConfig",
    "ScoreConfig",
    "ShardConfig",
    "SlurmFlags",
    "SpeakerFlags",
    "TrainConfig",
    "VerifyConfig",
]
