"""Put utterances through the network, and sum the log-probabilities of their windows, on a CPU or a GPU.

Utterances are laid out together until they make some batches, so that the network sees thousands of windows at a time; a
thread lays out the next ones meanwhile. Only frames go to an accelerator (`spkid_dist.scoring.devicescores`).

Shapes: U utterances, T frames, D features, C frames of a window, N windows, K speakers.
"""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from shards.parallel import in_background
from spkid_dist.config.choices import EDGE, EDGE_CODES, VALID
from spkid_dist.scoring.devicescores import DeviceScores, WindowSums
from spkid_dist.scoring.utterances import Group
from spkid_dist.streaming.kernels import add_rows, lay_out
from spkid_dist.streaming.normalization import normalize_frames
from spkid_dist.trained import TrainedModel

# Windows that go through the network at a time. On 2 cores 1,024 to 4,096 are fastest: the activations stay in the cache.
CPU_BATCH, ACCELERATOR_BATCH = 2048, 16384
BATCHES_LAID_OUT = 4  # together, so that the last one, which is smaller, matters less


@dataclass(frozen=True)
class GroupScores:
    """The outcome for U utterances: mean log-probabilities (U, K) float64; windows and wrong windows (U,) int64.

    A window is wrong where the class of its largest log-probability is not the true one; 0 where that is not known.
    """

    group: Group
    means: NDArray[np.float64]
    windows: NDArray[np.int64]
    wrong_windows: NDArray[np.int64]


@dataclass(frozen=True)
class _Layout:
    """A group whose windows are rows `starts` (N,) of the overlapping view of `arena`, owned by utterances `owner` (N,)."""

    group: Group
    arena: NDArray[np.float32]
    starts: NDArray[np.int64]
    owner: NDArray[np.int64]


class Scorer:
    """Scores groups of utterances with a model on `device`; `precision` is that of the matrix products."""

    def __init__(
        self, model: TrainedModel, device: torch.device, *, batch_size: int | None = None, precision: str = "no"
    ) -> None:
        self._network = model.network.to(device)
        self._device = device
        self._in_frames = model.in_frames
        self._num_classes = len(model.speakers)
        self._edge = EDGE_CODES[model.edge]
        self._normalize = model.options.get("normalize") == "utterance"
        self._batch_size = batch_size or (CPU_BATCH if device.type == "cpu" else ACCELERATOR_BATCH)
        self._dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._on_device: DeviceScores | None = None
        if device.type != "cpu":
            self._on_device = self.device_scores()

    def device_scores(self) -> DeviceScores:
        """What scores layouts on the device."""
        return DeviceScores(
            self._log_probs,
            self._device,
            in_frames=self._in_frames,
            num_classes=self._num_classes,
            batch_size=self._batch_size,
        )

    def score(self, groups: Generator[Group, None, None]) -> Iterator[GroupScores]:
        """Score all groups; several of them come back as one. `groups` is closed at the end."""
        with contextlib.closing(in_background(self._layouts(groups))) as layouts:
            if self._on_device is None:
                yield from map(self._score, layouts)
                return
            begun: tuple[_Layout, WindowSums] | None = None
            for layout in layouts:
                sums = self._on_device.start(layout.arena, layout.starts, layout.owner, layout.group.true)
                before, begun = begun, (layout, sums)
                if before is not None:  # fetched while the device has the next one
                    yield _means(before[0], *before[1].wait())
            if begun is not None:
                yield _means(begun[0], *begun[1].wait())

    def _layouts(self, groups: Generator[Group, None, None]) -> Generator[_Layout, None, None]:
        with contextlib.closing(groups):
            held: list[Group] = []
            for group in groups:
                held.append(group)
                if sum(len(one.frames) for one in held) >= self._batch_size * BATCHES_LAID_OUT:
                    yield self._lay_out(_join(held))
                    held = []
            if held:
                yield self._lay_out(_join(held))

    def _lay_out(self, group: Group) -> _Layout:
        if self._normalize:
            group = replace(group, frames=normalize_frames(group.frames, group.lengths))
        return lay_out_group(group, self._in_frames, self._edge)

    @torch.inference_mode()
    def _score(self, layout: _Layout) -> GroupScores:
        group, num_features = layout.group, layout.arena.shape[1]
        arena = torch.from_numpy(layout.arena)
        rows = arena.as_strided((len(arena) - self._in_frames + 1, self._in_frames * num_features), (num_features, 1))
        starts, owner, true = torch.from_numpy(layout.starts), layout.owner, group.true
        sums, wrong = np.zeros((len(true), self._num_classes)), np.zeros(len(true), np.int64)
        for piece in even_slices(len(starts), self._batch_size):
            log_probs = self._log_probs(rows.index_select(0, starts[piece])).float().numpy()
            add_rows(log_probs, owner[piece], sums)
            # NumPy's argmax is 7 times as fast as torch's on a CPU: 75 and 520 ns a row of 600, 2 threads.
            is_wrong = log_probs.argmax(axis=1) != true[owner[piece]]
            wrong += np.bincount(owner[piece][is_wrong], minlength=len(wrong))
        return _means(layout, sums, wrong)

    def _log_probs(self, windows: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            log_probs: torch.Tensor = self._network(windows)
        return log_probs


def _means(layout: _Layout, sums: NDArray[np.float64], wrong: NDArray[np.int64]) -> GroupScores:
    group = layout.group
    windows = np.bincount(layout.owner, minlength=len(group.true))
    return GroupScores(group, sums / windows[:, None], windows, np.where(group.true < 0, 0, wrong))


def lay_out_group(group: Group, in_frames: int, edge: int) -> _Layout:
    """Lay out all windows of a group; an utterance that has none under ``valid`` gets its edge frames repeated.

    Without that it would have no score; why not zero frames: DESIGN.md.
    """
    num_frames, num_utterances = len(group.frames), len(group.lengths)
    short = group.lengths < in_frames if edge == VALID else np.zeros(num_utterances, np.bool_)
    windows = group.lengths.astype(np.int64) - (0 if edge != VALID else (in_frames - 1) * ~short)
    count = int(windows.sum())
    arena = np.empty((num_frames + num_utterances * (in_frames - 1), group.frames.shape[1]), np.float32)
    starts, owner = np.empty(count, np.int64), np.empty(count, np.int64)
    labels = np.arange(num_utterances, dtype=np.int32)
    at = int(windows[~short].sum())
    once = np.ones(num_utterances, np.int32)
    frames, lengths = np.ascontiguousarray(group.frames, np.float32), group.lengths
    row = lay_out(frames, lengths, labels, once, 0, at, in_frames, edge, arena, 0, starts[:at], owner[:at])
    if short.any():
        frames, lengths, once = frames[np.repeat(short, lengths)], lengths[short], once[short]
        rest, labels = count - at, labels[short]
        row = lay_out(frames, lengths, labels, once, 0, rest, in_frames, EDGE, arena, row, starts[at:], owner[at:])
    return _Layout(group, arena[:row], starts, owner)


def even_slices(total: int, largest: int) -> Iterator[slice]:
    """The fewest slices of at most `largest` that cover `total`, of sizes that differ by at most 1."""
    count = -(-total // largest)
    for number in range(count):
        yield slice(total * number // count, total * (number + 1) // count)


def _join(groups: list[Group]) -> Group:
    if len(groups) == 1:
        return groups[0]
    return Group(
        [key for group in groups for key in group.keys],
        np.concatenate([group.frames for group in groups]),
        np.concatenate([group.lengths for group in groups]),
        np.concatenate([group.positions for group in groups]),
        np.concatenate([group.true for group in groups]),
    )
