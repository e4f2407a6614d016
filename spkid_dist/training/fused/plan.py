"""Plan a fused step: its path, its tiles, and the memory that it takes; needs no Triton.

Tile sizes come from a fixed table by precision, batch size and widths, never from timing, so that a training has the same
bits each time. Two paths:

- tile: one kernel takes a tile of windows through all layers and back. For narrow layers and few speakers.
- layered: a kernel a layer and direction. The speakers are worked on in chunks: log-sum-exp first, then per chunk
  the gradient of its logits, what flows back from it, and the gradient of its weights. The logits are never stored, the
  gradient of one chunk's is.

Shapes: B rows of a step, C*D inputs, H units of a hidden layer, L hidden layers, S speakers, P parameters.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch

from shards.errors import UsageError

Matmul = Literal["tf32x3", "tf32", "bf16"]
OptimizerName = Literal["adam", "adamw", "sgd"]

MOST_UNITS = 512
MOST_ROWS = 1 << 20  # of a step; places in a chunk of logits are then below 2^31
TILE_UNITS, TILE_SPEAKERS = 128, 512  # up to here by the tile path
CHUNK_VALUES = 1 << 24  # of the gradient of logits, where a chunk of 1,024 speakers is not more
PARTIAL_VALUES = 1 << 27  # of partial sums of the last layer's gradient: 512 MiB, or one sum
MOST_SPEAKERS = 1 << 21  # places in the last layer's weights are then below 2^31
UPDATE_BLOCK, UPDATE_WARPS = 1024, 4  # parameters a program of the update; 4 warps do not spill them
MOST_NORM_PROGRAMS = 256  # that sum the gradient's squares
MULTIPROCESSORS = 132  # of an H100 or H200
LOSS_ROWS = 128  # a program of the layered path's losses


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Sizes of a kernel's tiles: rows, columns and depth of its products, and Triton's warps and stages."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True, kw_only=True)
class FusedPlan:
    """A network, its optimiser and the largest batch of a rank; the defaults are the classic training's."""

    inputs: int
    """C*D, values of a window"""
    num_features: int
    """D, values of a frame"""
    num_speakers: int
    rows: int
    """the most windows of a step of this rank"""
    hsize: int = 100
    num_layers: int = 3
    matmul: Matmul = "tf32x3"
    """tf32x3 is as exact as float32; bf16 also keeps activations as bfloat16"""
    arena_dtype: torch.dtype = torch.float32
    label_smoothing: float = 0.0
    optimizer: OptimizerName = "adam"
    weight_decay: float = 0.0
    momentum: float = 0.0
    """of SGD"""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    normalize_global: bool = False
    clip_grad_norm: float | None = None
    """costs a step two more kernels: the gradient's norm has to be known before any weight moves"""

    def __post_init__(self) -> None:
        """Check what the kernels rely on; raises UsageError."""
        if self.num_speakers > MOST_SPEAKERS:
            raise UsageError(
                f"--engine fused: {self.num_speakers} speakers, expected {MOST_SPEAKERS} or less; give --engine graph"
            )
        assert self.inputs % self.num_features == 0
        assert 1 <= self.hsize <= MOST_UNITS and self.num_layers >= 1 and self.num_speakers >= 1
        assert 1 <= self.rows <= MOST_ROWS
        assert self.arena_dtype in (torch.float32, torch.float16, torch.bfloat16)

    @property
    def path(self) -> Literal["tile", "layered"]:
        """Which kernels do the step."""
        narrow = self.hsize <= TILE_UNITS and self.num_speakers <= TILE_SPEAKERS
        return "tile" if narrow else "layered"

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters, in the network's order: weight (out, in), bias (out,), layer after layer."""
        widths = [self.inputs] + [self.hsize] * self.num_layers + [self.num_speakers]
        return [shape for inputs, units in pairwise(widths) for shape in ((units, inputs), (units,))]

    @property
    def num_hidden_parameters(self) -> int:
        """Parameters of the hidden layers."""
        return self.hsize * (self.inputs + 1) + (self.num_layers - 1) * self.hsize * (self.hsize + 1)

    @property
    def num_parameters(self) -> int:
        """P."""
        return self.num_hidden_parameters + self.num_speakers * (self.hsize + 1)

    @property
    def activation_dtype(self) -> torch.dtype:
        """Of what is kept between kernels: activations and their gradients."""
        return torch.bfloat16 if self.matmul == "bf16" else torch.float32

    @property
    def units_padded(self) -> int:
        """Columns that a layer takes in memory; in the tile path a power of 2."""
        return power_of_2(self.hsize) if self.path == "tile" else -(-self.hsize // 16) * 16

    @property
    def tile(self) -> Tiles:
        """Of the tile path's forward and backward pass: columns are the speakers at a time, depth is of the inputs."""
        speakers = power_of_2(self.num_speakers)
        if self.rows < 64 * MULTIPROCESSORS // 2:  # small tiles, for more multiprocessors
            depth, stages = (32, 4) if self.matmul == "tf32x3" else (64, 3)
            return Tiles(rows=16, columns=min(speakers, 256), depth=depth, warps=8, stages=stages)
        depth, stages = {"tf32x3": (16, 3), "tf32": (32, 2), "bf16": (64, 2)}[self.matmul]
        return Tiles(rows=64, columns=min(speakers, 64), depth=depth, warps=8, stages=stages)

    def _products(self, columns: int) -> Tiles:
        """Of a product of all rows by so many columns: the largest tiles that give all multiprocessors work."""
        depth = 64 if self.matmul == "bf16" else 32
        if -(-self.rows // 128) * -(-columns // 128) >= MULTIPROCESSORS:
            return Tiles(rows=128, columns=128, depth=depth, warps=8, stages=2 if self.matmul == "tf32x3" else 3)
        if -(-self.rows // 64) * -(-columns // 64) >= MULTIPROCESSORS:
            return Tiles(rows=64, columns=64, depth=depth, warps=4, stages=3)
        return Tiles(rows=32, columns=64, depth=depth, warps=4, stages=3)

    @property
    def layer(self) -> Tiles:
        """Of the layered path's hidden layers, forward and backward."""
        return self._products(self.hsize)

    @property
    def logits(self) -> Tiles:
        """Of the gradient of a chunk's logits."""
        return self._products(self.chunk)

    @property
    def log_sum(self) -> Tiles:
        """Of the speakers' log-sum-exp, which keeps more beside its products."""
        return replace(self._products(self.num_speakers), columns=64)

    @property
    def weight(self) -> Tiles:
        """Of the weights' gradients: units (rows) by inputs (columns), depth is of the windows."""
        depth = 64 if self.matmul == "bf16" else 32
        if self.rows >= 64 * MULTIPROCESSORS // 2 and self.hsize > 128 and self.matmul != "tf32x3":
            return Tiles(rows=128, columns=128, depth=depth, warps=8, stages=3)
        if self.rows >= 64 * MULTIPROCESSORS:
            return Tiles(rows=128, columns=64, depth=depth, warps=8, stages=3)
        return Tiles(rows=64, columns=64, depth=depth, warps=4, stages=3)

    @property
    def copies_weights(self) -> bool:
        """Whether a step begins by a copy of the weights as bfloat16, which saves large batches more than it costs."""
        return self.matmul == "bf16" and (self.path == "layered" or self.tile.rows > 16)

    def _splits(self, tiles: int) -> int:
        """Parts of the windows whose sums of gradients are kept apart, so that all multiprocessors have work."""
        wanted = -(-2 * MULTIPROCESSORS // tiles)
        return max(1, min(power_of_2(wanted, least=1), -(-self.rows // 128), 32))

    @property
    def hidden_tiles(self) -> int:
        """Tiles of the hidden layers' gradients."""
        tiles = self.weight
        first = -(-self.inputs // tiles.columns)
        others = (self.num_layers - 1) * -(-self.hsize // tiles.columns)
        return (first + others) * -(-self.hsize // tiles.rows)

    def speaker_tiles(self, speakers: int) -> int:
        """Tiles of the gradient of the last layer's weights, of so many speakers."""
        return -(-speakers // self.weight.rows) * -(-self.hsize // self.weight.columns)

    @cached_property
    def hidden_splits(self) -> int:
        """Partial sums of the hidden layers' gradients."""
        last = self.speaker_tiles(self.num_speakers) if self.path == "tile" else 0
        return self._splits(self.hidden_tiles + last)

    @cached_property
    def speaker_splits(self) -> int:
        """Partial sums of the last layer's gradient; in the tile path as many as of the others'."""
        if self.path == "tile":
            return self.hidden_splits
        most = max(1, PARTIAL_VALUES // (self.num_parameters - self.num_hidden_parameters))
        return min(most, self._splits(self.speaker_tiles(min(self.chunk, self.num_speakers))))

    @property
    def chunk(self) -> int:
        """Speakers whose logits' gradient is there at a time, a multiple of a tile's columns."""
        if self.path == "tile":
            return -(-self.num_speakers // self.tile.columns) * self.tile.columns
        most = max(1024, CHUNK_VALUES // self.rows // 1024 * 1024)
        return min(most, -(-self.num_speakers // 128) * 128)

    @property
    def speakers_a_part(self) -> int:
        """Speakers whose log-sum-exp a program takes; parts go side by side where rows alone do not fill the device."""
        tiles = -(-self.num_speakers // self.log_sum.columns)
        parts = max(1, min(2 * MULTIPROCESSORS // -(-self.rows // self.log_sum.rows), tiles, 16))
        return -(-tiles // parts) * self.log_sum.columns

    @property
    def speaker_parts(self) -> int:
        """Parts of the speakers; none is without speakers."""
        return -(-self.num_speakers // self.speakers_a_part)

    @property
    def row_tiles(self) -> int:
        """Programs that leave a partial sum of the losses."""
        return -(-self.rows // (self.tile.rows if self.path == "tile" else LOSS_ROWS))

    @property
    def norm_programs(self) -> int:
        """Programs that leave a partial sum of the gradient's squares, a power of 2."""
        return min(MOST_NORM_PROGRAMS, power_of_2(-(-self.num_parameters // UPDATE_BLOCK), least=1))

    @property
    def scratch_bytes(self) -> int:
        """Device memory beside parameters, gradient and optimiser's state: activations, chunk, partial sums."""
        width, hidden = self.activation_dtype.itemsize, self.num_layers * self.rows * self.units_padded
        values = width * (2 * hidden + self.rows * self.chunk)
        values += 2 * self.num_parameters if self.copies_weights else 0
        if self.path == "layered":
            values += 4 * self.rows * (self.units_padded + 5 * self.speaker_parts + 1)
        speakers = self.num_parameters - self.num_hidden_parameters
        partial = self.hidden_splits * self.num_hidden_parameters + self.speaker_splits * speakers
        return values + 4 * (partial + 2 * self.row_tiles + self.norm_programs)


def power_of_2(value: int, least: int = 16) -> int:
    """The smallest power of 2 from `value` and `least` on."""
    return max(least, 1 << (value - 1).bit_length())


def fused_hindrance(
    *,
    activation: str = "relu",
    dropout: float = 0.0,
    batch_norm: bool = False,
    hsize: int = 100,
    rows: int = 1,
    mixed_precision: str = "no",
    compiled: bool = False,
) -> str | None:
    """What of a training the fused step can't do, by its flag; None where it can do all."""
    hindrances = {
        f"--activation {activation}": activation != "relu",
        f"--dropout {dropout}": dropout > 0,
        "--batch_norm": batch_norm,
        f"--hsize {hsize}, above {MOST_UNITS}": hsize > MOST_UNITS,
        f"{rows} windows of a process in a batch, above {MOST_ROWS}": rows > MOST_ROWS,
        "--mixed_precision fp16": mixed_precision == "fp16",
        "--compile": compiled,
    }
    return next((phrase for phrase, there in hindrances.items() if there), None)
