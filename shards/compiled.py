"""Compile kernels with numba, without the interpreter's lock, and keep them on disk where possible.

numba keeps them beside the sources, or below the user's cache folder (NUMBA_CACHE_DIR and XDG_CACHE_HOME choose another). Where
it may write to none of these it refuses to compile at all, and for a user without a home it makes a folder named "~". Here
such kernels are compiled again by each process, which takes some seconds.

What is kept is machine code. numba believes whatever it finds: a file that a power cut left empty ends the program, and changed
bytes are run. So the files are `shards.kernelfiles`'.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from numba import njit

try:
    from shards.kernelfiles import KernelCache, others_may_write
except ImportError:  # of a version of numba whose caches are made otherwise: nothing is kept then
    KernelCache = None  # type: ignore[assignment, misc]

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The kernel, which is compiled when it is first called with arguments of new types."""
    sources = Path(function.__code__.co_filename).parent
    kernel: Any = njit(nogil=True)(function)
    if KernelCache is not None and _has_place(sources):
        try:
            cache = KernelCache(function)
        except (RuntimeError, OSError, AttributeError):  # no folder can be written; or, again, another version
            return cast(Callable[P, R], kernel)
        folder = Path(cache.cache_path)
        if sources in folder.parents or not others_may_write(folder):
            kernel._cache = cache
    return cast(Callable[P, R], kernel)


def _has_place(sources: Path) -> bool:
    """Whether numba may look for a folder: not where the only one left is that of a user without a home."""
    is_chosen = any(os.environ.get(name) for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"))
    return is_chosen or os.access(sources, os.W_OK) or os.path.expanduser("~") != "~"  # noqa: PTH111 - Path's raises
