"""Manifests and tables that lie are refused before a byte outside the dataset is read."""

import os
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from http_store import serve
from test_store import QUICK, copy, corpus, options  # noqa: F401 - fixtures

from shards import InputError, ShardDataset, Utterance
from shards.conversion.appending import check_absent
from shards.layout import BLOCKS_NAME, UTTERANCES_NAME
from shards.manifest import Manifest
from shards.members import table_header
from shards.tables import FileTable
from spkid_dist.dataset import WindowDataset
from spkid_dist.streaming.selection import Selection
from spkid_dist.streaming.windows import DatasetWindows

pytestmark = pytest.mark.fast


def lie(folder, changed_tables, **changes):
    """Write tables and a manifest that fit each other and are not the truth."""
    manifest = Manifest.load(folder)
    tables = dict(manifest.tables)
    for name, table in changed_tables.items():
        data = table_header(table.dtype, table.shape) + table.tobytes()
        (folder / name).write_bytes(data)
        tables[name] = replace(tables[name], bytes=len(data), digest=xxhash.xxh3_128_hexdigest(data))
    (folder / "manifest.json").write_bytes(replace(manifest, tables=tables, **changes).to_bytes())


@pytest.mark.parametrize("name", ["../shard-000000.tar", "/etc/passwd", "pipe:reboot {name}", "http://elsewhere/x.tar"])
def test_a_manifest_names_nothing_outside_its_folder(copy, name):
    shards = Manifest.load(copy).shards
    lie(copy, {}, shards=[replace(shards[0], name=name), *shards[1:]])
    with serve(copy) as store, pytest.raises(InputError, match=r"shard 0 is named .*, expected 'shard-000000\.tar'"):
        ShardDataset(store.url, options(QUICK))
    assert {name for name, _ in store.requests} == {"manifest.json"}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("frames", 2**30),
        ("utterances", 2**30),
        ("utterances", -1),
        ("first_utterance", 2**40),
        ("shard", 7),
        ("shard", -1),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_a_block_table_that_lies_is_refused(copy, corpus, column, value, remote):
    blocks = np.array(corpus.dataset.blocks)
    blocks[column][3] = value
    lie(copy, {BLOCKS_NAME: blocks})
    place = f"file://{copy}" if remote else copy
    with pytest.raises(InputError, match=rf"{BLOCKS_NAME}: damaged: its|{BLOCKS_NAME}: damaged: it has"):
        ShardDataset(place, options())


@pytest.mark.parametrize(("column", "value"), [("speaker", 2), ("speaker", -1), ("frames", 0), ("frames", 2**30)])
def test_an_utterance_table_that_lies_is_refused(copy, corpus, column, value):
    utterances = np.array(corpus.dataset.utterances)
    utterances[column][3] = value
    lie(copy, {UTTERANCES_NAME: utterances})
    with pytest.raises(InputError, match=rf"{UTTERANCES_NAME}: damaged: it"):
        ShardDataset(f"file://{copy}", options())


OUTSIDE = [("payload_offset", 0), ("payload_offset", 2**50), ("extent_bytes", -5), ("extent_bytes", 2**63 - 1)]


@pytest.mark.parametrize(("column", "value"), OUTSIDE)
def test_a_block_outside_its_shard_is_never_asked_for(copy, corpus, monkeypatch, column, value):
    blocks = np.array(corpus.dataset.blocks)
    blocks[column][3] = value
    lie(copy, {BLOCKS_NAME: blocks})
    with serve(copy) as store:
        with pytest.raises(InputError, match=rf"{BLOCKS_NAME}: damaged: its blocks do not lie within their shards"):
            ShardDataset(store.url, options())
        assert store.count(".tar") == 0
    monkeypatch.setattr("shards.tables.CHECKED_TABLE_BYTES", 0)  # as if the tables were too large to be read
    data = ShardDataset(copy)
    data.read_block(2)
    with pytest.raises(InputError, match=rf"{BLOCKS_NAME}: damaged: its blocks do not lie within their shards"):
        data.read_block(3)


def test_a_manifest_of_nothing_is_refused(copy, corpus):
    tables = {BLOCKS_NAME: corpus.dataset.blocks[:0], UTTERANCES_NAME: corpus.dataset.utterances[:0]}
    lie(copy, tables, shards=[], num_utterances=0, num_frames=0)
    with pytest.raises(InputError, match=r"manifest\.json: damaged: 0 shards, but its jobs say \[4\]"):
        ShardDataset(f"file://{copy}")


@pytest.fixture(params=[(BLOCKS_NAME, UTTERANCES_NAME), (BLOCKS_NAME,), (UTTERANCES_NAME,)], ids=str)
def in_files(request, monkeypatch, corpus):
    """As if both tables, or one of them, were too large to be held in memory."""
    sizes = {corpus.dataset.manifest.tables[name].bytes for name in request.param}
    monkeypatch.setattr("shards.stores.store.stays_in_file", sizes.__contains__)
    return request.param


