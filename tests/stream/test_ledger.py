"""The ledger: sums that a whole epoch has, and what is said where windows are missing or came twice."""

import numpy as np
import pytest
from conftest import make_corpus
from hypothesis import given
from hypothesis import strategies as st

from spkid_dist.dataset import WindowDataset
from spkid_dist.streaming.ledger import Ledger, LedgerError, check_epoch

pytestmark = pytest.mark.fast


@given(st.integers(0, 300), st.integers(1, 5), st.randoms())
def test_a_whole_epoch_in_any_order_and_any_parts_has_the_sums_known_beforehand(num_windows, parts, random):
    ids = list(range(num_windows))
    random.shuffle(ids)
    pieces = [Ledger.of(np.array(ids[part::parts], np.int64)) for part in range(parts)]
    assert Ledger.join(pieces) == Ledger.of_epoch(num_windows)


def test_the_sums_of_10_to_the_12_windows_are_arithmetic():
    assert Ledger.of_epoch(10**12) == Ledger(10**12, (10**12 * (10**12 - 1) // 2) % 2**64, 0)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1, 2, 4], "window 3 was not consumed"),
        ([0, 1, 2, 3, 3, 4], "window 3 came twice"),
        ([0, 1, 2], "2 windows were not consumed"),
        ([0, 1, 2, 2, 4], "some windows came twice and as many not at all"),
        ([0, 1, 2, 3, 0, 1, 2], "2 windows too many were consumed"),
    ],
)
def test_lost_and_repeated_windows_are_named(ids, message):
    with pytest.raises(LedgerError, match=f"epoch 7: {message}"):
        check_epoch(Ledger.of(np.array(ids, np.int64)), 5, 7)


def test_a_stream_that_loses_a_window_fails_at_the_end_of_the_epoch(tmp_path):
    make_corpus(tmp_path / "c", [9, 4, 12], block_frames=20)
    data = WindowDataset(tmp_path / "c/shards", in_frames=2, batch_size=5, num_streams=3)
    batches = iter(data)
    next(batches)
    stream = data._cursor._stream
    assert data.ledger.count == 5
    stream._at = stream._collected = (
        stream._at + 1
    )  # what a bug in the arithmetic would do: the next epoch's first instead
    with pytest.raises(LedgerError, match=r"epoch 0: some windows came twice and as many not at all"):
        list(batches)
    data.close()
