"""Read files at a URL that fsspec knows, whole or in part, with retries and time limits.

File systems are made when a process first needs one, for that process alone: they hold threads and connections, which do
not survive a fork. Libraries repeat failed requests on their own account, which would multiply with ours (s3fs: 5 attempts
around 5 around botocore's 5): where that can be switched off it is. gcsfs repeats up to 6 times whatever one says; the
time limit of a request bounds all of them together.
"""

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import IO, Any, TypeVar

from shards.errors import SpkidError, StoreError, UsageError
from shards.parallel import ProcessLocks
from shards.plaintext import masked
from shards.stores.receiving import NoRangesError, Wanted, receive
from shards.stores.retry import (
    Attempt,
    RetryPolicy,
    TargetError,
    WrongBytesError,
    in_one_line,
    retry,
    writing_to_target,
)

Result = TypeVar("Result")

S3_NAMES, HTTP_NAMES = ("s3", "s3a"), ("http", "https")
TRANSIENT_STATUS = (408, 425, 429)  # of the HTTP answers 400 to 499, those that mean "later"
# What botocore raises where no request can succeed; it need not be installed.
FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")


FINAL_TYPES = (
    SpkidError, NoRangesError, TargetError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError,
    ValueError, ImportError,
)  # fmt: skip


@dataclass(frozen=True)
class RemoteFiles:
    """The files of a folder at `url`.

    All methods that read raise FileNotFoundError where there is no such file, WrongBytesError where the bytes are wrong
    each time, or more than were asked for; InputError where the store fails for longer than `policy` allows or refuses; and
    UsageError where the kind of URL is not known or its library is not installed. `stop`, once set, keeps further
    attempts from beginning. Nothing is read beyond what was asked for, whatever a server sends.
    """

    url: str
    policy: RetryPolicy = field(default_factory=RetryPolicy)

    def where(self, name: str) -> str:
        """The file's URL, for messages: without what may be secret in it."""
        return masked(file_url(self.url, name))

    @property
    def may_ignore_ranges(self) -> bool:
        """Whether servers of this kind are free to answer with the whole file where a part was asked for."""
        return self.url.startswith(("http://", "https://"))

    def read(self, name: str, most_bytes: int, check: Callable[[bytes], None] = lambda _data: None) -> bytes:
        """A whole file; `check` raises WrongBytesError where it is not what was written, and so does one of more bytes."""
        return self._read(name, 0, most_bytes, check, whole=True)

    def read_range(
        self,
        name: str,
        start: int,
        end: int,
        check: Callable[[bytes], None] = lambda _data: None,
        stop: threading.Event | None = None,
    ) -> bytes:
        """The bytes `start` to `end` (not included) of a file; `check` as in `read`.

        Raises:
            NoRangesError: the server sends the whole file.
        """

        def check_size(data: bytes) -> None:
            if len(data) < end - start:
                raise WrongBytesError(f"{len(data)} bytes, expected {end - start}")
            check(data)

        return self._read(name, start, end, check_size, stop)

    def _read(
        self,
        name: str,
        start: int,
        end: int,
        check: Callable[[bytes], None],
        stop: threading.Event | None = None,
        *,
        whole: bool = False,
    ) -> bytes:
        def request(fs: Any, wanted: Wanted, attempt: Attempt) -> bytes:
            pieces: list[bytes] = []
            receive(fs, wanted, pieces.append, attempt)
            data = b"".join(pieces)
            check(data)
            return data

        return self._retry(name, request, start, end, stop, whole=whole)

    def download(self, name: str, target: IO[bytes], num_bytes: int, stop: threading.Event | None = None) -> None:
        """Write a whole file of `num_bytes` into the open file `target`, replacing what is in it.

        Raises:
            TargetError: `target` can't be written.
        """

        def write(piece: bytes) -> None:
            with writing_to_target():
                target.write(piece)

        def request(fs: Any, wanted: Wanted, attempt: Attempt) -> None:
            with writing_to_target():
                target.seek(0)
                target.truncate()
            receive(fs, wanted, write, attempt)
            if attempt.received != num_bytes:
                raise WrongBytesError(f"{attempt.received} bytes, expected {num_bytes}")

        self._retry(name, request, 0, num_bytes, stop, whole=True)

    def _retry(
        self,
        name: str,
        request: Callable[[Any, Wanted, Attempt], Result],
        start: int,
        end: int,
        stop: threading.Event | None,
        *,
        whole: bool,
    ) -> Result:
        fs, root = open_filesystem(self.url, repeats=False)
        where = self.where(name)
        wanted = Wanted(path=file_url(root, name), where=where, start=start, end=end, whole=whole)
        try:
            return retry(
                lambda attempt: request(fs, wanted, attempt), self.policy, where=where, is_final=_is_final, stop=stop
            )
        except (SpkidError, FileNotFoundError, WrongBytesError, NoRangesError, TargetError):
            raise
        except Exception as error:
            raise StoreError(
                f"{where}: the store refuses: {in_one_line(error)}; check the URL and your rights to read there"
            ) from error


