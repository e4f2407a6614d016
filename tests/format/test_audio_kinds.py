"""Audio of all kinds: what libsndfile opens, what only ffmpeg knows, other rates and channels; and what was cut short."""

import io
import shutil
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from source_checks import RATE, error_of, options, samples, utterance, write_audio

from shards import AudioSource, FeatureOptions, UsageError
from shards.sources.audio import audio_features, read_audio
from shards.sources.features import compute_features
from shards.sources.limits import UtteranceLimit

pytestmark = pytest.mark.fast

needs_soxr = pytest.mark.skipif(find_spec("soxr") is None, reason="soxr is not installed (extra audio)")
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not on PATH")

KINDS = ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC", "OGG", "MP3"]
RARE = ["AVR", "HTK", "IRCAM", "MAT4", "MAT5", "MPC2K", "PAF", "PVF", "SVX", "VOC", "WVE"]
TELL_NO_LENGTH = ["IRCAM", "PAF", "PVF"]
LIST = b"LIST" + struct.pack("<I", 14) + b"INFOISFT" + struct.pack("<I", 2) + b"ab"


@pytest.mark.parametrize("kind", [*KINDS, *RARE])
def test_every_kind_that_libsndfile_opens_is_read_as_it_reads_it(tmp_path: Path, kind: str) -> None:
    path = write_audio(tmp_path / "a.x", format=kind)
    with soundfile.SoundFile(path) as file:  # soundfile.read seeks first, after which an mp3's last bits differ
        expected = file.read(dtype="float32")
    np.testing.assert_array_equal(read_audio(str(path), options()), expected)
    tolerance = {"OGG": 0.05, "MP3": 0.1, "WVE": 0.05, "SVX": 0.01}.get(kind, 1e-4)
    np.testing.assert_allclose(expected, samples(), atol=tolerance)


@pytest.mark.parametrize("kind", [kind for kind in (*KINDS, *RARE) if kind not in TELL_NO_LENGTH])
def test_every_kind_that_was_cut_short_is_an_error(tmp_path: Path, kind: str) -> None:
    data = write_audio(tmp_path / "a.x", format=kind).read_bytes()
    path = tmp_path / "cut.x"
    for share in (0.5, 0.9):
        path.write_bytes(data[: int(share * len(data))])
        text = error_of(read_audio, str(path), options())
        assert text.startswith(f"{path}: truncated: ") or "can't decode this audio file" in text or "expected a" in text


