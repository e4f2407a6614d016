"""A Dask cluster as the executor of a conversion: real worker processes, the same bytes, and its failures explained."""

import logging

import dask
import distributed
import pytest
from jobs import DeadlySource, file_of, folder_bytes, plan_of, stored, write_corpus

from shards import InputError, convert
from shards.layout import MANIFEST_NAME


@pytest.fixture(scope="module")
def client():
    """A client of a cluster of two processes; a task whose worker dies is not tried elsewhere."""
    options = {"distributed.scheduler.allowed-failures": 0, "distributed.comm.timeouts.connect": "30s"}
    with (
        dask.config.set(options),
        distributed.LocalCluster(
            2, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as nodes,
        distributed.Client(nodes) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("dask"))


def test_dask_workers_make_the_bytes_of_one_process(client, corpus, tmp_path):
    plan, source = plan_of(corpus)
    convert(plan, source, tmp_path / "one")
    convert(plan, source, tmp_path / "dask", executor=client.get_executor(pure=False), workers=2)
    assert folder_bytes(tmp_path / "dask") == folder_bytes(tmp_path / "one")


def test_a_mistake_on_a_dask_worker_reaches_the_user_and_a_rerun_completes(client, corpus, tmp_path):
    plan, source = plan_of(corpus)
    bad = file_of(source, stored(plan)[-1])
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-1])
    executor = client.get_executor(pure=False)
    try:
        with pytest.raises(InputError, match=rf"{bad.name}: truncated"):
            convert(plan, source, tmp_path / "out", executor=executor, workers=2)
    finally:
        bad.write_bytes(whole)
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    convert(plan, source, tmp_path / "out", executor=executor, workers=2)
    assert (tmp_path / "out" / MANIFEST_NAME).exists()


def test_a_dask_worker_that_is_killed_again_and_again_is_an_input_error(client, corpus, tmp_path):
    plan, source = plan_of(corpus)
    deadly = DeadlySource(source.db_path, source.ext, victim=stored(plan)[-1].key)
    executor = client.get_executor(pure=False)
    with pytest.raises(InputError, match=r"the executor failed: KilledWorker: .*run the same command again"):
        convert(plan, deadly, tmp_path / "out", executor=executor, workers=2)
    convert(plan, source, tmp_path / "out", executor=executor, workers=2)
    assert (tmp_path / "out" / MANIFEST_NAME).exists()


def test_a_client_that_is_closed_meanwhile_is_an_input_error(client, corpus, tmp_path):
    plan, source = plan_of(corpus)
    with distributed.Client(client.scheduler.address, set_as_default=False) as other:
        executor = other.get_executor(pure=False)
        with pytest.raises(InputError, match=r"the executor failed: (CancelledError|ClosedClientError)"):
            convert(plan, source, tmp_path / "out", lambda *_: other.close(), executor=executor, workers=2)
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
