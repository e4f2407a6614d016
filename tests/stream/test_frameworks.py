"""Training frameworks see every window of every epoch: Lightning, the Trainer of transformers, ignite.

Their packages are no part of the tested versions: `make test-frameworks` installs them.
"""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import make_corpus
from stream_ranks import first_values
from torch import nn
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from shards import ShardDataset, UsageError
from spkid_dist.dataset import WindowDataset

EPOCHS = 3
# What a trainer of Lightning leaves out.
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
LENGTHS = [7, 1, 12, 3, 9, 30, 2, 5, 18, 4, 11, 6, 1, 25]
WORKERS = pytest.mark.parametrize("workers", [0, 2])
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.long]  # warnings of other people's code


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frameworks") / "c"
    make_corpus(folder, LENGTHS, block_frames=20, shard_bytes=900)
    return folder / "shards"


def open_sets(shards):
    """Training set and validation set; the first has several batches, the last of them smaller."""
    options = {"in_frames": 4, "num_streams": 5, "shuffle_windows": 30, "rank": 0, "world_size": 1}
    return WindowDataset(shards, batch_size=11, **options), WindowDataset(
        shards, batch_size=20, shuffle=False, **options
    )


def loader_of(data, workers, **options):
    return DataLoader(data, batch_size=None, num_workers=workers, **options)


def check_epochs(seen, shards, expected_epochs=EPOCHS):
    """`seen` are the batches of several trainings' epochs: each epoch as our own loop has it."""
    straight, _ = open_sets(shards)
    expected = [first_values(straight) for _ in range(expected_epochs)]
    assert Counter(map(str, seen)) == Counter(map(str, itertools.chain(*expected)))
    assert [sorted(b) for b in seen] == [sorted(b) for b in itertools.chain(*expected)]


def check_validations(seen, shards, times):
    _, whole = open_sets(shards)
    assert seen == first_values(whole) * times


@WORKERS
@pytest.mark.parametrize("persistent", [False, True])
def test_lightning_trains_and_validates_on_every_window(shards, tmp_path, workers, persistent):
    if persistent and not workers:
        pytest.skip("only workers persist")
    lightning = pytest.importorskip("pytorch_lightning")
    seen = {"train": [], "validate": [], "sanity": []}

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = nn.Linear(12, 2)

        def training_step(self, batch, _):
            x, y = batch
            seen["train"] += first_values([batch])
            return nn.functional.cross_entropy(self.network(x), y)

        def validation_step(self, batch, _):
            seen["sanity" if self.trainer.sanity_checking else "validate"].extend(first_values([batch]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-6)

    tr_data, va_data = open_sets(shards)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        **QUIET,
    )
    options = {"persistent_workers": True} if persistent else {}
    trainer.fit(Classifier(), loader_of(tr_data, workers, **options), loader_of(va_data, workers, **options))
    check_epochs(seen["train"], shards)
    check_validations(seen["validate"], shards, EPOCHS)
    assert 0 < len(seen["sanity"]) < len(va_data)


def test_two_processes_of_lightning_see_every_window_once_an_epoch(shards, tmp_path):
    pytest.importorskip("pytorch_lightning")
    script = Path(__file__).parents[1] / "helpers/lightning_ranks.py"
    command = [sys.executable, "-W", "ignore", script, shards, tmp_path, "2"]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=True, timeout=120)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for name, data in zip(("train", "validate"), open_sets(shards), strict=True):
        shares = zip(*(rank[name] for rank in ranks), strict=True)
        assert [sorted(a + b) for a, b in shares] == [sorted(batch) for _ in range(3) for batch in first_values(data)]


@WORKERS
def test_lightning_that_takes_a_part_of_each_epoch_takes_another_part_each_time(shards, tmp_path, workers):
    lightning = pytest.importorskip("pytorch_lightning")
    seen = []

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = nn.Linear(12, 2)

        def training_step(self, batch, _):
            seen.extend(first_values([batch]))
            return self.network(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-6)

    tr_data, _ = open_sets(shards)
    trainer = lightning.Trainer(
        max_epochs=3,
        limit_train_batches=2,
        accelerator="cpu",
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        **QUIET,
    )
    trainer.fit(Classifier(), loader_of(tr_data, workers))
    straight, _ = open_sets(shards)
    assert seen == list(itertools.chain(*(first_values(straight)[:2] for _ in range(3))))


def fit_lightning(lightning, loader, tmp_path, steps, checkpoint=None):
    """Train up to a step, from the start or from a checkpoint; returns the batches and the checkpoint of the last step."""
    seen = []

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = nn.Linear(12, 2)

        def training_step(self, batch, _):
            seen.extend(first_values([batch]))
            return self.network(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-6)

    saving = lightning.callbacks.ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=steps, save_top_k=-1)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[saving],
        default_root_dir=tmp_path,
        **QUIET,
    )
    trainer.fit(Classifier(), loader, ckpt_path=checkpoint)
    return seen, saving.best_model_path


@pytest.mark.parametrize("workers", [None, 0, 2])
@pytest.mark.parametrize("steps", [4, 9, 11])
def test_lightning_goes_on_from_a_checkpoint_where_it_was(shards, tmp_path, workers, steps):
    lightning = pytest.importorskip("pytorch_lightning")

    def loader():
        data, _ = open_sets(shards)
        return data if workers is None else StatefulDataLoader(data, batch_size=None, num_workers=workers)

    straight, _ = open_sets(shards)
    expected = list(itertools.chain(*(first_values(straight) for _ in range(3))))
    seen, checkpoint = fit_lightning(lightning, loader(), tmp_path, steps)
    more, _ = fit_lightning(lightning, loader(), tmp_path, len(expected), checkpoint)
    assert seen + more == expected


