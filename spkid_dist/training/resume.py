"""Find the checkpoint that a training continues from, and check that it may.

It must be of the same data, told by the fingerprints, and of the same options, except for those that describe the machine or
where things lie (`spkid_dist.trained.MAY_CHANGE`).
"""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from shards.errors import InputError, UsageError
from shards.jsontext import shown
from spkid_dist.config import TrainConfig
from spkid_dist.ranks.together import by_main, raise_everywhere
from spkid_dist.trained import MAY_CHANGE, options_of
from spkid_dist.training.checkpoint import Check, Checkpoint, CheckpointFolder, Say
from spkid_dist.training.checkpointstate import check_values, checked_states
from spkid_dist.training.job import Job, TrainingData
from spkid_dist.training.learner import Learner
from spkid_dist.training.state import place_of, restore


def go_on(job: Job, learner: Learner, data: TrainingData, checkpoints: CheckpointFolder) -> Checkpoint | None:
    """Bring the training to where the checkpoint stands that --resume names, and return it, if there is one.

    Called by all ranks. Only rank 0 reads; see `find_checkpoint` for what is raised.
    """

    def check(found: Checkpoint) -> None:
        check_values(found)
        _check_data(found, data.fingerprints, job.config)
        _check_options(found, job.config)
        checked_states(found, learner, data.training)

    checkpoint = by_main(job.accelerator, lambda: find_checkpoint(job.config, checkpoints, check, job.log.line))
    if checkpoint is not None:
        try:
            restore(checkpoint, learner, data.training, job.accelerator)
        except InputError as error:  # all ranks have the same bytes, and the same error
            raise_everywhere(error)
        place = place_of(learner, data.training)
        job.log.line(f"continuing in epoch {place['epoch']} at window {place['position']}, from {checkpoint.path}")
    return checkpoint


def find_checkpoint(config: TrainConfig, folder: CheckpointFolder, check: Check, say: Say) -> Checkpoint | None:
    """The checkpoint to go on from, as --resume says; None to train from the start. Called by rank 0.

    Args:
        config: this training's options.
        folder: the checkpoints of its `save_path`.
        check: raises DamagedCheckpointError where one is to be passed over, and other errors where none can be gone on from.
        say: tells of what was found.

    Raises:
        InputError: no checkpoint at --resume, or only damaged ones; or of other data.
        UsageError: it is of other options.
    """
    if config.resume == "never":
        return None
    if config.resume == "auto":
        checkpoint = folder.newest(say, check)
        if checkpoint is None:
            say(f"{folder.folder}: no checkpoint yet, training from the start")
            return None
    else:
        checkpoint = folder.at(Path(config.resume), say, check)
    return checkpoint


def _check_data(checkpoint: Checkpoint, data: dict[str, str], config: TrainConfig) -> None:
    then, now = checkpoint.values["options"], options_of(config)
    for what, fingerprint in data.items():
        found = checkpoint.values["data"].get(what)
        if found != fingerprint:
            name = {"training set": "tr_shards", "validation set": "va_shards"}.get(what, what)
            place = _shown(then.get(name)) if then.get(name) else "of its files"
            raise InputError(
                f"{checkpoint.path}: its {what} ({place}) has the fingerprint {found}, this one "
                f"({now.get(name) or 'of its files'}) {fingerprint}; continue with the same "
                "data, or give another --save_path, or --overwrite instead of --resume"
            )


def _check_options(checkpoint: Checkpoint, config: TrainConfig) -> None:
    now, then = options_of(config), checkpoint.values["options"]
    for option in fields(TrainConfig):
        name = option.name
        before = then.get(name, None if option.default is MISSING else option.default)
        if name not in MAY_CHANGE and before != now[name]:
            raise UsageError(
                f"--{name} {_shown(now[name])}: the checkpoint {checkpoint.path} was trained with {_shown(before)}; continue "
                "with that, or give another --save_path, or --overwrite instead of --resume"
            )
    if then["epoch"] != config.epoch and (config.warmup or config.schedule in ("cosine", "one_cycle")):
        raise UsageError(
            f"--epoch {config.epoch}: the learning rates of the checkpoint {checkpoint.path} follow from its {then['epoch']} "
            f"epochs (--schedule {config.schedule}); continue with that number"
        )
    epochs = len(checkpoint.values["statistics"]["va_loss"])
    if config.epoch < epochs:
        raise UsageError(
            f"--epoch {config.epoch}: the checkpoint {checkpoint.path} has {epochs} epochs behind it; give {epochs} or more"
        )


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float):
        return "nothing" if value is None else str(value)
    return value if isinstance(value, str) else shown(value)
