"""The state: two integers that any number of ranks, workers and any batch size go on from, in real processes."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from conftest import make_corpus
from stream_ranks import first_values
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from shards import InputError
from spkid_dist.dataset import WindowDataset

LENGTHS = [7, 1, 12, 3, 9, 30, 2, 5, 18, 4, 11, 6, 1, 25]
OPTIONS = {"in_frames": 4, "batch_size": 11, "num_streams": 5, "shuffle_windows": 30, "seed": 3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("state") / "c", LENGTHS, block_frames=20, shard_bytes=900)


def stream(corpus, **options):
    return WindowDataset(corpus.folder / "shards", **(OPTIONS | {"rank": 0, "world_size": 1} | options))


def every_state(corpus):
    """The states before each batch of an epoch and after its last one, as JSON keeps them."""
    data = stream(corpus)
    states = [data.state_dict()]
    states += [data.state_dict() for _ in data]
    return json.loads(json.dumps(states))


def launch(task, world_size, folder):
    """Run tests/helpers/stream_ranks.py in `world_size` processes, to their end."""
    task_path = folder / "task.json"
    task_path.write_text(json.dumps(task | {"out": str(folder)}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    script = Path(__file__).parents[1] / "helpers/stream_ranks.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run([*command, script, task_path], env=environment, capture_output=True, text=True, timeout=120)


def joined(ranks):
    """Global batches, as sorted lists, out of each rank's shares."""
    return [sorted(chain(*shares)) for shares in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world_size", [1, *(pytest.param(ranks, marks=pytest.mark.long) for ranks in (2, 3, 4))])
def test_any_ranks_and_workers_go_on_from_every_step(corpus, tmp_path, world_size, pytestconfig):
    whole = [sorted(batch) for batch in first_values(stream(corpus))]
    states = every_state(corpus)
    workers = {1: [2], 2: [1], 3: [0], 4: [0]}[world_size]  # a worker takes seconds to start
    if pytestconfig.getoption("--long"):
        workers = [0, 1, 2]
    task = {"folder": str(corpus.folder / "shards"), "options": OPTIONS, "states": states, "workers": workers}
    done = launch(task, world_size, tmp_path)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(world_size)]
    for number in workers:
        assert joined([rank["epochs"][str(number)] for rank in ranks]) == whole
    data = stream(corpus)
    data.set_epoch(1)
    following = [sorted(batch) for batch in first_values(data)]
    for step in range(len(states)):
        assert joined([rank["rests"][step] for rank in ranks]) == (whole[step:] or following)


@pytest.mark.long  # test_any_ranks_and_workers_go_on_from_every_step
def test_a_killed_rank_and_a_restart_on_another_number_of_ranks_consume_each_window_once(corpus, tmp_path):
    task = {"folder": str(corpus.folder / "shards"), "options": OPTIONS, "state": None}
    done = launch(task | {"killed_rank": 1, "killed_at": 4}, 3, tmp_path)
    assert done.returncode != 0
    state = json.loads((tmp_path / "state.json").read_text())
    consumed = Counter()
    for path in tmp_path.glob("record*.txt"):
        lines = [tuple(map(int, line.split())) for line in path.read_text().splitlines()]
        consumed.update(value for position, value in lines if position <= state["position"])
        path.unlink()
    assert consumed.total() == state["position"] > 0
    assert launch(task | {"state": state, "killed_rank": None, "killed_at": None}, 2, tmp_path).returncode == 0
    for path in tmp_path.glob("record*.txt"):
        consumed.update(int(line.split()[1]) for line in path.read_text().splitlines())
    assert consumed == Counter(chain(*first_values(stream(corpus))))
    assert set(consumed.values()) == {1}


