"""Compute what a shard must hold, from the manifest and the tables alone.

Everything in a block but the frames' values is known beforehand: headers and padding follow from the block's record,
lengths and labels from the utterance table, and the JSON from the keys, whose hashes the utterance table holds. So the
parts can be compared one by one, and where a block's checksum differs although all of them fit, it is the frames.

Shapes: T frames of a block, U its utterances, D features per frame.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.conversion.writer import END_OF_TAR
from shards.keys import parse_keys
from shards.layout import ShardInfo, block_info, block_json, block_key
from shards.manifest import Manifest
from shards.members import MAX_MEMBER_BYTES, NPY_HEADER, TAR_RECORD, npy_header, padded, tar_header

HEAD_BYTES = TAR_RECORD + NPY_HEADER  # of a block, before its frames


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """A shard's rows of the tables, BLOCK_DTYPE and UTTERANCE_DTYPE, and the numbers of the first of each."""

    blocks: NDArray[Any]
    utterances: NDArray[Any]
    first_block: int
    first_utterance: int


@dataclass(frozen=True)
class Part:
    """A stretch of a block; `data` is what it must hold, None where only the checksum tells.

    `member` is frames, lengths, labels or json, `name` is "tar header", "npy header", "payload" or "padding".
    """

    member: str
    name: str
    size: int
    data: bytes | None


@dataclass(frozen=True)
class Block:
    """A block as its record and its utterances' rows describe it; `row` is its row in the block table.

    `frames_shape` is (T, D); `lengths` and `labels` (U,) int32 and `key_hashes` (U,) uint64 are its utterances'.
    """

    row: int
    shard: int
    key: str
    start: int
    extent_bytes: int
    checksum: int
    dtype: np.dtype[Any]
    frames_shape: tuple[int, int]
    lengths: NDArray[np.int32]
    labels: NDArray[np.int32]
    key_hashes: NDArray[np.uint64]

    @property
    def end(self) -> int:
        """Where the next block begins in the file."""
        return self.start + self.extent_bytes

    @property
    def frames_bytes(self) -> int:
        """Size of the frames' values."""
        return self.frames_shape[0] * self.frames_shape[1] * self.dtype.itemsize

    @property
    def tail_bytes(self) -> int:
        """Size of what lies behind the frames' values."""
        return self.extent_bytes - HEAD_BYTES - self.frames_bytes

    def parts(self, text: bytes | None = None) -> Iterator[Part]:
        """All parts in order, with `text` as the JSON; None stands for any JSON and its padding together."""
        room = self.extent_bytes
        for member, dtype, shape, data in (
            ("frames", self.dtype, self.frames_shape, None),
            ("lengths", self.lengths.dtype, self.lengths.shape, self.lengths.tobytes()),
            ("labels", self.labels.dtype, self.labels.shape, self.labels.tobytes()),
        ):
            num_bytes = self.frames_bytes if data is None else len(data)
            size = NPY_HEADER + num_bytes
            yield Part(member, "tar header", TAR_RECORD, tar_header(f"{self.key}.{member}.npy", size))
            yield Part(member, "npy header", NPY_HEADER, npy_header(dtype, shape))
            yield Part(member, "payload", num_bytes, data)
            yield Part(member, "padding", padded(size) - size, bytes(padded(size) - size))
            room -= TAR_RECORD + padded(size)
        room -= TAR_RECORD
        if text is None:
            yield Part("json", "tar header", TAR_RECORD, None)
            yield Part("json", "payload or padding", room, None)
            return
        yield Part("json", "tar header", TAR_RECORD, tar_header(f"{self.key}.json", len(text)))
        yield Part("json", "payload", len(text), None)  # `expected_json` has it
        yield Part("json", "padding", room - len(text), bytes(padded(len(text)) - len(text)))

    def json_text(self, tail: bytes) -> bytes:
        """The JSON in the block's tail, whether or not its tar header is damaged."""
        labels_bytes = TAR_RECORD + padded(NPY_HEADER + self.labels.nbytes)  # and so are the lengths'
        at = TAR_RECORD + padded(NPY_HEADER + self.frames_bytes) + 2 * labels_bytes - HEAD_BYTES - self.frames_bytes
        room = tail[at + TAR_RECORD :]
        text = room.rstrip(b"\0")
        if tail[at + 124 : at + 135] == b"%011o" % len(text):
            return text
        try:
            size = tarfile.TarInfo.frombuf(tail[at : at + TAR_RECORD], "utf-8", "surrogateescape").size
        except tarfile.TarError:
            size = -1
        return room[:size] if size >= 0 and padded(size) == len(room) else text

    def expected_json(self, text: bytes, manifest: Manifest, first: bool) -> bytes | None:
        """What the JSON with the keys of `text` must be; None where those can't be read, or are not the table's."""
        try:
            keys = parse_keys(memoryview(text), self.key_hashes)
        except ValueError:
            return None
        speakers = [manifest.speakers[label] for label in self.labels]
        dataset = asdict(manifest.origin(self.shard)) if first else None
        return block_json(block_info(keys, speakers, manifest.source["kind"], dataset))


