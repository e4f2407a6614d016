"""Compile the kernels of the fused step for an H100 (sm_90), without a GPU: registers, spills, shared memory.

python benchmarks/fused_compile.py [--cases classic] [--only tile layered] [--matmul tf32x3 tf32 bf16] [--results FILE]

Each case is a network and a batch; its kernels are those that `FusedStep` would launch, with the sizes of the plan's table.
A row per kernel; the last line is JSON with the worst of all. Exit code 1 where a kernel spills registers or takes more shared
memory than a program may have.
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from spkid_dist.training.fused.plan import FusedPlan
from spkid_dist.training.fused.step import FusedStep, RingTensors, StepTable

TARGET = GPUTarget("cuda", 90, 32)
MOST_SHARED = 227 * 1024  # bytes a program may take on an H100 or H200
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
}
CASES: dict[str, dict[str, Any]] = {
    "classic": {},
    "classic, normalised, smoothed, bfloat16 frames": {
        "normalize_global": True, "label_smoothing": 0.1, "arena_dtype": torch.bfloat16, "optimizer": "adamw",
        "weight_decay": 0.01,
    },
    "1 layer of 20": {"hsize": 20, "num_layers": 1, "num_speakers": 20, "optimizer": "sgd", "momentum": 0.9},
    "4 layers, D = 80, 400 speakers": {"inputs": 1680, "num_features": 80, "num_layers": 4, "num_speakers": 400},
    "5,994 speakers": {"num_speakers": 5994},
    "512 units, D = 80, 5,994 speakers": {"inputs": 1680, "num_features": 80, "hsize": 512, "num_speakers": 5994},
    "300 units, 100,000 speakers": {"hsize": 300, "num_speakers": 100_000, "label_smoothing": 0.1},
}  # fmt: skip
BATCHES = (1_000, 8_192, 65_536)
Launch = tuple[str, dict[str, str], dict[str, Any], dict[Any, Any], dict[str, Any]]


def launches(plan: FusedPlan) -> list[Launch]:
    """Kernels of a step of one process, then of one of several: name, signature, constants, attributes, options."""
    found: list[Launch] = []

    def note(kernel: Any, *values: Any, grid: Any, warmup: bool, **named: Any) -> None:  # noqa: ARG001
        found.append(specialised(kernel, values, named))

    run, JITFunction.run = JITFunction.run, note
    try:
        parameters = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in plan.shapes]
        step, table = FusedStep(plan, parameters, "meta"), StepTable.empty(20, "meta")
        places = torch.empty(2, 1 << 20, dtype=torch.int32, device="meta")
        arena = torch.empty(1 << 20, plan.num_features, dtype=plan.arena_dtype, device="meta")
        step.forward_backward(RingTensors(arena, *places), table)
        step.update(table, reduced=False)
        step.reduce_gradient()
        step.update(table, reduced=True)
    finally:
        JITFunction.run = run
    return found


def specialised(kernel: Any, values: tuple[Any, ...], named: dict[str, Any]) -> Launch:
    """As Triton's launcher does it: an argument of 1 is a constant, and what 16 divides is known to be so."""
    options = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
    given = dict(zip(kernel.arg_names, values, strict=False)) | named
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        value = given[name]
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
            divisible = value.storage_offset() * value.itemsize % 16 == 0
        elif name in named or value == 1:
            signature[name], constants[name], divisible = "constexpr", value, False
        else:
            signature[name], divisible = "i32", value % 16 == 0
        if divisible:
            attributes[(position,)] = [["tt.divisibility", 16]]
    module = kernel.fn.__module__.rpartition(".")[2]
    return f"{module}.{kernel.fn.__name__}", signature, constants, attributes, options


def measured(launch: Launch) -> dict[str, Any]:
    """Compile a kernel: registers a thread, bytes spilled a thread, bytes of shared memory a program."""
    name, signature, constants, attributes, options = launch
    module, _, function = name.partition(".")
    kernel = getattr(__import__(f"spkid_dist.training.fused.{module}", fromlist=[function]), function)
    row: dict[str, Any] = {"kernel": function, **options, "registers": None, "spilled_bytes": None}
    try:
        compiled = triton.compile(ASTSource(kernel, signature, constants, attributes), target=TARGET, options=options)
    except (RuntimeError, triton.errors.TritonError) as error:
        return row | {"shared_bytes": None, "error": str(error)[-200:]}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    return row | {
        "registers": numbers["REG"],
        "spilled_bytes": numbers["STACK"] + numbers["LOCAL"],
        "shared_bytes": compiled.metadata.shared,
    }


def plans(cases: Iterable[str], paths: list[str], matmuls: list[str]) -> Iterator[tuple[str, FusedPlan]]:
    """The cases asked for, by their names."""
    for name, rows, matmul in itertools.product(cases, BATCHES, matmuls):
        classic = {"inputs": 420, "num_features": 20, "num_speakers": 157, "rows": rows, "matmul": matmul}
        plan = FusedPlan(**(classic | CASES[name]))
        if plan.path in paths:
            yield name, plan


def main() -> int:
    """Compile all, print and keep the rows; 1 where one does not fit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE", help="networks")
    parser.add_argument("--only", nargs="+", default=["tile", "layered"], help="paths")
    parser.add_argument("--matmul", nargs="+", default=["tf32x3", "tf32", "bf16"], help="precisions")
    parser.add_argument("--processes", type=int, default=1, help="that compile side by side")
    parser.add_argument("--results", type=Path, help="a file for the rows")
    options = parser.parse_args()
    asked: dict[str, tuple[dict[str, Any], Launch]] = {}
    for name, plan in plans(options.cases, options.only, options.matmul):
        for launch in launches(plan):
            asked.setdefault(repr(launch), ({"case": name, "rows": plan.rows, "matmul": plan.matmul}, launch))
    rows = []
    with ProcessPoolExecutor(options.processes) as pool:
        compiled = pool.map(measured, [launch for _, launch in asked.values()])
        for (case, _), row in zip(asked.values(), compiled, strict=True):
            rows.append(case | row)
            print(*rows[-1].values(), sep="  ", flush=True)
    bad = [row for row in rows if row["spilled_bytes"] != 0 or row["shared_bytes"] > MOST_SHARED]
    worst = {key: max(row[key] or 0 for row in rows) for key in ("registers", "spilled_bytes", "shared_bytes")}
    summary = {"target": "sm_90", "triton": triton.__version__, "kernels": len(rows), "bad": len(bad), **worst}
    if options.results:
        lines = ",\n".join(json.dumps(row) for row in rows)
        options.results.write_text(json.dumps(summary)[:-1] + f', "rows": [\n{lines}\n]}}\n')
    print(json.dumps(summary))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
