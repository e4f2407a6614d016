"""Give each process of a launch its share, its device, and sums over all processes; scoring needs no more."""

import atexit
import os
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from accelerate.utils import reduce as reduce_over_ranks
from numpy.typing import NDArray

from spkid_dist.process.restoring import check_group_is_open, leave_group
from spkid_dist.ranks.launched import MEETING, check_world_size, is_on_cpus, is_told_to_use_cpus
from spkid_dist.ranks.settings import check_devices, check_settings

Item = TypeVar("Item")
Number = TypeVar("Number", np.float64, np.float32, np.int32)

# The ranks meet once, at the end, when each has done its share: one may be hours later. Where one fails, the launcher
# ends the others.
LONGEST_WAIT = timedelta(days=30)


class Processes:
    """This process's place among those of the launch: `rank` of `world_size`, and its `device`, as accelerate decides.

    Raises:
        UsageError: the launcher meant several processes, but this one is alone, or their group has ended; a setting of
            accelerate that can't be followed; more processes than GPUs.
    """

    def __init__(self, command: str) -> None:
        check_group_is_open(command)
        check_settings(os.environ)
        if MEETING not in os.environ and not torch.distributed.is_initialized():
            check_world_size(os.environ, 1, is_on_cpus(), command)  # without an address it could meet nobody
        if not is_on_cpus():
            check_devices(os.environ, torch.accelerator.device_count())
        was_made = torch.distributed.is_initialized()
        state = PartialState(cpu=is_told_to_use_cpus(), timeout=LONGEST_WAIT)
        if torch.distributed.is_initialized() and not was_made:
            atexit.register(leave_group)  # not before: the caller may score again
        self.rank, self.world_size, self.device = state.process_index, state.num_processes, state.device
        check_world_size(os.environ, self.world_size, is_on_cpus(), command)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks."""
        return bool(self.rank == 0)

    def sum(self, values: NDArray[Number]) -> NDArray[Number]:
        """The sum of all processes' arrays, of equal shapes; waits for all."""
        if self.world_size == 1:
            return values
        total: torch.Tensor = reduce_over_ranks(torch.from_numpy(values).to(self.device), reduction="sum")
        return np.asarray(total.cpu().numpy(), values.dtype)

    def gather(self, values: list[Item]) -> list[Item]:
        """All processes' lists, one after the other in the order of ranks; waits for all."""
        gathered: list[Item] = gather_object(values)
        return gathered
