"""Say in formulas how samples become features, for programs that compute them without kaldi-native-fbank.

The steps are what that library computes with the options of `shards.sources.features.kaldi_options`, in its order. Source:
Kaldi, src/feat/feature-window.cc, mel-computations.cc and feature-mfcc.cc.

Names in the formulas: x is what the step before gave, y what this one gives; a fraction of two numbers is exact, and
indices count from 0.
"""

from typing import Any

import numpy as np

from shards.sources.features import FLOOR, LIFTER, LOW_FREQUENCY, PREEMPHASIS, SAMPLE_SCALE, FeatureOptions


def whole_samples(milliseconds: float, sample_rate: int) -> int:
    """Samples of a duration, as Kaldi has them: a product of float32 numbers, without its fraction."""
    return int(np.float32(sample_rate) * np.float32(0.001) * np.float32(milliseconds))


def feature_steps(options: FeatureOptions) -> list[dict[str, Any]]:
    """What is done, in order, with the samples (n,) of a recording until they are frames (T, D); JSON values."""
    cepstra = [] if options.kind == "fbank" else _cepstrum_steps(options)
    return [*_frame_steps(options), *_filter_steps(options), *cepstra]


def _frame_steps(options: FeatureOptions) -> list[dict[str, Any]]:
    """From samples to windowed frames, (T, fft_size)."""
    size = whole_samples(options.window_ms, options.sample_rate)
    return [
        {"step": "scale", "scale": SAMPLE_SCALE, "formula": "y[i] = x[i] * scale"},
        {
            "step": "cut",
            "size": size,
            "shift": whole_samples(options.shift_ms, options.sample_rate),
            "number": "T = 1 + floor((n - size) / shift) for n samples; none where n < size",
            "formula": "y[t][i] = x[t * shift + i] for i = 0 .. size - 1; each further step is for each t",
        },
        {"step": "dither", "amount": 0.0, "formula": "y = x"},
        {"step": "remove_mean", "formula": "y[i] = x[i] - sum(x) / size"},
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
            "low_frequency": LOW_FREQUENCY,
            "high_frequency": options.sample_rate / 2,
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
