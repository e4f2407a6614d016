"""Pools take turns in memory: none is overwritten while it is used, and nothing is kept when none is left."""

from copy import deepcopy

import numpy as np
import pytest
from conftest import make_corpus

from spkid_dist.dataset import WindowDataset
from spkid_dist.streaming.turns import TakingTurns

pytestmark = pytest.mark.fast

FLOAT32 = np.dtype("f4")


def address(array):
    return array.__array_interface__["data"][0]


def test_the_third_array_gets_the_memory_of_the_first_when_that_is_gone():
    turns = TakingTurns()
    first = turns.empty((1000, 20), FLOAT32)
    place = address(first)
    second = turns.empty((1000, 20), FLOAT32)
    del first
    third = turns.empty((1001, 20), np.dtype("u4"))  # of another kind, and a little larger
    assert (third.shape, third.dtype, address(third)) == ((1001, 20), np.dtype("u4"), place)
    assert not np.shares_memory(second, third)


def test_memory_is_another_arrays_only_when_no_view_of_it_is_left():
    turns = TakingTurns()
    first = turns.empty((1000, 20), FLOAT32)
    first[:] = 7
    second = turns.empty((1000, 20), FLOAT32)
    view = memoryview(first.reshape(-1).view("u4")[10:20])
    del first
    third = turns.empty((1000, 20), FLOAT32)
    second[:] = third[:] = 0
    assert np.frombuffer(view, FLOAT32).tolist() == [7] * 10


def test_no_more_than_two_arrays_memory_is_held_and_none_when_both_are_gone():
    turns = TakingTurns()
    arrays = [turns.empty((1000, 20), FLOAT32) for _ in range(3)]
    arrays.pop()
    assert len(turns._spare) == 0  # two others are there
    arrays.pop()
    assert len(turns._spare) == 1
    arrays.pop()
    assert len(turns._spare) == 0


def test_memory_that_is_too_small_or_much_too_large_is_not_used():
    for rows in (2000, 10):
        turns = TakingTurns()
        first, second = (turns.empty((1000, 20), FLOAT32) for _ in range(2))
        del first
        third = turns.empty((rows, 20), FLOAT32)
        third[:] = 0
        assert len(turns._spare) == 0
        assert not np.shares_memory(second, third)


@pytest.mark.parametrize("shape", [(0, 20), (3, 0)])
def test_an_array_of_nothing_is_as_any_other(shape):
    assert TakingTurns().empty(shape, FLOAT32).shape == shape


def test_a_copy_has_memory_of_its_own():
    turns = TakingTurns()
    first, second = (turns.empty((1000, 20), FLOAT32) for _ in range(2))
    del first
    copy = deepcopy(turns)
    assert len(copy._spare) == 0
    assert not np.shares_memory(copy.empty((1000, 20), FLOAT32), second)


def test_pools_take_turns_and_each_has_the_frames_that_it_has_alone(tmp_path):
    corpus = make_corpus(tmp_path / "c", [30] * 40, num_features=4)
    data = WindowDataset(
        corpus.folder / "shards", in_frames=5, num_streams=4, shuffle_windows=200, rank=0, world_size=1
    )
    filler, places = data.pool_filler(), []
    pool = filler.fill(0, 0)
    for generation in range(1, data.order.num_generations):
        following = filler.fill(0, generation)
        alone = data.pool_filler().fill(0, generation - 1)
        for name in ("arena", "starts", "labels", "ids"):
            np.testing.assert_array_equal(getattr(pool, name), getattr(alone, name))
        places.append(address(pool.arena))
        pool = following
    assert len(places) >= 4
    assert len(set(places)) < len(places)