@pytest.mark.parametrize("batch_size", [1, 5, 40])
def test_a_state_is_good_for_any_batch_size(corpus, batch_size):
    whole = list(chain(*first_values(stream(corpus))))
    for state in every_state(corpus)[:-1]:
        data = stream(corpus, batch_size=batch_size)
        data.load_state_dict(state)
        assert data.steps_left == -(-(data.num_windows - state["position"]) // batch_size)
        assert list(chain(*first_values(data))) == whole[state["position"] :]


def test_the_next_epoch_follows_a_resumed_one(corpus):
    straight = stream(corpus)
    _, second = first_values(straight), first_values(straight)
    data = stream(corpus)
    data.load_state_dict(every_state(corpus)[3])
    first_values(data)
    assert (data.epoch, data.position) == (1, 0)
    assert first_values(data) == second
    data.close()
    straight.close()


def test_the_ledger_goes_on_where_the_state_was_taken(corpus):
    states = every_state(corpus)
    for state in states[1:-1]:
        assert state["ledger"]["count"] == state["position"]
        data = stream(corpus)
        data.load_state_dict(state)
        list(data)  # checks the ledger of the whole epoch
        assert data.ended_ledger.count == data.num_windows
        data.close()
    unknown = stream(corpus)
    unknown.load_state_dict(states[2] | {"ledger": None})
    list(unknown)
    assert unknown.ended_ledger is None
    unknown.close()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"seed": 4}, "another seed: 3 there, 4 here"),
        ({"in_frames": 5}, "another in_frames: 4 there, 5 here"),
        ({"edge": "zero"}, "another edge: 'valid' there, 'zero' here"),
        ({"num_streams": 6}, "another num_streams: 5 there, 6 here"),
        ({"shuffle_windows": 35}, "another pool_windows: 6 there, 7 here"),
        ({"shuffle": False}, "another shuffle: True there, False here"),
    ],
)
def test_a_state_of_another_order_is_refused(corpus, option, message):
    with pytest.raises(InputError, match=f"the stream's state is of {message}; the order of windows"):
        stream(corpus, **option).load_state_dict(stream(corpus).state_dict())


def test_a_state_of_another_dataset_is_refused(corpus, tmp_path):
    other = make_corpus(tmp_path / "other", LENGTHS, block_frames=21, shard_bytes=900)
    with pytest.raises(InputError, match="another fingerprint"):
        stream(other).load_state_dict(stream(corpus).state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": 10**6}, "at window 1000000 of epoch 0, but an epoch has"),
        ({"epoch": -1}, "of epoch -1"),
        ({"version": 9}, "is of version 9, expected 1"),
        ({"position": "x"}, "not the state of a stream"),
        ({"ledger": {"x": 1}}, "not the state of a stream"),
    ],
)
def test_a_damaged_state_is_refused(corpus, change, message):
    with pytest.raises(InputError, match=message):
        stream(corpus).load_state_dict(stream(corpus).state_dict() | change)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it
@pytest.mark.parametrize(
    ("workers", "batches"), [(0, 0), (0, 1), (0, 7), (1, 4), pytest.param(2, 5, marks=pytest.mark.long)]
)
def test_torchdatas_loader_goes_on_where_it_was(corpus, workers, batches):
    whole = first_values(stream(corpus))
    context = {"multiprocessing_context": "spawn"} if workers else {}
    loader = StatefulDataLoader(stream(corpus), batch_size=None, num_workers=workers, **context)
    iterator = iter(loader)
    begun = [next(iterator) for _ in range(batches)]
    state = loader.state_dict()
    del iterator
    again = StatefulDataLoader(stream(corpus), batch_size=None, num_workers=workers, **context)
    again.load_state_dict(state)
    assert first_values(begun) + first_values(again) == whole


def test_the_state_after_some_batches_is_known_without_taking_them(corpus):
    data = stream(corpus)
    states = every_state(corpus)
    for batches, state in enumerate(states):
        ahead = data.state_dict(batches=batches)
        assert {k: ahead[k] for k in ("epoch", "position")} == {k: state[k] for k in ("epoch", "position")}
    after = data.state_dict(batches=len(states) + 1)
    assert (after["epoch"], after["position"]) == (1, 22)
    assert data.state_dict(batches=2 * len(data))["epoch"] == 2


def test_the_state_of_a_worker_is_refused_elsewhere(corpus):
    data = stream(corpus)
    data.load_state_dict(data.state_dict() | {"skip_batches": 1})
    with pytest.raises(InputError, match="of a loader with more than 1 workers"):
        next(iter(data))


@pytest.mark.gpu
def test_a_dataloader_that_pins_memory_yields_the_same(corpus):
    loader = DataLoader(stream(corpus), batch_size=None, num_workers=1, pin_memory=True)
    assert first_values(loader) == first_values(stream(corpus))
