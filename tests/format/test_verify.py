"""Verification finds every change of a dataset's bytes, and says where it is."""

import contextlib
import json
import re
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xxhash
from conftest import random_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards import ShardDataset, SpkidError
from shards.layout import BLOCKS_NAME, MANIFEST_NAME, UTTERANCES_NAME
from shards.manifest import parse_manifest
from shards.verification.verify import verify_dataset
from spkid_dist.commands.check import verify
from spkid_dist.config import VerifyConfig

pytestmark = pytest.mark.fast

fuzz = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A dataset of several shards of several blocks; not to be changed."""
    return random_dataset(tmp_path_factory.mktemp("verify"))


@pytest.fixture
def dataset(original, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(original, tmp_path / "dataset")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def places(folder: Path, name: str) -> list[tuple[int, tuple[int | None, str, str]]]:
    """(end, (block, member, part)) of all stretches of a shard, as the standard library reads it."""
    blocks_before = sum(
        info["blocks"] for info in json.loads((folder / MANIFEST_NAME).read_text())["shards"] if info["name"] < name
    )
    stretches: list[tuple[int, tuple[int | None, str, str]]] = []
    with tarfile.open(folder / name) as tar:
        for info in tar:
            number, member = re.fullmatch(r"\d+-(\d+)\.(\w+)(?:\.npy)?", info.name).groups()
            block = blocks_before + int(number)
            stretches.append((info.offset_data, (block, member, "tar header")))
            if member != "json":
                stretches.append((info.offset_data + 128, (block, member, "npy header")))
            stretches.append((info.offset_data + info.size, (block, member, "payload")))
            stretches.append((info.offset_data + -(-info.size // 512) * 512, (block, member, "padding")))
    stretches.append(((folder / name).stat().st_size, (None, "end of archive", "")))
    return stretches


def place(folder: Path, name: str, offset: int) -> tuple[int | None, str, str]:
    return next(where for end, where in places(folder, name) if offset < end)


def place_of(defect) -> tuple[int | None, str, str]:
    return defect.block, defect.member, defect.part


def put(path: Path, data: bytes) -> None:
    """Write a file in place: some file systems flush one that is truncated and written again, which takes long."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def flip(path: Path, offset: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    put(path, data)


def test_whole_dataset_has_no_defects(original):
    report = verify_dataset(original, workers=3)
    assert report.defects == []
    assert len(report.manifest.shards) > 3
    assert report.manifest.num_blocks > 2 * len(report.manifest.shards)
    assert verify_dataset(original, quick=True).defects == []


def test_every_single_bit_flip_is_found_where_it_is(dataset, original):
    draw = np.random.default_rng(1)
    files = names(dataset)
    for _ in range(200):
        name = files[draw.integers(len(files))]
        data = (original / name).read_bytes()
        offset = int(draw.integers(len(data)))
        flip(dataset / name, offset, int(draw.integers(8)))
        defects = verify_dataset(dataset).defects
        assert [defect.file for defect in defects] == [name], offset
        if name.endswith(".tar"):
            assert place_of(defects[0]) == place(original, name, offset), offset
        put(dataset / name, data)


