"""Deltas, normalisation of means and choice of voiced frames, against Kaldi's loops written out.

Shapes: T frames of D features.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_checks import RATE, error_of, options, samples

from shards import FeatureOptions
from shards.sources.features import compute_features, kaldi_options, without_effect
from shards.sources.featuresteps import feature_steps, least_samples
from shards.sources.framesteps import add_deltas, find_voiced, normalize_frames

pytestmark = pytest.mark.fast

EXAMPLES = Path(__file__).parents[2] / "examples"


def frames_of(num_frames: int, num_features: int = 3, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((num_frames, num_features)) * 4 + 9).astype(np.float32)


def sliding_twin(x: np.ndarray, window: int, center: bool, min_window: int, norm_vars: bool) -> np.ndarray:
    """Kaldi's SlidingWindowCmnInternal (src/feat/feature-functions.cc), line by line, without its running sums."""
    y = np.empty(x.shape)
    for t in range(len(x)):
        if center:
            window_start = t - window // 2
            window_end = window_start + window
        else:
            window_start = t - window
            window_end = t + 1
        if window_start < 0:
            window_end -= window_start
            window_start = 0
        if not center and window_end > t:
            window_end = max(t + 1, min_window)
        if window_end > len(x):
            window_start -= window_end - len(x)
            window_end = len(x)
            window_start = max(window_start, 0)
        part = x[window_start:window_end].astype(np.float64)
        y[t] = x[t] - part.sum(axis=0) / len(part)
        if norm_vars:
            if len(part) == 1:
                y[t] = 0
            else:
                variance = (part**2).sum(axis=0) / len(part) - (part.sum(axis=0) / len(part)) ** 2
                y[t] *= np.maximum(variance, 1e-10) ** -0.5
    return y


@given(
    num_frames=st.integers(1, 60),
    window=st.integers(1, 40),
    causal=st.booleans(),
    min_window=st.integers(1, 40),
    variance=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_sliding_means_are_those_of_kaldi(
    num_frames: int, window: int, causal: bool, min_window: int, variance: bool
) -> None:
    x = frames_of(num_frames)
    more: dict[str, Any] = {"cmvn_causal": True, "cmvn_min_window": min(min_window, window)} if causal else {}
    wanted = options(cmvn="sliding", cmvn_window=window, cmvn_variance=variance, **more)
    expected = sliding_twin(x, window, not causal, min(min_window, window), variance)
    np.testing.assert_allclose(normalize_frames(x, wanted), expected, atol=2e-4)


def test_sliding_means_of_a_long_utterance_stay_exact() -> None:
    """Far from zero too, where running sums in float32 would lose the digits."""
    x = frames_of(20_000) + np.float32(1000)
    x[:, 2] = 7
    found = normalize_frames(x, options(cmvn="sliding", cmvn_variance=True))
    expected = sliding_twin(x[-400:], 300, True, 100, True)
    np.testing.assert_allclose(found[-150:, :2], expected[-150:, :2], atol=1e-3)
    assert (found[:, 2] == 0).all()


@pytest.mark.parametrize("variance", [False, True])
def test_means_of_the_utterance_are_those_of_kaldi(variance: bool) -> None:
    """src/transform/cmvn.cc, ApplyCmvn."""
    x = frames_of(50)
    mean, deviation = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    expected = (x - mean) / (deviation if variance else 1)
    found = normalize_frames(x, options(cmvn="utterance", cmvn_variance=variance))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("order", "window"), [(1, 2), (2, 2), (2, 3), (4, 1)])
