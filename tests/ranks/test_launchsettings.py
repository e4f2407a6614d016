"""What accelerate's environment asks for is done, refused in one line, or said to be without effect."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from training import OPTIONS, checkpoints, run

from shards.errors import UsageError
from spkid_dist.config import TrainConfig
from spkid_dist.ranks.settings import (
    check_accumulation,
    check_devices,
    check_settings,
    precision_of,
    settings_without_effect,
)
from spkid_dist.train import train_model


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED is true: asks for DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "True"}, "asks for FSDP"),
        ({"ACCELERATE_USE_MEGATRON_LM": "1"}, "asks for Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "asks for a parallelism configuration"),
        ({"ACCELERATE_USE_FSDP": "perhaps"}, "ACCELERATE_USE_FSDP is 'perhaps': expected true or false"),
        ({"ACCELERATE_DEBUG_MODE": "loud"}, "ACCELERATE_DEBUG_MODE is 'loud': expected true or false"),
        ({"RANK": "first"}, "RANK is 'first': expected a whole number"),
        ({"ACCELERATE_TORCH_DEVICE": "cuda:9"}, "ACCELERATE_TORCH_DEVICE is cuda:9: .*unset it"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(variables, message):
    check_settings({name: "false" for name in variables if name.startswith("ACCELERATE_USE")})
    with pytest.raises(UsageError, match=message):
        check_settings(variables)


@pytest.mark.parametrize("steps", ["4", "many", "0"])
def test_accumulation_over_batches_is_refused(steps):
    check_accumulation({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"})
    with pytest.raises(UsageError, match=f"STEPS is {steps}: .*--accumulation"):
        check_accumulation({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": steps})


def test_the_launchers_precision_is_meant_in_any_case_and_one_that_is_not_done_is_refused():
    found = [precision_of({"ACCELERATE_MIXED_PRECISION": name}, None) for name in ("FP16", "bf16", "No", "")]
    assert found == ["fp16", "bf16", "no", "no"]
    assert precision_of({"ACCELERATE_MIXED_PRECISION": "fp8"}, "bf16") == "bf16"
    assert precision_of({}, None) == "no"
    for name in ("fp8", "float32", "nonsense"):
        with pytest.raises(UsageError, match=f"ACCELERATE_MIXED_PRECISION is '{name}': expected no, bf16, fp16"):
            precision_of({"ACCELERATE_MIXED_PRECISION": name}, None)


def test_what_has_no_effect_is_said():
    assert settings_without_effect({"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_GRADIENT_CLIPPING": "none"}) == []
    dynamo, clipping = settings_without_effect(
        {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_GRADIENT_CLIPPING": "1.0"}
    )
    assert "INDUCTOR: it has no effect here; to compile the network, give --compile" in dynamo
    assert "give --clip_grad_norm" in clipping


@pytest.mark.parametrize(
    ("processes", "devices", "launched", "refused"),
    [(2, 1, True, True), (2, 2, True, False), (1, 1, True, False), (8, 4, True, True), (2, 1, False, False)],
)
def test_more_processes_than_gpus_are_refused_and_one_of_them_says_so(processes, devices, launched, refused):
    said = []
    for rank in range(processes):
        variables = {"LOCAL_RANK": f"{rank}", "LOCAL_WORLD_SIZE": f"{processes}"}
        try:
            check_devices(variables | ({"TORCHELASTIC_RUN_ID": "none"} if launched else {}), devices)
        except UsageError as error:
            said.append((rank, error.everywhere, str(error)))
    if not refused:
        assert said == []
        return
    assert [(rank, quiet) for rank, quiet, _ in said] == [(rank, rank != 0) for rank in range(processes)]
    assert f"{processes} processes were started on this machine, which has {devices} GPU" in said[0][2]
    assert f"--num_processes {devices} (per machine)" in said[0][2]


@pytest.fixture
def config(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return TrainConfig(**OPTIONS | shards | {"epoch": 1, "save_path": tmp_path / "ckpt"})


def outputs(path, x):
    """What a plain network with these weights makes of x."""
    size = OPTIONS["hsize"]
    network = nn.Sequential(
        nn.Linear(5 * 8, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(),
        nn.Linear(size, 5), nn.LogSoftmax(dim=1),
    )  # fmt: skip
    network.load_state_dict(torch.load(path, weights_only=True), strict=True)
    return network(x)


ENGINES = {
    "graph": {"engine": "graph"},
    "eager": {"engine": "eager"},
    "accumulation": {"accumulation": 2},
    "compiled": {"compile": True},
}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler
@pytest.mark.parametrize("backend", ["NO", "INDUCTOR", "EAGER", "nonsense"])
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_saves_the_same_plain_weights_whatever_dynamo_is_set_to(engine, backend, config, monkeypatch):
    if engine == "compiled" and backend != "INDUCTOR":
        pytest.skip("compiled once")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", backend)
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "maybe")
    found = train_model(replace(config, **ENGINES[engine]))
    log = (config.save_path / "train.log").read_text()
    assert (f"ACCELERATE_DYNAMO_BACKEND is {backend}: it has no effect here" in log) == (backend != "NO")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    reference = train_model(replace(config, engine="graph", save_path=config.save_path.with_name("reference")))
    x = torch.linspace(-2, 2, 7 * 40).reshape(7, 40)
    torch.testing.assert_close(outputs(found.best_weights, x), outputs(reference.best_weights, x), rtol=1e-4, atol=1e-5)
    (place,) = checkpoints(config.save_path)
    state = torch.load(place / "state.pt", weights_only=True)["model"]
    assert list(state) == [f"{layer}.{what}" for layer in (0, 2, 4, 6) for what in ("weight", "bias")]


@pytest.mark.long  # one: test_every_engine_saves_the_same_plain_weights
def test_two_ranks_save_plain_weights_with_dynamo_set(config, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    reference = train_model(config)
    options = OPTIONS | shards | {"epoch": 1, "engine": "eager", "save_path": tmp_path / "two"}
    done = run(options, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    (weights,) = (tmp_path / "two").glob("*_weights.ckpt")
    x = torch.linspace(-2, 2, 7 * 40).reshape(7, 40)
    torch.testing.assert_close(outputs(weights, x), outputs(reference.best_weights, x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value"), [("ACCELERATE_USE_FSDP", "true"), ("ACCELERATE_MIXED_PRECISION", "fp8"), ("LOCAL_RANK", "x")]
)
def test_a_training_refuses_them_before_it_makes_its_folder(name, value, config, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=name):
        train_model(config)
    assert not config.save_path.exists()
