"""Checkpoints whose files are what somebody wrote, and yet no checkpoints of this training: each is passed over, whole."""

import io
import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
import xxhash
from flippedbits import random_flips
from training import OPTIONS, checkpoints

from shards import InputError, SpkidError
from spkid_dist.config import TrainConfig
from spkid_dist.model import model_from_options
from spkid_dist.ranks.accelerator import make_accelerator
from spkid_dist.ranks.console import RunLog
from spkid_dist.train import train_model
from spkid_dist.trained import options_of
from spkid_dist.training.checkpoint import CheckpointFolder, DamagedCheckpointError, read_checkpoint
from spkid_dist.training.job import Job
from spkid_dist.training.learner import make_learner
from spkid_dist.training.preemption import StopRequest
from spkid_dist.training.resume import go_on
from spkid_dist.training.startup import open_data
from spkid_dist.training.state import place_of

KINDS = {
    "adam": {"batch_norm": True, "average": "epochs:2"},
    "adamw": {"optimizer": "adamw"},
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "lr": 0.01, "average": "ema:0.9"},
}


@pytest.fixture(scope="module")
def made(shards, tmp_path_factory):
    """Short trainings, and what goes on from their checkpoints: kind -> (folder, Resumer)."""
    found = {}
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("ACCELERATE_USE_CPU", "true")
        for kind, changes in KINDS.items():
            folder = tmp_path_factory.mktemp(kind) / "ckpt"
            options = OPTIONS | shards | changes | {"epoch": 2, "hsize": 4, "checkpoint_steps": 11, "save_path": folder}
            config = TrainConfig(**options, keep_checkpoints=9, mixed_precision="no")
            train_model(config)
            shutil.copytree(folder / "checkpoints", folder.parent / "before/checkpoints")
            for path in checkpoints(folder.parent / "before")[:-2]:
                shutil.rmtree(path)
            (folder.parent / "before/checkpoints/checkpoints.json").unlink()
            found[kind] = folder.parent / "before/checkpoints", Resumer(config, stack)
        yield found


class Resumer:
    """A training up to where it goes on, again and again."""

    def __init__(self, config, stack):
        self.said = []
        log = RunLog(shown=False)
        log.line = self.said.append
        accelerator = stack.enter_context(
            make_accelerator(precision="no", timeout_minutes=1, tracker=None, folder=config.save_path)
        )
        self._job = Job(config=replace(config, resume="auto"), accelerator=accelerator, log=log, request=StopRequest())
        self._data = open_data(self._job)
        stack.enter_context(self._data.closed_at_end())
        network = model_from_options(options_of(config) | self._data.options)
        self._learner = make_learner(config, accelerator, network, "graph", self._data.training.num_windows)

    def go_on(self, folder, **changes):
        """What is gone on from in `folder`, the network's state then, and the place; raises as a training does."""
        learner, data = self._learner, self._data
        self.said.clear()
        data.training.set_epoch(0)
        learner.statistics.take_over({"tr_loss": [], "tr_acc": [], "va_loss": [], "va_acc": []})
        before = {name: one.clone() for name, one in learner.network.state_dict().items()}
        job = replace(self._job, config=replace(self._job.config, **changes))
        try:
            found = go_on(job, learner, data, CheckpointFolder(folder, 9))
        except SpkidError:
            assert all(torch.equal(before[name], one) for name, one in learner.network.state_dict().items())
            assert place_of(learner, data.training) == {"epoch": 0, "position": 0}
            assert learner.statistics.epochs == 0
            raise
        return found, learner.network.state_dict(), place_of(learner, data.training)

    def optimizer_states(self):
        """What the optimiser holds of each parameter."""
        return list(self._learner.optimizer.state.values())


@pytest.fixture
def adam(made, tmp_path):
    """What goes on from checkpoints of a training with Adam; and a copy of the last two of them."""
    return resumer_of(made, "adam", tmp_path)


def resumer_of(made, kind, tmp_path):
    folder, resumer = made[kind]
    shutil.copytree(folder, tmp_path / "checkpoints")
    return resumer, tmp_path / "checkpoints"


def reseal(path, *, values=None, state=None):
    """Change the plain values of a checkpoint, or its tensors, in place, and write the digests anew."""
    if values is not None:
        found = json.loads((path / "training.json").read_text())
        changed = values(found)
        found = found if changed is None else changed
        text = found if isinstance(found, bytes) else json.dumps(found).encode()
        (path / "training.json").write_bytes(text)
    if state is not None:
        found = torch.load(path / "state.pt", weights_only=True)
        changed = state(found)
        found = found if changed is None else changed
        buffer = io.BytesIO()
        if not isinstance(found, bytes):
            torch.save(found, buffer)
        (path / "state.pt").write_bytes(found if isinstance(found, bytes) else buffer.getvalue())
    files = {name: (path / name).read_bytes() for name in ("state.pt", "training.json")}
    written = {name: {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)} for name, data in files.items()}
    (path / "manifest.json").write_text(json.dumps({"format": 1, "files": written}))


