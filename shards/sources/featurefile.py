"""Read a feature file: a regular one, and of one that is too large no more than its beginning."""

import errno
import os
import stat

from shards.files import unreadable_feature_file
from shards.sources.limits import HEADER_BYTES


def read_feature_file(path: str, most_bytes: int) -> tuple[bytes, int]:
    """The bytes of a file, and its size; where that is more than `most_bytes`, only the bytes in which a header can be.

    Raises:
        InputError: it is missing or unreadable, or no regular file: a folder, a pipe, a device. A pipe is not waited for.
    """
    try:
        # Opened and read by calls of the system: a file object takes as long as the read of a small file. O_NONBLOCK is for
        # opening pipes alone.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return _read(descriptor, path, most_bytes)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable_feature_file(path, error) from None


def _read(descriptor: int, path: str, most_bytes: int) -> tuple[bytes, int]:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file, but a folder, a device, a pipe or a socket", path)
    if status.st_size > most_bytes:
        return os.read(descriptor, HEADER_BYTES), status.st_size
    data = os.read(descriptor, status.st_size)
    while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
        data += more  # one read takes at most 2,147,479,552 bytes
    return data, len(data)
