"""Send curves to a tracker of accelerate: scalars, by rank 0.

Whether a tracker talks to a server, and to which, is said by its own settings (WANDB_MODE, MLFLOW_TRACKING_URI, ...). Said
here is what accelerate leaves open: the project, the training's name, and where files go that have no place of their own.
A tracker fails as it likes, at any call: whatever it raises is one line here.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from shards.errors import InputError, UsageError, first_line
from shards.extras import import_extra, install_command
from spkid_dist.config import TrainConfig
from spkid_dist.ranks.together import by_main
from spkid_dist.trained import options_of
from spkid_dist.training.preemption import SIGNALS

PROJECT = "spkid-dist"


def check_tracker(name: str | None) -> None:
    """Raises UsageError where the tracker's library is missing; accelerate itself would only warn."""
    if name is None:
        return
    if name == "tensorboard":
        import_extra("torch.utils.tensorboard", "tensorboard", f"--log_with {name}")
        return
    install = f"run {install_command(name)}"
    try:
        import_module(name)
    except Exception as error:  # noqa: BLE001 - a library of many, which may not fit the others
        raise UsageError(f"--log_with {name}: {name} can't be imported ({_one_line(error)}): {install}") from None
    if name not in map(str, get_available_trackers()):
        raise UsageError(f"--log_with {name}: accelerate finds no {name} that it can use: {install}")


def start_tracking(accelerator: Accelerator, config: TrainConfig, steps_done: int) -> None:
    """Open the tracker, if there is one, after `steps_done` steps of the whole training. Called by all ranks.

    What an earlier run wrote beyond them is trained anew: TensorBoard hides it, dvclive has it twice, and of the others each
    start is a run of its own.

    Raises:
        InputError: the tracker can't be opened.
    """
    tracker = config.log_with
    if tracker is None:
        return
    project = tracker if tracker == "tensorboard" else PROJECT  # tensorboard: the folder's name
    options = None if tracker == "tensorboard" else plain_options(config)  # it would write a run of its own for them

    def start() -> None:
        with _explained(f"--log_with {tracker}: can't start"), _signals_kept():
            accelerator.init_trackers(project, options, {tracker: tracker_options(config, steps_done)})

    try:
        by_main(accelerator, start)
    except InputError:
        accelerator.trackers = []  # of one that has not started nothing is to be finished
        raise


def tracker_options(config: TrainConfig, steps_done: int) -> dict[str, Any]:
    """What the tracker's class of accelerate is told besides the project; see there what each passes on to its library."""
    name = config.save_path.absolute().name  # of the training: that of its folder
    place = str(config.save_path / str(config.log_with))
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": steps_done + 1},
        "wandb": {"name": name, "dir": str(config.save_path)},
        "trackio": {"name": name},
        "comet_ml": {},
        "aim": {"experiment": name},
        "mlflow": {"run_name": name},
        # Its own ways would upload each file that torch saves, and write over the run before.
        "clearml": {"task_name": name, "auto_connect_frameworks": False, "reuse_last_task_id": False},
        "dvclive": {"dir": place, "resume": steps_done > 0},  # else it empties the folder
        "swanlab": {"experiment_name": name, "logdir": place},
    }
    return options[str(config.log_with)]


def plain_options(config: TrainConfig) -> dict[str, bool | int | float | str]:
    """The options that are given, as values that every tracker takes: no nothing, no lists."""
    given = {name: value for name, value in options_of(config).items() if value is not None}
    return {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in given.items()}


def track(accelerator: Accelerator, what: str, values: dict[str, float], steps_done: int) -> None:
    """Give the tracker, if there is one, the scalars `values` of `what` after a step of the whole training.

    Called by all ranks.

    Raises:
        InputError: the tracker does not take them.
    """
    if not accelerator.log_with:
        return
    named = {f"{what}/{name}": value for name, value in values.items()}

    def log() -> None:
        with _explained(
            f"--log_with {accelerator.log_with[0]}: can't write the curves", "; train on with --resume auto"
        ):
            accelerator.log(named, step=steps_done)

    by_main(accelerator, log)


def finish_tracking(accelerator: Accelerator, say: Callable[[str], None]) -> None:
    """Close the tracker, if there is one; `say` what went wrong, which is not the training's failure."""
    for tracker in accelerator.trackers:
        try:
            with _explained(f"--log_with {tracker.name}: can't finish its curves; the training's own files are whole"):
                tracker.finish()
        except InputError as error:
            say(str(error))
    accelerator.trackers = []


@contextmanager
def _explained(what: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever a tracker raises into one line.

    Raises:
        InputError: it raised something.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - each has errors of its own, and those of its network
        raise InputError(f"{what}: {_one_line(error)}{remedy}") from None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Give the signals that stop a training back to it, where a tracker has taken them for itself."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _one_line(error: Exception) -> str:
    """An error's kind and the first line of what it says."""
    said = first_line(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
