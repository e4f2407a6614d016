"""Curves for those who watch: scalars that rank 0 gives to a tracker of accelerate."""

from accelerate import Accelerator

from shards.errors import InputError
from shards.sources.extras import import_extra
from spkid_dist.ranks import by_main


def check_tracker(name: str | None) -> None:
    """Raises UsageError where the tracker's library is missing; accelerate itself would only warn."""
    if name is not None:
        import_extra("torch.utils.tensorboard", "tensorboard", f"--log_with {name}")


def start_tracking(accelerator: Accelerator, name: str | None, steps_done: int) -> None:
    """Open the tracker. What an earlier run wrote beyond `steps_done` is hidden: those steps are trained anew.

    Called by all ranks.

    Raises:
        InputError: its files can't be written.
    """
    if name is not None:
        options = {name: {"purge_step": steps_done + 1}}
        by_main(accelerator, lambda: accelerator.init_trackers(name, init_kwargs=options))


def track(accelerator: Accelerator, what: str, values: dict[str, float], steps_done: int) -> None:
    """Give the tracker, if there is one, the scalars `values` of `what` after a step of the whole training.

    Raises:
        InputError: they can't be written.
    """
    try:
        accelerator.log({f"{what}/{name}": value for name, value in values.items()}, step=steps_done)
    except OSError as error:
        raise InputError(f"--log_with: can't write the curves: {error.strerror or error}; free room") from None
