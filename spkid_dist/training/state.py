"""Collect the state of a training for a checkpoint, and put it back."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from shards.errors import InputError
from spkid_dist.dataset import WindowDataset
from spkid_dist.streaming.ledger import Ledger
from spkid_dist.training.averaging import is_made_of_files
from spkid_dist.training.checkpoint import Checkpoint
from spkid_dist.training.learner import Learner
from spkid_dist.training.losses import check_finite


def place_of(learner: Learner, data: WindowDataset) -> dict[str, int]:
    """Where a training stands: the epoch, and the windows of it consumed by all ranks together.

    After its last batch an epoch is still this one until it is validated; the stream stands at the next one already.
    """
    if data.epoch > learner.statistics.epochs:
        return {"epoch": learner.statistics.epochs, "position": data.num_windows}
    return {"epoch": data.epoch, "position": data.position}


def plain_state(learner: Learner, data: WindowDataset) -> dict[str, Any]:
    """What of a training is plain values, of all ranks together; called by all."""
    everyone = gather_object([(learner.tally.to_list(), data.ledger)])
    tallies = [tally for tally, _ in everyone]
    stream = data.state_dict(ledger=join_ledgers([ledger for _, ledger in everyone]))
    threads = torch.get_num_threads()  # another number may add in another order
    return {"stream": stream, "tallies": tallies, "statistics": learner.statistics.columns(), "threads": threads}


def tensor_state(learner: Learner) -> bytes:
    """What of a training is tensors, as a file of torch.

    Raises:
        InputError: a weight is not finite, so that nothing could go on from here.
    """
    states = learner.state_dict()
    check_finite(states["model"])
    buffer = io.BytesIO()
    torch.save(states, buffer)
    return buffer.getvalue()


def restore(checkpoint: Checkpoint, learner: Learner, data: WindowDataset, accelerator: Accelerator) -> None:
    """Bring a training to where `checkpoint` stands.

    Raises:
        InputError: its parts or their shapes are not those of this training.
    """
    values, states = checkpoint.values, load_tensors(checkpoint)
    unneeded = {"average"} if is_made_of_files(learner.average) else set[str]()
    if not set(learner.parts) - unneeded <= set(states) <= set(learner.parts):
        raise InputError(
            f"{checkpoint.path}: it has the state of {', '.join(states)}, expected {', '.join(learner.parts)}; "
            "continue it with the version and the kind of device that wrote it"
        )
    _check_shapes(checkpoint, states["model"], learner.network.state_dict())
    learner.load_state_dict(states)
    data.load_state_dict(values["stream"])
    learner.tally.restore(values["tallies"], accelerator.process_index, accelerator.num_processes)
    learner.statistics.take_over(values["statistics"])


def join_ledgers(of_ranks: Sequence[Ledger | None]) -> Ledger | None:
    """What all ranks together have consumed of an epoch; None where one does not know."""
    known = [ledger for ledger in of_ranks if ledger is not None]
    return Ledger.join(known) if len(known) == len(of_ranks) else None


def load_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """The states of a checkpoint's parts, on the CPU; nothing in the file is executed.

    Raises:
        InputError: this version of torch can't read it.
    """
    try:
        return dict(torch.load(io.BytesIO(checkpoint.state), map_location="cpu", weights_only=True))
    except Exception as error:  # noqa: BLE001 - torch raises whatever the bytes lead it to
        raise InputError(
            f"{checkpoint.path}: torch {torch.__version__} can't read its tensors ({type(error).__name__}); "
            "continue it with the version of torch that wrote it"
        ) from None


def _check_shapes(checkpoint: Checkpoint, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in sorted(set(found) | set(expected)):
        shapes = [tuple(state[name].shape) if name in state else "missing" for state in (found, expected)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{checkpoint.path}: {name} is {shapes[0]}, but in this network {shapes[1]}; give the checkpoint of such a "
                "network, or train from the start with --resume never"
            )
