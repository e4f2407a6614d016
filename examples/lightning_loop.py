"""Train with PyTorch Lightning over the stream of windows.

    python examples/lightning_loop.py TRAIN TEST [--epochs 5] [--processes 1]

TRAIN and TEST are datasets that `spkid shard` made. The program needs the extra `[frameworks]`, and uses CPUs.

Shapes: B windows of a batch, C frames of a window, D features of a frame, K speakers.
"""

import argparse

import pytorch_lightning as lightning
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from shards import ShardDataset
from spkid_dist import WindowDataset

IN_FRAMES = 11  # C


class Windows(lightning.LightningDataModule):
    """The two datasets. They take the place of DataLoaders: each yields whole batches."""

    def __init__(self, train, test):
        super().__init__()
        self.paths = train, test

    def setup(self, stage=None):  # noqa: ARG002 - the signature is Lightning's
        """Open the datasets; Lightning calls this after the processes have met, and each takes its share."""
        train, test = self.paths
        self.training = WindowDataset(train, in_frames=IN_FRAMES, batch_size=100)
        self.validation = WindowDataset(test, in_frames=IN_FRAMES, batch_size=1000, shuffle=False)

    def train_dataloader(self):
        """The training set: an iteration is an epoch."""
        return self.training

    def val_dataloader(self):
        """The validation set, in its order of storage."""
        return self.validation


class SpeakerNetwork(lightning.LightningModule):
    """A network from windows (B, C*D) to speakers (B, K)."""

    def __init__(self, in_features, num_speakers):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(in_features, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, num_speakers)
        )

    def training_step(self, batch, step):
        """The loss of this process's share of a batch.

        Shares may differ by a few windows, and the gradients of the processes are averaged. So the loss is the sum over
        this share, divided by the windows of the whole batch, times the number of processes.
        """
        x, y = batch
        data = self.trainer.datamodule.training
        batch_windows = min(data.batch_size, data.num_windows - step * data.batch_size)
        return cross_entropy(self.network(x), y, reduction="sum") * data.world_size / batch_windows

    def validation_step(self, batch, _):
        """Add up the mean loss and the accuracy, over all batches and processes."""
        x, y = batch
        outputs = self.network(x)
        num_windows = self.trainer.datamodule.validation.num_windows
        loss = cross_entropy(outputs, y, reduction="sum") / num_windows
        accuracy = (outputs.argmax(dim=1) == y).sum() / num_windows
        self.log_dict({"va_loss": loss, "va_acc": accuracy}, on_epoch=True, reduce_fx="sum", sync_dist=True)

    def configure_optimizers(self):
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.001)


def main():
    """Train, and print the validation loss and accuracy."""
    parser = argparse.ArgumentParser(description="Train with PyTorch Lightning over the stream of windows.")
    parser.add_argument("train", help="dataset to train on")
    parser.add_argument("test", help="dataset to validate on")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()

    lightning.seed_everything(0)
    manifest = ShardDataset(arguments.train).manifest
    model = SpeakerNetwork(IN_FRAMES * manifest.num_features, len(manifest.speakers))
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        devices=arguments.processes,
        strategy="ddp" if arguments.processes > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, datamodule=Windows(arguments.train, arguments.test))
    if trainer.is_global_zero:
        figures = trainer.callback_metrics
        print(f"validation loss {figures['va_loss']:.4f}, frame accuracy {figures['va_acc']:.4f}")


if __name__ == "__main__":
    main()
