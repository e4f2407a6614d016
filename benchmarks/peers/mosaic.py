"""mosaicml-streaming: a sample a window.

As its documentation has it (https://docs.mosaicml.com/projects/streaming/en/stable/getting_started/quick_start.html):
`MDSWriter`, `StreamingDataset` with ``shuffle=True`` and the loader's batch size, and a DataLoader (its `StreamingDataLoader`
adds a state). The shuffle's other options are left as they are
(https://docs.mosaicml.com/projects/streaming/en/stable/dataset_configuration/shuffling.html: "merely setting `shuffle=True` is
performant in nearly all cases"). Not compressed: the data is local, and noise.

`import streaming` imports torchvision, whose builds on PyPI are for torch with CUDA and refuse a CPU build of torch: "operator
torchvision::nms does not exist". Only its classes are needed, so the two operators that it asks for are declared here first,
without an implementation.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from peers.corpus import Corpus
from peers.peer import Batch, Format, NamedColumns, Peer


def import_streaming() -> Any:
    """The package `streaming`, with torch of any build."""
    if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import streaming

    return streaming


def write(corpus: Corpus, folder: Path) -> None:
    """Shards of windows (C*D,) float32, of 64 MB each."""
    columns = {"x": f"ndarray:float32:{corpus.window_values}", "y": "int"}
    with import_streaming().MDSWriter(out=str(folder), columns=columns) as out:
        for window, label in corpus.windows():
            out.write({"x": window, "y": label})


def loader(folder: Path, _corpus: Corpus, batch_size: int, workers: int) -> Iterable[Batch]:
    """All windows in its order."""
    dataset = import_streaming().StreamingDataset(local=str(folder), shuffle=True, batch_size=batch_size)
    return NamedColumns(DataLoader(dataset, batch_size=batch_size, num_workers=workers))


PEERS = (
    Peer(
        name="mosaicml-streaming, windows",
        imports=import_streaming,
        format=Format(name="mosaic-windows", write=write, window_records=True),
        loader=loader,
    ),
)
