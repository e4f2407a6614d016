"""Run tasks on threads and give results in order, for work that releases the interpreter's lock or waits."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # tasks handed out beforehand, a worker: their results are in memory


def in_order(
    task: Callable[[Item], Result], items: Iterable[Item], workers: int, give_up: Callable[[], object] = lambda: None
) -> Generator[Result, None, None]:
    """Yield ``task(item)`` for all items in their order, done by `workers` threads.

    At most twice as many results as threads wait for the consumer. The first task that raises ends it with its exception;
    close it to give up the tasks that have not begun; `give_up` is called then, before those in hand are waited for.
    """
    pool = ThreadPoolExecutor(workers)
    todo = iter(items)
    waiting: deque[Future[Result]] = deque()
    try:
        waiting.extend(pool.submit(task, item) for item in islice(todo, AHEAD * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(task, item) for item in islice(todo, 1))
            yield result
    finally:
        give_up()
        pool.shutdown(cancel_futures=True)


def in_background(items: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """Yield the items, of which a thread makes the next one while one is used; `items` is closed at the end."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="make-ahead")
    try:
        made = pool.submit(next, items, None)
        while (item := made.result()) is not None:
            made = pool.submit(next, items, None)
            yield item
    finally:
        pool.shutdown()
        items.close()


class ProcessLocks:
    """Locks by name, for the threads of one process.

    A forked process gets new ones: a lock that another thread held at that moment would stay locked in it for ever.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._locks: dict[str, threading.Lock] = {}

    def __getitem__(self, name: str) -> threading.Lock:
        if self._process != os.getpid():
            self._process, self._locks = os.getpid(), {}
        return self._locks.setdefault(name, threading.Lock())
