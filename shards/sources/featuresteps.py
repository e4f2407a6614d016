"""Say in formulas how samples become features, for programs that compute them without kaldi-native-fbank.

The steps are what that library computes with the options of `shards.sources.features.kaldi_options`, in its order. Source:
Kaldi, src/feat/feature-window.cc, mel-computations.cc, feature-fbank.cc, feature-mfcc.cc and feature-functions.cc,
src/transform/cmvn.cc and src/ivector/voice-activity-detection.cc.

Names in the formulas: x is what the step before gave, y what this one gives; a fraction of two numbers is exact, and
indices count from 0.
"""

from typing import Any

import numpy as np

from shards.sources.featureoptions import FeatureOptions
from shards.sources.features import FLOOR, LIFTER, PREEMPHASIS, SAMPLE_SCALE
from shards.sources.framesteps import VARIANCE_FLOOR


def whole_samples(milliseconds: float, sample_rate: int) -> int:
    """Samples of a duration, as Kaldi has them: a product of float32 numbers, without its fraction."""
    return int(np.float32(sample_rate) * np.float32(0.001) * np.float32(milliseconds))


def feature_steps(options: FeatureOptions) -> list[dict[str, Any]]:
    """What is done, in order, with the samples (n,) of a recording until they are frames (T, D); JSON values."""
    cepstra = [] if options.kind == "fbank" else _cepstrum_steps(options)
    return [
        *_frame_steps(options),
        *_filter_steps(options),
        *cepstra,
        *_energy_steps(options),
        *_delta_steps(options),
        *_cmvn_steps(options),
        *_vad_steps(options),
    ]


