"""Stream training batches: an IterableDataset that yields whole batches of stacked windows.

``for x, y in WindowDataset("data/train"): ...`` yields this rank's share of each global batch: x (B, C*D) float32 and
y (B,) int64. An iteration is one epoch; the next iteration is the next epoch. It takes the place of a DataLoader:
ranks share the windows out among themselves, and nothing needs to be wrapped.
"""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.utils.data import get_worker_info

from shards.dataset import ShardDataset
from shards.errors import UsageError
from shards.stores.store import StoreOptions
from spkid_dist.config.choices import DEFAULT_SHUFFLE_WINDOWS, EDGE_CODES, EdgeRule, StreamNormalization
from spkid_dist.order import EpochOrder, RankShare
from spkid_dist.process.threads import filling_threads
from spkid_dist.streaming.arena import ArenaFiller, BlockOptions
from spkid_dist.streaming.copystream import BUFFER_BYTES, NUM_BUFFERS
from spkid_dist.streaming.devicememory import make_ring
from spkid_dist.streaming.ledger import Ledger
from spkid_dist.streaming.pool import PoolFiller
from spkid_dist.streaming.rankstream import RankStream
from spkid_dist.streaming.resumable import ResumableBatches
from spkid_dist.streaming.ring import PlacedSteps, RingFormat
from spkid_dist.streaming.ringfiller import RingFiller
from spkid_dist.streaming.ringstream import RingStream
from spkid_dist.streaming.selection import Selection
from spkid_dist.streaming.stacking import Batch, BatchMemory, HostStack
from spkid_dist.streaming.windows import DatasetWindows, PoolSize

StreamDtype = Literal["float32", "stored", "bfloat16"]


