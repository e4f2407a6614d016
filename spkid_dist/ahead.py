"""Work done ahead by threads, in order and with bounded memory: for reading, which waits more than it computes."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

RESULTS_A_WORKER = 2


def map_ahead(task: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[Result, None, None]:
    """Yield ``task(item)`` of all items in their order, done by `workers` threads; at most twice as many results wait.

    The first task that raises ends it with its exception; close it to give up the tasks that have not begun.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(task, item))
            if len(pending) >= workers * RESULTS_A_WORKER:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
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
