"""Each option of learning does what it says, on one process as on several, and the defaults are plain Adam."""

import json

import numpy as np
import pytest
import torch
from test_train import best_weights, features, run
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler
from training import statistics

from shards import ShardDataset, UsageError
from spkid_dist.config import ScoreConfig, TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.score import score_utterances
from spkid_dist.streaming.windows import DatasetWindows
from spkid_dist.train import train_model
from spkid_dist.training.learning import Schedule, compile_model, make_optimizer, seed_dropout, training_loss

STEPS = 7  # an epoch


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the trainings of this module shard the corpus, once."""
    return tmp_path_factory.mktemp("learning") / "cache"


@pytest.fixture
def config(synthetic, cache, tmp_path, monkeypatch):
    """A short training in this process."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return options_of(synthetic, cache, tmp_path / "ckpt")


def options_of(corpus, cache, save_path):
    lists = {"tr_list_file": corpus / "cfg/all.train", "va_list_file": corpus / "cfg/all.test"}
    data = {"db_path": corpus / "mcp", "spk2idx": corpus / "cfg/spk2idx.json"} | lists
    return data | {"cache_dir": cache, "save_path": save_path, "epoch": 1, "batch_size": 100}


def training_shards(cache):
    return next(cache.glob("all.train-*"))


def rates(epochs=6, **options):
    """The rates of all steps of a training."""
    schedule = Schedule(TrainConfig(epoch=epochs, **options), STEPS)
    return [schedule.lr(step) for step in range(epochs * STEPS)]


