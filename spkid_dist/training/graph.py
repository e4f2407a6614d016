"""Steps whose tensors all stay in their place: on a GPU each is two graphs that are replayed, on a CPU plain calls.

A step of this network is some 60 small kernels, and starting them one by one takes several times as long as they run
(at 1,000 windows). A CUDA graph starts them all at once. What changes from step to step is therefore in tensors: the batch
(`WindowDataset(reuse=True)` stacks each over the one before), the learning rate, and the weight of the loss. The gradients of
all parameters lie in one tensor, which the ranks add up in one all-reduce between the two graphs. The first steps of each
shape are done without a graph, as capturing wants memory and the optimiser's state to be there.

Source: pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. Shapes as in `spkid_dist.training.step`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

from spkid_dist.training.finite import weigh
from spkid_dist.training.learning import training_loss
from spkid_dist.training.step import StepParts, network_input

STEPS_BEFORE = 3  # of a shape, before it is captured
MOST_GRAPHS = 16  # shapes of a rank's share that are captured; others are done without


class GraphEngine:
    """Does the steps; `model` and `optimizer` of `parts` are plain torch's, the model on its device."""

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts
        self._device = parts.accelerator.device
        self._on_gpu = self._device.type == "cuda"
        self._world_size = parts.accelerator.num_processes
        self._gradient = _join_gradients(parts.model)
        self._weight = torch.ones((), device=self._device)  # of a window's loss
        self._global_windows = 0  # that `_weight` is for
        self._loss = torch.zeros((), device=self._device)
        self._rate = _rate_on_device(parts.optimizer, self._device) if self._on_gpu else None
        self._side = torch.cuda.Stream(self._device) if self._on_gpu else None  # type: ignore[no-untyped-call]
        self._steps: dict[tuple[Any, ...], int] = {}
        self._graphs: dict[tuple[Any, ...], torch.cuda.CUDAGraph] = {}
        if self._world_size > 1:
            for tensor in (*parts.model.parameters(), *parts.model.buffers()):
                distributed.broadcast(tensor.detach(), src=0)

    def step(self, x: torch.Tensor, y: torch.Tensor, epoch: int, step: int) -> None:
        """As `Engine.step`."""
        parts = self._parts
        self._set_rate(parts.schedule.lr(parts.whole_step(epoch, step)))
        windows = parts.global_windows(step)
        if windows != self._global_windows:  # in an epoch's last step, and in the one after
            self._weight.fill_(1 / windows)
            self._global_windows = windows
        # A batch at another address is another graph's.
        self._do((x.data_ptr(), y.data_ptr(), len(x)), lambda: self._forward_backward(x, y))
        if self._world_size > 1:
            distributed.all_reduce(self._gradient)
        parts.guard.note(self._loss)
        if parts.guard.waits:
            parts.guard.check(epoch, step)
            self._update()
        else:
            self._do(("update",), self._guarded_update)
            parts.guard.advance()

    def _forward_backward(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """The gradient of the share's part of the global batch's mean loss, into `_gradient`."""
        parts = self._parts
        self._gradient.zero_()
        with parts.accelerator.autocast():
            log_probs = parts.model(network_input(x))
        log_probs = log_probs.float()
        loss_sum = training_loss(log_probs, y, parts.config.label_smoothing)
        weigh(loss_sum, self._weight).backward()  # type: ignore[no-untyped-call]
        self._loss.copy_(loss_sum.detach())
        parts.tally.add(log_probs, y, loss_sum)

    def _guarded_update(self) -> None:
        self._parts.guard.guard_optimizer()
        self._update()

    def _update(self) -> None:
        longest = self._parts.config.clip_grad_norm
        if longest is not None:
            torch.nn.utils.clip_grad_norm_(self._parts.model.parameters(), longest)
        self._parts.optimizer.step()

    def _set_rate(self, rate: float) -> None:
        if self._rate is not None:
            self._rate.fill_(rate)
            return
        for group in self._parts.optimizer.param_groups:
            group["lr"] = rate

    def _do(self, key: tuple[Any, ...], work: Callable[[], None]) -> None:
        """Do `work`: replayed, where it was captured; `key` tells what it is, addresses included."""
        if self._side is None:
            work()
            return
        graph = self._graphs.get(key) or self._capture(key, work)
        if graph is not None:
            graph.replay()
            return
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):  # gradients are added up on the stream where that was first done
            work()
        current.wait_stream(self._side)

    def _capture(self, key: tuple[Any, ...], work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """The graph of `work`, which is not done by that; None while it has not been done often enough without."""
        done = self._steps[key] = self._steps.get(key, 0) + 1
        if done <= STEPS_BEFORE or len(self._graphs) >= MOST_GRAPHS:
            return None
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that fills the next pool goes on asking for memory.
        with torch.cuda.graph(graph, stream=self._side, capture_error_mode="thread_local"):
            work()
        self._graphs[key] = graph
        return graph


def _join_gradients(model: torch.nn.Module) -> torch.Tensor:
    """Make the gradients of all parameters views of one tensor, and return it: (all parameters,)."""
    parameters = list(model.parameters())
    joined = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    at = 0
    for parameter in parameters:
        parameter.grad = joined[at : at + parameter.numel()].view_as(parameter)
        at += parameter.numel()
    return joined


def _rate_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> torch.Tensor:
    """Have the optimiser read its rate, and count its steps, on the device; returns the rate, a scalar tensor."""
    rate = torch.zeros((), device=device)
    for group in optimizer.param_groups:
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = True
    return rate
