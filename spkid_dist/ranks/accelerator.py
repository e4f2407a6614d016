"""Make accelerate's Accelerator for a block of code: check the launch, meet the other processes, put all back afterwards."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, TorchDynamoPlugin

from shards.errors import SpkidError, UsageError
from spkid_dist.process.restoring import check_group_is_open, leave_group, process_as_found
from spkid_dist.ranks.launched import MEETING, check_this_process, check_world_size, is_on_cpus
from spkid_dist.ranks.settings import check_accumulation, check_devices, check_settings, precision_of
from spkid_dist.ranks.together import LostRanksError, first_words, is_of_collective


@contextmanager
def make_accelerator(
    *, precision: str | None, timeout_minutes: float, tracker: str | None = None, folder: Path | None = None
) -> Iterator[Accelerator]:
    """The process's Accelerator for the block, after which the process is as it was found.

    Args:
        precision: of matrix products: no, bf16 or fp16; None takes the launcher's.
        timeout_minutes: that a process waits for the others.
        tracker: what curves go to, by accelerate's name; it writes to `folder`.
        folder: the --save_path of a training.

    Raises:
        LostRanksError: the processes can't reach each other.
        UsageError: the launcher meant several processes, but this one is alone; a setting of accelerate that can't be
            followed; more processes than GPUs; fp16 on a CPU.
    """
    check_group_is_open("train")
    check_settings(os.environ)
    check_accumulation(os.environ)
    chosen = precision_of(os.environ, precision)
    on_cpu = is_on_cpus()
    if on_cpu and chosen == "fp16":
        raise UsageError("--mixed_precision fp16: needs a GPU; on a CPU give bf16 or no")
    if MEETING not in os.environ and not torch.distributed.is_initialized():
        check_world_size(os.environ, 1, on_cpu)  # without an address it could meet nobody
    if not on_cpu:
        check_devices(os.environ, torch.accelerator.device_count())
    with process_as_found():
        accelerator = _meet(chosen, timeout_minutes, tracker, folder)
        alone = True  # in failing: the other processes do not end with this one
        try:
            check_this_process(accelerator.num_processes, on_cpu)
            yield accelerator
            alone = False
        except SpkidError as error:
            alone = not error.everywhere
            raise
        finally:
            _leave(accelerator, stay_in_group=alone and accelerator.num_processes > 1)


def _leave(accelerator: Accelerator, stay_in_group: bool) -> None:
    """Let go of what the Accelerator holds; to leave a group whose others are not leaving could wait for them."""
    if not stay_in_group:
        leave_group()
    # The model's wrapper keeps the process group alive, whose threads abort the process if it ends before them.
    accelerator.free_memory()


def _meet(precision: str, timeout_minutes: float, tracker: str | None, folder: Path | None) -> Accelerator:
    """Join the other processes of the job, if there are any. Raises LostRanksError where they can't be reached."""
    try:
        return Accelerator(
            mixed_precision=precision,
            # Never accelerate's: it replaces the network by a wrapper whose weights have other names.
            dynamo_plugin=TorchDynamoPlugin(
                backend="no", fullgraph=False, use_regional_compilation=False, dynamic=False
            ),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))],
            log_with=tracker,
            project_dir=folder,  # where a tracker's files go
        )
    except ValueError as error:  # of variables that do not fit together
        raise UsageError(
            f"the launcher's variables can't be used: {first_words(error)}; launch as README says"
        ) from None
    except RuntimeError as error:
        if not is_of_collective(error):
            raise
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        remedy = (
            "after a restart they do so only by the rendezvous c10d with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1; see "
            "launch/accelerate/nodes_elastic.yaml"
            if restarted
            else "are all of them started, and are the ports open between the machines?"
        )
        raise LostRanksError(
            f"rank {os.environ.get('RANK')} on {socket.gethostname()}: the processes did not meet at {where} within "
            f"--timeout_minutes {timeout_minutes:g} ({first_words(error)}); {remedy}"
        ) from None
