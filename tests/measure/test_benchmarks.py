"""The benchmarks run, at toy size, and end in one line of JSON."""

import json
import os
import subprocess
import sys
import time

import gpu_results
import pytest
from benchmark_runs import BENCHMARKS, run_benchmark
from gpu_results import Campaign, Step

# What these measure is tested elsewhere: `spkid bench` train and resume in the report's tests, the arithmetic in test_simulate.
LONG = pytest.mark.long
TRAIN = ("--frames", 8000, "--speakers", 4, "--precision", "fp32", "--threads", 1)
SIMULATED = ("--frames", 20_000, "--speakers", 10, "--shuffle_windows", 8192)


@pytest.mark.parametrize(
    ("name", "arguments", "ratios"),
    [
        ("bench_shard.py", ("--utterances", 40, "--mean_frames", 30, "--repeats", 1), 4),
        pytest.param("bench_workers.py", ("--entries", 600, "--workers", 2), 1, marks=LONG),
        ("bench_audio.py", ("--minutes", 0.2, "--seconds", 1, "--repeats", 1), 2),
        pytest.param("bench_plan.py", ("--keys", 5000, "--tasks", 3, "--shards", 20, "--repeats", 1), 2, marks=LONG),
        pytest.param("bench_stream.py", ("--frames", 15_000, "--repeats", 1, "--peer_batches", 2), 4, marks=LONG),
        pytest.param(
            "bench_train.py",
            (*TRAIN, "--epoch", 1, "--batches", 10, "--plain_batches", 5, "--repeats", 1),
            2,
            marks=LONG,
        ),
        pytest.param(
            "bench_order.py",
            ("--windows", 10**6, "--ranks", 8, "--streams", 64, "--shuffle_windows", 4096, "--repeats", 1),
            5,
            marks=LONG,
        ),
        pytest.param(
            "bench_shared.py",
            ("--frames", 8000, "--speakers", 4, "--busy", 1, "--epoch", 1, "--repeats", 1),
            2,
            marks=LONG,
        ),
        pytest.param("bench_simulate.py", (*SIMULATED, "--processes", 1, "--repeats", 1, "--epochs", 1), 3, marks=LONG),
        pytest.param("bench_resume.py", ("--frames", 10_000, "--repeats", 1), 3, marks=LONG),
        pytest.param(
            "bench_score.py",
            ("--utterances", 40, "--mean_frames", 40, "--speakers", 5, "--peer_utterances", 5, "--repeats", 1),
            8,
            marks=LONG,
        ),
    ],
)
def test_a_benchmark_ends_in_json(name, arguments, ratios, tmp_path):
    result = run_benchmark(name, arguments, tmp_path)
    assert len(result["ratios"]) == ratios
    assert all(ratio > 0 for ratio in result["ratios"].values())
    assert {"cpu", "cores", "commit", "numpy"} <= result["machine"].keys()


def test_pools_larger_than_the_corpus_shuffle_as_a_permutation_of_all_windows_does(tmp_path):
    options = ("--utterances", 400, "--mean_frames", 100, "--batches", 20, "--shuffle_windows", 4096, 65536)
    result = run_benchmark("bench_shuffle.py", options, tmp_path)
    uniform, small, whole = result["rows"].values()
    assert abs(whole["utterances"] / uniform["utterances"] - 1) < 0.03
    assert abs(whole["speakers_chi2"] - uniform["speakers_chi2"]) < 0.4
    assert abs(whole["overlapping"] / uniform["overlapping"] - 1) < 0.15
    # Pools of an eighth of the windows still mix a batch out of what they hold: about an eighth of the utterances and more,
    # since a stream's pool begins and ends within one.
    assert small["utterances"] > uniform["utterances"] / 8


@LONG
def test_recipes_are_compared_by_their_wrong_utterances(tmp_path):
    sizes = ("--num_speakers", 3, "--train_utterances", 2, "--test_utterances", 4, "--mean_frames", 40, "--epoch", 1)
    recipes = ("--recipe", "defaults", "--recipe", "cheap")
    result = run_benchmark("recipes.py", (*sizes, *recipes, "--list", "test"), tmp_path)
    assert list(result["wrong"]) == ["channels", "one_channel"]
    for found in result["wrong"].values():
        assert list(found) == ["defaults", "cheap"]
        assert all(0 <= wrong <= 6 for files in found.values() for (wrong,) in files.values())


@LONG
def test_a_calibration_is_measured_on_utterances_that_it_has_not_seen(tmp_path):
    sizes = ("--num_speakers", 4, "--train_utterances", 4, "--test_utterances", 8, "--mean_frames", 40, "--epoch", 1)
    (run,) = run_benchmark("bench_calibration.py", (*sizes, "--unknown", 1), tmp_path)["runs"]
    assert run["utterances"] == 12
    assert set(run["scores"]) == {"summed", "mean", "calibrated", "mean log-probability, no ratio"}
    assert run["open_set"]["false_acceptances"]["total"] == 4


def test_programs_of_plain_torch_for_a_gpu_run_on_a_cpu():
    options = ["--batch_size", 16, "--frames", 200, "--seconds", 0.01, "--only", "loader-0", "plain", "graphs"]
    command = [sys.executable, BENCHMARKS / "gpu_peers.py", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [row["name"] for row in rows] == ["loader-0", "plain", "graphs"]
    assert all(row["windows_per_second"] > 0 for row in rows)


@pytest.mark.long  # the shares of it: test_programs_of_plain_torch_for_a_gpu_run_on_a_cpu, and tests of the engines
def test_the_gpu_benchmark_runs_every_step_and_says_what_falls_short(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable}
    command = ["bash", BENCHMARKS / "gpu.sh", tmp_path, "--toy"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 1  # a CPU is no GPU
    assert not [name for name, step in result["steps"].items() if "failed" in step], done.stdout
    assert {row["engine"] for row in result["engines"] if "streamed" in row} == {"fused", "graph", "eager"}
    assert "| fused, batch 1,000 | missing (not reached) | ≥ 25.0 M |" in (tmp_path / "results.md").read_text()


def test_a_step_that_fails_or_has_no_time_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(
        gpu_results, "steps", lambda *_: [Step("bad", ["-c", "raise SystemExit(3)"], 30), Step("late", [], 60)]
    )
    campaign = Campaign(tmp_path, toy=True, ends=time.monotonic() + 20)
    for step in gpu_results.steps():
        campaign.run(step)
        campaign.ends = 0.0
    assert {name: outcome["failed"] for name, outcome in campaign.outcomes.items()} == {
        "bad": "ended with 3",
        "late": "no time was left",
    }
    result = gpu_results.collect(campaign)
    assert not any(row["reached"] for row in result["asked"])
    assert "- bad: ended with 3\n- late: no time was left" in gpu_results.table(result)
