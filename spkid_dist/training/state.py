"""Collect the state of a training for a checkpoint, and put it back."""

import io
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from spkid_dist.dataset import WindowDataset
from spkid_dist.streaming.ledger import Ledger
from spkid_dist.training.checkpoint import Checkpoint
from spkid_dist.training.checkpointstate import checked_states
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
    """Bring a training to where `checkpoint` stands, which `check_values` has passed: all parts of it, or none.

    Raises:
        InputError: its parts are not those of this training.
    """
    values, states = checkpoint.values, checked_states(checkpoint, learner, data)
    data.load_state_dict(values["stream"])
    learner.load_state_dict(states)
    learner.tally.restore(values["tallies"], accelerator.process_index, accelerator.num_processes)
    learner.statistics.take_over(values["statistics"])


def join_ledgers(of_ranks: Sequence[Ledger | None]) -> Ledger | None:
    """What all ranks together have consumed of an epoch; None where one does not know."""
    known = [ledger for ledger in of_ranks if ledger is not None]
    return Ledger.join(known) if len(known) == len(of_ranks) else None
