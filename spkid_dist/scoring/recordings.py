"""Read one recording as a trained model takes it: a file, standard input, samples or frames become frames (T, D) float32.

The files are of the kind that the model was trained on. What has no signal is refused: a network names a speaker for silence
too, and may be sure of it.

Shapes: n samples, T frames, D features.
"""

import contextlib
import io
import os
import select
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError, UsageError
from shards.extras import import_extra
from shards.guesses import HEAD, content_kind
from shards.sources.audio import AudioRemedies, decode_audio, prepare_audio
from shards.sources.featureoptions import FeatureOptions
from shards.sources.features import FeatureComputer
from shards.sources.featuresteps import least_samples
from shards.sources.fmatrix import parse_fmatrix, parse_raw, raw_features
from shards.sources.htk import HtkParameters, HtkSource, parse_htk
from shards.sources.kaldi import read_matrix_at
from shards.sources.kaldimatrix import parse_matrix
from shards.sources.kaldiscp import ENTRY
from shards.sources.kaldisteps import KaldiSteps
from shards.sources.limits import DEFAULT_LIMIT, UtteranceLimit
from shards.sources.mono import check_shape, resample
from shards.sources.npy import parse_numpy
from spkid_dist.trained import TrainedModel

Recording = str | os.PathLike[str] | NDArray[Any]
"""A file's path, samples (n,) or frames (T, D) of floating numbers."""

STANDARD_INPUT = "-"
READ_BYTES = 2**20
PIPE_SECONDS = 20.0  # that a program may take until it writes to a named pipe
KINDS = {
    "audio": "recordings",
    "fmatrix": "fmatrix files",
    "npy": "NumPy files",
    "kaldi": "Kaldi matrices",
    "htk": "HTK parameter files",
}
ONE_OF_KIND = {
    "audio": "a recording, such as wav or flac",
    "fmatrix": "an fmatrix file",
    "npy": "a NumPy file",
    "kaldi": "a Kaldi matrix",
    "htk": "an HTK parameter file",
}
OF_MODEL = AudioRemedies(
    kind="convert it (ffmpeg -i FILE FILE.wav)",
    sample_rate="the model was trained on this rate; resample the recording",
    one_channel="the model was trained on files of one channel; take one channel, or mix them",
    channel="the model was trained on that channel; give a recording that has it",
)
REMEDIES = replace(OF_MODEL, missing="check its name", no_samples="record or convert it again")


