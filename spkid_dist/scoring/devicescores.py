"""Put laid-out utterances through the network on a GPU: batches of one size by a CUDA graph, results fetched one layout later.

Everything that a batch reads or adds to keeps its address, so one graph serves all batches; which batch it is follows from a
number on the device. The last batch of a layout is filled up with windows whose outcome goes to a row that nobody reads.

Shapes: U utterances, D features, N windows, B windows of a batch, K speakers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spkid_dist.process.replay import Replay

MORE = 1.25  # room than was needed, where a layout does not fit: the next ones may need more still


@dataclass(frozen=True)
class WindowSums:
    """On their way from the device: the sums (U, K) float64 of log-probabilities, and the wrong windows (U,) int64."""

    sums: torch.Tensor
    wrong: torch.Tensor
    arrived: torch.cuda.Event | None

    def wait(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Both, once they are here."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.sums.numpy(), self.wrong.numpy()


class DeviceScores:
    """Scores layouts by `network`, (B, C*D) -> (B, K) log-probabilities, which is on `device` already."""

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
        *,
        in_frames: int,
        num_classes: int,
        batch_size: int,
    ) -> None:
        self._network = network
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._in_frames = in_frames
        self._num_classes = num_classes
        self._batch_size = batch_size
        self._replay = Replay(device)
        self._numbers = torch.arange(batch_size, dtype=torch.int32, device=device)
        self._at, self._end = (torch.zeros((), dtype=torch.int32, device=device) for _ in range(2))
        self._version = 0
        self._allocate(0, 0, 0, 0)

    @torch.inference_mode()
    def start(
        self, arena: NDArray[np.float32], starts: NDArray[np.int64], owner: NDArray[np.int64], true: NDArray[np.int64]
    ) -> WindowSums:
        """Give the device a layout: rows (R, D), and of N windows their first rows `starts` and utterances `owner`.

        `true` (U,) are the utterances' classes, -1 where none is known. Does not wait for the device.
        """
        self._make_room(arena, len(starts), len(true))
        for buffer, values in (
            (self._arena, arena),
            (self._starts, starts.astype(np.int32)),
            (self._owner, owner.astype(np.int32)),
            (self._true, true),
        ):
            tensor = torch.from_numpy(values)
            buffer[: len(tensor)].copy_(tensor.pin_memory() if self._on_gpu else tensor, non_blocking=True)
        self._sums.zero_()
        self._wrong.zero_()
        self._at.zero_()
        self._end.fill_(len(starts))
        self._replay.do(self._version, self._batch, -(-len(starts) // self._batch_size))
        return self._fetch(len(true))

    def _batch(self) -> None:
        """The next batch of the layout; nothing of it waits for the host."""
        numbers = self._at + self._numbers
        inside = numbers < self._end
        numbers = numbers.clamp(max=len(self._starts) - 1)
        owner = torch.where(inside, self._owner.index_select(0, numbers), len(self._true) - 1).long()
        rows, num_features = self._arena.shape
        windows = self._arena.as_strided(
            (rows - self._in_frames + 1, self._in_frames * num_features), (num_features, 1)
        )
        log_probs = self._network(windows.index_select(0, self._starts.index_select(0, numbers)))
        self._sums.index_add_(0, owner, log_probs.double())
        self._wrong.index_add_(0, owner, (log_probs.argmax(dim=1) != self._true.index_select(0, owner)).long())
        self._at.add_(self._batch_size)

    def _make_room(self, arena: NDArray[np.float32], num_windows: int, num_utterances: int) -> None:
        """Have buffers that hold the layout; new ones have other addresses, so that graphs of the old ones are not used."""
        if len(arena) <= len(self._arena) and num_windows <= len(self._starts) and num_utterances < len(self._true):
            return
        rows, windows, utterances = (int(MORE * size) + 1 for size in (len(arena), num_windows, num_utterances))
        self._version += 1
        self._allocate(rows, arena.shape[1], windows, utterances)

    def _allocate(self, rows: int, num_features: int, windows: int, utterances: int) -> None:
        self._arena = torch.zeros(rows, num_features, device=self._device)
        self._starts, self._owner = (torch.zeros(windows, dtype=torch.int32, device=self._device) for _ in range(2))
        self._true = torch.full((utterances + 1,), -1, device=self._device)  # the last one is of no utterance
        self._sums = torch.zeros(utterances + 1, self._num_classes, dtype=torch.float64, device=self._device)
        self._wrong = torch.zeros(utterances + 1, dtype=torch.int64, device=self._device)

    def _fetch(self, num_utterances: int) -> WindowSums:
        found = self._sums[:num_utterances], self._wrong[:num_utterances]
        if not self._on_gpu:
            return WindowSums(found[0].clone(), found[1].clone(), None)
        sums, wrong = (torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in found)
        sums.copy_(found[0], non_blocking=True)
        wrong.copy_(found[1], non_blocking=True)
        return WindowSums(sums, wrong, torch.cuda.current_stream(self._device).record_event())
