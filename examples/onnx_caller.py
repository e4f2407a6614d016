"""Name the speaker of each utterance with an exported ONNX file, without spkid-dist and without torch.

    python onnx_caller.py EXPORTED DB_PATH LIST

EXPORTED is the folder that `spkid export --format onnx` wrote. DB_PATH is the folder of the feature files or recordings.
LIST has one utterance per line. The program prints one line per utterance: UTTERANCE, SPEAKER and the mean logarithm of
the speaker's probability, separated by tabs. A model that was calibrated also gives a confidence, from 0 to 1. With a
threshold, SPEAKER is "unknown" for an utterance below it, and the other columns are those of the nearest speaker.

It needs numpy and onnxruntime. A model of recordings needs soundfile too, to read them, and soxr where it resamples
them; a model of Kaldi files needs kaldiio. The program does what `model.json` says, step by step, and knows nothing else of
the model: it can be written in any other language, too.

Shapes: T frames of an utterance, D features, C frames of a window, N windows, K speakers.
"""

import argparse
import functools
import hashlib
import json
from pathlib import Path

import numpy as np


def read_frames(step, db_path, key):
    """The frames of an utterance, (T, D) float32."""
    if step["kind"] == "kaldi":
        return read_kaldi(db_path, key)
    path = f"{db_path}/{key}.{step['ext']}"
    if step["kind"] == "audio":
        return compute_features(step, path)
    if step["kind"] == "npy":
        return np.load(path).astype(np.float32)
    if step["kind"] == "fmatrix":
        T, D = np.fromfile(path, "<i4", 2)
        return np.fromfile(path, "<f4", offset=8).reshape(T, D)
    raise ValueError(f"model.json: unknown kind of file {step['kind']!r}")


def read_kaldi(folder, key):
    """The matrix of an utterance in a Kaldi data folder, (T, D) float32."""
    import kaldiio

    return np.array(kaldiio.load_mat(kaldi_places(folder)[key].strip()), np.float32)