def put(*keys, to):
    """What sets the value at a place of nested dictionaries and lists."""

    def change(value):
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to(value[keys[-1]]) if callable(to) else to

    return change


def without(*keys):
    def change(value):
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]

    return change


W, MEAN = ("model", "0.weight"), ("model", "1.running_mean")
FIRST = ("optimizer", "state", 0)
STATES = {
    "no file of torch": lambda _: b"nothing",
    "a list": lambda _: [1],
    "a tensor": lambda _: torch.ones(3),
    "nothing in it": lambda _: {},
    "without the network": without("model"),
    "without the optimiser": without("optimizer"),
    "without the schedule": without("schedule"),
    "a network that is a list": put("model", to=[1]),
    "a layer less": without(*W),
    "a layer more": lambda s: s["model"].update(a=torch.ones(1)),
    "weights of another shape": put(*W, to=lambda one: one[:, :-1]),
    "weights of another type": put(*W, to=lambda one: one.double()),
    "weights that are a number": put(*W, to=1.0),
    "weights without values": put(*W, to=lambda one: one.to("meta")),
    "sparse weights": put(*W, to=lambda one: one.to_sparse()),
    "expanded weights": put(*W, to=lambda one: torch.ones(1).expand(one.shape)),
    "NaN in the weights": put(*W, to=lambda one: one * torch.nan),
    "infinite statistics": put(*MEAN, to=lambda one: one + torch.inf),
    "an optimiser that is a list": put("optimizer", to=[1]),
    "an optimiser without states": without("optimizer", "state"),
    "states that are a list": put("optimizer", "state", to=[1]),
    "a parameter less": without(*FIRST),
    "a parameter more": lambda s: s["optimizer"]["state"].update({99: s["optimizer"]["state"][0]}),
    "parameters by names": lambda s: s["optimizer"].update(state={str(k): v for k, v in s["optimizer"]["state"].items()}),
    "a parameter's state that is a number": put(*FIRST, to=3),
    "without a moment": without(*FIRST, "exp_avg"),
    "a moment of another shape": put(*FIRST, "exp_avg", to=lambda one: one.T),
    "a moment without values": put(*FIRST, "exp_avg", to=lambda one: one.to("meta")),
    "a sparse moment": put(*FIRST, "exp_avg_sq", to=lambda one: one.to_sparse()),
    "a moment of whole numbers": put(*FIRST, "exp_avg", to=lambda one: one.long()),
    "a moment that is no number": put(*FIRST, "exp_avg", to=lambda one: one * torch.nan),
    "squares below 0": put(*FIRST, "exp_avg_sq", to=lambda one: -1 - one),
    "steps that are no number": put(*FIRST, "step", to=torch.tensor(torch.nan)),
    "steps without a value": put(*FIRST, "step", to=torch.tensor(1.0, device="meta")),
    "whole numbers of steps": put(*FIRST, "step", to=torch.tensor(3)),
    "complex steps": put(*FIRST, "step", to=torch.tensor(3j)),
    "steps in a row": put(*FIRST, "step", to=torch.ones(1)),
    "a moment without a shape": put(*FIRST, "exp_avg", to=lambda one: one.reshape(-1)[0].clone()),
    "many numbers of steps": put(*FIRST, "step", to=torch.ones(7)),
    "a schedule that is a list": put("schedule", to=[1]),
    "a schedule that counts in words": put("schedule", "epochs_since", to="one"),
    "a schedule of more epochs than were trained": put("schedule", "reductions", to=10**9),
    "an average without digests": put("average", to={}),
    "an average of digests that are none": put("average", "digests", to={0: 5}),
    "an average of no epochs": put("average", "digests", to={"zero": "a"}),
}  # fmt: skip


def nested(_):
    return b'{"stream": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"