@WORKERS
@pytest.mark.parametrize("steps", [4, 9, 11])
def test_the_trainer_of_transformers_goes_on_from_a_checkpoint(shards, tmp_path, workers, steps, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    transformers = pytest.importorskip("transformers")

    def fit(max_steps, checkpoint_step, **options):
        seen = []
        data, _ = open_sets(shards)
        data.load_state_dict(data.state_dict(batches=checkpoint_step))

        class Classifier(nn.Module):
            def __init__(self):
                super().__init__()
                self.network = nn.Linear(12, 2)

            def forward(self, x, labels):
                seen.extend(first_values([(x, labels)]))
                return {"loss": nn.functional.cross_entropy(self.network(x), labels)}

        class Trainer(transformers.Trainer):
            def get_train_dataloader(self):
                return loader_of(data, workers, collate_fn=as_inputs)

        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=max_steps,
            save_steps=steps,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **options,
        )
        checkpoint = str(tmp_path / f"checkpoint-{checkpoint_step}") if checkpoint_step else None
        Trainer(model=Classifier(), args=arguments, train_dataset=data).train(resume_from_checkpoint=checkpoint)
        return seen

    straight, _ = open_sets(shards)
    expected = list(itertools.chain(*(first_values(straight) for _ in range(3))))
    assert fit(steps, 0) + fit(len(expected), steps, ignore_data_skip=True) == expected
    if steps % len(straight) and not workers:
        with pytest.raises(UsageError, match="set ignore_data_skip=True"):
            fit(len(expected), steps)


@WORKERS
def test_the_trainer_of_transformers_trains_and_validates_on_every_window(shards, tmp_path, workers, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    transformers = pytest.importorskip("transformers")
    seen = {"train": [], "validate": []}

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.Linear(12, 2)

        def forward(self, x, labels):
            seen["train" if self.training else "validate"].extend(first_values([(x, labels)]))
            logits = self.network(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    tr_data, va_data = open_sets(shards)

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self):
            return loader_of(tr_data, workers, collate_fn=as_inputs)

        def get_eval_dataloader(self, eval_dataset=None):  # noqa: ARG002
            return loader_of(va_data, workers, collate_fn=as_inputs)

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=EPOCHS,
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        learning_rate=1e-6,
    )
    Trainer(model=Classifier(), args=arguments, train_dataset=tr_data, eval_dataset=va_data).train()
    check_epochs(seen["train"], shards)
    check_validations(seen["validate"], shards, EPOCHS)


def as_inputs(batch):
    x, y = batch
    return {"x": x, "labels": y}


@WORKERS
def test_ignite_trains_and_validates_on_every_window(shards, workers):
    pytest.importorskip("ignite")
    from ignite.engine import Engine, Events

    seen = {"train": [], "validate": []}
    tr_data, va_data = open_sets(shards)
    trainer = Engine(lambda _, batch: seen["train"].extend(first_values([batch])))
    evaluator = Engine(lambda _, batch: seen["validate"].extend(first_values([batch])))
    va_loader = loader_of(va_data, workers)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: evaluator.run(va_loader))
    trainer.run(loader_of(tr_data, workers), max_epochs=EPOCHS)
    check_epochs(seen["train"], shards)
    check_validations(seen["validate"], shards, EPOCHS)


@WORKERS
def test_fabric_trains_on_every_window(shards, workers):
    fabric_module = pytest.importorskip("lightning_fabric")
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    tr_data, _ = open_sets(shards)
    network = network_of(tr_data)
    network, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), 1e-6))
    loader = fabric.setup_dataloaders(loader_of(tr_data, workers))
    seen = []
    for _ in range(EPOCHS):
        for x, y in loader:
            seen += first_values([(x, y)])
            fabric.backward(nn.functional.cross_entropy(network(x), y))
            optimizer.step()
    check_epochs(seen, shards)


@WORKERS
def test_a_loop_with_accelerate_trains_on_every_window(shards, workers, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    from accelerate import Accelerator

    accelerator = Accelerator()
    tr_data, _ = open_sets(shards)
    network = network_of(tr_data)
    network, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), 1e-6))
    seen = []
    for _ in range(EPOCHS):
        for x, y in loader_of(tr_data, workers) if workers else tr_data:
            seen += first_values([(x, y)])
            accelerator.backward(nn.functional.cross_entropy(network(x), y))
            optimizer.step()
            optimizer.zero_grad()
    check_epochs(seen, shards)


def network_of(data):
    return nn.Linear(data.in_features, len(data.speakers))


def test_load_dataset_reads_the_blocks_of_the_shards_that_data_files_names(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    files = {"train": str(shards / "shard-*.tar")}
    blocks = datasets.load_dataset(
        "webdataset", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path)
    )
    ours = ShardDataset(shards)
    rows_of = (by_key(block["json"]["keys"], block["lengths.npy"], block["frames.npy"]) for block in blocks)
    theirs = dict(itertools.chain(*rows_of))
    assert len(theirs) == ours.manifest.num_utterances == len(LENGTHS)
    for number in range(len(ours.blocks)):
        arrays = ours.read_block(number)
        for key, rows in by_key(ours.keys(number, arrays), arrays.lengths, arrays.frames):
            assert torch.equal(torch.tensor(theirs[key]), torch.tensor(rows))


def by_key(keys, lengths, frames):
    """Each utterance of a block with its frames."""
    ends = list(itertools.accumulate(int(length) for length in lengths))
    return [(key, frames[end - int(length) : end]) for key, length, end in zip(keys, lengths, ends, strict=True)]
