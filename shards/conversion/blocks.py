"""Collect utterances into blocks, check each utterance, and hand the blocks to the shard's writer."""

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.conversion.frames import check_finite, check_shape
from shards.conversion.plan import Job
from shards.conversion.writer import ShardWriter
from shards.corpus import Utterance
from shards.errors import InputError
from shards.layout import block_info, key_hash
from shards.members import MAX_MEMBER_BYTES, NPY_HEADER
from shards.moments import BlockMoments
from shards.names import classes_of
from shards.resources import memory_left
from shards.sources import Source

FIRST_BUFFER_FRAMES = 16384  # of the buffer of a block, which grows to what the block has
FLOAT16_NORMAL = 2.0**-14  # the least value that float16 keeps with its full precision


class BlockBuilder:
    """Collects utterances until they make a block, and hands it to the writer.

    `utterance_records` and `sums` describe what was written; `rounding_error` is the largest error of storing as float16,
    relative to the value, or to 2^-14 where that is larger.
    """

    def __init__(self, job: Job, writer: ShardWriter) -> None:
        self.utterance_records: list[tuple[int, int, int, int]] = []
        self.sums = BlockMoments(job.num_features)
        self.rounding_error = 0.0
        self._job = job
        self._writer = writer
        self._classes = classes_of(job.speakers)
        self._dtype = np.dtype(job.layout.dtype)
        first_rows = min(2 * job.layout.block_frames, FIRST_BUFFER_FRAMES)
        self._buffer = np.empty((first_rows, job.num_features), np.float32)
        self._num_frames = 0
        self._pending: list[Utterance] = []
        self._lengths: list[int] = []

    def add(self, utterance: Utterance, source: Source) -> int:
        """Load one utterance, append its frames, close the block if it is full; return the number of frames."""
        frames = source.load(utterance)
        where = source.where(utterance)
        check_shape(frames, self._job.num_features, f"{self._job.first_read} has", where)
        stored = frames if self._dtype == np.float32 else self._round(frames, where)
        if not self.sums.append(stored, self._room_for(len(frames))):
            check_finite(frames, where)
        self._num_frames += len(frames)
        self._pending.append(utterance)
        self._lengths.append(len(frames))
        if self._num_frames >= self._job.layout.block_frames:
            self.flush()
        return len(frames)

    def flush(self) -> None:
        """Write the block in hand, if there is one."""
        if not self._pending:
            return
        self._check_room()
        labels = np.array([self._classes[u.speaker] for u in self._pending], "<i4")
        first = len(self.utterance_records)
        block = len(self._writer.block_records)
        self._writer.write_block(
            self._buffer[: self._num_frames].astype(self._dtype, copy=False),
            np.array(self._lengths, "<i4"),
            labels,
            first,
            self._info(block),
        )
        self.utterance_records += [
            (key_hash(utterance.key), length, int(label), block)
            for utterance, length, label in zip(self._pending, self._lengths, labels, strict=True)
        ]
        self.sums.close_block()
        self._num_frames = 0
        self._pending.clear()
        self._lengths.clear()

    def _check_room(self) -> None:
        """Raise InputError where the block is larger than a member of a tar may be."""
        num_bytes = self._num_frames * self._job.num_features * self._dtype.itemsize
        if num_bytes > MAX_MEMBER_BYTES - NPY_HEADER:
            raise InputError(
                f"the block that begins with utterance {self._pending[0].key!r} has {num_bytes} bytes; expected at most "
                f"{MAX_MEMBER_BYTES - NPY_HEADER}: give a smaller --block_frames, or shorter utterances"
            )

    def _info(self, block: int) -> dict[str, Any]:
        keys = [utterance.key for utterance in self._pending]
        speakers = [utterance.speaker for utterance in self._pending]
        return block_info(keys, speakers, self._job.source["kind"], asdict(self._job.origin) if block == 0 else None)

    def _round(self, frames: NDArray[np.float32], where: str) -> NDArray[np.float32]:
        """The frames as float16 stores them."""
        with np.errstate(over="ignore", invalid="ignore"):
            stored = frames.astype(np.float16).astype(np.float32)
            errors = np.abs(stored - frames) / np.maximum(np.abs(frames), FLOAT16_NORMAL)
        if np.isinf(stored).any() and np.isfinite(frames).all():
            raise InputError(
                f"{where}: the value {np.abs(frames).max():g} is beyond float16's largest, 65504; store as float32"
            )
        self.rounding_error = max(self.rounding_error, float(errors.max()))
        return stored

    def _check_memory(self, num_frames: int) -> None:
        """Raise InputError where a buffer of so many frames is more than the memory that is left."""
        num_bytes = num_frames * self._job.num_features * self._buffer.itemsize
        left = memory_left()
        if left is not None and num_bytes > left:
            raise InputError(
                f"a block of --block_frames {self._job.layout.block_frames} frames of {self._job.num_features} features needs "
                f"a buffer of {num_bytes} bytes, but {left} bytes of memory are left; give a smaller --block_frames"
            )

    def _room_for(self, num_frames: int) -> NDArray[Any]:
        end = self._num_frames + num_frames
        if end > len(self._buffer):
            self._check_memory(2 * end)
            grown = np.empty((2 * end, self._buffer.shape[1]), self._buffer.dtype)
            grown[: self._num_frames] = self._buffer[: self._num_frames]
            self._buffer = grown
        return self._buffer[self._num_frames : end]
