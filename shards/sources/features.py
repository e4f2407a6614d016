"""Compute features of audio: log mel filter banks or cepstra, as Kaldi does, through kaldi-native-fbank.

Everything that changes a value is an option here or a constant here, and nothing is drawn at random (no dither): the same
samples and options give the same frames, in sharding as in scoring.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError, UsageError
from shards.extras import import_extra
from shards.sources.limits import DEFAULT_LIMIT, UtteranceLimit

PIECE_SAMPLES = 2**18  # whose features are computed at a time
SAMPLE_SCALE = 32768.0  # Kaldi's features are of samples in -32768..32767
LOW_FREQUENCY = 20.0  # Hz, where the lowest mel bin begins; the highest ends at half the sample rate
PREEMPHASIS = 0.97
LIFTER = 22.0
FLOOR = float(np.finfo(np.float32).eps)  # energies below it are taken for it before the logarithm


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """How features are computed of audio."""

    kind: Literal["fbank", "mfcc"] = "fbank"
    """Kind of features: log mel filter bank (num_bins of them), or mel cepstrum (num_ceps)."""
    sample_rate: int = 16000
    """Sample rate of the audio in Hz. A file with another rate is an error; nothing is resampled."""
    num_bins: int = 40
    """Number of mel bins."""
    num_ceps: int = 20
    """Number of cepstral coefficients, for mfcc only; at most num_bins."""
    window_ms: float = 25.0
    """Length of a frame in milliseconds."""
    shift_ms: float = 10.0
    """Time from one frame to the next in milliseconds."""
    channel: int | None = None
    """Channel to use of files with several, counted from 1."""

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        if self.kind not in ("fbank", "mfcc"):
            raise UsageError(f"--features.kind {self.kind}: expected fbank or mfcc")
        _check_range("sample_rate", self.sample_rate, 1000, 384_000)
        _check_range("num_bins", self.num_bins, 3, 1000)
        _check_range("window_ms", self.window_ms, 1, 1000)
        _check_range("shift_ms", self.shift_ms, 1, 1000)
        if self.kind == "mfcc":
            _check_range("num_ceps", self.num_ceps, 1, self.num_bins)
        if self.channel is not None and self.channel < 1:
            raise UsageError(f"--features.channel {self.channel}: channels count from 1; give 1 or more")

    @staticmethod
    def from_description(description: Any) -> "FeatureOptions":
        """The options that `asdict` of some made, read back from JSON.

        Raises:
            InputError: an option is unknown, of another type or out of its range.
        """
        try:
            return FeatureOptions(**description)
        except (TypeError, UsageError) as error:
            raise InputError(
                f"the audio features in train.opts or the manifest are damaged: {error}; expected what `spkid shard` wrote: "
                "shard and train again"
            ) from None

    def describe(self) -> dict[str, Any]:
        """All options as JSON values."""
        return asdict(self)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # not `<`: NaN is refused too
        raise UsageError(f"--features.{name} {value}: expected {low} to {high}")


# Options of the library that change nothing while the others are as `kaldi_options` has them: of another window, of warping by
# a factor of 1, of librosa's mel scale, which is off, and of an energy that is not used.
WITHOUT_EFFECT = (
    *("blackman_coeff", "vtln_low", "vtln_high", "norm", "use_slaney_mel_scale", "floor_to_int_bin", "debug_mel"),
    *("energy_floor", "raw_energy"),
)


def kaldi_options(options: FeatureOptions) -> dict[str, Any]:
    """All options as Kaldi names them, those of frames and of mel bins in objects of their own; JSON values.

    Those that keep their usual value are among them, so that no other version of the library changes a feature.
    """
    frames = {
        "samp_freq": options.sample_rate,
        "frame_shift_ms": options.shift_ms,
        "frame_length_ms": options.window_ms,
        "dither": 0.0,
        "preemph_coeff": PREEMPHASIS,
        "remove_dc_offset": True,
        "window_type": "povey",
        "round_to_power_of_two": True,
        "blackman_coeff": 0.42,  # of another type of window
        "snip_edges": True,
    }
    warping = {"vtln_low": 100.0, "vtln_high": -500.0}  # without effect: the warping factor is 1
    librosa = {"is_librosa": False, "norm": "slaney", "use_slaney_mel_scale": True, "floor_to_int_bin": False}
    bins = {
        "num_bins": options.num_bins,
        "low_freq": LOW_FREQUENCY,
        "high_freq": 0.0,
        "debug_mel": False,
        "htk_mode": False,
    }
    energy = {"use_energy": False, "energy_floor": 0.0, "raw_energy": True, "htk_compat": False}
    if options.kind == "fbank":
        kind = {"use_log_fbank": True, "use_log_floor": True, "eps": FLOOR, "use_power": True}
    else:
        kind = {"num_ceps": options.num_ceps, "cepstral_lifter": LIFTER}
    return {"frame_opts": frames, "mel_opts": bins | warping | librosa} | energy | kind


def make_extractor(options: FeatureOptions) -> Any:
    """A new feature extractor, for one utterance.

    Raises:
        UsageError: kaldi-native-fbank is not installed, or options can't be together, such as more mel bins than the
            window's spectrum has lines for.
    """
    fbank = import_extra("kaldi_native_fbank", "audio")
    given = kaldi_options(options)
    given["frame_opts"] = fbank.FrameExtractionOptions(**given["frame_opts"])
    given["mel_opts"] = fbank.MelBanksOptions(**given["mel_opts"])
    try:
        if options.kind == "fbank":
            return fbank.OnlineFbank(fbank.FbankOptions(**given))
        return fbank.OnlineMfcc(fbank.MfccOptions(**given))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--features.num_bins {options.num_bins} with --features.window_ms {options.window_ms} at "
            f"{options.sample_rate} Hz: {str(error).rstrip('.')}; give fewer bins or a longer window"
        ) from None


class FeatureComputer:
    """Computes the features of samples that come piece by piece; `where` they are from is for messages.

    Frames lie wholly within the samples: T = 1 + (n - window) div shift, in samples. Only what is not in a frame yet is kept
    of the samples.

    Raises:
        UsageError: as `make_extractor`.
    """

    def __init__(self, options: FeatureOptions, where: str, limit: UtteranceLimit = DEFAULT_LIMIT) -> None:
        self.num_samples = 0
        self._options, self._where, self._limit = options, where, limit
        self._extractor = make_extractor(options)

    def add(self, samples: NDArray[np.float32]) -> None:
        """Take more samples (n,) in -1..1.

        Raises:
            InputError: a sample is not finite or far beyond -1..1, or there are more frames than the limit.
        """
        self.check_length(self.num_samples + len(samples))
        for first in range(0, len(samples), PIECE_SAMPLES):
            self._accept(samples[first : first + PIECE_SAMPLES])

    def _accept(self, samples: NDArray[np.float32]) -> None:
        with np.errstate(over="ignore"):
            scaled = samples * np.float32(SAMPLE_SCALE)
        if not np.isfinite(scaled).all():
            at = int(np.argmin(np.isfinite(scaled)))
            raise InputError(
                f"{self._where}: sample {self.num_samples + at} is {samples[at]}; expected samples in -1..1: record or "
                "convert it again"
            )
        try:
            self._extractor.accept_waveform(self._options.sample_rate, scaled)
        except (RuntimeError, ValueError) as error:  # samples far beyond -1..1
            raise InputError(
                f"{self._where}: no features can be computed: {error}; expected samples in -1..1: convert it again"
            ) from None
        self.num_samples += len(samples)

    def check_length(self, num_samples: int) -> None:
        """Raise InputError where so many samples make more frames than the limit."""
        options = self._options
        num_features = options.num_bins if options.kind == "fbank" else options.num_ceps
        most = min(self._limit.max_frames, self._limit.max_values // num_features)
        milliseconds = options.window_ms + most * options.shift_ms
        if num_samples >= milliseconds / 1000 * options.sample_rate:
            seconds = num_samples / options.sample_rate
            raise self._limit.too_long(
                self._where, f"{seconds:.0f} seconds make more than {most} frames of {num_features} features"
            )

    def frames(self) -> NDArray[np.float32]:
        """The frames (T, D) of all samples; none can be added any more.

        Raises:
            InputError: there are too few samples for a frame.
        """
        self._extractor.input_finished()
        num_frames = self._extractor.num_frames_ready
        if num_frames == 0:
            raise InputError(
                f"{self._where}: {self.num_samples} samples are too few for a frame of {self._options.window_ms} ms at "
                f"{self._options.sample_rate} Hz; remove the utterance from the list"
            )
        frames = np.empty((num_frames, len(self._extractor.get_frame(0))), np.float32)
        for number in range(num_frames):
            frames[number] = self._extractor.get_frame(number)
        return frames


def compute_features(
    samples: NDArray[np.float32], options: FeatureOptions, where: str, limit: UtteranceLimit = DEFAULT_LIMIT
) -> NDArray[np.float32]:
    """The frames (T, D) float32 of samples (n,) float32 in -1..1, by a `FeatureComputer`, with its errors."""
    computer = FeatureComputer(options, where, limit)
    computer.add(samples)
    return computer.frames()
