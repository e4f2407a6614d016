"""What is done with the frames of an utterance after they are extracted: deltas, normalisation of means, choice of voiced ones.

The order is that of Kaldi's recipes for speakers: add-deltas, apply-cmvn-sliding, select-voiced-frames.

Shapes: T frames of D features.
"""

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.extras import import_extra
from shards.sources.featureoptions import FeatureOptions

VARIANCE_FLOOR = 1e-10  # of sliding windows, as Kaldi has it


def add_deltas(frames: NDArray[np.float32], options: FeatureOptions) -> NDArray[np.float32]:
    """The frames (T, D) with their time derivatives behind them, (T, D * (1 + order)); kaldi-native-fbank's compute_deltas."""
    if options.delta_order == 0:
        return frames
    fbank = import_extra("kaldi_native_fbank", "audio")
    wanted = fbank.DeltaOptions(order=options.delta_order, window=options.delta_window)
    return np.ascontiguousarray(fbank.compute_deltas(wanted, frames), np.float32)


def normalize_frames(frames: NDArray[np.float32], options: FeatureOptions) -> NDArray[np.float32]:
    """The frames (T, D) less their means, over the utterance or a sliding window, as `options.cmvn` says."""
    if options.cmvn == "none":
        return frames
    if options.cmvn == "utterance":
        fbank = import_extra("kaldi_native_fbank", "audio")
        wanted = fbank.CmvnOptions(norm_vars=options.cmvn_variance)
        return np.ascontiguousarray(fbank.apply_cmvn(fbank.compute_cmvn_stats(frames), wanted, frames), np.float32)
    return _subtract_sliding_means(frames, options)


def window_bounds(num_frames: int, options: FeatureOptions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First frame of each frame's sliding window, and the frame behind its last; (T,) each.

    Source: Kaldi, src/feat/feature-functions.cc, SlidingWindowCmnInternal.
    """
    t, window = np.arange(num_frames), options.cmvn_window
    start = t - window if options.cmvn_causal else t - window // 2
    end = t + 1 if options.cmvn_causal else start + window
    end = end + np.maximum(0, -start)
    start = np.maximum(0, start)
    if options.cmvn_causal:
        end = np.where(end > t, np.maximum(t + 1, options.cmvn_min_window), end)
    start = np.maximum(0, start - np.maximum(0, end - num_frames))
    return start, np.minimum(end, num_frames)


def _subtract_sliding_means(frames: NDArray[np.float32], options: FeatureOptions) -> NDArray[np.float32]:
    """Means and deviations are differences of running sums in float64, of frames less the mean of all: sums stay small."""
    start, end = window_bounds(len(frames), options)
    count = (end - start).astype(np.float64)[:, None]
    x = frames - frames.mean(axis=0, dtype=np.float64)
    normal = x - _sums(x, start, end) / count
    if options.cmvn_variance:
        variance = _sums(x * x, start, end) / count - (x - normal) ** 2
        normal *= np.maximum(variance, VARIANCE_FLOOR) ** -0.5
        normal[count[:, 0] == 1] = 0
    return np.asarray(normal, np.float32)


def _sums(x: NDArray[np.float64], start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sums over the rows start to end of x, for each pair of them."""
    running = np.concatenate((np.zeros((1, x.shape[1])), np.cumsum(x, axis=0)))
    return running[end] - running[start]


def select_voiced(
    frames: NDArray[np.float32], energies: NDArray[np.float32], options: FeatureOptions, where: str
) -> NDArray[np.float32]:
    """The frames (T, D) that are voiced by the logarithms (T,) of their energies; `where` they are from is for the message.

    Raises:
        InputError: none is.
    """
    voiced = find_voiced(energies, options)
    if not voiced.any():
        raise InputError(
            f"{where}: none of its {len(frames)} frames is voiced by --features.vad {options.vad}: their log energies are "
            f"{energies.min():.4g} to {energies.max():.4g}; give a lower --features.vad_energy_threshold, or remove it from "
            "the list"
        )
    return np.ascontiguousarray(frames[voiced])


def find_voiced(energies: NDArray[np.float32], options: FeatureOptions) -> NDArray[np.bool_]:
    """Which frames are voiced, (T,). Source: Kaldi, src/ivector/voice-activity-detection.cc, ComputeVadEnergy."""
    mean = energies.mean(dtype=np.float64)
    threshold = options.vad_energy_threshold + options.vad_energy_mean_scale * mean
    loud = np.concatenate(([0], np.cumsum(energies > threshold)))
    t = np.arange(len(energies))
    start = np.maximum(0, t - options.vad_frames_context)
    end = np.minimum(len(energies), t + options.vad_frames_context + 1)
    return np.asarray(loud[end] - loud[start] >= (end - start) * options.vad_proportion_threshold)