@functools.cache
def kaldi_places(folder):
    """Where the matrix of each utterance lies: the lines of feats.scp, which is read once."""
    lines = Path(folder, "feats.scp").read_text().splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def compute_features(step, path):
    """The features of a recording, (T, D) float32."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if rate != step["sample_rate"] and not step["resample"]:
        raise ValueError(f"{path}: its sample rate is {rate} Hz, expected {step['sample_rate']} Hz")
    x = samples.mean(axis=1) if step["downmix"] else samples[:, (step["channel"] or 1) - 1]
    if rate != step["sample_rate"]:
        import soxr

        x = soxr.resample(x, rate, step["sample_rate"], quality=step["resample"]["quality"])
    x, energies = x.astype(np.float64), None
    for one in step["feature_steps"]:
        if one["step"] == "log_energy":
            energies = np.log(np.maximum((x**2).sum(axis=1), one["floor"]))
        elif one["step"] in ENERGY_STEPS:
            x = ENERGY_STEPS[one["step"]](one, x, energies)
        else:
            x = FEATURE_STEPS[one["step"]](one, x)
    return x.astype(step["feature_dtype"])


def cut_frames(step, x):
    """The samples of each frame, (T, size)."""
    size, shift = step["size"], step["shift"]
    if len(x) < size:
        raise ValueError(f"{len(x)} samples are too few for a frame of {size}")
    return np.stack([x[start : start + size] for start in range(0, len(x) - size + 1, shift)])


def cut_reflected(step, x):
    """The samples of each frame, (T, size), the first and last ones continued by reflection."""
    number = (len(x) + step["shift"] // 2) // step["shift"]
    if number == 0:
        raise ValueError(f"{len(x)} samples are too few for a frame")
    first = step["first"] + np.arange(number)[:, None] * step["shift"]
    at = (first + np.arange(step["size"])) % (2 * len(x))  # reflected again and again, x has this period
    return x[np.minimum(at, 2 * len(x) - 1 - at)]


def preemphasize(step, x):
    """Each sample without a part of the one before it, (T, size)."""
    before = np.concatenate((x[:, :1], x[:, :-1]), axis=1)
    return x - step["coefficient"] * before


def povey_window(step, x):
    """The samples of each frame, faded in and out, (T, size)."""
    angles = 2 * np.pi * np.arange(x.shape[1]) / (x.shape[1] - 1)
    return x * (0.5 - 0.5 * np.cos(angles)) ** step["exponent"]


def power_spectrum(step, x):
    """The power of each line of the spectrum, (T, lines)."""
    return np.abs(np.fft.rfft(x, step["size"])[:, : step["lines"]]) ** 2


def mel(frequency):
    """A frequency in Hz on the mel scale."""
    return 1127 * np.log(1 + frequency / 700)


def sum_mel_bins(step, x):
    """The power in each mel bin, whose weights are triangles on the mel scale, (T, num_bins)."""
    low, high = mel(step["low_frequency"]), mel(step["high_frequency"])
    edges = low + np.arange(step["num_bins"] + 2) * (high - low) / (step["num_bins"] + 1)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    lines = mel(np.arange(x.shape[1]) * step["hertz_per_line"])
    rising, falling = (lines - left) / (centre - left), (right - lines) / (right - centre)
    return x @ np.maximum(0, np.minimum(rising, falling)).T


def cosine_transform(step, x):
    """Cepstral coefficients, (T, num_ceps)."""
    bins, ceps = np.arange(step["num_bins"]), np.arange(step["num_ceps"])
    cosines = np.cos(np.pi / step["num_bins"] * (bins[:, None] + 0.5) * ceps)
    return x @ (cosines * np.sqrt(np.where(ceps == 0, 1, 2) / step["num_bins"]))


def lift(step, x):
    """Cepstral coefficients of sizes that are more alike, (T, num_ceps)."""
    return x * (1 + step["lifter"] / 2 * np.sin(np.pi * np.arange(x.shape[1]) / step["lifter"]))


def add_deltas(step, x):
    """The frames with their time derivatives behind them, (T, D * (1 + order))."""
    ramp = np.arange(-step["window"], step["window"] + 1)
    scales, parts = np.ones(1), [x]
    for order in range(1, step["order"] + 1):
        scales = np.convolve(scales, ramp / (ramp**2).sum())
        reach = order * step["window"]
        padded = np.pad(x, ((reach, reach), (0, 0)), "edge")
        parts.append(sum(scale * padded[i : i + len(x)] for i, scale in enumerate(scales)))
    return np.hstack(parts)


def normalize_utterance(step, x):
    """The frames less the mean of each feature, and perhaps divided by its deviation, (T, D)."""
    mean = x.mean(axis=0)
    variance = np.maximum((x**2).mean(axis=0) - mean**2, step["floor"])
    return (x - mean) / (np.sqrt(variance) if step["variance"] else 1)


def normalize_sliding(step, x):
    """The same over a window of frames around each frame, or before it, (T, D)."""
    y = np.empty_like(x)
    for t in range(len(x)):
        begin = t - step["window"] if step["causal"] else t - step["window"] // 2
        end = t + 1 if step["causal"] else begin + step["window"]
        if begin < 0:
            begin, end = 0, end - begin
        if step["causal"] and end > t:
            end = max(t + 1, step["min_window"])
        if end > len(x):
            begin, end = max(0, begin - (end - len(x))), len(x)
        part = x[begin:end]
        y[t] = x[t] - part.mean(axis=0)
        if step["variance"]:
            variance = np.maximum((part**2).mean(axis=0) - part.mean(axis=0) ** 2, step["floor"])
            y[t] *= 0 if len(part) == 1 else variance**-0.5
    return y


def replace_by_energy(_, x, energies):
    """The frames with their energy as the first value, (T, D)."""
    return np.hstack((energies[:, None], x[:, 1:]))


def select_voiced(step, x, energies):
    """The frames around which enough are loud."""
    loud = energies > step["threshold"] + step["mean_scale"] * energies.mean()
    around = [loud[max(0, t - step["context"]) : t + step["context"] + 1] for t in range(len(loud))]
    voiced = np.array([near.sum() >= len(near) * step["proportion"] for near in around])
    if not voiced.any():
        raise ValueError("no frame is voiced")
    return x[voiced]


ENERGY_STEPS = {
    "insert_energy": lambda _, x, energies: np.hstack((energies[:, None], x)),
    "replace_by_energy": replace_by_energy,
    "select_voiced": select_voiced,
}
FEATURE_STEPS = {
    "scale": lambda step, x: x * step["scale"],
    "cut": cut_frames,
    "cut_reflected": cut_reflected,
    "dither": lambda _, x: x,  # its amount is 0
    "remove_mean": lambda _, x: x - x.mean(axis=1, keepdims=True),
    "preemphasis": preemphasize,
    "window": povey_window,
    "pad": lambda step, x: np.pad(x, ((0, 0), (0, step["size"] - x.shape[1]))),
    "power_spectrum": power_spectrum,
    "mel_bins": sum_mel_bins,
    "log": lambda step, x: np.log(np.maximum(x, step["floor"])),
    "cosine_transform": cosine_transform,
    "lifter": lift,
    "deltas": add_deltas,
    "cmvn_utterance": normalize_utterance,
    "cmvn_sliding": normalize_sliding,
}


def normalize(step, x):
    """Bring each feature of the utterance to mean 0 and deviation 1, where this is left to the caller."""
    if not step["by_caller"]:
        return x
    x = x.astype(step["compute_dtype"])
    mean = x.sum(axis=0) / len(x)
    deviation = np.sqrt(((x - mean) ** 2).sum(axis=0) / (len(x) - step["ddof"]))
    varies = deviation > step["constant_ratio"] * np.abs(mean)
    normal = (x - mean) / np.where(varies, deviation + step["epsilon"], 1)
    return np.where(varies, normal, step["constant_value"]).astype(step["result_dtype"])


def pad(step, x, in_frames):
    """Put frames before and after those of the utterance."""
    if step["utterances"] == "shorter_than_in_frames" and len(x) >= in_frames:
        return x
    around = ((step["frames_before"], step["frames_after"]), (0, 0))
    return np.pad(x, around, "constant" if step["values"] == "zero" else "edge")


def cut(step, x):
    """All windows of the frames, (N, C*D)."""
    size, shift = step["size"], step["shift"]
    return np.stack([x[n : n + size].reshape(-1) for n in range(0, len(x) - size + 1, shift)])


def open_onnx(folder, model):
    """The network as a function: windows (N, C*D) to logarithms of probabilities (N, K)."""
    import onnxruntime

    name = model["files"]["onnx"]
    data = Path(folder, name).read_bytes()
    if hashlib.sha256(data).hexdigest() != model["sha256"][name]:
        raise ValueError(f"{folder}/{name}: not the file that model.json was written with")
    session = onnxruntime.InferenceSession(data)
    return lambda x: session.run([model["output"]["name"]], {model["input"]["name"]: x})[0]


def calibrate(step, score, num_windows, best):
    """How sure the decision for the speaker `best` is, None where nobody calibrated the model; and whether it holds."""
    if step["temperature"] is None:
        return None, True
    z = score * num_windows ** step["length_exponent"] / step["temperature"]
    z = z - z[best]  # so that no exponential is too large
    confidence = 1 / np.exp(z).sum()
    if step["threshold"] is None:
        return float(confidence), True
    ratio = -np.log(np.exp(np.delete(z, best)).mean())
    return float(confidence), bool(ratio >= step["threshold"])


def identify(model, network, db_path, key):
    """The speaker of an utterance, None if unknown; the mean logarithm of the best speaker's probability; the confidence."""
    x, score, confidence, is_known = None, None, None, True
    for step in model["steps"]:
        if step["step"] == "frames":
            x = read_frames(step, db_path, key)
        elif step["step"] == "normalize":
            x = normalize(step, x)
        elif step["step"] == "pad":
            x = pad(step, x, model["in_frames"])
        elif step["step"] == "windows":
            x = cut(step, x)
        elif step["step"] == "network":
            x = network(x)
        elif step["step"] == "decide":
            score = x.astype(step["sum_dtype"]).sum(axis=0) / len(x)
            if not np.isfinite(score.max()):  # NaN if any is
                raise ValueError(f"{key}: its frames have values that are too large to compute with")
        elif step["step"] == "calibrate":
            confidence, is_known = calibrate(step, score, len(x), score.argmax())
        else:
            raise ValueError(f"model.json: unknown step {step['step']!r}")
    return model["speakers"][score.argmax()] if is_known else None, float(score.max()), confidence


def main():
    """Print the speaker of each utterance of a list."""
    parser = argparse.ArgumentParser(description="Name the speaker of each utterance with an exported ONNX file.")
    parser.add_argument("exported", help="folder that `spkid export --format onnx` wrote")
    parser.add_argument("db_path", help="folder of the feature files or recordings")
    parser.add_argument("list", type=Path, help="list of utterances, one per line")
    arguments = parser.parse_args()
    model = json.loads(Path(arguments.exported, "model.json").read_text())
    network = open_onnx(arguments.exported, model)
    for key in filter(None, map(str.strip, arguments.list.read_text().splitlines())):
        speaker, score, confidence = identify(model, network, arguments.db_path, key)
        sure = "" if confidence is None else f"\t{confidence:.4f}"
        print(f"{key}\t{'unknown' if speaker is None else speaker}\t{score:.4f}{sure}")


if __name__ == "__main__":
    main()
