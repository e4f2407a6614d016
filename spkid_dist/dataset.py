"""The stream of training batches: an IterableDataset that yields whole batches of stacked windows.

``for x, y in WindowDataset("shards/train"): ...`` yields this rank's share of each global batch: x (B, C*D) float32 and
y (B,) int64. An iteration is (the rest of) one epoch; the next one is the next epoch. It takes the place of a DataLoader:
ranks share the windows out among themselves, and nothing needs to be wrapped.
"""

import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import IterableDataset, get_worker_info

from shards.dataset import ShardDataset
from shards.errors import UsageError
from spkid_dist.normalization import Normalization
from spkid_dist.order import EpochOrder, RankShare
from spkid_dist.pool import BackgroundFill, Pool, PoolFiller
from spkid_dist.windows import DatasetWindows, EdgeRule

Batch = tuple[torch.Tensor, torch.Tensor]


class WindowDataset(IterableDataset[Batch]):
    """Streams a sharded dataset as batches of context windows, each window once an epoch over all ranks.

    Args:
        shards: folder of a dataset that `spkid shard` made.
        in_frames: C, the frames of a window.
        edge: what stands beyond an utterance's first and last frame: ``zero``, ``edge`` or ``valid``.
        batch_size: windows of a global batch, of all ranks together.
        seed: of the shuffle.
        shuffle: False for the order of storage, as for validation.
        num_streams: S, the sequences that are interleaved; it bounds the number of ranks.
        pool_windows: P, the windows of a stream that are shuffled at a time. S*P windows are in memory, over all ranks,
            and as many again while the next pools are filled.
        normalize: ``utterance`` brings each utterance's features to mean 0 and deviation 1, before windows are cut;
            ``none`` leaves them. (``global`` is a layer of the network: `spkid_dist.normalization`.)
        rank, world_size: this process's place; by default what torch.distributed says, or 0 of 1.

    Attributes:
        epoch, position: the state: the epoch, and the windows of it consumed by all ranks together.

    Raises:
        InputError: no dataset at `shards`, or no window in it; while iterating: a damaged block.
        UsageError: an argument out of range.
    """

    def __init__(
        self,
        shards: str | Path,
        *,
        in_frames: int = 21,
        edge: EdgeRule = "valid",
        batch_size: int = 1000,
        seed: int = 0,
        shuffle: bool = True,
        num_streams: int = 64,
        pool_windows: int = 16384,
        normalize: Normalization = "none",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        rank, world_size = find_rank(rank, world_size)
        for value, name in ((batch_size, "batch_size"), (num_streams, "num_streams"), (pool_windows, "pool_windows")):
            if value < 1:
                raise UsageError(f"--{name} {value}: expected 1 or more")
        if world_size > num_streams:
            raise UsageError(
                f"--num_streams {num_streams}: fewer than the {world_size} ranks, which share the streams out; "
                f"give {world_size} or more"
            )
        if normalize not in ("none", "utterance"):
            raise UsageError(
                f"normalize {normalize!r}: the stream does utterance or none; global is a layer of the network"
            )
        self.data = ShardDataset(shards)
        self.windows = DatasetWindows(self.data, in_frames, edge)
        self.batch_size = batch_size
        self.order = EpochOrder(self.windows.total, num_streams, pool_windows)
        self.share = RankShare(self.order, rank, world_size)
        self.epoch = 0
        self.position = 0
        self._filler = PoolFiller(
            self.data,
            self.windows,
            self.share,
            in_frames=in_frames,
            edge=edge,
            seed=seed,
            shuffle=shuffle,
            normalize=normalize,
        )
        self.input_dim = in_frames * self.data.manifest.num_features

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; before each one in a DataLoader with workers, which iterate over copies."""
        self.epoch, self.position = epoch, 0

    def __len__(self) -> int:
        """Steps of an epoch: the same on every rank."""
        return self.order.num_steps(self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's share of each remaining global batch of the epoch; a share may be empty."""
        _refuse_accelerates_loader()
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch, total = self.epoch, self.order.num_windows
        taken = self.share.consumed_before(self.position)
        with RankWindows(self._filler, self.share, epoch, self.position) as windows:
            for number, first in enumerate(range(self.position, total, self.batch_size)):
                self.position = min(first + self.batch_size, total)
                until = self.share.consumed_before(self.position)
                size, taken = until - taken, until
                if number % num_workers == worker_id:
                    yield windows.take(size)
                else:
                    windows.skip(size)
        self.epoch, self.position = epoch + 1, 0


def _refuse_accelerates_loader() -> None:
    """Raise UsageError where accelerate iterates: it would share out what is a rank's share already."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "accelerate.data_loader":
            raise UsageError(
                "the dataset went through accelerator.prepare, which would cut each rank's share once more and lose "
                "windows; iterate over the dataset itself: it yields this rank's share of each batch"
            )
        frame = frame.f_back


class RankWindows:
    """A rank's windows of an epoch in their order of use, from global index `index` on; leave it to end its thread."""

    def __init__(self, filler: PoolFiller, share: RankShare, epoch: int, index: int) -> None:
        self._filler = filler
        self._epoch = epoch
        self._num_generations = share.order.num_generations
        self._generation = index // share.order.generation_windows
        # of the pool in use: the windows taken of it
        self._at = share.consumed_before(index) - share.consumed_before(
            self._generation * share.order.generation_windows
        )
        self._pool: Pool | None = None
        self._next: BackgroundFill | None = None

    def __enter__(self) -> "RankWindows":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._next is not None:
            self._next.close()

    def take(self, size: int) -> Batch:
        """The next `size` windows: x (size, C*D) float32 and y (size,) int64, of which nobody else holds the memory."""
        parts = [
            (pool.windows.index_select(0, pool.starts[piece]), pool.labels[piece].clone())
            for pool, piece in self._pieces(size)
        ]
        if len(parts) != 1:  # windows of several pools, or none at all
            input_dim = self._current().windows.shape[1]
            parts.append((torch.empty(0, input_dim), torch.empty(0, dtype=torch.int64)))
            return torch.cat([x.float() for x, _ in parts]), torch.cat([y for _, y in parts])
        x, y = parts[0]
        return x.float(), y

    def skip(self, size: int) -> None:
        """Pass over the next `size` windows."""
        for _ in self._pieces(size):
            pass

    def _pieces(self, size: int) -> Iterator[tuple[Pool, slice]]:
        """The pools that hold the next `size` windows, and which of their windows these are."""
        while size:
            pool = self._current()
            piece = slice(self._at, min(self._at + size, len(pool.starts)))
            if piece.start < piece.stop:
                yield pool, piece
            size -= piece.stop - piece.start
            self._at = piece.stop
            if size:
                self._generation, self._at, self._pool = self._generation + 1, 0, None

    def _current(self) -> Pool:
        """The pool in use; when it is the first call for it, the next one begins to be filled."""
        if self._pool is None:
            assert self._generation < self._num_generations, "a pool held fewer windows than the order says"
            filled, self._next = self._next, None
            self._pool = filled.result() if filled else self._filler.fill(self._epoch, self._generation)
            if self._generation + 1 < self._num_generations:
                self._next = BackgroundFill(self._filler, self._epoch, self._generation + 1)
        return self._pool


def find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process's rank and the number of ranks, found where they are not given.

    Raises:
        UsageError: a launcher set WORLD_SIZE, but no process group was made; or a rank out of range.
    """
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but there is no process group, so every process would read "
                "everything; make an Accelerator (or call torch.distributed.init_process_group) first, or give rank and "
                "world_size"
            )
        else:
            rank, world_size = 0, 1
    if not 0 <= rank < world_size:
        raise UsageError(f"rank {rank} of {world_size}: expected 0 to {world_size - 1}")
    return rank, world_size
