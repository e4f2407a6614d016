"""The options of features of audio: what the flags --features.* are, and what a manifest keeps of them.

A manifest has the options of the first version, and of the others those that are not as usual: a dataset that uses none of
them has the bytes that it always had.
"""

from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args

from shards.errors import InputError, UsageError

LEAST_RATE, MOST_RATE = 1000, 384_000  # Hz
FEWEST_BINS = 3
ALWAYS_KEPT = ("kind", "sample_rate", "num_bins", "num_ceps", "window_ms", "shift_ms", "channel")

Kind = Literal["fbank", "mfcc"]
Cmvn = Literal["none", "utterance", "sliding"]
Vad = Literal["none", "energy"]


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """How features are computed of audio."""

    kind: Kind = "fbank"
    """Kind of features: log mel filter bank (num_bins of them), or mel cepstrum (num_ceps)."""
    sample_rate: int = 16000
    """Sample rate of the audio in Hz. A file with another rate is an error, or resampled with --features.resample."""
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
    downmix: bool = False
    """Use the mean of all channels of files with several."""
    resample: bool = False
    """Resample files of another rate to sample_rate, with soxr."""
    low_freq: float = 20.0
    """Frequency in Hz at which the lowest mel bin begins."""
    high_freq: float = 0.0
    """Frequency in Hz at which the highest mel bin ends; 0 or less is counted from half the sample rate."""
    reflect_edges: bool = False
    """Reflect the samples at both ends, so that there is a frame for each shift (Kaldi's --snip-edges=false)."""
    use_energy: bool = False
    """Add the logarithm of each frame's energy: before the mel bins, or in place of the first cepstral coefficient."""
    delta_order: int = 0
    """Orders of time derivatives that are added to each frame: 1 doubles the features, 2 triples them."""
    delta_window: int = 2
    """Frames on each side of which a time derivative is computed."""
    cmvn: Cmvn = "none"
    """Subtract the mean of each feature: over the utterance, or over a sliding window around each frame."""
    cmvn_variance: bool = False
    """Divide by the standard deviation of each feature too, where cmvn subtracts the mean."""
    cmvn_window: int = 300
    """Frames of the sliding window of cmvn."""
    cmvn_causal: bool = False
    """Let the sliding window of cmvn end at the frame, instead of having it in its middle (Kaldi's --center=false)."""
    cmvn_min_window: int = 100
    """Frames of the sliding window at the beginning of an utterance, where it is causal."""
    vad: Vad = "none"
    """Keep voiced frames alone, found by their energy as Kaldi's compute-vad does; the last step of all."""
    vad_energy_threshold: float = 5.0
    """Logarithm of the energy above which a frame counts as voiced, with vad_energy_mean_scale times its mean added."""
    vad_energy_mean_scale: float = 0.5
    """Part of the utterance's mean logarithm of energies that is added to vad_energy_threshold."""
    vad_frames_context: int = 0
    """Frames on each side of a frame that decide with it whether it is voiced."""
    vad_proportion_threshold: float = 0.6
    """Share of the frames in that context that must be above the threshold."""
    dither: float = 0.0
    """Amount of random noise to add: always 0. Noise of the library differs in each run, so no other value is taken."""

    def __post_init__(self) -> None:
        """Check the values' types and ranges; raises UsageError."""
        for name, kind in FeatureOptions.__annotations__.items():
            _check_type(name, getattr(self, name), kind)
        _check_range("sample_rate", self.sample_rate, LEAST_RATE, MOST_RATE)
        _check_range("num_bins", self.num_bins, FEWEST_BINS, 1000)
        _check_range("window_ms", self.window_ms, 1, 1000)
        _check_range("shift_ms", self.shift_ms, 1, 1000)
        if self.kind == "mfcc":
            _check_range("num_ceps", self.num_ceps, 1, self.num_bins)
        self._check_channels()
        self._check_frequencies()
        _check_range("delta_order", self.delta_order, 0, 4)
        _check_range("delta_window", self.delta_window, 1, 1000)
        _check_range("cmvn_window", self.cmvn_window, 1, 10**6)
        _check_range("cmvn_min_window", self.cmvn_min_window, 1, self.cmvn_window if self.cmvn_causal else 10**6)
        _check_range("vad_energy_threshold", self.vad_energy_threshold, -1000, 1000)
        _check_range("vad_energy_mean_scale", self.vad_energy_mean_scale, 0, 100)
        _check_range("vad_frames_context", self.vad_frames_context, 0, 1000)
        _check_range("vad_proportion_threshold", self.vad_proportion_threshold, 0, 1)
        self._check_used()

    def _check_channels(self) -> None:
        if self.channel is not None and self.channel < 1:
            raise UsageError(f"--features.channel {self.channel}: channels count from 1; give 1 or more")
        if self.channel is not None and self.downmix:
            raise UsageError("--features.channel and --features.downmix: one channel is used, or all; give one of them")

    def _check_frequencies(self) -> None:
        half = self.sample_rate / 2
        if not 0 <= self.low_freq < self.highest_freq <= half:  # NaN is refused too
            raise UsageError(
                f"--features.low_freq {self.low_freq} and --features.high_freq {self.high_freq}, which is {self.highest_freq} "
                f"Hz: expected 0 <= low < high <= {half:g} Hz, half the sample rate"
            )
        if self.dither != 0:
            raise UsageError(
                f"--features.dither {self.dither}: expected 0: the library draws other noise in each run, and features would "
                "differ between sharding and scoring; leave it out"
            )

    def _check_used(self) -> None:
        """No option is given that another one leaves without effect."""
        for switch, off, names in (
            ("delta_order", 0, ("delta_window",)),
            ("cmvn", "none", ("cmvn_variance",)),
            ("vad", "none", tuple(name for name in FeatureOptions.__annotations__ if name.startswith("vad_"))),
        ):
            if getattr(self, switch) == off:
                self._refuse(names, f"give --features.{switch} too")
        if self.cmvn != "sliding":
            self._refuse(("cmvn_window", "cmvn_causal"), "give --features.cmvn sliding too")
        if not self.cmvn_causal:
            self._refuse(("cmvn_min_window",), "give --features.cmvn_causal too")

    def _refuse(self, names: tuple[str, ...], remedy: str) -> None:
        for name in names:
            if getattr(self, name) != USUAL[name]:
                raise UsageError(f"--features.{name}: it has no effect; {remedy}, or leave it out")

    @property
    def highest_freq(self) -> float:
        """Frequency in Hz at which the highest mel bin ends."""
        return self.high_freq if self.high_freq > 0 else self.sample_rate / 2 + self.high_freq

    @property
    def num_features(self) -> int:
        """D, the values of each frame."""
        static = self.num_bins + self.use_energy if self.kind == "fbank" else self.num_ceps
        return static * (1 + self.delta_order)

    @staticmethod
    def from_description(description: Any) -> "FeatureOptions":
        """The options that `describe` described, read back from JSON.

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
        """The options as JSON values: those of the first version, and what is not as usual of the others."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if name in ALWAYS_KEPT or value != USUAL[name]}


USUAL: dict[str, Any] = {field.name: field.default for field in fields(FeatureOptions)}


def _check_type(name: str, value: Any, kind: Any) -> None:
    choices = get_args(kind)
    if kind is bool:
        fits, expected = isinstance(value, bool), "true or false"
    elif kind is int or int in choices:
        fits = (isinstance(value, Integral) and not isinstance(value, bool)) or (value is None and int in choices)
        expected = "a whole number"
    elif kind is float:
        fits, expected = isinstance(value, Real) and not isinstance(value, bool), "a number"
    else:
        fits, expected = value in choices, " or ".join(choices)
    if not fits:
        raise UsageError(f"--features.{name} {value}: expected {expected}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # not `<`: NaN is refused too
        raise UsageError(f"--features.{name} {value}: expected {low} to {high}")