def rates_of_torch(make, epochs=6, lr=0.001, every=1):
    """The rates by a scheduler of torch, stepped after each `every` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    scheduler, found = make(optimizer), []
    for step in range(epochs * STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step()
    return found


def test_a_constant_rate_is_the_rate():
    assert rates() == [0.001] * 42


def test_step_is_torchs():
    expected = rates_of_torch(lambda o: lr_scheduler.StepLR(o, 2, 0.1), every=STEPS)
    assert rates(schedule="step", step_factor=0.1, step_epochs=2) == pytest.approx(expected, rel=1e-9)


def test_cosine_is_torchs():
    expected = rates_of_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, 6 * STEPS))
    assert rates(schedule="cosine") == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("warmup", [None, 0.1, 0.5])
def test_one_cycle_is_torchs(warmup):
    options = {"max_lr": 0.001, "total_steps": 6 * STEPS, "pct_start": warmup or 0.3, "cycle_momentum": False}
    expected = rates_of_torch(lambda o: lr_scheduler.OneCycleLR(o, **options))
    assert rates(schedule="one_cycle", warmup=warmup) == pytest.approx(expected, rel=1e-9)


def test_the_rate_rises_to_lr_and_then_follows_the_schedule():
    rising = [0.001 * k / 21 for k in range(1, 22)]
    assert rates(warmup=0.5) == pytest.approx(rising + [0.001] * 21)
    cosine = [0.0005 * (1 + np.cos(np.pi * k / 21)) for k in range(21)]
    assert rates(warmup=0.5, schedule="cosine") == pytest.approx(rising + cosine)


@pytest.mark.parametrize("schedule", ["constant", "step", "plateau", "cosine", "one_cycle"])
@pytest.mark.parametrize("warmup", [None, 0.0, 0.01, 0.99])
def test_every_rate_is_a_positive_number(schedule, warmup):
    for epochs in (1, 6):
        found = rates(epochs, schedule=schedule, warmup=warmup)
        assert all(0 < rate <= 0.001 * (1 + 1e-12) for rate in found)
    assert 0 < Schedule(TrainConfig(epoch=1, schedule=schedule, warmup=warmup), 1).lr(0) <= 0.001


def test_plateau_is_torchs():
    draw = np.random.default_rng(0)
    losses = np.concatenate([np.linspace(2, 1, 10), 1 + draw.random(30) * 0.2, [0.9], np.full(10, 0.9)]).tolist()
    schedule = Schedule(TrainConfig(schedule="plateau", step_factor=0.5, step_epochs=3), STEPS)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.001)
    twin = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2, threshold=0, eps=0)
    for epoch, loss in enumerate(losses):
        before = schedule.lr(0)
        reduced = schedule.after_validation(is_best=loss < min(losses[:epoch], default=np.inf))
        twin.step(loss)
        assert schedule.lr(0) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        assert reduced == (schedule.lr(0) < before)
    assert schedule.lr(0) < 1e-5


def test_plateau_goes_on_from_its_state():
    options = TrainConfig(schedule="plateau", step_epochs=2)
    is_best = [True, True, False, False, False, False, True, False]
    straight = Schedule(options, STEPS)
    for cut in range(len(is_best)):
        first = Schedule(options, STEPS)
        for best in is_best[:cut]:
            first.after_validation(best)
        continued = Schedule(options, STEPS)
        continued.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for best in is_best[cut:]:
            continued.after_validation(best)
        if cut == 0:
            straight = continued
        assert continued.state_dict() == straight.state_dict()
    assert straight.state_dict()["reductions"] == 2


def test_other_schedules_do_not_follow_the_validation_loss():
    schedule = Schedule(TrainConfig(step_epochs=1), STEPS)
    assert not any(schedule.after_validation(is_best=False) for _ in range(5))
    assert schedule.lr(0) == 0.001


def test_the_defaults_are_a_plain_loop_of_adam(config, cache):
    result = train_model(TrainConfig(**(config | {"epoch": 2})))
    options = json.loads((config["save_path"] / "train.opts").read_text())
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(8 * 21, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU()),
        *(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, options["num_spks"]), nn.LogSoftmax(dim=1)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
    data = WindowDataset(training_shards(cache), batch_size=100)
    for _ in range(result.best_epoch + 1):
        for x, y in data:
            optimizer.zero_grad()
            (functional.nll_loss(model(x), y, reduction="sum") * (1 / len(y))).backward()
            optimizer.step()
    learnt = torch.load(result.best_weights, weights_only=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(learnt[name], tensor)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"weight_decay": 0.1},
        {"schedule": "cosine"},
        {"schedule": "one_cycle"},
        {"warmup": 0.5},
        {"clip_grad_norm": 0.1},
        {"label_smoothing": 0.1},
        {"activation": "silu"},
        {"dropout": 0.2},
        {"batch_norm": True},
        {"normalize": "global"},
        {"normalize": "utterance"},
    ],
    ids=str,
)
def test_each_option_changes_what_is_learnt(config, plain_loss, options):
    result = train_model(TrainConfig(**(config | options)))
    assert result.va_loss != plain_loss
    assert np.log(5) / 3 < result.va_loss < np.log(5)  # something is learnt


@pytest.fixture(scope="module")
def plain_loss(synthetic, cache, tmp_path_factory):
    """The validation loss of the same training by default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        return train_model(TrainConfig(**options_of(synthetic, cache, tmp_path_factory.mktemp("plain")))).va_loss


def test_weight_decay_is_a_part_of_the_gradient_for_adam_and_apart_from_it_for_adamw():
    moved = {}
    for kind in ("adam", "adamw", "sgd"):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, 2.0)
        optimizer = make_optimizer(TrainConfig(optimizer=kind, lr=0.1, weight_decay=0.5), layer)
        layer.weight.grad = torch.zeros(1, 1)
        optimizer.step()
        moved[kind] = 2.0 - layer.weight.item()
    # a gradient of 0.5 * 2: Adam's first step is lr whatever its size; AdamW takes lr * 0.5 of the weight
    assert moved == pytest.approx({"adam": 0.1, "adamw": 0.1, "sgd": 0.1}, rel=1e-5)
    for kind, expected in (("adam", 0.1), ("adamw", 1.0)):
        nn.init.constant_(layer.weight, 20.0)
        make_optimizer(TrainConfig(optimizer=kind, lr=0.1, weight_decay=0.5), layer).step()
        assert 20.0 - layer.weight.item() == pytest.approx(expected, rel=1e-5)


