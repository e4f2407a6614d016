"""NumPy files as a source."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from source_checks import FRAMES, error_of, only_input_errors, utterance

from shards import NpySource
from shards.sources.npy import parse_npy, parse_npz

pytestmark = pytest.mark.fast


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def headed(header: str, version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2 if version[0] == 1 else 4, "little") + header.encode()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_any_float_type_and_order_is_read_as_float32(tmp_path: Path, dtype: str, order: Any) -> None:
    array = np.asarray(FRAMES, dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    frames = NpySource(tmp_path).load(utterance("a"))
    np.testing.assert_array_equal(frames, array.astype(np.float32))
    assert frames.dtype == np.float32 and frames.dtype.isnative and frames.flags.c_contiguous


@given(array=hnp.arrays("<f4", hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)))
@settings(deadline=None)
def test_npy_round_trip_keeps_every_bit(array: np.ndarray) -> None:
    assert parse_npy(npy(array), "x").tobytes() == array.tobytes()


def test_npy_without_frames_has_none() -> None:
    assert parse_npy(npy(np.empty((0, 4), np.float32)), "x").shape == (0, 4)


@pytest.mark.parametrize("version", [b"\2\0", b"\3\0"])
def test_npy_of_later_versions_is_read(version: bytes) -> None:
    data = headed("{'descr': '<f4', 'fortran_order': False, 'shape': (13, 5)}", version) + FRAMES.tobytes()
    np.testing.assert_array_equal(parse_npy(data, "x"), FRAMES)


def test_npz_with_one_array_or_one_named_frames_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", whatever=FRAMES)
    (tmp_path / "two.npz").write_bytes(npz(other=FRAMES[:2], frames=FRAMES))
    source = NpySource(tmp_path, "npz")
    np.testing.assert_array_equal(source.load(utterance("one")), FRAMES)
    np.testing.assert_array_equal(source.load(utterance("two")), FRAMES)


def test_npy_never_unpickles() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("unpickled",))

    data = npy(np.array([[Bomb()]], object))
    assert error_of(parse_npy, data, "x.npy") == (
        "x.npy: the values' type is '|O', expected floating numbers of 2, 4 or 8 bytes (f2, f4, f8): "
        "save array.astype(numpy.float32)"
    )


def test_npy_header_that_lies_allocates_nothing() -> None:
    data = headed("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 1000000)}") + b"12345678"
    assert error_of(parse_npy, data, "x.npy") == (
        f"x.npy: truncated: {len(data)} bytes, but the header's 1000000000000 frames x 1000000 features of float64 make "
        f"{len(data) - 8 + 8 * 10**18}; save the array again"
    )


def test_npy_value_beyond_float32_is_an_error() -> None:
    array = FRAMES.astype(np.float64)
    array[3, 2] = -1e300
    assert error_of(parse_npy, npy(array), "x.npy") == (
        "x.npy: frame 3, feature 2 is -1e+300; expected at most 3.403e+38, float32's largest: scale the features"
    )


def test_npy_keeps_infinity_for_the_check_of_all_sources() -> None:
    array = np.array([[np.inf, np.nan]])
    np.testing.assert_array_equal(parse_npy(npy(array), "x"), array)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "x: not a .npy file: it begins with b'', expected b'\\x93NUMPY' and a version; check --ext"),
        (
            b"\x93NUMPY\x09\0\x10\0",
            "x: not a .npy file: it begins with b'\\x93NUMPY\\t\\x00', expected b'\\x93NUMPY' and a version; check --ext",
        ),
        (
            b"\x93NUMPY\1\0\x10\0{}",
            "x: the header says that it has 16 bytes, but 2 follow and at most 10000 are read; save the array again",
        ),
        (
            headed("{'descr': '<f4'"),
            "x: the header is b\"{'descr': '<f4'\", expected a dictionary of descr, fortran_order and shape; save the "
            "array again",
        ),
        (
            headed("{'descr': '<f4', 'shape': (1, 1)}"),
            "x: the header is b\"{'descr': '<f4', 'shape': (1, 1)}\", expected a dictionary of descr, fortran_order and "
            "shape; save the array again",
        ),
        (
            npy(np.zeros((2, 2), np.int16)),
            "x: the values' type is '<i2', expected floating numbers of 2, 4 or 8 bytes (f2, f4, f8): save "
            "array.astype(numpy.float32)",
        ),
        (
            npy(np.zeros(3, np.float32)),
            "x: the array's shape is (3,), expected (frames, features), 0 or more x 1 or more: save one array of that "
            "shape",
        ),
        (
            headed("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, True)}"),
            "x: the array's shape is (-1, True), expected (frames, features), 0 or more x 1 or more: save one array of "
            "that shape",
        ),
        (
            npy(FRAMES)[:-1],
            "x: truncated: 387 bytes, but the header's 13 frames x 5 features of float32 make 388; save the array again",
        ),
        (
            npy(FRAMES) + b"!",
            "x: too long: 389 bytes, but the header's 13 frames x 5 features of float32 make 388; save the array again",
        ),
    ],
)
def test_damaged_npy_is_an_error(data: bytes, text: str) -> None:
    assert error_of(parse_npy, data, "x") == text


def test_npz_in_which_no_array_stands_out_is_an_error() -> None:
    assert error_of(parse_npz, npz(a=FRAMES, b=FRAMES), "x.npz") == (
        "x.npz: it holds 2 arrays (a, b); expected one, or one of the name frames: numpy.savez(path, frames=array)"
    )


def test_damaged_npz_is_an_error() -> None:
    data = npz(frames=FRAMES)
    assert error_of(parse_npz, data[:-30], "x.npz") == (
        "x.npz: not a sound .npz file: File is not a zip file; save the array again"
    )
    at = data.index(b"frames.npy") + 60
    flipped = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
    assert error_of(parse_npz, flipped, "x.npz").startswith("x.npz: not a sound .npz file: ")
    assert error_of(parse_npz, npz(frames=np.zeros((2, 2), bool)), "x.npz").startswith(
        "x.npz, member frames.npy: the values' type is '|b1', expected floating numbers"
    )


def test_missing_npy_is_an_error(tmp_path: Path) -> None:
    assert error_of(NpySource(tmp_path).load, utterance("a/b")) == (
        f"{tmp_path}/a/b.npy: can't read this feature file: No such file or directory; the folder {tmp_path}/a does "
        "not exist; give the folder of the files by --db_path, or correct the list"
    )


HEADER_TEXT = st.text("{}()[]'\":,0123456789<>=|fdescrshapotn_ \\TrueFals\n-L", max_size=120)
HEADER_DICT = st.fixed_dictionaries(
    {
        "descr": st.sampled_from(["<f4", ">f8", "|O", "=f2", "f", "<f4,<f4"]) | st.text(max_size=5) | st.integers(),
        "fortran_order": st.booleans() | st.none() | st.integers(),
        "shape": st.lists(st.integers(-1, 2**70) | st.integers(0, 3), max_size=3).map(tuple) | st.integers(),
    }
).map(repr)


@given(data=st.binary(max_size=300))
@settings(deadline=None, max_examples=500)
def test_any_bytes_as_npy_give_frames_or_an_input_error(data: bytes) -> None:
    only_input_errors(parse_npy, data, "x")
    only_input_errors(parse_npy, b"\x93NUMPY\1\0" + data, "x")
    only_input_errors(parse_npz, b"PK\3\4" + data, "x")


@given(header=HEADER_TEXT | HEADER_DICT, data=st.binary(max_size=64))
@settings(deadline=None, max_examples=500)
def test_any_npy_header_gives_frames_or_an_input_error(header: str, data: bytes) -> None:
    only_input_errors(parse_npy, headed(header) + data, "x")


@given(at=st.integers(0, 10**6), value=st.integers(0, 255), length=st.integers(0, 10**6))
@settings(deadline=None, max_examples=500)
def test_npz_with_a_changed_byte_gives_frames_or_an_input_error(at: int, value: int, length: int) -> None:
    data = bytearray(npz(frames=FRAMES))
    data[at % len(data)] = value
    only_input_errors(parse_npz, bytes(data), "x")
    only_input_errors(parse_npz, bytes(data[: length % len(data)]), "x")
