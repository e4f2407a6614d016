"""Keep a calibration beside its weights, as JSON, with the weights' digests, so that no other weights are scored with it.

The file of `e4_weights.ckpt` is `e4_weights.calibration.json`; that of three models together stands beside the first of them in
the order of their paths, as `e4_weights+2.calibration.json`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import xxhash

from shards.errors import InputError
from shards.files import read_text, write_json
from spkid_dist.scoring.calibration import Scale

ENDING = ".calibration.json"
PICTURE_ENDING = ".calibration.png"
READ_BYTES = 2**22


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What scores are calibrated with: the `scale`, and the `threshold` on the log-likelihood ratio of the found speaker.

    `threshold` is None where none was fitted. `path` is the file.
    """

    scale: Scale
    threshold: float | None
    path: Path


def calibration_path(weights: Sequence[Path]) -> Path:
    """Where the calibration of these weights lies, one file or several together, in whatever order."""
    first = min(weights)
    more = f"+{len(weights) - 1}" if len(weights) > 1 else ""
    return first.with_name(f"{first.stem}{more}{ENDING}")


def write_calibration(weights: Sequence[Path], scale: Scale, threshold: float | None, facts: dict[str, Any]) -> Path:
    """Write the calibration of these weights, with further `facts`; returns its path. Raises InputError where it can't be."""
    path = calibration_path(weights)
    held = {"temperature": scale.temperature, "length_exponent": scale.length_exponent, "threshold": threshold}
    digests = [{"name": one.name, "digest": _digest(one)} for one in sorted(weights)]
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
    remedy = "run spkid calibrate again, or remove this file"
    try:
        found = json.loads(read_text(path, "the calibration", remedy))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: the calibration is not JSON: {error.msg}; {remedy}") from None
    entries: dict[str, Any] = found if isinstance(found, dict) else {}
    temperature, exponent, threshold = (entries.get(name) for name in ("temperature", "length_exponent", "threshold"))
    if not (_is_number(temperature) and temperature > 0 and _is_number(exponent) and 0 <= exponent <= 1):
        raise InputError(
            f"{path}: temperature {temperature!r} and length_exponent {exponent!r}, expected a number above 0, and one "
            f"from 0 to 1; {remedy}"
        )
    if not (threshold is None or _is_number(threshold)):
        raise InputError(f"{path}: threshold is {threshold!r}, expected a number or null; {remedy}")
    _check_weights(path, entries.get("weights"), weights, remedy)
    return Calibration(scale=Scale(temperature=temperature, length_exponent=exponent), threshold=threshold, path=path)


def _check_weights(path: Path, kept: Any, weights: Sequence[Path], remedy: str) -> None:
    """Raise InputError where the calibration at `path` is not of these weights."""
    entries = kept if isinstance(kept, list) else []
    digests = sorted(str(entry.get("digest")) for entry in entries if isinstance(entry, dict))
    if digests != sorted(_digest(one) for one in weights):
        names = ", ".join(map(str, weights))
        raise InputError(f"{path}: this calibration was made for other weights than {names} holds now; {remedy}")


def _digest(path: Path) -> str:
    """The xxh3_128 of a file, as hexadecimal. Raises InputError where it can't be read."""
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path}: can't read these weights: {error.strerror}; check --weights_ckpt") from None
    return digest.hexdigest()


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
