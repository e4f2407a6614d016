"""The report of `spkid bench`: the slowest stage, the advice, the table."""

import dataclasses

import pytest
from test_bench import config

from spkid_dist.bench.plots import draw_report
from spkid_dist.bench.report import HEADINGS, explain_shares, find_bottleneck, make_table
from spkid_dist.bench.rows import (
    ALONE,
    CACHED,
    LIMITS,
    POOLS,
    SCALING,
    SCORE,
    SHARD,
    STACK,
    STAGES,
    TRAIN,
    Row,
    make_row,
)

pytestmark = pytest.mark.fast


def row(stage, windows_rate, share=0.5, **changes):
    values = {
        "stage": stage,
        "name": stage,
        "on_path": True,
        "windows_rate": windows_rate,
        "rate": windows_rate,
        "low": windows_rate,
        "high": windows_rate,
        "unit": "windows/s",
    }
    limits = {"limit": "a limit", "limit_rate": windows_rate / share, "share": share}
    return Row(**(values | limits | changes))


def verdict(rows, device="cpu", **changes):
    return find_bottleneck(rows, config("report", **changes), device, 1)


def test_the_slowest_stage_on_the_path_is_the_bottleneck():
    rows = [row(SHARD, 6e6), row(POOLS, 2e6), row(STACK, 3e6), row(TRAIN, 4e6), row(SCORE, 5e6)]
    found = verdict(rows)
    assert found.row is rows[1]
    assert found.margin == pytest.approx(1.5)
    beside = dataclasses.replace(row(TRAIN, 1e3), on_path=False)
    assert verdict([*rows, beside]).row is rows[1]
    assert verdict([beside]) is None


@pytest.mark.parametrize(
    ("stage", "share", "change"),
    [
        (SHARD, 0.4, "--workers"),
        (SHARD, 0.9, "a faster disk"),
        (POOLS, 0.4, "--shuffle_windows"),
        (POOLS, 0.9, "--dtype float16"),
        (STACK, 0.4, "more processes"),
        (STACK, 0.9, "faster memory"),
        (TRAIN, 0.1, "a larger --batch_size"),
        (TRAIN, 0.9, "a GPU"),
        (SCORE, 0.4, "--workers"),
        (SCORE, 0.9, "a GPU"),
    ],
)
def test_the_advice_is_of_the_stage_and_of_how_near_its_limit_is(stage, share, change):
    found = verdict([row(stage, 1e5, share), *(row(other, 1e6) for other in STAGES[1:6] if other != stage)])
    assert found.row.stage == stage
    assert change in found.advice


def test_bf16_is_advised_where_its_products_are_faster():
    products = [
        Row(stage=LIMITS, name=f"matrix products, {kind}", rate=rate, low=rate, high=rate, unit="FLOP/s")
        for kind, rate in (("fp32", 1e12), ("bf16", 4e12))
    ]
    assert (
        "--mixed_precision bf16: its matrix products are 4.0 times as fast"
        in verdict([row(TRAIN, 1e5), *products]).advice
    )
    assert "bf16" not in verdict([row(TRAIN, 1e5), *products], mixed_precision="bf16").advice
    assert "bf16" not in verdict([row(TRAIN, 1e5)]).advice


def test_threads_that_wait_for_one_another_are_blamed_before_the_step():
    steps = row(TRAIN, 1e4, 0.02, name=CACHED)
    one = row(TRAIN, 9e4, name=ALONE, on_path=False)
    advice = verdict([steps, one]).advice
    assert advice.startswith(
        "OMP_NUM_THREADS=1, or a machine that nothing else uses: 1 thread takes the steps 9.0 times"
    )
    assert "--batch_size" not in advice
    assert "a larger --batch_size" in verdict([steps, row(TRAIN, 0.9e4, name=ALONE, on_path=False)]).advice
    assert "OMP_NUM_THREADS" not in verdict([row(SHARD, 1e3), steps, one]).advice  # not the bottleneck


def test_cpus_without_a_thread_are_named():
    found = find_bottleneck([row(TRAIN, 1e4)], config("report"), "cpu", 1, idle_cpus=15)
    assert found.advice.startswith("more threads (OMP_NUM_THREADS): 15 CPU(s) of this machine have none; ")


def test_more_processes_are_advised_where_trainings_scaled():
    scaled = row(SCALING, 1.8e5, 0.9, name="training by 2 processes", on_path=False)
    assert "more processes" in verdict([row(TRAIN, 1e5), scaled]).advice
    assert "more processes" not in verdict([row(TRAIN, 1e5), dataclasses.replace(scaled, share=0.5)]).advice


def test_a_share_is_the_median_of_the_rounds_and_seconds_are_better_the_fewer():
    found = make_row(
        STACK, "case", "windows/s", [1.0, 2.0, 6.0], limit=("limit", [2.0, 8.0, 8.0]), windows_per_unit=10.0
    )
    assert (found.rate, found.low, found.high, found.windows_rate) == (2.0, 1.0, 6.0, 20.0)
    assert (found.share, found.limit_rate) == (0.5, 8.0)
    assert make_row(STACK, "case", "s", [4.0], limit=("limit", [1.0])).share == 0.25


def test_the_columns_of_the_table_are_aligned():
    lines = make_table([row(SHARD, 1234.0), row(TRAIN, 5.23e6, 1.0)])
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == list(HEADINGS)
    assert "5.23 M" in lines[-1]
    assert "100%" in lines[-1]


def test_shares_above_the_limit_are_marked_and_explained():
    rows = [
        row(SHARD, 1.0, 2.5, name="2 workers", limit="tar cf"),
        row(SHARD, 1.0, 1.5, name="1 process", limit="tar cf"),
        row(TRAIN, 1.0, 1.0, limit="the step, one cached batch"),
        row(SCALING, 1.0, 1.2, name="training by 2 processes", limit="2 times 1 process"),
    ]
    shares = [line.split("|")[8].strip() for line in make_table(rows)[2:]]
    assert shares == ["250% *", "150% *", "100%", "120% *"]
    of_tar, of_scaling = explain_shares(rows)
    assert of_tar.startswith("* more than 100 % of tar cf (2 workers, 1 process): tar reads and writes by one process")
    assert of_scaling.startswith("* more than 100 % of 2 times 1 process (training by 2 processes): ")
    assert explain_shares([row(SHARD, 1.0, 1.004)]) == []


def test_nothing_is_drawn_of_limits_alone():
    limit = Row(stage=LIMITS, name="copying", rate=1.0, low=1.0, high=1.0, unit="B/s")
    assert draw_report([limit]) is None
    assert draw_report([limit, row(SHARD, 1e3)]).startswith(b"\x89PNG")
