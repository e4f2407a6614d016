"""Report a GPU that fails while it works in one line, instead of torch's page of C++.

After such an error (an Xid in the kernel's log) nothing that this process has on the GPU can be used, and all that touches it
fails too, so it is caught around everything else.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from shards.errors import InputError
from spkid_dist.process.memory import is_out_of_memory
from spkid_dist.ranks.together import first_words

MARKS = ("CUDA error", "CUDA driver error", "CUBLAS_STATUS_", "cuDNN error", "cudaError", "unspecified launch failure")


class LostDeviceError(InputError):
    """A GPU has failed."""


def is_of_device(error: BaseException) -> bool:
    """Whether an error of torch or Triton says that a GPU failed; one that lacks memory did not."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or any(mark in str(error) for mark in MARKS)


@contextmanager
def explain_lost_device(remedy: Callable[[], str]) -> Iterator[None]:
    """Turn the failure of a GPU into one line, which ends in the `remedy`.

    Raises:
        LostDeviceError: a GPU has failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_of_device(error):
            raise
        rank = f"rank {os.environ['RANK']} on " if "RANK" in os.environ else ""
        raise LostDeviceError(
            f"{rank}{socket.gethostname()}: the GPU failed ({first_words(error)}): look at nvidia-smi, and for Xid in the "
            f"kernel's log (dmesg); {remedy()}"
        ) from None
