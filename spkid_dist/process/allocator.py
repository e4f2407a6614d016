"""Keep freed memory with the process, for what it allocates next.

A step's intermediate tensors are some hundred kilobytes each. glibc maps memory of that size anew each time, or gives the end
of its heap back to the system when it is freed, and the system hands it out again page by page, zeroed: 50 to 350 page
faults a step of 1,000 windows, which take up to a quarter of a step in bf16.
"""

import ctypes

# mallopt(3): its numbers, and values that hold a step's tensors. 32 MB is the most that glibc takes for the first.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
LARGEST_KEPT, MOST_KEPT = 32 << 20, 256 << 20  # bytes: of a tensor; at the end of the heap


def keep_freed_memory() -> None:
    """Have this process keep what it frees for what it will ask for next; nothing where the C library is another."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, MOST_KEPT)
