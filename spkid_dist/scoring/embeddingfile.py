"""Write and read files of embeddings: ``.npz`` and ``.npy`` of NumPy, ``.ark`` of Kaldi.

| file | contents |
|---|---|
| ``x.npz`` | ``keys`` (U,) and ``embeddings`` (U, 2*H) float32 |
| ``x.npy`` | ``embeddings``; beside it ``x.keys``, a key a line |
| ``x.ark`` | a binary float vector a key; beside it ``x.scp``, which names it as ``--out`` does |

Equal embeddings make equal files. The rows come in pieces, so that no more than one is in memory.

Shapes: U utterances, H units of the last hidden layer.
"""

import contextlib
import struct
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError, UsageError
from shards.extras import import_extra
from shards.files import atomic_writer, read_regular, read_text
from spkid_dist.config.places import BESIDE_EMBEDDINGS
from spkid_dist.scoring.arrayfile import open_npz, read_npy
from spkid_dist.scoring.scorefile import MOST_SAID, write_array, write_text

DAMAGED = "write it again: spkid embed"


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Keys of U utterances, each once, and their embeddings (U, 2*H) float32."""

    keys: list[str]
    vectors: NDArray[np.float32]


def check_format(path: Path) -> None:
    """Look whether embeddings can be written to a file of this name.

    Raises:
        UsageError: its ending is of no known format, or kaldiio is needed and not installed.
    """
    if path.suffix not in WRITERS:
        raise UsageError(f"{path}: expected a name that ends in {', '.join(WRITERS)}")
    if path.suffix == ".ark":
        import_extra("kaldiio", "kaldi", "a Kaldi archive")


def check_keys(path: Path, keys: Sequence[str]) -> None:
    """Raise InputError where a file of this name can't hold such keys: words of Kaldi have no blanks."""
    wrong = (
        next((key for key in keys if len(key.split()) != 1 or key != key.strip()), None)
        if path.suffix == ".ark"
        else None
    )
    if wrong is not None:
        raise InputError(
            f"{path}: key {wrong!r} has white space, which Kaldi's files can't hold; give a file that ends in .npz"
        )


def companion(path: Path) -> Path | None:
    """The file that is written beside `path`; None where it is alone."""
    return next((path.with_suffix(ending) for ending in BESIDE_EMBEDDINGS.get(path.suffix, ())), None)


def write_embeddings(path: Path, keys: Sequence[str], parts: Iterable[NDArray[np.float32]], size: int) -> None:
    """Write embeddings (U, `size`), which come in parts of some rows each, whole or not at all.

    A file beside it is removed first and written last: it is never that of other embeddings.

    Raises:
        InputError: a file can't be written, or a key can't be in one of this kind.
        UsageError: as `check_format`.
    """
    check_format(path)
    check_keys(path, keys)
    beside = companion(path)
    if beside is not None:
        try:
            beside.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"{beside}: can't be replaced: {error.strerror}; remove it, or give another --out"
            ) from None
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(atomic_writer(path))
        lines = WRITERS[path.suffix](file, path, keys, parts, size)
    if beside is not None:
        with atomic_writer(beside) as file:
            file.writelines(line.encode() for line in lines)


def _write_npz(
    file: IO[bytes], _path: Path, keys: Sequence[str], parts: Iterable[NDArray[np.float32]], size: int
) -> Iterable[str]:
    with zipfile.ZipFile(file, "w") as archive:
        write_text(archive, "keys", list(keys))
        write_array(archive, "embeddings", np.dtype(np.float32), (len(keys), size), parts)
    return ()


def _write_npy(
    file: IO[bytes], _path: Path, keys: Sequence[str], parts: Iterable[NDArray[np.float32]], size: int
) -> Iterable[str]:
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(keys), size)}
    np.lib.format.write_array_header_1_0(file, header)
    for part in parts:
        file.write(np.ascontiguousarray(part, "<f4").data)
    return (f"{key}\n" for key in keys)


