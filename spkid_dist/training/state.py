"""What a checkpoint carries of a training: where each part is taken from, and where it is put back.

Generators of random numbers are not carried: the windows' order, and whatever else is drawn while training, is arithmetic on
the seed and the place in the training, so it is the same after a resume.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from shards.errors import InputError
from spkid_dist.dataset import WindowDataset
from spkid_dist.streaming.ledger import Ledger
from spkid_dist.training.checkpoint import Checkpoint
from spkid_dist.training.losses import Tally, check_finite
from spkid_dist.training.report import TrainStatistics


class Stateful(Protocol):
    """A part of a training whose state is tensors and plain values."""

    def state_dict(self) -> Any:
        """The state."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Go on from a state."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """All of a training that changes from batch to batch.

    `parts` are the same on every rank: the network, the optimiser, and whatever else has a state. `tally` is a rank's own.
    """

    parts: Mapping[str, Stateful]
    data: WindowDataset
    tally: Tally
    statistics: TrainStatistics

    @property
    def place(self) -> dict[str, int]:
        """Where the training stands: the epoch, and the windows of it consumed by all ranks together.

        After its last batch an epoch is still this one until it is validated; the stream stands at the next one already.
        """
        if self.data.epoch > self.statistics.epochs:
            return {"epoch": self.statistics.epochs, "position": self.data.num_windows}
        return {"epoch": self.data.epoch, "position": self.data.position}

    def values(self) -> dict[str, Any]:
        """What is plain values, of all ranks together; called by all."""
        everyone = gather_object([(self.tally.to_list(), self.data.ledger)])
        tallies = [tally for tally, _ in everyone]
        stream = self.data.state_dict(ledger=join_ledgers([ledger for _, ledger in everyone]))
        threads = torch.get_num_threads()  # another number may add in another order
        return {"stream": stream, "tallies": tallies, "statistics": vars(self.statistics), "threads": threads}

    def tensors(self) -> bytes:
        """The `parts`, as a file of torch.

        Raises:
            InputError: a weight is not finite, so that nothing could go on from here.
        """
        states = {name: part.state_dict() for name, part in self.parts.items()}
        check_finite(states["model"])
        buffer = io.BytesIO()
        torch.save(states, buffer)
        return buffer.getvalue()

    def restore(self, checkpoint: Checkpoint, accelerator: Accelerator) -> None:
        """Go on from `checkpoint`.

        Raises:
            InputError: its parts or their shapes are not those of this training.
        """
        values, states = checkpoint.values, load_tensors(checkpoint)
        if set(states) != set(self.parts):
            raise InputError(
                f"{checkpoint.path}: it has the state of {', '.join(states)}, expected {', '.join(self.parts)}; "
                "continue it with the version and the kind of device that wrote it"
            )
        _check_shapes(checkpoint, states["model"], self.parts["model"].state_dict())
        for name, part in self.parts.items():
            part.load_state_dict(states[name])
        self.data.load_state_dict(values["stream"])
        self.tally.restore(values["tallies"], accelerator.process_index, accelerator.num_processes)
        for name, history in values["statistics"].items():
            setattr(self.statistics, name, list(history))


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
