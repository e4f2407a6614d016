"""Epochs: each iteration is the next one, whoever iterates, and wherever they stopped."""

import copy
import itertools
import multiprocessing
import pickle
import threading
import time

import pytest
import torch.distributed
from stream_ranks import first_values
from test_state import OPTIONS, corpus, stream  # noqa: F401 - a fixture
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from shards import UsageError
from spkid_dist.dataset import WindowDataset
from spkid_dist.mixture import MixedDataset
from spkid_dist.streaming.stacking import Background

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),  # of Python 3.12, which begins workers so
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata 0.11 calls it
]


def mixture(corpus, **options):
    return MixedDataset([stream(corpus), stream(corpus, seed=8)], [2, 1], batch_size=11, **options)


KINDS = pytest.mark.parametrize("make", [stream, mixture])


def epochs_of(data, count):
    """The first epochs of a stream, each a list of batches, each a list of windows."""
    return [first_values(data) for _ in range(count)]


def windows(epoch):
    return sorted(itertools.chain(*epoch))


@KINDS
def test_taking_just_the_batches_of_an_epoch_leaves_the_next_one_whole(corpus, make):
    expected = epochs_of(make(corpus), 4)
    data = make(corpus)
    for epoch, batches in enumerate(expected):
        assert first_values(itertools.islice(data, len(data))) == batches
        assert (data.epoch, data.position) == (epoch + 1, 0)


@KINDS
def test_an_iteration_that_was_left_is_followed_by_the_next_epoch(corpus, make):
    expected = epochs_of(make(corpus), 3)
    data = make(corpus)
    assert first_values(itertools.islice(data, 2)) == expected[0][:2]
    assert (data.epoch, data.position) == (0, 22)
    assert epochs_of(data, 2) == expected[1:]


def test_a_validation_set_is_always_whole(corpus):
    data = stream(corpus, shuffle=False)
    whole = first_values(data)
    assert first_values(itertools.islice(data, 1)) == whole[:1]
    assert first_values(data) == whole


@KINDS
def test_the_rest_of_an_epoch_is_had_by_asking_for_it(corpus, make):
    expected = epochs_of(make(corpus), 2)
    data = make(corpus)
    next(iter(data))
    assert first_values(itertools.islice(data.rest_of_epoch(), 1)) == expected[0][1:2]
    assert first_values(data.rest_of_epoch()) == expected[0][2:]
    assert first_values(data.rest_of_epoch()) == expected[1]


def test_the_ledger_is_checked_after_the_rest_of_an_epoch(corpus):
    data = stream(corpus)
    next(iter(data))
    list(data.rest_of_epoch())
    assert data.ended_ledger.count == data.num_windows


@KINDS
def test_every_place_is_gone_on_from_for_two_more_epochs(corpus, make):
    data = make(corpus)
    straight, states = [], [data.state_dict()]
    for _ in range(3):
        for batch in data:
            straight += first_values([batch])
            states.append(data.state_dict())
    size = len(data)
    for step, state in enumerate(states[: size + 1]):
        again = make(corpus)
        again.load_state_dict(state)
        found = list(itertools.chain(*epochs_of(again, 3)))[: 3 * size - step]
        assert found == straight[step:][: len(found)]
        assert len(found) >= 2 * size


@KINDS
def test_a_place_whose_past_is_not_known_is_gone_on_from_for_two_more_epochs(corpus, make):
    straight = list(itertools.chain(*epochs_of(make(corpus), 3)))
    for batches in range(len(make(corpus)) + 1):
        again = make(corpus)
        again.load_state_dict(make(corpus).state_dict(batches=batches))
        assert list(itertools.chain(*epochs_of(again, 3)))[: len(straight) - batches] == straight[batches:]
        assert again.ended_ledger is not None


@KINDS
@pytest.mark.parametrize(
    "loader",
    [
        {"num_workers": 0},
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True},
        pytest.param({"num_workers": 2, "multiprocessing_context": "spawn"}, marks=pytest.mark.long),
    ],
)
def test_a_dataloader_yields_epoch_after_epoch_without_being_told(corpus, make, loader):
    expected = epochs_of(make(corpus), 3)
    assert len({str(epoch) for epoch in expected}) == 3
    assert epochs_of(DataLoader(make(corpus), batch_size=None, **loader), 3) == expected


def test_loaders_whose_seeds_are_alike_have_epochs_of_their_own(corpus):
    expected = epochs_of(stream(corpus), 3)
    data = stream(corpus)
    for batches in expected:
        generator = torch.Generator().manual_seed(0)
        assert first_values(DataLoader(data, batch_size=None, num_workers=2, generator=generator)) == batches


def test_two_loaders_at_the_same_time_have_an_epoch_each(corpus):
    expected = epochs_of(stream(corpus), 2)
    data = stream(corpus)
    loaders = [DataLoader(data, batch_size=None, num_workers=2) for _ in range(2)]
    pairs = list(zip(*loaders, strict=True))
    assert sorted(first_values(batches) for batches in zip(*pairs, strict=True)) == sorted(expected)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_learn_what_the_dataset_is_told(corpus, persistent):
    expected = epochs_of(stream(corpus), 4)
    data = stream(corpus)
    loader = DataLoader(data, batch_size=None, num_workers=2, persistent_workers=persistent)
    next(iter(loader))
    assert first_values(loader) == expected[1]
    data.set_epoch(3)
    assert first_values(loader) == expected[3]
    data.load_state_dict(stream(corpus).state_dict(batches=4))
    assert first_values(loader) == expected[0][4:]
    assert first_values(loader) == expected[1]
    assert first_values(data) == expected[2]


