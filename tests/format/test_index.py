"""The index that is rebuilt from the tars is the one that the conversion wrote, or there is an error and no index."""

import json
import re
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import random_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards import InputError, ShardDataset
from shards.conversion.writer import END_OF_TAR
from shards.layout import BLOCKS_NAME, MANIFEST_NAME, UTTERANCES_NAME
from shards.members import MAX_MEMBER_BYTES, npy_header, padded, parse_npy, tar_header
from shards.verification.index import rebuild_index
from shards.verification.verify import verify_dataset
from spkid_dist.commands.check import index
from spkid_dist.config import IndexConfig

pytestmark = pytest.mark.fast

INDEX = (MANIFEST_NAME, BLOCKS_NAME, UTTERANCES_NAME)
fuzz = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_dataset(folder: Path, **options: int) -> Path:
    """A dataset of random frames, far from zero mean, in several shards of several blocks."""
    usual = {"num_utterances": 40, "num_features": 5, "mean": 100, "deviation": 3, "shard_bytes": 6000, "seed": 3}
    return random_dataset(folder, **(usual | options))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A dataset; not to be changed."""
    return write_dataset(tmp_path_factory.mktemp("index"))


@pytest.fixture
def tars(original, tmp_path) -> Path:
    """Its tars alone."""
    shutil.copytree(original, tmp_path / "dataset", ignore=shutil.ignore_patterns(*INDEX))
    return tmp_path / "dataset"


def index_bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in INDEX]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def put(path: Path, data: bytes) -> None:
    """Write a file in place: some file systems flush one that is truncated and written again, which takes long."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def refusal(folder: Path, match: str | None = None) -> str:
    """The error of `rebuild_index`, which leaves the folder as it was."""
    before = names(folder)
    with pytest.raises(InputError, match=match) as error:
        rebuild_index(folder)
    assert names(folder) == before
    return str(error.value)


@pytest.mark.parametrize("workers", [1, 3])
def test_rebuilt_index_equals_the_conversions_byte_for_byte(tars, original, workers):
    manifest = rebuild_index(tars, workers=workers)
    assert len(manifest.shards) > 3
    assert index_bytes(tars) == index_bytes(original)
    assert verify_dataset(tars).defects == []
    ShardDataset(tars).read_block(manifest.num_blocks - 1)


@pytest.mark.parametrize("layout", [{"block_frames": 1}, {"block_frames": 10**6}, {"shard_bytes": 1}, {"seed": 2**62}])
def test_rebuilt_index_equals_for_other_layouts(tmp_path, layout):
    folder = write_dataset(tmp_path, **layout)
    before = index_bytes(folder)
    for name in INDEX:
        (folder / name).unlink()
    rebuild_index(folder)
    assert index_bytes(folder) == before


def test_damaged_index_is_built_again(tars, original):
    (tars / MANIFEST_NAME).write_bytes((original / MANIFEST_NAME).read_bytes()[:-5])
    (tars / BLOCKS_NAME).write_bytes(b"")
    rebuild_index(tars)
    assert index_bytes(tars) == index_bytes(original)


def test_tar_truncated_anywhere_is_an_error_that_names_the_member(tars, original):
    name = "shard-000001.tar"
    data = (original / name).read_bytes()
    with tarfile.open(original / name) as tar:
        for info in tar:
            for size in {info.offset, info.offset + 100, info.offset_data, info.offset_data + info.size - 1}:
                put(tars / name, data[:size])
                # A whole block followed by exactly the end's size looks like one that is damaged.
                assert f"{tars / name}: {info.name}: " in refusal(tars, "truncated: ")
    for missing in (1, 512, 1024):
        put(tars / name, data[:-missing])
        refusal(tars, rf"{name}: .*truncated")
    put(tars / name, data + b"\0")
    refusal(tars, rf"{name}: end of archive: ")


def test_shards_missing_at_the_end_are_noticed(tars):
    (tars / names(tars)[-1]).unlink()
    refusal(tars, "shards are missing at the end")


def test_gap_in_shard_numbers_is_refused(tars):
    (tars / "shard-000001.tar").unlink()
    refusal(tars, r"shard-000001.tar is missing, but there is shard-00000\d.tar")


def test_folder_without_shards_is_refused(tmp_path):
    refusal(tmp_path, "holds no shards")
    with pytest.raises(InputError, match="no such folder"):
        rebuild_index(tmp_path / "none")


@pytest.mark.parametrize(
    ("other", "field"), [({"num_features": 6}, "num_features"), ({"seed": 4}, "job"), ({"block_frames": 99}, "job")]
)
def test_shards_of_two_datasets_in_one_folder_are_refused(tars, tmp_path, other, field):
    strange = write_dataset(tmp_path / "other", **other)
    shutil.copy(strange / "shard-000001.tar", tars / "shard-000001.tar")
    message = refusal(tars, "shards of two datasets")
    assert message.startswith(f"{tars}/shard-000001.tar: {field} is ")


def test_intact_manifest_of_other_shards_is_never_replaced(tars, original):
    for name in INDEX:
        shutil.copy(original / name, tars / name)
    data = bytearray((tars / "shard-000002.tar").read_bytes())
    data[641] ^= 1  # a frame's value: the tar alone can't tell
    (tars / "shard-000002.tar").write_bytes(data)
    refusal(tars, r"intact, but not of these shards \(shard-000002.tar changed\)")
    assert index_bytes(tars) == index_bytes(original)


