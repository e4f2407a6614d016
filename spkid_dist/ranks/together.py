"""Act together on all ranks: a call by rank 0 whose outcome everyone has, an error that everyone raises.

An error that one rank alone raises ends that rank, and the others wait for it in their next collective call until the
launcher ends them. Where all can know of it, all raise it, and one of them reports it.
"""

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from shards.errors import InputError, SpkidError, first_line

T = TypeVar("T")

# What torch's errors say where a collective call has failed; gloo's are plain RuntimeErrors that name its sources.
COLLECTIVE_MARKS = ("gloo/", "[gloo]", "NCCL", "ProcessGroup")


class LostRanksError(InputError):
    """Another process of the job has ended, or can't be reached any more."""


def by_main(accelerator: Accelerator, call: Callable[[], T]) -> T:
    """What `call` returns on rank 0, on every rank; called by all.

    Raises:
        SpkidError: what `call` raised on rank 0, on every rank.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = call()
        except SpkidError as error:
            outcome[1] = error
        except OSError as error:
            outcome[1] = InputError(str(error))
    value, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise_everywhere(failure)
    return value  # type: ignore[no-any-return]


def raise_everywhere(error: SpkidError) -> NoReturn:
    """Raise what all ranks raise; rank 0 reports it."""
    error.everywhere = True
    raise error


@contextlib.contextmanager
def explain_lost_ranks(accelerator: Accelerator, timeout_minutes: float) -> Iterator[None]:
    """Turn torch's errors of collective calls into one line.

    Raises:
        LostRanksError: another process has ended, or did not answer within `timeout_minutes`.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_of_collective(error):
            raise
        rank, count = accelerator.process_index, accelerator.num_processes
        raise LostRanksError(
            f"rank {rank} of {count} on {socket.gethostname()}: lost the other processes: one has ended, or did not answer "
            f"within --timeout_minutes {timeout_minutes:g} ({first_words(error)}); see what the others said, then start "
            "all again with --resume auto"
        ) from None


def is_of_collective(error: RuntimeError) -> bool:
    """Whether torch raised it because processes could not talk to each other."""
    return isinstance(error, torch.distributed.DistError) or any(mark in str(error) for mark in COLLECTIVE_MARKS)


def first_words(error: Exception) -> str:
    """An error's first sentence, without the place in the sources that it begins with."""
    return re.sub(r"^\[[^]]*\]\s*", "", first_line(error) or "no reason given").partition(". ")[0].rstrip(".")


def share_weights(model: torch.nn.Module) -> None:
    """Give all ranks the weights and buffers of rank 0."""
    for tensor in (*model.parameters(), *model.buffers()):
        torch.distributed.broadcast(tensor.detach(), src=0)
