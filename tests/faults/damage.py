"""Damage files of any kind: their bytes, and what lies in their place.

A damage changes one file of a case's world. `refused` says that no command may accept it, unless its result is that of the
sound file; others may be a file that somebody meant: a shorter list, another value.
"""

import gzip
import os
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HUGE = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Place:
    """The file to damage, the world that it is in, and where draws come from; `kept` keeps files that are costly to make."""

    path: Path
    world: Path
    random: random.Random
    kept: Path


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something that befalls a file.

    `apply` does it and returns what to print of it; `forged`: checksums fit again, so that only meaning can tell.
    """

    name: str
    apply: Callable[[Place], object]
    refused: bool = True
    powerless: bool = False
    forged: bool = False


def of_bytes(name: str, change: Callable[[bytes, random.Random], bytes], refused: bool = True) -> Damage:
    """A damage that makes other bytes of the file's bytes."""

    def apply(place: Place) -> None:
        data = place.path.read_bytes() if place.path.exists() else b"{}"
        place.path.write_bytes(change(data, place.random))

    return Damage(name=name, apply=apply, refused=refused)


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    """A damage that puts something else in the file's place."""

    def apply(place: Place) -> None:
        place.path.unlink(missing_ok=True)
        make(place.path)

    return Damage(name=name, apply=apply)


def _socket(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


def _loop(path: Path) -> None:
    other = path.with_name(path.name + ".loop")
    path.symlink_to(other.name)
    other.symlink_to(path.name)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(HUGE)


def _grown(place: Place) -> None:
    place.path.touch()
    with place.path.open("r+b") as file:
        file.truncate(HUGE)


def _forbidden(place: Place) -> None:
    place.path.touch()
    place.path.chmod(0)


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(1, max(2, len(data)))]


def _middle(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(max(1, len(data) - 40))
    return data[:at] + draw.randbytes(40) + data[at + 40 :]


def _doubled(data: bytes, draw: random.Random) -> bytes:  # noqa: ARG001 - as all are called
    return data + data


ANY_BYTES = (
    of_bytes("empty", lambda _, __: b""),
    of_bytes("truncated", _cut, refused=False),
    of_bytes("its first 16 bytes", lambda data, _: data[:16], refused=False),
    of_bytes("without its last byte", lambda data, _: data[:-1], refused=False),
    of_bytes("garbage", lambda _, draw: draw.randbytes(1000)),
    of_bytes("zeros of the same size", lambda data, _: bytes(len(data))),
    of_bytes("0xff of the same size", lambda data, _: b"\xff" * len(data)),
    of_bytes("garbage in the middle", _middle, refused=False),
    of_bytes("followed by garbage", lambda data, draw: data + draw.randbytes(200), refused=False),
    of_bytes("twice", _doubled, refused=False),
    of_bytes("a login page", lambda _, __: b"<!DOCTYPE html>\n<html><body>Please log in</body></html>\n"),
    of_bytes("compressed", lambda data, _: gzip.compress(data)),
    of_bytes("UTF-16", lambda data, _: data.decode("latin-1").encode("utf-16")),
    of_bytes("a program", lambda _, __: b"\x7fELF\x02\x01\x01" + bytes(900)),
    of_bytes("a pickle", lambda _, __: b"\x80\x04cos\nsystem\n\x8c\x0etouch pickled\x85R."),
    of_bytes("a zip of nothing", lambda _, __: b"PK\x05\x06" + bytes(18)),
    of_bytes("a megabyte of A", lambda _, __: b"A" * (1 << 20)),
    of_bytes("control characters", lambda _, __: b"\x1b[31mred\x1b]0;title\x07\r\x08\x9b2J\n" * 3),
)
ANY_PLACE = (
    instead("missing", lambda _path: None),
    instead("a folder", lambda path: path.mkdir()),
    instead("a named pipe", os.mkfifo),
    instead("an endless device", lambda path: path.symlink_to("/dev/zero")),
    instead("an empty device", lambda path: path.symlink_to("/dev/null")),
    instead("a socket", _socket),
    instead("a loop of links", _loop),
    instead("a link to nowhere", lambda path: path.symlink_to("nowhere")),
    instead("a link to the terminal", lambda path: path.symlink_to("/dev/tty")),
    instead("a link to this process's memory", lambda path: path.symlink_to("/proc/self/mem")),
    instead("a terabyte of nothing", _sparse),
    Damage(name="followed by a terabyte of nothing", apply=_grown),
    Damage(name="forbidden", apply=_forbidden, powerless=True),
)
UNTOUCHED = Damage(name="untouched", apply=lambda _place: None, refused=False)
EVERYWHERE = (*ANY_BYTES, *ANY_PLACE)