def without_slash(url: str) -> str:
    """The URL of a folder without a slash at its end; a query may end with one that counts."""
    return url if "?" in url else url.rstrip("/")


def file_url(folder: str, name: str) -> str:
    """The URL of a file in the folder at a URL: of a signed one, ``https://host/train?sig=...``, the query stays at the end."""
    if not folder.startswith(("http://", "https://")):
        return f"{folder}/{name}"
    place, mark, query = folder.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{query}"


def open_filesystem(url: str, *, repeats: bool) -> tuple[Any, str]:
    """This process's file system for `url`, and the path in it, without a slash at its end.

    `repeats`: whether its library repeats failed requests on its own account.

    Raises:
        UsageError: the kind of URL is not known, or the library for it is not installed.
    """
    with _locks["open"]:  # the cache below would let each of the threads make one
        return _open_filesystem(url, repeats, os.getpid())


_locks = ProcessLocks()


@lru_cache(maxsize=16)
def _open_filesystem(url: str, repeats: bool, _process: int) -> tuple[Any, str]:
    import fsspec  # here, not above: most datasets are local

    protocol = url.partition("://")[0]
    try:
        fs, root = fsspec.core.url_to_fs(url, **({} if repeats else _options(url, fsspec.config.conf)))
    except (ImportError, ValueError) as error:
        raise UsageError(f"{url}: can't be opened: {in_one_line(error).partition(': ')[2]}") from error
    if protocol in S3_NAMES and not repeats:
        fs.retries = 1  # no other way to say it; the instance is ours alone
    return fs, without_slash(str(root))


def _options(url: str, configured: dict[str, Any]) -> dict[str, Any]:
    """Options of a file system that leave retries and time limits to us, beside what the user configured for it."""
    protocol = url.partition("://")[0]
    family = next((names for names in (S3_NAMES, HTTP_NAMES) if protocol in names), ())
    given = {key: value for name in family for key, value in configured.get(name, {}).items()}
    if family is S3_NAMES:
        config = {**given.get("config_kwargs", {}), "retries": {"total_max_attempts": 1}}
        return {"config_kwargs": config, "skip_instance_cache": True}
    if family is HTTP_NAMES:
        from aiohttp import ClientTimeout

        # A compressed answer would have other bytes at the place that was asked for.
        headers = {**given.get("headers", {}), "Accept-Encoding": "identity"}
        # Where it is compressed all the same, a few bytes could become very many before that is noticed.
        client = {"timeout": ClientTimeout(), **given.get("client_kwargs", {}), "auto_decompress": False}
        # A signature is of the very characters of the query, of which yarl would spell some otherwise.
        signed = {"encoded": True} if "?" in url and url.isascii() and " " not in url else {}
        return {"headers": headers, "client_kwargs": client, **signed}
    return {}


def _is_final(error: Exception) -> bool:
    """Whether a request would fail in the same way again."""
    if isinstance(error, FINAL_TYPES):
        return True
    if isinstance(error, OSError) and error.errno == errno.EINVAL:  # what s3fs makes of a refused request
        return True
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in TRANSIENT_STATUS
    return refused or type(error).__name__ in FINAL_NAMES