def batches(folder, **options):
    windows = {"in_frames": 5, "batch_size": 11, "num_streams": 3, "shuffle_windows": 48, "rank": 0, "world_size": 1}
    with closing(WindowDataset(folder, **windows | options)) as data:
        return [(x.numpy().copy(), y.numpy().copy()) for x, y in data]


@pytest.mark.parametrize("edge", ["valid", "zero"])
@pytest.mark.parametrize("balance", [False, True])
def test_tables_that_stay_in_their_files_give_the_same_batches(copy, in_files, edge, balance):
    options = {"edge": edge, "selection": Selection(balance=balance)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shards.stores.store.stays_in_file", lambda _: False)
        expected = batches(copy, **options)
    data = ShardDataset(copy)
    assert isinstance(data.blocks, FileTable) == (BLOCKS_NAME in in_files)
    assert isinstance(data.utterances, FileTable) == (UTTERANCES_NAME in in_files)
    found = batches(copy, **options)
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_a_table_in_its_file_is_read_as_an_array_is(copy, corpus, monkeypatch):
    monkeypatch.setattr("shards.tables.CHECKED_TABLE_BYTES", 0)
    data, expected = ShardDataset(copy), corpus.dataset.utterances
    table = data.utterances
    assert len(table) == len(expected)
    np.testing.assert_array_equal(table[3:9], expected[3:9])
    np.testing.assert_array_equal(table[5:2], expected[5:2])
    np.testing.assert_array_equal(table[-4:], expected[-4:])
    np.testing.assert_array_equal(table["speaker"], expected["speaker"])
    assert table[-1] == expected[-1]
    with pytest.raises(IndexError):
        table[len(table)]
    rows = np.array([0, 5, len(table) - 1])
    np.testing.assert_array_equal(data.blocks_of(rows), expected["block"][rows])


LIES = [
    (BLOCKS_NAME, "first_utterance", 2**40),
    (BLOCKS_NAME, "first_utterance", -(2**40)),
    (BLOCKS_NAME, "utterances", 2**31 - 1),
    (BLOCKS_NAME, "frames", 2**31 - 1),
    (UTTERANCES_NAME, "frames", 2**31 - 1),
    (UTTERANCES_NAME, "frames", -5),
    (UTTERANCES_NAME, "speaker", 2**31 - 1),
    (UTTERANCES_NAME, "speaker", -1),
    (UTTERANCES_NAME, "block", 2**31 - 1),
]


@pytest.mark.usefixtures("in_files")
@pytest.mark.parametrize(("name", "column", "value"), LIES)
def test_rows_of_tables_that_are_not_checked_as_a_whole_are_checked_when_they_are_used(
    copy, corpus, name, column, value
):
    table = np.array({BLOCKS_NAME: corpus.dataset.blocks, UTTERANCES_NAME: corpus.dataset.utterances}[name])
    table[column][3] = value
    lie(copy, {name: table})
    for selection in (Selection(), Selection(balance=True)):
        with pytest.raises(InputError, match=rf"{name}: damaged: it"):
            DatasetWindows(ShardDataset(copy), 5, "valid", selection)


@pytest.mark.usefixtures("in_files")
@pytest.mark.parametrize(("name", "column", "value"), LIES)
def test_a_table_that_is_rewritten_in_place_is_an_error_not_a_crash(copy, corpus, name, column, value):
    table = np.array({BLOCKS_NAME: corpus.dataset.blocks, UTTERANCES_NAME: corpus.dataset.utterances}[name])
    data = WindowDataset(copy, in_frames=5, rank=0, world_size=1)
    table[column] = value
    with (copy / name).open("r+b") as file:
        file.write(table_header(table.dtype, table.shape) + table.tobytes())
    if isinstance({BLOCKS_NAME: data.data.blocks, UTTERANCES_NAME: data.data.utterances}[name], FileTable):
        with closing(data), pytest.raises(InputError, match=rf"{name}: damaged: it"):
            list(data)
    else:  # it is in memory
        with closing(data):
            assert sum(len(y) for _, y in data) == data.num_windows


@pytest.mark.usefixtures("in_files")
def test_tables_that_an_append_removes_stay_readable_for_who_has_them_open(copy, monkeypatch):
    monkeypatch.setattr("shards.stores.openfiles.MOST_OPEN", 1)
    data = WindowDataset(copy, in_frames=5, rank=0, world_size=1)
    (copy / BLOCKS_NAME).unlink()
    (copy / UTTERANCES_NAME).unlink()
    with closing(data):
        assert sum(len(y) for _, y in data) == data.num_windows


def test_a_table_that_is_truncated_is_an_error_not_a_crash(copy, monkeypatch):
    monkeypatch.setattr("shards.tables.CHECKED_TABLE_BYTES", 0)
    data = WindowDataset(copy, in_frames=5, rank=0, world_size=1)
    with (copy / UTTERANCES_NAME).open("r+b") as file:
        file.truncate(300)
    with closing(data), pytest.raises(InputError, match=rf"{UTTERANCES_NAME}: truncated since it was opened"):
        list(data)


@pytest.mark.usefixtures("in_files")
def test_appending_finds_utterances_in_tables_in_files(copy, corpus):
    key = next(iter(corpus.frames))
    with pytest.raises(InputError, match=rf"has utterance '{key}' already, in shard-00000"):
        check_absent(ShardDataset(copy), [Utterance("X/spk0/new", "spk0"), Utterance(key, "spk0")])


def test_labels_beyond_the_speakers_are_refused_in_blocks_too(copy, corpus):
    """Table and block agree on what can't be."""
    info = corpus.dataset.blocks[0]
    utterances, blocks = np.array(corpus.dataset.utterances), np.array(corpus.dataset.blocks)
    arrays = corpus.dataset.read_block(0)
    path = copy / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    at = data.index(arrays.labels.tobytes(), int(info["payload_offset"]) + arrays.frames.nbytes + arrays.lengths.nbytes)
    data[at : at + 4] = np.int32(7).tobytes()
    path.write_bytes(data)
    start = int(info["payload_offset"]) - 512
    blocks["checksum"][0] = xxhash.xxh3_64_intdigest(bytes(data[start : start + int(info["extent_bytes"])]))
    utterances["speaker"][0] = 7
    lie(copy, {UTTERANCES_NAME: utterances, BLOCKS_NAME: blocks})
    with pytest.raises(InputError, match=rf"{UTTERANCES_NAME}: damaged: it has speakers beyond the manifest's 2"):
        ShardDataset(copy)


MANIFEST_LIES = {
    "a speaker twice": ({"speakers": ["spk0", "spk0"]}, "a speaker stands twice"),
    "a speaker without a name": (
        {"speakers": ["spk0", ""]},
        "a speaker stands twice among its speakers, or has no name",
    ),
    "a negative deviation": ({"std": [1.0, -1.0, 1.0]}, "a deviation is negative"),
    "a mean beyond float32": ({"mean": [1.0, 1e39, 1.0]}, "a mean or a deviation is beyond float32"),
    "no features": ({"num_features": 0, "mean": [], "std": []}, "0 features, but 0 means"),
    "another dtype": ({"dtype": "object"}, "dtype 'object' is not one of"),
    "a shard without blocks": ({"blocks": 0}, "shard 0 can't have 0 blocks"),
    "more utterances than frames": ({"utterances": 2**40}, "shard 0 can't have"),
    "more frames than bytes": ({"frames": 2**62}, "shard 0 can't have"),
    "more bytes than there are": ({"bytes": 2**63 - 1}, "more bytes together than there can be"),
    "a block of no frames": ({"block_frames": 0}, "an option of a job can't be: --block_frames 0"),
    "a source of no kind": ({"source": {}}, 'source has no "kind"'),
    "a source of a kind that is no name": ({"source": {"kind": [1]}}, 'source has no "kind"'),
    "features that are none": ({"source": {"kind": "audio", "features": [1]}}, r"source\.features is \[1\], expected"),
    "an extension that is none": ({"source": {"kind": "npy", "ext": {}}}, r"source\.ext is \{\}, expected text"),
    "a rule that is none": ({"source": {"kind": "npy", "speaker_rule": 1}}, r"source\.speaker_rule is 1, expected"),
}


@pytest.mark.parametrize("name", MANIFEST_LIES)
def test_a_manifest_that_was_made_wrong_is_refused(copy, name):
    changes, message = MANIFEST_LIES[name]
    manifest = Manifest.load(copy)
    shards, jobs = list(manifest.shards), list(manifest.jobs)
    if changes.keys() <= {"bytes", "blocks", "utterances", "frames"}:
        changes = {"shards": [replace(shards[0], **changes), *shards[1:]]}
    elif changes.keys() <= {"source", "block_frames"}:
        changes = {"jobs": [replace(jobs[0], **changes), *jobs[1:]]}
    lie(copy, {}, **changes)
    with pytest.raises(InputError, match=rf"manifest\.json: damaged: .*{message}"):
        ShardDataset(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 10_000, "nested deeper"),
        (b'{"format": ' + b"9" * 5000 + b"}", "not JSON|digits"),
        (b'{"format": "spkid-shards", "format": 1}', "stands twice"),
        (b'{"format": NaN}', "no number of JSON"),
        (b"\xff\xfe", "can't decode"),
        (b"", "not JSON"),
    ],
)
def test_a_manifest_of_malformed_json_is_refused_in_one_line(copy, text, message):
    (copy / "manifest.json").write_bytes(text)
    with pytest.raises(InputError, match=rf"manifest\.json: damaged: .*({message})"):
        ShardDataset(copy)


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_a_manifest_that_is_no_file_is_refused(copy, kind):
    (copy / "manifest.json").unlink()
    if kind == "pipe":
        os.mkfifo(copy / "manifest.json")
    else:
        (copy / "manifest.json").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"manifest\.json: can't read the manifest: not a regular file"):
        ShardDataset(copy)
