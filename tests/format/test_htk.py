"""HTK parameter files as a source: values, qualifiers, and what is refused."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_checks import FRAMES, error_of, only_input_errors, utterance

from shards import HtkSource, ShardDataset, source_from_description
from shards.sources import settled_source
from shards.sources.htk import HtkParameters, parse_htk
from shards.sources.limits import UtteranceLimit
from spkid_dist.commands.info import find_frame_shift
from spkid_dist.commands.shard import shard
from spkid_dist.config import ShardConfig

pytestmark = pytest.mark.fast

MFCC_E_D = 6 + 0o100 + 0o400
PERIOD = 100_000


def htk_file(frames: np.ndarray, kind: int = MFCC_E_D, period: int = PERIOD) -> bytes:
    """A file as The HTK Book has it: `kind` says whether it is compressed and checked."""
    num_frames, num_features = frames.shape
    if kind & 0o2000:
        low, high = frames.min(axis=0), frames.max(axis=0)
        scale, offset = 2 * 32767 / (high - low), (high + low) * 32767 / (high - low)
        body = b"".join(row.astype(">f4").tobytes() for row in (scale, offset))
        body += np.rint(frames * scale - offset).astype(">i2").tobytes()
        header = num_frames + 4, period, 2 * num_features, kind
    else:
        body, header = frames.astype(">f4").tobytes(), (num_frames, period, 4 * num_features, kind)
    if kind & 0o10000:
        checksum = 0
        for word in np.frombuffer(body, ">u2").tolist():  # HTK's loop, word by word
            checksum = (checksum * 65536 + word) % 36897
        body += struct.pack(">H", checksum)
    return struct.pack(">iiHH", *header) + body


def test_a_file_made_by_hand_from_the_book_is_read() -> None:
    header = bytes.fromhex("00000002 000186a0 0008 0346")  # 2 frames, 10 ms, 8 bytes, MFCC_E_D_A
    values = bytes.fromhex("3f800000 c0000000 00000000 40490fdb")  # 1, -2; 0, pi
    np.testing.assert_array_equal(parse_htk(header + values, "x"), np.float32([[1, -2], [0, np.pi]]))


@pytest.mark.parametrize("checked", [0, 0o10000])
def test_values_are_those_that_were_written(checked: int) -> None:
    found = parse_htk(htk_file(FRAMES, MFCC_E_D | checked), "x")
    assert found.dtype == np.float32 and found.dtype.isnative and found.flags.c_contiguous
    np.testing.assert_array_equal(found, FRAMES)


@pytest.mark.parametrize("checked", [0, 0o10000])
def test_compressed_values_are_within_half_a_step(checked: int) -> None:
    found = parse_htk(htk_file(FRAMES, MFCC_E_D | 0o2000 | checked), "x")
    step = np.ptp(FRAMES, axis=0) / (2 * 32767)
    assert found.dtype == np.float32 and found.shape == FRAMES.shape
    assert (np.abs(found - FRAMES) <= 0.51 * step + 1e-6).all()


def test_reflection_coefficients_are_16_bit_fractions() -> None:
    data = struct.pack(">iiHH4h", 2, PERIOD, 4, 5, 32767, -32767, 0, 16384)
    np.testing.assert_allclose(parse_htk(data, "x"), [[1, -1], [0, 16384 / 32767]], rtol=1e-6)


@pytest.mark.parametrize("at", [12, 40, -1])
def test_a_changed_byte_is_found_by_the_checksum(at: int) -> None:
    data = bytearray(htk_file(FRAMES, MFCC_E_D | 0o10000))
    data[at] ^= 1
    text = error_of(parse_htk, bytes(data), "x")
    assert text.startswith("x: damaged: its checksum is ")
    assert text.endswith("; copy it or compute it again")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (htk_file(FRAMES)[:-1], "truncated: 271 bytes, but the header's 13 frames of 20 bytes make 272"),
        (htk_file(FRAMES) + b"\0", "too long: 273 bytes, but the header's 13 frames of 20 bytes make 272"),
        (struct.pack(">iiHH", 2**31 - 1, 1, 65532, 6), "truncated: 12 bytes"),
        (struct.pack(">iiHH", -1, 1, 4, 6), "the header says -1 frames of 4 bytes, of 4 each value"),
        (struct.pack(">iiHH", 1, 1, 6, 6) + bytes(6), "the header says 1 frames of 6 bytes, of 4 each value"),
        (struct.pack(">iiHH", 3, 1, 4, 0o2006) + bytes(12), "the header says 3 frames of 4 bytes, of 2 each value"),
        (struct.pack(">iiHH", 1, 625, 2, 0) + bytes(2), "it holds samples of a waveform (WAVEFORM)"),
        (struct.pack(">iiHH", 1, 1, 2, 10) + bytes(2), "it holds symbols of a vector quantiser (DISCRETE)"),
        (struct.pack(">iiHH", 1, 1, 4, 63) + bytes(4), "the header says that the parameters are of kind 63"),
        (
            struct.pack(">iiHH", 1, 1, 6, 0o40006) + bytes(6),
            "it holds symbols of a vector quantiser beside its values (_V)",
        ),
        (b"\0" * 11, "11 bytes are too few for an HTK header of 12"),
        (b"RIFF" + bytes(60), "not an HTK file: it seems to be a wav file: give --source audio"),
    ],
)
def test_a_file_that_holds_no_sound_frames_is_an_error(data: bytes, said: str) -> None:
    assert error_of(parse_htk, data, "x").startswith(f"x: {said}")


def test_a_file_beyond_the_limit_is_an_error() -> None:
    assert "13 frames; expected at most 12" in error_of(parse_htk, htk_file(FRAMES), "x", UtteranceLimit(12))


@given(header=st.tuples(st.integers(0, 9), st.integers(-1, 9), st.integers(0, 9), st.integers(0, 2**16 - 1)))
@settings(deadline=None, max_examples=300)
def test_any_header_gives_frames_or_an_input_error(header: tuple[int, int, int, int]) -> None:
    for size in (0, 16, 80):
        only_input_errors(parse_htk, struct.pack(">iiHH", *header) + bytes(size), "x")


def write_files(folder: Path, **files: bytes) -> Path:
    for name, data in files.items():
        (folder / f"{name}.mfc").write_bytes(data)
    (folder / "list").write_text("".join(f"{name}\n" for name in files))
    return folder / "list"


def shard_files(folder: Path, **flags: Any) -> ShardDataset:
    out = folder / "out"
    config = {"source": "htk", "db_path": folder, "list_file": folder / "list", "speaker_regex": "(.)"}
    shard(ShardConfig(out=str(out), spk2idx=folder / "map.json", **config | flags))
    return ShardDataset(out)


def test_the_kind_and_the_period_are_kept_and_tell_the_hours(tmp_path: Path) -> None:
    write_files(tmp_path, a=htk_file(FRAMES, period=50_000), b=htk_file(FRAMES, MFCC_E_D | 0o12000, period=50_000))
    manifest = shard_files(tmp_path).manifest
    kept = {"kind": "htk", "ext": "mfc", "features": {"kind": "MFCC_E_D", "shift_ms": 5.0}}
    assert {name: manifest.source[name] for name in kept} == kept
    assert find_frame_shift(manifest, None) == (5.0, "dataset")
    source = source_from_description(manifest.source, tmp_path)
    assert source == HtkSource(tmp_path, expected=HtkParameters("MFCC_E_D", 5.0))
    np.testing.assert_array_equal(source.load(utterance("a")), FRAMES)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (htk_file(FRAMES, 7), "FBANK, a frame each 10 ms"),
        (htk_file(FRAMES, period=50_000), "MFCC_E_D, a frame each 5 ms"),
    ],
)
def test_files_of_other_parameters_are_not_mixed(tmp_path: Path, other: bytes, said: str) -> None:
    write_files(tmp_path, a=htk_file(FRAMES), b=other)
    source = settled_source(HtkSource(tmp_path), [utterance("none"), utterance("b"), utterance("a"), utterance("a")])
    assert error_of(source.load, utterance("b")) == (
        f"{tmp_path}/b.mfc: {said}, but the other files hold MFCC_E_D, a frame each 10 ms; all need the same: compute them "
        "again alike"
    )


def test_a_period_of_0_is_not_taken_for_a_frame_shift(tmp_path: Path) -> None:
    write_files(tmp_path, a=htk_file(FRAMES, period=0), b=htk_file(FRAMES, period=0))
    manifest = shard_files(tmp_path).manifest
    assert manifest.source["features"] == {"kind": "MFCC_E_D"}
    assert find_frame_shift(manifest, None)[1] == "assumed"


def test_files_of_other_parameters_than_most_are_skipped_when_asked(tmp_path: Path) -> None:
    good = htk_file(FRAMES)
    write_files(tmp_path, a=good, b=good[:-1], c=good, d=htk_file(FRAMES, 7))
    assert shard_files(tmp_path, skip_bad=True).manifest.num_utterances == 2