VALUES = {
    "no JSON": lambda _: b"{",
    "a list": lambda _: [1],
    "deep": nested,
    "a number of 5,000 digits": lambda v: json.dumps(v).replace('"version": 1', '"version": ' + "1" * 5000).encode(),
    "a number too large": lambda v: json.dumps(v).replace('"version": 1', '"version": 1e999').encode(),
    "NaN": put("tallies", 0, 0, to=float("nan")),
    "a name twice": lambda v: json.dumps(v).replace('"version": 1', '"version": 1, "version": 1').encode(),
    "half a character": put("stream", "ledger", to="\ud800"),
    "not UTF-8": lambda v: json.dumps(v).encode("utf-16"),
    "without a stream": without("stream"),
    "without statistics": without("statistics"),
    "without tallies": without("tallies"),
    "without data": without("data"),
    "without options": without("options"),
    "options without an epoch": without("options", "epoch"),
    "a stream that is a list": put("stream", to=[1]),
    "a stream of another version": put("stream", "version", to=99),
    "an epoch in words": put("stream", "epoch", to="two"),
    "an epoch of the future": put("stream", "epoch", to=10**12),
    "a place below 0": put("stream", "position", to=-1),
    "a place behind the end": lambda v: v["stream"].update(epoch=len(v["statistics"]["va_loss"]), position=10**9),
    "an order that is another": put("stream", "identity", "seed", to=99),
    "an order that is nothing": put("stream", "identity", to=None),
    "a ledger in words": put("stream", "ledger", to={"count": "a", "total": 1, "xor": 1}),
    "a ledger beyond 64 bits": put("stream", "ledger", to={"count": 1, "total": 2**64, "xor": 1}),
    "tallies that are a number": put("tallies", to=5),
    "no tally": put("tallies", to=[]),
    "tallies of two values": put("tallies", to=[[0.0, 0.0]]),
    "losses in words": put("statistics", "va_loss", to=["one", "two"]),
    "columns of several lengths": put("statistics", "va_acc", to=[0.5] * 9),
    "a column less": without("statistics", "va_loss"),
    "a count that is no whole number": put("statistics", "va_wrong", to=lambda old: [0.5] * len(old)),
    "threads in words": put("threads", to="two"),
    "a training without a name": put("training_id", to="../x"),
    "data that are a list": put("data", to=[1]),
}  # fmt: skip


def check_passed_over(resumer, folder):
    """The last checkpoint is passed over in one line, and all is gone on from the one before it."""
    *_, before, last = checkpoints(folder.parent)
    found, weights, place = resumer.go_on(folder)
    assert found.path == before
    assert resumer.said[0].startswith(f"{last}: ")
    assert resumer.said[0].endswith("; looking at the one before it")
    assert "\n" not in resumer.said[0]
    assert len(resumer.said[0]) < 600
    expected = torch.load(before / "state.pt", weights_only=True)["model"]
    assert all(torch.equal(weights[name], one) for name, one in expected.items())
    assert place["position"] in (0, found.values["stream"]["position"], 1782)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("kind", STATES)
def test_tensors_that_are_no_state_of_this_training_are_passed_over(adam, kind):
    resumer, folder = adam
    reseal(checkpoints(folder.parent)[-1], state=STATES[kind])
    check_passed_over(resumer, folder)


@pytest.mark.parametrize("kind", VALUES)
def test_values_that_are_none_of_a_training_are_passed_over(adam, kind):
    resumer, folder = adam
    reseal(checkpoints(folder.parent)[-1], values=VALUES[kind])
    check_passed_over(resumer, folder)


@pytest.mark.parametrize(
    "change",
    [
        put(*FIRST, "momentum_buffer", to=lambda one: one * torch.nan),
        put(*FIRST, "momentum_buffer", to=None),
        put("average", to={"digests": {}}),
        put("average", "0.weight", to=lambda one: one.to("meta")),
        without("average"),
        lambda states: states["optimizer"]["state"].update({0: {"exp_avg": 1}}),
    ],
)
def test_other_optimisers_and_averages_are_checked_too(made, tmp_path, change):
    resumer, folder = resumer_of(made, "sgd", tmp_path)
    reseal(checkpoints(tmp_path)[-1], state=change)
    check_passed_over(resumer, folder)


def laid_out_oddly(one):
    """A tensor whose values are all the last one of its memory."""
    return one.reshape(-1).contiguous()[-1:].as_strided(one.shape, (0,) * one.ndim)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "lay_out", [laid_out_oddly, lambda one: one.T.contiguous().T], ids=["at the end", "by columns"]
)
def test_moments_in_any_memory_order_are_taken_over_in_memory_of_their_own(made, tmp_path, kind, lay_out):
    """Kernels read as many values as a parameter has from the first one on, wherever that lies."""
    resumer, folder = resumer_of(made, kind, tmp_path)

    def change(states):
        for state in states["optimizer"]["state"].values():
            shared = state.get("exp_avg")
            state.update({name: lay_out(one) for name, one in state.items() if name != "step" and one.ndim == 2})
            if "exp_avg_sq" in state and shared is not None and shared.ndim == 2:
                state["exp_avg_sq"] = state["exp_avg"] = lay_out(shared.abs())

    last = checkpoints(tmp_path)[-1]
    reseal(last, state=change)
    written = torch.load(last / "state.pt", weights_only=True)["optimizer"]["state"]
    assert resumer.go_on(folder)[0].path == last
    places = []
    for state, expected in zip(resumer.optimizer_states(), written.values(), strict=True):
        for name, one in state.items():
            assert one.is_contiguous(), name
            assert torch.equal(one.cpu(), expected[name]), name
            places += [(name, one.data_ptr())] if name != "step" else []
    assert len({at for _, at in places}) == len(places)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_training_has_written_is_whole(made, tmp_path, kind):
    resumer, folder = resumer_of(made, kind, tmp_path)
    last = checkpoints(tmp_path)[-1]
    reseal(last, state=lambda _: None, values=lambda _: None)
    found, weights, place = resumer.go_on(folder)
    assert (found.path, place, len(resumer.said)) == (last, {"epoch": 2, "position": 0}, 1)
    expected = torch.load(last / "state.pt", weights_only=True)["model"]
    assert all(torch.equal(weights[name], one) for name, one in expected.items())


