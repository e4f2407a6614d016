"""Read one shard and name what is damaged in it, down to the member and its part."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import xxhash

from shards.conversion.writer import END_OF_TAR
from shards.files import open_regular
from shards.layout import ShardInfo
from shards.manifest import Manifest
from shards.verification.expected import HEAD_BYTES, Block, ShardRows, shard_blocks

CHUNK_BYTES = 1 << 20  # read at a time: it stays in the processor's cache for both hashes
END_MEMBER = "end of archive"
RESTORE = "restore the file from a copy, or shard the corpus again"


@dataclass(frozen=True, kw_only=True)
class Defect:
    """One thing that is wrong: where, what was found and expected, what to do.

    `block` is the row of blocks.npy. `member` is frames, lengths, labels, json or "end of archive", and `part` is
    "tar header", "npy header", "payload" or "padding"; they are "" where the defect is in no single one.
    """

    file: str
    what: str
    block: int | None = None
    member: str = ""
    part: str = ""

    def __str__(self) -> str:
        """The defect as one line."""
        block = "" if self.block is None else f"block {self.block}"
        place = ", ".join(word for word in (block, self.member, self.part) if word)
        return f"{self.file}: {place}: {self.what}" if place else f"{self.file}: {self.what}"


def check_shard(
    folder: Path, manifest: Manifest, shard: int, rows: ShardRows | None, *, quick: bool = False
) -> list[Defect]:
    """Read a shard and compare it with the manifest and its rows; all that is wrong with it, in the file's order.

    Args:
        folder: the dataset's.
        manifest: the dataset's.
        shard: number of the shard.
        rows: its rows, which have passed `wrong_rows`; None where the tables can't be trusted: its digest tells then
            that it is damaged, but not where.
        quick: read nothing but the first block's headers and small members, and the end of the archive.

    Memory is bounded by `CHUNK_BYTES` and what a block holds besides frames.
    """
    info = manifest.shards[shard]
    try:
        with open_regular(folder / info.name) as file:
            reader = _HashedReader(file)
            defects = list(_wrong_size(info, manifest, shard, rows, reader.size))
            if quick:
                return defects or list(_check_ends(manifest, shard, rows, reader))
            if rows is None:
                reader.skip(reader.size)
            else:
                defects[:0] = _check_blocks(manifest, shard, rows, reader)
            return defects or list(_wrong_digest(info, reader))
    except OSError as error:
        return [Defect(file=info.name, what=f"can't be read: {error.strerror}; {RESTORE}")]


class _HashedReader:
    """Reads a file in order; `digest` is of all that was read, `extent_hash` of what was read since its last reset.

    Reads raise OSError where the file ends early, and allocate no more than it holds.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.size = os.fstat(file.fileno()).st_size
        self.digest = xxhash.xxh3_128()
        self.extent_hash = xxhash.xxh3_64()
        self._file = file
        self._left = self.size
        self._buffer = memoryview(bytearray(min(CHUNK_BYTES, self.size)))

    def take(self, num_bytes: int) -> bytes:
        """The next bytes."""
        return b"".join(bytes(chunk) for chunk in self._chunks(num_bytes))

    def take_around(self, head_bytes: int, gap_bytes: int, tail_bytes: int) -> tuple[bytes, bytes]:
        """Read three stretches at once, and keep the first and the last."""
        head, tail, at = b"", b"", 0
        for chunk in self._chunks(head_bytes + gap_bytes + tail_bytes):
            head += chunk[: max(head_bytes - at, 0)]
            tail += chunk[max(head_bytes + gap_bytes - at, 0) :]
            at += len(chunk)
        return head, tail

    def skip(self, num_bytes: int) -> None:
        """Read, but do not keep, the next bytes."""
        for _ in self._chunks(num_bytes):
            pass

    def jump(self, num_bytes: int) -> None:
        """Go on behind the next bytes without reading them: the digest is of no use after that."""
        self._file.seek(num_bytes, os.SEEK_CUR)
        self._left -= num_bytes

    def _chunks(self, num_bytes: int) -> Iterator[memoryview]:
        while num_bytes:
            got: int = self._file.readinto(self._buffer[:num_bytes])  # type: ignore[attr-defined]
            if not got:
                raise OSError(errno.EIO, f"it ends {num_bytes} bytes early")
            chunk = self._buffer[:got]
            self.digest.update(chunk)
            self.extent_hash.update(chunk)
            self._left -= got
            num_bytes -= got
            yield chunk


