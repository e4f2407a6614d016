"""Mixtures of datasets: shares that follow the weights, each dataset exactly once an epoch of its own, resumed anywhere."""

import json
import math
from collections import Counter
from itertools import chain

import pytest
from conftest import make_corpus
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from shards import InputError, UsageError
from spkid_dist.dataset import WindowDataset
from spkid_dist.mixture import CIRCLE, STRIDE, MixedDataset, borders_of, points_below, shares


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    many = make_corpus(folder / "many", [9, 4, 12, 7, 3, 11, 6], block_frames=20)
    few = make_corpus(folder / "few", [5, 8, 2], block_frames=10, first_value=100_000)
    return many, few


def mixed(corpora, weights=(2, 1), rank=0, world_size=1, **options):
    datasets = [
        WindowDataset(
            corpus.folder / "shards", in_frames=2, num_streams=5, shuffle_windows=15, rank=rank, world_size=world_size
        )
        for corpus in corpora
    ]
    return MixedDataset(datasets, weights, **({"batch_size": 7} | options))


def values(batch):
    return sorted(int(x[0]) for x in batch[0])


def farthest(num_windows):
    """How far the number of the first points in any interval may lie from its share.

    An interval is the difference of two that begin at 0. For those, the golden ratio's discrepancy grows as 3 / (20 log 1.618)
    times the logarithm. Source: Dupain, Sós, "On the discrepancy of (n alpha) sequences", 1984. A whole circle strays by 0.
    """
    points = max(1, min(num_windows, CIRCLE))
    return 2 * (3 / (20 * math.log((1 + math.sqrt(5)) / 2)) * math.log(points) + 1)


@example([1.0, 1.0, 51.0, 62.5], 1_029_539_212, 0)  # strays by 8.2
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 10**13), st.integers(0, 1000))
def test_shares_never_stray_from_the_weights_and_never_shrink(weights, num_windows, step):
    borders = borders_of(weights)
    counts, later = shares(borders, num_windows), shares(borders, num_windows + step)
    assert sum(counts) == num_windows
    for part, (count, more) in enumerate(zip(counts, later, strict=True)):
        width = (borders[part + 1] - borders[part]) / CIRCLE
        assert abs(width - weights[part] / sum(weights)) < 1e-9
        assert abs(count - num_windows * width) <= farthest(num_windows)
        assert count <= more


@given(st.integers(0, 300), st.integers(0, CIRCLE))
def test_points_below_a_border_equal_those_counted(num_points, border):
    assert points_below(num_points, border) == sum(n * STRIDE % CIRCLE < border for n in range(num_points))


def test_each_dataset_goes_round_in_its_own_order(corpora):
    mixture = mixed(corpora, epoch_windows=200)
    found = [int(x[0]) for batch, _ in mixture for x in batch]
    for corpus, data in zip(corpora, mixture.datasets, strict=True):
        own = [value for value in found if (value >= 100_000) == (corpus is corpora[1])]
        alone = WindowDataset(corpus.folder / "shards", in_frames=2, num_streams=5, shuffle_windows=15)
        epochs = [int(x[0]) for _ in range(9) for batch, _ in alone for x in batch]
        assert own == epochs[: len(own)]
        assert max(Counter(own).values()) - min(Counter(own).values()) <= 1
        assert len(own) in (133, 134, 66, 67)
        assert data.num_windows < len(own)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_mixture_resumes_anywhere_on_any_number_of_ranks(corpora, world_size):
    whole = [values(batch) for batch in mixed(corpora)]
    source = mixed(corpora)
    states = [json.loads(json.dumps(source.state_dict()))]
    for _ in source:
        states.append(json.loads(json.dumps(source.state_dict())))
    whole += [values(batch) for batch in source]
    for step, state in enumerate(states):
        ranks = [mixed(corpora, rank=rank, world_size=world_size) for rank in range(world_size)]
        for rank in ranks:
            rank.load_state_dict(state)
        rest = [sorted(chain(*map(values, batches))) for batches in zip(*ranks, strict=True)]
        assert rest == whole[step : len(source) if step < len(source) else None]


def test_a_mixture_goes_through_a_dataloader(corpora):
    whole = [values(batch) for batch in mixed(corpora)]
    loader = DataLoader(mixed(corpora), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert [values(batch) for batch in loader] == whole


def test_a_state_of_other_weights_is_refused(corpora):
    with pytest.raises(
        InputError, match=r"the stream's state is of another weights: \[2.0, 1.0\] there, \[1.0, 1.0\] here"
    ):
        mixed(corpora, weights=(1, 1)).load_state_dict(mixed(corpora).state_dict())


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, -1), (1, float("nan")), (1, float("inf"))])
def test_a_weight_above_zero_for_each_is_expected(corpora, weights):
    with pytest.raises(UsageError, match="expected a weight above 0 for each"):
        mixed(corpora, weights=weights)


def test_datasets_that_do_not_fit_together_are_refused(corpora, tmp_path):
    wide = make_corpus(tmp_path / "wide", [5, 8], num_features=4)
    with pytest.raises(InputError, match="its values of a window are not those of"):
        mixed([corpora[0], wide])
