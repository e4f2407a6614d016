"""Describe what a prediction is about: a corpus, a stream, a cluster.

Sizes with their units; nothing is measured.
"""

from dataclasses import dataclass

from spkid_dist.simulate.mixing import Lengths

MEMBER_BYTES = 4 * 512 + 2048  # a block's four headers and payloads' padding
KEY_BYTES = 60  # an utterance's key, speaker, length and label
UTTERANCE_ROW_BYTES = 20  # in the utterance table


@dataclass(frozen=True, kw_only=True)
class CorpusSize:
    """A sharded corpus, or what it would be; `lengths` are numbers of windows and how many utterances have each."""

    num_frames: int
    num_utterances: int
    num_features: int
    num_speakers: int
    num_windows: int
    num_shards: int
    value_bytes: int
    stored_bytes: int
    block_frames: int
    lengths: Lengths

    @property
    def stored_bytes_per_window(self) -> float:
        """What is read from the store for a window."""
        return self.stored_bytes / self.num_windows


def stored_bytes(num_frames: int, num_utterances: int, num_features: int, value_bytes: int, block_frames: int) -> int:
    """Bytes of the shards of a corpus that is not made yet: frames, and what stands around them."""
    blocks = -(-num_frames // block_frames)
    return num_frames * num_features * value_bytes + blocks * MEMBER_BYTES + num_utterances * KEY_BYTES


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The options of a training that decide its order: as in `spkid train`."""

    in_frames: int
    batch_size: int
    num_streams: int
    shuffle_windows: int
    edge: str

    @property
    def pool_windows(self) -> int:
        """Windows of a pool."""
        return max(1, self.shuffle_windows // self.num_streams)

    def rank_streams(self, ranks: int) -> int:
        """Streams of the rank with the most."""
        return -(-self.num_streams // ranks)

    def rank_windows(self, ranks: int, num_windows: int) -> int:
        """Windows that a rank takes of a global batch at most, of `num_windows` an epoch.

        A batch goes round the streams, and ends within a round: of the `rest`, which may begin at any stream, a rank has each
        `ranks`-th, and one more across the end of the round where the ranks do not divide the streams.
        """
        rows, rest = divmod(min(self.batch_size, num_windows), self.num_streams)
        across = 1 if self.num_streams % ranks else 0
        of_rest = min(rest, -(-rest // ranks) + across, self.rank_streams(ranks))
        return rows * self.rank_streams(ranks) + of_rest


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes and what is between them; None where a limit is not known, and so does not limit.

    `store_bytes_per_second` is what all nodes together get from the store, `node_store_bytes_per_second` what one can take.
    """

    nodes: int
    devices_per_node: int
    network_bytes_per_second: float | None
    store_bytes_per_second: float | None
    node_store_bytes_per_second: float | None
    node_memory_bytes: float | None
    node_hour_price: float | None

    @property
    def ranks(self) -> int:
        """Processes, one a device."""
        return self.nodes * self.devices_per_node

    @property
    def total_store_bytes_per_second(self) -> float | None:
        """What all nodes together can read."""
        each = self.node_store_bytes_per_second
        limits = [
            limit
            for limit in (self.store_bytes_per_second, None if each is None else each * self.nodes)
            if limit is not None
        ]
        return min(limits, default=None)
