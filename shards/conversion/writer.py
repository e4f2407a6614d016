"""Write one shard: a tar of blocks, hashed as it is written.

Headers are those of the standard library's `tarfile`, as webdataset's own writer takes them; webdataset itself is not
used here because importing it imports torch, which this package must not.
"""

from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.layout import BLOCK_DTYPE, block_json, block_key
from shards.members import TAR_RECORD, npy_header, padded, tar_header

END_OF_TAR = bytes(2 * TAR_RECORD)


class ShardWriter:
    """Appends blocks to an open tar; `bytes_written` and `digest` describe the file so far."""

    def __init__(self, file: IO[bytes], shard: int) -> None:
        self.bytes_written = 0
        self.block_records: list[tuple[Any, ...]] = []
        self._file = file
        self._shard = shard
        self._digest = xxhash.xxh3_128()
        self._extent_hash = xxhash.xxh3_64()

    def write_block(
        self,
        frames: NDArray[Any],
        lengths: NDArray[np.int32],
        labels: NDArray[np.int32],
        first_utterance: int,
        info: dict[str, Any],
    ) -> None:
        """Append one block: frames (T, D), lengths (U,), labels (U,), and `info` as its JSON."""
        key = block_key(self._shard, len(self.block_records))
        start = self.bytes_written
        self._extent_hash.reset()
        for name, array in (("frames", frames), ("lengths", lengths), ("labels", labels)):
            self._write_member(f"{key}.{name}.npy", npy_header(array.dtype, array.shape), array)
        self._write_member(f"{key}.json", block_json(info), b"")
        self.block_records.append(
            (
                start + TAR_RECORD,
                self.bytes_written - start,
                self._extent_hash.intdigest(),
                first_utterance,
                self._shard,
                len(frames),
                len(lengths),
            )
        )

    def finish(self) -> str:
        """Write the end of the archive and return the file's xxh3_128 as hexadecimal."""
        self._write(END_OF_TAR)
        return self._digest.hexdigest()

    def blocks(self) -> NDArray[Any]:
        """The written blocks' records, BLOCK_DTYPE."""
        return np.array(self.block_records, BLOCK_DTYPE)

    def _write_member(self, name: str, head: bytes, body: Any) -> None:
        payload = memoryview(body).cast("B") if len(body) else memoryview(b"")
        size = len(head) + len(payload)
        self._write(tar_header(name, size) + head)
        self._write(payload)
        self._write(bytes(padded(size) - size))

    def _write(self, data: Any) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._extent_hash.update(data)
        self.bytes_written += len(data)
