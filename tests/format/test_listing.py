"""Lists that are not in memory: the same order, sum and errors as in memory, and memory that does not grow with them."""

import os
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import FmatrixSource, InputError, Layout, Utterance, convert, make_plan, read_list
from shards import listing as listing_module
from shards.conversion import plan as plan_module
from shards.hashing import UtteranceSum, sum_utterances
from shards.lines import CHUNK_BYTES, numbered_lines, read_chunks
from shards.listing import ListFile, MemoryListing, storage_order
from shards.sources.fmatrix import write_fmatrix
from shards.speakers import speaker_by_component, speaker_by_regex

RULES = {"component": speaker_by_component(2), "any other rule": speaker_by_regex("/(.+?)/")}


@pytest.fixture(scope="module")
def long_list(tmp_path_factory):
    """A list of 40,000 utterances with CRLF, blank lines and keys that need UTF-8; each chunk has some hundred."""
    path = tmp_path_factory.mktemp("listing") / "list"
    lines = [f"B/spk{n % 97}/ü{n:07d}{' ' * (n % 3)}\r\n{chr(10) * (n % 5 == 0)}" for n in range(40_000)]
    path.write_bytes(b"\xef\xbb\xbf" + "".join(lines).encode())
    return path


@pytest.mark.parametrize("rule", RULES)
def test_a_list_file_is_ordered_and_summed_as_in_memory(long_list, rule, monkeypatch):
    monkeypatch.setattr("shards.lines.CHUNK_BYTES", 4096)
    listed = ListFile(long_list, RULES[rule], 5)
    memory = MemoryListing(read_list(long_list), 5)
    assert listed.total == memory.total
    assert listed.first == memory.first
    assert (
        {u.speaker for u in listed.examples} == {u.speaker for u in memory.examples} == {f"spk{n}" for n in range(97)}
    )
    assert len(listed.examples) == 97
    for ranks in (range(40_000), range(0), range(1), range(17_000, 17_003), range(39_999, 40_000), range(31, 30_000)):
        assert listed.select(ranks) == memory.select(ranks)


def test_a_sum_tells_other_speakers_and_other_keys_but_no_other_order(long_list):
    utterances = read_list(long_list)
    total = sum_utterances(utterances, 0)
    shuffled = random.Random(0).sample(utterances, len(utterances))
    parts = [sum_utterances(part, 0) for part in (shuffled[:100], [], shuffled[100:])]
    assert sum(parts, UtteranceSum()) == total
    first, second, *rest = utterances
    exchanged = [Utterance(first.key, second.speaker), Utterance(second.key, first.speaker)]
    others = [
        [*exchanged, *rest],
        [second, *rest],
        [second, second, *rest],
        [Utterance("x", first.speaker), second, *rest],
    ]
    assert len({str(sum_utterances(other, 0)) for other in (utterances, *others)}) == 5


def test_equal_hashes_are_ordered_by_key_and_equal_keys_are_found():
    hashes = np.array([7, 7, 9, 3], np.uint64)
    assert storage_order(hashes, ["c", "b", "a", "d"]) == ([3, 1, 0, 2], None)
    assert storage_order(hashes, ["b", "b", "a", "d"]) == ([3, 0, 1, 2], "b")


@given(st.lists(st.sampled_from(["\n", "\r", "\r\n", " ", "\v", "\x1c", "\u2028", "a", "é", "\ufeff"]), max_size=30))
@settings(max_examples=300)
def test_lines_of_any_chunks_are_those_of_the_whole(tmp_path_factory, parts):
    path = tmp_path_factory.getbasetemp() / "lines"
    text = "".join(parts)
    path.write_text(text, encoding="utf-8", newline="")
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    expected = [(number, key) for number, line in enumerate(lines, 1) if (key := line.strip(" \t\v\f"))]
    with pytest.MonkeyPatch.context() as patch:
        for size in (CHUNK_BYTES, 40, 160):
            patch.setattr("shards.lines.CHUNK_BYTES", size)
            try:
                assert list(numbered_lines(path)) == expected
                assert b"".join(read_chunks(path)).decode() == text.removeprefix("\ufeff")
            except InputError as error:
                assert size < CHUNK_BYTES and "a line has more than" in str(error)