def test_a_flip_in_every_stretch_of_a_shard_is_found_where_it_is(dataset, original):
    name, begin, seen = "shard-000001.tar", 0, set()
    data = (original / name).read_bytes()
    for end, where in places(original, name):
        for offset in {begin, (begin + end) // 2, end - 1} if end > begin else ():
            flip(dataset / name, offset, offset % 8)
            assert [place_of(defect) for defect in verify_dataset(dataset).defects] == [where], offset
            put(dataset / name, data)
            seen.add(where[1:])
        begin = end
    assert len(seen) == 3 * 4 + 3 + 1  # three arrays of four parts, JSON of three, the end


def test_a_flip_in_every_byte_of_the_manifest_is_found(dataset, original):
    data = (original / MANIFEST_NAME).read_bytes()
    for offset in range(len(data)):
        flip(dataset / MANIFEST_NAME, offset, offset % 8)
        assert [defect.file for defect in verify_dataset(dataset, quick=True).defects] == [MANIFEST_NAME], offset
        put(dataset / MANIFEST_NAME, data)


def test_every_truncation_is_found_where_the_file_ends(dataset, original):
    draw = np.random.default_rng(2)
    files = names(dataset)
    cuts = [(name, int(draw.integers((original / name).stat().st_size))) for name in draw.choice(files, 50)]
    cuts += [("shard-000001.tar", end) for end, _ in places(original, "shard-000001.tar")[:-1]]
    cuts += [(name, 0) for name in files]
    for name, size in cuts:
        data = (original / name).read_bytes()
        put(dataset / name, data[:size])
        for quick in (False, True):
            defects = verify_dataset(dataset, quick=quick).defects
            assert [defect.file for defect in defects] == [name], size
            if name.endswith(".tar"):
                block, member, part = place(original, name, size)
                unknown = member == "json" and part != "tar header"
                assert place_of(defects[0]) == (block, member, "payload or padding" if unknown else part), size
        put(dataset / name, data)


def test_all_defects_are_collected(dataset):
    for name, offset in (("shard-000000.tar", 700), ("shard-000000.tar", 3), ("shard-000002.tar", 130)):
        flip(dataset / name, offset, 0)
    (dataset / "shard-000001.tar").unlink()
    (dataset / "shard-000099.tar").write_bytes(b"")
    with (dataset / "shard-000003.tar").open("ab") as file:
        file.write(b"\0")
    found = verify_dataset(dataset, workers=2).defects
    assert [defect.file[6:12] for defect in found] == ["000000", "000001", "000002", "000003", "000099"]
    assert "can't be read: No such file" in found[1].what
    assert "too long: the file has" in found[3].what
    assert "not in the manifest" in found[4].what


def test_defects_of_several_members_of_a_block_are_all_named(dataset, original):
    offsets = {place(original, "shard-000000.tar", end - 1): end - 1 for end, _ in places(original, "shard-000000.tar")}
    unsure = [("frames", "payload"), ("json", "tar header")]  # found by elimination; needed to tell text from padding
    wanted = [where for where in offsets if where[0] == 0 and where[1:] not in unsure]
    for where in wanted:
        flip(dataset / "shard-000000.tar", offsets[where], 1)
    assert [place_of(defect) for defect in verify_dataset(dataset).defects] == wanted


@pytest.mark.parametrize(
    ("old", "new"),
    [('"seed": 0', '"seed":  0'), ('"dtype":', '"extra": 1, "dtype":'), ("\\u00df", "\\u00Df"), ("}\n", "}")],
)
def test_manifest_of_equal_values_but_other_bytes_is_a_defect(dataset, old, new):
    path = dataset / MANIFEST_NAME
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    (defect,) = verify_dataset(dataset).defects
    assert defect.file == MANIFEST_NAME
    assert "not spelled as they were written" in str(defect)


@pytest.mark.parametrize("name", [MANIFEST_NAME, BLOCKS_NAME, UTTERANCES_NAME])
def test_missing_index_file_is_one_defect_with_its_remedy(dataset, name):
    (dataset / name).unlink()
    (defect,) = verify_dataset(dataset).defects
    assert defect.file == name


def test_damaged_table_hides_no_damaged_shard(dataset):
    flip(dataset / BLOCKS_NAME, 500, 0)
    flip(dataset / "shard-000001.tar", 700, 0)
    assert [defect.file for defect in verify_dataset(dataset).defects] == [BLOCKS_NAME, "shard-000001.tar"]


def change_table(folder: Path, name: str, column: str, value: int) -> None:
    """Change the last row of a table, and the manifest so that all digests fit."""
    table = np.load(folder / name)
    table[column][-1] = value
    np.save(folder / name, table)
    change_manifest(folder, ["tables", name, "digest"], xxhash.xxh3_128_hexdigest((folder / name).read_bytes()))


def change_manifest(folder: Path, path: list, value) -> None:
    whole = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps(changed(whole, path, value), indent=1) + "\n")


def changed(whole: dict, path: list, value) -> dict:
    """A manifest's JSON with one value changed, and its fingerprint made to fit."""
    inner = whole
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    canonical = {name: item for name, item in whole.items() if name != "fingerprint"}
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
    return whole | {"fingerprint": xxhash.xxh3_128_hexdigest(text.encode())}


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [(BLOCKS_NAME, name, value) for name in ("payload_offset", "extent_bytes", "shard") for value in (-1, 2**31 - 1)]
    + [(BLOCKS_NAME, name, value) for name in ("frames", "utterances", "first_utterance") for value in (0, -(2**31))]
    + [(UTTERANCES_NAME, name, value) for name in ("frames", "speaker", "block") for value in (-1, 2**31 - 1)],
)
def test_tables_that_do_not_fit_the_shards_are_defects(dataset, table, column, value):
    change_table(dataset, table, column, value)
    (defect,) = verify_dataset(dataset).defects
    assert defect.file == table
    assert "spkid index" in defect.what


