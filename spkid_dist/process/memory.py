"""Find how much memory this process may still take, and end in one line where it is not enough."""

import errno
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from shards.errors import InputError, first_line
from shards.resources import free_bytes

# What errors say that are of no type of their own: torch's on CPUs, the system's linker's, threads'.
MARKS = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "cannot allocate memory",
    "out of memory",
    "failed to map segment",
    "can't start new thread",
    "std::bad_alloc",
)


def gigabytes(amount: int) -> str:
    """An amount of bytes for a message."""
    return f"{amount / 1e9:,.{0 if amount >= 100e9 else 1}f} GB"


def free_memory(processes: int = 1) -> int:
    """Bytes of memory that this process may still take, where `processes` of this machine share what there is.

    The least of what the machine has, what it was granted, and what `ulimit -v` leaves it.
    """
    free = min([int(psutil.virtual_memory().available), *free_bytes()]) // processes
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        free = min(free, max(0, most - int(psutil.Process().memory_info().vms)))
    return free


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, NumPy, torch or the system says that memory could not be had."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | OSError | ImportError) and any(mark in str(error) for mark in MARKS)


@contextmanager
def explain_memory(remedy: Callable[[], str]) -> Iterator[None]:
    """Turn an allocation that fails into one line, which ends in the `remedy`.

    Raises:
        InputError: memory could not be had.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        said = first_line(error, most=200) or "no more was said"
        raise InputError(f"not enough memory ({type(error).__name__}: {said}); {remedy()}") from None
