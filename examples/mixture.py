"""Train on two datasets at once, three windows of the first for one of the second.

    python examples/mixture.py FIRST SECOND [--epochs 2]

FIRST and SECOND are datasets that `spkid shard` made, with the same speakers and features. Use it where one corpus is small and
must not drown in the other. Each dataset keeps its own order, and repeats as often as its weight asks.
"""

import argparse

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from spkid_dist import MixedDataset, WindowDataset

WEIGHTS = 3, 1
IN_FRAMES = 11  # C


def main():
    """Train, and print the loss after each epoch."""
    parser = argparse.ArgumentParser(description="Train on a mixture of two datasets.")
    parser.add_argument("first", help="dataset that gives three quarters of the windows")
    parser.add_argument("second", help="dataset that gives one quarter of the windows")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()

    datasets = [WindowDataset(path, in_frames=IN_FRAMES) for path in (arguments.first, arguments.second)]
    mixture = MixedDataset(datasets, weights=WEIGHTS, batch_size=100)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(mixture.in_features, 100), nn.ReLU(), nn.Linear(100, len(datasets[0].speakers)))
    optimizer = torch.optim.Adam(network.parameters())
    for epoch in range(arguments.epochs):
        total = 0.0
        for x, y in mixture:  # x (B, C*D) float32, y (B,) int64
            optimizer.zero_grad()
            loss = cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
        print(f"epoch {epoch}: {mixture.num_windows} windows, mean loss {total / mixture.num_windows:.3f}")


if __name__ == "__main__":
    main()
