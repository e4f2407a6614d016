"""Count the utterances of a validation set that a network gives a wrong speaker, while its windows are evaluated.

An utterance's speaker is the argmax of the sum of its windows' log-probabilities, in float64, as in `spkid score`. Batches hold
parts of many utterances, and an utterance may be shared by ranks, so sums are kept until the last window has come.

Shapes: U utterances, B windows of a batch, K speakers.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray

from spkid_dist.dataset import WindowDataset
from spkid_dist.process.memory import free_memory
from spkid_dist.streaming.kernels import add_rows

SHARE_OF_MEMORY = 4  # sums of all utterances lie on a device where they take less than this part of its free memory


@dataclass(frozen=True)
class UtteranceTable:
    """The utterances of a set in the order of storage: windows and classes (U,), and the windows up to each one's end (U,)."""

    windows: NDArray[np.int64]
    classes: NDArray[np.int64]
    ends: NDArray[np.int64]

    @staticmethod
    def of(data: WindowDataset) -> "UtteranceTable":
        """That of all utterances of `data`, each once."""
        windows, classes = data.windows.per_utterance()
        return UtteranceTable(windows, classes, np.cumsum(windows))

    @property
    def count(self) -> int:
        """Utterances that have a window."""
        return int(np.count_nonzero(self.windows))


class UtteranceErrors(Protocol):
    """Counts the utterances that a network gives a wrong speaker."""

    def add(self, log_probs: torch.Tensor, window_ids: torch.Tensor) -> None:
        """Take in a batch: log_probs (B, K), and the windows' numbers in the order of storage (B,)."""
        ...

    def read(self, accelerator: Accelerator) -> int:
        """How many utterances are given a wrong speaker, of all ranks together, and start anew. Called by all ranks."""
        ...


class OpenUtterances:
    """Keeps the sums of the utterances of which windows are still to come, on the host: memory for any number of utterances."""

    def __init__(self, table: UtteranceTable, num_classes: int) -> None:
        self._table = table
        self._sums = np.zeros((0, num_classes))
        self._restart()

    def _restart(self) -> None:
        self._left = self._table.windows.copy()
        self._row = np.full(len(self._left), -1, np.int64)  # of each utterance that has a sum
        self._free = list(range(len(self._sums)))
        self._wrong = 0

    def add(self, log_probs: torch.Tensor, window_ids: torch.Tensor) -> None:
        """As `UtteranceErrors.add`."""
        owners = np.searchsorted(self._table.ends, window_ids.cpu().numpy(), side="right")
        utterances, inverse, counts = np.unique(owners, return_inverse=True, return_counts=True)
        self._open(utterances[self._row[utterances] < 0])
        rows = self._row[utterances]
        if log_probs.device.type == "cpu":
            add_rows(log_probs.numpy(), rows[inverse], self._sums)
        else:  # a sum per utterance crosses the bus, and not a row per window
            sums = torch.zeros(len(rows), log_probs.shape[1], dtype=torch.float64, device=log_probs.device)
            sums.index_add_(0, torch.from_numpy(inverse).to(sums.device), log_probs.double())
            self._sums[rows] += sums.cpu().numpy()
        self._left[utterances] -= counts
        self._close(utterances[self._left[utterances] == 0])

    def _open(self, utterances: NDArray[np.int64]) -> None:
        missing = len(utterances) - len(self._free)
        if missing > 0:
            more = max(missing, len(self._sums))
            self._free += range(len(self._sums), len(self._sums) + more)
            self._sums = np.concatenate([self._sums, np.zeros((more, self._sums.shape[1]))])
        for utterance in utterances.tolist():
            self._row[utterance] = self._free.pop()

    def _close(self, utterances: NDArray[np.int64]) -> None:
        rows = self._row[utterances]
        self._wrong += self._count(utterances, self._sums[rows])
        self._sums[rows] = 0
        self._row[utterances] = -1
        self._free += rows.tolist()

    def _count(self, utterances: NDArray[np.int64], sums: NDArray[np.float64]) -> int:
        return int((sums.argmax(axis=1) != self._table.classes[utterances]).sum())

    def read(self, accelerator: Accelerator) -> int:  # noqa: ARG002 - the group of ranks is known
        """As `UtteranceErrors.read`."""
        shared = np.flatnonzero(self._row >= 0)  # ranks have parts of them
        everyone = gather_object([(self._wrong, shared, self._sums[self._row[shared]])])
        joined: dict[int, NDArray[np.float64]] = {}
        for _, utterances, sums in everyone:
            for utterance, row in zip(utterances.tolist(), sums, strict=True):
                joined[utterance] = joined[utterance] + row if utterance in joined else row
        wrong = sum(int(count) for count, _, _ in everyone)
        if joined:
            wrong += self._count(np.array(list(joined)), np.stack(list(joined.values())))
        self._sums[:] = 0
        self._restart()
        return wrong


class DeviceUtterances:
    """Keeps the sums of all utterances on the device, in tensors that keep their addresses: a part of CUDA graphs."""

    def __init__(self, table: UtteranceTable, num_classes: int, device: torch.device) -> None:
        self._classes = torch.from_numpy(table.classes).to(device)
        self._has_windows = torch.from_numpy(table.windows > 0).to(device)
        self._ends = torch.from_numpy(table.ends).to(device)
        self._sums = torch.zeros(len(table.ends), num_classes, dtype=torch.float64, device=device)

    @staticmethod
    def fit(table: UtteranceTable, num_classes: int, num_networks: int, device: torch.device) -> bool:
        """Whether all ranks have the memory for the sums of so many networks; called by all."""
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
        needed = len(table.ends) * num_classes * 8 * (num_networks + 1)  # `read` makes a copy
        return all(gather_object([needed < free / SHARE_OF_MEMORY]))

    def add(self, log_probs: torch.Tensor, window_ids: torch.Tensor) -> None:
        """As `UtteranceErrors.add`; nothing of it waits for the host."""
        owners = torch.bucketize(window_ids, self._ends, right=True)
        self._sums.index_add_(0, owners, log_probs.double())

    def read(self, accelerator: Accelerator) -> int:
        """As `UtteranceErrors.read`."""
        sums = accelerator.reduce(self._sums.clone(), reduction="sum")
        wrong = int(((sums.argmax(dim=1) != self._classes) & self._has_windows).sum())
        self._sums.zero_()
        return wrong
