"""Put back what a call changes in its process, however the call ends: a notebook or a sweep goes on as before.

Kept: accelerate's shared states, torch's generators, threads and switches, environment variables, CPU affinity, and
handlers of signals and logs. Not kept: the C library's memory settings (`spkid_dist.process.allocator`), which can't
be read, and what only costs memory, such as imported modules and compiled code.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from shards.errors import UsageError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SHARED_STATES = (AcceleratorState, GradientState, PartialState)


class _Launch:
    """Whether this process has left the group of its launch, which can be joined once."""

    group_is_left = False


def leave_group() -> None:
    """Leave the group of the launch's processes, if this process is in one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        _Launch.group_is_left = True


def check_group_is_open(command: str) -> None:
    """Raise UsageError where the group of the launch was left already: to join it again would wait for ever."""
    if _Launch.group_is_left and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        error = UsageError(
            "an earlier call in these processes has ended their group, so they can't join again; "
            f"{command} in a launch of its own"
        )
        error.everywhere = True
        raise error


@contextmanager
def process_as_found() -> Iterator[None]:
    """Begin without what an earlier call left of accelerate's state, and leave the process as it was found.

    A process group that is still there at the end keeps accelerate's state of it: it can be joined only once.
    """
    with ExitStack() as stack:
        for keep in (_keep_signals, _keep_logging, _keep_environment, _keep_torch, _keep_accelerate):
            stack.callback(keep())
        yield


def _keep_accelerate() -> Callable[[], None]:
    before = [dict(state._shared_state) for state in SHARED_STATES]
    in_group = torch.distributed.is_initialized()
    for state in SHARED_STATES:
        if not (in_group and state is PartialState):
            state._shared_state.clear()

    def restore() -> None:
        keeps_group = not in_group and torch.distributed.is_initialized()
        for state, values in zip(SHARED_STATES, before, strict=True):
            if not (keeps_group and state is PartialState):
                state._shared_state.clear()
                state._shared_state.update(values)

    return restore


def _keep_torch() -> Callable[[], None]:
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    deterministic = _determinism()
    switches = [(place, name, getattr(place, name)) for place, name in _switches()]
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    with_gradients = torch.is_grad_enabled()

    def restore() -> None:
        torch.set_rng_state(generator)
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if _determinism() != deterministic:  # to say it again would load torch's compiler
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.set_float32_matmul_precision(precision)
        for place, name, value in switches:
            setattr(place, name, value)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(with_gradients)

    return restore


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _switches() -> list[tuple[Any, str]]:
    """Switches of torch that libraries set for the whole process."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return [(cudnn, "benchmark"), (cudnn, "deterministic"), (cudnn, "allow_tf32"), (matmul, "allow_tf32")]


def _keep_environment() -> Callable[[], None]:
    before, cpus = dict(os.environ), os.sched_getaffinity(0)

    def restore() -> None:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})
        if os.sched_getaffinity(0) != cpus:
            os.sched_setaffinity(0, cpus)

    return restore


def _keep_logging() -> Callable[[], None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def restore() -> None:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)

    return restore


def _keep_signals() -> Callable[[], None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        if threading.current_thread() is not threading.main_thread():  # Python has handlers nowhere else
            return
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    return restore
