"""Keep a calibration beside its weights, as JSON, with the weights' digests, so that no other weights are scored with it.

| weights | file |
|---|---|
| ``e4_weights.ckpt`` | ``e4_weights.calibration.json`` |
| ``e4_weights.pt`` | ``e4_weights.pt-calibration.json``: no other file has the same name |
| several together | ``e4_weights+DIGEST.calibration.json`` beside the one of the smallest digest |

DIGEST is one of the digests of all, so that each set of models has a calibration of its own, in whatever order and by whatever
paths they are given. A link is followed to the weights themselves.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import float_info
from typing import Any

import xxhash

from shards.errors import InputError
from shards.files import read_text, write_json
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


def calibration_path(weights: Sequence[Path]) -> Path:
    """Where the calibration of these weights lies, one file or several together. Raises InputError where one can't be read."""
    files = [path.resolve() if path.is_symlink() else path for path in weights]
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
                entries = json.loads(path.read_bytes())["weights"]
                names = [str(entry["name"]) for entry in entries]
            except (OSError, ValueError, KeyError, TypeError):
                continue  # it is damaged, which its own weights will tell
            if names and path != own:
                return path, names
    return None


def write_calibration(weights: Sequence[Path], scale: Scale, threshold: float | None, facts: dict[str, Any]) -> Path:
    """Write the calibration of these weights, with further `facts`; returns its path. Raises InputError where it can't be."""
    path = calibration_path(weights)
    held = {"temperature": scale.temperature, "length_exponent": scale.length_exponent, "threshold": threshold}
    known = sorted((weights_digest(one), one.name) for one in weights)
    digests = [{"name": name, "digest": digest} for digest, name in known]
    write_json(path, {**held, "weights": digests, **facts})
    return path


def read_calibration(weights: Sequence[Path]) -> Calibration | None:
    """The calibration that lies beside these weights; None where there is none.

    Raises:
        InputError: it is damaged, or was made for other weights.
    """
    path = calibration_path(weights)
    if not path.exists():
        return None
    try:
        found = json.loads(read_text(path, "the calibration", REMEDY))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: the calibration is not JSON: {error.msg}; {REMEDY}") from None
    entries: dict[str, Any] = found if isinstance(found, dict) else {}
    numbers: dict[str, Any] = {name: entries.get(name) for name in ("temperature", "length_exponent")}
    try:
        scale = Scale(**numbers)
        threshold = _threshold_of(entries.get("threshold"))
        digests = _digests_of(entries.get("weights"))
    except ValueError as error:
        raise InputError(f"{path}: {error}; {REMEDY}") from None
    if digests != sorted(weights_digest(one) for one in weights):
        names = ", ".join(map(str, weights))
        raise InputError(f"{path}: this calibration was made for other weights than {names} holds now; {REMEDY}")
    return Calibration(scale=scale, threshold=threshold, path=path)


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


def _threshold_of(value: Any) -> float | None:
    """Raises ValueError where it is neither a finite number nor null."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (value is None or (is_number and abs(value) <= float_info.max)):
        raise ValueError(f"threshold is {value!r}, expected a number or null")
    return None if value is None else float(value)


def _digests_of(value: Any) -> list[str]:
    """The digests of the weights that a calibration names, sorted. Raises ValueError where it names none."""
    entries = value if isinstance(value, list) else []
    digests = [str(entry.get("digest")) for entry in entries if isinstance(entry, dict)]
    if not digests or len(digests) < len(entries) or not all(map(is_digest, digests)):
        raise ValueError(f"weights are {value!r}, expected a list of name and digest, which has {NUM_DIGITS} digits")
    return sorted(digests)