MISTAKES = {
    "leaves the folder": ("B/s/a\n\nB/s/../b\n", r"list:3: utterance 'B/s/\.\./b' leaves the feature folder"),
    "no speaker": ("B/s/a\r\nalone\r\n", r"list:2: utterance 'alone' has no component 2"),
    "an empty component": ("B/s/a\nB//c\n", r"list:2: utterance 'B//c' has a component that is empty .*: write 'B/c'"),
    "a dot": ("B/s/a\n./B/s/./a\n", r"list:2: utterance '\./B/s/\./a' has a component .* or '\.'.*: write 'B/s/a'"),
    "an end of a folder": ("B/s/a/\n", r"list:1: utterance 'B/s/a/' has a component that is empty .*: write 'B/s/a'"),
    "empty": (" \n\r\n", r"list: the utterance list is empty"),
    "a NUL": ("B/s/a\nB/s/\0\n", r"list:2: utterance 'B/s/\\x00' has the character \\x00"),
    "a long line": ("B/s/a\n" + "B/s/b" * 10**6, r"list: a line has more than 4194304 bytes; give a file with"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_line(tmp_path, name):
    text, message = MISTAKES[name]
    path = tmp_path / "list"
    path.write_bytes(text.encode())
    for reader in (lambda: ListFile(path, speaker_by_component(2), 0), lambda: read_list(path)):
        with pytest.raises(InputError, match=message):
            reader()


def test_bytes_that_are_no_utf8_are_named_in_any_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.lines.CHUNK_BYTES", 64)
    path = tmp_path / "list"
    path.write_bytes(b"B/s/a\n" * 100 + b"B/s/\xe9\n")
    with pytest.raises(InputError, match=r"list: the utterance list must be UTF-8 text: .* at byte 604; give a file"):
        ListFile(path, speaker_by_component(2), 0)


def test_an_utterance_that_is_listed_twice_is_found_when_it_is_selected(tmp_path, monkeypatch):
    path = tmp_path / "list"
    path.write_text("".join(f"B/s/{n % 150}\n\n" for n in range(151)))
    monkeypatch.setattr(plan_module, "SEGMENT_UTTERANCES", 40)
    source = FmatrixSource(tmp_path, "mcp")
    write_fmatrix(tmp_path / "f", np.zeros((1, 4), np.float32))
    monkeypatch.setattr(FmatrixSource, "where", lambda _self, _utterance: str(tmp_path / "f"))
    listed = ListFile(path, speaker_by_component(2), 0)
    job = make_plan(listed, ["s"], source, Layout(shard_bytes=160))
    assert job.job.num_shards == 16
    with pytest.raises(InputError, match=r"list:301: utterance 'B/s/0' stands on line 1 already; .* remove one"):
        list(job.tasks(range(16)))
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"utterance 'a/b' is listed twice"):
        MemoryListing([Utterance("a/b", "b")] * 2, 0)


def test_a_list_that_changes_meanwhile_is_an_error(tmp_path):
    path = tmp_path / "list"
    path.write_text("B/s/a\nB/s/b\n")
    listed = ListFile(path, speaker_by_component(2), 0)
    path.write_text("B/s/a\nB/s/c\nB/s/d\n")
    with pytest.raises(InputError, match=r"list: it changed while it was read; run again"):
        listed.select(range(2))


@pytest.mark.parametrize("segment", [1, 7, 1000])
def test_tasks_are_the_same_in_segments_of_any_size(tmp_path, monkeypatch, segment):
    utterances = [Utterance(f"B/s{n % 3}/{n}", f"s{n % 3}") for n in range(60)]
    for utterance in utterances:
        path = tmp_path / f"mcp/{utterance.key}.mcp"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_fmatrix(path, np.full((4, 2), int(utterance.key[5:]), np.float32))
    (tmp_path / "list").write_text("".join(f"{utterance.key}\n" for utterance in utterances))
    source, layout = FmatrixSource(tmp_path / "mcp", "mcp"), Layout(shard_bytes=160)
    reference = make_plan(utterances, ["s0", "s1", "s2"], source, layout)
    monkeypatch.setattr(plan_module, "SEGMENT_UTTERANCES", segment)
    listed = make_plan(ListFile(tmp_path / "list", speaker_by_component(2), 0), ["s0", "s1", "s2"], source, layout)
    assert listed.job == reference.job
    shards = [0, 1, 2, 3, 5, 8, 9, 10, 11]
    assert list(listed.tasks(shards)) == [reference.task(shard) for shard in shards]
    convert(reference, source, tmp_path / "memory")
    convert(listed, source, tmp_path / "file")
    for path in (tmp_path / "memory").iterdir():
        assert (tmp_path / "file" / path.name).read_bytes() == path.read_bytes()


def test_keys_that_are_no_paths_may_have_any_components(tmp_path):
    path = tmp_path / "list"
    path.write_text("a/s/./x\na/s//x\n/a/s/x\n")
    listed = ListFile(path, speaker_by_component(2), 0, are_paths=False)
    assert sorted(one.key for one in listed.select(range(3))) == ["/a/s/x", "a/s/./x", "a/s//x"]
    assert [one.key for one in read_list(path, are_paths=False)] == ["a/s/./x", "a/s//x", "/a/s/x"]


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "/dev/null"])
def test_a_list_that_is_no_file_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    message = "can't read the utterance list: not a regular file.*: write it to a file, and give that"
    for reader in (lambda path: ListFile(path, speaker_by_component(2), 0), read_list):
        with pytest.raises(InputError, match=message):
            reader(tmp_path / name)


def test_memory_does_not_grow_with_the_list(tmp_path, monkeypatch):
    path = tmp_path / "list"
    with path.open("w") as file:
        file.writelines(f"BLOCK00/SPK{n % 50:03d}/UTT{n:012d}\n" for n in range(200_000))
    monkeypatch.setattr("shards.lines.CHUNK_BYTES", 2**16)
    monkeypatch.setattr(listing_module, "CHUNK_BYTES", 2**16)
    tracemalloc.start()
    try:
        listed = ListFile(path, speaker_by_component(2), 0)
        assert len(listed.select(range(100_000, 101_000))) == 1000
        assert tracemalloc.get_traced_memory()[1] < 5e6  # the list has 6 MB, and 40 MB as objects
    finally:
        tracemalloc.stop()
