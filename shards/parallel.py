"""Tasks by threads, results in order: for work that releases the interpreter's lock."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # tasks handed out beforehand, a worker: their results are in memory


def in_order(task: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[Result, None, None]:
    """Yield ``task(item)`` for all items in their order, done by `workers` threads.

    The first task that raises ends it with its exception; close it to give up the tasks that have not begun.
    """
    pool = ThreadPoolExecutor(workers)
    todo = iter(items)
    try:
        waiting: deque[Future[Result]] = deque(pool.submit(task, item) for item in islice(todo, AHEAD * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(task, item) for item in islice(todo, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
