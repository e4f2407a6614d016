"""The classic context-window MLP: C*D inputs, three hidden ReLU layers, log-softmax over the speakers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shards.errors import InputError

HIDDEN_LAYERS = 3


def build_model(inputs: int, hsize: int, num_spks: int) -> nn.Sequential:
    """The network, (B, inputs) -> (B, num_spks) log-probabilities.

    Its state_dict has the keys ``0.weight, 0.bias, 2.weight, ...`` of a plain sequence of layers.
    """
    layers: list[nn.Module] = []
    width = inputs
    for _ in range(HIDDEN_LAYERS):
        layers += [nn.Linear(width, hsize), nn.ReLU()]
        width = hsize
    return nn.Sequential(*layers, nn.Linear(width, num_spks), nn.LogSoftmax(dim=1))


def describe_model(model: nn.Sequential) -> list[tuple[str, str, int]]:
    """A row a layer with parameters: its name, how they are counted (inputs x units + units), and their number."""
    return [
        (f"{name} Linear", f"{layer.in_features} x {layer.out_features} + {layer.out_features}", _parameters(layer))
        for name, layer in model.named_children()
        if isinstance(layer, nn.Linear)
    ]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def load_weights(model: nn.Sequential, path: Path) -> None:
    """Load a weights file into `model`; nothing in the file is executed.

    Raises:
        InputError: the file is missing, not a weights file, or of another network.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: can't read these weights: {error.strerror}; check --weights_ckpt") from None
    except Exception as error:  # noqa: BLE001 - torch raises whatever the damaged bytes lead it to
        raise InputError(
            f"{path}: not a weights file of torch, or a damaged one ({type(error).__name__}); "
            "give a *_weights.ckpt of a training"
        ) from None
    expected = model.state_dict()
    if not isinstance(state, Mapping) or set(state) != set(expected):
        raise InputError(
            f"{path}: holds {_keys(state)}, expected {_keys(expected)}; give weights of this kind of network"
        )
    for name, tensor in expected.items():
        if getattr(state[name], "shape", None) != tensor.shape:
            found = tuple(getattr(state[name], "shape", ()))
            raise InputError(
                f"{path}: {name} is {found}, but the options make it {tuple(tensor.shape)}; "
                "give the train.opts that belongs to these weights (--train_cfg)"
            )
    model.load_state_dict(state, strict=True)


def _keys(state: Any) -> str:
    return ", ".join(map(str, list(state)[:8])) if isinstance(state, Mapping) else f"a {type(state).__name__}"
