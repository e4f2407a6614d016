"""Compile kernels with numba, without the interpreter's lock, and keep them on disk where possible.

numba keeps them beside the sources, or below the user's cache folder (NUMBA_CACHE_DIR and XDG_CACHE_HOME choose another). Where
it may write to none of these it refuses to compile at all, and for a user without a home it makes a folder named "~". Here
such kernels are compiled again by each process, which takes some seconds.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The kernel, which is compiled when it is first called with arguments of new types."""
    if _has_place(Path(function.__code__.co_filename).parent):
        try:
            return njit(cache=True, nogil=True)(function)
        except RuntimeError:  # no folder can be written
            pass
    return njit(nogil=True)(function)


def _has_place(sources: Path) -> bool:
    """Whether numba may look for a folder: not where the only one left is that of a user without a home."""
    is_chosen = any(os.environ.get(name) for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"))
    return is_chosen or os.access(sources, os.W_OK) or os.path.expanduser("~") != "~"  # noqa: PTH111 - Path's raises