def _write_ark(
    file: IO[bytes], path: Path, keys: Sequence[str], parts: Iterable[NDArray[np.float32]], _size: int
) -> Iterable[str]:
    matio = import_extra("kaldiio.matio", "kaldi", "a Kaldi archive")
    remaining, places = iter(keys), []
    for part in parts:
        for row, key in zip(part, remaining, strict=False):
            file.write(f"{key} ".encode())
            places.append(file.tell())
            matio.write_array(file, np.ascontiguousarray(row))
    return (f"{key} {path}:{place}\n" for key, place in zip(keys, places, strict=True))


Writer = Callable[[IO[bytes], Path, Sequence[str], Iterable[NDArray[np.float32]], int], Iterable[str]]
WRITERS: dict[str, Writer] = {".npz": _write_npz, ".npy": _write_npy, ".ark": _write_ark}
"""Ending: what writes the file, and gives the lines of the one beside it."""


def read_embeddings(path: str | Path) -> Embeddings:
    """Read a file of embeddings: what `spkid embed` wrote, or an archive of float vectors of Kaldi.

    Raises:
        InputError: it is missing, damaged or no such file; a value is not finite; or a key occurs twice.
        UsageError: its name ends in none of .npz, .npy and .ark.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise UsageError(f"{path}: expected embeddings in a file that ends in {', '.join(READERS)}")
    try:
        keys, vectors = READERS[path.suffix](path)
    except OSError as error:
        raise InputError(
            f"{path}: can't read these embeddings: {error.strerror or error}; give a file of spkid embed"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        what = " ".join(str(error).split())[:MOST_SAID]
        raise InputError(f"{path}: not a sound file of embeddings: {what}; {DAMAGED}") from None
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise InputError(f"{path}: utterance {key!r} occurs twice; {DAMAGED}")
        seen.add(key)
    if not np.isfinite(vectors).all():
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise InputError(f"{path}: the embedding of {keys[row]!r} has values that are not finite; {DAMAGED}")
    return Embeddings(keys=keys, vectors=vectors)


def _read_npz(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    with open_npz(path) as arrays:
        vectors = arrays.array("embeddings")
        keys = arrays.texts("keys", len(vectors) if vectors.ndim else 0)
        return keys, _checked(vectors, len(keys))


def _read_npy(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    vectors = read_npy(path)
    beside = path.with_suffix(".keys")
    keys = read_text(beside, "the keys of these embeddings", DAMAGED).split("\n")
    if keys.pop():
        raise ValueError(f"{beside} does not end with its last line")
    return keys, _checked(vectors, len(keys))


def _checked(vectors: Any, count: int) -> NDArray[np.float32]:
    """The array, where it is (count, n) of floating numbers."""
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != count:
        shape = getattr(vectors, "shape", None)
        raise ValueError(f"embeddings are of shape {shape}, expected {count} rows of floating numbers")
    with np.errstate(over="ignore"):  # found as not finite
        return vectors.astype(np.float32, copy=False)


def _read_ark(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Vectors only: kaldiio would unpickle what an archive holds."""
    data, keys, rows, at = read_regular(path, path.stat().st_size), [], [], 0
    while at < len(data):
        key, blank, _ = data[at : at + 4096].partition(b" ")
        start = at + len(key) + 1
        if not blank or len(data) < start + 10:
            raise ValueError(f"no key and vector at byte {at}")
        head = data[start : start + 10]
        if head[:6] != b"\0BFV \4":
            raise ValueError(f"{head[:6]!r} follows the key at byte {at}, expected a binary float vector")
        (count,) = struct.unpack("<i", head[6:])
        end = start + 10 + 4 * count
        if count < 1 or end > len(data):
            raise ValueError(f"truncated: the vector at byte {start} should have {count} values")
        keys.append(key.decode())
        rows.append(np.frombuffer(data, "<f4", count, start + 10))
        at = end
    if not rows or len({len(row) for row in rows}) != 1:
        raise ValueError("no vectors, or of several sizes")
    return keys, np.stack(rows).astype(np.float32, copy=False)


READERS = {".npz": _read_npz, ".npy": _read_npy, ".ark": _read_ark}
