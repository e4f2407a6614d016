"""Train in a loop of your own, by several processes with PyTorch's DistributedDataParallel.

    torchrun --nproc_per_node 2 examples/ddp_loop.py TRAIN TEST [--epochs 5]

TRAIN and TEST are datasets that `spkid shard` made. Each process takes its share of each batch, so no sampler and no
DataLoader is needed. This program uses CPUs.

Shapes: B windows of a process's share, C frames of a window, D features of a frame, K speakers.
"""

import argparse
import gc

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from spkid_dist import WindowDataset

IN_FRAMES = 11  # C


def train_epoch(model, optimizer, dataset):
    """Take one step per batch of an epoch."""
    for step, (x, y) in enumerate(dataset):  # (B, C*D) float32, (B,) int64: the share of this process
        # Shares may differ by a few windows, and DDP averages the gradients of the processes. So the loss is the sum
        # over this share, divided by the windows of the whole batch, times the number of processes.
        batch_windows = min(dataset.batch_size, dataset.num_windows - step * dataset.batch_size)
        loss = cross_entropy(model(x), y, reduction="sum") * dataset.world_size / batch_windows
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def validate(model, dataset):
    """Mean loss and accuracy on all windows of all processes."""
    sums = torch.zeros(2, dtype=torch.float64)
    for x, y in dataset:
        outputs = model.module(x)  # without DDP: nothing is exchanged per batch
        sums[0] += cross_entropy(outputs, y, reduction="sum")
        sums[1] += (outputs.argmax(dim=1) == y).sum()
    dist.all_reduce(sums)
    loss, accuracy = (sums / dataset.num_windows).tolist()
    return loss, accuracy


def train(arguments):
    """Train, and print the loss and the accuracy after each epoch."""
    # The datasets are opened after the processes have met: each finds its rank by itself.
    training = WindowDataset(arguments.train, in_frames=IN_FRAMES, batch_size=100)
    validation = WindowDataset(arguments.test, in_frames=IN_FRAMES, batch_size=1000, shuffle=False)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(training.in_features, 100),
        nn.ReLU(),
        nn.Linear(100, 100),
        nn.ReLU(),
        nn.Linear(100, len(training.speakers)),
    )
    model = DistributedDataParallel(network)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for epoch in range(arguments.epochs):
        train_epoch(model, optimizer, training)
        loss, accuracy = validate(model, validation)
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: validation loss {loss:.4f}, frame accuracy {accuracy:.4f}", flush=True)


def main():
    """Join the other processes, train, and leave them."""
    parser = argparse.ArgumentParser(description="Train in a loop of your own, by several processes.")
    parser.add_argument("train", help="dataset to train on")
    parser.add_argument("test", help="dataset to validate on")
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()

    dist.init_process_group("gloo")
    train(arguments)
    gc.collect()  # DDP keeps the group alive in reference cycles, and its threads could abort the process at its end
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
