"""A recording becomes the frames that the model was trained on, or one line that says why not."""

import io
import os
import shutil
import subprocess
import sys
import threading

import kaldiio
import numpy as np
import pytest
import soundfile
from trained_folders import FEATURES, RATE, make_training, voice, write_wav

from shards import AudioSource, FeatureOptions, InputError, UsageError, Utterance
from shards.sources.features import compute_features
from shards.sources.fmatrix import write_fmatrix
from spkid_dist.scoring import recordings
from spkid_dist.scoring.identification import load_model
from spkid_dist.scoring.recordings import RecordingReader
from spkid_dist.trained import load_trained

pytestmark = pytest.mark.fast

FRAMES = np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """Readers for models of each kind of files, and of one that only its training could read."""
    folder = tmp_path_factory.mktemp("readers")
    made = {}
    for kind in ("audio", "fmatrix", "npy", "kaldi", "made"):
        source = {"kind": kind} | ({"features": FEATURES.describe()} if kind == "audio" else {})
        place = make_training(folder / kind, source)
        made[kind] = RecordingReader(load_trained(place / "bestval_e0_weights.ckpt", place / "train.opts", None))
    return made


@pytest.mark.parametrize(("ext", "tolerance"), [("wav", 0), ("flac", 0.2), ("ogg", 5)])
def test_a_recording_has_the_features_of_the_training(readers, tmp_path, ext, tolerance):
    path = write_wav(tmp_path / f"a.{ext}", voice(), **({"subtype": "FLOAT"} if ext == "wav" else {}))
    np.testing.assert_allclose(
        readers["audio"].read(path), compute_features(voice(), FEATURES, "a"), rtol=0, atol=tolerance
    )


def test_feature_files_are_read_whatever_their_ending(readers, tmp_path):
    write_fmatrix(tmp_path / "a.what", FRAMES)
    np.save(tmp_path / "b.npy", FRAMES)
    np.savez(tmp_path / "c.npz", FRAMES)
    for kind, name in (("fmatrix", "a.what"), ("npy", "b.npy"), ("npy", "c.npz")):
        np.testing.assert_array_equal(readers[kind].read(tmp_path / name), FRAMES)


def test_a_kaldi_matrix_is_a_file_or_a_place_in_an_archive(readers, tmp_path):
    matrices = {"first": FRAMES[::-1].copy(), "second": FRAMES}
    kaldiio.save_ark(str(tmp_path / "f.ark"), matrices, scp=str(tmp_path / "f.scp"))
    kaldiio.save_mat(str(tmp_path / "one:mat"), FRAMES)
    second = (tmp_path / "f.scp").read_text().splitlines()[1].split()[1]
    for place in (second, tmp_path / "one:mat"):
        np.testing.assert_array_equal(readers["kaldi"].read(place), FRAMES)
    np.testing.assert_array_equal(readers["kaldi"].read(f"{second}[3:5]"), FRAMES[3:6])


def read_from_standard_input(reader, data, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return reader.read("-")


def bytes_of(write, *arguments):
    file = io.BytesIO()
    write(file, *arguments)
    return file.getvalue()


def test_standard_input_holds_the_bytes_of_a_file(readers, tmp_path, monkeypatch):
    path = write_wav(tmp_path / "a.wav", voice())
    expected = readers["audio"].read(path)
    np.testing.assert_array_equal(read_from_standard_input(readers["audio"], path.read_bytes(), monkeypatch), expected)
    write_fmatrix(tmp_path / "a.mcp", FRAMES)
    kaldiio.save_mat(str(tmp_path / "a.mat"), FRAMES)
    for kind, data in (
        ("fmatrix", (tmp_path / "a.mcp").read_bytes()),
        ("npy", bytes_of(np.save, FRAMES)),
        ("npy", bytes_of(np.savez, FRAMES)),
        ("kaldi", (tmp_path / "a.mat").read_bytes()),
    ):
        np.testing.assert_array_equal(read_from_standard_input(readers[kind], data, monkeypatch), FRAMES)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF024])
def test_a_wav_written_to_a_pipe_does_not_know_its_length(readers, tmp_path, monkeypatch, size):
    path = write_wav(tmp_path / "a.wav", voice())
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = size.to_bytes(4, "little")
    data[4:8] = b"\xff\xff\xff\xff"
    found = read_from_standard_input(readers["audio"], bytes(data), monkeypatch)
    np.testing.assert_array_equal(found, readers["audio"].read(path))


