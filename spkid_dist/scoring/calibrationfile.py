"""Keep a calibration beside its weights, as JSON, with the weights' digests, so that no other weights are scored with it.

| weights | file |
|---|---|
| ``e4_weights.ckpt`` | ``e4_weights.calibration.json`` |
| ``e4_weights.pt`` | ``e4_weights.pt-calibration.json``: no other file has the same name |
| several together | ``e4_weights+DIGEST.calibration.json`` beside the one of the smallest digest |

DIGEST is one of the digests of all, so that each set of models has a calibration of its own, in whatever order and by whatever
paths they are given. A link is followed to the weights themselves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from shards.contentdigest import with_digest, without_digest
from shards.errors import InputError
from shards.files import real_path, write_json
from shards.jsontext import from_json, read_json, shown
from shards.plaintext import printable
from spkid_dist.scoring.calibration import Scale
from spkid_dist.scoring.weightsdigest import NUM_DIGITS, is_digest, weights_digest

ENDING = ".calibration.json"
OTHER_ENDING = "-calibration.json"  # of weights whose names do not end in .ckpt
PICTURE_SUFFIX, OPEN_SET_SUFFIX = ".png", ".open_set.png"  # in the place of .json
WEIGHTS_ENDING = ".ckpt"
REMEDY = "run spkid calibrate again, or remove this file"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What scores are calibrated with: the `scale`, and the `threshold` on the log-likelihood ratio of the found speaker.

    `threshold` is None where none was fitted. `path` is the file.
    """

    scale: Scale
    threshold: float | None
    path: Path


@dataclass(frozen=True)
class _WeightsFile:
    name: str
    digest: str


@dataclass(frozen=True)
class _Other:
    """What is read of a calibration of other weights."""

    weights: list[_WeightsFile]


@dataclass(frozen=True)
class _Kept:
    """What is read of a calibration."""

    temperature: float
    length_exponent: float
    weights: list[_WeightsFile]
    threshold: float | None = None


def calibration_path(weights: Sequence[Path]) -> Path:
    """Where the calibration of these weights lies, one file or several together. Raises InputError where one can't be read."""
    files = [real_path(path) if path.is_symlink() else path for path in weights]
    if len(files) == 1:
        return files[0].with_name(_name(files[0].name))
    digests = [weights_digest(path) for path in files]
    of_all = xxhash.xxh3_64_hexdigest(" ".join(sorted(digests)).encode())
    first = files[digests.index(min(digests))]
    return first.with_name(_name(f"{first.name.removesuffix(WEIGHTS_ENDING)}+{of_all}{WEIGHTS_ENDING}"))


def _name(weights: str) -> str:
    is_usual = weights.endswith(WEIGHTS_ENDING)
    return weights.removesuffix(WEIGHTS_ENDING) + ENDING if is_usual else weights + OTHER_ENDING


def other_calibration(weights: Sequence[Path]) -> tuple[Path, list[str]] | None:
    """A calibration beside these weights that is of others, and the names of those; None where there is none.

    The file that the weights' own calibration would have is not looked at.
    """
    own = calibration_path(weights)
    for folder in dict.fromkeys(path.parent for path in (own, *weights)):
        for path in sorted((*folder.glob(f"*{ENDING}"), *folder.glob(f"*{OTHER_ENDING}"))):
            try:
                found: _Other = from_json(_Other, read_json(path, "the calibration", REMEDY))
            except (InputError, ValueError):
                continue  # it is damaged, which its own weights will tell
            names = [printable(one.name) for one in found.weights]
            if names and path != own:
                return path, names
    return None


def write_calibration(weights: Sequence[Path], scale: Scale, threshold: float | None, facts: dict[str, Any]) -> Path:
    """Write the calibration of these weights, with further `facts`; returns its path. Raises InputError where it can't be."""
    path = calibration_path(weights)
    held = {"temperature": scale.temperature, "length_exponent": scale.length_exponent, "threshold": threshold}
    known = sorted((weights_digest(one), one.name) for one in weights)
    digests = [{"name": name, "digest": digest} for digest, name in known]
    write_json(path, with_digest({**held, "weights": digests, **facts}))
    return path


def read_calibration(weights: Sequence[Path]) -> Calibration | None:
    """The calibration that lies beside these weights; None where there is none.

    Raises:
        InputError: it is damaged, or was made for other weights.
    """
    path = calibration_path(weights)
    if not path.exists():
        return None
    value = read_json(path, "the calibration", REMEDY)
    try:
        if isinstance(value, dict):
            without_digest(value)
        found: _Kept = from_json(_Kept, value)
        scale = Scale(temperature=found.temperature, length_exponent=found.length_exponent)
        digests = sorted(one.digest for one in found.weights)
        if not digests or not all(map(is_digest, digests)):
            raise ValueError(f"weights have the digests {shown(digests)}, expected {NUM_DIGITS} digits for each")
    except ValueError as error:
        raise InputError(f"{path}: the calibration: {error}; {REMEDY}") from None
    if digests != sorted(weights_digest(one) for one in weights):
        names = ", ".join(map(str, weights))
        raise InputError(f"{path}: this calibration was made for other weights than {names} holds now; {REMEDY}")
    return Calibration(scale=scale, threshold=found.threshold, path=path)


def use_calibration(weights: Sequence[Path], say: Callable[[str], None]) -> Calibration | None:
    """As `read_calibration`, and say which is used; or where there is none, that other weights beside these have one."""
    found = read_calibration(weights)
    if found is not None:
        say(f"scores are calibrated by {found.path}")
        return found
    other = other_calibration(weights)
    if other is not None:
        path, names = other
        have, those = ("is", "those") if len(names) == 1 else ("together are", "all of those")
        these = ", ".join(map(str, weights))
        say(
            f"{these}: not calibrated, but {', '.join(names)} {have}, by {path.name}; run spkid calibrate for these weights, "
            f"or score with {those}"
        )
    return None
