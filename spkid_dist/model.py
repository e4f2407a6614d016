"""The context-window MLP: C*D inputs, hidden layers, log-softmax over the speakers.

The classic network, and the default, is three hidden ReLU layers. Its options are those of `train.opts`, from which
`model_from_options` makes the same network for training, scoring and export. Whatever the options, the network is a plain
`nn.Sequential` numbered from 0, with one layer named ``normalize`` before it under ``--normalize global``.

Shapes: B windows, C frames a window, D features a frame, H units of a hidden layer.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from shards.errors import InputError, UsageError
from spkid_dist.batchnorm import GlobalBatchNorm
from spkid_dist.config.training import MOST_LAYERS, Activation
from spkid_dist.memory import free_memory, gigabytes, is_out_of_memory
from spkid_dist.streaming.normalization import Normalization
from spkid_dist.training.weights import name_in

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
}
BYTES_A_PARAMETER = 4


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """What describes the network, by the names of `train.opts`; the defaults are the classic network."""

    input_dim: int
    in_frames: int
    num_spks: int
    hsize: int = 100
    num_layers: int = 3
    activation: Activation = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    normalize: Normalization = "none"

    @property
    def num_parameters(self) -> int:
        """Values that are learnt."""
        hidden = self.num_layers * (self.hsize + (2 * self.hsize if self.batch_norm else 0))
        weights = self.input_dim * self.in_frames * self.hsize + (self.num_layers - 1) * self.hsize**2
        return weights + hidden + (self.hsize + 1) * self.num_spks


def network_options(options: Mapping[str, Any], where: str = "train.opts") -> NetworkOptions:
    """The network's options among those of a training, which may lack what is newer than it.

    Raises:
        InputError: one of them can't be; `where` is for messages.
    """
    given = {field.name: options[field.name] for field in fields(NetworkOptions) if field.name in options}
    for name, value in given.items():
        expected = _expectation(name, value)
        if expected:
            raise InputError(f"{where}: {name} is {value!r}, expected {expected}; give the train.opts of a training")
    return NetworkOptions(**given)


def _expectation(name: str, value: Any) -> str | None:
    """What the option's value should have been; None where it can be."""
    choices = {"activation": get_args(Activation), "normalize": get_args(Normalization)}.get(name)
    if choices is not None:
        return None if value in choices else f"one of {', '.join(choices)}"
    if name == "batch_norm":
        return None if isinstance(value, bool) else "true or false"
    if name == "dropout":
        return None if isinstance(value, int | float) and 0 <= value < 1 else "a number from 0, below 1"
    if type(value) is not int or value < 1:
        return "a whole number from 1"
    return f"{MOST_LAYERS} or less" if name == "num_layers" and value > MOST_LAYERS else None


def model_from_options(options: Mapping[str, Any], where: str = "train.opts") -> nn.Sequential:
    """The network that a training's options describe, with random weights: (B, C*D) -> (B, num_spks) log-probabilities.

    Raises:
        InputError: an option of the network can't be.
        UsageError: the network does not fit into this machine's memory.
    """
    network = network_options(options, where)
    _check_memory(network)
    width, layers = network.input_dim * network.in_frames, list[nn.Module]()
    for _ in range(network.num_layers):
        layers.append(nn.Linear(width, network.hsize))
        if network.batch_norm:
            layers.append(GlobalBatchNorm(network.hsize))
        layers.append(ACTIVATIONS[network.activation]())
        if network.dropout:
            layers.append(nn.Dropout(network.dropout))
        width = network.hsize
    layers += [nn.Linear(width, network.num_spks), nn.LogSoftmax(dim=1)]
    named = [(str(number), layer) for number, layer in enumerate(layers)]
    if network.normalize == "global":
        named.insert(0, ("normalize", Normalize(network.input_dim, network.in_frames)))
    return nn.Sequential(OrderedDict(named))


def build_model(inputs: int, hsize: int, num_spks: int) -> nn.Sequential:
    """The classic network, (B, inputs) -> (B, num_spks) log-probabilities.

    Its state_dict has the keys ``0.weight, 0.bias, 2.weight, ...`` of a plain sequence of layers.
    """
    return model_from_options({"input_dim": inputs, "in_frames": 1, "hsize": hsize, "num_spks": num_spks})


