"""JSON of unknown origin is read within limits, as the types that are expected, or refused in one line."""

import os
import tracemalloc
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.conversion.folder import LocalFolder
from shards.errors import InputError
from shards.files import open_regular, read_regular, real_path
from shards.jsontext import from_json, parse_json, read_json
from shards.plaintext import printable, unsafe_character

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "nested deeper than 32"),
        (b"[" * 40 + b"]" * 40, "nested deeper than 32"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": 1e999}', "too large a number"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b'{"a": 1, "a": 2}', "'a' stands twice in one object"),
        (rb'{"a": "\ud800"}', "surrogates not allowed"),
        (rb'{"\udcff": 1}', "surrogates not allowed"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b'{"a": 1', "not JSON"),
        (b"", "not JSON"),
        (b" " * 101, "expected at most 100"),
    ],
)
def test_what_no_file_of_ours_has_is_refused_in_one_line(text: bytes, message: str) -> None:
    limit = 100 if message.endswith("100") else 10**6
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text, most_bytes=limit)
    assert "\n" not in str(caught.value)


def test_bytes_of_a_path_that_is_no_utf8_are_read_where_paths_are_expected() -> None:
    assert parse_json(rb'{"path": "a\udcff"}', undecodable=True) == {"path": os.fsdecode(b"a\xff")}


@dataclass(frozen=True)
class Inner:
    count: int
    names: list[str]


@dataclass(frozen=True)
class Outer:
    inner: Inner
    rates: dict[str, float]
    note: str | None = None
    pairs: tuple[tuple[str, int], ...] = ()


@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.text()),
    st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_a_dataclass_comes_back_from_its_own_json(count: int, names: list[str], rates: dict[str, float]) -> None:
    one = Outer(Inner(count, names), rates, None, (("a", 1),))
    value = asdict(one) | {"pairs": [["a", 1]]}
    assert from_json(Outer, value) == one


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "the value is .., expected an object"),
        ({"rates": {}}, "inner is missing"),
        ({"inner": {"count": True, "names": []}, "rates": {}}, "inner.count is True, expected a whole number from 0"),
        ({"inner": {"count": -1, "names": []}, "rates": {}}, "inner.count is -1, expected a whole number"),
        ({"inner": {"count": 2**63, "names": []}, "rates": {}}, "inner.count"),
        ({"inner": {"count": 1, "names": ["a", 2]}, "rates": {}}, r"inner.names\[1\] is 2, expected text"),
        ({"inner": {"count": 1, "names": []}, "rates": {"x": "y"}}, "rates.x is 'y', expected a number"),
        ({"inner": {"count": 1, "names": []}, "rates": {}, "note": 5}, "note is 5, expected text or null"),
        ({"inner": {"count": 1, "names": []}, "rates": {}, "pairs": [["a"]]}, r"pairs\[0\] is .'a'., expected a list"),
    ],
)
def test_a_field_of_another_type_is_named(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Outer, value)


def test_pipes_devices_and_folders_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError), open_regular(path):
            pass
        with pytest.raises(InputError, match="can't read the note"):
            read_json(path, "the note", "delete it")


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1" * 100)
    assert read_regular(path, 100) == b"1" * 100
    with pytest.raises(OSError, match="more than the 99 bytes"):
        read_regular(path, 99)


def test_a_file_of_holes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    with path.open("wb") as file:
        file.truncate(10**9)
    tracemalloc.start()
    for refused, read in (
        (OSError, lambda: read_regular(path, 10**8)),
        (InputError, lambda: LocalFolder(tmp_path).read("job.json")),
    ):
        with pytest.raises(refused, match="more than the"):
            read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7


def test_a_file_that_tells_no_size_is_read_whole() -> None:
    assert b"Name:" in read_regular("/proc/self/status", 10**6)


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_printable_text_is_one_line_and_stays_as_it_is(text: str) -> None:
    once = printable(text)
    assert unsafe_character(once) is None
    assert len(once.splitlines()) <= 1
    assert printable(once) == once
    assert unsafe_character(text) is None or once != text


def test_errors_quote_what_they_name_in_printable_characters() -> None:
    assert str(InputError("a\x1b[31m\nb\tc")) == "a\\x1b[31m\\nb\\tc"


def test_a_circle_of_links_is_compared_as_any_path(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert real_path(tmp_path / "a").parent == real_path(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert real_path(tmp_path / "link") == real_path(tmp_path / "file")