def test_an_opus_and_a_big_endian_wav_are_read(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.ogg", subtype="OPUS")
    np.testing.assert_array_equal(read_audio(str(path), options()), soundfile.read(path, dtype="float32")[0])
    assert np.abs(read_audio(str(path), options()) - samples())[:3900].mean() < 0.03
    path = write_audio(tmp_path / "a.wav", endian="BIG")
    assert path.read_bytes()[:4] == b"RIFX"
    np.testing.assert_allclose(read_audio(str(path), options()), samples(), atol=1e-4)
    path.write_bytes(path.read_bytes()[:-1000])
    assert error_of(read_audio, str(path), options()).startswith(f"{path}: truncated: 7000 of 8000 bytes of samples")


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_wav_whose_header_names_too_few_samples_is_an_error(tmp_path: Path, order: str) -> None:
    """The rest would be lost."""
    path = write_audio(tmp_path / "a.wav", endian="BIG" if order == ">" else "LITTLE")
    data = bytearray(path.read_bytes())
    for named, behind in ((0, 8000), (2048, 5952), (7000, 1000)):
        data[40:44] = struct.pack(f"{order}I", named)
        path.write_bytes(data)
        assert error_of(read_audio, str(path), options()) == (
            f"{path}: {behind} bytes behind its samples are no chunk of such a file; expected none: its header names too few "
            "samples, or something was appended: convert it again, from the recording"
        )


@pytest.mark.parametrize("kind", ["AIFF", "AU", "CAF", "W64", "RF64", "NIST"])
def test_bytes_behind_the_samples_of_any_kind_are_an_error(tmp_path: Path, kind: str) -> None:
    path = write_audio(tmp_path / "a.x", format=kind)
    path.write_bytes(path.read_bytes() + b"\x01\x02" * 1000)
    assert " bytes behind its samples" in error_of(read_audio, str(path), options())


def test_chunks_and_padding_behind_the_samples_of_a_wav_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    data = np.arange(101, dtype=np.uint8) + 78
    soundfile.write(path, (data.astype(np.float32) - 128) / 128, RATE, subtype="PCM_U8")
    whole = path.read_bytes()
    assert whole[40:44] == struct.pack("<I", 101)
    body = whole[:145]  # without a byte of padding
    for behind in (b"", b"\0", b"\0" + LIST, LIST, b"\0" + LIST + LIST, b"\0" + LIST + b"\0\0"):
        path.write_bytes(body + behind)
        np.testing.assert_array_equal(read_audio(str(path), options()) * 128 + 128, data, err_msg=str(behind))


@pytest.mark.parametrize("size", [2_000_000_000, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_wav_of_a_program_that_wrote_to_a_pipe_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    for order, endian in (("<", "LITTLE"), (">", "BIG")):
        path = write_audio(tmp_path / "a.wav", endian=endian)
        data = bytearray(path.read_bytes())
        data[40:44] = struct.pack(f"{order}I", size)
        path.write_bytes(data)
        np.testing.assert_allclose(read_audio(str(path), options()), samples(), atol=1e-4)


def test_a_wav_of_endless_chunks_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(write_audio(path).read_bytes() + struct.pack("<4sI", b"junk", 0) * 20_000)
    assert error_of(read_audio, str(path), options()).startswith(f"{path}: it has more than 10000 chunks; ")


def test_a_packed_sphere_file_names_the_program_that_unpacks_it(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.sph", format="NIST")
    data = path.read_bytes().replace(b"sample_coding -s3 pcm", b"sample_coding -s26 pcm,embedded-shorten-v2.00")
    path.write_bytes(data)
    assert error_of(read_audio, str(path), options()) == (
        f"{path}: its samples are packed (pcm,embedded-shorten-v2.00); expected plain ones: convert it with sph2pipe"
    )


def test_bytes_have_the_features_of_the_file(tmp_path: Path) -> None:
    for kind in KINDS:
        path = write_audio(tmp_path / "a.x", format=kind)
        expected = AudioSource(tmp_path, "x", options()).load(utterance("a"))
        np.testing.assert_array_equal(audio_features(io.BytesIO(path.read_bytes()), "a", options()), expected)


def test_an_mp3_with_a_tag_is_compared_with_its_length(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.mp3")
    tag = b"ID3\x04\0\0\0\0\x02\x00" + bytes(256)
    path.write_bytes(tag + path.read_bytes())
    np.testing.assert_allclose(read_audio(str(path), options()), samples(), atol=0.1)
    path.write_bytes(path.read_bytes()[:-300])
    assert error_of(read_audio, str(path), options()).startswith(f"{path}: truncated: ")


def test_all_channels_are_mixed_where_that_is_asked_for(tmp_path: Path) -> None:
    data = samples(channels=3)
    path = write_audio(tmp_path / "a.wav", data, subtype="FLOAT")
    mixed = read_audio(str(path), options(downmix=True))
    np.testing.assert_allclose(mixed, data.mean(axis=1), atol=1e-7)
    one = write_audio(tmp_path / "b.wav", subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(str(one), options(downmix=True)), samples())


@needs_soxr
@pytest.mark.parametrize("rate", [8000, 16000, 11025, 44100, 96000])
def test_a_file_of_another_rate_has_the_samples_of_soxr(tmp_path: Path, rate: int) -> None:
    import soxr

    data = np.tile(samples(rate=rate), (600 * 8000) // rate)  # more than is read at a time
    path = write_audio(tmp_path / "a.wav", data, rate, subtype="FLOAT")
    found = read_audio(str(path), options(resample=True))
    expected = data if rate == RATE else soxr.resample(data, rate, RATE, quality="HQ")
    np.testing.assert_array_equal(found, expected)
    assert abs(len(found) - len(data) * RATE / rate) <= 1


@needs_soxr
def test_resampled_audio_keeps_its_tones(tmp_path: Path) -> None:
    """The chord sampled at another rate is the chord, but for its noise and its ends."""
    for rate in (16000, 22050, 48000):
        path = write_audio(tmp_path / "a.wav", samples(rate=rate), rate, subtype="FLOAT")
        found = read_audio(str(path), options(resample=True))
        assert np.abs(found - samples())[200:-200].mean() < 0.015


@needs_soxr
def test_the_limit_holds_for_resampled_audio(tmp_path: Path) -> None:
    """Also where few samples of a low rate become many; and a rate that can't be is refused."""
    path = write_audio(tmp_path / "a.wav", np.zeros(1000, np.float32), 1000)
    source = AudioSource(tmp_path, "wav", FeatureOptions(sample_rate=96000, resample=True), limit=UtteranceLimit(50))
    assert "1 seconds make more than 50 frames" in error_of(source.load, utterance("a"))
    write_audio(path, np.zeros(1000, np.float32), 10)
    assert error_of(source.load, utterance("a")) == (
        f"{path}: its sample rate is 10 Hz, expected 1000 to 384000 Hz: record or convert it again"
    )


def test_without_soxr_resampling_is_used_wrongly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(UsageError, match=r"^soxr can't be imported .*needs it: run .*soxr"):
        AudioSource(tmp_path, "wav", options(resample=True))


def test_options_that_are_as_usual_are_not_in_the_description() -> None:
    """A dataset without them has the bytes that it had when there were none of them."""
    assert FeatureOptions().describe() == {
        "kind": "fbank",
        "sample_rate": 16000,
        "num_bins": 40,
        "num_ceps": 20,
        "window_ms": 25.0,
        "shift_ms": 10.0,
        "channel": None,
    }
    changed = FeatureOptions(
        downmix=True, resample=True, cmvn="sliding", vad="energy", high_freq=-200.0, use_energy=True
    )
    assert changed.describe().items() - FeatureOptions().describe().items() == {
        ("downmix", True),
        ("resample", True),
        ("cmvn", "sliding"),
        ("vad", "energy"),
        ("high_freq", -200.0),
        ("use_energy", True),
    }
    assert FeatureOptions.from_description(changed.describe()) == changed


def convert(source: Path, target: Path, *more: str) -> Path:
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-y", "-i", source, *more, target]
    subprocess.run(command, check=True)
    return target


@needs_ffmpeg
@pytest.mark.parametrize("ext", ["m4a", "aac", "webm", "mka", "wma"])
def test_what_libsndfile_does_not_know_is_read_by_ffmpeg(tmp_path: Path, ext: str) -> None:
    """The same samples as in the wav that ffmpeg writes."""
    data = samples(2.0, channels=2, rate=16000)
    path = convert(write_audio(tmp_path / "a.wav", data, 16000), tmp_path / f"a.{ext}", "-ar", "48000")
    convert(path, tmp_path / "b.wav", "-c:a", "pcm_f32le")
    features = FeatureOptions(sample_rate=48000, downmix=True)
    assert "give --ffmpeg" in error_of(read_audio, str(path), features)
    found = AudioSource(tmp_path, ext, features, ffmpeg=True).load(utterance("a"))
    np.testing.assert_array_equal(found, AudioSource(tmp_path, "wav", features).load(utterance("b")))
    again = audio_features(io.BytesIO(path.read_bytes()), "a", features, ffmpeg=True)
    np.testing.assert_array_equal(again, found)


@needs_ffmpeg
@pytest.mark.parametrize("ext", ["m4a", "webm"])
def test_what_ffmpeg_decodes_in_part_is_an_error(tmp_path: Path, ext: str) -> None:
    first = ("-movflags", "faststart") if ext == "m4a" else ()
    path = convert(write_audio(tmp_path / "a.wav", samples(5.0)), tmp_path / f"a.{ext}", "-ar", "48000", *first)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    features = FeatureOptions(sample_rate=48000)
    assert f"{path}: ffmpeg can't decode this file as a whole: " in error_of(
        read_audio, str(path), features, ffmpeg=True
    )


@needs_ffmpeg
def test_ffmpeg_opens_no_other_file_and_takes_no_noise(tmp_path: Path) -> None:
    wav = write_audio(tmp_path / "a.wav")
    assert wav.exists()
    for name, data in (
        ("a.ffconcat", f"ffconcat version 1.0\nfile {wav}\n".encode()),
        ("a.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\n{wav}\n#EXT-X-ENDLIST\n".encode()),
        ("noise", np.random.default_rng(0).bytes(5000)),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        text = error_of(read_audio, str(path), options(), ffmpeg=True)
        assert text.startswith(f"{path}: ffmpeg can't decode this file as a whole: ")
        assert "\n" not in text


@needs_ffmpeg
def test_ffmpeg_stops_at_the_limit(tmp_path: Path) -> None:
    path = convert(write_audio(tmp_path / "a.wav", np.zeros(8000 * 60, np.float32)), tmp_path / "a.m4a")
    source = AudioSource(tmp_path, "m4a", options(), limit=UtteranceLimit(100), ffmpeg=True)
    assert f"{path}: " in (text := error_of(source.load, utterance("a")))
    assert "make more than 100 frames" in text


def test_without_ffmpeg_asking_for_it_is_used_wrongly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"^--ffmpeg: there is no program ffmpeg on PATH; install it"):
        AudioSource(tmp_path, "m4a", options(), ffmpeg=True)


def test_ffmpeg_that_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in its place: the time limit is short."""
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("shards.sources.ffmpeg.WAIT_SECONDS", 0.2)
    path = tmp_path / "a.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(99))
    assert error_of(read_audio, str(path), options(), ffmpeg=True) == (
        f"{path}: ffmpeg decoded nothing for 0.2 seconds; expected samples: convert it to wav or flac"
    )


def test_features_of_pieces_are_those_of_the_whole(tmp_path: Path) -> None:
    """With edges that are reflected, too, where the last frames wait for the end."""
    data = np.tile(samples(), 150)
    path = write_audio(tmp_path / "a.wav", data, subtype="FLOAT")
    for changes in ({}, {"reflect_edges": True}):
        wanted = options(**changes)
        found = AudioSource(tmp_path, "wav", wanted).load(utterance("a"))
        np.testing.assert_array_equal(found, compute_features(data, wanted, str(path)))
