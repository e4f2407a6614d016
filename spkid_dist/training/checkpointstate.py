"""Check that a checkpoint has all that a training needs to go on, before anything of it is taken over.

The files of a checkpoint may be what was written, and yet not be a training's: another program wrote them, or a copy was mended
by hand. What is wrong is found here, so that the one before it is taken (`DamagedCheckpointError`), and no part of a training
goes on from one checkpoint and another part from elsewhere. Refused, and not passed over, is what a training of another kind of
device or another version has written: the checkpoints before it are no better.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from shards.errors import InputError
from shards.jsontext import from_json, shown
from spkid_dist.dataset import WindowDataset
from spkid_dist.streaming.resumable import STATE_VERSION
from spkid_dist.trainedfolder import TrainStatistics
from spkid_dist.training.averaging import EpochAverage, is_made_of_files
from spkid_dist.training.checkpoint import Checkpoint, DamagedCheckpointError
from spkid_dist.training.learner import Learner
from spkid_dist.weights.archive import load_archive, not_plain
from spkid_dist.weights.file import ID_NAME

WORD = 2**64
TRAINING_ID = re.compile("[0-9a-f]{32}")
TALLY_VALUES = 3


@dataclass(frozen=True)
class _Stream:
    """What a stream's state holds (`spkid_dist.streaming.resumable`)."""

    version: int
    epoch: int
    position: int
    skip_batches: int | None
    ledger: Any
    identity: dict[str, Any]
    ended: bool = False


@dataclass(frozen=True)
class _Options:
    """What of the options is compared by its size; all others are compared for being the same."""

    epoch: int


@dataclass(frozen=True)
class _Values:
    """What a checkpoint's plain values hold; those of earlier versions have no threads and no training_id."""

    stream: _Stream
    tallies: list[list[float]]
    statistics: dict[str, Any]
    data: dict[str, str]
    options: _Options
    threads: int = 1
    training_id: str | None = None


def check_values(checkpoint: Checkpoint) -> None:
    """Raise DamagedCheckpointError where a checkpoint's plain values are not those of any training."""
    try:
        values: _Values = from_json(_Values, checkpoint.values)
        statistics = TrainStatistics()
        statistics.take_over(values.statistics)
        _check_place(values.stream, statistics.epochs)
        _require(
            all(len(one) == TALLY_VALUES for one in values.tallies) and bool(values.tallies), "its tallies are no sums"
        )
        name = values.training_id
        _require(
            name is None or TRAINING_ID.fullmatch(name) is not None,
            f"{ID_NAME} is {shown(name)}, expected the name of a training",
        )
    except ValueError as error:
        raise DamagedCheckpointError(f"{checkpoint.path}: a damaged checkpoint: {error}") from None


def _check_place(stream: _Stream, epochs: int) -> None:
    """Raise ValueError where a stream stands in another epoch than the one that is trained, or was trained last."""
    _require(stream.version == STATE_VERSION, f"its stream is of version {stream.version}, expected {STATE_VERSION}")
    begun = stream.epoch == epochs or (stream.epoch == epochs + 1 and stream.position == 0)
    _require(
        begun, f"its stream stands at window {stream.position} of epoch {stream.epoch} after {epochs} validated epochs"
    )
    if stream.ledger is not None:
        ledger = stream.ledger if isinstance(stream.ledger, dict) else {}
        words = [ledger.get(name) for name in ("count", "total", "xor")]
        are_words = all(type(word) is int and 0 <= word < WORD for word in words)
        _require(are_words and len(ledger) == len(words), f"its ledger is {shown(stream.ledger)}")


def checked_states(checkpoint: Checkpoint, learner: Learner, data: WindowDataset) -> dict[str, Any]:
    """The states of the learner's parts in a checkpoint that `check_values` has passed, on the CPU: what is loaded.

    Raises:
        DamagedCheckpointError: it lacks a part, or a part is not that of this learner.
        InputError: the checkpoint is one of another version or another kind of device.
    """
    try:
        _check_stream(checkpoint.values["stream"], data)
        states: Any = load_archive(io.BytesIO(checkpoint.state))
        _require(
            isinstance(states, dict), f"it holds a {type(states).__name__}, expected the states of a training's parts"
        )
        _check_parts(checkpoint, states, learner)
        epochs = len(checkpoint.values["statistics"]["va_loss"])
        _check_network("the network", states["model"], learner.network.state_dict())
        optimizer = _checked_optimizer(states["optimizer"], learner.optimizer)
        _check_schedule(states["schedule"], epochs)
        if "scaler" in states:
            _check_scaler(states["scaler"], learner.scaler.state_dict())
        if "average" in states:
            _check_average(states["average"], learner, epochs)
    except ValueError as error:
        raise DamagedCheckpointError(f"{checkpoint.path}: a damaged checkpoint: {error}") from None
    return {**states, "optimizer": optimizer}


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _check_stream(stream: Mapping[str, Any], data: WindowDataset) -> None:
    """Raise ValueError where a stream's state is of another order than that of `data`."""
    position, expected = stream["position"], data.identity
    _require(position <= data.num_windows, f"its stream is at window {position}, but an epoch has {data.num_windows}")
    for name in expected | stream["identity"]:
        found = stream["identity"].get(name)
        _require(
            found == expected.get(name),
            f"its stream has the {name} {shown(found)}, expected {shown(expected.get(name))}",
        )


