"""Read audio files: soundfile decodes all that libsndfile knows, ffmpeg the rest where that is asked for.

`shards.sources.features` makes frames of the samples. libsndfile plays what is left of a file that was cut short; here that is
an error (`shards.sources.containers`). Samples are decoded, mixed and resampled piece by piece, and the features of each piece
are computed before the next: a small file may hold hours of silence.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from shards.corpus import Utterance
from shards.errors import InputError
from shards.extras import import_extra
from shards.files import open_regular
from shards.guesses import FFMPEG, HEAD, content_kind, guess_content, guess_missing_file
from shards.sources.containers import check_log, check_whole, truncated
from shards.sources.featureoptions import FeatureOptions
from shards.sources.features import FeatureComputer, make_extractor
from shards.sources.ffmpeg import decoded_by_ffmpeg, find_ffmpeg
from shards.sources.limits import DEFAULT_LIMIT, UtteranceLimit
from shards.sources.mono import check_shape, make_mono, prepare_mono

READ_SAMPLES = 2**18  # at a time: a header that lies costs no more memory than this
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's word for a length that the header does not tell
UNRECOGNISED = 1  # libsndfile's error for a file of a kind that it does not know


@dataclass(frozen=True, kw_only=True)
class AudioRemedies:
    """What messages advise to do about a file; `{found}` stands for its sample rate."""

    missing: str = "check the list, --db_path and --ext"
    kind: str = (
        "give --ffmpeg, which decodes m4a, aac, webm and more, or convert it (ffmpeg -i FILE FILE.wav), or check --ext"
    )
    no_samples: str = "remove the utterance from the list"
    sample_rate: str = "give --features.sample_rate {found} if all files have that, or --features.resample"
    one_channel: str = "choose one with --features.channel, counted from 1, or mix them with --features.downmix"
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
    ffmpeg: bool = False

    def __post_init__(self) -> None:
        """Check beforehand that features can be computed."""
        prepare_audio(self.features, self.ffmpeg)

    @classmethod
    def from_description(cls, description: dict[str, Any], db_path: Path, limit: UtteranceLimit) -> "AudioSource":
        """The source that `describe` described, on another folder.

        Raises:
            InputError: the features' options are damaged.
        """
        features = FeatureOptions.from_description(description.get("features"))
        ext, ffmpeg = str(description.get("ext", cls.ext)), description.get("ffmpeg") is True
        return cls(db_path, ext, features, limit=limit, ffmpeg=ffmpeg)

    def describe(self) -> dict[str, Any]:
        """Kind of source and its options."""
        description = {"kind": "audio", "ext": self.ext, "features": self.features.describe()}
        return description | ({"ffmpeg": True} if self.ffmpeg else {})

    def where(self, utterance: Utterance) -> str:
        """The audio file."""
        return f"{self.db_path}/{utterance.key}.{self.ext}"

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The utterance's features, (T, D) float32; see `audio_features`.

        Raises:
            InputError: as there; or the file is missing or no regular file.
        """
        path = self.where(utterance)
        try:
            with open_regular(path) as file:
                return audio_features(file, path, self.features, self.limit, self.remedies, self.ffmpeg)
        except OSError as error:
            raise _unreadable(path, error, self.remedies) from None


def prepare_audio(features: FeatureOptions, ffmpeg: bool = False, needed_by: str = "this source") -> None:
    """Check that features can be computed of audio. Raises UsageError where a library or ffmpeg is missing, or as
    `make_extractor`; `needed_by` is for the message.
    """
    import_extra("soundfile", "audio", needed_by)
    prepare_mono(features, needed_by)
    make_extractor(features)
    if ffmpeg:
        find_ffmpeg()


def audio_features(
    file: IO[bytes],
    where: str,
    features: FeatureOptions,
    limit: UtteranceLimit = DEFAULT_LIMIT,
    remedies: AudioRemedies = OF_SHARDING,
    ffmpeg: bool = False,
) -> NDArray[np.float32]:
    """The features (T, D) float32 of an open audio file, or of an `io.BytesIO`; `where` it is, is for messages.

    Raises:
        InputError: as `decode_audio` and `FeatureComputer`; or the features exceed the limit.
        OSError: the file can't be read.
    """
    computer = FeatureComputer(features, where, limit)
    for samples in decode_audio(file, where, features, remedies, computer.check_length, ffmpeg):
        computer.add(samples)
    return computer.frames()


def read_audio(
    path: str, features: FeatureOptions, remedies: AudioRemedies = OF_SHARDING, ffmpeg: bool = False
) -> NDArray[np.float32]:
    """All samples (n,) float32 in -1..1 of a file, as `features` take them; see `decode_audio`.

    Raises:
        InputError: the file is missing or no regular file, or as `decode_audio`.
        UsageError: a library that is needed is not installed.
    """
    try:
        with open_regular(path) as file:
            return np.concatenate(list(decode_audio(file, path, features, remedies, ffmpeg=ffmpeg)))
    except OSError as error:
        raise _unreadable(path, error, remedies) from None


