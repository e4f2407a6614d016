"""Warn about speakers before a training: those that can't be learnt, and those that can't be measured.

None of it is an error: there are good reasons for each. Nothing of it shows in the loss.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from shards.speakers import SPEAKER_FLAGS

if TYPE_CHECKING:  # sharding, which has its lines from here too, loads no torch
    from spkid_dist.dataset import WindowDataset

SHOWN = 5  # names of a line


def say_training_speakers(tr_data: "WindowDataset", va_data: "WindowDataset") -> list[str]:
    """Lines on the speakers of a training set and a validation set, which have the same classes."""
    names = tr_data.data.manifest.speakers
    trained, left_out = tr_data.windows.by_speaker()
    validated, _ = va_data.windows.by_speaker()
    lines = []
    if left_out:
        lines.append(
            f"training: {left_out:,} of its {len(tr_data.data.utterances):,} utterances are left out by --tr_speakers or "
            "--tr_utterances"
        )
    absent = np.flatnonzero(trained == 0)
    if len(absent):
        lines.append(
            f"training: {len(absent):,} of {len(names):,} speakers have no utterance that is trained on, so the model can't "
            f"learn them: {shown([names[index] for index in absent])}"
        )
    lines += _say_few("training", [names[index] for index in np.flatnonzero(trained)], int(trained.sum()))
    unseen = np.flatnonzero((trained == 0) & (validated > 0))
    if len(unseen):
        lines.append(_say_unseen([names[index] for index in unseen], validated, unseen))
    return lines


def _say_unseen(names: list[str], validated: np.ndarray, unseen: np.ndarray) -> str:
    num_speakers, total, lost = int((validated > 0).sum()), int(validated.sum()), int(validated[unseen].sum())
    if len(names) == num_speakers:
        return (
            f"validation: none of its {num_speakers:,} speakers is trained on, so its loss and accuracy tell nothing of what "
            "is learnt, nor which epoch is best; validate on other utterances of the training's speakers"
        )
    return (
        f"validation: {len(names):,} of its {num_speakers:,} speakers are not trained on; their {lost:,} of {total:,} "
        f"utterances are always wrong: {shown(names)}"
    )


def say_list_speakers(where: str, found: Sequence[str], num_utterances: int, classes: Sequence[str]) -> list[str]:
    """Lines on a list of utterances; `found` are its speakers, `classes` those of the speaker map, `where` it is listed."""
    absent = sorted(set(classes) - set(found))
    lines = []
    if absent:
        lines.append(
            f"{where}: {len(absent):,} of the {len(classes):,} speakers of the map have no utterance in it: {shown(absent)}"
        )
    return lines + _say_few(where, sorted(found), num_utterances)


def _say_few(where: str, speakers: list[str], num_utterances: int) -> list[str]:
    """A line where there is one speaker, or where most have one utterance: both often come of a wrong speaker rule."""
    remedy = f"if that is not so, say what names the speakers: {SPEAKER_FLAGS}"
    if len(speakers) == 1:
        return [
            f"{where}: all utterances are of one speaker, {speakers[0]!r}, so there is nothing to tell apart; {remedy}"
        ]
    if num_utterances * 2 < len(speakers) * 3:
        return [
            f"{where}: {num_utterances:,} utterances of {len(speakers):,} speakers ({shown(speakers)}), so most speakers have "
            f"only one; {remedy}"
        ]
    return []


def shown(names: Sequence[str]) -> str:
    """The first few names, for a line."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
