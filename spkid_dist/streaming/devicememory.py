"""Decide what of a dataset stays on a device: all of it where it fits the memory allowed, else the pools in use and the next.

A resident dataset takes no frames over the bus after the first generation, so it is chosen wherever it fits.
"""

import os

import torch

from shards.errors import UsageError
from spkid_dist.order import RankShare
from spkid_dist.process.memory import free_memory, gigabytes
from spkid_dist.streaming.copystream import BUFFER_BYTES, CopyStream
from spkid_dist.streaming.pool import PoolFiller
from spkid_dist.streaming.poolring import PoolRing, RingSize
from spkid_dist.streaming.residentring import ResidentRing
from spkid_dist.streaming.ring import MOST_NUMBERS, TABLE_BYTES, RingFormat
from spkid_dist.streaming.ringfiller import RingFiller

ORDER_BYTES = 4  # of a window of a resident dataset in the order of use


def free_device_memory(device: torch.device) -> int:
    """Bytes that are free on a device; on a CPU, that this process may take beside the others of its launch."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory(int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def make_ring(
    filler: PoolFiller,
    share: RankShare,
    ring_format: RingFormat,
    *,
    device: torch.device,
    batch_size: int,
    device_memory: int | None,
) -> RingFiller:
    """A ring for a rank's share on `device`, in which a global batch of `batch_size` windows has room.

    `device_memory` is how many bytes frames and tables may take: half of what is free for None; with 0 the dataset is never
    kept as a whole, and pools may take all that is free.

    Raises:
        UsageError: the pools do not fit.
    """
    free = free_device_memory(device)
    size = RingSize.of(filler, share, batch_size, ring_format.in_frames)
    budget = free // 2 if device_memory is None else min(device_memory, free)
    num_windows = share.order.num_windows
    tables = ring_format.table_bytes * size.windows + TABLE_BYTES * num_windows + ORDER_BYTES * size.slot_windows
    if (
        num_windows * ring_format.row_bytes + tables <= budget and num_windows < MOST_NUMBERS
    ):  # a window is a row or more
        first_rows = filler.arenas.first_rows(filler.all_segments())
        rows = int(first_rows[-1])
        if rows * ring_format.row_bytes + tables <= budget and rows < MOST_NUMBERS:
            copies = _copies(device, size, rows, ring_format)
            return ResidentRing(filler, copies, ring_format, size, first_rows, num_windows)
    check_pools(size, ring_format, device, free, device_memory)
    return PoolRing(filler, _copies(device, size, size.slot_rows, ring_format), ring_format, size)


def _copies(device: torch.device, size: RingSize, rows: int, ring_format: RingFormat) -> CopyStream:
    """A stream of copies with buffers no larger than what is copied together: `rows` frames, or a generation's numbers."""
    return CopyStream(device, min(BUFFER_BYTES, max(rows * ring_format.row_bytes, ORDER_BYTES * size.slot_windows)))


def check_pools(
    size: RingSize, ring_format: RingFormat, device: torch.device, free: int, device_memory: int | None
) -> None:
    """Raise UsageError where a ring of pools takes more than is free, or than is allowed."""
    needed = size.rows * ring_format.row_bytes + ring_format.table_bytes * size.windows
    takes = (
        f"the windows that are shuffled together, and the next ones, take {gigabytes(needed)} on the device {device}"
    )
    if needed > free:
        raise UsageError(f"{takes}, but {gigabytes(free)} are free there; give a smaller --shuffle_windows")
    if device_memory and needed > device_memory:
        raise UsageError(
            f"{takes}, but --device_memory allows {gigabytes(device_memory)}; give a smaller --shuffle_windows, or a larger "
            "--device_memory"
        )
