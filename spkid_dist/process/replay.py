"""Record many steps of a GPU as one CUDA graph, and replay them by one call of the host.

A step of this network is some dozens of small kernels, or a few fused ones; starting them one by one takes longer than they
run. A CUDA graph starts those of STEPS_A_GRAPH steps at once. What differs from step to step stands in the `StepTable`, and
the windows in the ring, so the host sends one table a run of steps and replays. What does not fill such a graph is done by a
graph of one step. The first steps of each kind are done without a graph, as capturing wants memory and the optimiser's state
to be there. On a CPU there are no graphs: the same steps are plain calls.

Source: pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

STEPS_A_GRAPH = 20
STEPS_BEFORE = 3  # of a kind, before it is captured
MOST_GRAPHS = 16  # that are kept; what would need more is done without


@dataclass
class _Kind:
    """Steps that one graph serves: how many were done without one, and the graphs by the steps they have."""

    done: int = 0
    graphs: dict[int, torch.cuda.CUDAGraph] = field(default_factory=dict)


class Replay:
    """Does steps on `device`, as graphs of `steps_a_graph` and of one where it is a GPU."""

    def __init__(self, device: torch.device, steps_a_graph: int = STEPS_A_GRAPH) -> None:
        self._device = device
        self._steps_a_graph = steps_a_graph
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._kinds: dict[Hashable, _Kind] = {}
        self._num_graphs = 0

    def do_all(self, version: Hashable, counts: Sequence[int], step: Callable[[int], None]) -> None:
        """Do `step` on as many windows as each of `counts` says; steps with as many as the one before share a graph.

        `version` is that of the ring of windows, whose addresses a graph has, with whatever else the steps differ by.
        """
        for size, alike in itertools.groupby(counts):
            self.do((version, size), partial(step, size), len(list(alike)))

    def do(self, kind: Hashable, step: Callable[[], None], count: int) -> None:
        """Do `step` so often; `kind` names all that a captured step can't look up: addresses and shapes."""
        if self._side is None:
            for _ in range(count):
                step()
            return
        state = self._kinds.setdefault(kind, _Kind())
        while count:
            if state.done < STEPS_BEFORE:
                self._do_without(step)
                state.done, count = state.done + 1, count - 1
                continue
            size = self._steps_a_graph if count >= self._steps_a_graph else 1
            graph = state.graphs.get(size) or self._capture(state, step, size)
            if graph is not None:
                graph.replay()
            else:
                for _ in range(size):
                    self._do_without(step)
            count -= size

    def _do_without(self, step: Callable[[], None]) -> None:
        assert self._side is not None
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):  # gradients are added up on the stream where that was first done
            step()
        current.wait_stream(self._side)

    def _capture(self, state: _Kind, step: Callable[[], None], size: int) -> torch.cuda.CUDAGraph | None:
        """The graph of so many steps, which are not done by that; None where there are too many graphs already."""
        if self._num_graphs >= MOST_GRAPHS:
            return None
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that fills the next pool goes on asking for memory.
        with torch.cuda.graph(graph, stream=self._side, capture_error_mode="thread_local"):
            for _ in range(size):
                step()
        state.graphs[size] = graph
        self._num_graphs += 1
        return graph
