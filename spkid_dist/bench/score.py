"""Measure scoring, from files and from shards, against the network alone on windows that are in memory already."""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

import torch

from shards.dataset import ShardDataset
from shards.errors import UsageError
from spkid_dist.bench.rows import SCORE, Findings, make_row, middle
from spkid_dist.bench.timetable import LONGEST_SECONDS, RUN_SECONDS
from spkid_dist.bench.workbench import Case, Workbench
from spkid_dist.model import model_from_options
from spkid_dist.scoring.scorer import ACCELERATOR_BATCH, CPU_BATCH, Scorer
from spkid_dist.scoring.utterances import Group, ListedFiles, ShardedUtterances, Utterances
from spkid_dist.trained import TrainedModel

READERS = 4
NETWORK, FILES, SHARDS = "the network alone", "spkid score, files", "spkid score, shards"
DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def measure_score(bench: Workbench) -> Findings:
    """Measure scoring from shards, and from files where there are some.

    Raises:
        InputError: the dataset is missing or damaged, or the files are not of its features.
        UsageError: the dataset is at a URL, which scoring does not read.
    """
    if "://" in bench.shards:
        raise UsageError(f"score --shards {bench.shards}: scoring reads local datasets; copy it to a folder")
    config, model = bench.config, random_model(bench)
    sources: dict[str, Utterances] = {SHARDS: ShardedUtterances(Path(bench.shards), model, None, None)}
    if bench.corpus.files is not None:
        sources[FILES] = ListedFiles(bench.corpus.files.listed, bench.corpus.files.source, model)
    windows = windows_of_a_run(bench, model)
    cases: dict[str, Case] = {NETWORK: network_case(model, bench.device, windows, config.mixed_precision)}
    for name, utterances in sources.items():
        cases[name] = score_case(model, bench.device, _groups(bench, utterances, windows), config.mixed_precision)
    rates = bench.rates(cases)
    slowest = min(sources, key=lambda name: middle(rates[name]))
    rows = [
        make_row(
            SCORE,
            name,
            "windows/s",
            rates[name],
            limit=(NETWORK, rates[NETWORK]),
            windows_per_unit=1.0,
            on_path=name == slowest,
        )
        for name in sources
    ]
    return Findings(rows=rows, figures={"rates": rates})


def random_model(bench: Workbench) -> TrainedModel:
    """The network of the options, with weights of a seed."""
    torch.manual_seed(0)
    manifest, config = ShardDataset(bench.shards).manifest, bench.config
    options = {
        "input_dim": manifest.num_features,
        "in_frames": config.in_frames,
        "num_spks": len(manifest.speakers),
        "hsize": config.hsize,
        "num_layers": config.num_layers,
        "source": manifest.source,
    }
    return TrainedModel(
        network=model_from_options(options, "spkid bench").eval().to(bench.device),
        speakers=manifest.speakers,
        in_frames=config.in_frames,
        num_features=manifest.num_features,
        edge="valid",
        options=options,
    )


def windows_of_a_run(bench: Workbench, model: TrainedModel) -> int:
    """This rank's windows of a run: its share of --frames, but no more than some seconds of the network."""
    pilot = network_case(model, bench.device, 1, bench.config.mixed_precision)
    pilot()
    began = time.perf_counter()
    rate = pilot() / (time.perf_counter() - began)
    return max(1, min(bench.config.frames // bench.world_size, int(rate * RUN_SECONDS)))


def _groups(bench: Workbench, utterances: Utterances, most: int) -> Callable[[], Generator[Group, None, None]]:
    """This rank's utterances, until they have `most` frames, or take much longer than they should."""

    def groups() -> Generator[Group, None, None]:
        frames, end = 0, time.perf_counter() + LONGEST_SECONDS
        with closing(utterances.groups(bench.rank, bench.world_size, READERS)) as all_groups:
            for group in all_groups:
                yield group
                frames += len(group.frames)
                if frames >= most or time.perf_counter() > end:
                    return

    return groups


def network_case(model: TrainedModel, device: torch.device, windows: int, precision: str = "no") -> Case:
    """The network on one batch (B, C*D), as often as it takes for `windows`, or less often if that takes too long."""
    size, dtype = CPU_BATCH if device.type == "cpu" else ACCELERATOR_BATCH, DTYPES[precision]
    batch = torch.randn(size, model.in_frames * model.num_features, device=device)
    times = -(-windows // size)

    @torch.inference_mode()
    def forward() -> float:
        done, end = 0, time.perf_counter() + LONGEST_SECONDS
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            while not done or (done < times and time.perf_counter() < end):
                out = model.network(batch)
                done += 1
        float(out[0, 0])  # waits for the device
        return done * size

    return forward


def score_case(
    model: TrainedModel,
    device: torch.device,
    groups: Callable[[], Generator[Group, None, None]],
    precision: str = "no",
) -> Case:
    """All utterances of `groups` by the scorer; the number of windows."""
    scorer = Scorer(model, device, precision=precision)

    def score() -> float:
        windows = 0
        for scores in scorer.score(groups()):
            scores.means.argmax(axis=1)
            windows += int(scores.windows.sum())
        return windows

    return score
