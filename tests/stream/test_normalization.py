"""An utterance's normalised windows are the same by the stream, however its blocks are cut, as by itself."""

import numpy as np
import pytest
from conftest import make_corpus
from twins import twin_normalize, twin_windows

from spkid_dist.config.choices import EDGE_CODES
from spkid_dist.dataset import WindowDataset
from spkid_dist.streaming.normalization import normalize_frames

pytestmark = pytest.mark.fast

LENGTHS = [7, 1, 12, 3, 9, 30, 2, 5, 18]


def normalize_utterance(frames):
    return normalize_frames(frames, np.array([len(frames)], np.int32))


@pytest.fixture(scope="module", params=["float32", "float16"])
def corpus(request, tmp_path_factory):
    """Nine utterances in several blocks; their values are whole numbers that float16 holds too."""
    return make_corpus(tmp_path_factory.mktemp(request.param) / "c", LENGTHS, block_frames=20, dtype=request.param)


@pytest.mark.parametrize("edge", list(EDGE_CODES))
@pytest.mark.parametrize(("pool_windows", "world_size"), [(1000, 1), (4, 1), (4, 2)])  # all in memory at once, or parts
def test_the_stream_yields_the_windows_of_normalised_utterances(corpus, edge, pool_windows, world_size):
    expected = sorted(
        (tuple(window.tolist()), int(key.split("/")[1][-1]))
        for key, frames in corpus.frames.items()
        for window in twin_windows(normalize_utterance(frames), 4, EDGE_CODES[edge])
    )
    options = {"in_frames": 4, "edge": edge, "batch_size": 13, "num_streams": 3, "shuffle_windows": 3 * pool_windows}
    ranks = [
        WindowDataset(corpus.folder / "shards", **options, normalize="utterance", rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for _ in range(2):
        batches = [batch for data in ranks for batch in data]
        assert sorted((tuple(x), y) for xs, ys in batches for x, y in zip(xs.tolist(), ys.tolist(), strict=True)) == (
            expected
        )


def test_an_utterance_is_normalised_into_a_copy():
    frames = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    frames.flags.writeable = False
    np.testing.assert_allclose(normalize_utterance(frames), twin_normalize(frames), rtol=1e-5, atol=1e-6)
    half = frames.astype(np.float16)
    assert (normalize_utterance(half) == normalize_utterance(half.astype(np.float32))).all()


def test_zero_frames_are_the_utterances_mean(corpus):
    data = WindowDataset(
        corpus.folder / "shards", in_frames=3, edge="zero", shuffle=False, num_streams=1, normalize="utterance"
    )
    block = corpus.dataset.read_block(0)
    (x, _), *_ = list(data)
    first = x[: block.lengths[0]].numpy().reshape(-1, 3, 3)
    assert (first[0, 0] == 0).all()
    np.testing.assert_allclose(first[:, 1].mean(axis=0), 0, atol=1e-6)
