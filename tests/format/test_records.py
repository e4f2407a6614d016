"""Records and notes of a job that are damaged, or of another job, are refused."""

import io
import json
import zipfile

import numpy as np
import pytest
from jobs import plan_of
from test_job import corpus, unfinished_job  # noqa: F401 - a fixture

from shards import (
    InputError,
    claim_folder,
    merge,
)
from shards.conversion.folder import LocalFolder
from shards.conversion.job import convert_shard
from shards.conversion.record import ShardRecord, record_name
from shards.layout import BLOCK_DTYPE, MANIFEST_NAME

pytestmark = pytest.mark.fast


def test_records_that_are_not_of_the_job_are_refused(corpus, tmp_path):
    plan, source = plan_of(corpus)
    out = tmp_path / "out"
    claim_folder(plan.job, LocalFolder(out))
    for shard in range(plan.job.num_shards):
        convert_shard(plan.task(shard), source, LocalFolder(out))
    extra = out / record_name(plan.job.num_shards)
    extra.write_bytes((out / record_name(0)).read_bytes())
    with pytest.raises(InputError, match=r"a record of a shard that this job of \d+ shards lacks"):
        merge(LocalFolder(out))
    extra.unlink()
    whole = (out / record_name(1)).read_bytes()
    (out / record_name(1)).write_bytes(whole[:-40])
    with pytest.raises(InputError, match=r"shard-000001\.npz: this record is damaged"):
        merge(LocalFolder(out))
    other, _ = plan_of(corpus, seed=1)
    data = (out / record_name(0)).read_bytes()
    record = ShardRecord.parse(data, "0", plan.job.identity)
    with pytest.raises(InputError, match=r"a record of job .*expected"):
        ShardRecord.parse(data, "0", other.job.identity)
    assert record.info.name == "shard-000000.tar"
    assert not (out / MANIFEST_NAME).exists()


def rewritten(data, **members):
    """The .npz file `data` with some members' bytes exchanged."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, old in contents.items():
            archive.writestr(name, members.get(name.removesuffix(".npy"), old))
    return buffer.getvalue()


def npy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def lying_header(rows):
    buffer = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(BLOCK_DTYPE), "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


DAMAGED_RECORDS = {
    "an empty file": lambda _: b"",
    "text": lambda _: b"nothing of the kind",
    "a header that asks for terabytes": lambda data: rewritten(data, blocks=lying_header(10**12)),
    "blocks of another type": lambda data: rewritten(data, blocks=npy_bytes(np.ones(3))),
    "blocks that are missing": lambda data: rewritten(data, blocks=npy_bytes(np.zeros(0, BLOCK_DTYPE))),
    "moments of other features": lambda data: rewritten(data, mean=npy_bytes(np.ones(3))),
    "a head that is no JSON": lambda data: rewritten(data, head=npy_bytes(np.zeros(3, np.uint8))),
    "brackets nested too deep": lambda data: rewritten(data, head=npy_bytes(np.full(99_999, ord("["), np.uint8))),
}


@pytest.mark.parametrize("case", DAMAGED_RECORDS)
def test_a_damaged_record_is_an_input_error(corpus, tmp_path, case):
    plan, _ = unfinished_job(corpus, tmp_path)
    path = tmp_path / record_name(0)
    path.write_bytes(DAMAGED_RECORDS[case](path.read_bytes()))
    with pytest.raises(InputError, match=r"shard-000000\.npz: this record is damaged .*run its task again"):
        ShardRecord.parse(path.read_bytes(), str(path), plan.job.identity)


DAMAGED_JOBS = {
    "no JSON": lambda _: "{",
    "a list": lambda _: "[]",
    "brackets nested too deep": lambda _: "[" * 99_999,
    "shards of another type": lambda job: json.dumps(job | {"num_shards": "3"}),
    "no shards' number": lambda job: json.dumps({name: value for name, value in job.items() if name != "num_shards"}),
    "more shards than utterances": lambda job: json.dumps(job | {"num_shards": 10**15}),
    "speakers that are no names": lambda job: json.dumps(job | {"speakers": [1]}),
    "a layout that can't be": lambda job: json.dumps(job | {"layout": job["layout"] | {"dtype": "int8"}}),
    "a seed of another type": lambda job: json.dumps(job | {"layout": job["layout"] | {"seed": 1.5}}),
}


@pytest.mark.parametrize("case", DAMAGED_JOBS)
def test_a_damaged_job_is_an_input_error(corpus, tmp_path, case):
    unfinished_job(corpus, tmp_path)
    path = tmp_path / "job.json"
    path.write_text(DAMAGED_JOBS[case](json.loads(path.read_text())))
    with pytest.raises(InputError, match=r"job\.json: damaged \(.*\); delete the folder and shard again"):
        merge(LocalFolder(tmp_path))
