"""The context-window MLP: C*D inputs, hidden layers, log-softmax over the speakers.

The classic network, and the default, is three hidden ReLU layers. Its options are those of `train.opts`, from which
`model_from_options` makes the same network for training, scoring and export. Whatever the options, the network is a
plain `nn.Sequential` numbered from 0, with one layer named ``normalize`` before it under ``--normalize global``.

Batch normalisation takes the statistics of the global batch, so that W ranks learn what one learns. torch's
`SyncBatchNorm` does this on GPUs only, and a plain `BatchNorm1d` takes each rank's share for itself. Here each rank
adds its share's sums to all others' in one all-reduce forward and one backward, so shares may differ in size, hold
one window, or none. Source: Ioffe, Szegedy, "Batch normalization", 2015.

Shapes: B windows, C frames a window, D features a frame, H units of a hidden layer.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

import torch
from torch import distributed, nn

from shards.errors import InputError, UsageError
from shards.jsontext import shown
from spkid_dist.config.choices import Activation, Normalization
from spkid_dist.config.network import NetworkOptions
from spkid_dist.config.training import MOST_LAYERS
from spkid_dist.process.memory import free_memory, gigabytes

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
}
BYTES_A_PARAMETER = 4
MOST_PARAMETERS = 2**48  # more have no addresses


def network_options(options: Mapping[str, Any], where: str = "train.opts") -> NetworkOptions:
    """The network's options among those of a training, which may lack what is newer than it.

    Raises:
        InputError: one of them can't be; `where` is for messages.
    """
    given = {field.name: options[field.name] for field in fields(NetworkOptions) if field.name in options}
    for name, value in given.items():
        expected = _expectation(name, value)
        if expected:
            raise InputError(
                f"{where}: {name} is {shown(value)}, expected {expected}; give the train.opts of a training"
            )
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


def model_from_options(options: Mapping[str, Any], where: str = "train.opts", *, empty: bool = False) -> nn.Sequential:
    """The network that a training's options describe, with random weights: (B, C*D) -> (B, num_spks) log-probabilities.

    `empty`: its tensors have shapes and no values (torch's device meta), and take no memory until weights are assigned.

    Raises:
        InputError: an option of the network can't be.
        UsageError: the network does not fit into this machine's memory.
    """
    network = network_options(options, where)
    if empty:
        if network.num_parameters > MOST_PARAMETERS:
            raise InputError(
                f"{where}: describes a network of {network.num_parameters:,} parameters, expected {MOST_PARAMETERS:,} or less; "
                "give the train.opts of a training"
            )
        with torch.device("meta"):
            return _build(network)
    _check_memory(network)
    return _build(network)


def _build(network: NetworkOptions) -> nn.Sequential:
    width, layers = network.in_features, list[nn.Module]()
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


class _Standardize(torch.autograd.Function):
    """A share (B, H) float32 to mean 0 and variance 1 over the global batch.

    Returns that, and of the global batch the mean and the variance (H,), and G, float64.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
        # Squares about a value near the mean lose nothing in float32; torch.var_mean takes ten times as long along columns.
        total = x.sum(dim=0, dtype=torch.float64)
        near = (total / max(len(x), 1)).float()
        squares = (x - near).square_().sum(dim=0) + near.double() * (2 * total - len(x) * near.double())
        sums = torch.cat([total, squares, total.new_tensor([len(x)])])
        _sum_over_ranks(sums)
        count = sums[-1]
        mean, squares = (sums[:-1] / count).chunk(2)
        variance = (squares - mean.square()).clamp(min=0)
        scale = (variance + eps).rsqrt().float()
        standard = (x - mean.float()).mul_(scale)
        ctx.save_for_backward(standard, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return standard, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        standard, scale, count = ctx.saved_tensors
        gradient = gradients[0]
        sums = torch.cat([gradient.sum(dim=0), (gradient * standard).sum(dim=0)])
        _sum_over_ranks(sums)
        mean, projection = (sums / count.float()).chunk(2)
        return (gradient - mean).addcmul_(standard, projection, value=-1).mul_(scale), None


def _sum_over_ranks(values: torch.Tensor) -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(values)


class GlobalBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` of (B, H) whose statistics in training are those of the global batch; the same state_dict.

    A global batch moves the running statistics by its share of a full one, which has `full_batch` windows: the last batch of
    an epoch may hold a single window, and would count as much as a thousand. Without `full_batch` each batch counts fully. One
    window has no deviation: in training it is normalised to 0 (`nn.BatchNorm1d` raises), and the running variance stays.
    """

    def __init__(self, num_units: int, *, full_batch: int | None = None) -> None:
        super().__init__(num_units)
        self.full_batch = full_batch
        self._windows: torch.Tensor | None = None  # that came since `begin_statistics`

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x (B, H), B from 0; in training, all ranks must call it together."""
        if not self.training:
            return super().forward(x)
        standard, mean, variance, count = _Standardize.apply(x.float(), self.eps)  # type: ignore[no-untyped-call]
        self._track(mean, variance, count)
        return torch.addcmul(self.bias, standard, self.weight).to(x.dtype)

    def begin_statistics(self) -> None:
        """Compute the running statistics anew: until `end_statistics` they are means in which each window counts the same."""
        self.reset_running_stats()
        self._windows = torch.zeros((), dtype=torch.float64, device=self.weight.device)
        self.train()

    def end_statistics(self) -> None:
        """Keep the statistics since `begin_statistics`."""
        self._windows = None
        self.eval()

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        """Move the running statistics, of evaluation, towards those of this batch of `count` windows."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        unbiased = variance * (count / (count - 1).clamp(min=1))
        if self._windows is not None:
            self._windows += count
            weight = count / self._windows.clamp(min=1)
        else:
            share = (count / self.full_batch).clamp(max=1) if self.full_batch else torch.ones_like(count)
            weight = self.momentum * share
        for running, found, needed in ((self.running_mean, mean, 1), (self.running_var, unbiased, 2)):
            moved = running.lerp(found.float(), weight.float())
            running.copy_(torch.where(count >= needed, moved, running))  # on the device: nobody waits for `count`
        self.num_batches_tracked.add_(count > 0)
