"""The fused engine: the classic network's step in a few Triton kernels, many steps to a graph.

What the kernels compute stands in `spkid_dist.training.fused`. The optimiser's state lies in their tensors, so that checkpoints
hold what those of other engines hold. Triton comes with torch's builds for GPUs. Where TRITON_INTERPRET=1 is set, its
interpreter runs the same kernels on a CPU: very slowly, for tests.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from shards.errors import UsageError
from spkid_dist.model import Normalize
from spkid_dist.process.memory import gigabytes
from spkid_dist.process.replay import Replay
from spkid_dist.ranks.together import share_weights
from spkid_dist.streaming.ring import PlacedSteps
from spkid_dist.training.deviceengine import LearningSteps
from spkid_dist.training.enginechoice import most_rows
from spkid_dist.training.feed import Steps
from spkid_dist.training.fused.plan import FusedPlan, Matmul
from spkid_dist.training.job import Job
from spkid_dist.training.learner import Learner

if TYPE_CHECKING:
    from spkid_dist.training.fused.step import RingTensors


class FusedEngine:
    """Does the steps; `model` and `optimizer` of the learner are plain torch's, the model on its device."""

    def __init__(self, job: Job, learner: Learner, frames_dtype: torch.dtype) -> None:
        from spkid_dist.training.fused import step as fused  # kernels: only where triton is installed

        device = job.accelerator.device
        self._ranks_meet = job.accelerator.num_processes > 1
        if self._ranks_meet:
            share_weights(learner.model)
        plan = _plan(job, learner, frames_dtype)
        check_memory(plan, device)
        parameters = list(learner.model.parameters())
        self._fused = fused.FusedStep(plan, parameters, device)
        for layer in learner.model.children():
            if isinstance(layer, Normalize):
                self._fused.set_moments(layer.mean, layer.std)
        self._take_over_state(learner.optimizer, parameters)
        self._after_step = learner.after_step
        self._replay = Replay(device)
        self._steps = LearningSteps(job, learner)
        table = self._steps.table
        self._table = fused.StepTable(
            table.first, table.count, table.rate, table.weight, table.cursor, table.losses, table.sums
        )
        self._tensors_of: type[RingTensors] = fused.RingTensors

    def run(self, steps: Steps, epoch: int, first_step: int) -> None:
        """As `Engine.run`; the steps' windows lie on the device."""
        assert isinstance(steps, PlacedSteps)
        self._steps.send(steps, epoch, first_step)
        ring = self._tensors_of(*steps.ring.tensors)
        # The kernels leave out what a step lacks of the largest one, so that all steps share a graph.
        self._replay.do(steps.ring.version, lambda: self._step(ring), len(steps))
        self._steps.note_losses(len(steps))

    def _step(self, ring: "RingTensors") -> None:
        """The next step of the table; nothing of it waits for the host."""
        self._fused.forward_backward(ring, self._table)
        if self._ranks_meet:
            self._fused.reduce_gradient()
            distributed.all_reduce(self._fused.gradient)
        self._fused.update(self._table, reduced=self._ranks_meet)
        self._after_step()

    def _take_over_state(self, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> None:
        """Have the optimiser's state lie in the tensors of the kernels, where a checkpoint finds it."""
        fused = self._fused
        for name, flat in fused.state.items():
            for parameter, view in zip(parameters, fused.views(flat), strict=True):
                state = optimizer.state[parameter]
                if state.get(name) is not None:
                    view.copy_(state[name])
                state[name] = view
        if "exp_avg" in fused.state:
            for parameter in parameters:
                state = optimizer.state[parameter]
                if "step" in state:
                    fused.steps.copy_(state["step"])
                state["step"] = fused.steps
            optimizer.register_state_dict_post_hook(_with_own_steps)


def _with_own_steps(_optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The optimiser's state, in which each parameter has a count of steps of its own.

    Loaded as one tensor, an optimiser of torch would count each step once per parameter.
    """
    states = {index: state | {"step": state["step"].clone()} for index, state in state_dict["state"].items()}
    return state_dict | {"state": states}


def _plan(job: Job, learner: Learner, frames_dtype: torch.dtype) -> FusedPlan:
    config, precision = job.config, job.accelerator.mixed_precision
    matmul: Matmul = "bf16" if precision == "bf16" else "tf32" if config.tf32 else "tf32x3"
    layers = [layer for layer in learner.model.children() if isinstance(layer, torch.nn.Linear)]
    normalize = any(isinstance(layer, Normalize) for layer in learner.model.children())
    return FusedPlan(
        inputs=layers[0].in_features,
        num_features=layers[0].in_features // config.in_frames,
        num_speakers=layers[-1].out_features,
        rows=most_rows(config, job.accelerator),
        hsize=config.hsize,
        num_layers=config.num_layers,
        matmul=matmul,
        arena_dtype=frames_dtype,
        label_smoothing=config.label_smoothing,
        optimizer=config.optimizer,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        normalize_global=normalize,
        clip_grad_norm=config.clip_grad_norm,
    )


def check_memory(plan: FusedPlan, device: torch.device) -> None:
    """Raise UsageError where the device lacks the memory of the kernels."""
    if device.type == "cpu":
        return
    needed, free = plan.scratch_bytes, int(torch.cuda.mem_get_info(device)[0])
    if needed > free:
        raise UsageError(
            f"--engine fused: it takes {gigabytes(needed)} on {device}, which has {gigabytes(free)} free; give a smaller "
            "--batch_size or --device_memory, or --engine graph"
        )