def test_a_checkpoint_that_is_asked_for_by_name_is_one_line(adam):
    resumer, folder = adam
    last = checkpoints(folder.parent)[-1]
    reseal(last, state=without("optimizer"))
    with pytest.raises(DamagedCheckpointError, match=r"a damaged checkpoint: it lacks the state of optimizer"):
        resumer.go_on(folder, resume=str(last))


def test_other_options_are_refused_and_not_passed_over(adam):
    resumer, folder = adam
    reseal(checkpoints(folder.parent)[-1], values=put("options", "seed", to=[[1] * 99]))
    with pytest.raises(Exception, match=r"--seed \d+: .* was trained with \[\[1, 1, .*\.\.\.; continue with that"):
        resumer.go_on(folder)


def test_what_another_kind_of_device_has_written_is_refused_and_not_passed_over(adam):
    resumer, folder = adam
    reseal(checkpoints(folder.parent)[-1], state=lambda states: states.update(scaler={"scale": 1.0}))
    with pytest.raises(InputError, match="the kind of device that wrote it"):
        resumer.go_on(folder)


def test_where_none_is_whole_nothing_is_taken_over(adam):
    resumer, folder = adam
    for path in checkpoints(folder.parent):
        reseal(path, state=put(*W, to=lambda one: one.to("meta")))
    with pytest.raises(InputError, match=r"none of its \d checkpoints is whole"):
        resumer.go_on(folder)


def test_the_settings_of_the_optimiser_are_those_of_the_options(made, tmp_path):
    resumer, folder = resumer_of(made, "adam", tmp_path)
    reseal(
        checkpoints(tmp_path)[-1], state=put("optimizer", "param_groups", to=[{"lr": "x", "params": [5], "betas": "y"}])
    )
    found, *_ = resumer.go_on(folder)
    assert found.path == checkpoints(tmp_path)[-1]


@pytest.mark.parametrize("name", ["state.pt", "training.json", "manifest.json"])
def test_no_flipped_bit_of_a_checkpoint_changes_what_is_read(adam, name):
    _, folder = adam
    last = checkpoints(folder.parent)[-1]
    expected, data = read_checkpoint(last), (last / name).read_bytes()
    accepted = 0
    for _, changed in random_flips(data, 300):
        (last / name).write_bytes(changed)
        try:
            found = read_checkpoint(last)
        except DamagedCheckpointError as error:
            assert "\n" not in str(error)
        else:
            assert found == expected
            accepted += 1
    assert accepted == 0 or name == "manifest.json"  # which has blanks


MANIFESTS = [
    b"",
    b"{",
    b"[1]",
    b"null",
    b"{}",
    b'{"format": 1}',
    b'{"format": 2, "files": {}}',
    b'{"format": 1, "files": []}',
    b'{"format": 1, "files": {"state.pt": 5}}',
    b'{"format": 1, "files": {"state.pt": {"bytes": -1, "xxh3_128": "a"}}}',
    b'{"format": 1, "files": {"state.pt": {"bytes": 1e99, "xxh3_128": "a"}}}',
    b'{"format": 1, "files": {"../state.pt": {"bytes": 1, "xxh3_128": "a"}}}',
    b'{"format": ' + b"1" * 5000 + b"}",
    b"[" * 50_000,
    b"\xff\xfe",
    b" " * 2_000_000,
]


@pytest.mark.parametrize("text", MANIFESTS, ids=lambda text: repr(text[:40]))
def test_a_manifest_that_is_none_is_passed_over(adam, text):
    resumer, folder = adam
    (checkpoints(folder.parent)[-1] / "manifest.json").write_bytes(text)
    check_passed_over(resumer, folder)


def test_a_pipe_in_a_checkpoint_is_not_waited_for(adam):
    resumer, folder = adam
    last = checkpoints(folder.parent)[-1]
    (last / "training.json").unlink()
    os.mkfifo(last / "training.json")
    check_passed_over(resumer, folder)
