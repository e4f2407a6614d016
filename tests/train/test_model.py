"""The network is the one that the options describe, and its weights keep plain names."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from shards import InputError, UsageError
from spkid_dist.model import (
    ACTIVATIONS,
    GlobalBatchNorm,
    build_model,
    describe_model,
    model_from_options,
    network_options,
    set_moments,
)

pytestmark = pytest.mark.fast

CLASSIC = {"input_dim": 3, "in_frames": 5, "hsize": 7, "num_spks": 4}


def keys(**options):
    return list(model_from_options(CLASSIC | options).state_dict())


def test_the_classic_network_has_the_plain_keys():
    plain = [f"{number}.{name}" for number in (0, 2, 4, 6) for name in ("weight", "bias")]
    assert keys() == list(build_model(15, 7, 4).state_dict()) == plain
    assert keys(normalize="utterance") == plain
    assert keys(normalize="global") == ["normalize.mean", "normalize.std", *plain]


def test_the_classic_network_begins_with_the_weights_of_one_built_by_hand():
    torch.manual_seed(3)
    ours = model_from_options(CLASSIC | {"normalize": "global"})
    torch.manual_seed(3)
    by_hand = nn.Sequential(
        *(nn.Linear(15, 7), nn.ReLU(), nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 4))
    )
    for name, tensor in by_hand.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)


@pytest.mark.parametrize(("name", "kind"), ACTIVATIONS.items())
def test_layers_come_in_their_order(name, kind):
    model = model_from_options(CLASSIC | {"num_layers": 2, "activation": name, "dropout": 0.5, "batch_norm": True})
    hidden = [nn.Linear, GlobalBatchNorm, kind, nn.Dropout]
    assert [type(layer) for layer in model] == [*hidden, *hidden, nn.Linear, nn.LogSoftmax]


def test_the_parameters_are_counted():
    model = model_from_options(CLASSIC | {"num_layers": 1, "batch_norm": True})
    assert describe_model(model) == [
        ("0 Linear", "15 x 7 + 7", 112),
        ("1 BatchNorm", "2 x 7", 14),
        ("3 Linear", "7 x 4 + 4", 32),
    ]
    for options in ({}, {"num_layers": 1, "batch_norm": True}, {"num_layers": 5}):
        model = model_from_options(CLASSIC | options)
        counted = sum(parameter.numel() for parameter in model.parameters())
        assert network_options(CLASSIC | options).num_parameters == counted


def test_global_normalisation_is_the_first_layer():
    model = model_from_options(CLASSIC | {"normalize": "global"})
    set_moments(model, [1.0, -2.0, 5.0], [2.0, 0.5, 0.0])
    x = torch.randn(6, 15)
    frames = x.view(6, 5, 3).numpy()
    expected = (frames - np.array([1, -2, 5])) / np.array([2, 0.5, 1])
    np.testing.assert_allclose(model[0](x).view(6, 5, 3), expected, rtol=1e-5)
    assert model(torch.empty(0, 15)).shape == (0, 4)


def test_a_network_that_no_machine_holds_is_refused():
    with pytest.raises(
        UsageError, match=r"--hsize 1000000000, --num_layers 3: .*takes 8,000,000,088 GB.*smaller --hsize"
    ):
        model_from_options(CLASSIC | {"hsize": 10**9})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("num_layers", 0, "a whole number from 1"),
        ("num_layers", True, "a whole number from 1"),
        ("num_layers", 10**6, "1000 or less"),
        ("dropout", -0.1, "a number from 0, below 1"),
        ("activation", ["relu"], "one of relu, gelu, silu, tanh, leaky_relu"),
        ("batch_norm", "yes", "true or false"),
    ],
)
def test_options_that_cannot_be_are_refused(name, value, expected):
    with pytest.raises(InputError, match=f"x.opts: {name} is .*, expected {expected}"):
        model_from_options(CLASSIC | {name: value}, "x.opts")


def test_global_batch_norm_of_one_rank_is_torchs():
    torch.manual_seed(0)
    ours, theirs = GlobalBatchNorm(6), nn.BatchNorm1d(6)
    for _ in range(3):
        x = (torch.randn(9, 6) * 3 + 100).requires_grad_()
        twin = x.detach().clone().requires_grad_()
        weight = torch.randn(9, 6)
        for layer, value in ((ours, x), (theirs, twin)):
            functional.mse_loss(layer(value), weight).backward()
        torch.testing.assert_close(x.grad, twin.grad, rtol=1e-3, atol=1e-5)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-3, atol=1e-3)


def test_a_batch_of_one_window_has_no_variance():
    layer = GlobalBatchNorm(3)
    assert torch.equal(layer(torch.randn(1, 3)), torch.zeros(1, 3))
    assert all(torch.isfinite(tensor).all() for tensor in layer.state_dict().values())


def test_a_small_batch_moves_the_running_statistics_by_its_share():
    torch.manual_seed(0)
    layer, plain = GlobalBatchNorm(3, full_batch=100), nn.BatchNorm1d(3)
    full, quarter = torch.randn(100, 3) * 2 + 5, torch.randn(25, 3) + 50
    layer(full)
    plain(full)
    layer(quarter)
    plain.momentum /= 4
    plain(quarter)
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    torch.testing.assert_close(layer.running_var, plain.running_var)


def test_one_window_says_nothing_of_the_deviation():
    torch.manual_seed(0)
    layer = GlobalBatchNorm(3, full_batch=100)
    for _ in range(50):
        layer(torch.randn(100, 3) * 2 + 5)
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    for _ in range(10):
        layer(torch.full((1, 3), 50.0))
    assert torch.equal(layer.running_var, var)
    torch.testing.assert_close(layer.running_mean, mean + 0.01 * (50 - mean), rtol=1e-2, atol=1e-3)


def test_an_empty_global_batch_leaves_the_running_statistics():
    layer = GlobalBatchNorm(3)
    layer(torch.randn(9, 3))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer(torch.empty(0, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
