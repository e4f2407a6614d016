"""Receive a file, or a part of one, from a file system of fsspec: piece by piece, and never much more than was asked for.

fsspec's own calls read an answer to its end, however long that is. So HTTP and S3 answers are read here as streams, and left
at the first byte too many. Other file systems are asked for ranges of at most `PIECE_BYTES`: what their libraries read of
one answer is theirs (that of a local disk, of memory, of SFTP is what was asked for; of Google's store, what it sends).
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError, wait
from dataclasses import dataclass
from typing import Any

from shards.errors import StoreError
from shards.stores.retry import Attempt, WrongBytesError

PIECE_BYTES = 16_000_000
PLAIN = ("", "identity")  # of Content-Encoding: bytes as they are
WEB_PAGES = ("text/html", "application/xhtml+xml")
MOST_REDIRECTS = 10
MOST_SHOWN = 100  # characters of what a server says

Take = Callable[[bytes], None]


class NoRangesError(Exception):
    """The server answered a request for a part of a file with the whole."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The bytes `start` to `end` (not included) of the file at `path`; or the `whole` of it, of at most `end` bytes.

    `where` names the file in messages.
    """

    path: str
    where: str
    start: int
    end: int
    whole: bool

    @property
    def num_bytes(self) -> int:
        """How many bytes are taken at most."""
        return self.end - self.start


def receive(fs: Any, wanted: Wanted, use: Take, attempt: Attempt) -> None:
    """Call ``use(piece)`` for the pieces of what is wanted, in their order, within the attempt's time.

    Raises:
        FileNotFoundError: there is no such file.
        NoRangesError: the server sends the whole file in place of a part.
        StoreError: it sends something else than the file; asking again would not help.
        TimeoutError: it takes too long.
        WrongBytesError: it sends more than was wanted.
        Exception: what else the file system's library raises.
    """

    def take(piece: bytes) -> None:
        if attempt.received + len(piece) > wanted.num_bytes:
            if wanted.whole or _speaks_http(fs):
                raise WrongBytesError(f"more than the {wanted.num_bytes} bytes expected")
            raise NoRangesError(wanted.where)
        attempt.take(piece, use)

    if not getattr(fs, "async_impl", False):
        _wait(_in_thread(lambda: _receive_blocking(fs, wanted, take)), attempt)
        return
    if _speaks_http(fs):
        coroutine = _receive_http(fs, wanted, take)
    elif hasattr(fs, "_call_s3"):
        coroutine = _receive_s3(fs, wanted, take)
    else:
        coroutine = _receive_ranges(fs, wanted, take)
    _wait(asyncio.run_coroutine_threadsafe(coroutine, fs.loop), attempt)


def _speaks_http(fs: Any) -> bool:
    return "http" in fs.protocol and hasattr(fs, "encode_url")


async def _receive_http(fs: Any, wanted: Wanted, take: Take) -> None:
    from aiohttp import ClientResponseError, NonHttpUrlRedirectClientError, TooManyRedirects
    from aiohttp.http import HttpProcessingError

    session, options = await fs.set_session(), dict(fs.kwargs)
    headers = dict(options.pop("headers", {}))
    if not wanted.whole:
        headers["Range"] = f"bytes={wanted.start}-{wanted.end - 1}"
    options |= {"headers": headers, "max_redirects": MOST_REDIRECTS}
    try:
        async with session.get(fs.encode_url(wanted.path), **options) as answer:
            _check_answer(answer, wanted)
            while piece := await answer.content.read(PIECE_BYTES):
                take(piece)
    except TooManyRedirects:
        raise StoreError(
            f"{wanted.where}: the server redirects in a circle, or more than {MOST_REDIRECTS} times; check the URL"
        ) from None
    except ClientResponseError as error:
        if not isinstance(error.__cause__, HttpProcessingError):
            raise
        what = " ".join(error.message.split())[:MOST_SHOWN] or "nothing that can be read"
        raise StoreError(
            f"{wanted.where}: the server's answer is no valid HTTP: {what}; check the URL and the server"
        ) from None
    except NonHttpUrlRedirectClientError as error:
        raise StoreError(
            f"{wanted.where}: the server redirects to {str(error)[:MOST_SHOWN]}, which is no HTTP; check the URL"
        ) from None


def _check_answer(answer: Any, wanted: Wanted) -> None:
    """Raise for an answer of HTTP whose body is not the bytes that are wanted."""
    if answer.status == 404:
        raise FileNotFoundError(wanted.where)
    answer.raise_for_status()
    where, headers = wanted.where, answer.headers
    steps = [*answer.history, answer]
    if steps[0].url.scheme == "https" and any(step.url.scheme != "https" for step in steps):
        raise StoreError(f"{where}: the server redirects from https to http, where anybody may change the answer")
    encoding = headers.get("Content-Encoding", "").strip().lower()[:MOST_SHOWN]
    if encoding not in PLAIN:
        raise StoreError(
            f"{where}: the server compresses its answer (Content-Encoding: {encoding}), although it was asked not to; "
            "switch compression off in the server for the dataset's files"
        )
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in WEB_PAGES:
        raise StoreError(
            f"{where}: the server sends a web page ({kind}) in place of the file; check the URL, and whether the server "
            "asks for a login"
        )
    if answer.status == 200 and not wanted.whole:
        raise NoRangesError(where)
    expected = 200 if wanted.whole else 206
    if answer.status != expected:
        raise StoreError(f"{where}: the server answers with status {answer.status}, expected {expected}; check the URL")
    found = headers.get("Content-Range", "").strip().lower().partition("/")[0]
    if not wanted.whole and found not in ("", f"bytes {wanted.start}-{wanted.end - 1}"):
        raise WrongBytesError(f"the server sends {found[:MOST_SHOWN]}, asked for bytes {wanted.start}-{wanted.end - 1}")


async def _receive_s3(fs: Any, wanted: Wanted, take: Take) -> None:
    bucket, key, version = fs.split_path(wanted.path)
    given = {} if wanted.whole else {"Range": f"bytes={wanted.start}-{wanted.end - 1}"}
    if version:
        given["VersionId"] = version
    answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **given, **fs.req_kw)
    body = answer["Body"]
    try:
        while piece := await body.read(PIECE_BYTES):
            take(piece)
    finally:
        body.close()


async def _receive_ranges(fs: Any, wanted: Wanted, take: Take) -> None:
    for start, end in _ranges(wanted):
        piece = bytes(await fs._cat_file(wanted.path, start=start, end=end))
        take(piece)
        if len(piece) < end - start:
            return


def _receive_blocking(fs: Any, wanted: Wanted, take: Take) -> None:
    for start, end in _ranges(wanted):
        # with a cache the file would be read 5 MB ahead
        piece = bytes(fs.cat_file(wanted.path, start=start, end=end, cache_type="none"))
        take(piece)
        if len(piece) < end - start:
            return


def _ranges(wanted: Wanted) -> Iterator[tuple[int, int]]:
    """What to ask for: of a whole file a byte more than it may have, so that a longer one is noticed."""
    end = wanted.end + 1 if wanted.whole else wanted.end
    for start in range(wanted.start, end, PIECE_BYTES):
        yield start, min(start + PIECE_BYTES, end)


def _in_thread(call: Callable[[], None]) -> "Future[None]":
    """``call()`` in a thread that ends with the process, however long it hangs."""
    future: Future[None] = Future()

    def run() -> None:
        with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
            try:
                call()
                future.set_result(None)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised again by who waits
                future.set_exception(error)

    threading.Thread(target=run, name="store-request", daemon=True).start()
    return future


def _wait(future: "Future[None]", attempt: Attempt) -> None:
    while not future.done():
        seconds = attempt.seconds_left
        if seconds <= 0:
            future.cancel()
            raise TimeoutError("no answer in time" if not attempt.received else "too slow an answer")
        wait([future], timeout=seconds)
    future.result()
