"""Manifests and tables that lie are refused before a byte outside the dataset is read."""

from dataclasses import replace

import numpy as np
import pytest
import xxhash
from http_store import serve
from test_store import QUICK, copy, corpus, options  # noqa: F401 - fixtures

from shards import InputError, ShardDataset
from shards.layout import BLOCKS_NAME, UTTERANCES_NAME
from shards.manifest import Manifest
from shards.members import table_header

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
    monkeypatch.setattr("shards.stores.store.CHECKED_TABLE_BYTES", 0)  # as if the tables were too large to look at
    with pytest.raises(InputError, match=rf"{BLOCKS_NAME}: damaged: row 3 is of bytes"):
        ShardDataset(copy).read_block(3)


def test_a_manifest_of_nothing_is_refused(copy, corpus):
    tables = {BLOCKS_NAME: corpus.dataset.blocks[:0], UTTERANCES_NAME: corpus.dataset.utterances[:0]}
    lie(copy, tables, shards=[], num_utterances=0, num_frames=0)
    with pytest.raises(InputError, match=r"manifest\.json: damaged: 0 shards, but its jobs say \[4\]"):
        ShardDataset(f"file://{copy}")
