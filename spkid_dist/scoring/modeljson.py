"""Write model.json: all that a caller does from an utterance's file to its speaker, step by step, for programs to read.

The steps are those of `spkid score`. Whoever follows them in their order, with the network's file or with its layers as
they are listed, gets the same decisions; `examples/onnx_caller.py` is such a caller.

Shapes: T frames of an utterance, D features, C frames of a window, N windows, K speakers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from shards.errors import InputError
from shards.sources.featureoptions import FeatureOptions
from shards.sources.features import kaldi_options, without_effect
from shards.sources.featuresteps import feature_steps
from shards.sources.mono import SOXR_QUALITY
from spkid_dist.model import GlobalBatchNorm, Normalize
from spkid_dist.scoring.calibrationfile import Calibration
from spkid_dist.streaming.kernels import FLOAT32_EPS
from spkid_dist.trained import TrainedModel

FORMAT_VERSION = 3
INPUT, OUTPUT = "windows", "log_probs"
TOLERANCE = {
    "feature": 1e-2,
    "log_prob": 1e-5,
    "score": 2e-5,
    "meaning": "largest absolute differences between callers and spkid in the tests of spkid: of a feature, where a mel "
    "bin has least energy, of the network's output, and of a score",
}
FRAME_FILES = {
    "fmatrix": "two little-endian int32, T and D, then T x D little-endian float32, frame by frame",
    "npy": "a NumPy array (T, D) of 2, 4 or 8-byte floats; of an .npz the only array, or the one named frames",
    "kaldi": "a binary Kaldi matrix (float, double or compressed) of T rows and D columns; where feats.scp names a range of "
    "rows or columns, these alone; cmvn.scp and vad.scp are applied where `features` of `source` says so (cmvn, vad)",
    "htk": "an HTK parameter file: a big-endian header of 12 bytes, then T x D values frame by frame, as float32 or, with _C, "
    "compressed to 16 bits",
}


@dataclass(frozen=True)
class ExportedFile:
    """A file of an export: its name, and the SHA-256 of its bytes as hexadecimal, for programs in any language."""

    name: str
    sha256: str


def describe_export(
    model: TrainedModel,
    files: Mapping[str, ExportedFile],
    weights: str,
    onnx_opset: int | None,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """The contents of model.json.

    Args:
        model: what is exported.
        files: format -> its file.
        weights: name of the weights file that it was made of.
        onnx_opset: of the ONNX file, if there is one.
        calibration: of these weights, if there is one.

    Raises:
        InputError: the audio features in train.opts are damaged.
    """
    source = model.options.get("source")
    source = source if isinstance(source, dict) else {"kind": "fmatrix", "ext": model.options.get("ext", "mcp")}
    return {
        "format": "spkid-model",
        "format_version": FORMAT_VERSION,
        "files": {one: file.name for one, file in files.items()},
        "sha256": {file.name: file.sha256 for file in files.values()},
        "in_frames": model.in_frames,
        "num_features": model.num_features,
        "edge": model.edge,
        "normalize": normalization(model),
        "speakers": model.speakers,
        "steps": [
            {"step": "frames"} | _frames_step(source),
            {"step": "normalize"} | _normalize_step(normalization(model)),
            {"step": "pad"} | _pad_step(model.edge, model.in_frames),
            {"step": "windows"} | _windows_step(model.in_frames),
            {"step": "network"} | _network_step(),
            {"step": "decide"} | _decide_step(),
            {"step": "calibrate"} | _calibrate_step(calibration),
        ],
        "layers": [layer for name, module in model.network.named_children() if (layer := _layer(name, module))],
        "input": {"name": INPUT, "shape": ["N", model.in_frames * model.num_features], "dtype": "float32"},
        "output": {"name": OUTPUT, "shape": ["N", len(model.speakers)], "dtype": "float32"},
        "source": source,
        "trained_on": model.options.get("tr_fingerprint"),
        "weights": weights,
        "onnx_opset": onnx_opset,
        "tolerance": TOLERANCE,
    }


def normalization(model: TrainedModel) -> str:
    """How features are normalised: ``none``, ``global`` or ``utterance``."""
    return str(model.options.get("normalize", "none"))


def _frames_step(source: dict[str, Any]) -> dict[str, Any]:
    """From a file to frames."""
    kind = str(source.get("kind"))
    result = {"result": "frames (T, D) float32, T at least 1, all values finite"}
    if kind != "audio":
        return {"kind": kind, "ext": source.get("ext"), "layout": FRAME_FILES.get(kind)} | result
    try:
        options = FeatureOptions.from_description(source.get("features"))
    except InputError as error:
        raise InputError(f"train.opts: {error}") from None
    return {
        "kind": kind,
        "ext": source.get("ext"),
        "sample_rate": options.sample_rate,
        "channel": options.channel,
        "channel_meaning": "counted from 1; null: the file must have one channel",
        "downmix": options.downmix,
        "downmix_meaning": "true: the mean of all channels is used",
        "resample": _resampling(options),
        "ffmpeg": source.get("ffmpeg") is True,
        "sample_range": [-1.0, 1.0],
        "sample_meaning": "whole numbers of b bits are divided by 2^(b - 1); those of a wav of 8 bits are 0 to 255, so 128 is "
        "taken from them first",
        "features": options.kind,
        "feature_steps": feature_steps(options),
        "feature_dtype": "float32",
        "options": kaldi_options(options),
        "options_meaning": "all options of kaldi-native-fbank for the same features; give that library samples * scale",
        "options_without_effect": list(without_effect(options)),
    } | result


def _resampling(options: FeatureOptions) -> dict[str, Any] | bool:
    """How a recording of another sample rate is brought to that of the features; False: it is an error."""
    if not options.resample:
        return False
    return {
        "library": "soxr",
        "quality": SOXR_QUALITY,
        "meaning": "a recording of another sample rate is resampled to sample_rate, after the choice or mix of channels; "
        "another good resampler gives samples that differ little",
    }


def _normalize_step(method: str) -> dict[str, Any]:
    """What a caller does with frames before windows are cut."""
    if method == "none":
        return {"method": method, "by_caller": False, "formula": "x"}
    if method == "global":
        return {
            "method": method,
            "by_caller": False,
            "formula": "x",
            "meaning": "the network's first layer normalises: give it frames as they are",
        }
    return {
        "method": method,
        "by_caller": True,
        "over": "the T frames of the utterance, each feature by itself, before padding",
        "mean": "sum(x) / T",
        "deviation": "sqrt(sum((x - mean)^2) / T)",
        "ddof": 0,
        "epsilon": 0.0,
        "formula": "(x - mean) / deviation if deviation > constant_ratio * abs(mean) else constant_value",
        "constant_ratio": FLOAT32_EPS,
        "constant_value": 0.0,
        "compute_dtype": "float64",
        "result_dtype": "float32",
    }


def _pad_step(edge: str, in_frames: int) -> dict[str, Any]:
    """Frames to put before and after the utterance's; under ``valid`` only of those that are too short for a window."""
    before = (in_frames - 1) // 2
    return {
        "utterances": "shorter_than_in_frames" if edge == "valid" else "all",
        "frames_before": before,
        "frames_after": in_frames - 1 - before,
        "values": "zero" if edge == "zero" else "repeat_first_and_last_frame",
    }