class WindowDataset(ResumableBatches):
    """Streams a sharded dataset as batches of context windows, each window once an epoch over all ranks.

    Args:
        shards: folder of a dataset that `spkid shard` made, or its URL.
        in_frames: C, the frames of a window.
        edge: what stands beyond an utterance's first and last frame: ``zero``, ``edge`` or ``valid``.
        batch_size: windows of a global batch, of all ranks together.
        seed: of the shuffle.
        shuffle: False for the order of storage, as for validation.
        num_streams: S, the sequences that are interleaved; it bounds the number of ranks.
        shuffle_windows: the windows, over all streams and ranks, that are in memory and shuffled at a time; as many
            again are there while the next ones are read. `memory_bound` says how many bytes that is.
        selection: speakers or utterances to take, or balance among speakers; everything by default.
        on_bad_block: ``stop`` raises the error of a block that can't be read or is damaged, ``skip`` passes over its
            windows; all ranks stay in step, `bad_blocks` and `skipped_windows` tell.
        normalize: ``utterance`` brings each utterance's features to mean 0 and deviation 1, before windows are cut;
            ``none`` leaves them. (``global`` is a layer of the network: `spkid_dist.streaming.normalization`.)
        dtype: of x: ``float32``, or ``stored`` for the dataset's own where it is not normalised, or ``bfloat16``: pools are
            kept in it, so they take half the memory, and half the time to stack.
        device: where the batches are stacked and yielded, from frames that lie there; the host's memory by default.
        placed: let `next_steps` hand out whole runs of steps, whose windows are on the device.
        device_memory: bytes that frames and tables may take on the device: a dataset that fits is copied once, and stays.
            Half of what is free when the first batch is made by default; 0: it is never kept as a whole.
        with_ids: keep the numbers of each batch's windows in the order of storage, as `window_ids`.
        reuse: stack each batch over the one before, which saves time: keep a copy of what is needed longer.
        rank, world_size: this process's place; by default what torch.distributed says, or 0 of 1.
        store: how a remote dataset is read: cache folder and its limit, requests at a time, retries.

    Attributes:
        window_ids: (B,) int64, the numbers of the windows of the batch that was made last; empty without `with_ids`.
        epoch, position: the state: the epoch, and the windows of it consumed by all ranks together.

    Raises:
        InputError: no dataset at `shards`, or no window in it; while iterating: a damaged block, or a store that fails.
        UsageError: an argument out of range.
        LedgerError: at the end of an epoch, where a window was lost or came twice.
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
        shuffle_windows: int = DEFAULT_SHUFFLE_WINDOWS,
        selection: Selection | None = None,
        on_bad_block: Literal["stop", "skip"] = "stop",
        normalize: StreamNormalization = "none",
        dtype: StreamDtype = "float32",
        device: str | torch.device | None = None,
        placed: bool = False,
        device_memory: int | None = None,
        with_ids: bool = False,
        reuse: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        store: StoreOptions | None = None,
    ) -> None:
        self._found_rank = rank is None or world_size is None
        rank, world_size = find_rank(rank, world_size)
        super().__init__(batch_size, rank, world_size)
        _check_counts(num_streams, shuffle_windows, device_memory, world_size)
        _check_choice(on_bad_block, "on_bad_block", ("stop", "skip"))
        _check_choice(normalize, "normalize", get_args(StreamNormalization))
        _check_choice(dtype, "dtype", get_args(StreamDtype))
        if placed and device is None:
            raise UsageError("placed=True: the windows are placed on a device; give one (device=)")
        selection = selection or Selection()
        self.data = ShardDataset(shards, store)
        self.windows = DatasetWindows(self.data, in_frames, edge, selection)
        self.order = EpochOrder(self.windows.total, num_streams, max(1, shuffle_windows // num_streams))
        self.share = RankShare(self.order, rank, world_size)
        self.in_features = in_frames * self.data.manifest.num_features
        self.skipped_windows = 0
        self.window_ids = torch.empty(0, dtype=torch.int64)
        self._with_ids = with_ids
        self._in_frames = in_frames
        self._options: dict[str, Any] = {"in_frames": in_frames, "edge": edge, "seed": seed, "shuffle": shuffle}
        self._selection = selection.identity
        self._pool_dtype = _pool_dtype(dtype, normalize, self.data.manifest.dtype)
        self._x_dtype = torch.float32 if dtype == "float32" else self._pool_dtype
        self._device = None if device is None else torch.device(device)
        self.memory = BatchMemory(self.in_features, self._pool_dtype, self._device, reuse)
        self._placed = placed
        self._device_memory = device_memory
        self._ring: RingFiller | None = None
        self._blocks = BlockOptions(
            in_frames=in_frames,
            edge=EDGE_CODES[edge],
            normalize=normalize == "utterance",
            bfloat16=dtype == "bfloat16",
            skip_bad=on_bad_block == "skip",
        )
        self._filler = self.pool_filler()

    def pool_filler(self) -> PoolFiller:
        """What fills this rank's pools: each such object keeps blocks of its own."""
        streams = len(self.share.streams)
        arenas = ArenaFiller(
            self.data, self.windows, self._blocks, streams=streams, threads=min(filling_threads(), streams)
        )
        seed, shuffle = self._options["seed"], self._options["shuffle"]
        return PoolFiller(arenas, self.windows, self.share, seed, shuffle, len(self.data.blocks))

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""
        return self.order.num_windows

    @property
    def num_features(self) -> int:
        """D, the features of a frame."""
        return self.data.manifest.num_features

    @property
    def speakers(self) -> list[str]:
        """The names of the speakers in class order: ``speakers[y]`` is that of label y."""
        return list(self.data.manifest.speakers)

    def __repr__(self) -> str:
        """What it streams, where it stands, and which share is this rank's."""
        options = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        return (
            f"<WindowDataset {self.data.folder}: {self.num_windows} windows of {self._in_frames} x {self.num_features} values, "
            f"{len(self.speakers)} speakers; {options}, batch_size={self.batch_size}; epoch {self.epoch} at window "
            f"{self.position}; rank {self.rank} of {self.world_size}>"
        )

    @property
    def identity(self) -> dict[str, Any]:
        """All that the order follows from besides the state."""
        return {
            "fingerprint": self.data.fingerprint,
            **self._options,
            "num_streams": self.order.num_streams,
            "pool_windows": self.order.pool_windows,
            "selection": self._selection,
        }

    @property
    def bad_blocks(self) -> dict[int, str]:
        """The blocks that this rank has passed over so far, and why."""
        return self._filler.arenas.bad_blocks

    @property
    def memory_bound(self) -> int:
        """Bytes that this rank's pools take of the host's memory at most, in use and being filled.

        Kept blocks of remote datasets are included. Where frames lie on a device, the rest is tables and buffers.
        """
        manifest = self.data.manifest
        size = PoolSize(
            num_windows=self.num_windows,
            num_frames=manifest.num_frames,
            num_utterances=manifest.num_utterances,
            num_features=manifest.num_features,
            value_bytes=self._pool_dtype.itemsize,
            block_frames=max(job.block_frames for job in manifest.jobs),
            in_frames=self._in_frames,
            num_streams=self.order.num_streams,
            pool_windows=self.order.pool_windows,
            rank_streams=len(self.share.streams),
            world_size=self.world_size,
        )
        return size.placed_bytes + NUM_BUFFERS * BUFFER_BYTES if self._device is not None else size.max_bytes

    def _check_ranks(self) -> None:
        if not (self._found_rank and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if (rank, world_size) != (self.rank, self.world_size):
            raise UsageError(
                f"the dataset was opened as rank {self.rank} of {self.world_size}, but this process is rank {rank} of "
                f"{world_size} now, so ranks would read the same windows; open the dataset after the processes have met "
                "(torch.distributed.init_process_group), or give rank and world_size"
            )

    def _open(self, epoch: int, position: int) -> "WindowCursor":
        if self.memory.reuse and get_worker_info() is not None:
            raise UsageError("reuse=True: a DataLoader's worker sends batches on after the next is made; leave it out")
        return WindowCursor(self, epoch, position)

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without threads and memory."""
        return super().__getstate__() | {"_ring": None}

    def close(self) -> None:
        """Let go of threads and of all memory, on the device too; iterating on begins anew where it was."""
        super().close()
        self._ring = None

    def open_stream(self, epoch: int, position: int) -> RankStream | RingStream:
        """This rank's windows from global index `position` of an epoch on."""
        if self._device is not None:
            return RingStream(self._open_ring(), self.share, epoch, position)
        return RankStream(self._load, self.share, epoch, position, with_ids=self._with_ids)

    @property
    def frames_dtype(self) -> torch.dtype:
        """Of the frames in its pools."""
        return self._pool_dtype

    @property
    def is_placed(self) -> bool:
        """Whether its windows are placed on a device, for `next_steps`."""
        return self._placed

    def next_steps(self, most: int) -> PlacedSteps:
        """The next steps of this epoch, up to `most` of them: where their windows are on the device.

        They are as if they had been taken batch by batch: `epoch`, `position`, ledger and state follow. The call after an
        epoch's last step begins the next epoch. They are fewer than `most` at an epoch's end, and where so many windows are
        not on the device together; as many on every rank. Their windows stay there until the next call.

        Raises:
            UsageError: the dataset was opened without `placed`; `most` is below 1; in a worker of a DataLoader.
            InputError, LedgerError: as an iteration does.
        """
        if not self._placed:
            raise UsageError("next_steps: the windows are not placed on a device; open the dataset with placed=True")
        if most < 1:
            raise UsageError(f"next_steps({most}): expected 1 or more")
        return self._next_steps(most)

    def _open_ring(self) -> RingFiller:
        if self._ring is None:
            assert self._device is not None
            self._ring = make_ring(
                self._filler,
                self.share,
                RingFormat(self._in_frames, self.num_features, self._pool_dtype, self._x_dtype, self._with_ids),
                device=self._device,
                batch_size=self.batch_size,
                device_memory=self._device_memory,
            )
        return self._ring

    def _load(self, epoch: int, generation: int) -> HostStack:
        return HostStack(self._filler.fill(epoch, generation))

    def finish(self, batch: Batch | None) -> Batch:
        """A batch as it is yielded: x of the dtype asked for; empty where there is none."""
        if batch is None:
            empty = torch.empty(0, self.in_features, dtype=self._x_dtype, device=self._device)
            return empty, torch.empty(0, dtype=torch.int64, device=self._device)
        return batch[0].to(self._x_dtype), batch[1]


class WindowCursor:
    """A place in the stream of a `WindowDataset`."""

    def __init__(self, dataset: WindowDataset, epoch: int, position: int) -> None:
        self._dataset = dataset
        self._stream = dataset.open_stream(epoch, position)
        self._position = position

    def take(self, until: int) -> Batch:
        """This rank's windows up to global index `until` of the epoch."""
        batch = self._stream.take(self._advance(until), self._dataset.memory)
        self._dataset.window_ids = self._stream.ids
        return self._dataset.finish(batch)

    def place(self, until: Sequence[int]) -> PlacedSteps:
        """The steps that end at the global indices `until`: as many as are on the device together, the same on every rank."""
        stream, share = self._stream, self._dataset.share
        assert isinstance(stream, RingStream)
        windows = share.order.generation_windows
        last = (self._position // windows + stream.slots) * windows
        ends = [end for end in until if end <= last]
        before = [share.consumed_before(index) for index in (self._position, *ends)]
        self._position = ends[-1] % self._dataset.num_windows
        return stream.place([end - begin for begin, end in pairwise(before)])

    def skip(self, until: int) -> None:
        """Pass over them instead."""
        self._stream.skip(self._advance(until))

    def collect(self) -> Ledger:
        """The ledger of what was consumed since the last call."""
        ledger = self._stream.collect()
        self._dataset.skipped_windows += self._stream.skipped
        self._stream.skipped = 0
        return ledger

    def close(self) -> None:
        """Let go of the thread and the memory."""
        self._stream.close()

    def _advance(self, until: int) -> int:
        """How many windows of this rank lie between here and there; the next epoch follows where an epoch ends."""
        share = self._dataset.share
        size = share.consumed_before(until) - share.consumed_before(self._position)
        self._position = until % self._dataset.num_windows
        return size


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


def _check_counts(num_streams: int, shuffle_windows: int, device_memory: int | None, world_size: int) -> None:
    for value, name in ((num_streams, "num_streams"), (shuffle_windows, "shuffle_windows")):
        if value < 1:
            raise UsageError(f"--{name} {value}: expected 1 or more")
    if world_size > num_streams:
        raise UsageError(
            f"--num_streams {num_streams}: fewer than the {world_size} ranks, which share the streams out; "
            f"give {world_size} or more"
        )
    if device_memory is not None and device_memory < 0:
        raise UsageError(f"--device_memory {device_memory}: expected 0 or more")


def _pool_dtype(dtype: str, normalize: str, stored: str) -> torch.dtype:
    """The type of the frames in memory."""
    if dtype == "bfloat16":
        return torch.bfloat16
    return torch.float32 if normalize == "utterance" else getattr(torch, stored)


def _check_choice(text: str, name: str, known: Sequence[str]) -> None:
    if text not in known:
        raise UsageError(f"--{name} {text}: expected one of {', '.join(known)}")
