"""Run the worker processes of a job: they end with the process that started them, and leave its signals to it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from types import FrameType
from typing import Any

from shards.errors import InputError


@contextmanager
def broken_workers_explained() -> Iterator[None]:
    """Raise InputError where an executor lost a worker."""
    try:
        yield
    except BrokenExecutor as error:
        raise InputError(
            "a worker process ended abruptly (killed, or out of memory); finished shards are kept: run the same "
            "command again, perhaps with fewer --workers (a script of one's own needs a main guard)"
        ) from error


class _Worker(SpawnProcess):
    """A worker that leaves signals of the terminal, which all its processes get, to the parent that ends it."""

    def start(self) -> None:
        """Start it with these signals blocked, from before its first import on."""
        with _signals_wait():
            before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
            try:
                super().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Have the handlers of signals called at the end of the block.

    An exception of theirs between the start of a worker and its first message would leave the worker waiting for that. Blocking
    the signals does not prevent this: another thread receives them, and Python calls the handlers in the main thread.
    """
    received: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
    if threading.current_thread() is threading.main_thread():  # handlers are called in no other
        found = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)}
        handlers = {number: handler for number, handler in found.items() if callable(handler)}
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: received.append((number, frame)))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in received:
            handlers[number](number, frame)


class _WorkerContext(SpawnContext):
    """Starts `_Worker`. Spawned, as a forked copy of a process that has threads (the progress bar's) may hang."""

    Process = _Worker


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with this one, however it ends; one that is killed is an InputError."""
    context = _WorkerContext()
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        with broken_workers_explained():
            yield pool
    except InputError as error:
        if isinstance(error.__cause__, BrokenExecutor):
            # The pool ends its workers, but not one that was just being started, and would wait for that one for ever.
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
        raise
    except KeyboardInterrupt:  # a shard in hand may take minutes; the next run makes it anew
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker when its parent is gone: a parent that was killed can't tell it."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
