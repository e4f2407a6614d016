"""Choosing speakers and utterances, and balance among speakers, without sharding anew."""

from collections import Counter

import numpy as np
import pytest
from conftest import make_corpus
from twins import twin_windows

from shards import InputError, UsageError
from spkid_dist.config.choices import EDGE_CODES
from spkid_dist.dataset import WindowDataset
from spkid_dist.streaming.selection import Selection

pytestmark = pytest.mark.fast

# Odd utterances are spk1's, who has a sixth of spk0's frames.
LENGTHS = [30, 8, 25, 6, 41, 5, 22, 7]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("chosen") / "c", LENGTHS, block_frames=30, shard_bytes=900)


def stream(corpus, selection, **options):
    options = {"in_frames": 3, "batch_size": 9, "num_streams": 4, "shuffle_windows": 40} | options
    return WindowDataset(corpus.folder / "shards", selection=selection, **options)


def windows_of(corpus, keys, edge="valid"):
    return Counter(
        tuple(window.tolist()) for key in keys for window in twin_windows(corpus.frames[key], 3, EDGE_CODES[edge])
    )


def seen(batches):
    return Counter(tuple(row) for x, _ in batches for row in x.tolist())


@pytest.mark.parametrize("edge", ["valid", "zero", "edge"])
def test_chosen_speakers_come_once_and_keep_their_classes(corpus, edge):
    data = stream(corpus, Selection(speakers=["spk1"]), edge=edge)
    batches = list(data)
    assert seen(batches) == windows_of(corpus, [key for key in corpus.frames if "spk1" in key], edge)
    assert {int(label) for _, y in batches for label in y} == {1}
    assert sum(len(y) for _, y in batches) == data.num_windows


def test_chosen_utterances_come_once(corpus):
    keys = list(corpus.frames)[1:6]
    assert seen(stream(corpus, Selection(utterances=keys))) == windows_of(corpus, keys)


def test_blocks_without_a_chosen_utterance_are_not_read(corpus):
    key = next(iter(corpus.frames))
    data = stream(corpus, Selection(utterances=[key]))
    read = []
    map_blocks = data.data.map_blocks
    data.data.map_blocks = lambda task, blocks, threads: read.extend(blocks) or map_blocks(task, blocks, threads)
    list(data)
    data.close()
    assert len(set(read)) == 1


def test_balanced_speakers_have_about_as_many_windows(corpus):
    data = stream(corpus, Selection(balance=True))
    labels = Counter(int(label) for _, y in data for label in y)
    assert 0.75 < labels[0] / labels[1] < 1.35
    times = seen(data)
    large = windows_of(corpus, [key for key in corpus.frames if "spk0" in key])
    small = windows_of(corpus, [key for key in corpus.frames if "spk1" in key])
    assert all(times[window] == 1 for window in large)
    counts = [times[window] for window in small]
    assert max(counts) - min(counts) <= 1


def test_repeats_of_balanced_speakers_are_cut_off_by_less_than_one_utterance(corpus):
    lengths = corpus.dataset.utterances["frames"]
    repeats = Selection(balance=True).repeats(corpus.dataset, lengths)
    totals = [sum(LENGTHS[speaker::2]) for speaker in (0, 1)]
    assert np.bincount(corpus.dataset.utterances["speaker"], repeats).tolist() == [4, int(4 * totals[0] / totals[1])]


def test_ranks_share_a_choice_and_a_state_names_it(corpus):
    chosen = Selection(speakers=["spk0"], balance=True)
    single = seen(stream(corpus, chosen))
    ranks = [stream(corpus, chosen, rank=rank, world_size=3) for rank in range(3)]
    assert sum((seen(rank) for rank in ranks), Counter()) == single
    state = stream(corpus, chosen).state_dict()
    stream(corpus, Selection(speakers=["spk0"], balance=True)).load_state_dict(state)
    with pytest.raises(InputError, match=r"the stream's state is of another selection: '\w+' there, None here"):
        stream(corpus, None).load_state_dict(state)


def test_what_the_dataset_lacks_is_named(corpus):
    with pytest.raises(InputError, match=r"has no speaker 'nobody' among its 2; see them with: spkid info"):
        stream(corpus, Selection(speakers=["spk0", "nobody"]))
    with pytest.raises(InputError, match=r"lacks 1 of the 1 chosen utterances: 'X/spk0/utt999'"):
        stream(corpus, Selection(utterances=["X/spk0/utt999"]))
    with pytest.raises(UsageError, match="no utterance is chosen"):
        stream(corpus, Selection(speakers=[]))
