"""The benchmarks run, at toy size, and end in one line of JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    ("name", "arguments", "ratios"),
    [
        ("bench_shard.py", ("--utterances", 40, "--mean_frames", 30, "--repeats", 1), 2),
        ("bench_plan.py", ("--keys", 5000, "--tasks", 3, "--shards", 20, "--repeats", 1), 2),
        ("bench_stream.py", ("--frames", 15_000, "--repeats", 1, "--peer_batches", 2), 4),
    ],
)
def test_a_benchmark_ends_in_json(name, arguments, ratios, tmp_path):
    command = [sys.executable, "-W", "ignore", BENCHMARKS / name, *map(str, arguments)]
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["ratios"]) == ratios
    assert all(ratio > 0 for ratio in result["ratios"].values())
    assert {"cpu", "cores", "commit", "numpy"} <= result["machine"].keys()