@pytest.mark.parametrize("num_frames", [1, 2, 30])
def test_deltas_are_those_of_kaldi(num_frames: int, order: int, window: int) -> None:
    """src/feat/feature-functions.cc, DeltaFeatures."""
    x = frames_of(num_frames).astype(np.float64)
    scales = [np.ones(1)]
    for _ in range(order):
        scale = np.zeros(len(scales[-1]) + 2 * window)
        for j in range(-window, window + 1):
            for k, value in enumerate(scales[-1]):
                scale[k + j + window] += j * value
        scales.append(scale / sum(j * j for j in range(-window, window + 1)))
    expected = np.zeros((num_frames, 3 * (order + 1)))
    for t in range(num_frames):
        for i, scale in enumerate(scales):
            reach = len(scale) // 2
            for j in range(-reach, reach + 1):
                row = x[min(max(t + j, 0), num_frames - 1)]
                expected[t, 3 * i : 3 * i + 3] += scale[j + reach] * row
    found = add_deltas(x.astype(np.float32), options(delta_order=order, delta_window=window))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def voiced_twin(
    energies: np.ndarray, threshold: float, mean_scale: float, context: int, proportion: float
) -> list[bool]:
    """Kaldi's ComputeVadEnergy (src/ivector/voice-activity-detection.cc), line by line."""
    energy_threshold = threshold
    if mean_scale != 0:
        energy_threshold += mean_scale * float(energies.astype(np.float64).sum()) / len(energies)
    voiced = []
    for t in range(len(energies)):
        num_count, den_count = 0, 0
        for t2 in range(t - context, t + context + 1):
            if 0 <= t2 < len(energies):
                den_count += 1
                if energies[t2] > energy_threshold:
                    num_count += 1
        voiced.append(num_count >= den_count * proportion)
    return voiced


@given(
    num_frames=st.integers(1, 60),
    threshold=st.floats(0, 12),
    scale=st.sampled_from([0, 0.5, 1.0]),
    context=st.integers(0, 9),
    proportion=st.sampled_from([0.0, 0.12, 0.6, 1.0]),
)
@settings(max_examples=200, deadline=None)
def test_voiced_frames_are_those_of_kaldi(
    num_frames: int, threshold: float, scale: float, context: int, proportion: float
) -> None:
    energies = frames_of(num_frames, 1)[:, 0]
    wanted = options(
        vad="energy",
        vad_energy_threshold=threshold,
        vad_energy_mean_scale=scale,
        vad_frames_context=context,
        vad_proportion_threshold=proportion,
    )
    assert find_voiced(energies, wanted).tolist() == voiced_twin(energies, threshold, scale, context, proportion)


def speech() -> np.ndarray:
    """A second of samples: loud, very quiet, loud."""
    data = samples(1.0)
    data[3000:5000] *= 1e-3
    return data


def log_energies(data: np.ndarray) -> np.ndarray:
    """Kaldi's raw log energy of each frame: of samples less their mean (src/feat/feature-window.cc)."""
    frames = np.stack([data[t : t + 200] for t in range(0, len(data) - 199, 80)]).astype(np.float64) * 32768
    frames -= frames.mean(axis=1, keepdims=True)
    return np.log(np.maximum((frames**2).sum(axis=1), np.finfo(np.float32).eps))


@pytest.mark.parametrize("kind", ["fbank", "mfcc"])
@pytest.mark.parametrize("use_energy", [False, True])
def test_voiced_frames_of_recordings_are_chosen_last(kind: str, use_energy: bool) -> None:
    """By the energy, whatever the features; Kaldi's recipes subtract sliding means before."""
    base = options(kind=kind, use_energy=use_energy, cmvn="sliding", cmvn_window=20)
    wanted = options(kind=kind, use_energy=use_energy, cmvn="sliding", cmvn_window=20, vad="energy")
    everything, found = (compute_features(speech(), one, "x") for one in (base, wanted))
    voiced = np.array(voiced_twin(log_energies(speech()), 5.0, 0.5, 0, 0.6))
    assert 0.5 < voiced.mean() < 0.9
    np.testing.assert_array_equal(found, everything[voiced])
    assert found.shape[1] == wanted.num_features


@pytest.mark.parametrize("kind", ["fbank", "mfcc"])
def test_energy_stands_where_kaldi_has_it(kind: str) -> None:
    plain, found = (compute_features(speech(), options(kind=kind, use_energy=one), "x") for one in (False, True))
    np.testing.assert_allclose(found[:, 0], log_energies(speech()), atol=1e-3)
    np.testing.assert_array_equal(found[:, 1:], plain if kind == "fbank" else plain[:, 1:])


