"""A plain training program: what people write first, and what many keep.

    python benchmarks/peers/plain_program.py FOLDER [--batches 200]

A map-style dataset of windows of frames in memory, ``DataLoader(batch_size=1000, shuffle=True, num_workers=1)``, an
`nn.Sequential`, Adam, `nll_loss`, and the loop of torch's tutorial (https://docs.pytorch.org/tutorials/beginner/basics/optimization_tutorial.html):
`zero_grad`, forward, `backward`, `step`; loss and accuracy are taken by ``.item()`` each batch, as such programs do for their
progress line. float32. It reads the feature files of a corpus that `SyntheticCorpus.write` made. The last line is JSON: windows
and seconds of the batches after the first ones.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))  # it is a program, beside modules of a package

from peers.corpus import read_corpus
from peers.torch_dataloader import MemoryWindows

IN_FRAMES, BATCH_SIZE, HSIZE, LR = 21, 1000, 100, 0.001
WARM_UP = 20


def main() -> None:
    """Train for so many batches, epoch after epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the corpus")
    parser.add_argument("--batches", type=int, default=200, help="after the first ones")
    options = parser.parse_args()
    corpus = read_corpus(options.folder, IN_FRAMES)
    loader = DataLoader(MemoryWindows(corpus), batch_size=BATCH_SIZE, shuffle=True, num_workers=1)
    model = make_model(corpus.window_values, max(corpus.labels) + 1)
    steps = training(model, loader)
    for _ in itertools.islice(steps, WARM_UP):
        pass
    began = time.perf_counter()
    windows = sum(itertools.islice(steps, options.batches))
    print(json.dumps({"windows": windows, "seconds": time.perf_counter() - began}))


def make_model(inputs: int, speakers: int) -> nn.Sequential:
    """The classic network: C*D inputs, three hidden layers, log-probabilities of the speakers."""
    return nn.Sequential(
        nn.Linear(inputs, HSIZE),
        nn.ReLU(),
        nn.Linear(HSIZE, HSIZE),
        nn.ReLU(),
        nn.Linear(HSIZE, HSIZE),
        nn.ReLU(),
        nn.Linear(HSIZE, speakers),
        nn.LogSoftmax(dim=1),
    )


def training(model: nn.Module, loader: DataLoader[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[int]:
    """Train without end; the windows of each batch, after its step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    total_loss = total_right = 0.0
    model.train()
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            log_probs = model(x)
            loss = functional.nll_loss(log_probs, y)
            loss.backward()
            optimizer.step()
            total_loss += loss.item()
            total_right += (log_probs.argmax(dim=1) == y).float().mean().item()
            yield len(y)


if __name__ == "__main__":
    main()
