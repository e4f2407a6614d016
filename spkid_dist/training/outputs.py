"""Find, remove and copy the files that a training leaves in its folder, all by their names.

Not among them are `train.log` and `STOP`, which a training that was refused may leave too. Nor is what trackers other than
TensorBoard write: they keep each run in a folder of its own.
"""

import contextlib
import re
import shutil
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.files import atomic_writer, read_regular, real_path, write_json
from shards.jsontext import MOST_BYTES, parse_json
from shards.unfinished import TEMPORARY_MARK
from spkid_dist.trained import OPTIONS_NAME
from spkid_dist.trainedfolder import STATISTICS_NAME, TrainStatistics, averaged_name, weights_name
from spkid_dist.training.checkpoint import CHAIN_NAME, FOLDER_NAME, NAME_PATTERN
from spkid_dist.training.report import PLOTS_NAME, SUMMARY_NAME
from spkid_dist.weights.file import ID_NAME, name_in_weights, read_weights

WEIGHTS_PATTERN = re.compile(r"(bestval_|averaged_)?e(\d+)_weights\.ckpt")
# What `spkid calibrate` puts beside weights, alone or together with those of other models.
CALIBRATION_PATTERN = re.compile(r"(?P<stem>.+?_weights)(\+[0-9a-f]{16})?\.calibration\.(json|png|open_set\.png)")
PROFILE_PATTERN = re.compile(r"profile-rank\d+\.json")
EVENTS = "tensorboard/**/events.out.tfevents.*"
PLAIN_NAMES = (PLOTS_NAME, SUMMARY_NAME, STATISTICS_NAME, OPTIONS_NAME)


def outputs_of(folder: Path) -> list[Path]:
    """What a training has left in `folder`: weights first, the options last; a checkpoint is a folder."""
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in files if WEIGHTS_PATTERN.fullmatch(path.name)]
    named = weights + [path for path in files if PROFILE_PATTERN.fullmatch(path.name) or _calibrated(path.name)]
    checkpoints = sorted(path for path in folder.glob(f"{FOLDER_NAME}/*-epoch*") if NAME_PATTERN.match(path.name))
    chain = [path for path in (folder / FOLDER_NAME / CHAIN_NAME,) if path.is_file()]
    plain = [folder / name for name in PLAIN_NAMES if (folder / name).is_file()]
    return [*named, *checkpoints, *chain, *sorted(folder.glob(EVENTS)), *plain]


def remove_outputs(folder: Path) -> None:
    """Remove what a training has left in `folder`, and nothing else; the options go last, so that they tell of the rest.

    Raises:
        OSError: something can't be removed.
    """
    for path in outputs_of(folder):
        _remove(path)
    names = (*PLAIN_NAMES, f"{FOLDER_NAME}/{CHAIN_NAME}", "*_weights.ckpt", "profile-rank*.json")
    for unfinished in (path for name in names for path in folder.glob(f"{name}{TEMPORARY_MARK}*")):
        unfinished.unlink(missing_ok=True)
    for emptied in (folder / FOLDER_NAME, folder / "tensorboard"):
        with contextlib.suppress(OSError):  # it holds something else, or is not there
            emptied.rmdir()


def names_in(folder: Path) -> set[str | None]:
    """The trainings that weights and options in `folder` name; None among them where a file names none."""
    found = {name_in_weights(path) for path in _weights(folder)}
    options = folder / OPTIONS_NAME
    if options.exists():
        value = _json_object(options).get(ID_NAME)
        found.add(value if isinstance(value, str) else None)
    elif (folder / STATISTICS_NAME).exists() or (folder / SUMMARY_NAME).exists():
        found.add(None)
    return found


def remove_stale_weights(folder: Path, statistics: TrainStatistics, name: str) -> None:
    """Remove the weights that are not those of the training `name` after the epochs in `statistics`."""
    right = [*weights_of(statistics), *average_of(statistics)]
    for path in _weights(folder):
        if path.name not in right or name_in_weights(path) not in (name, None):
            remove_weights(path)


def remove_weights(path: Path) -> None:
    """Remove a weights file, if it is there, and its calibrations."""
    remove_calibrations(path)
    path.unlink(missing_ok=True)


def remove_calibrations(weights: Path) -> None:
    """Remove the calibrations that stand beside these weights, which go or are written anew."""
    for path in sorted(weights.parent.glob("*.calibration.*")):
        if _calibrated(path.name) == weights.name:
            path.unlink(missing_ok=True)


def _calibrated(name: str) -> str | None:
    """The weights file that a file of this name is a calibration of; None where it is none of a training's weights."""
    match = CALIBRATION_PATTERN.fullmatch(name)
    weights = f"{match['stem']}.ckpt" if match else ""
    return weights if WEIGHTS_PATTERN.fullmatch(weights) else None


def bring_weights(origin: Path, folder: Path, statistics: TrainStatistics, name: str) -> None:
    """Copy the weights of all epochs in `statistics` from the folder where they were trained, as far as they are there.

    Raises:
        InputError: those of the best epoch are missing, or a file can't be written.
    """
    for file_name in (*weights_of(statistics), *average_of(statistics)):
        path = origin / file_name
        if not path.is_file() or name_in_weights(path) not in (name, None):
            continue
        with path.open("rb") as source, atomic_writer(folder / file_name) as target:
            shutil.copyfileobj(source, target)
    check_best_weights(origin, folder, statistics)


def check_best_weights(origin: Path, folder: Path, statistics: TrainStatistics) -> None:
    """Raise InputError where the weights of the best epoch are missing in `folder`, or are not what was written there.

    `origin` is where they should be from.
    """
    best = statistics.best_epoch
    if best >= 0 and not (folder / weights_of(statistics)[best]).is_file():
        raise InputError(
            f"{origin / weights_of(statistics)[best]}: the best weights so far are missing, or those of another training; "
            "restore them, or train from the start with --overwrite"
        )
    if best >= 0:
        read_weights(folder / weights_of(statistics)[best])


def bring_summary(origin: Path, folder: Path, epochs: int) -> None:
    """Copy the summary of a training that ended after so many epochs, if `origin` has one; any other summary is removed."""
    summary = _json_object(origin / SUMMARY_NAME)
    if summary.get("epochs") != epochs:
        (folder / SUMMARY_NAME).unlink(missing_ok=True)
    elif real_path(origin) != real_path(folder):
        write_json(folder / SUMMARY_NAME, summary | {"save_path": str(folder)})


def weights_of(statistics: TrainStatistics) -> list[str]:
    """The names of the weights after each epoch."""
    return [weights_name(epoch, best) for epoch, best in enumerate(statistics.were_best)]


def average_of(statistics: TrainStatistics) -> list[str]:
    """The name of the averaged weights after the last epoch, where there are any."""
    last = statistics.epochs - 1
    return [] if statistics.average_figures(last) is None else [averaged_name(last)]


def remove_earlier_averages(folder: Path, epoch: int) -> None:
    """Remove the averaged weights of epochs before this one."""
    for path in _weights(folder):
        if path.name.startswith("averaged_") and path.name != averaged_name(epoch):
            remove_weights(path)


def _weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*_weights.ckpt") if WEIGHTS_PATTERN.fullmatch(path.name))


def _json_object(path: Path) -> dict[str, Any]:
    """The object in a file of ours; empty where there is none."""
    try:
        value = parse_json(read_regular(path, MOST_BYTES), undecodable=True)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
