"""Read audio files (wav, flac, ogg): soundfile decodes them, `shards.sources.features` makes frames of them.

libsndfile plays what is left of a file that was cut short; here that is an error. Samples are decoded piece by piece, and the
features of each piece are computed before the next: a small file may hold hours of silence.
"""

import io
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from shards.corpus import Utterance
from shards.errors import InputError
from shards.extras import import_extra
from shards.files import open_regular
from shards.guesses import HEAD, guess_content, guess_missing_file
from shards.sources.features import FeatureComputer, FeatureOptions, make_extractor
from shards.sources.limits import DEFAULT_LIMIT, UtteranceLimit

READ_SAMPLES = 2**18  # at a time: a header that lies costs no more memory than this
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's word for a length that the header does not tell
UNKNOWN_BYTES = 0x7FFFF000  # from here on a wav's size is a placeholder of a program that wrote to a pipe
OGG_TAIL = 65536  # bytes; an ogg page is shorter
OGG_LAST_PAGE = 4  # flag in a page's header


@dataclass(frozen=True, kw_only=True)
class AudioRemedies:
    """What messages advise to do about a file; `{found}` stands for its sample rate."""

    missing: str = "check the list, --db_path and --ext"
    kind: str = "convert it, or check --ext"
    no_samples: str = "remove the utterance from the list"
    sample_rate: str = "give --features.sample_rate {found} if all files have that, or resample it"
    one_channel: str = "choose one with --features.channel, counted from 1"
    channel: str = "set --features.channel to one that all files have"


OF_SHARDING = AudioRemedies()