def test_command_prints_a_summary(tars, original, capsys):
    index(IndexConfig(folder=tars))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["utterances"] == 40
    assert index_bytes(tars) == index_bytes(original)


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    data = b"".join(tar_header(name, len(body)) + body.ljust(padded(len(body)), b"\0") for name, body in members)
    return data + END_OF_TAR


def members_of(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]


def test_member_of_any_size_or_shape_allocates_no_more_than_the_file(tars, original):
    name = "shard-000000.tar"
    members = members_of(original / name)
    huge = tarfile.TarInfo(members[0][0])
    huge.size, huge.mode = 2**60, 0o444
    whole = tar_of(members)
    crafted = [
        tar_header(members[0][0], MAX_MEMBER_BYTES) + whole[512:],
        huge.tobuf(tarfile.GNU_FORMAT) + whole[512:],
    ]
    for shape in ((2**40, 5), (10**18, 10**18), (2**63, 0), (1, 10**9)):
        body = npy_header(np.dtype("<f4"), shape) + members[0][1][128:]
        crafted.append(tar_of([(members[0][0], body), *members[1:]]))
    tracemalloc.start()
    try:
        for data in crafted:
            put(tars / name, data)
            assert members[0][0] in refusal(tars)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def changed_array(body: bytes, row: int, value: int) -> bytes:
    array = np.frombuffer(body, "<i4", offset=128).copy()
    array[row] = value
    return body[:128] + array.tobytes()


def nulls(keys: re.Match[bytes]) -> bytes:
    """As many nulls as keys."""
    return b'"keys": [' + b", ".join([b"null"] * (keys[0].count(b",") + 1)) + b"]"


@pytest.mark.parametrize(
    ("member", "change", "match"),
    [
        (0, lambda body: body[:-4] + np.float32(np.nan).tobytes(), "is not finite"),
        (0, lambda body: body.replace(b"'<f4'", b"'<f8'"), "npy header is not one of float32"),
        (0, lambda body: body.replace(b"'<f4'", b"'|O8'"), "npy header is not one of float32"),
        (1, lambda body: changed_array(body, 0, -1), "do not add up"),
        (2, lambda body: changed_array(body, 0, 3), "labels from 0 to 3, but 3 speakers"),
        (2, lambda body: changed_array(body, 0, -1), "labels from -1 to"),
        (3, lambda _: b"[" * 100_000, "not the JSON of this block"),
        (3, lambda _: b"1" * 5000, "not the JSON of this block"),
        (3, lambda body: re.sub(rb'"keys": \[[^]]*]', nulls, body), "keys\\[0\\] is .*, expected text"),
        (3, lambda body: body.replace(b", ", b","), "not spelled as it was written"),
        (3, lambda body: body.replace(b'"seed": 3', b'"seed": "3"'), "seed is '3', expected"),
    ],
)
def test_damaged_member_is_named(tars, original, member, change, match):
    name = "shard-000000.tar"
    members = members_of(original / name)
    members[member] = (members[member][0], change(members[member][1]))
    put(tars / name, tar_of(members))
    assert refusal(tars, match).startswith(f"{tars / name}: {members[3 if member == 2 else member][0]}: ")


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)


def rebuilds_or_refuses(tars: Path, original: Path, name: str, data: bytes) -> None:
    """Index with a shard changed: an error of ours that leaves nothing, or the dataset of these bytes."""
    was = (original / name).read_bytes()
    put(tars / name, data)
    try:
        rebuild_index(tars)
        assert verify_dataset(tars).defects == []
        assert (index_bytes(tars) == index_bytes(original)) == (data == was)
    except InputError:
        assert names(tars) == [name for name in names(original) if name not in INDEX]
    finally:
        put(tars / name, was)
        for file in INDEX:
            (tars / file).unlink(missing_ok=True)


@fuzz
@given(st.data())
def test_mutated_tars_raise_our_errors_only(tars, original, data):
    name = data.draw(st.sampled_from(names(tars)))
    was = (original / name).read_bytes()
    begin = data.draw(st.integers(0, len(was)))
    end = min(begin + data.draw(st.sampled_from([0, 1, 8, 600])), len(was))
    rebuilds_or_refuses(tars, original, name, was[:begin] + data.draw(st.binary(max_size=20)) + was[end:])


@fuzz
@given(st.data())
def test_blocks_of_any_json_raise_our_errors_only(tars, original, data):
    members = members_of(original / "shard-000000.tar")
    value = json.loads(members[3][1])
    inner = value["dataset"] if data.draw(st.booleans()) else value
    inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(json_values)
    members[3] = (members[3][0], json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode("utf-8", "replace"))
    rebuilds_or_refuses(tars, original, "shard-000000.tar", tar_of(members))


@given(st.binary(max_size=300), st.booleans())
def test_parse_npy_of_any_bytes_raises_value_errors_only(payload, well_begun):
    begin = npy_header(np.dtype("<f4"), (2, 3))[:70] if well_begun else b""
    with pytest.raises(ValueError, match="npy header"):
        parse_npy(begin + payload, ("float32",))


@given(st.text("abc/.-09é", min_size=1, max_size=50), st.integers(0, MAX_MEMBER_BYTES))
def test_tar_header_equals_the_standard_librarys(name, size):
    twin = tarfile.TarInfo(name)
    twin.size, twin.mode = size, 0o444
    assert tar_header(name, size) == twin.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("x" * 101, 1), ("x", MAX_MEMBER_BYTES + 1)])
def test_tar_header_without_room_is_an_error(name, size):
    with pytest.raises(ValueError, match="no ustar header has room"):
        tar_header(name, size)
