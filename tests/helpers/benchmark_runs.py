"""Benchmarks run as people run them."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_benchmark(name, arguments, folder):
    """The JSON of a benchmark's last line."""
    command = [sys.executable, "-W", "ignore", BENCHMARKS / name, *map(str, arguments)]
    environment = os.environ | {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