@pytest.mark.parametrize("kind", ["audio", "fmatrix"])
def test_a_named_pipe_is_read_to_its_end(readers, tmp_path, kind):
    path = write_wav(tmp_path / "a.wav", voice())
    if kind == "fmatrix":
        write_fmatrix(path, FRAMES)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(path.read_bytes(),))
    writer.start()
    found = readers[kind].read(tmp_path / "pipe")
    writer.join()
    np.testing.assert_array_equal(found, readers[kind].read(path))


def test_a_named_pipe_that_nobody_writes_to_is_not_waited_for_for_ever(readers, tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "PIPE_SECONDS", 0.01)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"pipe: is a named pipe, and no program has opened it to write for 0\.01 s"):
        readers["audio"].read(tmp_path / "pipe")


def stereo():
    return np.stack((voice(), voice(number=2)), axis=1)


AUDIO = {
    "silence": (
        lambda p: write_wav(p, np.zeros(4000)),
        r"no signal: all 4000 samples are 0; give a recording of speech",
    ),
    "a constant": (lambda p: write_wav(p, np.full(4000, 0.25)), r"no signal: all 4000 samples are 0\.25"),
    "10 ms": (
        lambda p: write_wav(p, voice(0.01)),
        r"80 samples \(10 ms\) are too few for a frame of 25 ms at 8000 Hz; give a longer recording",
    ),
    "no samples": (lambda p: write_wav(p, np.zeros(0)), r"0 samples; expected audio: record or convert it again"),
    "another sample rate": (
        lambda p: write_wav(p, voice(), 16000),
        r"its sample rate is 16000 Hz, expected 8000 Hz: the model was trained on this rate; resample the recording",
    ),
    "two channels": (lambda p: write_wav(p, stereo()), r"it has 2 channels, expected one: the model was trained on"),
    "an empty file": (lambda p: p.write_bytes(b""), r"the file is empty; expected audio"),
    "half of a wav": (
        lambda p: p.write_bytes(write_wav(p, voice()).read_bytes()[:999]),
        r"truncated: 955 of 6400 bytes",
    ),
    "features": (
        lambda p: p.write_bytes(bytes_of(np.save, FRAMES)),
        r"it seems to be a \.npy file, but the model was trained on recordings; give such files",
    ),
    "text": (
        lambda p: p.write_text("hello there"),
        r"it seems to be text, but the model was trained on recordings",
    ),
    "an m4a": (
        lambda p: p.write_bytes(b"\0\0\0 ftypM4A " + bytes(99)),
        r"it seems to be an m4a or mp4 file: convert it \(ffmpeg -i FILE FILE\.wav\)$",
    ),
    "noise of bytes": (lambda p: p.write_bytes(b"\x01\xf0\x9d" * 99), r"such as wav, flac, mp3 or ogg: convert it"),
    "nothing": (lambda _: None, r"can't be read: No such file or directory; check its name"),
    "a folder": (lambda p: p.mkdir(), r"is a folder; give the files in it, such as .*/\*"),
}


@pytest.mark.parametrize("case", AUDIO)
def test_a_recording_that_is_none_says_why(readers, tmp_path, case):
    write, message = AUDIO[case]
    write(tmp_path / "a.wav")
    with pytest.raises(InputError, match=rf"a\.wav: .*{message}|a\.wav: {message}"):
        readers["audio"].read(tmp_path / "a.wav")


FEATURE_FILES = {
    "other features": (
        lambda p: write_fmatrix(p, FRAMES[:, :7]),
        r"7 features per frame, but the model was trained on 8",
    ),
    "no frames": (lambda p: write_fmatrix(p, FRAMES[:0]), r"0 frames; expected at least 1: compute the features again"),
    "not a number": (
        lambda p: write_fmatrix(p, np.where(FRAMES[3, 2] == FRAMES, np.nan, FRAMES)),
        r"frame 3, feature 2 is nan; expected finite numbers",
    ),
    "silence": (lambda p: write_fmatrix(p, np.full((30, 8), -15.9)), r"no signal: all 30 frames are the same"),
    "one silent frame": (
        lambda p: write_fmatrix(p, np.zeros((1, 8))),
        r"no signal: all features of its frame are the same",
    ),
    "a wav": (
        lambda p: write_wav(p.with_suffix(".wav"), voice()).rename(p),
        r"it seems to be a wav file, but the model was trained on fmatrix files; give such files",
    ),
    "truncated": (lambda p: p.write_bytes(np.array([9, 8], "<i4").tobytes()), r"truncated: 8 bytes"),
    "empty": (lambda p: p.write_bytes(b""), r"it is empty; expected an fmatrix file"),
}


@pytest.mark.parametrize("case", FEATURE_FILES)
def test_a_feature_file_that_is_none_says_why(readers, tmp_path, case):
    write, message = FEATURE_FILES[case]
    write(tmp_path / "a.mcp")
    with pytest.raises(InputError, match=rf"a\.mcp: {message}"):
        readers["fmatrix"].read(tmp_path / "a.mcp")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused_as_it_may_have_no_end(readers, path):
    for kind in ("audio", "fmatrix"):
        with pytest.raises(InputError, match=rf"{path}: is a device, not a file"):
            readers[kind].read(path)


def test_an_empty_standard_input_is_named(readers, monkeypatch):
    with pytest.raises(InputError, match=r"^standard input: it is empty; expected a recording, such as wav or flac$"):
        read_from_standard_input(readers["audio"], b"", monkeypatch)


def test_the_channel_of_the_training_is_taken(tmp_path):
    features = FeatureOptions(sample_rate=RATE, num_bins=8, channel=2)
    place = make_training(tmp_path / "ckpt", {"kind": "audio", "features": features.describe()})
    reader = RecordingReader(load_trained(place / "bestval_e0_weights.ckpt", place / "train.opts", None))
    path = write_wav(tmp_path / "two.wav", stereo(), subtype="FLOAT")
    np.testing.assert_array_equal(reader.read(path), compute_features(stereo()[:, 1].copy(), features, "two"))
    with pytest.raises(
        InputError, match=r"one\.wav: it has 1 channels, expected at least 2: the model was trained on that"
    ):
        reader.read(write_wav(tmp_path / "one.wav", voice()))


def reader_of(folder, features, **more):
    source = {"kind": "audio", "ext": "wav", "features": features.describe()} | more
    place = make_training(folder, source)
    return RecordingReader(load_trained(place / "bestval_e0_weights.ckpt", place / "train.opts", None))


def test_steps_of_the_training_are_done_alike(tmp_path):
    """Channels mixed, sliding means subtracted, voiced frames kept: in files, standard input and arrays, as in sharding."""
    features = FeatureOptions(sample_rate=RATE, num_bins=8, downmix=True, cmvn="sliding", cmvn_window=9, vad="energy")
    reader = reader_of(tmp_path / "ckpt", features)
    path = write_wav(tmp_path / "a.wav", stereo(), subtype="FLOAT")
    expected = AudioSource(tmp_path, "wav", features).load(Utterance("a", ""))
    np.testing.assert_array_equal(reader.read(path), expected)
    mixed = stereo().mean(axis=1, dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(reader.read(mixed, RATE), expected)


def test_a_recording_of_another_rate_is_resampled_where_the_training_was(tmp_path):
    pytest.importorskip("soxr", reason="soxr is not installed (extra audio)")
    features = FeatureOptions(sample_rate=RATE, num_bins=8, resample=True)
    reader = reader_of(tmp_path / "ckpt", features)
    samples = np.repeat(voice(), 2)
    path = write_wav(tmp_path / "a.wav", samples, 2 * RATE, subtype="FLOAT")
    expected = AudioSource(tmp_path, "wav", features).load(Utterance("a", ""))
    assert expected.shape == compute_features(voice(), features, "a").shape
    np.testing.assert_array_equal(reader.read(path), expected)
    np.testing.assert_array_equal(reader.read(samples, 2 * RATE), expected)
    with pytest.raises(InputError, match=r"its sample rate is 10 Hz, expected 1000 to 384000 Hz"):
        reader.read(samples, 10)


def test_a_model_of_files_decoded_by_ffmpeg_reads_such_files(tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not on PATH")
    reader = reader_of(tmp_path / "ckpt", FEATURES, ffmpeg=True)
    path, ext = write_wav(tmp_path / "a.wav", voice()), ".mka"
    subprocess.run(
        ["ffmpeg", "-nostdin", "-loglevel", "error", "-i", path, "-c:a", "pcm_s16le", path.with_suffix(ext)], check=True
    )
    np.testing.assert_array_equal(reader.read(path.with_suffix(ext)), reader.read(path))


def test_arrays_are_samples_or_frames(readers):
    expected = compute_features(voice(), FEATURES, "a")
    for samples in (voice(), voice().astype(np.float64), voice().repeat(2)[::2]):
        np.testing.assert_array_equal(readers["audio"].read(samples, RATE), expected)
    for kind in readers:
        np.testing.assert_array_equal(readers[kind].read(FRAMES.astype(np.float64)), FRAMES)


@pytest.mark.parametrize(
    ("kind", "array", "rate", "error", "message"),
    [
        (
            "audio",
            voice(),
            None,
            UsageError,
            r"array of shape \(3200,\): samples without their sample rate; give sample_rate=8000",
        ),
        ("audio", voice(), 16000, InputError, r"its sample rate is 16000 Hz, expected 8000 Hz"),
        (
            "audio",
            (voice() * 32768).astype(np.int16),
            RATE,
            UsageError,
            r"it is int16 of shape \(3200,\); expected floating",
        ),
        (
            "audio",
            np.zeros((2, 3, 4)),
            None,
            UsageError,
            r"float64 of shape \(2, 3, 4\); expected floating numbers, samples",
        ),
        ("audio", np.zeros(0), RATE, InputError, r"0 samples \(0 ms\) are too few"),
        ("audio", np.zeros(9000), RATE, InputError, r"no signal: all 9000 samples are 0"),
        ("audio", voice() * np.nan, RATE, InputError, r"sample 0 is nan; expected samples in -1\.\.1"),
        ("audio", voice().astype(np.float64) * 1e300, RATE, InputError, r"expected samples in -1\.\.1"),
        ("fmatrix", voice(), RATE, UsageError, r"samples, but the model was trained on fmatrix files; give frames"),
        ("fmatrix", FRAMES[:, :3], None, InputError, r"3 features per frame, but the model was trained on 8"),
        ("fmatrix", FRAMES.astype(np.float64) * 1e300, None, InputError, r"frame 0, feature 0 is inf; expected finite"),
    ],
)
def test_an_array_that_is_neither_says_what_was_expected(readers, kind, array, rate, error, message):
    with pytest.raises(error, match=message):
        readers[kind].read(array, rate)


def test_a_model_of_a_source_of_ones_own_takes_frames_alone(readers, tmp_path):
    np.testing.assert_array_equal(readers["made"].read(FRAMES), FRAMES)
    with pytest.raises(
        InputError, match=r"of the kind 'made', which only its training could read; compute their frames"
    ):
        readers["made"].read(tmp_path / "a.x")


def test_a_large_recording_that_lies_about_its_length_costs_no_memory(readers, tmp_path):
    path = write_wav(tmp_path / "a.wav", voice())
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = (0x7000_0000).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.wav: truncated: 6400 of 1879048192 bytes of samples"):
        readers["audio"].read(path)


def test_damaged_options_of_features_are_found_when_the_model_is_opened(tmp_path):
    place = make_training(tmp_path / "ckpt", {"kind": "audio", "features": {"kind": "plp"}})
    with pytest.raises(InputError, match=r"the audio features in train\.opts .* are damaged"):
        load_model(place)


def test_a_library_that_is_missing_is_named_when_the_model_is_opened(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UsageError, match=r"soundfile can't be imported .*, and this model needs it: run .*soundfile"):
        load_model(make_training(tmp_path / "ckpt"))


def test_eight_bit_and_24_bit_recordings_have_the_same_scale(readers, tmp_path):
    loud = (voice() / np.abs(voice()).max()).astype(np.float32)
    expected = compute_features(loud, FEATURES, "a")
    for subtype, tolerance in (("PCM_U8", 1.5), ("PCM_24", 0.01), ("DOUBLE", 1e-4)):
        path = write_wav(tmp_path / f"{subtype}.wav", loud, subtype=subtype)
        np.testing.assert_allclose(readers["audio"].read(path), expected, atol=tolerance)
    assert soundfile.info(tmp_path / "PCM_U8.wav").subtype == "PCM_U8"
