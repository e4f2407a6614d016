"""Sharding of recordings against kaldi-native-fbank alone, which has the samples in memory already.

    python benchmarks/bench_audio.py [--minutes 480] [--seconds 8] [--repeats 5]

The limit is the library: one process computes the features of the decoded samples, and throws them away. Ours opens, compares
and decodes each file, computes its features, and writes and flushes the shards, with one process and with two workers; the
plan's sample of utterances is in, the interpreters' start is not. Of N processes the limit is N times the library alone.
Everything is in the page cache. Run it on a machine that does nothing else: the library alone has one CPU for itself.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from shards import AudioSource, FeatureOptions, Layout, Utterance, convert, make_plan
from shards.conversion.workers import process_pool
from shards.sources.features import SAMPLE_SCALE, make_extractor
from spkid_dist.bench.measure import print_result, ratio_by_rounds, seconds_in_turn
from spkid_dist.bench.shard import clean

RATE = 16000
SPEAKERS = 20
DIFFERENT = 1800  # seconds of audio; the samples of so many are in memory
SHARDS = 8  # so that two workers have several shards each
WORKERS = 2
LIBRARY, ALONE, TOGETHER = "kaldi-native-fbank alone", "spkid shard, 1 process", f"spkid shard, {WORKERS} workers"


def main() -> None:
    """Make a corpus, time the ways, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=480, help="of the corpus")
    parser.add_argument("--seconds", type=float, default=8, help="mean length of a recording")
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each way")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run(Path(folder), 60 * options.minutes, options.seconds, options.repeats)


def run(folder: Path, total: float, mean: float, repeats: int) -> None:
    """Time all ways on a corpus of `total` seconds made in `folder`."""
    utterances, decoded = make_corpus(folder / "wav", total, mean)
    features = FeatureOptions(sample_rate=RATE)
    source, out = AudioSource(folder / "wav", "wav", features), folder / "out"
    speakers = sorted({utterance.speaker for utterance in utterances})
    num_samples = sum(map(len, decoded))
    num_bytes = num_samples // (RATE // 100) * features.num_features * 4

    def library() -> None:
        for samples in decoded:
            extract(samples, features)

    def ours(executor: object = None, workers: int = 1) -> None:
        plan = make_plan(utterances, speakers, source, Layout(shard_bytes=max(1, num_bytes // SHARDS)))
        convert(plan, source, out, executor=executor, workers=workers)

    with process_pool(WORKERS) as pool:
        cases = {LIBRARY: library, ALONE: ours, TOGETHER: lambda: ours(pool, WORKERS)}
        seconds = seconds_in_turn(cases, repeats, before=lambda: clean(out))
    ratios = {
        f"{name}, of {LIBRARY} times {workers}": ratio_by_rounds(seconds[LIBRARY], seconds[name]) / workers
        for name, workers in ((ALONE, 1), (TOGETHER, WORKERS))
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    hours = num_samples / RATE / 3600
    rows = [(name, values, hours * 3600) for name, values in seconds.items()]
    print_result(rows, {"benchmark": "audio", "hours": hours, "seconds": seconds, "ratios": ratios}, "s/s")


def make_corpus(folder: Path, total: float, mean: float) -> tuple[list[Utterance], list[np.ndarray]]:
    """Recordings of noise, 16 bits; the utterances, and the samples of each as the library takes them.

    Half an hour of them differ; the others have the same samples under other names.
    """
    generator, different = np.random.default_rng(0), max(1, round(DIFFERENT / mean))
    utterances, decoded = [], []
    for number in range(max(SHARDS, round(total / mean))):
        utterance = Utterance(f"spk{number % SPEAKERS:02d}/utt{number:06d}", f"spk{number % SPEAKERS:02d}")
        path = folder / f"{utterance.key}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < different:
            length = int(RATE * mean * generator.uniform(0.5, 1.5))
            soundfile.write(path, generator.standard_normal(length) * 0.1, RATE)
            decoded.append(soundfile.read(path, dtype="float32")[0] * np.float32(SAMPLE_SCALE))
        else:
            path.hardlink_to(folder / f"{utterances[number % different].key}.wav")
            decoded.append(decoded[number % different])
        utterances.append(utterance)
    return utterances, decoded


def extract(samples: np.ndarray, features: FeatureOptions) -> np.ndarray:
    """The frames (T, D) float32 by the library alone."""
    extractor = make_extractor(features)
    extractor.accept_waveform(RATE, samples)
    extractor.input_finished()
    frames = np.empty((extractor.num_frames_ready, features.num_features), np.float32)
    for number in range(len(frames)):
        frames[number] = extractor.get_frame(number)
    return frames


if __name__ == "__main__":
    main()
