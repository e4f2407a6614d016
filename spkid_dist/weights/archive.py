"""Read files of `torch.save` that somebody else may have written: nothing in them is executed, or allocated on their word.

Such a file is a zip archive of stored records: the pickled structure, and one record a tensor. torch's reader takes sizes from
the archive's directory before it looks at the file, and knows formats that are older than the archive, which have no sizes at
all. So the directory is compared with the file first.
"""

import errno
import io
import struct
import warnings
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import torch

from spkid_dist.process.memory import is_out_of_memory

MOST_AROUND = 2**16  # bytes of an archive's directory and its comment, besides
MOST_AROUND_RECORD = 2**12  # bytes of a record's headers, names and alignment, which torch makes some hundred
NO_ARCHIVE = "no file of torch.save, or a damaged one: it is no zip archive, as torch writes them since version 1.6"


def load_archive(file: IO[bytes]) -> Any:
    """What `torch.save` has put into a file, with its tensors on the CPU.

    Raises:
        ValueError: it is no such file, or a damaged one.
        OSError: it can't be read.
        MemoryError, RuntimeError: there is no memory for as many bytes as the file has.
    """
    check_records(file)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused anyway
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # torch raises whatever the damaged bytes lead it to
        raise ValueError(
            f"no file of torch.save, or a damaged one: torch {torch.__version__} can't read it ({type(error).__name__})"
        ) from None


def check_records(file: IO[bytes]) -> None:
    """Raise ValueError where a file is no archive of torch's, or has far more bytes than its records, or fewer."""
    size = file.seek(0, io.SEEK_END)
    with _archive(file) as archive:
        records = archive.infolist()
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise ValueError(f"no file of torch.save, or a damaged one: its record {record.filename!r} is compressed")
    claimed = sum(record.file_size for record in records)
    if claimed > size:
        raise ValueError(f"damaged: its records are said to have {claimed} bytes, but the file has {size}")
    if size > claimed + len(records) * MOST_AROUND_RECORD + MOST_AROUND:
        raise ValueError(
            f"damaged: its records have {claimed} bytes, but the file has {size}: it is no file of torch.save"
        )


def wrong_record(file: IO[bytes]) -> str | None:
    """The first record whose bytes are not those of its CRC-32; None where all are right.

    Raises:
        ValueError: the archive is damaged otherwise.
    """
    with _archive(file) as archive:
        try:
            return archive.testzip()
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, struct.error) as error:
            raise ValueError(f"a damaged file: {error}") from None


def _archive(file: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the beginning of the file
            raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
        pass
    raise ValueError(NO_ARCHIVE)


def not_plain(value: object) -> str | None:
    """Why a value is no tensor that can be computed with as it is: dense, on the CPU, with bytes of its own; None if it is."""
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(value).__name__}, expected a tensor"
    assert isinstance(value, torch.Tensor)
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        return "a sparse, quantized or nested tensor, expected a dense one"
    if value.device.type != "cpu":
        return f"a tensor on the device {value.device.type}, without values"
    if value.is_conj() or value.is_neg():
        return "a view of a tensor, expected its values"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"a tensor of {value.numel()} values that has {value.untyped_storage().nbytes()} bytes"
    return None


def all_plain(state: object) -> bool:
    """Whether this is a `state_dict`: names and plain tensors."""
    return isinstance(state, Mapping) and all(
        isinstance(name, str) and not_plain(tensor) is None for name, tensor in state.items()
    )


def is_like(state: object, expected: Mapping[str, torch.Tensor]) -> bool:
    """Whether this is a `state_dict` with plain tensors of the names, shapes and types that are `expected`."""
    if not isinstance(state, Mapping) or not all_plain(state) or set(state) != set(expected):
        return False
    return all((state[name].shape, state[name].dtype) == (one.shape, one.dtype) for name, one in expected.items())
