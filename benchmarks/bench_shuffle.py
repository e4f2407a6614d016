"""How well pools shuffle, against a uniform permutation of all windows of an epoch.

    python benchmarks/bench_shuffle.py [--utterances 2400] [--mean_frames 250] [--batches 200]

Of each batch of B windows: how many utterances it is of; how unlike the corpus its speakers are (chi-squared, divided by its
degrees of freedom: 1 for a random sample); and how many of its windows share frames with another of the same batch. Each is
given for pools of several sizes and for a permutation of all windows by NumPy; the last line is JSON.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from shards import Layout, Utterance, convert, make_plan
from spkid_dist.bench.measure import print_json
from spkid_dist.dataset import WindowDataset

C, B, SPEAKERS = 21, 1000, 40


class NumberedSource:
    """Utterances whose frames say where they are from: (number of the utterance, number of the frame)."""

    def __init__(self, lengths: np.ndarray) -> None:
        self._lengths = lengths

    def load(self, utterance: Utterance) -> np.ndarray:
        """The frames (T, 2) of an utterance."""
        number = int(utterance.key)
        frames = np.arange(self._lengths[number], dtype=np.float32)
        return np.stack([np.full_like(frames, number), frames], axis=1)

    def where(self, utterance: Utterance) -> str:
        """For messages."""
        return f"utterance {utterance.key}"

    def describe(self) -> dict[str, str]:
        """The kind of source."""
        return {"kind": "numbered"}


def main() -> None:
    """Make a corpus, stream it through pools of several sizes, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=2400)
    parser.add_argument("--mean_frames", type=int, default=250)
    parser.add_argument("--batches", type=int, default=200, help="batches that are looked at, of each way")
    parser.add_argument("--shuffle_windows", type=int, nargs="+", default=[2**16, 2**17, 2**18, 2**20])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder), options.utterances, options.mean_frames, options.batches, options.shuffle_windows)
    for name, row in rows.items():
        print(f"{name:32} " + "  ".join(f"{what}: {value:.3f}" for what, value in row.items()))
    print_json({"benchmark": "shuffle", "batch_size": B, "rows": rows})


def run(
    folder: Path, utterances: int, mean_frames: int, batches: int, shuffle_windows: list[int]
) -> dict[str, dict[str, float]]:
    """The statistics of each way, means over batches."""
    lengths = np.random.default_rng(0).integers(C, 2 * mean_frames - C, utterances)
    listed = [Utterance(str(number), f"spk{number % SPEAKERS:02d}") for number in range(utterances)]
    speakers = sorted({utterance.speaker for utterance in listed})
    source = NumberedSource(lengths)
    convert(make_plan(listed, speakers, source, Layout()), source, folder / "shards")
    rows = {"uniform permutation": mean_statistics(uniform_batches(lengths, batches), lengths)}
    for windows in shuffle_windows:
        data = WindowDataset(folder / "shards", in_frames=C, batch_size=B, shuffle_windows=windows)
        found = [x[:, :2].numpy().astype(int) for x, _ in take(data, batches)]
        rows[f"pools of {windows} windows"] = mean_statistics(found, lengths)
    return rows


def take(data: WindowDataset, batches: int) -> "list[tuple]":
    """Full batches from all over an epoch: they are not equally far from the pools' borders."""
    every = max(1, (len(data) - 1) // batches)
    chosen = [batch for number, batch in enumerate(data) if number % every == 0 and len(batch[1]) == B]
    data.close()
    return chosen[:batches]


def uniform_batches(lengths: np.ndarray, batches: int) -> list[np.ndarray]:
    """Batches (B, 2) of (utterance, first frame) out of a permutation of all windows."""
    windows = lengths - C + 1
    utterance = np.repeat(np.arange(len(lengths)), windows)
    frame = np.arange(len(utterance)) - np.repeat(np.cumsum(windows) - windows, windows)
    order = np.random.default_rng(1).permutation(len(utterance))
    places = [order[at : at + B] for at in range(0, len(order) - B + 1, B)][:batches]
    return [np.stack([utterance[place], frame[place]], axis=1) for place in places]


def mean_statistics(batches: list[np.ndarray], lengths: np.ndarray) -> dict[str, float]:
    """Means over batches (B, 2) of (utterance, first frame)."""
    windows = np.bincount(np.arange(len(lengths)) % SPEAKERS, weights=lengths - C + 1)
    expected = B * windows / windows.sum()
    rows = []
    for batch in batches:
        observed = np.bincount(batch[:, 0] % SPEAKERS, minlength=SPEAKERS)
        chi_squared = ((observed - expected) ** 2 / expected).sum() / (SPEAKERS - 1)
        rows.append((len(np.unique(batch[:, 0])), chi_squared, overlapping(batch)))
    means = np.mean(rows, axis=0)
    return dict(zip(("utterances", "speakers_chi2", "overlapping"), means.tolist(), strict=True))


def overlapping(batch: np.ndarray) -> int:
    """Windows of (utterance, first frame) that share frames with the next one of their utterance in the batch."""
    order = np.lexsort((batch[:, 1], batch[:, 0]))
    step = np.diff(batch[order], axis=0)
    return int(((step[:, 0] == 0) & (step[:, 1] < C)).sum())


if __name__ == "__main__":
    main()