def test_a_clipped_gradient_moves_the_weights_no_further(config, tmp_path):
    options = config | {"batch_size": 10**6, "optimizer": "sgd", "lr": 1.0}  # one step
    start = train_model(TrainConfig(**(options | {"lr": 1e-30}), momentum=0)).best_weights
    weights = [torch.load(start, weights_only=True)]
    for norm in (1e-3, None):
        path = train_model(
            TrainConfig(**(options | {"save_path": tmp_path / f"{norm}"}), momentum=0, clip_grad_norm=norm)
        ).best_weights
        weights.append(torch.load(path, weights_only=True))
    moved = [torch.cat([(w[name] - weights[0][name]).flatten() for name in w]).norm().item() for w in weights[1:]]
    assert moved[0] == pytest.approx(1e-3, rel=1e-2)
    assert moved[1] > 0.01


def test_label_smoothing_is_torchs():
    log_probs = torch.randn(9, 5).log_softmax(dim=1)
    y = torch.arange(9) % 5
    for smoothing in (0.0, 0.1, 0.9):
        expected = functional.cross_entropy(log_probs, y, label_smoothing=smoothing, reduction="sum")
        torch.testing.assert_close(training_loss(log_probs, y, smoothing), expected)
    assert training_loss(log_probs[:0], y[:0], 0.1) == 0


def test_dropout_draws_the_same_for_a_step_whatever_came_before():
    def mask(seed, step, rank):
        seed_dropout(seed, step, rank)
        return tuple(functional.dropout(torch.ones(64), 0.5).tolist())

    places = [(0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)]
    first = [mask(*place) for place in places]
    torch.rand(7)
    assert [mask(*place) for place in places] == first
    assert len(set(first)) == len(places)


@pytest.mark.parametrize("normalize", ["none", "global", "utterance"])
@pytest.mark.parametrize("edge", ["zero", "valid"])
def test_scoring_computes_what_the_training_evaluated(config, normalize, edge, tmp_path):
    options = {"in_frames": 9, "edge": edge, "normalize": normalize, "batch_norm": True, "dropout": 0.1}
    result = train_model(TrainConfig(**config, **options))
    scores = score_utterances(
        ScoreConfig(
            db_path=config["db_path"],
            te_list_file=config["va_list_file"],
            weights_ckpt=result.best_weights,
            train_cfg=config["save_path"] / "train.opts",
            log_file=tmp_path / "results.log",
        )
    )
    assert 1 - scores.wrong_windows.sum() / scores.windows.sum() == pytest.approx(result.va_acc, abs=1e-12)


def test_global_normalisation_is_saved_with_the_weights(config, cache):
    weights = torch.load(train_model(TrainConfig(**config, normalize="global")).best_weights, weights_only=True)
    manifest = ShardDataset(training_shards(cache)).manifest
    torch.testing.assert_close(weights["normalize.mean"], torch.tensor(manifest.mean))
    torch.testing.assert_close(weights["normalize.std"], torch.tensor(manifest.std))


@pytest.mark.usefixtures("plain_loss")  # has made the shards
def test_ranks_learn_what_one_learns_with_shared_statistics(config, synthetic, cache, tmp_path):
    total = DatasetWindows(ShardDataset(training_shards(cache)), 21, "valid").total
    batch_size = next(size for size in range(40, total) if total % size == 1)  # the last batch: one rank has nothing
    options = {"batch_size": batch_size, "num_streams": 7, "shuffle_windows": 112, "log_freq": 1, "epoch": 1}
    options |= {"label_smoothing": 0.1, "clip_grad_norm": 0.5, "normalize": "utterance"}
    options |= {"optimizer": "adamw", "weight_decay": 0.01, "schedule": "one_cycle"}
    train_model(TrainConfig(**(config | options), batch_norm=True))
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    place = ("--cache_dir", cache, "--save_path", tmp_path / "ranks")
    run(*features(synthetic), *flags, *place, "--batch_norm", processes=2)
    one, two = (statistics(folder) for folder in (config["save_path"], tmp_path / "ranks"))
    np.testing.assert_allclose(two["tr_loss"], one["tr_loss"], rtol=2e-3)
    np.testing.assert_allclose(two["va_loss"], one["va_loss"], rtol=2e-3)
    one, two = (
        torch.load(best_weights(folder), weights_only=True) for folder in (config["save_path"], tmp_path / "ranks")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-2, atol=2e-3)


