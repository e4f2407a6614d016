"""What all streams of batches have in common: two integers of state, the turns of a DataLoader's workers, and the ledger.

A stream yields this rank's share of global batch after global batch. Its state is the epoch and the position: the windows of
the epoch that all ranks together have consumed. So a state that was saved by W ranks is good for any other number, for any
batch size and for any number of workers, and going to it costs what a start costs.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from torch.utils.data import IterableDataset, get_worker_info

from shards.errors import InputError, UsageError
from spkid_dist.streaming.ledger import Ledger, check_epoch
from spkid_dist.streaming.stacking import Batch

STATE_VERSION = 1


class Cursor(Protocol):
    """A place in a stream, which moves on by global indices."""

    def take(self, until: int) -> Batch:
        """This rank's windows up to global index `until` of the epoch."""
        ...

    def skip(self, until: int) -> None:
        """Pass over them instead."""
        ...

    def collect(self) -> Ledger:
        """The ledger of what was consumed since the last call."""
        ...

    def close(self) -> None:
        """Let go of threads and memory."""
        ...


class ResumableBatches(IterableDataset[Batch], ABC):
    """An endless sequence of epochs of batches, iterated over one (or the rest of one) at a time.

    Attributes:
        batch_size: windows of a global batch.
        rank, world_size: this process's place.
        ended_ledger: what this rank consumed of the epoch that ended last; None where that is not known.
    """

    def __init__(self, batch_size: int, rank: int, world_size: int) -> None:
        if batch_size < 1:
            raise UsageError(f"--batch_size {batch_size}: expected 1 or more")
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.ended_ledger: Ledger | None = None
        self._epoch = 0
        self._position = 0
        self._skip_batches: int | None = None  # in a DataLoader's worker: other workers' batches before its next one
        self._ledger: Ledger | None = (
            Ledger()
        )  # None where a part of the epoch was consumed elsewhere, nobody knows how
        self._cursor: Cursor | None = None  # of the state (epoch, position)

    @property
    def epoch(self) -> int:
        """The epoch, from 0."""
        return self._epoch

    @property
    def position(self) -> int:
        """The windows of the epoch that all ranks together have consumed."""
        return self._position

    @property
    @abstractmethod
    def num_windows(self) -> int:
        """Windows of an epoch."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that the order follows from besides the state, as JSON values."""

    @abstractmethod
    def _open(self, epoch: int, position: int) -> Cursor:
        """A cursor at a place."""

    def __len__(self) -> int:
        """Steps of a whole epoch: the same on every rank."""
        return -(-self.num_windows // self.batch_size)

    @property
    def steps_left(self) -> int:
        """Steps that are left of the epoch: the same on every rank."""
        return -(-(self.num_windows - self.position) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; before each one in a DataLoader with workers, which iterate over copies."""
        self._go_to(epoch, 0, Ledger())

    def _go_to(self, epoch: int, position: int, ledger: Ledger | None) -> None:
        if (epoch, position) != (self._epoch, self._position):
            self.close()
        self._epoch, self._position, self._ledger, self._skip_batches = epoch, position, ledger, None

    def close(self) -> None:
        """Let go of threads and of the memory of the pools; iterating on begins anew where it was."""
        if self._cursor is not None:
            self.ledger  # noqa: B018 - takes note of what was consumed
            self._cursor.close()
        self._cursor = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without threads and memory."""
        return self.__dict__ | {"_cursor": None}

    # The ledger

    @property
    def ledger(self) -> Ledger | None:
        """What this rank has consumed of the epoch; None where that is not known, after going into the middle of one."""
        if self._cursor is not None and self._ledger is not None:
            self._ledger = Ledger.join([self._ledger, self._cursor.collect()])
        return self._ledger

    def check_epoch(self, consumed: Ledger, epoch: int) -> None:
        """Compare what all ranks together consumed of an epoch with what it has; a single rank does so by itself.

        Raises:
            LedgerError: a window is missing, or came twice.
        """
        check_epoch(consumed, self.num_windows, epoch)

    # The state

    def state_dict(self, *, batches: int = 0, ledger: Ledger | None = None) -> dict[str, Any]:
        """The state, as JSON values.

        Args:
            batches: take the state that so many more batches lead to: for a loader with workers, whose copies of this
                dataset move on while this one stays.
            ledger: what all ranks together have consumed of the epoch; a single rank knows it by itself.
        """
        epoch, position = self.epoch, self.position
        for _ in range(batches):
            epoch, position = (epoch + 1, 0) if position >= self.num_windows else (epoch, position)
            position = min(position + self.batch_size, self.num_windows)
        if ledger is None and self.world_size == 1 and not batches and get_worker_info() is None:
            ledger = self.ledger
        return {
            "version": STATE_VERSION,
            "epoch": epoch,
            "position": position,
            "skip_batches": self._skip_batches,
            "ledger": None if ledger is None else asdict(ledger),
            "identity": self.identity,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a state of `state_dict`, of any rank of any number of ranks.

        Raises:
            InputError: it is no such state, or one of another dataset or another order.
        """
        try:
            if state["version"] != STATE_VERSION:
                raise InputError(f"the stream's state is of version {state['version']}, expected {STATE_VERSION}")
            epoch, position, skip_batches = int(state["epoch"]), int(state["position"]), state["skip_batches"]
            ledger = None if state["ledger"] is None else Ledger(**state["ledger"])
            identity = state["identity"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not the state of a stream: {type(error).__name__} {error}") from None
        self._check_identity(identity)
        if epoch < 0 or not 0 <= position <= self.num_windows:
            raise InputError(
                f"the stream's state is at window {position} of epoch {epoch}, but an epoch has {self.num_windows}"
            )
        whole = ledger if position else Ledger()
        self._go_to(epoch, position, Ledger() if whole is not None and self.rank else whole)
        self._skip_batches = skip_batches

    def _check_identity(self, found: Mapping[str, Any]) -> None:
        expected = self.identity
        for name in expected | dict(found):
            if found.get(name) != expected.get(name):
                raise InputError(
                    f"the stream's state is of another {name}: {found.get(name)!r} there, {expected.get(name)!r} here; the "
                    "order of windows would not be continued: use the same dataset and options, or begin anew"
                )

    # Iterating

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's share of each remaining global batch of the epoch; a share may be empty."""
        _refuse_accelerates_loader()
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        turn = worker_id if self._skip_batches is None else self._skip_batches
        if turn >= num_workers:
            raise InputError(
                f"the stream's state is that of a loader with more than {num_workers} workers; load it with as many, or save "
                "the state of the dataset itself"
            )
        cursor = self._cursor = self._cursor or self._open(self._epoch, self._position)
        ended = False
        try:
            for number, first in enumerate(range(self._position, self.num_windows, self.batch_size)):
                until = min(first + self.batch_size, self.num_windows)
                if number % num_workers == turn:
                    batch = cursor.take(until)
                    self._position, self._skip_batches = until, num_workers - 1 if worker else None
                    yield batch
                else:
                    cursor.skip(until)
                    self._position = until
            ended = True
        finally:
            if not ended and self._cursor is cursor and self._position < self.num_windows:
                self.close()
        self.end_epoch()

    def end_epoch(self) -> None:
        """Go from the end of an epoch to the start of the next one, as an iteration does that comes to its end.

        Raises:
            LedgerError: a window was lost or came twice; where this is the only rank.
        """
        assert self._position == self.num_windows, "the epoch is not at its end"
        self.ended_ledger = self.ledger
        self._epoch, self._position = self._epoch + 1, 0
        self._ledger, self._skip_batches = Ledger(), None
        if self.ended_ledger is not None and self.world_size == 1 and get_worker_info() is None:
            self.check_epoch(self.ended_ledger, self._epoch - 1)


def _refuse_accelerates_loader() -> None:
    """Raise UsageError where accelerate iterates: it would share out what is a rank's share already."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "accelerate.data_loader":
            raise UsageError(
                "the dataset went through accelerator.prepare, which would cut each rank's share once more and lose "
                "windows; iterate over the dataset itself: it yields this rank's share of each batch"
            )
        frame = frame.f_back
