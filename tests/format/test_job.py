"""The conversion job: the same bytes whoever does it, and nothing lost or misleading when somebody is killed."""

import contextlib
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from jobs import DeadlySource, command, file_of, folder_bytes, plan_of, stored, write_corpus

from shards import (
    FmatrixSource,
    InputError,
    Layout,
    ShardDataset,
    claim_folder,
    convert,
    make_plan,
    merge,
    read_list,
)
from shards.conversion.check import find_bad
from shards.conversion.folder import LocalFolder
from shards.conversion.job import convert_shard
from shards.conversion.workers import process_pool
from shards.layout import MANIFEST_NAME
from shards.sources.fmatrix import write_fmatrix
from spkid_dist.dataset import WindowDataset


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def reference(corpus, tmp_path_factory):
    """The bytes that one process makes."""
    plan, source = plan_of(corpus)
    assert plan.job.num_shards >= 8
    out = tmp_path_factory.mktemp("reference") / "out"
    convert(plan, source, out)
    return folder_bytes(out)


def test_worker_processes_make_the_same_bytes(corpus, reference, tmp_path):
    plan, source = plan_of(corpus)
    seen = []
    convert(plan, source, tmp_path / "out", lambda utterances, frames: seen.append((utterances, frames)), workers=3)
    assert folder_bytes(tmp_path / "out") == reference
    assert np.sum(seen, axis=0).tolist() == [
        plan.job.num_utterances,
        ShardDataset(tmp_path / "out").manifest.num_frames,
    ]


def test_any_executor_does_the_tasks(corpus, reference, tmp_path):
    plan, source = plan_of(corpus)
    with ThreadPoolExecutor(4) as executor:
        convert(plan, source, tmp_path / "out", executor=executor, workers=4)
    assert folder_bytes(tmp_path / "out") == reference


def test_tasks_in_any_order_make_the_same_bytes(corpus, reference, tmp_path):
    plan, source = plan_of(corpus)
    claim_folder(plan.job, LocalFolder(tmp_path / "out"))
    for shard in random.Random(1).sample(range(plan.job.num_shards), plan.job.num_shards):
        convert_shard(plan.task(shard), source, LocalFolder(tmp_path / "out"))
    merge(LocalFolder(tmp_path / "out"))
    assert folder_bytes(tmp_path / "out") == reference


def test_tasks_of_several_machines_are_merged(corpus, reference, tmp_path):
    out = tmp_path / "out"
    environments = ({}, {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "3"}, {})
    for task, environment in zip(("0/3", "auto", "2/3"), environments, strict=True):
        with pytest.raises(InputError, match=r"(holds no conversion job|shards are not done: shard-00000\d)"):
            merge(LocalFolder(out))
        arguments = command(corpus, out, "--task", task)
        done = subprocess.run(arguments, env=os.environ | environment, check=True, capture_output=True, text=True)
        assert "spkid merge" in done.stdout
    merge(LocalFolder(out))
    assert folder_bytes(out) == reference
    merge(LocalFolder(out))
    assert folder_bytes(out) == reference