def least_samples(options: FeatureOptions) -> int:
    """Fewest samples that make a frame."""
    if options.reflect_edges:
        shift = whole_samples(options.shift_ms, options.sample_rate)
        return max(1, shift - shift // 2)
    return whole_samples(options.window_ms, options.sample_rate)


def _cut_step(options: FeatureOptions) -> dict[str, Any]:
    size = whole_samples(options.window_ms, options.sample_rate)
    shift = whole_samples(options.shift_ms, options.sample_rate)
    if options.reflect_edges:
        return {
            "step": "cut_reflected",
            "size": size,
            "shift": shift,
            "first": shift // 2 - size // 2,
            "number": "T = floor((n + floor(shift / 2)) / shift) for n samples; none where that is 0",
            "formula": "y[t][i] = x[r(first + t * shift + i)] for i = 0 .. size - 1, where r(j) = j if 0 <= j < n, r(-j - 1) "
            "if j < 0, else r(2 * n - 1 - j); each further step is for each t",
        }
    return {
        "step": "cut",
        "size": size,
        "shift": shift,
        "number": "T = 1 + floor((n - size) / shift) for n samples; none where n < size",
        "formula": "y[t][i] = x[t * shift + i] for i = 0 .. size - 1; each further step is for each t",
    }


def _frame_steps(options: FeatureOptions) -> list[dict[str, Any]]:
    """From samples to windowed frames, (T, fft_size)."""
    size = whole_samples(options.window_ms, options.sample_rate)
    return [
        {"step": "scale", "scale": SAMPLE_SCALE, "formula": "y[i] = x[i] * scale"},
        _cut_step(options),
        {"step": "dither", "amount": 0.0, "formula": "y = x"},
        {"step": "remove_mean", "formula": "y[i] = x[i] - sum(x) / size"},
        *_log_energy_steps(options),
        {
            "step": "preemphasis",
            "coefficient": PREEMPHASIS,
            "formula": "y[i] = x[i] - coefficient * x[i - 1] for i = 1 .. size - 1; y[0] = x[0] - coefficient * x[0]",
        },
        {
            "step": "window",
            "name": "povey",
            "exponent": 0.85,
            "formula": "y[i] = x[i] * (0.5 - 0.5 * cos(2 * pi * i / (size - 1))) ^ exponent",
        },
        {
            "step": "pad",
            "size": 1 << (size - 1).bit_length(),
            "formula": "zeros follow x until there are size of them: the next power of two",
        },
    ]


def _filter_steps(options: FeatureOptions) -> list[dict[str, Any]]:
    """From windowed frames to logarithms of the energies in mel bins, (T, num_bins)."""
    size = 1 << (whole_samples(options.window_ms, options.sample_rate) - 1).bit_length()
    return [
        {
            "step": "power_spectrum",
            "size": size,
            "lines": size // 2,
            "formula": "y[k] = abs(sum over i of x[i] * exp(-2j * pi * i * k / size)) ^ 2 for k = 0 .. lines - 1",
        },
        {
            "step": "mel_bins",
            "num_bins": options.num_bins,
            "low_frequency": options.low_freq,
            "high_frequency": options.highest_freq,
            "hertz_per_line": options.sample_rate / size,
            "mel": "mel(f) = 1127 * ln(1 + f / 700), f in Hz",
            "edges": "e[b] = mel(low_frequency) + b * (mel(high_frequency) - mel(low_frequency)) / (num_bins + 1) "
            "for b = 0 .. num_bins + 1",
            "weights": "w[b][k] = max(0, min((m - e[b]) / (e[b + 1] - e[b]), (e[b + 2] - m) / (e[b + 2] - e[b + 1]))) "
            "with m = mel(k * hertz_per_line)",
            "formula": "y[b] = sum over k of w[b][k] * x[k] for b = 0 .. num_bins - 1",
        },
        {"step": "log", "floor": FLOOR, "formula": "y[b] = ln(max(x[b], floor))"},
    ]


def _cepstrum_steps(options: FeatureOptions) -> list[dict[str, Any]]:
    """From logarithms of energies to cepstral coefficients, (T, num_ceps)."""
    return [
        {
            "step": "cosine_transform",
            "num_bins": options.num_bins,
            "num_ceps": options.num_ceps,
            "formula": "y[q] = sqrt((1 if q = 0 else 2) / num_bins) * sum over b of x[b] * cos(pi / num_bins * (b + 0.5) * q) "
            "for q = 0 .. num_ceps - 1; y[0] is this sum too, and no energy of its own",
        },
        {
            "step": "lifter",
            "lifter": LIFTER,
            "formula": "y[q] = x[q] * (1 + lifter / 2 * sin(pi * q / lifter))",
        },
    ]


def _log_energy_steps(options: FeatureOptions) -> list[dict[str, Any]]:
    """The energy of each frame, (T,), which later steps use; x stays as it is."""
    if not options.use_energy and options.vad == "none":
        return []
    return [{"step": "log_energy", "floor": FLOOR, "formula": "e = ln(max(sum over i of x[i]^2, floor)); y = x"}]


def _energy_steps(options: FeatureOptions) -> list[dict[str, Any]]:
    if not options.use_energy:
        return []
    if options.kind == "fbank":
        return [{"step": "insert_energy", "formula": "y[0] = e; y[d + 1] = x[d]; e is of the step log_energy"}]
    return [{"step": "replace_by_energy", "formula": "y[0] = e; y[d] = x[d] for d > 0; e is of the step log_energy"}]


def _delta_steps(options: FeatureOptions) -> list[dict[str, Any]]:
    """From (T, D) to (T, D * (1 + order))."""
    if options.delta_order == 0:
        return []
    return [
        {
            "step": "deltas",
            "order": options.delta_order,
            "window": options.delta_window,
            "scales": "s[0] = [1]; s[k] = the convolution of s[k - 1] with [-window .. window], divided by the sum of j^2 over "
            "j = -window .. window",
            "formula": "y[t][k * D + d] = sum over i of s[k][i] * x[min(max(t + i - k * window, 0), T - 1)][d] for "
            "i = 0 .. 2 * k * window, k = 0 .. order",
        }
    ]


def _cmvn_steps(options: FeatureOptions) -> list[dict[str, Any]]:
    if options.cmvn == "none":
        return []
    mean = "m[d] = sum over the frames u of x[u][d] / N, N their number"
    if options.cmvn == "utterance":
        scaled = " / sqrt(max(sum over u of x[u][d]^2 / N - m[d]^2, floor))" if options.cmvn_variance else ""
        return [
            {
                "step": "cmvn_utterance",
                "variance": options.cmvn_variance,
                "floor": 1e-20,
                "compute_dtype": "float64",
                "formula": f"y[t][d] = (x[t][d] - m[d]){scaled}; {mean}, all frames of the utterance",
            }
        ]
    window, least = options.cmvn_window, options.cmvn_min_window
    first = "a = t - window; b = t + 1" if options.cmvn_causal else "a = t - floor(window / 2); b = a + window"
    grow = "; if b > t then b = max(t + 1, min_window)" if options.cmvn_causal else ""
    scaled = (
        " * (0 if N = 1 else max(sum over u of x[u][d]^2 / N - m[d]^2, floor)^-0.5)" if options.cmvn_variance else ""
    )
    return [
        {
            "step": "cmvn_sliding",
            "window": window,
            "causal": options.cmvn_causal,
            "min_window": least,
            "variance": options.cmvn_variance,
            "floor": VARIANCE_FLOOR,
            "compute_dtype": "float64",
            "frames": f"u = a .. b - 1 with {first}; if a < 0 then b = b - a and a = 0{grow}; "
            "if b > T then a = max(0, a - (b - T)) and b = T",
            "formula": f"y[t][d] = (x[t][d] - m[d]){scaled}; {mean}",
        }
    ]


def _vad_steps(options: FeatureOptions) -> list[dict[str, Any]]:
    if options.vad == "none":
        return []
    return [
        {
            "step": "select_voiced",
            "threshold": options.vad_energy_threshold,
            "mean_scale": options.vad_energy_mean_scale,
            "context": options.vad_frames_context,
            "proportion": options.vad_proportion_threshold,
            "formula": "frame t stays if the number of frames u with e[u] > threshold + mean_scale * sum(e) / T is at "
            "least proportion times the number of all u, of u from max(0, t - context) to min(T - 1, t + context); e is of "
            "the step log_energy, T counts all frames; an utterance of which none stays is an error",
        }
    ]
