"""An HTTP server of a folder for the tests: with or without ranges, and with the faults that networks have."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class HttpStore:
    """What the server does; `requests` are (file, range header or None) of all GETs so far.

    Shares of the requests, by a seeded generator: `failing` are answered with 500 or 503, `cut` end in the middle of the
    body, `flipped` have one wrong bit, `slow` wait `slow_seconds`. Those without `query` are refused.
    """

    folder: Path
    ranges: bool = True
    failing: float = 0.0
    cut: float = 0.0
    flipped: float = 0.0
    slow: float = 0.0
    slow_seconds: float = 0.0
    url: str = ""
    query: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    before_body: Any = None  # called with (file, range) after the headers
    faults: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def draw(self) -> tuple[str, int]:
        """What befalls the next request, and a number for where."""
        with self._lock:
            at = self._random.random()
            for name in ("failing", "cut", "flipped", "slow"):
                at -= getattr(self, name)
                if at < 0:
                    self.faults += 1
                    return name, self._random.randrange(2**30)
            return "", 0

    def count(self, ending: str) -> int:
        """Requests so far for files whose name has this ending."""
        return sum(name.endswith(ending) for name, _ in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        store = self.server.store
        if store.stopping.is_set():  # a connection that was kept open
            self.close_connection = True
            return
        wanted = self.headers.get("Range")
        name = self.path.lstrip("/")
        store.requests.append((name, wanted))
        name, _, query = name.partition("?")
        if query != store.query:
            self._answer(403, b"not signed")
            return
        path = store.folder / name
        fault, number = store.draw()
        if fault == "failing":
            self._answer(500 if number % 2 else 503, b"try later")
        elif not path.is_file():
            self._answer(404, b"none")
        else:
            self._send(store, path.read_bytes(), wanted, fault, number, name)

    def _send(self, store: HttpStore, data: bytes, wanted: str | None, fault: str, number: int, name: str) -> None:
        status, headers = 200, {}
        if wanted is not None and store.ranges:
            first, last = (int(text) for text in wanted.removeprefix("bytes=").split("-"))
            if first >= len(data):
                self._answer(416, b"beyond the end")
                return
            headers = {"Content-Range": f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"}
            status, data = 206, data[first : last + 1]
        if fault == "slow":
            store.stopping.wait(store.slow_seconds)
        if fault == "flipped":
            changed = bytearray(data)
            changed[number % len(data)] ^= 1 << number % 8
            data = bytes(changed)
        self._answer(status, data, headers, len(data) // 2 if fault == "cut" else len(data), name, wanted)

    def _answer(
        self, status: int, data: bytes, headers: Any = None, sent: int | None = None, name: str = "", wanted: Any = None
    ) -> None:
        try:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
                self.send_header(key, value)
            self.end_headers()
            if self.server.store.before_body is not None:
                self.server.store.before_body(name, wanted)
            self.wfile.write(data[:sent])
            if sent is not None and sent < len(data):
                self.close_connection = True
        except OSError:  # the client gave up
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    store: HttpStore


@contextmanager
def serve(folder: Path, **options: Any) -> Iterator[HttpStore]:
    """Serve `folder` on loopback as long as the block lasts."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.store = HttpStore(folder, **options)
    server.store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.store
    finally:
        server.store.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