def _check_blocks(manifest: Manifest, shard: int, rows: ShardRows, reader: _HashedReader) -> Iterator[Defect]:
    """Check all blocks that are whole, and the end of the archive."""
    name = manifest.shards[shard].name
    for number, block in enumerate(shard_blocks(manifest, shard, rows)):
        if block.end > reader.size:
            return
        reader.extent_hash.reset()
        head, tail = reader.take_around(HEAD_BYTES, block.frames_bytes, block.tail_bytes)
        defects = list(_check_parts(manifest, name, block, head, tail, first=number == 0))
        if not defects and reader.extent_hash.intdigest() != block.checksum:
            defects.append(_wrong_frames(name, block))
        yield from defects
    if manifest.shards[shard].bytes <= reader.size:
        yield from _check_end(name, reader)


def _check_ends(manifest: Manifest, shard: int, rows: ShardRows | None, reader: _HashedReader) -> Iterator[Defect]:
    """Check the first block but for its frames' values, and the end of the archive."""
    info = manifest.shards[shard]
    end = 0
    if rows is not None:
        block = next(shard_blocks(manifest, shard, rows))
        head = reader.take(HEAD_BYTES)
        reader.jump(block.frames_bytes)
        tail = reader.take(block.tail_bytes)
        yield from _check_parts(manifest, info.name, block, head, tail, first=True)
        end = block.end
    if info.bytes - end >= len(END_OF_TAR):
        reader.jump(info.bytes - end - len(END_OF_TAR))
        yield from _check_end(info.name, reader)


def _check_parts(
    manifest: Manifest, file: str, block: Block, head: bytes, tail: bytes, *, first: bool
) -> Iterator[Defect]:
    """Compare all parts of a block but the frames' values with what they must be."""
    text = block.json_text(tail)
    at = 0
    for part in block.parts(text):
        if (part.member, part.name) == ("json", "payload"):
            what = _wrong_json(text, block.expected_json(text, manifest, first), block.start + at)
        else:
            begin = at if at < HEAD_BYTES else at - HEAD_BYTES - block.frames_bytes
            found = (head if at < HEAD_BYTES else tail)[begin : begin + part.size]
            what = None if part.data is None else _difference(found, part.data, block.start + at)
        if what is not None:
            yield Defect(file=file, block=block.row, member=part.member, part=part.name, what=f"{what}; {RESTORE}")
        at += part.size


def _wrong_json(text: bytes, expected: bytes | None, start: int) -> str | None:
    if expected is None:
        return f"from byte {start}: is not JSON with the keys whose hashes the utterance table has"
    return _difference(text, expected, start)


def _check_end(file: str, reader: _HashedReader) -> Iterator[Defect]:
    found = reader.take(len(END_OF_TAR))
    if found != END_OF_TAR:
        what = f"{len(END_OF_TAR) - found.count(0)} of its {len(END_OF_TAR)} bytes are not 0; {RESTORE}"
        yield Defect(file=file, member=END_MEMBER, what=what)


def _wrong_frames(file: str, block: Block) -> Defect:
    begin = block.start + HEAD_BYTES
    what = (
        f"bytes {begin} to {begin + block.frames_bytes} are not what was written (the block's checksum differs); "
        f"{RESTORE}"
    )
    return Defect(file=file, block=block.row, member="frames", part="payload", what=what)


def _difference(found: bytes, expected: bytes, start: int) -> str | None:
    """Where two byte strings differ first, None where they do not; `start` is their place in the file."""
    if found == expected:
        return None
    for at, (a, b) in enumerate(zip(found, expected, strict=False)):
        if a != b:
            return f"byte {start + at} is 0x{a:02x}, expected 0x{b:02x}"
    return f"{len(found)} bytes from byte {start}, expected {len(expected)}"


def _wrong_size(info: ShardInfo, manifest: Manifest, shard: int, rows: ShardRows | None, size: int) -> Iterator[Defect]:
    """Say where a truncated file ends, or that one is too long."""
    if size == info.bytes:
        return
    block, member, part = (None, "", "") if size > info.bytes or rows is None else _place(manifest, shard, rows, size)
    state = "truncated" if size < info.bytes else "too long"
    what = f"{state}: the file has {size} bytes, expected {info.bytes}; {RESTORE}"
    yield Defect(file=info.name, block=block, member=member, part=part, what=what)


def _place(manifest: Manifest, shard: int, rows: ShardRows, offset: int) -> tuple[int | None, str, str]:
    """Block, member and part that the byte at `offset` of a shard belongs to."""
    for block in shard_blocks(manifest, shard, rows):
        end = block.start
        for part in block.parts() if offset < block.end else ():
            end += part.size
            if offset < end:
                return block.row, part.member, part.name
    return None, END_MEMBER, ""


def _wrong_digest(info: ShardInfo, reader: _HashedReader) -> Iterator[Defect]:
    found = reader.digest.hexdigest()
    if found != info.digest:
        what = f"digest {found}, expected {info.digest}; {RESTORE}"
        yield Defect(file=info.name, what=what)
