"""Tasks by threads, results in order: for work that releases the interpreter's lock."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(task: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Generator[Result, None, None]:
    """Yield ``task(item)`` for all items in their order, done by `workers` threads.

    The first task that raises ends it with its exception; close it to give up the tasks that have not begun.
    """
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(task, items)
    finally:
        pool.shutdown(cancel_futures=True)