@KINDS
@pytest.mark.parametrize("batches", [1, 2, 5])
def test_an_iteration_left_in_mid_epoch_costs_persistent_workers_no_window_of_the_next(corpus, make, batches):
    expected = epochs_of(make(corpus), 6)
    data = make(corpus)
    loader = DataLoader(data, batch_size=None, num_workers=2, persistent_workers=True)
    assert first_values(itertools.islice(loader, batches)) == expected[0][:batches]
    assert epochs_of(loader, 2) == expected[1:3]
    assert first_values(itertools.islice(loader, batches)) == expected[3][:batches]
    data.set_epoch(5)
    assert first_values(loader) == expected[5]
    first_values(itertools.islice(loader, batches))
    data.load_state_dict(make(corpus).state_dict(batches=3))
    assert first_values(loader) == expected[0][3:]
    assert first_values(loader) == expected[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("epochs", "batches"), [(0, 0), (0, 1), (0, 8), (0, 9), (1, 0), (1, 3)])
def test_torchdatas_loader_goes_on_for_two_more_epochs(corpus, workers, epochs, batches):
    straight = list(itertools.chain(*epochs_of(stream(corpus), 4)))
    loader = StatefulDataLoader(stream(corpus), batch_size=None, num_workers=workers)
    assert len(loader) == 9
    epochs_of(loader, epochs)
    iterator = iter(loader) if batches else None
    for _ in range(batches):
        next(iterator)
    state = loader.state_dict()
    del iterator
    again = StatefulDataLoader(stream(corpus), batch_size=None, num_workers=workers)
    again.load_state_dict(state)
    rest = list(itertools.chain(*epochs_of(again, 3)))
    assert rest == straight[epochs * 9 + batches :][: len(rest)]
    assert len(rest) >= 18


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_of_torchdatas_loader_between_two_epochs_is_followed_by_a_whole_epoch(corpus, workers):
    expected = epochs_of(stream(corpus), 4)
    loader = StatefulDataLoader(stream(corpus), batch_size=None, num_workers=workers)
    assert epochs_of(loader, 1) == expected[:1]
    again = StatefulDataLoader(stream(corpus), batch_size=None, num_workers=workers)
    again.load_state_dict(loader.state_dict())
    assert epochs_of(again, 3) == expected[1:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloader_that_would_stack_batches_is_refused(corpus, workers):
    with pytest.raises(UsageError, match="make it with batch_size=None"):
        next(iter(DataLoader(stream(corpus), num_workers=workers)))


def test_an_iteration_is_over_when_another_begins(corpus):
    data = stream(corpus)
    first = iter(data)
    next(first)
    second = iter(data)
    next(second)
    with pytest.raises(UsageError, match="another has begun"):
        next(first)
    data.set_epoch(5)
    with pytest.raises(UsageError, match="told another epoch"):
        next(second)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])  # noqa: S301
def test_a_copy_counts_its_epochs_itself(corpus, copied):
    expected = epochs_of(stream(corpus), 3)
    data = stream(corpus)
    list(data)
    twin = copied(data)
    assert first_values(twin) == expected[1]
    assert epochs_of(data, 2) == expected[1:]
    assert OPTIONS["seed"] == twin.identity["seed"]


def put_epochs(data, found):
    found.put(epochs_of(data, 2))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_processes_that_are_no_workers_count_their_epochs_themselves(corpus, method):
    expected = epochs_of(stream(corpus), 3)
    data = stream(corpus)
    list(data)
    context = multiprocessing.get_context(method)
    found = context.SimpleQueue()
    processes = [context.Process(target=put_epochs, args=(data, found)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [found.get() for _ in processes] == [expected[1:]] * 2
    for process in processes:
        process.join()
    assert epochs_of(data, 2) == expected[1:]


class SlowWindows(WindowDataset):
    """Whose next pool is not ready when an epoch ends."""

    def _load(self, epoch, generation):
        time.sleep(0.1)
        return super()._load(epoch, generation)


def test_workers_that_are_forked_while_a_pool_is_filled_go_on(corpus):
    expected = epochs_of(stream(corpus), 2)
    data = SlowWindows(corpus.folder / "shards", **OPTIONS, rank=0, world_size=1)
    list(data)
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert first_values(loader) == expected[1]


def test_an_iteration_that_its_own_thread_collects_as_garbage_is_closed():
    made, ready = [], threading.Event()

    def collect():
        ready.wait()
        made[0].close()
        return 1

    made.append(Background(collect, name="collects"))
    ready.set()
    made[0].close()
    made[0].raise_error()


def meet_and_iterate(rank, place, sets, found):
    store = torch.distributed.FileStore(str(place), 2)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, store=store)
    for data in sets:
        try:
            found.put(sum(map(len, first_values(data))))
        except UsageError as error:
            found.put(str(error))
    torch.distributed.destroy_process_group()


def test_a_dataset_that_was_opened_before_the_processes_met_is_refused(corpus, tmp_path):
    early = WindowDataset(corpus.folder / "shards", **OPTIONS)
    sets = [early, MixedDataset([early], [1]), stream(corpus)]
    context = multiprocessing.get_context("fork")
    queues = [context.SimpleQueue() for _ in range(2)]
    ranks = [
        context.Process(target=meet_and_iterate, args=(rank, tmp_path / "store", sets, queue))
        for rank, queue in enumerate(queues)
    ]
    for process in ranks:
        process.start()
    for rank, queue in enumerate(queues):
        for _ in range(2):
            assert f"opened as rank 0 of 1, but this process is rank {rank} of 2 now" in queue.get()
        assert queue.get() == early.num_windows  # whose rank was given
    for process in ranks:
        process.join()
