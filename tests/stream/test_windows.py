"""Windows are counted the same however the dataset is cut, and nothing is kept for each block."""

import numpy as np
import pytest
from conftest import make_corpus

from spkid_dist.config.choices import EDGE_CODES
from spkid_dist.streaming import windows as windows_module
from spkid_dist.streaming.kernels import windows_of
from spkid_dist.streaming.selection import Selection
from spkid_dist.streaming.windows import DatasetWindows

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    lengths = [3, 9, 1, 30, 12, 4, 25, 2, 17, 8, 40, 5]
    return make_corpus(tmp_path_factory.mktemp("corpus"), lengths, block_frames=20, shard_bytes=300)


@pytest.mark.parametrize("edge", ["zero", "edge", "valid"])
@pytest.mark.parametrize("selection", [Selection(), Selection(speakers=["spk1"]), Selection(balance=True)])
@pytest.mark.parametrize("at_a_time", [1, 3, 2**16])
def test_counts_equal_those_of_each_utterance(corpus, edge, selection, at_a_time, monkeypatch):
    monkeypatch.setattr(windows_module, "BLOCKS_AT_A_TIME", at_a_time)
    dataset = corpus.dataset
    found = DatasetWindows(dataset, 5, edge, selection)
    table = dataset.utterances
    each = np.array([windows_of(int(length), 5, EDGE_CODES[edge]) for length in table["frames"]])
    repeats = np.ones(len(table), int) if selection.is_everything else selection.repeats(dataset, each)
    per_block = np.bincount(table["block"], weights=each * repeats, minlength=len(dataset.blocks)).astype(int)
    assert len(dataset.manifest.shards) > 2
    assert found.of_blocks(range(len(per_block))).tolist() == per_block.tolist()
    assert [found.of_blocks(found.blocks_of(s)).sum() for s in range(len(found.per_shard))] == found.per_shard.tolist()
    assert np.concatenate([found.repeats_of(b) for b in range(len(per_block))]).tolist() == repeats.tolist()
    assert found.num_short == int(((each == 0) & (repeats > 0)).sum())
    assert found.total == per_block.sum()
