"""Compute features of audio: log mel filter banks or cepstra, as Kaldi does, through kaldi-native-fbank.

Everything that changes a value is an option here or a constant here, and nothing is drawn at random (no dither): the same
samples and options give the same frames, in sharding as in scoring.
"""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError, UsageError
from shards.extras import import_extra
from shards.sources.featureoptions import FEWEST_BINS, FeatureOptions
from shards.sources.framesteps import add_deltas, normalize_frames, select_voiced
from shards.sources.limits import DEFAULT_LIMIT, UtteranceLimit

PIECE_SAMPLES = 2**18  # whose features are computed at a time
GET_FRAMES = 4096  # taken out of the library before they are copied: a third faster than one by one
SAMPLE_SCALE = 32768.0  # Kaldi's features are of samples in -32768..32767
PREEMPHASIS = 0.97
LIFTER = 22.0
FLOOR = float(np.finfo(np.float32).eps)  # energies below it are taken for it before the logarithm


# Options of the library that change nothing while the others are as `kaldi_options` has them: of another window, of warping by
# a factor of 1, and of librosa's mel scale, which is off; and, of these alone, of an energy that is not used.
OF_ENERGY = ("energy_floor", "raw_energy")
WITHOUT_EFFECT = (
    *("blackman_coeff", "vtln_low", "vtln_high", "norm", "use_slaney_mel_scale", "floor_to_int_bin", "debug_mel"),
    *OF_ENERGY,
)


def without_effect(options: FeatureOptions) -> tuple[str, ...]:
    """The names of the library's options that change nothing of these features."""
    return tuple(name for name in WITHOUT_EFFECT if not (options.use_energy and name in OF_ENERGY))


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
        "snip_edges": not options.reflect_edges,
    }
    warping = {"vtln_low": 100.0, "vtln_high": -500.0}  # without effect: the warping factor is 1
    librosa = {"is_librosa": False, "norm": "slaney", "use_slaney_mel_scale": True, "floor_to_int_bin": False}
    bins = {
        "num_bins": options.num_bins,
        "low_freq": options.low_freq,
        "high_freq": options.high_freq,
        "debug_mel": False,
        "htk_mode": False,
    }
    energy = {"use_energy": options.use_energy, "energy_floor": 0.0, "raw_energy": True, "htk_compat": False}
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

    Frames lie wholly within the samples: T = 1 + (n - window) div shift, in samples; with `reflect_edges` there are as many as
    shifts, rounded. Only what is not in a frame yet is kept of the samples.

    Raises:
        UsageError: as `make_extractor`.
    """

    def __init__(self, options: FeatureOptions, where: str, limit: UtteranceLimit = DEFAULT_LIMIT) -> None:
        self.num_samples = 0
        self._options, self._where, self._limit = options, where, limit
        self._energy_at, extracted = _with_energy(options)
        self._extractors = [make_extractor(one) for one in extracted]

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
            for extractor in self._extractors:
                extractor.accept_waveform(self._options.sample_rate, scaled)
        except (RuntimeError, ValueError) as error:  # samples far beyond -1..1
            raise InputError(
                f"{self._where}: no features can be computed: {error}; expected samples in -1..1: convert it again"
            ) from None
        self.num_samples += len(samples)

    def check_length(self, num_samples: int) -> None:
        """Raise InputError where so many samples make more frames than the limit, of those from which voiced ones are taken."""
        options = self._options
        most = min(self._limit.max_frames, self._limit.max_values // options.num_features)
        edge_ms = options.shift_ms / 2 if options.reflect_edges else options.window_ms
        if num_samples >= (edge_ms + most * options.shift_ms) / 1000 * options.sample_rate:
            seconds = num_samples / options.sample_rate
            raise self._limit.too_long(
                self._where, f"{seconds:.0f} seconds make more than {most} frames of {options.num_features} features"
            )

    def frames(self) -> NDArray[np.float32]:
        """The frames (T, D) of all samples; none can be added any more.

        Raises:
            InputError: there are too few samples for a frame, or no frame is voiced.
        """
        options = self._options
        frames = self._all_frames(self._extractors[0])
        energies = None
        if options.vad == "energy":
            energies = (frames if len(self._extractors) == 1 else self._all_frames(self._extractors[1]))[:, 0].copy()
            if self._energy_at == "dropped":
                frames = np.ascontiguousarray(frames[:, 1:])
        frames = normalize_frames(add_deltas(frames, options), options)
        return frames if energies is None else select_voiced(frames, energies, options, self._where)

    def _all_frames(self, extractor: Any) -> NDArray[np.float32]:
        extractor.input_finished()
        num_frames = extractor.num_frames_ready
        if num_frames == 0:
            raise InputError(
                f"{self._where}: {self.num_samples} samples are too few for a frame of {self._options.window_ms} ms at "
                f"{self._options.sample_rate} Hz; remove the utterance from the list"
            )
        frames = np.empty((num_frames, len(extractor.get_frame(0))), np.float32)
        for first in range(0, num_frames, GET_FRAMES):
            some = range(first, min(first + GET_FRAMES, num_frames))
            frames[first : some.stop] = np.concatenate(list(map(extractor.get_frame, some))).reshape(len(some), -1)
        return frames


def _with_energy(options: FeatureOptions) -> tuple[Literal["kept", "dropped"], list[FeatureOptions]]:
    """What is to be extracted so that the energy of each frame, where it is needed, is the first value of the last one.

    Kaldi's energy comes before the mel bins, but takes the place of the first cepstral coefficient.
    """
    if options.vad == "none" or options.use_energy:
        return "kept", [options]
    if options.kind == "fbank":
        return "dropped", [replace(options, use_energy=True)]
    return "kept", [options, replace(options, use_energy=True, num_bins=FEWEST_BINS, num_ceps=1)]


def compute_features(
    samples: NDArray[np.float32], options: FeatureOptions, where: str, limit: UtteranceLimit = DEFAULT_LIMIT
) -> NDArray[np.float32]:
    """The frames (T, D) float32 of samples (n,) float32 in -1..1, by a `FeatureComputer`, with its errors."""
    computer = FeatureComputer(options, where, limit)
    computer.add(samples)
    return computer.frames()
