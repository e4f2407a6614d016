"""Load the models that a command names, one or several; several become one network that averages them.

The average is the mean of the models' log-probabilities of a window: the geometric mean of their probabilities, which need
not be normalised again, as all comparisons of speakers stay as they are. Source: Hinton, "Training products of experts by
minimizing contrastive divergence", 2002 (the product of experts); Hansen, Salamon, "Neural network ensembles", 1990.

Shapes: B windows, C frames a window, D features a frame, K speakers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shards.errors import InputError
from shards.guesses import describe_difference
from spkid_dist.scoring.weightsdigest import weights_digest
from spkid_dist.trained import OPTIONS_NAME, TrainedModel, load_trained
from spkid_dist.trainedfolder import best_weights

DEFAULT_OPTIONS = Path("ckpt") / OPTIONS_NAME
LISTED = 5  # weights files that an error names
AUDIO = "audio"


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model's weights file, the train.opts of its training, and the digest of the weights when they were found."""

    weights: Path
    options: Path
    digest: str


def find_models(folders: Sequence[Path], weights: Sequence[Path], train_cfg: Path | None) -> list[ModelFiles]:
    """The files of the models that the flags --model (`folders`), --weights_ckpt and --train_cfg name, in their order.

    The options of a model are `train_cfg` where it is given; else the train.opts beside the weights; else, where none is
    there, ckpt/train.opts.

    Raises:
        InputError: a folder has no weights, or a weights file does not exist; or two hold the same.
    """
    found = []
    for path in (*map(best_weights, folders), *weights):
        _check_weights(path)
        beside = path.parent / OPTIONS_NAME
        fallback = beside if beside.exists() or not DEFAULT_OPTIONS.exists() else DEFAULT_OPTIONS
        found.append(ModelFiles(weights=path, options=train_cfg or fallback, digest=weights_digest(path)))
    _check_differ(found)
    return found


def _check_differ(files: Sequence[ModelFiles]) -> None:
    """Raise InputError where two files hold the same weights: in the mean they would count twice."""
    seen: dict[str, ModelFiles] = {}
    for one in files:
        before = seen.setdefault(one.digest, one)
        if before is not one:
            raise InputError(f"{one.weights}: holds the same weights as {before.weights}; give each model once")


def say_models(files: Sequence[ModelFiles]) -> list[str]:
    """Lines on which weights are taken, and whether they are averaged."""
    if len(files) == 1:
        return [f"weights: {files[0].weights}"]
    return [f"the mean of {len(files)} models' log-probabilities: {', '.join(str(one.weights) for one in files)}"]


def load_models(files: Sequence[ModelFiles], spk2idx: Path | None = None) -> TrainedModel:
    """The model, or of several one whose network averages theirs, with the options of the first.

    Raises:
        InputError: a file is missing or damaged, files do not fit together, or models are of different speakers, windows
            or features.
    """
    models = [load_trained(one.weights, one.options, spk2idx) for one in files]
    if len(models) == 1:
        return models[0]
    for one, model in zip(files[1:], models[1:], strict=True):
        _check_alike(files[0].weights, models[0], one.weights, model)
    together = MeanLogProbs([model.network for model in models]).eval()
    return replace(models[0], network=together, remarks=tuple(line for model in models for line in model.remarks))


class MeanLogProbs(nn.Module):
    """The mean of several networks' log-probabilities: windows (B, C*D) -> (B, K)."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """The mean over the networks; not normalised."""
        first, *others = self.networks
        total: torch.Tensor = first(windows)
        for network in others:
            total = total + network(windows)
        return total / len(self.networks)


def _check_weights(path: Path) -> None:
    """Raise InputError where there is no file `path`, with the weights files that its folder has."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a weights file; give the folder of a training by --model")
    if path.exists():
        return
    names = sorted((one.name for one in path.parent.glob("*.ckpt")), key=_numbers_in, reverse=True)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    remedy = f"{path.parent} has {', '.join(names[:LISTED])}{more}" if names else "check --weights_ckpt"
    raise InputError(f"{path}: can't read these weights: No such file or directory; {remedy}")


def _numbers_in(name: str) -> tuple[list[int], str]:
    """What a name is sorted by, so that epoch 10 comes after epoch 9."""
    return [int(digits) for digits in re.findall(r"\d+", name)], name


def _check_alike(first: Path, expected: TrainedModel, path: Path, found: TrainedModel) -> None:
    """Raise InputError where two models can't be averaged."""
    here, there = _comparable(found), _comparable(expected)
    for what, value in here.items():
        if value != there[what]:
            mine, other = describe_difference(value, there[what])
            raise InputError(
                f"{path}: its {what} are {mine}, but those of {first} are {other}; only models of the same speakers, "
                "windows and features can be averaged"
            )


def _comparable(model: TrainedModel) -> dict[str, Any]:
    """What models that are averaged must have in common, each by its name in the plural."""
    source = model.options.get("source")
    source = source if isinstance(source, dict) else {"kind": "fmatrix", "ext": model.options.get("ext", "mcp")}
    names = (
        ("kind", "features") if source.get("kind") == AUDIO else ("kind", "ext")
    )  # audio may be wav here and flac there
    return {
        "speakers": model.speakers,
        "frames per window (in_frames)": model.in_frames,
        "features per frame": model.num_features,
        "windows at the ends of an utterance (edge)": model.edge,
        "features normalised per utterance (normalize)": model.options.get("normalize") == "utterance",
        "source files": {name: source.get(name) for name in names},
    }