@pytest.mark.usefixtures("plain_loss")  # has made the shards
def test_a_last_batch_of_one_window_leaves_the_shared_statistics_usable(config, cache, tmp_path):
    total = DatasetWindows(ShardDataset(training_shards(cache)), 21, "valid").total
    batch_size = next(size for size in range(100, total) if total % size == 1)
    options = config | {"batch_norm": True, "epoch": 4, "lr": 1e-9}  # the network stays: only statistics move
    ragged, whole = (
        train_model(TrainConfig(**(options | {"batch_size": size, "save_path": tmp_path / str(size)})))
        for size in (batch_size, total)
    )
    ragged, whole = (torch.load(trained.best_weights, weights_only=True) for trained in (ragged, whole))
    for name in ("1.running_var", "4.running_var"):
        towards_true = 1 - 0.9 ** (4 * (total // batch_size))  # of the way from 1, where it began
        expected = 1 + towards_true * (whole[name] - 1) / (1 - 0.9**4)
        assert (ragged[name] / expected).mean().item() == pytest.approx(1, abs=0.03)


def test_batch_normalisation_of_single_windows_is_refused():
    with pytest.raises(UsageError, match="--batch_size 1: with --batch_norm"):
        TrainConfig(batch_size=1, batch_norm=True)


def test_plateau_reduces_the_rate_of_a_training_that_stays(config, capsys):
    options = config | {"epoch": 3, "lr": 1e-12, "schedule": "plateau", "step_epochs": 1, "step_factor": 0.25}
    train_model(TrainConfig(**options))
    assert "learning rate: multiplied by 0.25" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
def test_a_compiled_network_learns_the_same_and_saves_plain_names(config, tmp_path):
    options = config | {"hsize": 10, "batch_norm": True}
    plain = train_model(TrainConfig(**options))
    compiled = train_model(TrainConfig(**(options | {"save_path": tmp_path / "compiled"}), compile=True))
    assert compiled.va_loss == pytest.approx(plain.va_loss, rel=1e-4)
    assert torch.load(compiled.best_weights, weights_only=True).keys() == torch.load(plain.best_weights).keys()


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="--compile: there is no C\\+\\+ compiler no-such-compiler; install it"):
        compile_model(nn.Linear(1, 1), torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_smoothing", 1.0),
        ("label_smoothing", float("nan")),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("warmup", 1.0),
        ("weight_decay", -1.0),
        ("weight_decay", float("inf")),
        ("clip_grad_norm", 0.0),
        ("step_factor", 1.0),
        ("step_factor", 0.0),
        ("step_epochs", 0),
        ("num_layers", 0),
        ("num_layers", 1001),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(UsageError, match=f"--{name} {value}: expected"):
        TrainConfig(**{name: value})


def test_a_network_larger_than_the_memory_is_one_line(config):
    with pytest.raises(UsageError, match=r"this training takes at least .* GB per process, .*give a smaller --hsize"):
        train_model(TrainConfig(**(config | {"hsize": 10**9})))
    assert not (config["save_path"] / "train.opts").exists()


@pytest.mark.usefixtures("plain_loss")  # has made the shards
def test_the_stream_refuses_what_the_network_does(cache):
    with pytest.raises(UsageError, match="--normalize global: expected one of none, utterance"):
        WindowDataset(training_shards(cache), normalize="global")
