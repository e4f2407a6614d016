"""Shares of a job: given, or found from the scheduler; disjoint and complete."""

import pytest

from shards import (
    UsageError,
)
from shards.conversion.tasks import TaskShare, parse_share

pytestmark = pytest.mark.fast

SLURM_STEP = {"SLURM_PROCID": "2", "SLURM_NTASKS": "8"}
SLURM_ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2"}


@pytest.mark.parametrize(
    ("text", "environment", "share"),
    [
        ("0/1", {}, (0, 1)),
        ("3/8", SLURM_STEP, (3, 8)),
        ("auto", SLURM_STEP, (2, 8)),
        ("auto", SLURM_STEP | SLURM_ARRAY | {"SLURM_ARRAY_TASK_COUNT": "4"}, (2, 4)),
        ("auto/5", {"JOB_COMPLETION_INDEX": "4"}, (4, 5)),
    ],
)
def test_a_share_is_given_or_found(text, environment, share):
    assert parse_share(text, environment) == TaskShare(*share)


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("5/3", {}, r"--task 5/3: task 5 of 3: expected i from 0 to 2"),
        ("3/3", {}, r"task 3 of 3"),
        ("0/0", {}, r"task 0 of 0"),
        ("-1/3", {}, r"--task -1/3: expected i/N"),
        ("2", {}, r"--task 2: expected i/N"),
        ("auto", {}, r"found none of SLURM_ARRAY_TASK_ID"),
        ("auto", {"JOB_COMPLETION_INDEX": "4"}, r"give --task auto/N"),
        ("auto/3", {"JOB_COMPLETION_INDEX": "4"}, r"task 4 of 3"),
    ],
)
def test_a_share_that_can_not_be_is_refused(text, environment, message):
    with pytest.raises(UsageError, match=message):
        parse_share(text, environment)


@pytest.mark.parametrize("count", [1, 3, 10, 20])
def test_shares_are_disjoint_and_complete(count):
    shards = [shard for index in range(count) for shard in TaskShare(index, count).shards(10)]
    assert shards == list(range(10))