def _unreadable(path: str, error: OSError, remedies: AudioRemedies) -> InputError:
    guess = guess_missing_file(path) if isinstance(error, FileNotFoundError | NotADirectoryError) else None
    return InputError(f"{path}: can't read this audio file: {error.strerror}; {guess or remedies.missing}")


def decode_audio(
    file: IO[bytes],
    where: str,
    features: FeatureOptions,
    remedies: AudioRemedies = OF_SHARDING,
    check_length: Callable[[int], None] = lambda _num_samples: None,
    ffmpeg: bool = False,
) -> Iterator[NDArray[np.float32]]:
    """Decode an open file, or an `io.BytesIO`, to one channel piece by piece; `where` it is, is for messages.

    Yields the samples, (n,) float32 in -1..1, of the channel, the mix and the sample rate that `features` ask for.
    `check_length` is called with the number of samples that the header names, if it does, before any is decoded.

    Raises:
        InputError: the file is damaged or cut short, of a kind that neither libsndfile nor, with `ffmpeg`, that program
            knows; or has another sample rate or number of channels than `features` take.
        OSError: it can't be read.
        UsageError: soundfile, soxr or ffmpeg is not installed, and needed.
    """
    with _with_descriptor(file) as whole:
        check_whole(whole, where)
        whole.seek(0)
        with _opened(whole, where, remedies, ffmpeg) as (rate, channels, num_frames, pieces):
            check_shape(rate, channels, features, where, remedies)
            if num_frames != UNKNOWN_FRAMES:
                check_length(num_frames * features.sample_rate // rate)
            num_samples = 0
            for samples in make_mono(pieces, rate, features):
                num_samples += len(samples)
                yield samples
            if num_samples == 0:
                raise InputError(f"{where}: 0 samples; expected audio: {remedies.no_samples}")


@contextmanager
def _with_descriptor(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The file; a temporary one with the bytes of a file that has no descriptor."""
    try:
        file.fileno()
    except OSError:
        with tempfile.TemporaryFile(buffering=0) as copy:
            file.seek(0)
            shutil.copyfileobj(file, copy)
            yield copy
    else:
        yield file


Opened = tuple[int, int, int, Iterator[NDArray[np.float32]]]
"""Sample rate, channels, length in samples, which may be `UNKNOWN_FRAMES`, and the samples (n, channels) piece by piece."""


@contextmanager
def _opened(file: IO[bytes], where: str, remedies: AudioRemedies, ffmpeg: bool) -> Iterator[Opened]:
    soundfile = import_extra("soundfile", "audio")
    try:
        audio = soundfile.SoundFile(file.fileno(), closefd=False)
    except soundfile.SoundFileError as error:
        if getattr(error, "code", None) != UNRECOGNISED:
            raise _damaged(where, error) from None
    else:
        try:
            with audio:
                check_log(audio, where)
                yield audio.samplerate, audio.channels, audio.frames, _read_pieces(audio, where)
        except soundfile.SoundFileError as error:
            raise _damaged(where, error) from None
        return
    if not ffmpeg:
        raise _unknown_kind(file, where, remedies)
    with decoded_by_ffmpeg(file, where) as (rate, channels, pieces):
        yield rate, channels, UNKNOWN_FRAMES, pieces


def _damaged(where: str, error: Exception) -> InputError:
    text = re.sub(r"^Error opening \d+: ", "", str(error))  # soundfile's words and the descriptor's number
    return InputError(f"{where}: can't decode this audio file: {text.rstrip('.')}; record or convert it again")


def _unknown_kind(file: IO[bytes], where: str, remedies: AudioRemedies) -> InputError:
    file.seek(0)
    head = file.read(HEAD)
    what, kind = content_kind(head) or ("", None)
    if kind == "audio":
        return InputError(f"{where}: can't decode this audio file: {what}, but damaged; record or convert it again")
    guess = f"it seems to be {what}: {remedies.kind}" if kind == FFMPEG else guess_content(head, "audio")
    return InputError(
        f"{where}: it begins with {head[:4]!r}; expected a file that libsndfile reads, such as wav, flac, mp3 or ogg: "
        f"{guess or remedies.kind}"
    )


def _read_pieces(audio: Any, path: str) -> Iterator[NDArray[np.float32]]:
    num_samples = 0
    while len(part := audio.read(max(1, READ_SAMPLES // audio.channels), dtype="float32", always_2d=True)):
        num_samples += len(part)
        yield part
    if num_samples < audio.frames != UNKNOWN_FRAMES:
        raise truncated(path, f"{num_samples} of {audio.frames} samples")
