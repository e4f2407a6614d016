"""Damage files of numbers: fmatrix, npy, npz, recordings, Kaldi archives, Parquet."""

import io
import os
import random
import struct
import zipfile
from collections.abc import Callable
from functools import partial

import numpy as np
from damage import Damage, Place, of_bytes
from numpy.lib import format as npy_format

BOMB_BYTES = 3 << 29
CHUNK = bytes(1 << 20)
SHAPES = ("(0, 4611686018427387904)", "(2147483647, 2147483647)", "(-1, 5)", "(1.5, 5)", "()", "(3,)", "(2, 3, 4)",
          "(True, 5)", "(10, 0)", "(0, 5)", "[10, 5]", "__import__('os').system('touch pwned')", "(" * 500)  # fmt: skip
DTYPES = (
    "|O",
    "<c8",
    "<U9",
    "|V8",
    "<M8[s]",
    ">f4",
    "<f2",
    "<f8",
    "<i4",
    "|b1",
    "<f16",
    "f4,f4",
    "\x1b[31m",
    "<f9",
    "",
)
VALUES = {"NaN": np.nan, "infinity": np.inf, "1e38": 1e38, "the smallest": 1e-45}


def npy_bytes(header: str, payload: bytes, version: bytes = b"\x01\x00") -> bytes:
    """An npy file with whatever header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text) % 65536) + text + payload


def _header(descr: str = "<f4", shape: str = "(10, 5)", order: str = "False") -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}"


def _npy(make: Callable[[], bytes]) -> Callable[[bytes, random.Random], bytes]:
    return lambda _data, _draw: make()


def _with_value(value: float) -> Callable[[bytes, random.Random], bytes]:
    return lambda data, draw: _one_value(data, draw, value)


def _one_value(data: bytes, draw: random.Random, value: float) -> bytes:
    """An array with `value` at one place, or the largest integer where it holds integers."""
    array = np.load(io.BytesIO(data)).copy()
    numbers = array if array.dtype.names is None else array[array.dtype.names[-1]]
    if numbers.size and numbers.dtype.kind in "fiu":
        largest = value if numbers.dtype.kind == "f" else np.iinfo(numbers.dtype).max
        numbers.reshape(-1)[draw.randrange(numbers.size)] = largest
    return saved(array)


def saved(array: np.ndarray) -> bytes:
    """An array as npy."""
    buffer = io.BytesIO()
    npy_format.write_array(buffer, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


PAYLOAD = bytes(200)
NPY = (
    *(of_bytes(f"shape {shape[:40]}", _npy(partial(npy_bytes, _header(shape=shape), PAYLOAD))) for shape in SHAPES),
    *(
        of_bytes(f"type {dtype!r}", _npy(partial(npy_bytes, _header(descr=dtype), PAYLOAD * 4)), refused=False)
        for dtype in DTYPES
    ),
    of_bytes("version 9", _npy(partial(npy_bytes, _header(), PAYLOAD, b"\x09\x00"))),
    of_bytes("a header of 60 kB", _npy(partial(npy_bytes, _header() + " " * 60_000, PAYLOAD)), refused=False),
    of_bytes("a header of nested brackets", _npy(partial(npy_bytes, "{" + "[" * 5000, PAYLOAD))),
    of_bytes("a header without shape", _npy(partial(npy_bytes, "{'descr': '<f4'}", PAYLOAD))),
    of_bytes("a header of other keys", _npy(partial(npy_bytes, "{'a': 1, 'b': 2, 'shape': 3}", PAYLOAD))),
    of_bytes("columns first", _npy(partial(npy_bytes, _header(order="True"), PAYLOAD)), refused=False),
    *(of_bytes(name, _with_value(value), refused=name in ("NaN", "infinity")) for name, value in VALUES.items()),
)


def _zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Callable[[bytes, random.Random], bytes]:
    def change(_data: bytes, _draw: random.Random) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return buffer.getvalue()

    return change


def _changed_members(change: Callable[[str, bytes, random.Random], bytes]) -> Callable[[bytes, random.Random], bytes]:
    def apply(data: bytes, draw: random.Random) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        chosen = draw.choice(sorted(members))
        members[chosen] = change(chosen, members[chosen], draw)
        return _zip(members)(data, draw)

    return apply


def _bomb(place: Place) -> None:
    """A zip whose member expands to gigabytes: the array's own, or one of its name."""
    with zipfile.ZipFile(place.path) as archive:
        name = archive.namelist()[0]
    kept = place.kept / f"bomb-{name}"
    if not kept.exists():
        making = place.kept / f"{os.getpid()}.bomb"
        with (
            zipfile.ZipFile(making, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open(name, "w", force_zip64=True) as file,
        ):
            file.write(npy_bytes(_header(shape=f"({BOMB_BYTES // 20}, 5)"), b""))
            for _ in range(BOMB_BYTES // len(CHUNK)):
                file.write(CHUNK)
        making.rename(kept)  # of two that make it at once, either
    place.path.write_bytes(kept.read_bytes())


def _encrypted(data: bytes, _draw: random.Random) -> bytes:
    return data.replace(b"PK\x03\x04\x14\x00\x00\x00", b"PK\x03\x04\x14\x00\x01\x00").replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
    )


def _member_array(value: float) -> Callable[[str, bytes, random.Random], bytes]:
    return lambda _name, data, draw: _one_value(data, draw, value)


NPZ = (
    Damage(name="a zip bomb", apply=_bomb),
    of_bytes("no members", _zip({})),
    of_bytes("other members", _zip({"x.npy": b"x", "../../y.npy": b"y"})),
    of_bytes("a member of garbage", _changed_members(lambda _, __, draw: draw.randbytes(300))),
    of_bytes("an empty member", _changed_members(lambda *_: b"")),
    *(
        of_bytes(
            f"a member of shape {shape[:30]}",
            _changed_members(lambda *_, shape=shape: npy_bytes(_header(shape=shape), PAYLOAD)),
        )
        for shape in SHAPES
    ),
    *(
        of_bytes(
            f"a member of type {dtype!r}",
            _changed_members(lambda *_, dtype=dtype: npy_bytes(_header(descr=dtype), PAYLOAD * 4)),
        )
        for dtype in DTYPES
    ),
    *(
        of_bytes(f"{name} in a member", _changed_members(_member_array(value)), refused=False)
        for name, value in VALUES.items()
    ),
    of_bytes("an encrypted member", _encrypted, refused=False),
)


def _fmatrix_head(first: int, second: int) -> Callable[[bytes, random.Random], bytes]:
    return lambda data, _: struct.pack("<ii", first, second) + data[8:]


def _float_at_random(value: float) -> Callable[[bytes, random.Random], bytes]:
    def change(data: bytes, draw: random.Random) -> bytes:
        at = 8 + 4 * draw.randrange((len(data) - 8) // 4)
        return data[:at] + struct.pack("<f", value) + data[at + 4 :]

    return change


M = 2**31 - 1
FMATRIX = (
    *(
        of_bytes(f"a head of {first} by {second}", _fmatrix_head(first, second), refused=False)
        for first, second in (
            (0, M),
            (M, 0),
            (M, M),
            (-1, 5),
            (5, -1),
            (0, 0),
            (1, M),
            (M, 1),
            (-M, -M),
            (0, 5),
            (5, 0),
        )
    ),
    *(of_bytes(name, _float_at_random(value), refused=name in ("NaN", "infinity")) for name, value in VALUES.items()),
)


def _wav(at: int, form: str, value: int) -> Callable[[bytes, random.Random], bytes]:
    return lambda data, _: data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


WAV = (
    of_bytes("65,535 channels", _wav(22, "<H", 65535)),
    of_bytes("no channels", _wav(22, "<H", 0)),
    of_bytes("a rate of 0", _wav(24, "<I", 0)),
    of_bytes("a rate of 4 GHz", _wav(24, "<I", 2**32 - 1)),
    of_bytes("0 bits a sample", _wav(34, "<H", 0), refused=False),
    of_bytes("an unknown format", _wav(20, "<H", 0x7777)),
    of_bytes("floats that are integers", _wav(20, "<H", 3), refused=False),
    of_bytes("data of 4 GB claimed", _wav(40, "<I", 2**32 - 1), refused=False),
    of_bytes("no data", _wav(40, "<I", 0), refused=False),
    of_bytes("a chunk of 4 GB before", lambda data, _: data[:12] + b"LIST" + b"\xf0\xff\xff\xff" + data[12:], False),
    of_bytes("silence", lambda data, _: data[:44] + bytes(len(data) - 44), refused=False),
)


def _flac_bomb(place: Place) -> None:
    """A flac of silence that is gigabytes of samples."""
    import soundfile

    kept = place.kept / "bomb.flac"
    if not kept.exists():
        making = place.kept / f"{os.getpid()}.flac"
        with soundfile.SoundFile(making, "w", 8000, 1, format="FLAC") as file:
            for _ in range(300):
                file.write(np.zeros(1 << 20, np.int16))
        making.rename(kept)
    place.path.write_bytes(kept.read_bytes())


def _flac_count(data: bytes, _draw: random.Random) -> bytes:
    return data[:21] + bytes([data[21] | 0x0F]) + b"\xff\xff\xff\xff" + data[26:]


FLAC = (
    Damage(name="hours of silence", apply=_flac_bomb, refused=False),
    of_bytes("2^36 samples claimed", _flac_count, refused=False),
    of_bytes("another sample rate", lambda data, _: data[:18] + b"\xff\xff\xf0" + data[21:]),
)


def _ark(head: bytes) -> Callable[[bytes, random.Random], bytes]:
    return lambda data, _: data[: data.index(b"\0B")] + head + data[data.index(b"\0B") + len(head) :]


def _ark_size(rows: int, columns: int) -> bytes:
    return b"\0BFM \x04" + struct.pack("<i", rows) + b"\x04" + struct.pack("<i", columns)


ARK = (
    *(
        of_bytes(f"a matrix of {rows} by {columns}", _ark(_ark_size(rows, columns)), refused=rows != 0)
        for rows, columns in ((M, M), (-1, 5), (0, M), (M, 1), (5, -1))
    ),
    of_bytes("a pickle inside", _ark(b"\0PKL\x80\x04cos\nsystem\n\x8c\x0btouch pwned\x85R.")),
    of_bytes("a compressed matrix", _ark(b"\0BCM " + struct.pack("<ffii", 0, 1, M, M))),
    of_bytes("a matrix of text", lambda data, _: data[: data.index(b"\0B")] + b" [ 1 2 3\n 4 5 6 ]\n"),
    of_bytes("an unknown type", _ark(b"\0BXX ")),
    of_bytes("a vector of 2^31 - 1", _ark(b"\0BFV \x04" + struct.pack("<i", M))),
)


def _parquet(make: Callable[[], dict[str, object]]) -> Callable[[bytes, random.Random], bytes]:
    def change(_data: bytes, _draw: random.Random) -> bytes:
        import pyarrow
        import pyarrow.parquet

        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(make()), buffer)
        return buffer.getvalue()

    return change


PARQUET = (
    of_bytes("other columns", _parquet(lambda: {"a": [1, 2], "b": ["x", "y"]})),
    of_bytes("no rows", _parquet(lambda: {"key": [], "scores": []})),
    of_bytes(
        "columns of wrong types", _parquet(lambda: {"key": [1, 2], "speaker": [None, None], "scores": ["a", "b"]})
    ),
    of_bytes("a footer of 2 GB", lambda data, _: data[:-8] + b"\xff\xff\xff\x7fPAR1"),
)
