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


def test_recipes_are_compared_by_their_wrong_utterances(tmp_path):
    sizes = ("--num_speakers", 3, "--train_utterances", 2, "--test_utterances", 4, "--mean_frames", 40, "--epoch", 1)
    recipes = ("--recipe", "defaults", "--recipe", "utterance, batch_norm")
    command = [sys.executable, "-W", "ignore", BENCHMARKS / "recipes.py", *map(str, sizes), *recipes, "--list", "test"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "wrong of 6: [" in done.stdout
    result = json.loads(done.stdout.splitlines()[-1])
    assert list(result["wrong"]) == ["defaults", "utterance, batch_norm"]
    assert all(0 <= wrong <= 6 for (wrong,) in result["wrong"].values())