class Normalize(nn.Module):
    """Windows (B, C*D) to mean 0 and deviation 1 of each feature, by the buffers `mean` and `std` (D,) float32."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, num_features: int, in_frames: int) -> None:
        super().__init__()
        self.in_frames = in_frames
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    def set_moments(self, mean: list[float], std: list[float]) -> None:
        """Take the D means and deviations of a manifest; a feature without deviation becomes 0 everywhere."""
        self.mean.copy_(torch.tensor(mean))
        deviations = torch.tensor(std)
        smallest = torch.finfo(torch.float32).tiny
        self.std.copy_(torch.where(deviations < smallest, torch.ones(()), deviations))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x (B, C*D)."""
        return (x - self.mean.repeat(self.in_frames)) / self.std.repeat(self.in_frames)


def set_moments(model: nn.Sequential, mean: list[float], std: list[float]) -> None:
    """Give the layer ``normalize``, where the network has one, the D means and deviations of the training set."""
    for layer in model:
        if isinstance(layer, Normalize):
            layer.set_moments(mean, std)


def set_full_batch(model: nn.Sequential, num_windows: int) -> None:
    """Tell the layers of batch normalisation how many windows a full global batch of the training has."""
    for layer in model:
        if isinstance(layer, GlobalBatchNorm):
            layer.full_batch = num_windows


def _check_memory(network: NetworkOptions) -> None:
    """Raise UsageError where the weights alone are more than this process may take."""
    needed = network.num_parameters * BYTES_A_PARAMETER
    memory = free_memory()
    if needed > memory:
        raise UsageError(
            f"--hsize {network.hsize}, --num_layers {network.num_layers}: a network of {network.num_parameters:,} "
            f"parameters takes {gigabytes(needed)}, and this process may take {gigabytes(memory)}; give a smaller --hsize"
        )


def describe_model(model: nn.Sequential) -> list[tuple[str, str, int]]:
    """A row a layer with parameters: its name, how they are counted (inputs x units + units), and their number."""
    rows = []
    for name, layer in model.named_children():
        if isinstance(layer, nn.Linear):
            formula = f"{layer.in_features} x {layer.out_features} + {layer.out_features}"
            rows.append((f"{name} Linear", formula, _parameters(layer)))
        elif isinstance(layer, nn.BatchNorm1d):
            rows.append((f"{name} BatchNorm", f"2 x {layer.num_features}", _parameters(layer)))
    return rows


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def load_weights(model: nn.Sequential, path: Path, train_cfg: Path, training: str | None) -> None:
    """Load a weights file into `model`; nothing in the file is executed.

    `training` is the training that the options in `train_cfg` name; None where they name none, as those of other programs.

    Raises:
        InputError: the file is missing, not a weights file, or of another training or network.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: can't read these weights: {error.strerror}; check --weights_ckpt") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # torch raises whatever the damaged bytes lead it to
        raise InputError(
            f"{path}: not a weights file of torch, or a damaged one ({type(error).__name__}); "
            "give a *_weights.ckpt of a training"
        ) from None
    found = name_in(state)
    if training is not None and found is not None and found != training:
        raise InputError(
            f"{path}: these weights are of another training than the options in {train_cfg}: their training_id is {found}, "
            f"that of the options {training}; give the train.opts beside the weights (--train_cfg)"
        )
    expected = model.state_dict()
    if not isinstance(state, Mapping) or set(state) != set(expected):
        raise InputError(f"{path}: holds {_keys(state)}, expected {_keys(expected)}; {_other_network(state, expected)}")
    for name, tensor in expected.items():
        if getattr(state[name], "shape", None) != tensor.shape:
            shape = tuple(getattr(state[name], "shape", ()))
            raise InputError(
                f"{path}: {name} is {shape}, but the options make it {tuple(tensor.shape)}; "
                "give the train.opts that belongs to these weights (--train_cfg)"
            )
    model.load_state_dict(state, strict=True)


def _other_network(state: Any, expected: Mapping[str, Any]) -> str:
    """How the weights' network differs, where it shows, and what to give."""
    for mark, option in (("normalize.mean", "--normalize global"), ("1.running_mean", "--batch_norm")):
        has, wanted = isinstance(state, Mapping) and mark in state, mark in expected
        if has != wanted and isinstance(state, Mapping) and any(str(key).endswith(".weight") for key in state):
            these, options = ("with", "without") if has else ("without", "with")
            return (
                f"the weights are of a training {these} {option}, the options of one {options}; give the train.opts that "
                "belongs to these weights (--train_cfg)"
            )
    return "give weights of this kind of network"


def _keys(state: Any) -> str:
    return ", ".join(map(str, list(state)[:8])) if isinstance(state, Mapping) else f"a {type(state).__name__}"
