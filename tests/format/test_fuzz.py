"""Damaged bytes give one of our errors, from every reader: a little of what `make fuzz` does for as long as one likes."""

import tracemalloc

import pytest
from fuzz_targets import check, make_targets
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.fast

NAMES = ("fmatrix", "npy", "record", "job", "manifest", "shard", "blocks", "utterances")


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    yield make_targets(tmp_path_factory.mktemp("fuzz"))
    tracemalloc.stop()


def test_every_target_is_tried(targets):
    assert tuple(targets) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_sound_bytes_are_read(targets, name):
    for seed in targets[name].seeds:
        targets[name].run(seed)


EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=4)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(edits=EDITS, number=st.integers(0, 2))
def test_damaged_bytes_are_read_or_an_error_of_ours(targets, name, edits, number):
    target = targets[name]
    data = target.seeds[number % len(target.seeds)]
    for place, removed, added in edits:  # at a place between start and end, bytes give way to others
        at = round(place * len(data))
        data = data[:at] + added + data[at + removed :]
    check(target, data)
