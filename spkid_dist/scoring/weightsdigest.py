"""Know weights by their contents, whatever their files are called and however their paths are spelled."""

from pathlib import Path

import xxhash

from shards.errors import InputError

READ_BYTES = 2**22
NUM_DIGITS = 32


def weights_digest(path: Path) -> str:
    """The xxh3_128 of a file, as hexadecimal. Raises InputError where it can't be read."""
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path}: can't read these weights: {error.strerror}; check --weights_ckpt") from None
    return digest.hexdigest()


def is_digest(value: str) -> bool:
    """Whether a value is what `weights_digest` returns."""
    return len(value) == NUM_DIGITS and set(value) <= set("0123456789abcdef")
