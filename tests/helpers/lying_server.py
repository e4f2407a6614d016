"""HTTP servers that lie: a folder served with one kind of wrong answer each, over plain sockets.

`LIES` is what a campaign goes through: name -> what the server does. All else that such a server is asked is answered right,
so that a reader gets as far as the lie.
"""

import dataclasses
import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from shards.manifest import Manifest

PIECE = b"x" * 65536
MOST_SENT = 1_000_000_000  # of one answer: who reads on that long believes all
BOMB = 30 * gzip.compress(bytes(10_000_000))  # 300 MB


@dataclass
class Asked:
    """One request: the file's `name`, its true `data`, and the range of it that is wanted, if one is."""

    name: str
    data: bytes
    wanted: tuple[int, int] | None
    connection: socket.socket
    server: "LyingServer"
    sent: int = 0

    def send(self, data: bytes) -> None:
        """Send bytes, and count them."""
        self.connection.sendall(data)
        self.sent += len(data)
        self.server.most_sent = max(self.server.most_sent, self.sent)

    def head(self, status: str, *headers: str) -> None:
        """Send the status and the headers."""
        self.send("\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *headers, "", ""]).encode())

    def part(self, *, ranges: bool = True) -> tuple[bytes, str, list[str]]:
        """The true body, status and headers, but for the length."""
        if self.wanted is None or not ranges:
            return self.data, "200 OK", []
        first, last = self.wanted
        place = f"Content-Range: bytes {first}-{last}/{len(self.data)}"
        return self.data[first : last + 1], "206 Partial Content", [place]

    def honest(self, *, ranges: bool = True) -> None:
        """The true answer."""
        body, status, headers = self.part(ranges=ranges)
        self.head(status, f"Content-Length: {len(body)}", *headers)
        self.send(body)

    def endless(self, piece: bytes = PIECE) -> None:
        """Send until the reader leaves, or nobody would believe that it ever will."""
        while self.sent < MOST_SENT and not self.server.stopping.is_set():
            self.send(piece)

    def drip(self, data: bytes, seconds: float) -> None:
        """Send a byte each `seconds`."""
        for byte in data:
            self.send(bytes([byte]))
            if self.server.stopping.wait(seconds):
                return


Lie = Callable[[Asked], None]


def _endless_body(asked: Asked) -> None:
    _, status, headers = asked.part()
    asked.head(status, *headers)
    asked.endless()


def _endless_without_ranges(asked: Asked) -> None:
    asked.head("200 OK")
    asked.endless()


def _endless_chunks(asked: Asked) -> None:
    _, status, headers = asked.part()
    asked.head(status, "Transfer-Encoding: chunked", *headers)
    asked.endless(b"10000\r\n" + PIECE + b"\r\n")


def _endless_chunk_size(asked: Asked) -> None:
    asked.head("200 OK", "Transfer-Encoding: chunked")
    asked.endless(b"0" * 65536)


def _endless_headers(asked: Asked) -> None:
    asked.send(b"HTTP/1.1 200 OK\r\n")
    asked.endless(b"X-More: " + b"x" * 1000 + b"\r\n")


def _endless_header_line(asked: Asked) -> None:
    asked.send(b"HTTP/1.1 200 OK\r\nX-More: ")
    asked.endless()


def _endless_patience(asked: Asked) -> None:
    while not asked.server.stopping.wait(0.05):
        asked.send(b"HTTP/1.1 102 Processing\r\n\r\n")


def _endless_error(asked: Asked) -> None:
    asked.head("500 Internal Server Error")
    asked.endless()


def _endless_not_found(asked: Asked) -> None:
    asked.head("404 Not Found")
    asked.endless()


def _compressed(asked: Asked) -> None:
    body, status, headers = asked.part()
    body = gzip.compress(body)
    asked.head(status, "Content-Encoding: gzip", f"Content-Length: {len(body)}", *headers)
    asked.send(body)


def _bomb(asked: Asked) -> None:
    asked.head("200 OK", "Content-Encoding: gzip", f"Content-Length: {len(BOMB)}")
    asked.send(BOMB)


def _other_length(factor: float) -> Lie:
    def lie(asked: Asked) -> None:
        body, status, headers = asked.part()
        asked.head(status, f"Content-Length: {int(len(body) * factor)}", *headers)
        asked.send(body)

    return lie


def _no_length(asked: Asked) -> None:
    body, status, headers = asked.part()
    asked.head(status, "Content-Length: -5", *headers)
    asked.send(body)


def _drip(asked: Asked) -> None:
    body, status, headers = asked.part()
    asked.head(status, f"Content-Length: {len(body)}", *headers)
    asked.drip(body, 1.0)


def _cut(asked: Asked) -> None:
    body, status, headers = asked.part()
    asked.head(status, "Transfer-Encoding: chunked", *headers)
    asked.send(f"{len(body):x}\r\n".encode() + body[: len(body) // 2])


def _other_range(asked: Asked) -> None:
    body, status, _ = asked.part()
    first = 7 if asked.wanted else 0
    asked.head(status, f"Content-Length: {len(body)}", f"Content-Range: bytes {first}-{first + len(body) - 1}/999999")
    asked.send(body)


def _several_ranges(asked: Asked) -> None:
    body, status, _ = asked.part()
    whole = b"--cut\r\nContent-Type: application/x-tar\r\n\r\n" + body + b"\r\n--cut--\r\n"
    asked.head(status, "Content-Type: multipart/byteranges; boundary=cut", f"Content-Length: {len(whole)}")
    asked.send(whole)


def _web_page(asked: Asked) -> None:
    page = b"<html><form action=login><input name=password></form></html>"
    asked.head("200 OK", "Content-Type: text/html; charset=utf-8", f"Content-Length: {len(page)}")
    asked.send(page)


def _redirect(place: str) -> Lie:
    """Redirect to `place`, in which {name} is the file, {count} another each time, {port} the server's."""

    def lie(asked: Asked) -> None:
        asked.server.redirects += 1
        where = place.format(name=asked.name, count=asked.server.redirects, port=asked.server.port)
        asked.head("302 Found", *([f"Location: {where}"] if where else []), "Content-Length: 0")

    return lie


def _status(status: str) -> Lie:
    def lie(asked: Asked) -> None:
        asked.head(status, "Content-Length: 0")

    return lie


def _wrong_bytes(asked: Asked) -> None:
    body, status, headers = asked.part()
    asked.head(status, f"Content-Length: {len(body)}", *headers)
    asked.send(bytes(byte ^ 0x55 for byte in body))


def _garbage(asked: Asked) -> None:
    asked.send(b"\x00\x1b[31m\xff not http\r\n\r\n" * 100)


def _silence(asked: Asked) -> None:
    asked.server.stopping.wait()


def _nothing(_asked: Asked) -> None:
    """Hang up."""


def _huge_claims(asked: Asked) -> None:
    """A manifest with a right fingerprint, of tables and shards that no machine could hold."""
    manifest = Manifest.parse(asked.data, asked.name)
    tables = {name: dataclasses.replace(info, bytes=2**50) for name, info in manifest.tables.items()}
    shards = [dataclasses.replace(info, bytes=2**60) for info in manifest.shards]
    body = dataclasses.replace(manifest, tables=tables, shards=shards).to_bytes()
    asked.head("200 OK", f"Content-Length: {len(body)}")
    asked.send(body)


def _only(ending: str, lie: Lie, *, ranges: bool = True) -> Lie:
    """Lie about files of this ending only."""

    def one(asked: Asked) -> None:
        if asked.name.endswith(ending):
            lie(asked)
        else:
            asked.honest(ranges=ranges)

    return one


LIES: dict[str, Lie] = {
    "endless manifest": _only(".json", _endless_body),
    "endless table": _only(".npy", _endless_body),
    "endless range": _only(".tar", _endless_body),
    "endless shard, no ranges": _only(".tar", _endless_without_ranges, ranges=False),
    "endless chunks": _only(".tar", _endless_chunks),
    "endless chunks of a manifest": _only(".json", _endless_chunks),
    "endless chunk size": _only(".npy", _endless_chunk_size),
    "endless headers": _only(".tar", _endless_headers),
    "endless header line": _only(".json", _endless_header_line),
    "endless informational answers": _only(".tar", _endless_patience),
    "endless error page": _only(".tar", _endless_error),
    "endless page of what is not found": _only(".json", _endless_not_found),
    "compressed manifest": _only(".json", _compressed),
    "compressed range": _only(".tar", _compressed),
    "compressed bomb": _only(".npy", _bomb),
    "longer than it says": _only(".tar", _other_length(0.5)),
    "shorter than it says": _only(".tar", _other_length(2.0)),
    "negative length": _only(".npy", _no_length),
    "a byte a second": _only(".tar", _drip),
    "cut in the middle": _only(".tar", _cut),
    "another range": _only(".tar", _other_range),
    "several ranges": _only(".tar", _several_ranges),
    "login page": _only(".tar", _web_page),
    "login page for a manifest": _only(".json", _web_page),
    "redirect to itself": _only(".tar", _redirect("/{name}")),
    "redirects without end": _redirect("/{count}/{name}"),
    "redirect to a local file": _only(".json", _redirect("file:///etc/passwd")),
    "redirect to another host": _only(".tar", _redirect("http://localhost:{port}/truth/{name}")),
    "redirect to nowhere": _only(".tar", _redirect("")),
    "redirect to a port where nobody is": _only(".tar", _redirect("http://127.0.0.1:9/{name}")),
    "not satisfiable": _only(".tar", _status("416 Range Not Satisfiable")),
    "no content": _only(".npy", _status("204 No Content")),
    "not modified": _only(".json", _status("304 Not Modified")),
    "wrong bytes": _only(".tar", _wrong_bytes),
    "garbage in place of a status": _only(".tar", _garbage),
    "silence": _only(".npy", _silence),
    "hangs up": _only(".tar", _nothing),
    "claims what no machine can hold": _only(".json", _huge_claims),
}


@dataclass
class LyingServer:
    """A running server; `most_sent` is the length of the longest answer so far, in bytes."""

    folder: Path
    lie: Lie
    listening: socket.socket
    most_sent: int = 0
    redirects: int = 0
    requests: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        return int(self.listening.getsockname()[1])

    @property
    def url(self) -> str:
        """The dataset's URL."""
        return f"http://127.0.0.1:{self.port}"

    def run(self) -> None:
        """Answer until the listening socket is closed."""
        with suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                received = connection.recv(65536)
                if not received:
                    return
                head += received
            self.requests += 1
            first, *lines = head.decode("latin-1").split("\r\n")
            path = first.split(" ")[1]
            name = path.rpartition("/")[2]
            ranges = [line.partition("=")[2] for line in lines if line.lower().startswith("range: bytes=")]
            wanted = (int(ranges[0].split("-")[0]), int(ranges[0].split("-")[1])) if ranges else None
            file = self.folder / name
            asked = Asked(name, file.read_bytes() if file.is_file() else b"", wanted, connection, self)
            if path.startswith("/truth/"):
                asked.honest()
            else:
                self.lie(asked)


@contextmanager
def lying(folder: Path, lie: Lie) -> Iterator[LyingServer]:
    """Serve `folder` with a lie of `LIES` on loopback, as long as the block lasts."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        server = LyingServer(folder, lie, listening)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stopping.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
