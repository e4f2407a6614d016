"""The fused step equals torch in float64; without a GPU its kernels run in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from shards.errors import UsageError
from spkid_dist.training.fused.plan import FusedPlan, fused_hindrance

pytest.importorskip("triton")
import fused_compile

from spkid_dist.training.fused.step import FusedStep, RingTensors, StepTable

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# numpy, which runs kernels without a GPU, warns where a GPU is silent
pytestmark = [pytest.mark.device, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 1e-5 if DEVICE == "cuda" else 2e-6  # tf32x3; the interpreter multiplies float32
D, C, FRAMES, T, ROWS, RATE = 4, 3, 60, 50, 20, 0.01
MEAN, STD = torch.tensor([0.5, -0.2, 0.0, 0.1]), torch.tensor([0.5, 2.0, 1.0, 0.7])


def make_ring(num_speakers: int, dtype: torch.dtype = torch.float32) -> RingTensors:
    draw = torch.Generator().manual_seed(1)
    arena = torch.randn(FRAMES, D, generator=draw).to(dtype)
    starts = torch.randint(0, FRAMES - C, (T,), generator=draw, dtype=torch.int32)
    labels = torch.randint(0, num_speakers, (T,), generator=draw, dtype=torch.int32)
    return RingTensors(arena.to(DEVICE), starts.to(DEVICE), labels.to(DEVICE))


def make_table(counts: list[int]) -> StepTable:
    """Steps of these windows, one after the other from place 7 on, round the ring."""
    table = StepTable.empty(len(counts), DEVICE)
    begins = [7 + sum(counts[:step]) for step in range(len(counts))]
    table.first.copy_(torch.tensor([begin % T for begin in begins]))
    table.count.copy_(torch.tensor(counts))
    table.rate.copy_(torch.tensor([RATE * (1 + step / 7) for step in range(len(counts))]))
    table.weight.fill_(1 / ROWS)
    return table


def make_plan(**changes) -> FusedPlan:
    sizes = {"inputs": C * D, "num_features": D, "num_speakers": 7, "rows": ROWS, "hsize": 20, "num_layers": 2}
    return FusedPlan(**(sizes | changes))


def make_parameters(plan: FusedPlan) -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(2)
    return [
        torch.nn.Parameter((0.6 * torch.randn(shape, generator=draw) * shape[-1] ** -0.5).to(DEVICE))
        for shape in plan.shapes
    ]


class Reference:
    """The same steps by torch in float64."""

    def __init__(self, plan: FusedPlan) -> None:
        self.plan = plan
        self.parameters = [torch.nn.Parameter(p.detach().double()) for p in make_parameters(plan)]
        self.optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[plan.optimizer](
            self.parameters, weight_decay=plan.weight_decay, **({"momentum": plan.momentum} if plan.optimizer == "sgd" else {})
        )  # fmt: skip
        self.losses: list[float] = []
        self.right = 0

    def step(self, ring: RingTensors, table: StepTable, step: int) -> None:
        plan = self.plan
        p = (int(table.first[step]) + torch.arange(int(table.count[step]), device=DEVICE)) % T
        frames = ring.starts[p].long()[:, None] + torch.arange(C, device=DEVICE)
        x, y = ring.arena[frames].double(), ring.labels[p].long()
        if plan.normalize_global:
            x = (x - MEAN.to(DEVICE)) / STD.to(DEVICE)
        x = x.flatten(1)
        for layer in range(plan.num_layers):
            x = functional.relu(functional.linear(x, *self.parameters[2 * layer : 2 * layer + 2]))
        logits = functional.linear(x, *self.parameters[-2:])
        loss = functional.cross_entropy(logits, y, reduction="sum", label_smoothing=plan.label_smoothing)
        self.losses.append(loss.item())
        self.right += int((logits.argmax(1) == y).sum())
        self.optimizer.zero_grad()
        (loss * float(table.weight[step])).backward()
        if plan.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, plan.clip_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = float(table.rate[step])
        self.optimizer.step()


def run(plan: FusedPlan, ring: RingTensors, table: StepTable, reduced: bool = False) -> FusedStep:
    fused = FusedStep(plan, make_parameters(plan), DEVICE)
    fused.set_moments(MEAN, STD)
    for _ in range(len(table.count)):
        fused.forward_backward(ring, table)
        if reduced:
            fused.reduce_gradient()
        fused.update(table, reduced=reduced)
    return fused


def reference_of(plan: FusedPlan, ring: RingTensors, table: StepTable) -> Reference:
    reference = Reference(plan)
    for step in range(len(table.count)):
        reference.step(ring, table, step)
    return reference


def assert_equal(fused: FusedStep, table: StepTable, reference: Reference, tolerance: float) -> None:
    """Weights by what they moved, losses, and what the table sums."""
    want = torch.cat([p.detach().flatten() for p in reference.parameters])
    moved = want - torch.cat([p.detach().flatten() for p in make_parameters(fused.plan)])
    assert (fused.weights.double() - want).norm() / moved.norm() < tolerance
    losses = torch.tensor(reference.losses, dtype=torch.float64)
    torch.testing.assert_close(table.losses.double().cpu(), losses, rtol=tolerance, atol=1e-5)
    loss, right, windows = table.sums.tolist()
    assert loss == pytest.approx(losses.sum().item(), rel=tolerance)
    assert windows == int(table.count.sum())
    assert right == reference.right or tolerance > 1e-3


COUNTS = [ROWS, 13, ROWS, 0, ROWS]  # the ring's end is in the third step

CASES = {
    "classic": {"num_layers": 3},
    "one layer": {"num_layers": 1},
    "four layers": {"num_layers": 4},
    "one unit": {"hsize": 1},
    "100 units": {"hsize": 100},
    "130 units": {"hsize": 130, "num_layers": 1},
    "layered": {"hsize": 130, "num_layers": 3, "label_smoothing": 0.1, "normalize_global": True},
    "speakers of several tiles": {"num_speakers": 300, "label_smoothing": 0.1},
    "speakers of several parts": {"num_speakers": 600, "label_smoothing": 0.1},
    "two speakers": {"num_speakers": 2},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "adam with decay": {"weight_decay": 0.1},
    "sgd": {"optimizer": "sgd"},
    "momentum and decay": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    "clipped from the second step on": {"clip_grad_norm": 0.3, "optimizer": "sgd"},
    "label smoothing": {"label_smoothing": 0.2},
    "normalised": {"normalize_global": True},
    "float16 frames": {"arena_dtype": torch.float16},
    "bfloat16 frames": {"arena_dtype": torch.bfloat16},
}


@pytest.mark.parametrize(("case", "reduced"), [*((case, False) for case in CASES), ("classic", True)])
def test_steps_equal_float64(case, reduced):
    plan = make_plan(**CASES[case])
    counts = {"classic": COUNTS, "layered": [ROWS, 0, 13]}.get(case, COUNTS[:3])
    ring, table = make_ring(plan.num_speakers, plan.arena_dtype), make_table(counts)
    if plan.optimizer == "sgd":
        table.rate.mul_(30)  # else rounding of the weights is a large part of what they move
    fused = run(plan, ring, table, reduced)
    assert_equal(fused, table, reference_of(plan, ring, table), TOLERANCE)
    assert int(table.cursor) == len(counts) and int(fused.bad) == 0 and float(fused.steps) == len(counts)


@pytest.mark.parametrize(
    ("matmul", "hsize", "tolerance"), [("tf32", 20, 0.005), ("bf16", 20, 0.03), ("bf16", 130, 0.03)]
)
def test_coarser_products_are_near_float64(matmul, hsize, tolerance):
    plan = make_plan(matmul=matmul, hsize=hsize, optimizer="sgd")
    ring, table = make_ring(plan.num_speakers), make_table(COUNTS[:3])
    fused = run(plan, ring, table)
    assert_equal(fused, table, reference_of(plan, ring, table), tolerance)


def test_chunks_of_speakers_join(monkeypatch):
    monkeypatch.setattr("spkid_dist.training.fused.plan.CHUNK_VALUES", 1)
    plan = make_plan(num_speakers=1100, rows=ROWS, num_layers=1)
    assert plan.chunk == 1024
    ring, table = make_ring(plan.num_speakers), make_table(COUNTS[:2])
    assert_equal(run(plan, ring, table), table, reference_of(plan, ring, table), TOLERANCE)


@pytest.mark.gpu
def test_a_graph_of_steps_has_the_bits_of_the_steps():
    plan, ring = make_plan(), make_ring(7)
    want = run(plan, ring, make_table(COUNTS)).weights
    fused, table = FusedStep(plan, make_parameters(plan), DEVICE), make_table(COUNTS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in COUNTS:
            fused.forward_backward(ring, table)
            fused.update(table, reduced=False)
    graph.replay()
    assert torch.equal(fused.weights, want)


@pytest.mark.parametrize("sizes", [{}, {"hsize": 130, "num_layers": 1}], ids=["tile", "layered"])
def test_the_same_steps_have_the_same_bits(sizes):
    plan, ring = make_plan(**sizes), make_ring(7)
    first, again = (run(plan, ring, make_table(COUNTS[:2])).weights for _ in range(2))
    assert torch.equal(first, again)


LAYERED = {"hsize": 130, "num_layers": 1}


@pytest.mark.parametrize(
    ("sizes", "reduced", "value"),
    [
        ({}, False, "nan"),
        ({}, True, "nan"),
        ({}, False, "inf"),
        ({"clip_grad_norm": 1.0}, False, "nan"),
        (LAYERED, True, "nan"),
    ],
)
def test_a_loss_that_is_not_finite_stops_all_movement(sizes, reduced, value):
    plan, ring = make_plan(**sizes), make_ring(7)
    table = make_table([ROWS, ROWS, 9])
    ring.starts[27] = FRAMES - C  # read by the second step alone
    ring.starts[:27].clamp_(max=FRAMES - C - C)
    ring.starts[28:].clamp_(max=FRAMES - C - C)
    want = run(plan, ring, make_table([ROWS]), reduced)
    ring.arena[FRAMES - C] = float(value)
    fused = run(plan, ring, table, reduced)
    assert int(fused.bad) == 1 and float(fused.steps) == 1 and int(table.cursor) == 3
    assert torch.equal(fused.weights, want.weights)
    assert all(torch.equal(fused.state[name], want.state[name]) for name in want.state)
    assert table.losses.isfinite().tolist() == [True, False, False]
    assert bool(table.losses[2:].isnan().all())


def test_a_gradient_of_another_rank_that_is_not_finite_stops_all_movement():
    plan, ring, table = make_plan(), make_ring(7), make_table([ROWS])
    fused = FusedStep(plan, make_parameters(plan), DEVICE)
    before = fused.weights.clone()
    fused.forward_backward(ring, table)
    fused.reduce_gradient()
    fused.gradient += torch.nan  # as the all-reduce brings it
    fused.update(table, reduced=True)
    assert int(fused.bad) == 1 and float(fused.steps) == 0
    assert torch.equal(fused.weights, before)
    assert bool(table.losses.isfinite().all())  # the other rank's show it


@pytest.mark.parametrize("hsize", [20, 130])
def test_a_gradient_that_is_not_finite_becomes_so_everywhere(hsize):
    plan, ring, table = make_plan(hsize=hsize), make_ring(7), make_table([ROWS])
    table.weight.fill_(float("inf"))  # the loss stays finite
    fused = FusedStep(plan, make_parameters(plan), DEVICE)
    fused.forward_backward(ring, table)
    fused.reduce_gradient()
    assert int(fused.bad) == 1 and bool(fused.gradient.isnan().all())
    fused.update(table, reduced=True)
    assert bool(table.losses.isnan().all()) and float(fused.steps) == 0


def test_scratch_bytes_are_those_that_are_taken():
    for sizes in ({}, {"hsize": 130}, {"num_speakers": 600, "matmul": "bf16"}):
        plan = make_plan(**sizes)
        fused = FusedStep(plan, make_parameters(plan), DEVICE)
        tensors = [value for name, value in vars(fused).items() if isinstance(value, torch.Tensor)]
        known = (fused.weights, fused.gradient, fused.steps, fused.bad, fused._mean, fused._inverse_std, fused._current)
        scratch = [tensor for tensor in tensors if not any(tensor is other for other in known)]
        assert plan.scratch_bytes == sum(tensor.nbytes for tensor in scratch)


def test_the_logits_of_many_speakers_are_not_kept():
    plan = FusedPlan(inputs=420, num_features=20, num_speakers=100_000, rows=65_536, matmul="bf16")
    assert plan.scratch_bytes < 65_536 * 100_000 * 2 / 8


def test_partial_sums_of_many_speakers_are_few():
    plan = FusedPlan(inputs=420, num_features=20, num_speakers=100_000, rows=65_536, hsize=512, matmul="bf16")
    assert plan.scratch_bytes < 2 << 30


def test_more_speakers_than_places_are_refused():
    with pytest.raises(
        UsageError, match="--engine fused: 2097153 speakers, expected 2097152 or less; give --engine graph"
    ):
        make_plan(num_speakers=(1 << 21) + 1)


def test_compiled_kernels_are_of_the_table_and_spill_nothing():
    for row in json.loads((BENCHMARKS / "results" / "fused_sm90.json").read_text())["rows"]:
        classic = {"inputs": 420, "num_features": 20, "num_speakers": 157, "rows": row["rows"], "matmul": row["matmul"]}
        plan = FusedPlan(**(classic | fused_compile.CASES[row["case"]]))
        layered = ("first_layer", "next_layer", "layer_gradient")
        tiles = {"tile_step": plan.tile, "weight_gradients": plan.weight, "speaker_weight_gradients": plan.weight}
        tiles |= dict.fromkeys(layered, plan.layer) | {"speaker_sums": plan.log_sum, "speaker_gradient": plan.logits}
        if row["kernel"] in tiles:
            used = tiles[row["kernel"]]
            assert (row["num_warps"], row["num_stages"]) == (used.warps, used.stages), row
        assert row["spilled_bytes"] == 0 and row["shared_bytes"] <= fused_compile.MOST_SHARED


@pytest.mark.long  # compiles for GPUs
def test_kernels_compile_for_a_gpu_without_one():
    command = [sys.executable, BENCHMARKS / "fused_compile.py", "--cases", "1 layer of 20", "--matmul", "bf16"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["spilled_bytes"] == 0


def test_what_the_fused_step_lacks_is_named():
    assert fused_hindrance() is None
    assert fused_hindrance(activation="gelu") == "--activation gelu"
    assert fused_hindrance(hsize=513) == "--hsize 513, above 512"
    assert fused_hindrance(dropout=0.1, mixed_precision="bf16") == "--dropout 0.1"
    assert fused_hindrance(mixed_precision="fp16") == "--mixed_precision fp16"
