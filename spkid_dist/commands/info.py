"""The command `spkid info`: show what is in a dataset."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from shards.dataset import ShardDataset
from shards.errors import InputError, UsageError
from shards.files import plain_json
from shards.manifest import Manifest
from shards.plaintext import printable
from shards.stores.store import StoreOptions
from shards.verification.ongoing import find_unfinished
from spkid_dist.config import InfoConfig

HISTOGRAM_BINS = 10
BAR_WIDTH = 40
SHIFT_ORIGINS = {
    "dataset": ", as the dataset says",
    "--frame_shift_ms": "",
    "assumed": " (assumed)",
}
ASSUMED_SHIFT_MS = 10.0  # what most feature files have


def info(config: InfoConfig) -> None:
    """Print speakers, utterances, frames, hours, size, dtype, shards and a histogram of frames per speaker.

    Raises:
        InputError: the folder holds no dataset, or a damaged one.
        UsageError: --frame_shift_ms is not what the dataset says.
    """
    dataset = ShardDataset(config.folder, StoreOptions(fingerprint=config.fingerprint, cache_dir=config.shard_cache))
    shift_ms, origin = find_frame_shift(dataset.manifest, config.frame_shift_ms)
    facts = dataset_facts(dataset, shift_ms, origin)
    if isinstance(dataset.folder, Path):
        try:
            unfinished = find_unfinished(dataset.folder, dataset.manifest)
        except InputError as error:
            facts["unfinished"] = str(error)
        else:
            facts |= {} if unfinished is None else {"unfinished": str(unfinished)}
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if config.json:
        console.out(json.dumps(plain_json(facts)))
        return
    table = Table(title=str(dataset.folder), title_justify="left", show_header=False, box=None)
    for name, value in facts.items():
        if name in ("frame_shift_ms", "frame_shift_from"):  # they stand beside the hours
            continue
        table.add_row(name.replace("_", " "), printable(_readable(name, value, facts)))
    console.print(table)
    console.print(_histogram(frames_per_speaker(dataset)))


def find_frame_shift(manifest: Manifest, given: float | None) -> tuple[float, str]:
    """Milliseconds from one frame to the next, and who says so: the dataset, the flag, or nobody.

    Raises:
        UsageError: the `given` one is not the dataset's.
    """
    features = manifest.source.get("features")
    known = features.get("shift_ms") if isinstance(features, dict) else None
    if not isinstance(known, int | float):
        return (ASSUMED_SHIFT_MS, "assumed") if given is None else (given, "--frame_shift_ms")
    if given not in (None, known):
        raise UsageError(
            f"--frame_shift_ms {given:g}: the dataset's frames are {known:g} ms apart, as its manifest says; leave the flag out"
        )
    return float(known), "dataset"


def dataset_facts(dataset: ShardDataset, frame_shift_ms: float, frame_shift_from: str) -> dict[str, Any]:
    """What is in a dataset, by name; `hours` at the given frame shift, which `frame_shift_from` says."""
    manifest = dataset.manifest
    lengths = dataset.utterance_column("frames")
    return {
        "speakers": len(manifest.speakers),
        "empty_speakers": int((frames_per_speaker(dataset) == 0).sum()),
        "utterances": manifest.num_utterances,
        "frames": manifest.num_frames,
        "hours": round(manifest.num_frames * frame_shift_ms / 3_600_000, 3),
        "frame_shift_ms": frame_shift_ms,
        "frame_shift_from": frame_shift_from,
        "frames_per_utterance": [int(lengths.min()), round(float(lengths.mean()), 1), int(lengths.max())],
        "features": manifest.num_features,
        "dtype": manifest.dtype,
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "shards": len(manifest.shards),
        "shards_by_job": [job.shards for job in manifest.jobs],
        "blocks": manifest.num_blocks,
        "source": manifest.source,
        "seed": manifest.seed,
        "fingerprint": dataset.fingerprint,
    }


def frames_per_speaker(dataset: ShardDataset) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Frames of each speaker (num_spks,), in class order."""
    speakers, frames = (dataset.utterance_column(name) for name in ("speaker", "frames"))
    sums = np.zeros(len(dataset.manifest.speakers), np.int64)
    np.add.at(sums, speakers, frames)
    return sums


def _readable(name: str, value: Any, facts: dict[str, Any]) -> str:
    if name == "hours":
        return f"{value:,} at a frame shift of {facts['frame_shift_ms']:g} ms{SHIFT_ORIGINS[facts['frame_shift_from']]}"
    if name == "frames_per_utterance":
        return f"{value[0]:,} to {value[2]:,}, {value[1]:,} on average"
    if name == "bytes":
        return f"{value:,} ({value / 1e6:,.1f} MB)"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return f"{value:,}" if isinstance(value, int) and name != "seed" else str(value)


def _histogram(frames: np.ndarray[Any, np.dtype[np.int64]]) -> Table:
    table = Table(title="frames per speaker", title_justify="left", box=None)
    for heading in ("from", "to", "speakers"):
        table.add_column(heading, justify="right")
    table.add_column("")
    counts, edges = np.histogram(frames, bins=HISTOGRAM_BINS)
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        table.add_row(f"{low:,.0f}", f"{high:,.0f}", f"{count:,}", "█" * round(BAR_WIDTH * count / counts.max()))
    return table
