"""What tests of whole trainings share: a small corpus, and trainings in this process or in processes of their own."""

import contextlib
import json
import os
import signal
import subprocess
import sys

from conftest import shard_folder

from shards import Layout
from spkid_dist.measure.synthetic import SyntheticCorpus

LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--mixed_precision", "no", "--num_machines", "1")

# Neither the streams nor the batch size divide the windows, nor the ranks the streams.
OPTIONS = {
    "batch_size": 100,
    "num_streams": 7,
    "shuffle_windows": 224,
    "hsize": 16,
    "in_frames": 5,
    "log_freq": 4,
    "epoch": 3,
}


def make_shards(folder, **layout):
    """Shard a small synthetic corpus; its two datasets as options of a training."""
    SyntheticCorpus(num_speakers=5, train_utterances=6, test_utterances=2, mean_frames=60, num_features=8).write(folder)
    for name, list_name in (("tr", "all.train"), ("va", "all.test")):
        shard_folder(folder, folder / "cfg" / list_name, folder / name, Layout(**layout))
    return {"tr_shards": folder / "tr", "va_shards": folder / "va"}


def command(options, processes=1, module=("-m", "spkid_dist.train")):
    """The command line of a training."""
    launch = () if processes == 1 else (*LAUNCH, "--num_processes", processes, "--main_process_port", "0")
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [str(part) for part in (sys.executable, *launch, *module, *flags)]


def environment():
    """Trainings on CPUs, with one thread a process, so that equal runs give equal bytes."""
    return os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def run(options, processes=1, **more):
    """Run a training in processes of its own."""
    return subprocess.run(
        command(options, processes, **more), env=environment(), capture_output=True, text=True, check=False
    )


def result(folder):
    """The bytes of all weights and of the statistics."""
    names = [*folder.glob("*_weights.ckpt"), folder / "train_stats.json"]
    return {path.name: path.read_bytes() for path in names}


def statistics(folder):
    return json.loads((folder / "train_stats.json").read_text())


def checkpoints(folder):
    return sorted(path for path in (folder / "checkpoints").iterdir() if path.is_dir())


_signals = []


def _audit(event, arguments):
    if not _signals:
        return
    wanted_event, mark, number = _signals[0]
    if event == wanted_event and any(mark in str(argument) for argument in arguments[:2]):
        _signals.clear()
        signal.raise_signal(number)


@contextlib.contextmanager
def signal_at(event, mark, number=signal.SIGTERM):
    """Send this process a signal when it first does `event` (an audit event of Python) with a path that holds `mark`."""
    if not hasattr(_audit, "added"):
        sys.addaudithook(_audit)
        _audit.added = True
    _signals.append((event, mark, number))
    try:
        yield
        assert not _signals, f"there was no {event} of {mark}"
    finally:
        _signals.clear()