@dataclass(frozen=True)
class AudioSource:
    """The files ``{db_path}/{key}.{ext}``, as features.

    Raises:
        UsageError: soundfile or kaldi-native-fbank is not installed, or the features' options can't be together.
    """

    db_path: Path
    ext: str = "wav"
    features: FeatureOptions = field(default_factory=FeatureOptions)
    remedies: AudioRemedies = OF_SHARDING
    limit: UtteranceLimit = DEFAULT_LIMIT

    def __post_init__(self) -> None:
        """Check beforehand that features can be computed."""
        import_extra("soundfile", "audio")
        make_extractor(self.features)

    @classmethod
    def from_description(cls, description: dict[str, Any], db_path: Path, limit: UtteranceLimit) -> "AudioSource":
        """The source that `describe` described, on another folder.

        Raises:
            InputError: the features' options are damaged.
        """
        features = FeatureOptions.from_description(description.get("features"))
        return cls(db_path, str(description.get("ext", cls.ext)), features, limit=limit)

    def describe(self) -> dict[str, Any]:
        """Kind of source and its options."""
        return {"kind": "audio", "ext": self.ext, "features": self.features.describe()}

    def where(self, utterance: Utterance) -> str:
        """The audio file."""
        return f"{self.db_path}/{utterance.key}.{self.ext}"

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The utterance's features, (T, D) float32; see `read_audio` and `compute_features`.

        Raises:
            InputError: as those; or the features exceed the limit.
        """
        path, features = self.where(utterance), self.features
        computer = FeatureComputer(features, path, self.limit)
        try:
            with open_regular(path) as file:
                pieces = decode_audio(
                    file, path, features.sample_rate, features.channel, self.remedies, computer.check_length
                )
                for samples in pieces:
                    computer.add(samples)
        except OSError as error:
            raise _unreadable(path, error, self.remedies) from None
        return computer.frames()


def read_audio(
    path: str, sample_rate: int, channel: int | None = None, remedies: AudioRemedies = OF_SHARDING
) -> NDArray[np.float32]:
    """All samples of one channel, (n,) float32 in -1..1; channels count from 1, None is for files that have only one.

    Raises:
        InputError: the file is missing or no regular file, or as `decode_audio`.
        UsageError: soundfile is not installed.
    """
    try:
        with open_regular(path) as file:
            return np.concatenate(list(decode_audio(file, path, sample_rate, channel, remedies)))
    except OSError as error:
        raise _unreadable(path, error, remedies) from None


def _unreadable(path: str, error: OSError, remedies: AudioRemedies) -> InputError:
    guess = guess_missing_file(path) if isinstance(error, FileNotFoundError | NotADirectoryError) else None
    return InputError(f"{path}: can't read this audio file: {error.strerror}; {guess or remedies.missing}")


def decode_audio(
    file: IO[bytes],
    where: str,
    sample_rate: int,
    channel: int | None = None,
    remedies: AudioRemedies = OF_SHARDING,
    check_length: Callable[[int], None] = lambda _num_samples: None,
) -> Iterator[NDArray[np.float32]]:
    """Decode one channel of an open file, or of an `io.BytesIO`, piece by piece; `where` it is, is for messages.

    Yields the samples, (n,) float32 in -1..1; channels count from 1, None is for files that have only one. `check_length` is
    called with the number of samples that the header names, if it does, before any is decoded.

    Raises:
        InputError: the file is damaged or cut short, is no wav, flac or ogg, or has another sample rate, no such channel,
            or several and `channel` is None.
        OSError: it can't be read.
        UsageError: soundfile is not installed.
    """
    soundfile = import_extra("soundfile", "audio")
    _check_container(file, where, remedies)
    file.seek(0)
    try:
        with soundfile.SoundFile(file if isinstance(file, io.BytesIO) else file.fileno(), closefd=False) as audio:
            _check_audio(audio, sample_rate, channel, where, remedies)
            if audio.frames != UNKNOWN_FRAMES:
                check_length(audio.frames)
            yield from _read_channel(audio, (channel or 1) - 1, where, remedies)
    except soundfile.SoundFileError as error:
        raise InputError(f"{where}: can't decode this audio file: {error}; record or convert it again") from None


def _check_container(file: IO[bytes], path: str, remedies: AudioRemedies) -> None:
    """Refuse what is no wav, flac or ogg, and what was cut short without the decoder telling."""
    head = file.read(HEAD)
    magic = head[:4]
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise InputError(f"{path}: the file is empty; expected audio: record or convert it again")
    if magic == b"RIFF":
        _check_wav(file, size, path)
    elif magic == b"OggS":
        _check_ogg(file, size, path)
    elif magic not in (b"RF64", b"fLaC"):
        raise InputError(
            f"{path}: it begins with {magic!r}; expected a wav, flac or ogg file: "
            f"{guess_content(head, 'audio') or remedies.kind}"
        )


def _check_wav(file: IO[bytes], size: int, path: str) -> None:
    """The chunk of samples must be in the file as a whole."""
    at = 12  # behind "RIFF", a size and "WAVE"
    while at + 8 <= size:
        file.seek(at)
        name, num_bytes = struct.unpack("<4sI", file.read(8))
        at += 8
        if name == b"data":
            if size - at < num_bytes < UNKNOWN_BYTES:
                raise _truncated(path, f"{size - at} of {num_bytes} bytes of samples")
            return
        at += num_bytes + num_bytes % 2


def _check_ogg(file: IO[bytes], size: int, path: str) -> None:
    """The last page must say that it is the last."""
    file.seek(max(0, size - OGG_TAIL))
    tail = file.read(OGG_TAIL)
    page = tail.rfind(b"OggS")
    if page < 0 or len(tail) < page + 6 or not tail[page + 5] & OGG_LAST_PAGE:
        raise _truncated(path, "its last page is missing")


def _check_audio(audio: Any, sample_rate: int, channel: int | None, path: str, remedies: AudioRemedies) -> None:
    if audio.samplerate != sample_rate:
        raise InputError(
            f"{path}: its sample rate is {audio.samplerate} Hz, expected {sample_rate} Hz: "
            f"{remedies.sample_rate.format(found=audio.samplerate)}"
        )
    if channel is None and audio.channels != 1:
        raise InputError(f"{path}: it has {audio.channels} channels, expected one: {remedies.one_channel}")
    if channel is not None and channel > audio.channels:
        raise InputError(f"{path}: it has {audio.channels} channels, expected at least {channel}: {remedies.channel}")


def _read_channel(audio: Any, channel: int, path: str, remedies: AudioRemedies) -> Iterator[NDArray[np.float32]]:
    num_samples = 0
    while len(part := audio.read(max(1, READ_SAMPLES // audio.channels), dtype="float32", always_2d=True)):
        num_samples += len(part)
        yield np.ascontiguousarray(part[:, channel])
    if num_samples < audio.frames != UNKNOWN_FRAMES:
        raise _truncated(path, f"{num_samples} of {audio.frames} samples")
    if num_samples == 0:
        raise InputError(f"{path}: 0 samples; expected audio: {remedies.no_samples}")


def _truncated(path: str, what: str) -> InputError:
    return InputError(f"{path}: truncated: {what}; copy or convert it again")
