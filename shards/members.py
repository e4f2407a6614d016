"""The bytes of a tar's members: ustar headers, and .npy headers that are compared or matched, never evaluated."""

import io
import math
import re
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

TAR_RECORD = 512
MAX_MEMBER_BYTES = 8**11 - 1  # what the size field of a ustar header holds
NPY_HEADER = 128  # what numpy's format 1.0 needs for our shapes; `npy_header` checks it
NPY_HEADER_PATTERN = re.compile(
    rb"\{'descr': '(?P<descr>[<|a-z0-9]+)', 'fortran_order': False, 'shape': \((?P<shape>[0-9, ]+)\), \} *\n"
)


def padded(num_bytes: int) -> int:
    """The room that a payload takes in a tar: `num_bytes` up to a multiple of 512."""
    return -(-num_bytes // TAR_RECORD) * TAR_RECORD


def tar_header(name: str, size: int) -> bytes:
    """The 512-byte ustar header of a member of `size` bytes, as `tarfile` makes it of a file of mode 444.

    Raises:
        ValueError: the name is longer than 100 bytes, or `size` needs more than 11 octal digits.
    """
    encoded = name.encode()
    if len(encoded) > 100 or size > MAX_MEMBER_BYTES:
        raise ValueError(f"{name}: {size} bytes: no ustar header has room for this")
    header = bytearray(_EMPTY_TAR_HEADER)
    header[: len(encoded)] = encoded
    header[124:135] = b"%011o" % size
    header[148:154] = b"%06o" % (sum(header) + 8 * ord(" "))  # the sum takes its own field as 8 spaces
    header[154:156] = b"\0 "
    return bytes(header)


def _empty_tar_header() -> bytes:
    header = tarfile.TarInfo("")
    header.mode = 0o444
    data = bytearray(header.tobuf(tarfile.USTAR_FORMAT))
    data[148:156] = bytes(8)
    return bytes(data)


_EMPTY_TAR_HEADER = _empty_tar_header()


@lru_cache(maxsize=1024)
def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The .npy header (format 1.0, 128 bytes) of a C-ordered array; the format: numpy.lib.format."""
    header = table_header(dtype, shape)
    assert len(header) == NPY_HEADER, (dtype, shape)
    return header


def table_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The .npy header of any dtype, as long as it needs: records need more than 128 bytes."""
    buffer = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def parse_npy(payload: bytes, dtypes: Sequence[str]) -> NDArray[Any]:
    """The array in the bytes of a block's .npy member, a view of them; nothing is evaluated and nothing allocated.

    Raises:
        ValueError: the header is not as `npy_header` writes it, of a dtype of `dtypes`, or not of this size.
    """
    found = NPY_HEADER_PATTERN.fullmatch(payload[10:NPY_HEADER])
    names = {np.dtype(name).str.encode(): np.dtype(name) for name in dtypes}
    if found is None or found["descr"] not in names:
        raise ValueError(f"its npy header is not one of {', '.join(dtypes)} in rows")
    dtype = names[found["descr"]]
    shape = tuple(int(side) for side in found["shape"].split(b",") if side.strip().isdigit())
    if NPY_HEADER + dtype.itemsize * math.prod(shape) != len(payload):
        raise ValueError(f"its npy header says {dtype} {shape}, which is not the size of its {len(payload)} bytes")
    if npy_header(dtype, shape) != payload[:NPY_HEADER]:
        raise ValueError("its npy header is not as it was written")
    return np.frombuffer(payload, dtype, offset=NPY_HEADER).reshape(shape)
