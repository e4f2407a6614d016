"""A trained model with all that belongs to it: what scoring and export begin with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shards.corpus import read_speakers
from shards.errors import InputError
from spkid_dist.model import load_weights, model_from_options
from spkid_dist.training.identity import ID_NAME
from spkid_dist.training.report import read_options


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A network (B, C*D) -> (B, num_spks) log-probabilities, on the CPU and in evaluation mode; speakers in class order.

    `options` are those of train.opts; `in_frames` is C, `num_features` D and `edge` the rule of the training.
    """

    network: torch.nn.Module
    speakers: list[str]
    in_frames: int
    num_features: int
    edge: str
    options: dict[str, Any]


def load_trained(weights_ckpt: Path, train_cfg: Path, spk2idx: Path | None) -> TrainedModel:
    """Load weights with the train.opts that belongs to them; `spk2idx` names the speakers where train.opts does not.

    Raises:
        InputError: a file is missing, damaged, or they do not fit together.
    """
    options = read_options(train_cfg)
    speakers = _speakers(options, train_cfg, spk2idx)
    network = model_from_options(options, str(train_cfg))
    name = options.get(ID_NAME)
    load_weights(network, weights_ckpt, train_cfg, name if isinstance(name, str) else None)
    return TrainedModel(
        network=network.eval(),
        speakers=speakers,
        in_frames=options["in_frames"],
        num_features=options["input_dim"],
        edge=options.get("edge", "valid"),
        options=options,
    )


def _speakers(options: dict[str, Any], train_cfg: Path, spk2idx: Path | None) -> list[str]:
    """Speaker names in class order: of train.opts, or of the map that it or the flag names."""
    if spk2idx is None and isinstance(options.get("speakers"), list):
        speakers = [str(name) for name in options["speakers"]]
    else:
        speakers = read_speakers(spk2idx or Path(str(options.get("spk2idx", "cfg/spk2idx.json"))))
    if len(speakers) != options["num_spks"]:
        raise InputError(
            f"{train_cfg}: num_spks is {options['num_spks']}, but there are {len(speakers)} speaker names; "
            "give --spk2idx as it was in the training"
        )
    return speakers
