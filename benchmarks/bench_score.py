"""Scoring whole utterances against a loop of one utterance at a time, and against the network alone.

    python benchmarks/bench_score.py [--utterances 2000] [--mean_frames 250] [--speakers 40] [--repeats 5]

All files in the page cache, 2 torch threads, C*D = 420; on an accelerator where there is one. The limit is the network on one
batch of windows that is on the device already, run as often as there are windows. The loops do for each utterance: read the
file, stack its windows, run the network, sum up, take the largest. "A plain loop" stacks in Python, a list a window, as
programs of this command line do; "a careful loop" takes a view of the frames. Ours is what `spkid score` does without
start and reports: files (or a sharded dataset) to the classes found. "With error rates" also counts the trials of the equal
error rate and makes the result that Python programs get; "with --scores" writes the scores of all speakers too, to .npz.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from shards import Utterance
from shards.sources.fmatrix import read_fmatrix
from spkid_dist.bench.corpus import synthetic_files
from spkid_dist.bench.measure import print_result, ratio_by_rounds, seconds_in_turn
from spkid_dist.bench.score import READERS, network_case, score_case
from spkid_dist.measure.synthetic import SyntheticCorpus
from spkid_dist.model import build_model
from spkid_dist.ranks.sharing import Processes
from spkid_dist.score import Share
from spkid_dist.scoring.outcome import ScoreResult
from spkid_dist.scoring.resultfiles import scores_of
from spkid_dist.scoring.rowfile import RowFile, rows_of_all
from spkid_dist.scoring.scorefile import write_scores
from spkid_dist.scoring.scorer import Scorer
from spkid_dist.scoring.utterances import ListedFiles, ShardedUtterances
from spkid_dist.trained import TrainedModel

C, D, HSIZE = 21, 20, 100
RATES, SCORES = "shards, with error rates", "shards, with --scores"


def main() -> None:
    """Make a corpus, time the ways to score it, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=2000, help="of the corpus, about")
    parser.add_argument("--mean_frames", type=int, default=250, help="frames of an utterance")
    parser.add_argument("--speakers", type=int, default=40, help="of the corpus and the network")
    parser.add_argument("--peer_utterances", type=int, default=200, help="utterances of a run of the loops")
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each way")
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


def run(folder: Path, options: argparse.Namespace) -> None:
    """Time all ways on a corpus made in `folder`."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    corpus = SyntheticCorpus(
        num_speakers=options.speakers,
        train_utterances=max(1, options.utterances // options.speakers),
        test_utterances=0,
        mean_frames=options.mean_frames,
        num_features=D,
    )
    found = synthetic_files(corpus, folder)
    found.shard(folder / "shards")
    torch.manual_seed(0)
    model = TrainedModel(
        network=build_model(C * D, HSIZE, options.speakers).eval().to(device),
        speakers=[f"spk{index:04d}" for index in range(options.speakers)],
        in_frames=C,
        num_features=D,
        edge="valid",
        options={},
    )
    listed = found.listed
    files = ListedFiles(listed, found.source, model)
    shards = ShardedUtterances(folder / "shards", model, None, None)
    few = listed[:: max(1, len(listed) // options.peer_utterances)]
    windows = sum(len(read_fmatrix(f"{folder}/mcp/{one.key}.mcp")) - C + 1 for one in listed)
    cases: dict[str, Callable[[], object]] = {
        "limit: the network alone": network_case(model, device, windows),
        "spkid score, files": score_case(model, device, lambda: files.groups(0, 1, READERS)),
        "spkid score, shards": score_case(model, device, lambda: shards.groups(0, 1, READERS)),
        RATES: whole_case(model, device, shards, None),
        SCORES: whole_case(model, device, shards, folder / "scores.npz"),
        "a plain loop": loop_case(model, device, folder, few, plain_windows),
        "a careful loop": loop_case(model, device, folder, few, window_view),
    }
    seconds = seconds_in_turn(cases, options.repeats)
    counts = {name: len(few) if "loop" in name else len(listed) for name in cases}
    report(seconds, counts, windows / len(listed), {"device": device.type, "speakers": options.speakers})


def report(
    seconds: dict[str, list[float]], counts: dict[str, int], windows_each: float, facts: dict[str, object]
) -> None:
    """Print ratios, a table of windows a second, and JSON with utterances a second."""
    each = {name: [second / counts[name] for second in values] for name, values in seconds.items()}
    ratios = {}
    for ours in ("files", "shards"):
        mine = each[f"spkid score, {ours}"]
        ratios[f"{ours}, of the network alone"] = ratio_by_rounds(each["limit: the network alone"], mine)
        ratios[f"{ours}, times a plain loop"] = ratio_by_rounds(each["a plain loop"], mine)
        ratios[f"{ours}, times a careful loop"] = ratio_by_rounds(each["a careful loop"], mine)
    ratios["with error rates, of the classes alone"] = ratio_by_rounds(each["spkid score, shards"], each[RATES])
    ratios["with --scores, of without"] = ratio_by_rounds(each[RATES], each[SCORES])
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    for name, values in each.items():
        print(f"{name:32} {1 / sorted(values)[len(values) // 2]:>10,.0f} utterances/s")
    rows = [(name, values, counts[name] * windows_each / 1e3) for name, values in seconds.items()]
    result = {
        "benchmark": "score",
        "windows_each": windows_each,
        "seconds": seconds,
        "utterances": counts,
        "ratios": ratios,
    }
    print_result(rows, result | facts, "thousand windows/s")


def whole_case(
    model: TrainedModel, device: torch.device, utterances: ShardedUtterances, scores_path: Path | None
) -> Callable[[], object]:
    """All utterances to the result, and to a file of scores where one is named."""
    processes = Processes("score")
    scorer = Scorer(model, device)
    size = (utterances.count, len(model.speakers))

    def score() -> ScoreResult:
        began = time.perf_counter()
        with contextlib.ExitStack() as stack:
            rows = None
            if scores_path is not None:
                rows = stack.enter_context(contextlib.closing(RowFile(scores_path.parent, len(model.speakers))))
            share = Share(*size, rows=rows)
            for scores in scorer.score(utterances.groups(0, 1, READERS)):
                share.add(scores)
            result = share.join(processes, model.speakers, began)
            if rows is not None and scores_path is not None:
                write_scores(scores_path, scores_of(result), rows_of_all(rows, *size, processes))
        return result

    return score


def loop_case(
    model: TrainedModel,
    device: torch.device,
    folder: Path,
    listed: list[Utterance],
    stack: Callable[[np.ndarray], torch.Tensor],
) -> Callable[[], object]:
    """Some utterances, one at a time."""

    @torch.no_grad()
    def loop() -> list[int]:
        found = []
        for utterance in listed:
            windows = stack(read_fmatrix(f"{folder}/mcp/{utterance.key}.mcp")).to(device)
            found.append(int(model.network(windows).sum(dim=0).argmax()))
        return found

    return loop


def plain_windows(frames: np.ndarray) -> torch.Tensor:
    """A list of values a window."""
    windows = []
    for start in range(len(frames) - C + 1):
        window: list[float] = []
        for frame in frames[start : start + C]:
            window.extend(frame)
        windows.append(window)
    return torch.from_numpy(np.array(windows, np.float32))


def window_view(frames: np.ndarray) -> torch.Tensor:
    """A copy of a view, made by NumPy."""
    view = np.lib.stride_tricks.sliding_window_view(frames, C, axis=0)
    return torch.from_numpy(np.ascontiguousarray(view.transpose(0, 2, 1)).reshape(-1, C * D))


if __name__ == "__main__":
    main()