def test_wrong_checksum_and_digest_are_defects(dataset):
    change_manifest(dataset, ["shards", 0, "digest"], "0" * 32)
    change_table(dataset, BLOCKS_NAME, "checksum", 1)
    first, last = verify_dataset(dataset).defects
    assert (first.file, place_of(first)) == ("shard-000000.tar", (None, "", ""))
    assert place_of(last)[1:] == ("frames", "payload")


def test_quick_finds_damage_of_the_first_block_and_the_end(dataset, original):
    name = "shard-000001.tar"
    data = (original / name).read_bytes()
    for offset in (0, 513, len(data) - 1):
        flip(dataset / name, offset, 2)
        found = [place_of(defect) for defect in verify_dataset(dataset, quick=True).defects]
        assert found == [place(original, name, offset)]
        put(dataset / name, data)


def test_memory_is_bounded_whatever_the_block(tmp_path):
    folder = random_dataset(tmp_path, num_features=5000, block_frames=1000, shard_bytes=10**9)
    assert ShardDataset(folder).blocks["extent_bytes"].max() > 18e6
    tracemalloc.start()
    try:
        assert verify_dataset(folder).defects == []
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_command_prints_defects_and_a_summary_and_fails(dataset, capsys):
    verify(VerifyConfig(folder=dataset))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["defects"] == 0
    flip(dataset / "shard-000001.tar", 700, 0)
    with pytest.raises(SpkidError, match="defects: 1") as error:
        verify(VerifyConfig(folder=dataset, workers=2))
    line, summary = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{dataset}/shard-000001.tar: block ")
    assert json.loads(summary)["defects"] == 1
    assert error.value.exit_code == 1


def mutated(data: bytes, draw) -> bytes:
    """`data` with a stretch replaced by other bytes."""
    begin = draw(st.integers(0, len(data)))
    end = draw(st.integers(begin, min(begin + draw(st.sampled_from([0, 1, 8, 600])), len(data))))
    return data[:begin] + draw(st.binary(max_size=20)) + data[end:]


@fuzz
@given(st.data())
def test_mutated_datasets_raise_our_errors_only_and_are_found(dataset, original, data):
    name = data.draw(st.sampled_from(names(original)))
    was = (original / name).read_bytes()
    now = mutated(was, data.draw)
    put(dataset / name, now)
    try:
        found = {defect.file for defect in verify_dataset(dataset).defects}
        assert found == ({name} if now != was else set())
        read_all(dataset)
    finally:
        put(dataset / name, was)


def read_all(folder: Path) -> None:
    """Read a dataset as training does; errors of ours are right."""
    with contextlib.suppress(SpkidError):
        opened = ShardDataset(folder)
        for block in range(len(opened.blocks)):
            opened.read_block(block)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)


@fuzz
@given(st.data())
def test_manifest_of_any_values_raises_our_errors_only(dataset, original, data):
    whole = json.loads((original / MANIFEST_NAME).read_text())
    paths = [[name] for name in whole] + [["tables", BLOCKS_NAME], ["tables", BLOCKS_NAME, "bytes"], ["shards", 0]]
    paths += [["shards", 1, name] for name in whole["shards"][1]] + [["speakers", 0], ["mean", 0], ["jobs", 0]]
    paths += [["jobs", 0, name] for name in whole["jobs"][0]] + [["jobs", 0, "source", "kind"]]
    value = changed(whole, data.draw(st.sampled_from(paths)), data.draw(json_values))
    put(dataset / MANIFEST_NAME, json.dumps(value).encode())
    with contextlib.suppress(SpkidError):
        parse_manifest(value, dataset / MANIFEST_NAME)
    assert verify_dataset(dataset).defects
    read_all(dataset)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"format": "spkid-shards"}', "", "\0", "[]", "nan"])
def test_manifest_of_hostile_text_is_one_defect(dataset, text):
    (dataset / MANIFEST_NAME).write_text(text)
    (defect,) = verify_dataset(dataset).defects
    assert defect.file == MANIFEST_NAME


@given(json_values)
def test_parse_manifest_of_any_json_raises_our_errors_only(value):
    with pytest.raises(SpkidError):
        parse_manifest(value, Path("manifest.json"))
