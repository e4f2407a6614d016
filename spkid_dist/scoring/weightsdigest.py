"""Know weights by their contents, whatever their files are called and however their paths are spelled."""

import io
from pathlib import Path

import xxhash

from shards.errors import InputError
from shards.files import open_regular
from spkid_dist.weights.archive import check_records

READ_BYTES = 2**22
NUM_DIGITS = 32


def weights_digest(path: Path) -> str:
    """The xxh3_128 of a file, as hexadecimal.

    Its size is compared with that of its records first: a file may be a terabyte of nothing, which would be hashed for minutes.

    Raises:
        InputError: it can't be read, or is no file of torch.save.
    """
    digest = xxhash.xxh3_128()
    try:
        with open_regular(path) as raw, io.BufferedReader(raw, READ_BYTES) as file:
            check_records(file)
            file.seek(0)
            while block := file.read(READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path}: can't read these weights: {error.strerror}; check --weights_ckpt") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}; give a *_weights.ckpt of a training") from None
    return digest.hexdigest()


def is_digest(value: str) -> bool:
    """Whether a value is what `weights_digest` returns."""
    return len(value) == NUM_DIGITS and set(value) <= set("0123456789abcdef")
