"""Hugging Face `datasets`, in three ways: a row a window, map-style and streamed, and a row an utterance, streamed.

As its documentation has it: ``with_format("torch")`` and torch's DataLoader (https://huggingface.co/docs/datasets/use_with_pytorch);
where rows are shuffled, an iterable dataset of many shards with a shuffle buffer in place of the map-style one
(https://huggingface.co/docs/datasets/about_mapstyle_vs_iterable, "Speed differences" and "Switch from map-style to iterable");
windows cut by a batched `map` that returns more rows than it got (https://huggingface.co/docs/datasets/about_map_batch).
Windows are shuffled in a buffer of 50,000.
"""

import contextlib
import importlib
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from peers.corpus import Corpus, split_utterance
from peers.peer import Batch, Format, NamedColumns, Peer

SHARDS, SHUFFLED_WINDOWS = 64, 50_000


def write_utterances(corpus: Corpus, folder: Path) -> None:
    """A row an utterance, saved as Arrow files."""
    with _utterance_rows(corpus, folder) as rows:
        rows.save_to_disk(folder)


def write_windows(corpus: Corpus, folder: Path) -> None:
    """A row a window, saved as Arrow files."""
    from datasets import Features, List, Value

    features = Features({"x": List(Value("float32"), length=corpus.window_values), "y": Value("int64")})
    split = partial(split_rows, in_frames=corpus.in_frames)
    with _utterance_rows(corpus, folder) as rows:
        numbers = rows.with_format("numpy")
        windows = numbers.map(split, batched=True, batch_size=16, features=features, remove_columns="frames")
        windows.save_to_disk(folder)


@contextlib.contextmanager
def _utterance_rows(corpus: Corpus, folder: Path) -> Iterator[Any]:
    """The utterances as rows; what they are kept in meanwhile is deleted at the end."""
    from datasets import Array2D, Dataset, Features, Value, disable_progress_bars

    disable_progress_bars()
    num_features = corpus.utterances[0].shape[1]
    features = Features({"frames": Array2D((None, num_features), "float32"), "y": Value("int64")})
    with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
        yield Dataset.from_generator(
            rows_of,
            features=features,
            cache_dir=cache,
            gen_kwargs={"utterances": corpus.utterances, "labels": corpus.labels},
        )


def rows_of(utterances: list[np.ndarray], labels: list[int]) -> Iterator[dict[str, Any]]:
    """Utterances as rows."""
    for frames, label in zip(utterances, labels, strict=True):
        yield {"frames": frames, "y": label}


def split_rows(rows: dict[str, Any], in_frames: int) -> dict[str, Any]:
    """The window rows of utterance rows."""
    windows = [split_utterance(np.asarray(frames), in_frames) for frames in rows["frames"]]
    counts = [len(of_utterance) for of_utterance in windows]
    return {"x": np.concatenate(windows), "y": np.repeat(np.asarray(rows["y"]), counts)}


def map_style(folder: Path, _corpus: Corpus, batch_size: int, workers: int) -> Iterable[Batch]:
    """All window rows, in a new order by torch's sampler."""
    from datasets import load_from_disk

    rows = load_from_disk(folder).with_format("torch")
    return NamedColumns(DataLoader(rows, batch_size=batch_size, shuffle=True, num_workers=workers))


def streamed_windows(folder: Path, _corpus: Corpus, batch_size: int, workers: int) -> Iterable[Batch]:
    """All window rows through a shuffle buffer."""
    return _streamed(_open(folder).with_format("torch"), batch_size, workers)


def streamed_utterances(folder: Path, corpus: Corpus, batch_size: int, workers: int) -> Iterable[Batch]:
    """The windows of all utterance rows through a shuffle buffer."""
    split = partial(split_rows, in_frames=corpus.in_frames)
    windows = _open(folder).with_format("numpy").map(split, batched=True, batch_size=16, remove_columns="frames")
    return _streamed(windows.with_format("torch"), batch_size, workers)


def _open(folder: Path) -> Any:
    from datasets import load_from_disk

    rows = load_from_disk(folder)
    return rows.to_iterable_dataset(num_shards=min(SHARDS, len(rows)))


def _streamed(windows: Any, batch_size: int, workers: int) -> Iterable[Batch]:
    shuffled = windows.shuffle(seed=0, buffer_size=SHUFFLED_WINDOWS)
    loader = DataLoader(shuffled, batch_size=batch_size, num_workers=workers)
    return NamedColumns(loader, shuffled.set_epoch)


IMPORTS = partial(importlib.import_module, "datasets")
WINDOWS = Format(name="datasets-windows", write=write_windows, window_records=True)
UTTERANCES = Format(name="datasets-utterances", write=write_utterances, window_records=False)

PEERS = (
    Peer(name="datasets, windows", imports=IMPORTS, format=WINDOWS, loader=map_style),
    Peer(name="datasets, windows streamed", imports=IMPORTS, format=WINDOWS, loader=streamed_windows),
    Peer(name="datasets, utterances streamed", imports=IMPORTS, format=UTTERANCES, loader=streamed_utterances),
)
