"""Files that ask for more than a machine has: headers that lie, packed zeros, hours of silence, files without an end."""

import io
import os
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from source_checks import RATE, error_of, kaldi_folder, options, samples, utterance, write_audio
from training import environment

from shards import AudioSource, FmatrixSource, KaldiSource, NpySource, UsageError
from shards.layout import MANIFEST_NAME
from shards.sources.audio import read_audio
from shards.sources.features import FeatureComputer
from shards.sources.fmatrix import write_fmatrix
from shards.sources.limits import UtteranceLimit
from shards.sources.npy import parse_npz

MOST_BYTES = 1_000_000_000
GOOD = np.ones((9, 4), np.float32)
LIMIT = UtteranceLimit(5)


def npy_header(shape, descr="<f4", order=False):
    """The header of an array without its values."""
    buffer = io.BytesIO()
    header = {"descr": descr, "fortran_order": order, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def zeros_npz(path, num_bytes, head=b""):
    """A .npz of an array of zeros, a thousandth of its size: the same deflated bytes again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = 2**26
    packed = [packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)]
    repeated = packer.compress(bytes(piece)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = (num_bytes - len(head)) % piece
    packed += [repeated] * ((num_bytes - len(head)) // piece)
    packed.append(packer.compress(bytes(rest)) + packer.flush())
    data = b"".join(packed)
    name = b"frames.npy"
    sizes = (0, len(data), num_bytes)  # its checksum is wrong, which is found at the end only
    with path.open("wb") as file:
        file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, *sizes, len(name), 0) + name + data)
        start = file.tell()
        central = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, *sizes, len(name), *(0,) * 6) + name
        file.write(central)
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(central), start, 0))


def special_files(folder, ext):
    """What has no end or is no file: {key: what is wrong}."""
    os.mkfifo(folder / f"B-pipe-1.{ext}")
    os.mknod(folder / f"B-socket-1.{ext}", stat.S_IFSOCK | 0o644)
    for name in ("zero", "stdin"):
        (folder / f"B-{name}-1.{ext}").symlink_to(f"/dev/{name}")
    (folder / f"B-folder-1.{ext}").mkdir()
    regular = "not a regular file"
    return {"B-pipe-1": regular, "B-socket-1": "No such device", "B-zero-1": regular, "B-folder-1": regular} | (
        {} if os.isatty(0) else {"B-stdin-1": ""}
    )


def fmatrix_bombs(folder):
    write_fmatrix(folder / "B-good-1.mcp", GOOD)
    headers = {
        "wide": ((0, 2**31 - 1), "2147483647 features per frame; expected at most 65536"),
        "huge": ((2**31 - 1, 2**31 - 1), "truncated: 8 bytes"),
        "long": ((2**31 - 1, 1), "truncated: 8 bytes"),
    }
    for name, (shape, _) in headers.items():
        (folder / f"B-{name}-1.mcp").write_bytes(struct.pack("<ii", *shape))
    with (folder / "B-sparse-1.mcp").open("wb") as file:  # all of 5 GB are there, and take no room
        file.write(struct.pack("<ii", 1_250_000, 1000))
        file.truncate(8 + 4 * 1_250_000 * 1000)
    sparse = {"B-sparse-1": "1250000 frames; expected at most 1000000: .* or give --max_frames 1250000"}
    return {f"B-{name}-1": what for name, (_, what) in headers.items()} | sparse | special_files(folder, "mcp")


def npy_bombs(folder):
    np.save(folder / "B-good-1.npy", GOOD)
    headers = {
        "wide": ((0, 2**62), "4611686018427387904 features per frame"),
        "digits": ((0, 10**400), r"the array's shape is \(0, 10"),
        "huge": ((2**62, 2**62), "truncated"),
    }
    for name, (shape, _) in headers.items():
        (folder / f"B-{name}-1.npy").write_bytes(npy_header(shape))
    hex_side = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 0x%s), }\n" % (b"f" * 9000)
    (folder / "B-hex-1.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(hex_side)) + hex_side)
    size = 4_000_000_000
    head = npy_header(((size - 128) // 400, 100))
    zeros_npz(folder / "B-zeros-1.npy", len(head) + (size - 128) // 400 * 400, head)
    zeros_npz(folder / "B-more-1.npy", size, npy_header((9, 4)))  # the directory and the header differ
    with zipfile.ZipFile(folder / "B-directory-1.npy", "w") as archive:
        for number in range(20_000):
            archive.writestr(f"{number}.npy", b"")
    assert (folder / "B-zeros-1.npy").stat().st_size < size / 500
    return {f"B-{name}-1": what for name, (_, what) in headers.items()} | special_files(folder, "npy") | {
        "B-hex-1": r"the array's shape is \(1, 0xfff",
        "B-zeros-1": "9999999 frames; expected at most 1000000",
        "B-more-1": "too long: 4000000000 bytes",
        "B-directory-1": "not a sound .npz file: its directory has",
    }  # fmt: skip


def audio_bombs(folder):
    write_audio(folder / "B-good-1.flac")
    with soundfile.SoundFile(folder / "B-silence-1.flac", "w", RATE, 1) as file:
        for _ in range(80):
            file.write(np.zeros(2**20, np.int16))
    assert (folder / "B-silence-1.flac").stat().st_size < 2**20
    (folder / "B-claims-1.flac").write_bytes(claiming(folder / "B-good-1.flac", 2**36 - 1))
    return special_files(folder, "flac") | {
        "B-silence-1": "10486 seconds make more than 1000000 frames",
        "B-claims-1": "8589935 seconds make more than 1000000 frames",
    }


def claiming(path, num_samples):
    """The bytes of a FLAC file whose header names another number of samples: 36 bits, 0 for unknown."""
    data = bytearray(path.read_bytes())
    value = int.from_bytes(data[18:26], "big") >> 36 << 36 | num_samples
    data[18:26] = value.to_bytes(8, "big")
    return bytes(data)


def kaldi_bombs(folder):
    kaldi_folder(folder)
    lines = (folder / "feats.scp").read_text().splitlines()[:1]
    speakers = (folder / "utt2spk").read_text().splitlines()[:1]
    found = {}
    for name, data, what in (
        ("wide", b"\0BFM " + struct.pack("<bibi", 4, 0, 4, 2**31 - 1), "2147483647 features per frame"),
        (
            "huge",
            b"\0BDM " + struct.pack("<bibi", 4, 2**31 - 1, 4, 2**16),
            "2147483647 frames; expected at most 1000000",
        ),
        ("packed", b"\0BCM " + struct.pack("<8xii", 10**6, 64), "truncated"),
        ("text", b"key [\n 1 2 3 ]\n", "no matrix begins here"),
    ):
        (folder / f"{name}.ark").write_bytes(data)
        lines.append(f"B-{name} {folder}/{name}.ark:0")
        found[f"B-{name}"] = what
    for name in special_files(folder, "ark"):
        if name != "B-stdin-1":
            lines.append(f"{name} {folder}/{name}.ark:0")
            found[name] = "can't read this archive"
    lines.append(f"B-far {folder}/feats.ark:999999999999999999")
    found["B-far"] = "the offset is past the end"
    (folder / "feats.scp").write_text("\n".join(lines))
    (folder / "utt2spk").write_text("\n".join([*speakers, *(f"{key} x" for key in found)]))
    return found


BOMBS = {
    "fmatrix": (fmatrix_bombs, ()),
    "npy": (npy_bombs, ()),
    "audio": (audio_bombs, ("--ext", "flac", "--features.sample_rate", RATE)),
    "kaldi": (kaldi_bombs, ()),
}


def run_and_measure(words):
    """Exit code, output, and the most memory in bytes of a command in a process of its own, whose input has no end."""
    program = [sys.executable, "-c", "from spkid_dist.commands.cli import main; main()", *map(str, words)]
    with Path("/dev/zero").open("rb") as zeros, subprocess.Popen(
        program, env=environment(), stdin=zeros, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, printed, used.ru_maxrss * 1024


@pytest.mark.parametrize("source", BOMBS)
def test_bombs_are_skipped_in_little_memory(source, tmp_path):
    import re

    make, flags = BOMBS[source]
    folder = tmp_path / "files"
    folder.mkdir()
    expected = make(folder)
    words = ["shard", "--source", source, "--db_path", folder, *flags, "--spk2idx", tmp_path / "spk2idx.json"]
    if source != "kaldi":
        (tmp_path / "list").write_text("\n".join(["B-good-1", *expected]))
        words += ["--list", tmp_path / "list", "--speaker_regex", "-(.+)-"]
    code, printed, most = run_and_measure([*words, "--out", tmp_path / "out", "--skip_bad"])
    assert code == 0, printed
    assert f'"skipped": {len(expected)}, "utterances": 1,' in printed
    for key, what in expected.items():
        assert re.search(rf"skipped {re.escape(key)}: .*{what}", printed), (key, printed)
    assert most < MOST_BYTES
    code, printed, most = run_and_measure([*words, "--out", tmp_path / "out2"])
    assert code == 1
    assert printed.splitlines()[-1].startswith("spkid: error: ")
    assert "Traceback" not in printed
    assert not (tmp_path / "out2" / MANIFEST_NAME).exists()
    assert most < MOST_BYTES


def test_the_limit_is_of_frames_and_of_values(tmp_path):
    write_fmatrix(tmp_path / "long.mcp", np.ones((6, 1), np.float32))
    assert error_of(FmatrixSource(tmp_path, limit=LIMIT).load, utterance("long")) == (
        f"{tmp_path}/long.mcp: 6 frames; expected at most 5: cut it into shorter utterances, leave it out, or give "
        "--max_frames 6"
    )
    write_fmatrix(tmp_path / "wide.mcp", np.ones((5, 65), np.float32))
    assert error_of(FmatrixSource(tmp_path, limit=LIMIT).load, utterance("wide")) == (
        f"{tmp_path}/wide.mcp: 5 frames x 65 features; expected at most 320 values, 64 times --max_frames: cut it into shorter "
        "utterances, leave it out, or give --max_frames 6"
    )
    assert FmatrixSource(tmp_path, limit=UtteranceLimit(6)).load(utterance("wide")).shape == (5, 65)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8"])
@pytest.mark.parametrize("packed", [None, np.save, np.savez, np.savez_compressed])
def test_an_array_of_the_limit_is_read_and_a_larger_one_is_not(tmp_path, order, dtype, packed):
    for num_frames in (5, 6):
        array = np.asarray(np.arange(num_frames * 3).reshape(num_frames, 3), dtype, order=order)
        with (tmp_path / f"{num_frames}.npy").open("wb") as file:
            (packed or np.save)(file, array)
    source = NpySource(tmp_path, limit=LIMIT)
    np.testing.assert_array_equal(source.load(utterance("5")), np.arange(15).reshape(5, 3))
    assert "6 frames; expected at most 5: " in error_of(source.load, utterance("6"))


def test_kaldi_matrices_have_the_limit(tmp_path):
    frames = kaldi_folder(tmp_path)
    source = KaldiSource.open(tmp_path, UtteranceLimit(10))
    lengths = {key: len(array) for key, array in frames.items()}
    assert sorted(lengths.values()) == [9, 10, 11]
    for key, length in lengths.items():
        if length <= 10:
            assert len(source.load(utterance(key))) == length
        else:
            assert "11 frames; expected at most 10: " in error_of(source.load, utterance(key))


@pytest.mark.parametrize("ext", ["wav", "flac", "ogg"])
def test_audio_of_the_limit_is_read_and_longer_audio_is_not(tmp_path, ext):
    for number, length in enumerate((599, 600)):  # 5 frames of 25 ms, 10 ms apart, and 6
        write_audio(tmp_path / f"{number}.{ext}", samples()[:length])
    source = AudioSource(tmp_path, ext, options(), limit=LIMIT)
    assert len(source.load(utterance("0"))) == 5
    assert error_of(source.load, utterance("1")) == (
        f"{tmp_path}/1.{ext}: 0 seconds make more than 5 frames of 40 features; expected at most 5 frames: cut it into shorter "
        "utterances, leave it out, or give a larger --max_frames"
    )


def test_samples_that_come_piece_by_piece_end_at_the_limit():
    computer = FeatureComputer(options(), "x", UtteranceLimit(2000))
    for _ in range(40):
        computer.add(samples())
    assert len(computer.frames()) == 1998
    computer = FeatureComputer(options(), "x", UtteranceLimit(1900))
    for _ in range(38):
        computer.add(samples())
    assert "x: 20 seconds make more than 1900 frames of 40 features; " in error_of(computer.add, samples())


def test_audio_that_claims_more_than_it_has_is_truncated(tmp_path):
    path = write_audio(tmp_path / "a.flac")
    path.write_bytes(claiming(path, 4001))
    assert "4001" in error_of(read_audio, str(path), options()) or "decode" in error_of(
        read_audio, str(path), options()
    )


@pytest.mark.parametrize("max_frames", [0, -1, 2**30 + 1])
def test_a_limit_that_can_not_be_is_used_wrongly(max_frames):
    with pytest.raises(UsageError, match=rf"^--max_frames {max_frames}: expected 1 to 1073741824$"):
        UtteranceLimit(max_frames)


def test_an_npz_that_is_packed_in_another_way_or_too_well_is_refused():
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("frames.npy", npy_header((9, 4)) + GOOD.tobytes())
        assert "it is packed in another way" in error_of(parse_npz, buffer.getvalue(), "x")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, frames=GOOD)
    data = bytearray(buffer.getvalue())
    at = data.rindex(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<I", 10**6)
    assert "packed bytes can't hold 1000000" in error_of(parse_npz, bytes(data), "x")
