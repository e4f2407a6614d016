"""What is sent to workers of a source: what their tasks need, so that the work stays in proportion to the utterances."""

import pickle
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
from source_checks import error_of, kaldi_folder, utterance

from shards import FmatrixSource, KaldiSource, Layout, Utterance, convert, make_plan, read_kaldi_folder
from shards.conversion.check import find_bad
from shards.conversion.workers import process_pool
from shards.sources import source_of_task

pytestmark = pytest.mark.fast
NUM_UTTERANCES = 3000


class PicklingExecutor(Executor):
    """Does each task at once, from its pickled form, as another process would; counts the bytes."""

    def __init__(self) -> None:
        self.num_bytes: list[int] = []

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        pickled = pickle.dumps((call, args, kwargs))
        self.num_bytes.append(len(pickled))
        call, args, kwargs = pickle.loads(pickled)  # noqa: S301 - pickled here
        future: Future[Any] = Future()
        future.set_result(call(*args, **kwargs))
        return future


def large_folder(folder: Path, num_utterances: int = NUM_UTTERANCES) -> Path:
    """A Kaldi folder of many utterances that are one matrix of the archive."""
    kaldi_folder(folder)
    place = (folder / "feats.scp").read_text().split()[1]
    keys = [f"spk{number % 4}-utt{number:06d}" for number in range(num_utterances)]
    (folder / "feats.scp").write_text("".join(f"{key} {place}\n" for key in keys))
    (folder / "utt2spk").write_text("".join(f"{key} {key[:4]}\n" for key in keys))
    (folder / "utt2num_frames").write_text("".join(f"{key} 9\n" for key in keys))
    return folder


def test_checking_sends_each_entry_once_and_not_all_with_each_chunk(tmp_path: Path) -> None:
    folder = large_folder(tmp_path)
    source, utterances = KaldiSource.open(folder), read_kaldi_folder(folder)
    executor = PicklingExecutor()
    assert find_bad(utterances, source, executor) == []
    assert len(executor.num_bytes) == 12
    whole = len(pickle.dumps(source))
    assert sum(executor.num_bytes) < 2.5 * whole + 12 * 1000  # the entries, and the utterances
    assert max(executor.num_bytes) < whole / 3


def test_tasks_are_sent_with_the_entries_that_they_need_and_make_the_same_bytes(tmp_path: Path) -> None:
    folder = large_folder(tmp_path / "data", 400)
    source, utterances = KaldiSource.open(folder), read_kaldi_folder(folder)
    plan = make_plan(utterances, ["spk0", "spk1", "spk2", "spk3"], source, Layout(shard_bytes=5000))
    assert plan.job.num_shards > 5
    executor = PicklingExecutor()
    sent = convert(plan, source, tmp_path / "sent", executor=executor)
    assert max(executor.num_bytes) < len(pickle.dumps(source)) / 2
    assert convert(plan, source, tmp_path / "one").fingerprint == sent.fingerprint


def test_worker_processes_check_a_kaldi_folder_as_one_process_does(tmp_path: Path) -> None:
    folder = large_folder(tmp_path, 600)
    source = KaldiSource.open(folder)
    utterances = [*read_kaldi_folder(folder), Utterance("none", "spk0")]
    with process_pool(2) as pool:
        found = find_bad(utterances, source, pool)
    assert found == find_bad(utterances, source)
    assert [(bad.utterance.key, bad.reason) for bad in found] == [
        ("none", f"{folder}/feats.scp: it has no utterance 'none'; add it there, or remove it from the list")
    ]


def test_a_part_of_a_kaldi_source_loads_its_utterances_alone(tmp_path: Path) -> None:
    kaldi_folder(tmp_path)
    part = source_of_task(KaldiSource.open(tmp_path), [utterance("spk0-utt0")])
    assert len(part.load(utterance("spk0-utt0"))) == 9
    assert error_of(part.load, utterance("spk1-utt1")).startswith(f"{tmp_path}/feats.scp: it has no utterance")


def test_a_source_without_entries_is_sent_as_it_is(tmp_path: Path) -> None:
    source = FmatrixSource(tmp_path)
    assert source_of_task(source, [utterance("a")]) is source
