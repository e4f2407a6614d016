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
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from shards.errors import SpkidError, StoreError, UsageError
from shards.parallel import ProcessLocks
from shards.plaintext import masked
from shards.stores.retry import RetryPolicy, WrongBytesError, in_one_line, retry

Result = TypeVar("Result")

S3_NAMES, HTTP_NAMES = ("s3", "s3a"), ("http", "https")
TRANSIENT_STATUS = (408, 425, 429)  # of the HTTP answers 400 to 499, those that mean "later"
# What botocore raises where no request can succeed; it need not be installed.
FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")


class NoRangesError(Exception):
    """The server answered a request for a part of a file with the whole."""


@dataclass(frozen=True)
class RemoteFiles:
    """The files of a folder at `url`.

    All methods that read raise FileNotFoundError where there is no such file, WrongBytesError where the bytes are wrong
    each time, InputError where the store fails for longer than `policy` allows or refuses, and UsageError where
    the kind of URL is not known or its library is not installed. `stop`, once set, keeps further attempts from beginning.
    """

    url: str
    policy: RetryPolicy = field(default_factory=RetryPolicy)

    def where(self, name: str) -> str:
        """The file's URL, for messages: without what may be secret in it."""
        return f"{masked(self.url)}/{name}"

    @property
    def may_ignore_ranges(self) -> bool:
        """Whether servers of this kind are free to answer with the whole file where a part was asked for."""
        return self.url.startswith(("http://", "https://"))

    def read(self, name: str, check: Callable[[bytes], None] = lambda _data: None, num_bytes: int = 0) -> bytes:
        """A whole file, of about `num_bytes`; `check` raises WrongBytesError where it is not what was written."""

        def request(fs: Any, path: str, limits: dict[str, Any]) -> bytes:
            data = bytes(fs.cat_file(path, **limits))
            check(data)
            return data

        return self._retry(name, request, num_bytes)

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
            NoRangesError: the server sent more than was asked for.
        """

        def request(fs: Any, path: str, limits: dict[str, Any]) -> bytes:
            # file systems without time limits of their own read through a file, by default 5 MB ahead
            data = bytes(fs.cat_file(path, start=start, end=end, **(limits or {"cache_type": "none"})))
            if len(data) > end - start:
                raise NoRangesError(self.where(name))
            if len(data) < end - start:
                raise WrongBytesError(f"{len(data)} bytes, expected {end - start}")
            check(data)
            return data

        return self._retry(name, request, end - start, stop)

    def download(self, name: str, target: Path, num_bytes: int, stop: threading.Event | None = None) -> None:
        """Write a whole file of `num_bytes` to `target`, replacing what is there."""

        def request(fs: Any, path: str, limits: dict[str, Any]) -> None:
            fs.get_file(path, str(target), **limits)
            if target.stat().st_size != num_bytes:
                raise WrongBytesError(f"{target.stat().st_size} bytes, expected {num_bytes}")

        self._retry(name, request, num_bytes, stop)

    def _retry(
        self,
        name: str,
        request: Callable[[Any, str, dict[str, Any]], Result],
        num_bytes: int,
        stop: threading.Event | None = None,
    ) -> Result:
        fs, root = open_filesystem(self.url, repeats=False)
        path = f"{root}/{name}"

        def attempt(seconds: float) -> Result:
            if getattr(fs, "async_impl", False):
                return request(fs, path, {"timeout": seconds})  # fsspec cancels it then
            return _in_time(partial(request, fs, path, {}), seconds)

        where = self.where(name)
        try:
            return retry(attempt, self.policy, where=where, is_final=_is_final, num_bytes=num_bytes, stop=stop)
        except (SpkidError, FileNotFoundError, WrongBytesError, NoRangesError):
            raise
        except Exception as error:
            raise StoreError(
                f"{where}: the store refuses: {in_one_line(error)}; check the URL and your rights to read there"
            ) from error


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
        fs, root = fsspec.core.url_to_fs(url, **({} if repeats else _options(protocol, fsspec.config.conf)))
    except (ImportError, ValueError) as error:
        raise UsageError(f"{url}: can't be opened: {in_one_line(error).partition(': ')[2]}") from error
    if protocol in S3_NAMES and not repeats:
        fs.retries = 1  # no other way to say it; the instance is ours alone
    return fs, str(root).rstrip("/")


def _options(protocol: str, configured: dict[str, Any]) -> dict[str, Any]:
    """Options of a file system that leave retries and time limits to us, beside what the user configured for it."""
    family = next((names for names in (S3_NAMES, HTTP_NAMES) if protocol in names), ())
    given = {key: value for name in family for key, value in configured.get(name, {}).items()}
    if family is S3_NAMES:
        config = {**given.get("config_kwargs", {}), "retries": {"total_max_attempts": 1}}
        return {"config_kwargs": config, "skip_instance_cache": True}
    if family is HTTP_NAMES:
        from aiohttp import ClientTimeout

        # A compressed answer would have other bytes at the place that was asked for.
        headers = {**given.get("headers", {}), "Accept-Encoding": "identity"}
        return {"headers": headers, "client_kwargs": {"timeout": ClientTimeout(), **given.get("client_kwargs", {})}}
    return {}


def _is_final(error: Exception) -> bool:
    """Whether a request would fail in the same way again."""
    if isinstance(error, SpkidError | NoRangesError | FileNotFoundError | PermissionError | ValueError | ImportError):
        return True
    if isinstance(error, OSError) and error.errno == errno.EINVAL:  # what s3fs makes of a refused request
        return True
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in TRANSIENT_STATUS
    return refused or type(error).__name__ in FINAL_NAMES


def _in_time(call: Callable[[], Result], seconds: float) -> Result:
    """The result of ``call()``; one that takes too long is left to itself in a thread that ends with the process.

    Raises:
        TimeoutError: it took more than `seconds`.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name="store-request", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:.1f} s")
    return results[0]