def _check_parts(checkpoint: Checkpoint, states: Mapping[Any, Any], learner: Learner) -> None:
    unneeded = {"average"} if is_made_of_files(learner.average) else set[str]()
    missing, more = learner.parts.keys() - unneeded - states.keys(), states.keys() - learner.parts.keys()
    lost = sorted(missing - {"scaler"})
    _require(not lost, f"it lacks the state of {', '.join(lost)}")
    if missing or more:
        raise InputError(
            f"{checkpoint.path}: it has the state of {', '.join(map(str, states))}, expected {', '.join(learner.parts)}; "
            "continue it with the version and the kind of device that wrote it"
        )


def _check_network(what: str, found: Any, expected: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError where this is no state of a network with finite tensors like those `expected`."""
    _require(isinstance(found, Mapping), f"the state of {what} is a {type(found).__name__}")
    more = [str(name) for name in found if name not in expected]
    _require(not more, f"{what} has {', '.join(more[:3])} besides what it should have")
    for name, tensor in expected.items():
        _require(name in found, f"{what} lacks {name}")
        _check_tensor(f"{name} of {what}", found[name], tensor)
        _require(bool(torch.isfinite(found[name]).all()), f"{name} of {what} is not finite in all its values")


def _check_tensor(what: str, found: Any, expected: torch.Tensor) -> None:
    problem = not_plain(found)
    _require(problem is None, f"{what} is {problem}")
    _require(
        found.shape == expected.shape, f"{what} is {tuple(found.shape)}, but in this network {tuple(expected.shape)}"
    )
    _require(found.dtype == expected.dtype, f"{what} is of {found.dtype}, expected {expected.dtype}")


def _checked_optimizer(found: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of the optimiser's parameters, with the settings of `optimizer`, which follow from the options.

    Before the first step of an optimiser, and always without a momentum, there is no state.
    """
    states = found.get("state") if isinstance(found, Mapping) else None
    _require(isinstance(states, Mapping), "the state of the optimizer has no states of parameters")
    assert isinstance(states, Mapping)
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {"step", "exp_avg", "exp_avg_sq"} if "betas" in groups[0] else {"momentum_buffer"}
    kept = {number: state for number, state in states.items() if not _is_nothing(state)}
    if not kept:
        return {"state": {}, "param_groups": groups}
    numbers = set(range(len(parameters)))
    _require(set(kept) == numbers, f"the optimizer has states of {len(kept)} of {len(parameters)} parameters")
    for number, parameter in enumerate(parameters):
        what = f"the optimizer's state of parameter {number}"
        _require(
            isinstance(kept[number], Mapping) and set(kept[number]) == names,
            f"{what} is not {', '.join(sorted(names))}",
        )
        for name, value in kept[number].items():
            _check_moment(f"{name} of {what}", name, value, parameter)
    # The optimisers' kernels count on values that lie one after the other, and in memory that no other tensor has.
    own = {
        number: {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
        for number, state in kept.items()
    }
    return {"state": own, "param_groups": groups}


def _is_nothing(state: Any) -> bool:
    return isinstance(state, Mapping) and all(value is None for value in state.values())


def _check_moment(what: str, name: str, value: Any, parameter: torch.Tensor) -> None:
    if name == "step":
        problem = not_plain(value)
        _require(problem is None, f"{what} is {problem}")
        _require(
            value.shape == () and value.dtype == torch.float32,
            f"{what} is {tuple(value.shape)} of {value.dtype}, expected one value of {torch.float32}",
        )
        _require(0 <= float(value) < torch.inf, f"{what} is no number of steps")
        return
    _check_tensor(what, value, parameter)
    _require(not bool(torch.isnan(value).any()), f"{what} has values that are no numbers")
    _require(name != "exp_avg_sq" or bool((value >= 0).all()), f"{what} has squares below 0")


def _check_schedule(found: Any, epochs: int) -> None:
    numbers = [found.get(name) for name in ("epochs_since", "reductions")] if isinstance(found, Mapping) else []
    counted = bool(numbers) and all(type(number) is int and 0 <= number <= epochs for number in numbers)
    _require(counted, f"the state of the schedule does not count {epochs} epochs")


def _check_scaler(found: Any, expected: Mapping[str, Any]) -> None:
    _require(isinstance(found, Mapping) and set(found) == set(expected), "the state of the scaler is none of a scaler")
    for name, value in found.items():
        _require(type(value) in (int, float) and 0 <= value < torch.inf, f"{name} of the scaler is {shown(value)}")


def _check_average(found: Any, learner: Learner, epochs: int) -> None:
    if not isinstance(learner.average, EpochAverage):
        assert learner.average is not None
        _check_network("the average", found, learner.average.network.state_dict())
        return
    digests = found.get("digests") if isinstance(found, Mapping) else None
    known = isinstance(digests, Mapping) and all(type(one) is int and 0 <= one <= epochs for one in digests)
    assert isinstance(digests, Mapping) or not known
    _require(
        known and all(isinstance(one, str) for one in (digests or {}).values()),
        "the average names no digests of epochs",
    )
