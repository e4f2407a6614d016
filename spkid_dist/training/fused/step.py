"""A training step of Triton kernels: windows are gathered from a ring and never stored, and nothing is read by the host.

All that changes from step to step is on the device, so that steps can be captured in a CUDA graph: the ring, and a table
with a row for each coming step, in which `cursor` is the present one.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from triton import knobs

from spkid_dist.training.fused import gradients, layers, optimizers, speakers, tile
from spkid_dist.training.fused.plan import (
    LOSS_ROWS,
    UPDATE_BLOCK,
    UPDATE_WARPS,
    FusedPlan,
    Tiles,
)
from spkid_dist.training.fused.tables import RingTensors, StepTable

__all__ = ["FusedStep", "RingTensors", "StepTable"]


class FusedStep:
    """Forward, backward and update of one step; the same bits each time.

    Attributes:
        weights: (P,) float32, of which the parameters' data are views: weight (out, in), bias (out,), layer after layer.
        gradient: (P,) float32, where `reduce_gradient` leaves it.
        state: by torch's names, (P,) float32: exp_avg and exp_avg_sq, or momentum_buffer.
        steps: () float32, how often the optimiser has moved.
        bad: () int32, 1 from the first step on whose loss or gradient is not finite; nothing moves then.
    """

    def __init__(self, plan: FusedPlan, parameters: Sequence[torch.nn.Parameter], device: torch.device | str) -> None:
        """Take over `parameters`, whose data become views of `weights`.

        The mean and deviation of `normalize_global` are given by `set_moments`.
        """
        shapes = [tuple(parameter.shape) for parameter in parameters]
        assert shapes == plan.shapes, f"parameters are {shapes}, expected {plan.shapes}"
        self.plan = plan
        self._device = torch.device(device)
        self.weights = self._zeros(plan.num_parameters)
        for parameter, view in zip(parameters, self.views(self.weights), strict=True):
            view.copy_(parameter.data)
            parameter.data = view
        self.gradient = self._zeros(plan.num_parameters)
        self.state = {name: self._zeros(plan.num_parameters) for name in _state_names(plan)}
        self.steps = self._zeros(())
        self.bad = self._zeros((), torch.int32)
        self._mean, self._inverse_std = self._zeros(plan.num_features), self._zeros(plan.num_features) + 1
        self._current = self._zeros(5)
        self._allocate_scratch()
        self._interpreted = knobs.runtime.interpret

    def _zeros(self, shape: int | tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _allocate_scratch(self) -> None:
        plan = self.plan
        self._used_weights = self.weights
        if plan.copies_weights:
            self._used_weights = self._zeros(plan.num_parameters, torch.bfloat16)
        wide = plan.num_layers * plan.rows * plan.units_padded
        self._hidden = self._zeros(wide, plan.activation_dtype)
        self._gradients = self._zeros(wide + plan.rows * plan.chunk, plan.activation_dtype)
        speaker_values = plan.num_parameters - plan.num_hidden_parameters
        partial = plan.hidden_splits * plan.num_hidden_parameters + plan.speaker_splits * speaker_values
        self._part = self._zeros(partial)
        self._loss_part, self._right_part = self._zeros(plan.row_tiles), self._zeros(plan.row_tiles)
        self._norm_part = self._zeros(plan.norm_programs)
        if plan.path == "layered":
            self._so_far = self._zeros(plan.rows * plan.units_padded)
            self._sums = self._zeros(5 * plan.speaker_parts * plan.rows)
            self._log_sums = self._zeros(plan.rows)

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The parts of a tensor (P,) in the parameters' shapes and order."""
        parts = torch.split(flat, [math.prod(shape) for shape in self.plan.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.plan.shapes, strict=True)]

    def set_moments(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Normalise features by these (D,) means and deviations, those of the layer ``normalize``."""
        self._mean.copy_(mean)
        self._inverse_std.copy_(1 / std)

    @property
    def _sizes(self) -> dict[str, Any]:
        """What most kernels are compiled for."""
        plan = self.plan
        precision: str = plan.matmul
        if self._interpreted:
            precision = "bf16_interpreted" if plan.matmul == "bf16" else "ieee"
        return {"H": plan.hsize, "HP": plan.units_padded, "PREC": precision}

    @property
    def _input_sizes(self) -> dict[str, Any]:
        plan = self.plan
        return {"K": plan.inputs, "D": plan.num_features, "NORMALIZE": plan.normalize_global}

    @property
    def _log_betas(self) -> dict[str, float]:
        return {"LOG_BETA_1": math.log(self.plan.betas[0]), "LOG_BETA_2": math.log(self.plan.betas[1])}

    def forward_backward(self, ring: RingTensors, table: StepTable) -> None:
        """Losses of the table's present step, and partial sums of its gradient times 1/G."""
        assert ring.arena.dtype == self.plan.arena_dtype and ring.arena.shape[1] == self.plan.num_features
        if self.plan.copies_weights:  # in each step: the parameters may have been given other values since the last
            self._used_weights.copy_(self.weights)
        if self.plan.path == "tile":
            self._tile(ring, table)
        else:
            self._forward_layers(ring, table)
            self._speakers(ring, table)
            self._backward_layers(table)
        self._weight_gradients(ring, table)

    def _tile(self, ring: RingTensors, table: StepTable) -> None:
        plan, tiles = self.plan, self.plan.tile
        tile.tile_step[(plan.row_tiles,)](
            ring.arena, ring.starts, ring.labels, len(ring.starts), table.first, table.count, table.rate, table.weight,
            table.cursor, self.steps, self._current, self._used_weights, self._mean, self._inverse_std, self._hidden,
            self._gradients, self._loss_part, self._right_part, self.bad,
            B=plan.rows, S=plan.num_speakers, L=plan.num_layers, BM=tiles.rows, BK=tiles.depth, OT=tiles.columns,
            OP=plan.chunk, SMOOTH=plan.label_smoothing, **self._sizes, **self._input_sizes, **self._log_betas,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip

    def _grid(self, tiles: Tiles, columns: int) -> tuple[tuple[int, int], dict[str, int]]:
        """Grid of the rows by so many columns, and the sizes of the tiles."""
        grid = (-(-self.plan.rows // tiles.rows), -(-columns // tiles.columns))
        sizes = {"BM": tiles.rows, "BN": tiles.columns, "BK": tiles.depth}
        return grid, sizes | {"num_warps": tiles.warps, "num_stages": tiles.stages}

    def _layer_weights(self, layer: int) -> torch.Tensor:
        """Weights and biases from layer `layer` on."""
        plan = self.plan
        before = plan.hsize * (plan.inputs + 1) + (layer - 1) * plan.hsize * (plan.hsize + 1) if layer else 0
        return self._used_weights[before:]

    def _of_layer(self, values: torch.Tensor, layer: int) -> torch.Tensor:
        """From layer `layer` on of what is kept of all (L, B, HP)."""
        return values[layer * self.plan.rows * self.plan.units_padded :]

    def _forward_layers(self, ring: RingTensors, table: StepTable) -> None:
        grid, sizes = self._grid(self.plan.layer, self.plan.hsize)
        layers.first_layer[grid](
            ring.arena, ring.starts, len(ring.starts), table.first, table.count, table.rate, table.cursor, self.steps,
            self._current, self._used_weights, self._mean, self._inverse_std, self._hidden,
            **self._sizes, **self._input_sizes, **self._log_betas, **sizes,
        )  # fmt: skip
        for layer in range(1, self.plan.num_layers):
            layers.next_layer[grid](
                self._of_layer(self._hidden, layer - 1), self._layer_weights(layer), self._of_layer(self._hidden, layer),
                table.count, table.cursor, **self._sizes, **sizes,
            )  # fmt: skip

    def _speakers(self, ring: RingTensors, table: StepTable) -> None:
        plan = self.plan
        last, weights = self._of_layer(self._hidden, plan.num_layers - 1), self._layer_weights(plan.num_layers)
        grid, sizes = self._grid(plan.log_sum, plan.num_speakers)
        common = {"S": plan.num_speakers, "SMOOTH": plan.label_smoothing}
        place = (ring.labels, len(ring.starts), table.first, table.count)
        speakers.speaker_sums[(grid[0], plan.speaker_parts)](
            last, weights, *place, table.cursor, self._sums,
            B=plan.rows, EACH=plan.speakers_a_part, PARTS=plan.speaker_parts, **common, **self._sizes, **sizes,
        )  # fmt: skip
        speakers.speaker_loss[(plan.row_tiles,)](
            self._sums, self._log_sums, *place, table.cursor, self._loss_part, self._right_part, self.bad,
            B=plan.rows, PARTS=plan.speaker_parts, BM=LOSS_ROWS, **common,
        )  # fmt: skip
        chunk_gradients = self._of_layer(self._gradients, plan.num_layers)
        for begin in range(0, plan.num_speakers, plan.chunk):
            grid, sizes = self._grid(plan.logits, plan.chunk)
            speakers.speaker_gradient[grid](
                last, weights, self._log_sums, *place, table.weight, table.cursor, chunk_gradients, begin,
                OP=plan.chunk, **common, **self._sizes, **sizes,
            )  # fmt: skip
            self._layer_gradient(table, plan.num_layers - 1, chunk_gradients, weights, begin)
            self._speaker_weight_gradients(table, begin, last, chunk_gradients)

    def _layer_gradient(
        self, table: StepTable, layer: int, above: torch.Tensor, weights: torch.Tensor, begin: int | None = None
    ) -> None:
        """Gradient of a hidden layer from that of the layer `above`, or of the speakers' chunk from `begin` on."""
        plan = self.plan
        grid, sizes = self._grid(plan.layer, plan.hsize)
        all_units, units, wide = plan.hsize, plan.hsize, plan.units_padded
        if begin is not None:
            all_units, units, wide = plan.num_speakers, plan.chunk, plan.chunk
        at = begin or 0
        layers.layer_gradient[grid](
            above, weights, self._of_layer(self._hidden, layer), self._so_far, self._of_layer(self._gradients, layer),
            table.count, table.cursor, at,
            N=all_units, WIDE=wide, UNITS=units, BEGINS=at == 0, ENDS=at + units >= all_units, **self._sizes, **sizes,
        )  # fmt: skip

    def _backward_layers(self, table: StepTable) -> None:
        for layer in range(self.plan.num_layers - 2, -1, -1):
            above = self._of_layer(self._gradients, layer + 1)
            self._layer_gradient(table, layer, above, self._layer_weights(layer + 1))

    def _weight_tiles(self, splits: int) -> dict[str, int]:
        tiles = self.plan.weight
        rows = -(-self.plan.rows // splits)
        rows = -(-rows // tiles.depth) * tiles.depth
        sizes = {"BN": tiles.rows, "BK": tiles.columns, "BR": tiles.depth, "ROWS": rows}
        return sizes | {"num_warps": tiles.warps, "num_stages": tiles.stages}

    def _speaker_weight_gradients(
        self, table: StepTable, begin: int, last: torch.Tensor, chunk_gradients: torch.Tensor
    ) -> None:
        plan = self.plan
        part = self._part[plan.hidden_splits * plan.num_hidden_parameters :]
        gradients.speaker_weight_gradients[(plan.speaker_tiles(plan.chunk), plan.speaker_splits)](
            last, chunk_gradients, part, table.count, table.cursor, self.bad, begin,
            S=plan.num_speakers, OP=plan.chunk, **self._sizes, **self._weight_tiles(plan.speaker_splits),
        )  # fmt: skip

    def _weight_gradients(self, ring: RingTensors, table: StepTable) -> None:
        plan = self.plan
        with_last = plan.path == "tile"
        tiles = plan.hidden_tiles + (plan.speaker_tiles(plan.num_speakers) if with_last else 0)
        gradients.weight_gradients[(tiles, plan.hidden_splits)](
            ring.arena, ring.starts, len(ring.starts), table.first, table.count, table.cursor, self._mean,
            self._inverse_std, self._hidden, self._gradients, self._part, self.bad,
            B=plan.rows, S=plan.num_speakers, OP=plan.chunk, L=plan.num_layers, P=plan.num_hidden_parameters,
            SPLITS=plan.hidden_splits, **self._sizes, **self._input_sizes, **self._weight_tiles(plan.hidden_splits),
        )  # fmt: skip

    @property
    def _sum_sizes(self) -> dict[str, int]:
        plan = self.plan
        sizes = {"P": plan.num_parameters, "P_HIDDEN": plan.num_hidden_parameters, "BLOCK": UPDATE_BLOCK}
        return sizes | {"SPLITS": plan.hidden_splits, "LAST_SPLITS": plan.speaker_splits, "num_warps": UPDATE_WARPS}

    @property
    def _update_grid(self) -> tuple[int]:
        return (-(-self.plan.num_parameters // UPDATE_BLOCK),)

    def reduce_gradient(self) -> None:
        """Sum the partial sums into `gradient`, for an all-reduce; all NaN where this rank's is not finite."""
        optimizers.sum_gradient[self._update_grid](
            self._part, self.gradient, self._current, self.bad, **self._sum_sizes
        )  # fmt: skip

    def update(self, table: StepTable, reduced: bool) -> None:
        """Move weights and state by the partial sums, or by `gradient` where `reduced`, and end the step.

        Nothing moves from the first step on whose loss or gradient is not finite. The table's sums grow by this step's, and
        its cursor by 1, in any case.
        """
        plan = self.plan
        if plan.clip_grad_norm is not None:
            if not reduced:
                self.reduce_gradient()
            reduced = True
            each = -(-plan.num_parameters // (plan.norm_programs * UPDATE_BLOCK)) * UPDATE_BLOCK
            optimizers.sum_squares[(plan.norm_programs,)](
                self.gradient, self._norm_part, P=plan.num_parameters, EACH=each, BLOCK=UPDATE_BLOCK, num_warps=UPDATE_WARPS
            )  # fmt: skip
        moments = [*self.state.values(), self.weights, self.weights][
            :2
        ]  # the kernel leaves alone what its optimiser lacks
        optimizers.update_weights[self._update_grid](
            self.weights, *moments, self._part, self.gradient, self._current, self.steps, table.count, table.cursor,
            table.losses, table.sums, self._loss_part, self._right_part, self._norm_part, self.bad,
            PARTS=plan.row_tiles, OPTIMIZER=plan.optimizer,
            DECAY=plan.weight_decay, MOMENTUM=plan.momentum, BETA_1=plan.betas[0], BETA_2=plan.betas[1], EPS=plan.eps,
            REDUCED=reduced, CLIP=plan.clip_grad_norm or 0.0, NORM_PARTS=plan.norm_programs, **self._sum_sizes,
        )  # fmt: skip


def _state_names(plan: FusedPlan) -> tuple[str, ...]:
    """The optimiser's state by torch's names."""
    if plan.optimizer == "sgd":
        return ("momentum_buffer",) if plan.momentum else ()
    return ("exp_avg", "exp_avg_sq")
