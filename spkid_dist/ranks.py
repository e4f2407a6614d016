"""What all ranks do as one: a call by rank 0 whose outcome everyone has, an error that everyone raises.

An error that one rank alone raises ends that rank, and the others wait for it in their next collective call until the
launcher ends them. Where all can know of it, all raise it, and one of them reports it.
"""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from shards.errors import InputError, SpkidError

T = TypeVar("T")


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
