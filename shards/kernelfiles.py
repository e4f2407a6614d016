"""Keep compiled kernels in files that are checked before they are run.

numba has an index of each function and a file of each compilation, and a checksum of neither. Here each compilation has one
file: a digest, what it is a compilation of, and numba's bytes. A file that is damaged, or of something else, is removed and the
kernel compiled again. The digest is against accidents: who can write the files can write digests too, so files in a folder that
other users may write are not read at all.

Of numba this uses `numba.core.caching.FunctionCache`, which is no public name: with a version whose caches are made otherwise,
kernels are compiled by each process.
"""

import contextlib
import os
import pickle
import stat
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import xxhash
from numba.core import config
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

from shards.unfinished import remove_left_behind, unfinished_path

DIGEST_BYTES = 16
LENGTH_BYTES = 8


class KernelCache(FunctionCache):
    """numba's cache of one function, with the files of `KernelFiles`; a failure of it costs a compilation.

    Raises:
        RuntimeError, OSError: numba finds no folder for it.
    """

    def __init__(self, function: Any) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        locator = self._impl.locator
        sources = (numba.__version__, getattr(config, "BOUNDSCHECK", None), locator.get_source_stamp())
        self._cache_file: Any = KernelFiles(Path(self.cache_path), self._impl.filename_base, sources)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compilation for these types, or None."""
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except Exception:  # noqa: BLE001 - whatever numba makes of bytes of another version, of another processor
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compilation, if that can be."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]


class KernelFiles:
    """The compilations of one function, a file for each key; what numba's caches take as their file.

    Args:
        folder: where the files lie.
        name: what their names begin with.
        sources: what must be equal besides the key: numba's version and options, and a digest of the source's file.
    """

    def __init__(self, folder: Path, name: str, sources: tuple[Any, ...]) -> None:
        self._folder, self._name, self._sources = folder, name, sources

    def path(self, key: Any) -> Path:
        """The file of a key."""
        return self._folder / f"{self._name}-{xxhash.xxh3_64_hexdigest(repr(key).encode())}.kernel"

    def load(self, key: Any) -> Any:
        """What was saved under this key; None where there is nothing, or it is damaged: then it is removed."""
        path, identity = self.path(key), self._identity(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        content = data[DIGEST_BYTES:]
        if data[:DIGEST_BYTES] == _digest(content) and content.startswith(identity):
            return pickle.loads(content[len(identity) :])  # noqa: S301 - code of ours, in a folder of the user's
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def save(self, key: Any, data: Any) -> None:
        """Keep `data` under this key. Raises OSError where that can't be."""
        content: bytes = self._identity(key) + dumps(data)  # type: ignore[no-untyped-call]
        path = self.path(key)
        temporary = unfinished_path(path)
        try:
            temporary.write_bytes(_digest(content) + content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            remove_left_behind(self._folder)

    def flush(self) -> None:
        """Forget all that is kept of this function."""
        for path in self._folder.iterdir():
            if path.name.startswith(f"{self._name}-") and path.suffix == ".kernel":
                path.unlink(missing_ok=True)

    def _identity(self, key: Any) -> bytes:
        text = repr((self._sources, key)).encode()
        return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _digest(content: bytes) -> bytes:
    return xxhash.xxh3_128_digest(content)


@lru_cache
def others_may_write(folder: Path) -> bool:
    """Whether users besides this one, root and their group may put files into `folder`, or another folder in its place."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            mine = os.fstat(file.fileno()).st_uid  # which is another than this process's where a server maps users
        inside = folder.resolve()
        if inside.stat().st_uid not in (mine, os.geteuid(), 0):
            return True
        return bool(inside.stat().st_mode & stat.S_IWOTH) or any(map(_is_open, inside.parents))
    except OSError:
        return True


def _is_open(folder: Path) -> bool:
    """Whether everybody may rename what lies in a folder."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX
