"""Audio as a source: decoding, and features against their NumPy twins. Shapes: T frames, n samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from source_checks import error_of, only_input_errors, options, samples, utterance, write_audio

from shards import AudioSource, FeatureOptions, UsageError
from shards.sources.audio import read_audio
from shards.sources.features import compute_features

pytestmark = pytest.mark.fast


def mel(frequency: Any) -> Any:
    return 1127.0 * np.log(1.0 + frequency / 700.0)


def log_mel_twin(data: np.ndarray, rate: int, num_bins: int, window_ms: float, shift_ms: float) -> np.ndarray:
    """Kaldi's log mel filter bank, written to be obviously right, (T, num_bins) float64."""
    window, shift = int(rate * window_ms / 1000), int(rate * shift_ms / 1000)
    size = 1 << (window - 1).bit_length()
    povey = np.hanning(window) ** 0.85
    edges = np.linspace(mel(20.0), mel(rate / 2), num_bins + 2)
    lines = mel(np.arange(size // 2) * rate / size)
    rows = []
    for start in range(0, len(data) - window + 1, shift):
        frame = data[start : start + window].astype(np.float64) * 32768
        frame = frame - frame.mean()
        frame = np.append(frame[0] * (1 - 0.97), frame[1:] - 0.97 * frame[:-1]) * povey
        power = np.abs(np.fft.rfft(frame, size)[: size // 2]) ** 2
        row = []
        for left, center, right in zip(edges, edges[1:], edges[2:], strict=False):
            weights = np.minimum((lines - left) / (center - left), (right - lines) / (right - center)).clip(0)
            row.append(np.log(max((weights * power).sum(), np.finfo(np.float32).eps)))
        rows.append(row)
    return np.array(rows)


def mfcc_twin(log_mel: np.ndarray, num_ceps: int) -> np.ndarray:
    """Kaldi's cepstrum of (T, num_bins): orthonormal DCT-II, liftered, (T, num_ceps) float64."""
    num_bins = log_mel.shape[1]
    k, n = np.arange(num_ceps), np.arange(num_bins)
    dct = np.sqrt(2 / num_bins) * np.cos(np.pi / num_bins * np.outer(n + 0.5, k))
    dct[:, 0] = np.sqrt(1 / num_bins)
    return log_mel @ dct * (1 + 11 * np.sin(np.pi * k / 22))


@pytest.mark.parametrize(("rate", "num_bins", "window_ms", "shift_ms"), [(8000, 40, 25, 10), (16000, 23, 32, 8)])
def test_features_equal_their_numpy_twins(rate: int, num_bins: int, window_ms: float, shift_ms: float) -> None:
    data = samples(rate=rate)
    shared = {"sample_rate": rate, "num_bins": num_bins, "window_ms": window_ms, "shift_ms": shift_ms}
    expected = log_mel_twin(data, rate, num_bins, window_ms, shift_ms)
    frames = compute_features(data, FeatureOptions(**shared), "x")
    assert frames.dtype == np.float32
    np.testing.assert_allclose(frames, expected, atol=2e-3)
    cepstra = compute_features(data, FeatureOptions(kind="mfcc", num_ceps=13, **shared), "x")
    np.testing.assert_allclose(cepstra, mfcc_twin(expected, 13), atol=2e-2)


def test_frames_lie_wholly_within_the_samples() -> None:
    for num_samples, num_frames in ((200, 1), (279, 1), (280, 2), (4000, 48)):
        assert compute_features(samples()[:num_samples], options(), "x").shape == (num_frames, 40)


@pytest.mark.parametrize(("ext", "tolerance"), [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.05)])
def test_audio_of_each_kind_is_read(tmp_path: Path, ext: str, tolerance: float) -> None:
    path = write_audio(tmp_path / f"a.{ext}")
    np.testing.assert_allclose(read_audio(str(path), options()), samples(), atol=tolerance)
    source = AudioSource(tmp_path, ext, options())
    first, second = (source.load(utterance("a")) for _ in range(2))
    assert first.shape == (48, 40)
    np.testing.assert_array_equal(first, second)


def test_audio_longer_than_one_read_is_read_as_a_whole(tmp_path: Path) -> None:
    data = np.tile(samples(), 150)
    path = write_audio(tmp_path / "a.wav", data)
    np.testing.assert_allclose(read_audio(str(path), options()), data, atol=1e-4)


def test_channel_of_a_stereo_file_is_chosen(tmp_path: Path) -> None:
    data = samples(channels=2)
    path = str(write_audio(tmp_path / "a.wav", data))
    np.testing.assert_allclose(read_audio(path, options(channel=1)), data[:, 0], atol=1e-4)
    np.testing.assert_allclose(read_audio(path, options(channel=2)), data[:, 1], atol=1e-4)
    assert error_of(read_audio, path, options()) == (
        f"{path}: it has 2 channels, expected one: choose one with --features.channel, counted from 1, "
        "or mix them with --features.downmix"
    )
    assert error_of(read_audio, path, options(channel=3)) == (
        f"{path}: it has 2 channels, expected at least 3: set --features.channel to one that all files have"
    )


def test_audio_of_another_sample_rate_is_an_error(tmp_path: Path) -> None:
    path = str(write_audio(tmp_path / "a.wav"))
    assert error_of(read_audio, path, options(sample_rate=16000)) == (
        f"{path}: its sample rate is 8000 Hz, expected 16000 Hz: give --features.sample_rate 8000 if all files have that, "
        "or --features.resample"
    )


def test_audio_without_samples_is_an_error(tmp_path: Path) -> None:
    path = str(write_audio(tmp_path / "a.wav", np.zeros(0, np.float32)))
    assert error_of(read_audio, path, options()) == (
        f"{path}: 0 samples; expected audio: remove the utterance from the list"
    )
    (tmp_path / "a.wav").write_bytes(b"")
    assert error_of(read_audio, path, options()) == (
        f"{path}: the file is empty; expected audio: record or convert it again"
    )


def test_audio_too_short_for_a_frame_is_an_error(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", samples()[:199])
    assert error_of(AudioSource(tmp_path, "wav", options()).load, utterance("a")) == (
        f"{path}: 199 samples are too few for a frame of 25.0 ms at 8000 Hz; remove the utterance from the list"
    )


def test_truncated_audio_is_an_error(tmp_path: Path) -> None:
    for ext, text in (
        ("wav", "truncated: 3978 of 8000 bytes of samples"),
        ("ogg", "truncated: its last page is missing"),
    ):
        data = write_audio(tmp_path / f"a.{ext}").read_bytes()
        path = tmp_path / f"cut.{ext}"
        path.write_bytes(data[: len(data) // 2])
        assert error_of(read_audio, str(path), options()) == f"{path}: {text}; copy or convert it again"
    data = write_audio(tmp_path / "a.flac").read_bytes()
    path = tmp_path / "cut.flac"
    path.write_bytes(data[: len(data) // 2])
    assert error_of(read_audio, str(path), options()).startswith(f"{path}: can't decode this audio file: ")


def test_wav_written_to_a_pipe_is_read(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav")
    data = bytearray(path.read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    np.testing.assert_allclose(read_audio(str(path), options()), samples(), atol=1e-4)


def test_file_that_is_no_audio_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    for data, guess in (
        (b"\x01\xf0\x9d" * 99, ""),
        (b"\0\0\0\x20ftypM4A " + bytes(99), "it seems to be an m4a or mp4 file: "),
    ):
        path.write_bytes(data)
        assert error_of(read_audio, str(path), options()) == (
            f"{path}: it begins with {data[:4]!r}; expected a file that libsndfile reads, such as wav, flac, mp3 or ogg: "
            f"{guess}"
            "give --ffmpeg, which decodes m4a, aac, webm and more, or convert it (ffmpeg -i FILE FILE.wav), or check --ext"
        )
    path.write_bytes(b"RIFF....WAVEfmt and nonsense")
    assert error_of(read_audio, str(path), options()).startswith(f"{path}: can't decode this audio file: ")
    assert error_of(read_audio, str(tmp_path / "none.wav"), options()) == (
        f"{tmp_path}/none.wav: can't read this audio file: No such file or directory; check the list, --db_path and --ext"
    )


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e38])
def test_sample_that_is_not_finite_or_too_large_is_an_error(tmp_path: Path, value: float) -> None:
    data = samples()
    data[7] = value
    path = write_audio(tmp_path / "a.wav", data, subtype="FLOAT")
    assert error_of(AudioSource(tmp_path, "wav", options()).load, utterance("a")) == (
        f"{path}: sample 7 is {data[7]}; expected samples in -1..1: record or convert it again"
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kind": "plp"}, "--features.kind plp: expected fbank or mfcc"),
        ({"sample_rate": 10}, "--features.sample_rate 10: expected 1000 to 384000"),
        ({"num_bins": 2}, "--features.num_bins 2: expected 3 to 1000"),
        ({"kind": "mfcc", "num_ceps": 41}, "--features.num_ceps 41: expected 1 to 40"),
        ({"window_ms": float("nan")}, "--features.window_ms nan: expected 1 to 1000"),
        ({"shift_ms": 0.5}, "--features.shift_ms 0.5: expected 1 to 1000"),
        ({"channel": 0}, "--features.channel 0: channels count from 1; give 1 or more"),
        ({"resample": 1}, "--features.resample 1: expected true or false"),
        ({"num_bins": 40.5}, "--features.num_bins 40.5: expected a whole number"),
        ({"cmvn": "all"}, "--features.cmvn all: expected none or utterance or sliding"),
        (
            {"channel": 1, "downmix": True},
            "--features.channel and --features.downmix: one channel is used, or all; give one of them",
        ),
        (
            {"low_freq": 300, "high_freq": -3800.0},
            "--features.low_freq 300 and --features.high_freq -3800.0, which is 200.0 Hz: expected 0 <= low < high <= 4000 Hz, "
            "half the sample rate",
        ),
        (
            {"cmvn_window": 9},
            "--features.cmvn_window: it has no effect; give --features.cmvn sliding too, or leave it out",
        ),
        (
            {"cmvn_variance": True},
            "--features.cmvn_variance: it has no effect; give --features.cmvn too, or leave it out",
        ),
        (
            {"vad_frames_context": 2},
            "--features.vad_frames_context: it has no effect; give --features.vad too, or leave it out",
        ),
        (
            {"delta_window": 3},
            "--features.delta_window: it has no effect; give --features.delta_order too, or leave it out",
        ),
        (
            {"cmvn": "sliding", "cmvn_min_window": 9},
            "--features.cmvn_min_window: it has no effect; give --features.cmvn_causal too, or leave it out",
        ),
        (
            {"dither": 1.0},
            "--features.dither 1.0: expected 0: the library draws other noise in each run, and features would differ between "
            "sharding and scoring; leave it out",
        ),
    ],
)
def test_feature_options_out_of_range_are_used_wrongly(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as raised:
        options(**changes)
    assert str(raised.value) == text


def test_more_bins_than_the_spectrum_has_lines_for_are_used_wrongly(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        AudioSource(tmp_path, "wav", options(num_bins=200))
    assert str(raised.value).startswith("--features.num_bins 200 with --features.window_ms 25.0 at 8000 Hz: ")
    assert str(raised.value).endswith("; give fewer bins or a longer window")


WHOLE_FILES: dict[str, bytes] = {}


@pytest.fixture(scope="module")
def audio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    for ext in ("wav", "flac", "ogg"):
        WHOLE_FILES[ext] = write_audio(folder / f"whole.{ext}", samples(0.1)).read_bytes()
    return folder


@given(
    magic=st.sampled_from([b"", b"RIFF", b"RIFF\0\1\0\0WAVEfmt \x10\0\0\0\1\0", b"fLaC", b"OggS", b"RF64"]),
    data=st.binary(),
)
@settings(deadline=None, max_examples=500)
def test_any_bytes_as_audio_give_frames_or_an_input_error(audio_folder: Path, magic: bytes, data: bytes) -> None:
    (audio_folder / "fuzz.wav").write_bytes(magic + data)
    only_input_errors(AudioSource(audio_folder, "wav", options()).load, utterance("fuzz"))


@given(
    ext=st.sampled_from(["wav", "flac", "ogg"]),
    at=st.integers(0, 150) | st.integers(0, 10**5),
    value=st.integers(0, 255),
)
@settings(deadline=None, max_examples=500)
def test_audio_with_a_changed_byte_gives_frames_or_an_input_error(
    audio_folder: Path, ext: str, at: int, value: int
) -> None:
    data = bytearray(WHOLE_FILES[ext])
    data[at % len(data)] = value
    (audio_folder / f"fuzz.{ext}").write_bytes(data)
    only_input_errors(AudioSource(audio_folder, ext, options()).load, utterance("fuzz"))


@given(data=hnp.arrays("<f4", st.integers(200, 300)))
@settings(deadline=None, max_examples=200)
@example(data=np.full(200, 1e38, np.float32))
@example(data=np.full(200, 1e34, np.float32))
def test_any_samples_give_frames_or_an_input_error(data: np.ndarray) -> None:
    only_input_errors(compute_features, data, options(), "x")
