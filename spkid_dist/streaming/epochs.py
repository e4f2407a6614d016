"""Count epochs: a dataset and its copies in a DataLoader's workers agree on which one an iteration is.

Each iteration over a dataset is the next epoch. A DataLoader with workers iterates over copies, which live for one epoch, or
for all of them (`persistent_workers=True`), and it tells neither them nor the dataset that an epoch begins. So the count lies
in memory that all of them share, under a lock: the first worker of an iteration takes the next epoch, the others join it.
Workers belong to one iteration where their loader drew one seed for them, and no worker joins an iteration twice.

The memory is a file without a name. Forked workers inherit it, others open it by their parent's descriptor. A lock of `lockf`
is a process's own, and falls with the process: nothing waits for a worker that was killed.
"""

import fcntl
import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import get_spawning_popen
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import get_worker_info

from shards.errors import UsageError

MOST_WORKERS = 512  # of a loader
ITERATIONS = 16  # that are remembered: no more loaders than that begin over one dataset at the same time
ITERATION = np.dtype([("seed", "<i8"), ("epoch", "<i8"), ("position", "<i8"), ("joined", "?", MOST_WORKERS)])
MEMORY = np.dtype([("epoch", "<i8"), ("position", "<i8"), ("begun", "<i8"), ("iterations", ITERATION, ITERATIONS)])
NO_SEED = -1


class EpochCounter:
    """Hands out epochs to iterations, in this process and in the workers of its loaders.

    A copy for a worker shares the memory; any other copy counts for itself (`pickle`, `copy.deepcopy`, a process that was
    forked or spawned and is no worker).
    """

    _all: ClassVar["weakref.WeakSet[EpochCounter]"] = weakref.WeakSet()

    def __init__(self) -> None:
        self._allocate(0, 0)

    def _allocate(self, epoch: int, position: int) -> None:
        """Memory of this process's own, with the place that comes next."""
        self._share(os.memfd_create("spkid-epochs"))
        os.ftruncate(self._file, MEMORY.itemsize)
        self._map()
        self._owner: int | None = os.getpid()
        self._next = epoch, position  # in a process that was forked or spawned: what came next then
        self.tell(epoch, position)

    @classmethod
    def note_all(cls) -> None:
        """Note the places that come next, for a process that is about to be forked."""
        for counter in list(cls._all):
            counter._next = counter._place

    @property
    def _is_of_another(self) -> bool:
        """Whether the memory is of a process that this one was forked or spawned from, and this one is no worker of it."""
        return self._owner != os.getpid() and get_worker_info() is None

    @property
    def _place(self) -> tuple[int, int]:
        if self._is_of_another:
            return self._next
        return int(self._memory["epoch"]), int(self._memory["position"])

    def __getstate__(self) -> dict[str, Any]:
        """For a process that is being started: where the memory is. For another copy: the place that comes next."""
        if get_spawning_popen() is not None:
            return {"memory": f"/proc/{os.getpid()}/fd/{self._file}", "next": self._place}
        return {"next": self._place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As `__getstate__` has it."""
        if "memory" in state:
            self._share(os.open(state["memory"], os.O_RDWR | os.O_CLOEXEC))
            self._map()
            self._owner, self._next = None, state["next"]
        else:
            self._allocate(*state["next"])

    def _share(self, file: int) -> None:
        self._file = file
        weakref.finalize(self, os.close, file)

    def _map(self) -> None:
        self._memory = np.frombuffer(mmap.mmap(self._file, MEMORY.itemsize), MEMORY)[0]
        self._all.add(self)

    def tell(self, epoch: int, position: int) -> None:
        """The next iteration is of `epoch`, from window `position` of it on; called outside of workers."""
        with self._locked():
            self._memory["epoch"], self._memory["position"] = epoch, position
            self._memory["iterations"]["seed"] = NO_SEED

    def reach(self, epoch: int) -> None:
        """The next iteration is of `epoch`, from its start, unless it is of a later one already."""
        with self._locked():
            if self._memory["epoch"] < epoch:
                self._memory["epoch"], self._memory["position"] = epoch, 0

    def begin(self) -> tuple[int, int]:
        """An iteration begins in this process: its epoch, and the window of it that it begins with.

        Raises:
            UsageError: a loader has too many workers.
        """
        worker = get_worker_info()
        with self._locked():
            if worker is None:
                return self._take()
            if worker.id >= MOST_WORKERS:
                raise UsageError(f"num_workers {worker.num_workers}: expected {MOST_WORKERS} or fewer")
            iteration = self._iteration_of(worker.id, (worker.seed - worker.id) % 2**62)
            iteration["joined"][worker.id] = True
            return int(iteration["epoch"]), int(iteration["position"])

    def _iteration_of(self, worker: int, seed: int) -> Any:
        """The iteration that others of the worker's loader have begun, and it has not; or a new one."""
        iterations = self._memory["iterations"]
        for iteration in iterations:
            if iteration["seed"] == seed and not iteration["joined"][worker]:
                return iteration
        iteration = iterations[int(self._memory["begun"]) % ITERATIONS]
        self._memory["begun"] += 1
        iteration["seed"], iteration["joined"] = seed, False
        iteration["epoch"], iteration["position"] = self._take()
        return iteration

    def _take(self) -> tuple[int, int]:
        epoch, position = self._place
        self._memory["epoch"], self._memory["position"] = epoch + 1, 0
        return epoch, position

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._is_of_another:
            self._allocate(*self._next)
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


os.register_at_fork(before=EpochCounter.note_all)