def shard_blocks(manifest: Manifest, shard: int, rows: ShardRows) -> Iterator[Block]:
    """The blocks of a shard in order; `rows` have passed `wrong_rows`."""
    dtype = np.dtype(manifest.dtype)
    for number, record in enumerate(rows.blocks):
        first = int(record["first_utterance"]) - rows.first_utterance
        utterances = rows.utterances[first : first + int(record["utterances"])]
        yield Block(
            row=rows.first_block + number,
            shard=shard,
            key=block_key(shard, number),
            start=int(record["payload_offset"]) - TAR_RECORD,
            extent_bytes=int(record["extent_bytes"]),
            checksum=int(record["checksum"]),
            dtype=dtype,
            frames_shape=(int(record["frames"]), manifest.num_features),
            lengths=np.ascontiguousarray(utterances["frames"]),
            labels=np.ascontiguousarray(utterances["speaker"]),
            key_hashes=utterances["key_hash"],
        )


def wrong_rows(rows: ShardRows, manifest: Manifest, shard: int) -> tuple[str, str] | None:
    """Compare a shard's rows with each other and the manifest: (table, what is wrong with them), or None."""
    frame_bytes = manifest.num_features * np.dtype(manifest.dtype).itemsize
    wrong = wrong_blocks(rows, manifest.shards[shard], shard, frame_bytes)
    if wrong is not None:
        return manifest.blocks_name, wrong
    wrong = wrong_utterances(rows, len(manifest.speakers))
    return None if wrong is None else (manifest.utterances_name, wrong)


def wrong_blocks(rows: ShardRows, info: ShardInfo, shard: int, frame_bytes: int) -> str | None:
    """What is wrong with the blocks of a shard, whose frames have `frame_bytes` each, or None."""
    blocks = rows.blocks
    if len(blocks) == 0 or (blocks["shard"] != shard).any():
        return "are not those of this shard"
    num_frames, counts, extents = (blocks[name].astype(np.int64) for name in ("frames", "utterances", "extent_bytes"))
    if num_frames.min() < 1 or counts.min() < 1:
        return "have blocks without utterances"
    if num_frames.sum() != info.frames or counts.sum() != info.utterances:
        return f"do not hold the {info.utterances} utterances and {info.frames} frames of the manifest"
    if (blocks["first_utterance"] != rows.first_utterance + np.cumsum(counts) - counts).any():
        return "do not follow each other in the utterance table"
    frames_bytes = num_frames * frame_bytes
    least = _member_bytes(frames_bytes) + 2 * _member_bytes(4 * counts) + TAR_RECORD
    if (extents <= least).any() or extents.max() > MAX_MEMBER_BYTES:
        return "have extents that do not fit their frames"
    starts = np.cumsum(extents) - extents
    if extents.sum() + len(END_OF_TAR) != info.bytes or (blocks["payload_offset"] != starts + TAR_RECORD).any():
        return f"do not fill the shard's {info.bytes} bytes"
    return None


def _member_bytes(payload_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The room that .npy members take in a tar, headers included."""
    return TAR_RECORD - (-(NPY_HEADER + payload_bytes) // TAR_RECORD) * TAR_RECORD


def wrong_utterances(rows: ShardRows, num_speakers: int) -> str | None:
    """What is wrong with the utterances of a shard, whose blocks are right, or None."""
    counts = rows.blocks["utterances"].astype(np.int64)
    if (rows.utterances["block"] != np.repeat(rows.first_block + np.arange(len(counts)), counts)).any():
        return "are not in the order of the blocks"
    lengths, speakers = rows.utterances["frames"], rows.utterances["speaker"]
    sums = np.add.reduceat(lengths, np.cumsum(counts) - counts, dtype=np.int64)
    if lengths.min() < 1 or (sums != rows.blocks["frames"]).any():
        return "do not add up to the frames of their blocks"
    if speakers.min() < 0 or speakers.max() >= num_speakers:
        return f"have speakers beyond the dataset's {num_speakers}"
    return None
