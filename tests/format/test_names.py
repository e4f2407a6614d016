"""Names of utterances and speakers can't forge lines: neither those of lists and tables, nor those of a dataset."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash
from conftest import Corpus, make_corpus

from shards import FmatrixSource, Layout, ShardDataset, Utterance, make_plan, read_list
from shards.corpus import read_speakers
from shards.errors import InputError
from shards.layout import BLOCKS_NAME, MANIFEST_NAME, UTTERANCES_NAME, block_json, key_hash
from shards.listing import ListFile
from shards.manifest import Manifest, TableInfo
from shards.members import table_header
from shards.speakers import speaker_by_component, speaker_by_tsv, speaker_by_utt2spk

pytestmark = pytest.mark.fast

FORGED = ["a\tb", "a\x1b[2Jb", "a\x85b", "a\u2028b", "a\u202eb", "a\x00b", "a\x7fb"]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "c", [7, 9, 4, 6])


@pytest.mark.parametrize("name", FORGED)
def test_no_list_names_such_an_utterance_or_speaker(name: str, tmp_path: Path) -> None:
    path = tmp_path / "list"
    for line in (f"X/spk/{name}", f"X/{name}/utt"):
        path.write_text(f"X/spk/ü\n{line}\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"list:2: utterance .* has the character .*, which no name may have"):
            read_list(path)
        with pytest.raises(InputError, match=r"list:2: utterance .* has the character"):
            ListFile(path, speaker_by_component(), 0)


def test_white_space_around_a_line_and_letters_of_all_scripts_are_no_such_characters(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("\tX/spk/a \v\nX/çé/日本 語\u200d\n", encoding="utf-8")
    expected = [Utterance("X/spk/a", "spk"), Utterance("X/çé/日本 語\u200d", "çé")]
    assert read_list(path) == expected
    assert sorted(ListFile(path, speaker_by_component(), 0).select(range(2)), key=lambda one: one.key) == expected


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\u202eb"])
def test_no_table_and_no_map_names_such_a_speaker(name: str, tmp_path: Path) -> None:
    path = tmp_path / "table"
    for read, text in (
        (speaker_by_tsv, f"utt\t{name}\n"),
        (speaker_by_utt2spk, f"utt {name}\n"),
        (read_speakers, json.dumps({name: 0})),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"table.*speaker .* has the character"):
            read(path)


def test_the_python_interface_shards_no_such_name(corpus: Corpus) -> None:
    source = FmatrixSource(corpus.folder / "mcp", "mcp")
    with pytest.raises(InputError, match=r"speaker 'a.nb' has the character"):
        make_plan([Utterance("X/spk0/utt000", "a\nb")], ["a\nb"], source, Layout())


def reseal(folder: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Write the changed manifest with a fingerprint of its own, and the digests of the tables that lie there."""
    manifest = Manifest.load(folder)
    tables = {
        name: TableInfo(bytes=len(data), digest=xxhash.xxh3_128_hexdigest(data))
        for name in (BLOCKS_NAME, UTTERANCES_NAME)
        for data in [(folder / name).read_bytes()]
    }
    (folder / MANIFEST_NAME).write_bytes(change(dataclasses.replace(manifest, tables=tables)).to_bytes())


def test_no_dataset_with_a_valid_fingerprint_has_such_a_speaker(corpus: Corpus) -> None:
    folder = corpus.folder / "shards"
    reseal(folder, lambda manifest: dataclasses.replace(manifest, speakers=["spk0", "a\nb"]))
    with pytest.raises(InputError, match=r"the speaker 'a\\nb' has a character that no name may have"):
        ShardDataset(folder)


def with_keys(folder: Path, keys: list[object], hashed: list[str] | None = None) -> ShardDataset:
    """The one-block dataset with other keys in its block, sealed again; the table has the hashes of `hashed`."""
    data = ShardDataset(folder)
    row = data.blocks[0].copy()
    arrays = data.read_block(0)
    info = json.loads(bytes(arrays.json)) | {"keys": keys}
    text = block_json(info) if all(isinstance(key, str) for key in keys) else json.dumps(info).encode()
    path = folder / data.manifest.shards[0].name
    tar, old = path.read_bytes(), bytes(arrays.json)
    at = tar.index(old)
    header = bytearray(tar[at - 512 : at])
    header[124:136] = b"%011o\0" % len(text)
    start, end = int(row["payload_offset"]) - 512, int(row["payload_offset"]) - 512 + int(row["extent_bytes"])
    room = end - at
    assert len(text) <= room
    tar = tar[: at - 512] + bytes(header) + text.ljust(room, b"\0") + tar[end:]
    path.write_bytes(tar)
    row["checksum"] = xxhash.xxh3_64_intdigest(tar[start:end])
    utterances = data.utterances.copy()
    if hashed is not None:
        utterances["key_hash"] = [key_hash(key) for key in hashed]
    for name, table in ((BLOCKS_NAME, np.array([row])), (UTTERANCES_NAME, utterances)):
        (folder / name).write_bytes(table_header(table.dtype, table.shape) + table.tobytes())
    reseal(folder, lambda manifest: manifest)
    return ShardDataset(folder)


def test_keys_of_a_block_are_those_of_the_table_and_names(corpus: Corpus) -> None:
    folder = corpus.folder / "shards"
    data = ShardDataset(folder)
    right = data.keys(0, data.read_block(0))
    assert right == json.loads(bytes(data.read_block(0).json))["keys"]
    forged = [right[0], f"{right[1]}\n{right[2]}\tspk1", *right[2:]]
    for keys, hashed, message in (
        ([*right[:3], right[0]], None, "its 4 keys are not those of the table"),
        (right[:3], None, "its 3 keys are not those of the table"),
        ([*right[:3], 5], None, r"keys\[3\] is 5, expected text"),
        ([*right[:3], None], None, r"keys\[3\] is None, expected text"),
        (forged, forged, "has a character that no name may have"),
    ):
        data = with_keys(folder, list(keys), hashed)
        with pytest.raises(InputError, match=f"block 0: its utterances' keys are damaged: .*{message}"):
            data.keys(0, data.read_block(0))
