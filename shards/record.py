"""What a task leaves beside its shard: the shard's part of the manifest and of the tables."""

import io
import json
import zlib
from dataclasses import asdict, dataclass
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.layout import ShardInfo
from shards.moments import Moments

RECORDS_NAME = "records/"


def record_name(shard: int) -> str:
    """Where the record of a shard lies in the dataset's folder while the job is unfinished."""
    return f"{RECORDS_NAME}shard-{shard:06d}.npz"


@dataclass(frozen=True)
class ShardRecord:
    """What a task leaves beside its shard; blocks and utterances count from 0 within the shard.

    `rounding_error` is that of `shards.blocks.BlockBuilder`; index, which does not know it, leaves it 0.
    """

    job: str
    info: ShardInfo
    blocks: NDArray[Any]
    utterances: NDArray[Any]
    moments: Moments
    rounding_error: float = 0.0

    def to_bytes(self) -> bytes:
        """The record as an .npz file."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            job=np.array(self.job),
            info=np.array(json.dumps(asdict(self.info))),
            blocks=self.blocks,
            utterances=self.utterances,
            count=self.moments.count,
            mean=self.moments.mean,
            squares=self.moments.squares,
            rounding_error=self.rounding_error,
        )
        return buffer.getvalue()

    @staticmethod
    def parse(data: bytes, path: str, job: str) -> "ShardRecord":
        """The record that `to_bytes` made for the job of identity `job`; `path` is for messages.

        Not for threads: numpy parses headers by `ast`, which Python 3.11 can't do in two of them.

        Raises:
            InputError: it is damaged or of another job.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                record = ShardRecord(
                    job=str(arrays["job"]),
                    info=ShardInfo(**json.loads(str(arrays["info"]))),
                    blocks=arrays["blocks"],
                    utterances=arrays["utterances"],
                    moments=Moments(int(arrays["count"]), arrays["mean"], arrays["squares"]),
                    rounding_error=float(arrays["rounding_error"]),
                )
        except (OSError, ValueError, KeyError, TypeError, BadZipFile, zlib.error) as error:
            raise InputError(f"{path}: this record is damaged ({error}); delete it and run its task again") from None
        if record.job != job:
            raise InputError(f"{path}: a record of job {record.job}, expected {job}; delete it and run its task again")
        return record
