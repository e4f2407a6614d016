"""Whatever a training, a scoring or a check of the job changes in its process is put back, however it ends."""

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from training import LAUNCH, OPTIONS, environment, signal_at

from shards.errors import InputError, SpkidError, Stopped, UsageError
from spkid_dist.commands.doctor import doctor
from spkid_dist.config import DoctorConfig, ScoreConfig, TrainConfig
from spkid_dist.process.restoring import process_as_found
from spkid_dist.score import score_utterances
from spkid_dist.train import train_model


@pytest.fixture
def config(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return TrainConfig(**OPTIONS | shards | {"epoch": 1, "save_path": tmp_path / "ckpt"})


def snapshot():
    gc.collect()
    open_files = {path for path in map(_target, os.listdir("/proc/self/fd")) if path.startswith("/") and "tmp" in path}  # noqa: PTH208
    return {
        "accelerate": [dict(state._shared_state) for state in (AcceleratorState, GradientState, PartialState)],
        "generator": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "signals": [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)],
        "environment": dict(os.environ),
        "switches": (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.is_grad_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "log handlers": list(logging.getLogger().handlers),
        "running": sorted(thread.name for thread in threading.enumerate() if "make-ahead" in thread.name),
        "open files": open_files,
        "group": torch.distributed.is_initialized(),
    }


def _target(descriptor):
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return ""


def break_off(error, monkeypatch, place="spkid_dist.training.evaluator.Evaluator.evaluate"):
    def fail(*_args, **_options):
        torch.manual_seed(5)
        torch.set_num_threads(2)
        raise type(error)(*error.args)  # one that was raised before keeps alive what it was raised from

    monkeypatch.setattr(place, fail)


ENDS = {
    "a user's mistake": InputError("of the data"),
    "a wrong option": UsageError("of the options"),
    "a request to stop": Stopped("stopped"),
    "Ctrl-C": KeyboardInterrupt(),
    "our own mistake": RuntimeError("not expected"),
    "no memory": MemoryError(),
}


@pytest.mark.parametrize(
    "end",
    [
        "success",
        "a user's mistake",
        "Ctrl-C",
        *(pytest.param(end, marks=pytest.mark.long) for end in list(ENDS)[1:3] + list(ENDS)[4:]),
    ],
)
def test_a_training_leaves_the_process_as_it_was(end, config, monkeypatch):
    before = snapshot()
    if end == "success":
        train_model(config)
    else:
        break_off(ENDS[end], monkeypatch)
        with pytest.raises((SpkidError, type(ENDS[end]))):
            train_model(replace(config, mixed_precision="bf16"))
    assert snapshot() == before


def test_a_training_that_does_not_begin_leaves_the_process_as_it_was(config):
    before = snapshot()
    with pytest.raises(InputError):
        train_model(replace(config, tr_shards="/nowhere"))
    with signal_at("open", "/tr/manifest.json"), pytest.raises(Stopped):
        train_model(replace(config, mixed_precision="bf16"))
    assert snapshot() == before


@pytest.mark.parametrize("failed", [pytest.param(False, marks=pytest.mark.long), True])
def test_the_next_training_has_its_own_precision(failed, config, tmp_path, monkeypatch):
    alone = train_model(config).best_weights.read_bytes()
    with monkeypatch.context() as patch:
        if failed:
            break_off(RuntimeError("broken"), patch)
            with pytest.raises(RuntimeError, match="broken"):
                train_model(replace(config, mixed_precision="bf16", save_path=tmp_path / "first"))
        else:
            train_model(replace(config, mixed_precision="bf16", save_path=tmp_path / "first"))
    after = train_model(replace(config, save_path=tmp_path / "second")).best_weights.read_bytes()
    assert after == alone
    assert "precision no" in (tmp_path / "second" / "train.log").read_text()
    third = train_model(replace(config, mixed_precision="bf16", save_path=tmp_path / "third"))
    assert "precision bf16" in (tmp_path / "third" / "train.log").read_text()
    assert third.best_weights.read_bytes() != alone


def test_scoring_leaves_the_process_as_it_was(config, tmp_path, shards):
    weights = train_model(config).best_weights
    options = ScoreConfig(
        weights_ckpt=weights,
        train_cfg=weights.parent / "train.opts",
        te_shards=str(shards["va_shards"]),
        log_file=tmp_path / "results.log",
        pictures=False,
    )
    before = snapshot()
    score_utterances(options)
    assert snapshot() == before
    with pytest.raises(InputError):
        score_utterances(replace(options, te_shards="/nowhere"))
    assert snapshot() == before


def test_a_check_of_the_job_leaves_the_process_as_it_was(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    before = snapshot()
    doctor(DoctorConfig(save_path=tmp_path))
    assert '"healthy": true' in capsys.readouterr().out
    assert snapshot() == before


def test_the_callers_own_accelerator_is_still_the_callers(config):
    with process_as_found():
        mine = Accelerator(cpu=True, mixed_precision="bf16")
        train_model(replace(config, mixed_precision="no"))
        assert (mine.state.mixed_precision, AcceleratorState().mixed_precision) == ("bf16", "bf16")
        assert "precision no" in (config.save_path / "train.log").read_text()


def test_switches_variables_and_handlers_are_put_back():
    before = snapshot()
    with process_as_found():
        torch.manual_seed(7)
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(mode=True)
        torch.backends.cudnn.benchmark = True
        torch.set_grad_enabled(False)
        os.environ |= {"WORLD_SIZE": "7", "HOME": "/elsewhere"}
        del os.environ["PATH"]
        logging.getLogger().addHandler(logging.NullHandler())
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert snapshot() == before


TWICE = """
import sys
from dataclasses import replace
from pathlib import Path
import spkid_dist
from shards.errors import UsageError
from spkid_dist import ScoreConfig, TrainConfig, score_utterances, train_model
tr, va, out = map(Path, sys.argv[1:])
config = TrainConfig(tr_shards=tr, va_shards=va, save_path=out / "a", epoch=1, hsize=8, in_frames=5)
found = train_model(config)
for again in (
    lambda: train_model(replace(config, save_path=out / "b")),
    lambda: score_utterances(ScoreConfig(weights_ckpt=found.best_weights, train_cfg=out / "a/train.opts", te_shards=va)),
):
    try:
        again()
    except UsageError as error:
        print("refused:", error, flush=True)
"""


@pytest.mark.long  # one process: test_the_next_training_has_its_own_precision
def test_a_second_call_in_one_launch_is_refused_and_does_not_wait(shards, tmp_path):
    script = tmp_path / "twice.py"
    script.write_text(TWICE)
    words = [
        sys.executable,
        *LAUNCH,
        "--num_processes",
        2,
        "--main_process_port",
        0,
        script,
        *shards.values(),
        tmp_path,
    ]
    done = subprocess.run(
        [*map(str, words)], env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    refused = sorted(line for line in done.stdout.splitlines() if line.startswith("refused: "))
    assert [line.partition("; ")[2] for line in refused] == ["score in a launch of its own"] * 2 + [
        "train in a launch of its own"
    ] * 2


LOADED = """
import sys
from pathlib import Path
from spkid_dist import TrainConfig, train_model
tr, va, out = sys.argv[1:]
train_model(TrainConfig(tr_shards=tr, va_shards=va, save_path=Path(out) / "a", epoch=1, hsize=8, in_frames=5))
print("loaded:", "torch._dynamo" in sys.modules)
"""


def test_a_training_that_compiles_nothing_does_not_load_the_compiler(shards, tmp_path):
    words = [sys.executable, "-c", LOADED, *map(str, shards.values()), str(tmp_path)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: False"
