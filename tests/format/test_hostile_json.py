"""The JSON of a dataset and of a job, changed in all ways that one thinks of: each command ends with one line."""

import contextlib
import io
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import make_corpus
from test_records import npy_bytes, rewritten

from shards.conversion.record import record_name
from shards.layout import JOB_NAME, MANIFEST_NAME, shard_name
from shards.members import TAR_RECORD, padded, tar_header
from spkid_dist.commands import cli

NESTED = 100_000
DELETED = object()
# What may stand in the place of any value.
OTHERS = {
    "null": None,
    "a bool": True,
    "a number": 7,
    "a negative number": -1,
    "a fraction": 0.5,
    "a large number": 2**63,
    "a number of 5,000 digits": "@digits@",
    "a number beyond floats": "@1e999@",
    "NaN": "@NaN@",
    "text": "x",
    "half a character": "@half@",
    "a NUL": "\0",
    "an empty list": [],
    "an empty object": {},
    "a list of lists": [[]],
    "nested lists": "@nested@",
    "nothing": DELETED,
}
SPELLED = {
    '"@digits@"': "9" * 5000,
    '"@1e999@"': "1e999",
    '"@NaN@"': "NaN",
    '"@half@"': r'"\ud800"',
    '"@nested@"': "[" * NESTED + "]" * NESTED,
}
# Whole texts in the place of an object.
TEXTS = {
    "empty": lambda _: b"",
    "no JSON": lambda _: b"{",
    "cut": lambda text: text[: len(text) // 2],
    "a list": lambda text: b"[" + text + b"]",
    "null": lambda _: b"null",
    "nested objects": lambda _: b'{"a":' * NESTED,
    "not UTF-8": lambda text: text.replace(b"{", b'{"\xff": 1, ', 1),
    "a name more": lambda text: text.replace(b"{", b'{"more": 1, ', 1),
    "a name twice": lambda text: text.rstrip().rstrip(b"}") + b", " + text.lstrip().lstrip(b"{"),
    "two values": lambda text: text + b" {}",
    "NULs": lambda _: b"\0" * 100,
    "UTF-16": lambda text: text.decode().encode("utf-16"),
}


def spelled(value):
    """The value as JSON text, UTF-8, with what JSON of Python's can't say."""
    text = json.dumps(value)
    for mark, spelling in SPELLED.items():
        text = text.replace(mark, spelling)
    return text.encode()


def places(value, most=3):
    """The paths to all values in a value, down to a depth; of lists the first item."""
    if most and isinstance(value, dict):
        for name, item in value.items():
            yield (name,)
            yield from ((name, *rest) for rest in places(item, most - 1))
    if most and isinstance(value, list) and value:
        yield (0,)
        yield from ((0, *rest) for rest in places(value[0], most - 1))


def replaced(value, path, new):
    """A copy of `value` with another value at the path."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    if new is DELETED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return copy


def mutations(text, allowed=()):
    """(what was done, the changed bytes) of a JSON text; at the paths of `allowed` any number may stand."""
    value = json.loads(text)
    for what, change in TEXTS.items():
        yield what, change(text)
    for path in places(value):
        old = value
        for name in path:
            old = old[name]
        for what, new in OTHERS.items():
            is_allowed = path in allowed and type(new) in (int, float)
            is_same = type(new) is type(old) and new == old
            if not is_allowed and not is_same:
                yield f"{'.'.join(map(str, path))}: {what}", spelled(replaced(value, path, new))


def run(*words):
    """Run a command in this process: its exit code, and what it printed and said."""
    printed, said = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["spkid", *map(str, words)]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = before
    return ended.value.code, printed.getvalue(), said.getvalue()


def check(what, *words):
    """A command that must fail with one line."""
    code, printed, said = run(*words)
    assert code == 1, (what, code, printed, said)
    assert "Traceback" not in printed + said, (what, printed, said)
    assert said.count("\n") == 1, (what, said)
    assert said.startswith("spkid: error: "), (what, said)
    assert len(said) < 2000, (what, said[:3000])


@pytest.fixture
def some(pytestconfig):
    """Choose some of the mutations, evenly, and those of whole texts; all of them in the long tests."""

    def choose(found, count):
        found = list(found)
        assert len(found) > count
        rest = found[len(TEXTS) :]
        step = 1 if pytestconfig.getoption("--long") else 1 + len(rest) // count
        return [*found[: len(TEXTS)], *rest[::step]]

    return choose


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(tmp_path / "c", [3, 4, 5, 6], block_frames=4).folder


def shard_words(corpus, out):
    paths = ("--db_path", corpus / "mcp", "--list", corpus / "cfg/all.train", "--spk2idx", corpus / "cfg/spk2idx.json")
    return ("shard", *paths, "--out", out, "--block_frames", 4, "--shard_bytes", 100)


@pytest.fixture
def job(corpus, tmp_path):
    """The folder of a job of which a part of the shards is done, and the command that goes on with it."""
    out = tmp_path / "job"
    words = shard_words(corpus, out)
    assert run(*words, "--task", "0/2")[0] == 0
    return out, words


# A job names the file that was read first for messages alone, and a path may have bytes that are no UTF-8.
HARMLESS = {f"{name}: {what}" for name in ("first_read", "begun_by") for what in ("text", "a NUL", "half a character")}


def test_a_changed_job_ends_merging_and_sharding_with_one_line(job, some):
    out, words = job
    text = (out / JOB_NAME).read_bytes()
    for what, data in some(mutations(text), 100):
        (out / JOB_NAME).write_bytes(data)
        check(what, "merge", out)  # also where the job is sound: not all shards are done
    for what, data in some(mutations(text), 40):
        (out / JOB_NAME).write_bytes(data)
        if what in HARMLESS:
            assert run(*words, "--task", "0/2")[0] == 0
        else:
            check(what, *words, "--task", "0/2")
    (out / JOB_NAME).write_bytes(text)
    assert run(*words)[0] == 0


def finished_job(corpus, out):
    """A job of which all shards are done, and which is not merged."""
    words = shard_words(corpus, out)
    for task in range(2):
        assert run(*words, "--task", f"{task}/2")[0] == 0
    return words


def head_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return np.load(io.BytesIO(archive.read("head.npy"))).tobytes()


def with_head(data, text):
    return rewritten(data, head=npy_bytes(np.frombuffer(text, np.uint8)))


def test_a_changed_record_ends_merging_with_one_line(corpus, tmp_path, some):
    out = tmp_path / "job"
    finished_job(corpus, out)
    path = out / record_name(0)
    sound = path.read_bytes()
    for what, data in some(mutations(head_of(sound), allowed={("rounding_error",)}), 100):
        path.write_bytes(with_head(sound, data))
        check(what, "merge", out)
        assert not (out / MANIFEST_NAME).exists()
    path.write_bytes(sound)
    assert run("merge", out)[0] == 0


def table_mutations(data):
    """A record with one value of its tables changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        tables = {
            name: np.load(io.BytesIO(archive.read(f"{name}.npy")))
            for name in ("blocks", "utterances", "mean", "squares")
        }
    for name in ("blocks", "utterances"):
        for field in tables[name].dtype.names:
            if (name, field) in (("blocks", "checksum"), ("utterances", "key_hash")):
                continue  # of what is in the tar alone
            for value in (-1, 0, 2**31 - 1):
                changed = tables[name].copy()
                changed[field][-1] = value
                if (changed != tables[name]).any():
                    yield f"{name}.{field} = {value}", {name: npy_bytes(changed)}
        yield f"{name} without a row", {name: npy_bytes(tables[name][:-1])}
        yield f"{name} with a row more", {name: npy_bytes(np.append(tables[name], tables[name][-1:]))}
    for value in (np.nan, np.inf):
        yield f"mean {value}", {"mean": npy_bytes(np.full_like(tables["mean"], value))}
    yield "squares below 0", {"squares": npy_bytes(tables["squares"] - 1e9)}


def test_a_record_whose_tables_contradict_each_other_is_not_merged(corpus, tmp_path):
    out = tmp_path / "job"
    finished_job(corpus, out)
    path = out / record_name(0)
    sound = path.read_bytes()
    for what, members in table_mutations(sound):
        path.write_bytes(rewritten(sound, **members))
        if what == "utterances.speaker = 0":
            continue  # another speaker of the job: the record is believed, and the tar tells when it is verified
        check(what, "merge", out)
        assert not (out / MANIFEST_NAME).exists()


@pytest.fixture
def dataset(corpus):
    return corpus / "shards"


def block_json(data, block):
    """Where a block's JSON lies in the bytes of a shard: the start of its tar header, and its size."""
    start = data.index(f"000000-{block:06d}.json".encode())
    return start, int(data[start + 124 : start + 135], 8)


def with_json(data, block, text):
    """The bytes of a shard with another JSON in a block."""
    start, size = block_json(data, block)
    name = data[start : data.index(b"\0", start)].decode()
    payload = text + bytes(padded(len(text)) - len(text))
    return data[:start] + tar_header(name, len(text)) + payload + data[start + TAR_RECORD + padded(size) :]


@pytest.mark.parametrize("block", [0, 1])
def test_a_changed_block_ends_index_and_is_found_by_verify(dataset, tmp_path, block, some):
    sound = (dataset / shard_name(0)).read_bytes()
    start, size = block_json(sound, block)
    text = sound[start + TAR_RECORD : start + TAR_RECORD + size]
    bare = tmp_path / "bare"
    bare.mkdir()
    for what, data in some(mutations(text), 50):
        changed = with_json(sound, block, data)
        (bare / shard_name(0)).write_bytes(changed)
        check(what, "index", bare)
        (dataset / shard_name(0)).write_bytes(changed)
        code, printed, said = run("verify", dataset)
        assert code == 1, what
        assert "Traceback" not in printed + said, (what, printed)
        assert shard_name(0) in printed + said
    (bare / shard_name(0)).write_bytes(sound)
    assert run("index", bare)[0] == 0


def test_a_job_of_more_shards_than_there_can_be_is_answered_at_once(corpus, tmp_path):
    out = tmp_path / "job"
    finished_job(corpus, out)
    value = json.loads((out / JOB_NAME).read_bytes())
    for first in (0, 1):
        huge = {"num_shards": 2**62, "num_utterances": 2**62 + 5}
        huge |= {"first_shard": 2**62, "part": 1, "base": "x" * 32} if first else {}
        (out / JOB_NAME).write_bytes(spelled(value | huge))
        code, _, said = run("merge", out)
        assert code == 1
        assert said.startswith("spkid: error: ")
        assert first or " of 4611686018427387904 shards are not done: shard-00000" in said
    shutil.rmtree(out)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
@pytest.mark.parametrize("name", [shard_name(0), MANIFEST_NAME])
def test_a_file_of_a_dataset_that_is_no_file_is_named_and_not_waited_for(dataset, name, make):
    (dataset / name).unlink()
    make(dataset / name)
    for words in (("verify", dataset), ("verify", dataset, "--quick"), ("index", dataset)):
        if words[0] == "index" and name == MANIFEST_NAME:
            continue  # which is made anew
        code, printed, said = run(*words)
        assert code == 1
        assert f"{name}: can't " in printed + said
        assert "not a regular file" in printed + said
