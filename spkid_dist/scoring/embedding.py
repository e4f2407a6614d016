"""Compute embeddings of utterances: mean and deviation, over an utterance's windows, of what the last hidden layer gives.

The mean is the d-vector of Variani, Lei, McDermott, Lopez Moreno, Gonzalez-Dominguez, "Deep neural networks for small
footprint text-dependent speaker verification", 2014; the deviation was added by Snyder, Garcia-Romero, Povey, Khudanpur, "Deep
neural network embeddings for text-independent speaker verification", 2017. The layer's outputs are taken after its activation,
as after training: batch normalisation by the running statistics, and no dropout.

An utterance's windows go through the network by themselves, on one thread: a matrix product's last bits depend on how many
rows it has and on how many threads share it, and an embedding must not depend on other utterances, or on the number of
processes.

Shapes: U utterances, N windows of one, H units of the last hidden layer.
"""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shards.parallel import in_order
from spkid_dist.config.choices import EDGE_CODES
from spkid_dist.process.threads import torch_threads
from spkid_dist.scoring.scorer import ACCELERATOR_BATCH, CPU_BATCH, even_slices, lay_out_group
from spkid_dist.scoring.utterances import Group
from spkid_dist.streaming.normalization import normalize_frames
from spkid_dist.trained import TrainedModel

OUTPUT_LAYERS = 2  # the last linear layer and the log-softmax, which name the speakers


@dataclass(frozen=True)
class GroupEmbeddings:
    """The embeddings (U, 2*H) float32 of a group: H means, then H deviations."""

    group: Group
    vectors: NDArray[np.float32]


class Embedder:
    """Computes embeddings of groups of utterances with a model on `device`; `precision` is that of the matrix products."""

    def __init__(
        self, model: TrainedModel, device: torch.device, *, batch_size: int | None = None, precision: str = "no"
    ) -> None:
        assert isinstance(model.network, nn.Sequential)
        self._hidden = model.network[:-OUTPUT_LAYERS].to(device).eval()
        self._device = device
        self._in_frames = model.in_frames
        self._edge = EDGE_CODES[model.edge]
        self._normalize = model.options.get("normalize") == "utterance"
        self._batch_size = batch_size or (CPU_BATCH if device.type == "cpu" else ACCELERATOR_BATCH)
        self._dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.size = 2 * width_of(model)

    def embed(self, groups: Generator[Group, None, None]) -> Iterator[GroupEmbeddings]:
        """The embeddings of all groups, in their order; `groups` is closed at the end."""
        with contextlib.closing(groups), torch_threads() as threads, torch_threads(1):
            workers = threads if self._device.type == "cpu" else 1
            with contextlib.closing(in_order(self._embed, groups, workers)) as embedded:
                yield from embedded

    def _embed(self, group: Group) -> GroupEmbeddings:
        if self._normalize:
            group = replace(group, frames=normalize_frames(group.frames, group.lengths))
        ends = np.cumsum(group.lengths)
        vectors = np.empty((len(ends), self.size), np.float32)
        for row, (end, length) in enumerate(zip(ends, group.lengths, strict=True)):
            with np.errstate(over="ignore"):  # found as not finite
                vectors[row] = self._embed_one(group.frames[end - length : end])
        return GroupEmbeddings(group, vectors)

    @torch.inference_mode()
    def _embed_one(self, frames: NDArray[np.float32]) -> NDArray[np.float64]:
        """The embedding (2*H,) of an utterance's frames (T, D). Sums are float64; its square root takes no negative number."""
        one = np.zeros(1, np.int64)
        group = Group([""], frames, np.array([len(frames)], np.int32), one, one)
        layout = lay_out_group(group, self._in_frames, self._edge)
        arena, starts = (
            torch.from_numpy(layout.arena).to(self._device),
            torch.from_numpy(layout.starts).to(self._device),
        )
        num_features = arena.shape[1]
        rows = arena.as_strided((len(arena) - self._in_frames + 1, self._in_frames * num_features), (num_features, 1))
        sums = torch.zeros(2, self.size // 2, dtype=torch.float64, device=self._device)
        for piece in even_slices(len(starts), self._batch_size):
            with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
                outputs = self._hidden(rows.index_select(0, starts[piece])).double()
            sums[0] += outputs.sum(dim=0)
            sums[1] += outputs.square().sum(dim=0)
        mean, squares = sums / len(starts)
        deviation = (squares - mean.square()).clamp(min=0).sqrt()
        vector: NDArray[np.float64] = torch.cat((mean, deviation)).cpu().numpy()
        return vector


def width_of(model: TrainedModel) -> int:
    """Units of the last hidden layer, H."""
    linear = [layer for layer in model.network.modules() if isinstance(layer, nn.Linear)]
    return int(linear[-1].in_features)
