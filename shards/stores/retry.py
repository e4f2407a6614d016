"""Repeat requests to a store: exponential backoff with full jitter, up to a number of attempts and a total time.

Jitter keeps the readers of a job from coming back to a store all at once (M. Brooker, "Exponential Backoff And Jitter",
AWS Architecture Blog, 2015).
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from shards.errors import StoreError, UsageError

FIRST_DELAY_SECONDS = 0.25  # the bound of the first random delay; each later one's is twice as large
LARGEST_DELAY_SECONDS = 15.0
SLOWEST_BYTES_PER_SECOND = 1_000_000  # a request of which n bytes have arrived may take n / this longer
WRONG_READS = 3  # so often bytes may differ from what was written until it is damage, not a bad transfer
MESSAGE_CHARACTERS = 300

Result = TypeVar("Result")
_jitter = random.SystemRandom()  # not the module's generator, which may be seeded by the user


class WrongBytesError(Exception):
    """A store's answer is not what was written: its length or its checksum differs."""


class TargetError(OSError):
    """The file that a download goes to can't be written: no fault of the store."""


@contextlib.contextmanager
def writing_to_target() -> Iterator[None]:
    """What the system says against writing becomes a TargetError."""
    try:
        yield
    except OSError as error:
        raise TargetError(*error.args) from error


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long a store may fail before a read is given up.

    `timeout_seconds` is for one request; `attempts` and `total_seconds` for a read, with all its requests and pauses.
    To both times comes a second for each megabyte that has arrived, however much a manifest promises.

    Raises:
        UsageError: a value out of range.
    """

    attempts: int = 10
    timeout_seconds: float = 30.0
    total_seconds: float = 120.0

    def __post_init__(self) -> None:
        """Check the values' ranges."""
        if self.attempts < 1:
            raise UsageError(f"attempts {self.attempts}: expected 1 or more")
        for value, name in ((self.timeout_seconds, "timeout_seconds"), (self.total_seconds, "total_seconds")):
            if not value > 0:
                raise UsageError(f"{name} {value}: expected more than 0")


class Attempt:
    """One request: it may take `seconds`, and longer as bytes arrive; what comes after its end is not taken any more.

    Args:
        seconds: how long it may take before the first byte.
        slowest: bytes per second that it must bring from then on.
    """

    def __init__(self, seconds: float, slowest: int = SLOWEST_BYTES_PER_SECOND) -> None:
        self.received = 0
        self._seconds, self._slowest = seconds, slowest
        self._began = time.monotonic()
        self._is_over = False
        self._lock = threading.Lock()

    @property
    def seconds_left(self) -> float:
        """How much longer it may take, from now on."""
        return self._began + self._seconds + self.more_seconds - time.monotonic()

    @property
    def more_seconds(self) -> float:
        """What it may take longer for the bytes that have arrived."""
        return self.received / self._slowest

    def take(self, piece: bytes, use: Callable[[bytes], object]) -> None:
        """Call ``use(piece)`` of bytes that have arrived. Raises TimeoutError where the attempt has ended."""
        with self._lock:  # else one that was given up could write into the file of the next
            if self._is_over:
                raise TimeoutError("given up before")
            self.received += len(piece)
            use(piece)

    def end(self) -> None:
        """Take nothing more; what is being taken is waited for."""
        with self._lock:
            self._is_over = True


def retry(
    request: Callable[[Attempt], Result],
    policy: RetryPolicy,
    *,
    where: str,
    is_final: Callable[[Exception], bool],
    stop: threading.Event | None = None,
) -> Result:
    """The result of ``request(attempt)``, which keeps to the attempt's time, repeated while it fails.

    Args:
        request: one attempt.
        policy: how often, and how long.
        where: what is read, for messages.
        is_final: whether an error would come again.
        stop: no attempt begins once it is set.

    Raises:
        StoreError: the attempts or the time are used up.
        WrongBytesError: the request raised it `WRONG_READS` times, or for the last attempt.
        Exception: one that is final, as the request raised it.
    """
    stop = stop or threading.Event()
    began = time.monotonic()
    deadline = began + policy.total_seconds
    wrong_reads = number = 0
    while True:
        number += 1
        if stop.is_set():
            raise StoreError(f"{where}: not read: given up, since another read had failed")
        attempt = Attempt(min(policy.timeout_seconds, deadline - time.monotonic()))
        try:
            return request(attempt)
        except Exception as error:
            deadline += attempt.more_seconds
            wrong_reads += isinstance(error, WrongBytesError)
            if is_final(error) or wrong_reads == WRONG_READS:
                raise
            bound = min(LARGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(number - 1, 10))
            delay = _jitter.uniform(0, bound)
            is_last = number == policy.attempts or time.monotonic() + delay >= deadline
            if is_last and isinstance(error, WrongBytesError):
                raise
            if is_last or stop.wait(delay):
                raise StoreError(
                    f"{where}: the store failed (attempts: {number}, in {time.monotonic() - began:.1f} s), lastly with "
                    f"{in_one_line(error)}; check the network and the store, then run again"
                ) from error
        finally:
            attempt.end()


def in_one_line(error: Exception) -> str:
    """An error of a library as a part of a message."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]}..."
