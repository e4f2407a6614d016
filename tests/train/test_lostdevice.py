"""A GPU that fails in the middle of a training or a scoring is one line with what to do next."""

import pytest
import torch
from training import OPTIONS, checkpoints

from spkid_dist.ranks.lostdevice import is_of_device
from spkid_dist.training.eager import EagerEngine

FAILED = (
    "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported at some other API call, so "
    "the stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
)


def fail(*_arguments, **_options):
    raise torch.AcceleratorError(FAILED)


def test_a_training_whose_gpu_fails_names_the_last_checkpoint(shards, tmp_path, spkid, monkeypatch):
    step = EagerEngine._step

    def fail_in_the_second_epoch(self, x, y, epoch, number):
        if epoch == 1:
            monkeypatch.setattr(
                "accelerate.Accelerator.free_memory", fail
            )  # all that touches the GPU fails from now on
            fail()
        step(self, x, y, epoch, number)

    monkeypatch.setattr(EagerEngine, "_step", fail_in_the_second_epoch)
    options = OPTIONS | shards | {"save_path": tmp_path / "ckpt", "engine": "eager"}
    code, _, errors = spkid("train", *(part for name, value in options.items() for part in (f"--{name}", value)))
    *_, last = checkpoints(tmp_path / "ckpt")
    assert code == 1
    assert "the GPU failed (CUDA error: unspecified launch failure): look at nvidia-smi" in errors
    assert f"the last checkpoint is {last}: the same command with --resume auto continues from it" in errors
    assert errors.count("\n") == 1


def test_before_the_first_checkpoint_the_same_command_is_run_again(shards, tmp_path, spkid, monkeypatch):
    monkeypatch.setattr(EagerEngine, "_step", fail)
    options = OPTIONS | shards | {"save_path": tmp_path / "ckpt", "engine": "eager"}
    code, _, errors = spkid("train", *(part for name, value in options.items() for part in (f"--{name}", value)))
    assert (code, errors.count("\n")) == (1, 1)
    assert errors.endswith("there is no checkpoint yet: run the same command again\n")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"), True),
        (RuntimeError("Triton Error [CUDA]: cudaErrorLaunchFailure"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_failed_gpu_is_told_from_other_errors(error, lost):
    assert is_of_device(error) == lost
