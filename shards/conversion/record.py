"""Keep, beside each shard, its part of the manifest and of the tables."""

import io
import json
import struct
from dataclasses import asdict, dataclass
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.jsontext import from_json, parse_json
from shards.layout import BLOCK_DTYPE, UTTERANCE_DTYPE, ShardInfo
from shards.members import table_header
from shards.moments import Moments

RECORDS_NAME = "records/"


def record_name(shard: int) -> str:
    """Where the record of a shard lies in the dataset's folder while the job is unfinished."""
    return f"{RECORDS_NAME}shard-{shard:06d}.npz"


@dataclass(frozen=True)
class ShardRecord:
    """What a task leaves beside its shard; blocks and utterances count from 0 within the shard.

    `rounding_error` is that of `shards.conversion.blocks.BlockBuilder`; index, which does not know it, leaves it 0.
    """

    job: str
    info: ShardInfo
    blocks: NDArray[Any]
    utterances: NDArray[Any]
    moments: Moments
    rounding_error: float = 0.0

    def to_bytes(self) -> bytes:
        """The record as an .npz file."""
        head = {"job": self.job, "info": asdict(self.info), "rounding_error": self.rounding_error}
        buffer = io.BytesIO()
        np.savez(
            buffer,
            head=np.frombuffer(json.dumps(head).encode(), np.uint8),
            blocks=self.blocks,
            utterances=self.utterances,
            mean=self.moments.mean,
            squares=self.moments.squares,
        )
        return buffer.getvalue()

    @staticmethod
    def parse(data: bytes, path: str, job: str) -> "ShardRecord":
        """The record that `to_bytes` made for the job of identity `job`; `path` is for messages.

        Raises:
            InputError: it is damaged or of another job.
        """
        try:
            record = _parse(data)
        except _DAMAGED as error:
            raise InputError(f"{path}: this record is damaged ({error}); delete it and run its task again") from None
        if record.job != job:
            raise InputError(f"{path}: a record of job {record.job}, expected {job}; delete it and run its task again")
        return record


# What damage in various places of a zip archive raises; RuntimeError: encrypted.
_DAMAGED = (OSError, ValueError, LookupError, RuntimeError, EOFError, struct.error, BadZipFile)


@dataclass(frozen=True)
class _Head:
    """What a record holds as JSON."""

    job: str
    info: ShardInfo
    rounding_error: float


def _parse(data: bytes) -> ShardRecord:
    """The record in the bytes of its file; nothing is allocated on a header's word. Raises one of `_DAMAGED`."""
    with ZipFile(io.BytesIO(data)) as archive:
        value = parse_json(_member(archive, "head", np.dtype(np.uint8)).tobytes())
        head: _Head = from_json(_Head, value)
        if asdict(head) != value:
            raise ValueError("its head has other fields than a record")
        blocks, utterances = _member(archive, "blocks", BLOCK_DTYPE), _member(archive, "utterances", UTTERANCE_DTYPE)
        mean, squares = (_member(archive, name, np.dtype(np.float64)) for name in ("mean", "squares"))
    info = head.info
    if (len(blocks), len(utterances), len(mean)) != (info.blocks, info.utterances, len(squares)):
        raise ValueError(f"its tables are not of {info.blocks} blocks and {info.utterances} utterances")
    if not (np.isfinite(mean).all() and np.isfinite(squares).all() and (squares >= 0).all()):
        raise ValueError("its moments are no finite numbers, or squares below 0")
    return ShardRecord(head.job, info, blocks, utterances, Moments(info.frames, mean, squares), head.rounding_error)


def _member(archive: ZipFile, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array, (n,) of `dtype`, as `numpy.savez` wrote it. Raises one of `_DAMAGED`."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type != ZIP_STORED or entry.file_size != entry.compress_size:
        raise ValueError(f"{name} is compressed")
    payload = archive.read(entry)
    (header_bytes,) = struct.unpack_from("<H", payload, 8)
    rows, rest = divmod(len(payload) - 10 - header_bytes, dtype.itemsize)
    if rows < 0 or rest or not payload.startswith(table_header(dtype, (rows,))):
        raise ValueError(f"{name} is no table of {dtype} in {len(payload)} bytes")
    return np.frombuffer(payload, dtype, offset=10 + header_bytes).copy()
