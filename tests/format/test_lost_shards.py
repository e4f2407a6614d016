"""A shard that vanished, or was cut, before the job's end."""

import pytest
from jobs import folder_bytes
from test_job import corpus, reference, unfinished_job  # noqa: F401 - fixtures

from shards import (
    InputError,
    convert,
)
from shards.layout import MANIFEST_NAME

pytestmark = pytest.mark.fast


def test_a_shard_that_vanished_is_made_again(corpus, reference, tmp_path):
    plan, source = unfinished_job(corpus, tmp_path / "out")
    (tmp_path / "out/shard-000000.tar").unlink()
    convert(plan, source, tmp_path / "out")
    assert folder_bytes(tmp_path / "out") == reference


def test_a_shard_that_was_truncated_is_not_merged(corpus, tmp_path):
    plan, source = unfinished_job(corpus, tmp_path / "out")
    path = tmp_path / "out/shard-000000.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(
        InputError, match=r"shard-000000\.tar: \d+ bytes, but \d+ were written; delete .*npz, run its task"
    ):
        convert(plan, source, tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