class RecordingReader:
    """Reads recordings for one model.

    Attributes:
        kind: of the files, as `shards.sources.registry` names it.
        features: how audio becomes features; None where the files hold features.

    Raises:
        InputError: the options of the model's features are damaged.
        UsageError: a library that the kind of files needs is not installed.
    """

    def __init__(self, model: TrainedModel, limit: UtteranceLimit = DEFAULT_LIMIT) -> None:
        source = model.options.get("source", {"kind": "fmatrix"})
        kind = source.get("kind") if isinstance(source, dict) else None
        self.kind = str(kind)
        self.features: FeatureOptions | None = None
        self._htk: HtkParameters | None = None
        self._steps = KaldiSteps.names(source) if self.kind == "kaldi" else []
        self._raw = raw_features(source) if self.kind == "fmatrix" else None
        self._num_features = model.num_features
        self._limit = limit
        self._ffmpeg = False
        if self.kind == "audio":
            self.features = FeatureOptions.from_description(source.get("features"))
            self._ffmpeg = source.get("ffmpeg") is True
            prepare_audio(self.features, self._ffmpeg, "this model")
        elif self.kind == "htk":
            self._htk = HtkSource.from_description(source, Path(), limit).expected
        elif self.kind == "kaldi":
            import_extra("kaldiio", "kaldi", "this model")

    def read(self, recording: Recording, sample_rate: int | None = None) -> NDArray[np.float32]:
        """The frames (T, D) of a recording; `sample_rate` is that of samples.

        Raises:
            InputError: it is missing, damaged, too short, of another kind than those of the training, or has no signal.
            UsageError: an array is neither samples nor frames, or the sample rate of samples is not given.
        """
        where = name_of(recording)
        if isinstance(recording, np.ndarray):
            frames = self._from_array(recording, sample_rate, where)
        else:
            frames = self._from_file(os.fspath(recording), where)
        self._check(frames, where)
        return frames

    def _from_file(self, path: str, where: str) -> NDArray[np.float32]:
        if self.kind not in KINDS:
            raise InputError(
                f"{where}: the model was trained on files of the kind {self.kind!r}, which only its training could read; "
                "compute their frames, and give these in Python: load_model(FOLDER).identify([frames])"
            )
        if self._steps:
            raise InputError(
                f"{where}: the model was trained on frames after {' and '.join(self._steps)}, which a file alone does not "
                "have; give frames after these in Python: load_model(FOLDER).identify([frames]), or score a folder with "
                "spkid score"
            )
        if self.kind == "kaldi" and _is_place_in_archive(path):
            return read_matrix_at(path, self._limit)
        data = b""
        try:
            if path != STANDARD_INPUT:
                _check_is_file(path)
                if self.features is not None and Path(path).is_file():
                    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - as given, also where it is a number's
                        data = file.read(HEAD)
                        file.seek(0)
                        return self._from_audio(file, where, self.features)
            data = self._read_all(path, where)
            return self._from_bytes(data, where)
        except OSError as error:
            remedy = REMEDIES.missing if isinstance(error, FileNotFoundError) else "check the file"
            raise InputError(f"{where}: can't be read: {error.strerror}; {remedy}") from None
        except InputError as error:
            found = content_kind(data)
            if found is None or str(found[1]).partition(" ")[0] == self.kind:
                raise
            raise InputError(
                f"{where}: it seems to be {found[0]}, but the model was trained on {KINDS[self.kind]}; give such files"
            ) from error

    def _read_all(self, path: str, where: str) -> bytes:
        """The bytes of a file or a pipe, which may have no end."""
        most = self._limit.max_file_bytes
        data = io.BytesIO()
        with contextlib.nullcontext(sys.stdin.buffer) if path == STANDARD_INPUT else _opened(path, data) as file:
            while data.tell() <= most and (piece := file.read(READ_BYTES)):
                data.write(piece)
        if data.tell() > most:
            raise self._limit.too_long(where, f"more than {most} bytes")
        return data.getvalue()

    def _from_bytes(self, data: bytes, where: str) -> NDArray[np.float32]:
        if not data:
            raise InputError(f"{where}: it is empty; expected {ONE_OF_KIND[self.kind]}")
        if self.features is not None:
            return self._from_audio(io.BytesIO(data), where, self.features)
        if self.kind == "kaldi":
            return parse_matrix(data, where, self._limit)
        if self.kind == "htk":
            return parse_htk(data, where, self._limit, expected=self._htk)
        if self.kind == "npy":
            return parse_numpy(data, where, self._limit)
        if self._raw is not None:
            return parse_raw(data, where, self._raw, self._limit)
        return parse_fmatrix(data, where, self._limit)

    def _from_audio(self, file: Any, where: str, features: FeatureOptions) -> NDArray[np.float32]:
        computer = FeatureComputer(features, where, self._limit)
        pieces = decode_audio(file, where, features, REMEDIES, computer.check_length, self._ffmpeg)
        return _features_of(pieces, computer, features, where)

    def _from_array(self, array: NDArray[Any], sample_rate: int | None, where: str) -> NDArray[np.float32]:
        if array.dtype.kind != "f" or array.ndim not in (1, 2):
            raise UsageError(
                f"{where}: it is {array.dtype} of shape {array.shape}; expected floating numbers, samples (n,) in -1..1 or "
                "frames (T, D)"
            )
        if array.ndim == 2:
            with np.errstate(over="ignore"):  # found as not finite
                return np.ascontiguousarray(array, np.float32)
        if self.features is None:
            raise UsageError(
                f"{where}: samples, but the model was trained on {KINDS.get(self.kind, 'frames')}; give frames"
            )
        expected = self.features.sample_rate
        if sample_rate is None:
            raise UsageError(
                f"{where}: samples without their sample rate; give sample_rate={expected}, if that is theirs"
            )
        check_shape(sample_rate, self.features.channel or 1, self.features, where, REMEDIES)
        computer = FeatureComputer(self.features, where, self._limit)
        computer.check_length(len(array) * expected // sample_rate)
        with np.errstate(over="ignore"):
            samples = array.astype(np.float32, copy=False)
        pieces = [samples] if sample_rate == expected else resample([samples], sample_rate, expected)
        return _features_of(pieces, computer, self.features, where)

    def _check(self, frames: NDArray[np.float32], where: str) -> None:
        """Raise InputError where these are no frames of the model's features, or have no signal."""
        if len(frames) == 0:
            raise InputError(f"{where}: 0 frames; expected at least 1: compute the features again")
        if frames.shape[1] != self._num_features:
            raise InputError(
                f"{where}: {frames.shape[1]} features per frame, but the model was trained on {self._num_features}; compute "
                "them as those of the training"
            )
        if not np.isfinite(frames).all():
            frame, feature = (int(i) for i in np.argwhere(~np.isfinite(frames))[0])
            raise InputError(
                f"{where}: frame {frame}, feature {feature} is {frames[frame, feature]}; expected finite numbers: compute "
                "the features again"
            )
        if frames.size > 1 and (frames == (frames[0] if len(frames) > 1 else frames[0, 0])).all():
            what = (
                f"all {len(frames)} frames are the same"
                if len(frames) > 1
                else "all features of its frame are the same"
            )
            raise InputError(f"{where}: no signal: {what}; give a recording of speech")


def name_of(recording: Recording) -> str:
    """What messages call a recording."""
    if isinstance(recording, np.ndarray):
        return f"array of shape {recording.shape}"
    path = os.fspath(recording)
    return "standard input" if path == STANDARD_INPUT else path


def _features_of(
    pieces: Iterable[NDArray[np.float32]], computer: FeatureComputer, features: FeatureOptions, where: str
) -> NDArray[np.float32]:
    """The frames of samples. Raises InputError where there are too few, or all are the same."""
    rate, needed = features.sample_rate, least_samples(features)
    first: np.float32 | None = None
    has_signal = False
    for samples in pieces:
        if len(samples):
            first = samples[0] if first is None else first
            has_signal = has_signal or not (samples == first).all()
            computer.add(samples)
    if computer.num_samples < needed:
        raise InputError(
            f"{where}: {computer.num_samples} samples ({1000 * computer.num_samples / rate:g} ms) are too few for a frame of "
            f"{features.window_ms:g} ms at {rate} Hz; give a longer recording"
        )
    if not has_signal:
        raise InputError(
            f"{where}: no signal: all {computer.num_samples} samples are {first:g}; give a recording of speech"
        )
    return computer.frames()


@contextlib.contextmanager
def _opened(path: str, data: IO[bytes]) -> Iterator[IO[bytes]]:
    """Open a file or a pipe to read; a pipe that no program writes to is waited for no longer than `PIPE_SECONDS`.

    A byte that is read while a pipe's writer is looked for goes to `data`.

    Raises:
        InputError: no program has opened the pipe to write.
        OSError: it can't be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with io.FileIO(descriptor, "r") as file:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            data.write(_wait_for_writer(descriptor, path))
        os.set_blocking(descriptor, True)
        yield file


def _wait_for_writer(descriptor: int, path: str) -> bytes:
    """Return when a pipe has bytes or a writer, or had one; the first byte, if it was taken. Raises InputError otherwise."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if poll.poll(1000 * PIPE_SECONDS):
        return b""
    try:
        first = os.read(descriptor, 1)
    except BlockingIOError:
        return b""  # its writer is there, and may take its time
    if not first:
        raise InputError(
            f"{path}: is a named pipe, and no program has opened it to write for {PIPE_SECONDS:g} s; start the one that "
            "writes to it, or give a file"
        )
    return first


def _is_place_in_archive(path: str) -> bool:
    """Whether this is no file, but an archive and an offset in it, as a line of feats.scp names them."""
    entry = ENTRY.fullmatch(path)
    return entry is not None and entry["ark"] != path and not Path(path).exists() and Path(entry["ark"]).exists()


def _check_is_file(path: str) -> None:
    """Raise InputError for a folder, and for a device, which may have no end; a pipe is taken."""
    mode = os.stat(path).st_mode  # noqa: PTH116 - of the path as it was given
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a folder; give the files in it, such as {Path(path)}/*")
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise InputError(f"{path}: is a device, not a file; give a file, or pipe a recording into {STANDARD_INPUT}")