def test_an_utterance_without_a_voiced_frame_is_an_error() -> None:
    text = error_of(compute_features, samples() * 0, options(vad="energy"), "x")
    assert text == (
        "x: none of its 48 frames is voiced by --features.vad energy: their log energies are -15.94 to -15.94; give a lower "
        "--features.vad_energy_threshold, or remove it from the list"
    )


def test_reflected_edges_give_a_frame_for_each_shift() -> None:
    wanted = options(reflect_edges=True)
    for num_samples, num_frames in ((40, 1), (119, 1), (120, 2), (200, 3), (4000, 50)):
        data = np.resize(samples(), num_samples)
        assert compute_features(data, wanted, "x").shape == (num_frames, 40)
    assert least_samples(wanted) == 40
    assert "39 samples are too few" in error_of(compute_features, samples()[:39], wanted, "x")


def test_mel_bins_lie_between_the_frequencies() -> None:
    """A tone below the lowest bin leaves no energy; a negative number is counted from half the sample rate."""
    tone = np.sin(2 * np.pi * 150 * np.arange(4000) / RATE).astype(np.float32) * 0.5
    low, high = (compute_features(tone, options(low_freq=one), "x").max() for one in (20.0, 800.0))
    assert low - high > 10
    same = [compute_features(samples(), options(high_freq=one), "x") for one in (3700.0, -300.0)]
    np.testing.assert_array_equal(*same)
    assert np.abs(same[0] - compute_features(samples(), options(), "x")).max() > 0.1


CHAINS = {
    "all": {
        "kind": "mfcc",
        "use_energy": True,
        "delta_order": 2,
        "cmvn": "sliding",
        "cmvn_variance": True,
        "vad": "energy",
    },
    "reflected": {"reflect_edges": True, "low_freq": 64.0, "high_freq": -400.0, "use_energy": True, "window_ms": 25.5},
    "causal": {"cmvn": "sliding", "cmvn_causal": True, "cmvn_window": 30, "cmvn_min_window": 10, "vad": "energy"},
    "utterance": {"kind": "mfcc", "cmvn": "utterance", "cmvn_variance": True, "delta_order": 1, "delta_window": 3},
    "context": {
        "vad": "energy",
        "vad_frames_context": 3,
        "vad_proportion_threshold": 0.2,
        "vad_energy_mean_scale": 0.0,
    },
}


@pytest.mark.parametrize("chain", CHAINS)
def test_the_steps_of_model_json_give_the_same_features(chain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the example's caller follows them, with NumPy alone."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import onnx_caller
    import soundfile

    wanted = options(num_bins=23, **CHAINS[chain])
    monkeypatch.setattr(soundfile, "read", lambda *_, **__: (speech()[:, None], RATE))
    described = {"sample_rate": RATE, "channel": None, "downmix": False, "resample": False, "feature_dtype": "float32"}
    step = described | {"feature_steps": feature_steps(wanted)}
    found, expected = onnx_caller.compute_features(step, "x"), compute_features(speech(), wanted, "x")
    assert found.shape == expected.shape
    difference = np.abs(found - expected)
    assert np.median(difference) < 1e-4
    assert difference.max() < 1e-2


def test_what_the_energy_needs_has_an_effect() -> None:
    assert {"energy_floor", "raw_energy"} < set(without_effect(options()))
    assert not {"energy_floor", "raw_energy"} & set(without_effect(options(use_energy=True)))
    assert kaldi_options(options(reflect_edges=True))["frame_opts"]["snip_edges"] is False


def test_the_number_of_features_is_that_of_the_frames() -> None:
    for changes in CHAINS.values():
        wanted = FeatureOptions(sample_rate=RATE, num_bins=23, **changes)
        assert compute_features(speech(), wanted, "x").shape[1] == wanted.num_features