def _windows_step(in_frames: int) -> dict[str, Any]:
    return {
        "size": in_frames,
        "shift": 1,
        "number": "padded frames - size + 1",
        "layout": "row n holds the padded frames n to n + size - 1, oldest first, D values each",
    }


def _network_step() -> dict[str, Any]:
    return {
        "input": INPUT,
        "output": OUTPUT,
        "dtype": "float32",
        "meaning": "natural logarithms of the speakers' probabilities given the window, in the order of speakers; the files "
        "hold the network, and layers says how it is computed from model.safetensors",
    }


def _decide_step() -> dict[str, Any]:
    return {
        "N": "number of windows of the utterance, the rows of the network's output",
        "score": "score[k] = sum over the N windows of log_probs[n][k] / N, for each speaker k",
        "sum_dtype": "float64",
        "speaker": "argmax",
        "ties": "first",
        "no_answer": "if the largest score is not a finite number: the frames have values that are too large",
    }


def _calibrate_step(calibration: Calibration | None) -> dict[str, Any]:
    """How sure the decision is, and whether it is that the speaker is unknown; numbers are null where nothing was fitted."""
    return {
        "temperature": None if calibration is None else calibration.scale.temperature,
        "length_exponent": None if calibration is None else calibration.scale.length_exponent,
        "threshold": None if calibration is None else calibration.threshold,
        "calibrated": "z[k] = score[k] * N^length_exponent / temperature",
        "confidence": "exp(z[k]) / sum over all speakers j of exp(z[j])",
        "log_likelihood_ratio": "z[k] - log(mean over all speakers j but k of exp(z[j])), natural logarithms",
        "unknown": "the speaker is unknown if the log-likelihood ratio of the decided speaker is below threshold",
        "dtype": "float64",
        "meaning": "without a temperature there is no confidence, and without a threshold no speaker is unknown",
    }


ACTIVATIONS: dict[type[nn.Module], dict[str, Any]] = {
    nn.ReLU: {"layer": "relu", "formula": "max(x, 0)"},
    nn.GELU: {"layer": "gelu", "formula": "x * (1 + erf(x / sqrt(2))) / 2"},
    nn.SiLU: {"layer": "silu", "formula": "x / (1 + exp(-x))"},
    nn.Tanh: {"layer": "tanh", "formula": "tanh(x)"},
    nn.LeakyReLU: {"layer": "leaky_relu", "negative_slope": 0.01, "formula": "x if x > 0 else negative_slope * x"},
    nn.LogSoftmax: {"layer": "log_softmax", "formula": "x - log(sum(exp(x))), over each row"},
}


def _layer(name: str, module: nn.Module) -> dict[str, Any] | None:
    """How a layer is computed from the tensors of model.safetensors; None for one that does nothing after training."""
    if isinstance(module, nn.Dropout):
        return None
    if isinstance(module, nn.Linear):
        tensors = {"weight": f"{name}.weight", "bias": f"{name}.bias"}
        return {"layer": "linear", **tensors, "formula": "x @ transpose(weight) + bias"}
    if isinstance(module, Normalize):
        return {
            "layer": "normalize",
            "mean": f"{name}.mean",
            "deviation": f"{name}.std",
            "formula": "(x - mean) / deviation, both repeated for each frame of the window",
        }
    if isinstance(module, GlobalBatchNorm):
        return {
            "layer": "batch_norm",
            "mean": f"{name}.running_mean",
            "variance": f"{name}.running_var",
            "weight": f"{name}.weight",
            "bias": f"{name}.bias",
            "epsilon": module.eps,
            "formula": "(x - mean) / sqrt(variance + epsilon) * weight + bias",
        }
    return ACTIVATIONS[type(module)]