def test_a_workers_error_reaches_the_user(corpus, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    plan, source = plan_of(copy)
    bad = file_of(source, stored(plan)[-1])
    bad.write_bytes(bad.read_bytes()[:-3])
    with pytest.raises(InputError, match=rf"{bad.name}: truncated"):
        convert(plan, source, tmp_path / "out", workers=2)
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def test_a_killed_worker_is_noticed_and_a_rerun_completes(corpus, reference, tmp_path):
    plan, source = plan_of(corpus)
    deadly = DeadlySource(source.db_path, source.ext, victim=stored(plan)[plan.job.num_utterances // 2].key)
    with pytest.raises(InputError, match=r"a worker process ended abruptly \(killed.*run the same command again"):
        convert(plan, deadly, tmp_path / "out", workers=2)
    convert(plan, source, tmp_path / "out", workers=2)
    assert folder_bytes(tmp_path / "out") == reference


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_killed_at_any_moment_is_completed_by_a_rerun(corpus, reference, tmp_path, workers, request):
    draw = random.Random(workers)
    arguments = command(corpus, tmp_path / "first", "--workers", workers)
    began = time.monotonic()
    subprocess.run(arguments, check=True, capture_output=True)
    whole = time.monotonic() - began
    out = tmp_path / "out"
    for _ in range(request.config.getoption("--kills")):
        subprocess.run(["rm", "-rf", out], check=True)
        job = subprocess.Popen(command(corpus, out, "--workers", workers), stdout=subprocess.DEVNULL)
        try:
            job.wait(draw.uniform(0, whole))
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait()
        rerun = subprocess.run(command(corpus, out, "--workers", workers), capture_output=True, text=True)
        assert rerun.returncode == 0, rerun.stderr
        assert folder_bytes(out) == reference


def workers_of(job):
    """The worker processes that a running job has started so far."""
    search = ("pgrep", "-P", str(job.pid), "-f", "multiprocessing.spawn")
    return [int(line) for line in subprocess.run(search, capture_output=True, text=True).stdout.split()]


@pytest.mark.long
def test_a_worker_killed_at_any_moment_is_made_good_by_a_rerun(corpus, reference, tmp_path, request):
    draw = random.Random(3)
    out = tmp_path / "out"
    for _ in range(max(1, request.config.getoption("--kills") // 2)):
        subprocess.run(["rm", "-rf", out], check=True)
        arguments = command(corpus, out, "--workers", 3)
        job = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        done = draw.randrange(len(reference) - 3)  # shards, besides manifest and tables
        while job.poll() is None and (len(list(out.glob("*.tar"))) < done or not workers_of(job)):
            time.sleep(draw.uniform(0, 0.02))
        if victims := workers_of(job):
            with contextlib.suppress(ProcessLookupError):  # it may just have ended
                os.kill(draw.choice(victims), signal.SIGKILL)
        _, error = job.communicate(timeout=60)
        # A worker that had nothing left to do is not missed.
        assert job.returncode == 0 or re.fullmatch(r"spkid: error: a worker process ended abruptly.*\n", error), error
        rerun = subprocess.run(arguments, capture_output=True, text=True)
        assert rerun.returncode == 0, rerun.stderr
        assert folder_bytes(out) == reference


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_full_at_any_moment_is_made_good_by_a_rerun_on_a_larger_one(
    corpus, reference, tmp_path, request
):
    draw = random.Random(4)
    disk = tmp_path / "disk"
    disk.mkdir()
    needed = sum(map(len, reference.values()))
    for _ in range(max(1, request.config.getoption("--kills") // 2)):
        size = round(draw.uniform(0.05, 0.9) * needed)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True)
        if mounted.returncode != 0:
            pytest.skip("mounting is not permitted here")
        try:
            arguments = command(corpus, disk / "out", "--workers", 2)
            full = subprocess.run(arguments, capture_output=True, text=True)
            assert full.returncode == 1
            assert re.fullmatch(r"spkid: error: .*can't be written: No space left on device; free.*\n", full.stderr)
            assert not (disk / "out" / MANIFEST_NAME).exists()
            assert list((disk / "out").rglob("*.tmp-*")) == []
            subprocess.run(["mount", "-o", f"remount,size={4 * needed}", disk], check=True)
            subprocess.run(arguments, check=True, capture_output=True)
            assert folder_bytes(disk / "out") == reference
        finally:
            subprocess.run(["umount", disk], check=True)


def test_workers_end_when_their_job_is_killed(tmp_path):
    code = (
        "import time; from shards.conversion.workers import process_pool\n"
        "with process_pool(2) as pool:\n"
        "    pool.submit(print, 'up', flush=True).result(); pool.submit(time.sleep, 60).result()\n"
    )
    script = tmp_path / "job.py"
    script.write_text(f"if __name__ == '__main__':\n    {code.replace(chr(10), chr(10) + '    ')}")
    job = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "up\n"
    children = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
    assert children
    job.kill()
    job.wait()
    job.stdout.close()
    deadline = time.monotonic() + 20
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, "the workers outlive their job"
        time.sleep(0.05)


def is_running(process):
    try:
        return not re.search(r"^State:\s*[ZX]", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    except FileNotFoundError:
        return False


def test_of_two_jobs_that_claim_a_folder_at_the_same_moment_one_gets_it(corpus, tmp_path):
    plan, _ = plan_of(corpus)
    other = dataclasses.replace(plan.job, identity="0" * 32)
    for number in range(20):
        out, barrier, failed = LocalFolder(tmp_path / f"{number}"), threading.Barrier(2), []

        def claim(job, out=out, barrier=barrier, failed=failed):
            barrier.wait()
            try:
                claim_folder(job, out)
            except InputError as error:
                failed.append(str(error))

        threads = [threading.Thread(target=claim, args=(job,)) for job in (plan.job, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(failed) == 1
        assert "holds an unfinished job of another list" in failed[0]


def test_float16_stores_the_nearest_values_and_reports_the_largest_error(corpus, tmp_path):
    arguments = command(corpus, tmp_path / "half", "--dtype", "float16")
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    error = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))["largest_relative_error"]
    assert 2.0**-13 < error <= 2.0**-11
    plan, source = plan_of(corpus)
    convert(plan, source, tmp_path / "single")
    half, single = ShardDataset(tmp_path / "half"), ShardDataset(tmp_path / "single")
    frames = [np.concatenate([d.read_block(b).frames for b in range(len(d.blocks))]) for d in (half, single)]
    np.testing.assert_array_equal(frames[0], frames[1].astype(np.float16))
    options = {"in_frames": 5, "batch_size": 20_000, "num_streams": 1, "shuffle": False}
    windows = [WindowDataset(folder, **options) for folder in (half.folder, single.folder)]
    (x_half, y_half), (x, y) = (next(iter(dataset)) for dataset in windows)
    assert (x_half == x.half().float()).all()
    assert (y_half == y).all()


def test_values_beyond_float16_are_refused(tmp_path):
    write_fmatrix(tmp_path / "a.mcp", np.full((3, 8), 70_000, np.float32))
    (tmp_path / "list").write_text("a\n")
    source = FmatrixSource(tmp_path, "mcp")
    utterances = read_list(tmp_path / "list", 1)
    plan = make_plan(utterances, ["a"], source, Layout(dtype="float16"))
    with pytest.raises(InputError, match=r"a\.mcp: the value 70000 is beyond float16's largest, 65504"):
        convert(plan, source, tmp_path / "out")


def break_some(corpus, tmp_path):
    """A copy of the corpus with a truncated, a NaN, an empty, a wider and a missing file; their keys."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    keys = (copy / "cfg/all.train").read_text().split()[::20][:5]
    paths = [copy / f"mcp/{key}.mcp" for key in keys]
    paths[0].write_bytes(paths[0].read_bytes()[:-1])
    write_fmatrix(paths[1], np.full((3, 8), np.nan, np.float32))
    write_fmatrix(paths[2], np.zeros((0, 8), np.float32))
    write_fmatrix(paths[3], np.zeros((3, 9), np.float32))
    paths[4].unlink()
    return copy, keys


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_utterances_are_left_out_listed_and_counted_when_asked(corpus, tmp_path, workers):
    copy, bad = break_some(corpus, tmp_path)
    arguments = command(copy, tmp_path / "out", "--skip_bad", "--workers", workers)
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    reasons = ("truncated", "is nan", "0 frames", "9 features per frame, but most have 8", "No such file")
    for key, reason in zip(bad, reasons, strict=True):
        assert re.search(rf"skipped {key}: .*{reason}", printed), printed
    assert json.loads(next(line for line in printed.splitlines() if line.startswith("{")))["skipped"] == 5
    assert ShardDataset(tmp_path / "out").manifest.num_utterances == 115
    good = [key for key in (copy / "cfg/all.train").read_text().split() if key not in bad]
    (copy / "cfg/all.train").write_text("".join(f"{key}\n" for key in good))
    subprocess.run(command(copy, tmp_path / "without"), check=True, capture_output=True)
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "without")


def test_the_default_is_to_stop_at_a_bad_utterance(corpus, tmp_path):
    copy, _ = break_some(corpus, tmp_path)
    done = subprocess.run(command(copy, tmp_path / "out"), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def test_skipping_is_one_machines_work(corpus, tmp_path):
    done = subprocess.run(command(corpus, tmp_path, "--skip_bad", "--task", "0/2"), capture_output=True, text=True)
    assert done.returncode == 2
    assert "--skip_bad reads the whole corpus first" in done.stderr


def unfinished_job(corpus, out):
    """A job of which one shard is done."""
    plan, source = plan_of(corpus)
    folder = LocalFolder(out)
    claim_folder(plan.job, folder)
    convert_shard(plan.task(0), source, folder)
    return plan, source


def test_a_job_is_not_continued_with_other_features(corpus, tmp_path):
    import shutil

    unfinished_job(corpus, tmp_path / "out")
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    for path in (copy / "mcp").rglob("*.mcp"):
        write_fmatrix(path, np.ones((40, 8), np.float32))
    done = subprocess.run(command(copy, tmp_path / "out"), capture_output=True, text=True)
    assert done.returncode == 1
    assert "holds an unfinished job of another list, other options or other features" in done.stderr
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def test_a_task_that_starts_while_another_makes_the_job_takes_part(corpus, tmp_path):
    plan, _ = plan_of(corpus)

    class Late(LocalFolder):
        """A folder that is empty when listed, and has another task's job a moment later."""

        def sizes(self):
            claim_folder(plan.job, LocalFolder(self.path))
            return {"job.json": 1}

    assert claim_folder(plan.job, Late(tmp_path / "out")) is None


def test_a_worker_that_is_killed_while_checking_is_noticed(corpus):
    plan, source = plan_of(corpus)
    deadly = DeadlySource(source.db_path, source.ext, victim=stored(plan)[3].key)
    with pytest.raises(InputError, match=r"a worker process ended abruptly \(killed"), process_pool(2) as pool:
        find_bad(stored(plan), deadly, pool)
