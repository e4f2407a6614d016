"""Give all streams of batches their common part: two integers of state, the turns of a DataLoader's workers, and the ledger.

A stream yields this rank's share of global batch after global batch. Its state is the epoch and the position: the windows of
the epoch that all ranks together have consumed. So a state that was saved by W ranks is good for any other number, for any
batch size and for any number of workers, and going to it costs what a start costs.

An iteration is a whole epoch, the one after that of the iteration before it, however many batches were taken of that. After an
epoch's last batch the state is the start of the next epoch, whether or not anybody asks for another batch. A place inside an
epoch is gone on from in two cases only: after `load_state_dict`, and by `rest_of_epoch`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from multiprocessing.context import get_spawning_popen
from typing import Any, Protocol, cast

from torch.utils.data import IterableDataset, get_worker_info

from shards.errors import InputError, UsageError
from spkid_dist.streaming.callers import is_called_by, refuse_wrappers
from spkid_dist.streaming.epochs import EpochCounter
from spkid_dist.streaming.ledger import Ledger, check_epoch
from spkid_dist.streaming.ring import PlacedSteps
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


class StepCursor(Cursor, Protocol):
    """A place in a stream whose windows are on a device."""

    def place(self, until: Sequence[int]) -> PlacedSteps:
        """The steps that end at the global indices `until`: as many as are on the device together, the same on every rank."""
        ...


class ResumableBatches(IterableDataset[Batch], ABC):
    """An endless sequence of epochs of batches, one per iteration.

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
        # None where a part of the epoch was consumed elsewhere, nobody knows how.
        self._ledger: Ledger | None = Ledger()
        self._cursor: Cursor | None = None  # of the state (epoch, position)
        self._counter = EpochCounter()
        # Whether a worker's own copy was told its state by `load_state_dict`: the next iteration is the rest of that epoch.
        self._told = False
        self._iteration: object = None  # the one that may still take batches
        self._placing: object = None  # the iteration of `_next_steps`
        self._ended = False  # the last batch of the epoch before was taken, and no other was asked for since

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
        """Have the next iteration be the epoch `epoch`, from 0, in a DataLoader's workers too."""
        self._tell(epoch, 0, Ledger(), None)

    def _tell(self, epoch: int, position: int, ledger: Ledger | None, skip_batches: int | None) -> None:
        """Have the next iteration begin at a place."""
        self._iteration, self._ended = None, False
        self._go_to(epoch, position, ledger)
        self._skip_batches = skip_batches
        self._told = get_worker_info() is not None  # a worker's place is its own: others were told theirs
        if not self._told:
            self._counter.tell(epoch, position)

    def _go_to(self, epoch: int, position: int, ledger: Ledger | None) -> None:
        at_end = self._position == self.num_windows  # in a worker; its cursor goes on with the next epoch
        if (epoch, position) != ((self._epoch + 1, 0) if at_end else (self._epoch, self._position)):
            self._leave()
        self._epoch, self._position, self._ledger, self._skip_batches = epoch, position, ledger, None

    def close(self) -> None:
        """Let go of threads and of the memory of the pools; iterating on begins anew where it was."""
        self._leave()

    def _leave(self) -> None:
        """Let go of the place in the stream, and note what was consumed."""
        if self._cursor is not None:
            self.ledger  # noqa: B018 - takes note of what was consumed
            self._cursor.close()
        self._cursor = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without threads and memory.

        Raises:
            UsageError: it goes to workers that are spawned, in which nothing would tell of accelerate or of other ranks.
        """
        if get_spawning_popen() is not None:
            self._refuse_misuse()
        return self.__dict__ | {"_cursor": None}

    # The ledger

    @property
    def ledger(self) -> Ledger | None:
        """What this rank has consumed of the epoch; None where that is not known, after going into the middle of one."""
        if self._cursor is not None:
            consumed = self._cursor.collect()  # though nobody can use it: else it would count for the next epoch
            self._ledger = None if self._ledger is None else Ledger.join([self._ledger, consumed])
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
            position += self.batch_size
            if position >= self.num_windows:
                epoch, position = epoch + 1, 0
        if ledger is None and self.world_size == 1 and not batches and get_worker_info() is None:
            ledger = self.ledger
        return {
            "version": STATE_VERSION,
            "epoch": epoch,
            "position": position,
            "ended": self._ended and not batches,
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
            ended = bool(state.get("ended"))
            ledger = None if state["ledger"] is None else Ledger(**state["ledger"])
            identity = state["identity"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not the state of a stream: {type(error).__name__} {error}") from None
        self._check_identity(identity)
        if epoch < 0 or not 0 <= position <= self.num_windows:
            raise InputError(
                f"the stream's state is at window {position} of epoch {epoch}, but an epoch has {self.num_windows}"
            )
        if is_called_by("torchdata") and ended:  # which asks once more before it ends an epoch
            epoch, position = epoch - 1, self.num_windows
        elif position == self.num_windows and get_worker_info() is None:  # of a worker whose epoch had ended
            epoch, position, skip_batches = epoch + 1, 0, None
        whole = ledger if position else Ledger()
        self._tell(epoch, position, Ledger() if whole is not None and self.rank else whole, skip_batches)

    def _check_identity(self, found: Mapping[str, Any]) -> None:
        expected = self.identity
        for name in expected | dict(found):
            if found.get(name) != expected.get(name):
                raise InputError(
                    f"the stream's state is of another {name}: {found.get(name)!r} there, {expected.get(name)!r} here; the "
                    "order of windows would not be continued: use the same dataset and options, or start from the beginning"
                )

    # Iterating

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's share of each global batch of the next epoch; a share may be empty.

        After `load_state_dict` that is the rest of the epoch which the state is in.

        Raises:
            UsageError: accelerate or a DataLoader would change the batches; another iteration has begun since; the processes
                met after the dataset was opened.
        """
        self._refuse_misuse()
        if get_worker_info() is None:
            return self._batches(begun=False)  # begins with its first batch
        self._begin()  # at once: all workers of a loader begin together
        return self._batches(begun=True)

    def rest_of_epoch(self) -> Iterator[Batch]:
        """Yield the batches from where the stream stands to the end of that epoch: after a ``break``, or a look at one.

        Raises:
            UsageError: as an iteration does.
        """
        self._refuse_misuse()
        self._counter.tell(self._epoch, self._position)
        return self._batches(begun=False)

    def _refuse_misuse(self) -> None:
        refuse_wrappers()
        self._check_ranks()

    def _check_ranks(self) -> None:
        """Raise UsageError where this process's rank is no longer what the dataset found when it was opened."""

    def _begin(self) -> None:
        """Take the place at which this iteration begins."""
        self._iteration, self._ended = object(), False
        if self._told:
            self._told = False
            self._counter.reach(self._epoch + 1)
            return
        epoch, position = self._counter.begin()
        if (epoch, position) != (self._epoch, self._position):
            self._go_to(epoch, position, None if position else Ledger())

    def _batches(self, *, begun: bool) -> Iterator[Batch]:
        if not begun:
            self._begin()
        iteration = self._iteration
        turn, num_workers = self._turn()
        in_worker = get_worker_info() is not None
        if self._position == self.num_windows:  # as torchdata left it
            if not in_worker:
                self._go_to(self._epoch + 1, 0, Ledger())
            return
        cursor = self._cursor = self._cursor or self._open(self._epoch, self._position)
        ended = False
        try:
            for number, first in enumerate(self._firsts()):
                self._check_current(iteration)
                until = min(first + self.batch_size, self.num_windows)
                if number % num_workers == turn:
                    batch = cursor.take(until)
                    self._skip_batches = num_workers - 1 if in_worker else None
                else:
                    cursor.skip(until)
                self._position = until
                if until == self.num_windows:
                    ended = True
                    if not in_worker:  # a worker stays at its end: others may not be there yet
                        self._end_epoch()
                if number % num_workers == turn:
                    yield batch
            if self._iteration is iteration:
                self._ended = False  # another batch was asked for, so nobody will ask for one again
        finally:
            if not ended and self._cursor is cursor:
                self._leave()

    def _next_steps(self, most: int) -> PlacedSteps:
        """The next steps of the epoch, `most` of them or fewer, of a stream whose cursors are `StepCursor`s."""
        if get_worker_info() is not None:
            raise UsageError(
                "next_steps: a DataLoader's worker can't hand on what is on a device; call it without a loader"
            )
        if self._iteration is None or self._iteration is not self._placing:
            self._refuse_misuse()
            if self._position == self.num_windows:  # as torchdata left it
                self._go_to(self._epoch + 1, 0, Ledger())
            self._counter.tell(self._epoch, self._position)
            self._begin()
            self._placing = self._iteration
        cursor = self._cursor = self._cursor or self._open(self._epoch, self._position)
        ends = [min(first + self.batch_size, self.num_windows) for first in self._firsts()[:most]]
        steps = cast(StepCursor, cursor).place(ends)
        self._position = ends[len(steps) - 1]
        if self._position == self.num_windows:
            self._end_epoch()
            self._iteration = None  # the next steps are another iteration
        return steps

    def _firsts(self) -> range:
        """The global indices that the steps which are left of the epoch begin with."""
        return range(self._position, self.num_windows, self.batch_size)

    def _turn(self) -> tuple[int, int]:
        """Which of the next batches is the first of this worker, and how many workers take turns."""
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        turn = worker_id if self._skip_batches is None else self._skip_batches
        if turn >= num_workers:
            raise InputError(
                f"the stream's state is that of a loader with more than {num_workers} workers; load it with as many, or save "
                "the state of the dataset itself"
            )
        return turn, num_workers

    def _check_current(self, iteration: object) -> None:
        if self._iteration is not iteration:
            raise UsageError(
                "this iteration over the dataset is over, because another has begun, or the dataset was told another epoch; "
                "to iterate twice at the same time, open two datasets"
            )

    def _end_epoch(self) -> None:
        """Go from the end of an epoch to the start of the next one.

        Raises:
            LedgerError: a window was lost or came twice; where this is the only rank.
        """
        self.ended_ledger = self.ledger
        self._epoch, self._position = self._epoch + 1, 0
        self._ledger, self._skip_batches, self._ended = Ledger(), None, True
        if self.ended_ledger is not None and self.world_size == 1:
            self.check_epoch(self.ended_ledger, self._epoch - 1)
