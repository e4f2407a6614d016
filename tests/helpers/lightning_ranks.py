"""A training by Lightning over the datasets themselves; what each rank saw goes to a file. Run by
tests/stream/test_frameworks.py.

Arguments: the dataset's folder, where to write, the number of processes.
"""

import json
import os
import sys
from pathlib import Path

import pytorch_lightning as lightning
import torch
from stream_ranks import first_values
from torch import nn

from spkid_dist import WindowDataset


class Data(lightning.LightningDataModule):
    def setup(self, stage):  # noqa: ARG002 - the processes have met
        options = {"in_frames": 4, "num_streams": 5, "shuffle_windows": 30}
        self.training = WindowDataset(sys.argv[1], batch_size=11, **options)
        self.validation = WindowDataset(sys.argv[1], batch_size=20, shuffle=False, **options)

    def train_dataloader(self):
        return self.training

    def val_dataloader(self):
        return self.validation


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(12, 2)
        self.seen = {"train": [], "validate": [], "sanity": []}

    def training_step(self, batch, _):
        self.seen["train"] += first_values([batch])
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.seen["sanity" if self.trainer.sanity_checking else "validate"] += first_values([batch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def main() -> None:
    folder, processes = Path(sys.argv[2]), int(sys.argv[3])
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", devices=processes, strategy="ddp", default_root_dir=folder, **quiet
    )
    model = Classifier()
    trainer.fit(model, datamodule=Data())
    (folder / f"rank{os.environ.get('LOCAL_RANK', 0)}.json").write_text(json.dumps(model.seen))


if __name__ == "__main__":
    main()
