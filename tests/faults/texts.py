"""Damage texts: lists, tables, JSON, YAML."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from damage import Damage, Place, of_bytes

from shards.contentdigest import with_digest

DEEP = 100_000
LONG_NUMBER = b"9" * 5000
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64, 1e308, -1e-320, 0.5, "", "x", "\x1b[31m\n\t", "../../../etc/passwd", "a" * 100_000,
    [], [[]], [None], {}, {"x": {"y": []}}, [1, "a", None], "\x00", "pipe:touch pwned {name}",
)  # fmt: skip


def _lines(change: Callable[[list[bytes], random.Random], list[bytes]]) -> Callable[[bytes, random.Random], bytes]:
    """What changes the lines of a text."""

    def change_bytes(data: bytes, draw: random.Random) -> bytes:
        return b"".join(line + b"\n" for line in change(data.splitlines(), draw))

    return change_bytes


def _with(line: bytes) -> Callable[[bytes, random.Random], bytes]:
    """What puts a line among the others."""

    def change(lines: list[bytes], draw: random.Random) -> list[bytes]:
        at = draw.randrange(len(lines) + 1)
        return [*lines[:at], line, *lines[at:]]

    return _lines(change)


def _first_words(more: bytes) -> Callable[[bytes, random.Random], bytes]:
    """What adds to the first line."""
    return _lines(lambda lines, _: [lines[0] + more, *lines[1:]])


ODD_LINES = {
    "a line with an escape": b"SYN/spk0000/\x1b[31mred",
    "a line with NUL": b"SYN/spk0000/a\0b",
    "a line that is not UTF-8": b"SYN/spk0000/\xff\xfe",
    "a path upwards": b"../../../etc/passwd",
    "an absolute path": b"/etc/passwd",
    "an empty component": b"SYN//spk0000_0000",
    "a component of one dot": b"SYN/./spk0000/spk0000_0000",
    "a pattern": b"SYN/spk0000/*",
    "two stars": b"a**b",
    "a flag": b"--out",
    "a long line": b"SYN/spk0000/" + b"x" * 300_000,
    "many components": b"SYN/" * 5000 + b"x",
    "a carriage return inside": b"SYN/spk0000/a\rSYN/spk0000/b",
    "a lone surrogate": b"SYN/spk0000/\xed\xa0\x80",
    "a right-to-left override": "SYN/spk0000/\u202egnp.exe".encode(),
    "a command": b"SYN/spk0000/$(touch pwned)",
}
LIST = (
    *(of_bytes(name, _with(line)) for name, line in ODD_LINES.items()),
    of_bytes("a line twice", _lines(lambda lines, _: [*lines, lines[0]])),
    of_bytes("a component of dots, twice", _lines(lambda lines, _: [*lines, lines[0].replace(b"SYN/", b"SYN/./")])),
    of_bytes("lines of Windows", lambda data, _: data.replace(b"\n", b"\r\n"), refused=False),
    of_bytes("a byte order mark", lambda data, _: b"\xef\xbb\xbf" + data, refused=False),
    of_bytes("empty lines", lambda data, _: data.replace(b"\n", b"\n\n"), refused=False),
    of_bytes("spaces behind", lambda data, _: data.replace(b"\n", b" \n"), refused=False),
    of_bytes("empty lines alone", lambda _, __: b"\n" * 100_000),
    of_bytes("a million unknown lines", lambda _, __: b"".join(b"SYN/s/%d\n" % i for i in range(1_000_000))),
    of_bytes("one line twice a hundred thousand times", lambda data, _: (data.splitlines()[0] + b"\n") * 100_000),
    of_bytes("another order", _lines(lambda lines, draw: draw.sample(lines, len(lines))), refused=False),
)
TABLE = (
    *LIST[: len(ODD_LINES)],
    of_bytes("a line of one word", _with(b"word")),
    of_bytes("a line of many words", _first_words(b" more" * 1000)),
    of_bytes("words with an escape", _first_words(b" \x1b[2J")),
    of_bytes("a line twice with another end", _lines(lambda lines, _: [*lines, lines[0][:-1] + b"X"]), refused=False),
    of_bytes("a command to run", _lines(lambda lines, _: [lines[0].split()[0] + b" touch pwned |", *lines[1:]])),
    of_bytes("a number too large", _lines(lambda lines, _: [lines[0] + b"9" * 400, *lines[1:]])),
    of_bytes("a range beyond", _lines(lambda lines, _: [lines[0] + b"[0:999999999]", *lines[1:]])),
    of_bytes("columns swapped", _lines(lambda lines, _: [b" ".join(line.split()[::-1]) for line in lines]), False),
    of_bytes("tabs for spaces", lambda data, _: data.replace(b" ", b"\t"), refused=False),
    of_bytes("without its last lines", _lines(lambda lines, _: lines[: len(lines) // 2]), refused=False),
)


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in inside:
        yield from _paths(item, (*at, name))


def change_value(value: Any, draw: random.Random, remove: bool = False) -> str:
    """Change or remove one member of a JSON value, at whatever depth; says which. Members near the top come more often."""
    found = list(_paths(value))
    if not found:
        return "nothing to change"
    path = draw.choices(found, [1 / 4 ** len(item) for item in found])[0]
    inside = value
    for name in path[:-1]:
        inside = inside[name]
    if remove:
        del inside[path[-1]]
        return f"without {path}"
    inside[path[-1]] = draw.choice([item for item in ODD_VALUES if item != inside[path[-1]]])
    return f"{path} is {str(inside[path[-1]])[:40]!r}"


def json_change(name: str, remove: bool) -> Damage:
    """A damage to one member of a JSON file."""

    def apply(place: Place) -> str:
        value = json.loads(place.path.read_bytes()) if place.path.exists() else {"token": "x", "mark": {}}
        said = change_value(value, place.random, remove)
        if place.path.name.endswith((".opts", ".calibration.json")):
            value = with_digest(value)  # so that the readers get to see what was changed
        place.path.write_text(json.dumps(value))
        return said

    return Damage(name=name, apply=apply, refused=False)


def _inserted(text: bytes) -> Callable[[bytes, random.Random], bytes]:
    """What puts a member at the front of an object."""
    return lambda data, _: data.replace(b"{", b"{" + text + b",", 1)


JSON = (
    *(json_change(f"another value ({number})", False) for number in range(6)),
    *(json_change(f"a member less ({number})", True) for number in range(3)),
    of_bytes("deep lists", lambda _, __: b"[" * DEEP),
    of_bytes("deep objects", lambda _, __: b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    of_bytes("a deep member", _inserted(b'"deep": ' + b"[" * DEEP + b"]" * DEEP)),
    of_bytes("a long number", _inserted(b'"number": ' + LONG_NUMBER)),
    of_bytes("NaN", _inserted(b'"number": NaN'), refused=False),
    of_bytes("a lone surrogate", _inserted(b'"name": "\\ud800"'), refused=False),
    of_bytes("a lone surrogate as a name", _inserted(b'"\\udfff": 0'), refused=False),
    of_bytes("a name of control characters", _inserted(b'"\\u001b[31m\\n": 0'), refused=False),
    of_bytes("a list", lambda _, __: b"[]"),
    of_bytes("null", lambda _, __: b"null"),
    of_bytes("a string", lambda _, __: b'"text"'),
    of_bytes("a number", lambda _, __: b"17"),
    of_bytes("an empty object", lambda _, __: b"{}"),
    of_bytes("a large member", _inserted(b'"large": "' + b"x" * 30_000_000 + b'"'), refused=False),
    of_bytes("two objects", lambda data, _: data + data),
    of_bytes("a byte order mark", lambda data, _: b"\xef\xbb\xbf" + data, refused=False),
    of_bytes("comments", lambda data, _: b"// comment\n" + data),
    of_bytes("its first member twice", lambda data, _: _first_twice(data), refused=False),
)


def _first_twice(data: bytes) -> bytes:
    value = json.loads(data or b"{}")
    if not isinstance(value, dict) or not value:
        return data
    name = next(iter(value))
    return b"{" + json.dumps(name).encode() + b": 1," + data.lstrip()[1:]


BILLION = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)
YAML_TEXTS = {
    "a tag that runs code": "epoch: !!python/object/apply:os.system ['touch pwned']\n",
    "a tag that makes an object": "epoch: !!python/name:os.system\n",
    "a billion laughs": BILLION,
    "deep lists": "epoch: " + "[" * 20_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(800)),
    "an unknown flag": "no_such_flag: 1\n",
    "a key that is a list": "? [a, b]\n: 1\n",
    "a key that is null": "null: 1\n",
    "a number key": "1: 2\n",
    "a list": "- a\n- b\n",
    "a string": "text\n",
    "two documents": "epoch: 1\n---\nepoch: 2\n",
    "a tab": "epoch:\t\t- 1\n\t- 2\n",
    "an alias without an anchor": "epoch: *nowhere\n",
    "an alias of itself": "&a epoch: *a\n",
    "an anchor in itself": "epoch: &a [*a]\n",
    "a long number": f"epoch: {'9' * 5000}\n",
    "a word for a number": "epoch: many\nblock_frames: many\nworkers: many\n",
    "a negative number": "epoch: -1\nblock_frames: -1\nworkers: -1\n",
    "infinity": "lr: .inf\nblock_frames: .inf\nbatch_size: .inf\n",
    "an escape in a value": 'edge: "\\e[31m"\nsource: "\\e[31m"\nmodel: "\\e[31m"\n',
    "an escape in a name": '"\\e[31m": 1\n',
    "a date": "epoch: 2020-01-01\nworkers: 2020-01-01\n",
    "binary": "epoch: !!binary aGFsbG8=\nworkers: !!binary aGFsbG8=\n",
    "a set": "epoch: !!set {a, b}\nworkers: !!set {a, b}\n",
    "a nested object": "epoch: {a: {b: 1}}\nworkers: {a: {b: 1}}\n",
    "itself as the config": "config: cfg/train.yaml\n",
}
YAML = (
    *(of_bytes(name, lambda data, _, text=text: data + text.encode()) for name, text in YAML_TEXTS.items()),
    of_bytes("a key twice", lambda data, _: data + data.splitlines()[0] + b"\n"),
    of_bytes("latin-1", lambda data, _: data + "save_path: \xe9\n".encode("latin-1")),
    of_bytes("a NUL", lambda data, _: data + b"save_path: a\0b\n"),
)
