"""How many bytes a rank's pools take: arithmetic alone, for who plans as for who runs."""

from dataclasses import dataclass

BLOCKS_KEPT = 2  # a stream; see `spkid_dist.streaming.arena`
TABLE_BYTES = 8  # of a window's entry in each of its tables


@dataclass(frozen=True, kw_only=True)
class PoolSize:
    """What the memory of a rank's pools follows from; `value_bytes` is that of a stored feature, 2 or 4."""

    num_windows: int
    num_frames: int
    num_utterances: int
    num_features: int
    value_bytes: int
    block_frames: int
    in_frames: int
    num_streams: int
    pool_windows: int
    rank_streams: int
    world_size: int

    @property
    def rank_windows(self) -> int:
        """Windows of this rank in one generation, at most."""
        generation = min(self.num_streams * self.pool_windows, self.num_windows)
        return -(-generation // self.world_size) + self.num_streams

    @property
    def own_bytes(self) -> int:
        """Bytes at most of the pools themselves, in use and being filled; all there is where shards are mapped."""
        utterances = -(-self.num_utterances * self.rank_windows // self.num_frames) + 2 * self.rank_streams
        arena = (self.rank_windows + utterances * (self.in_frames - 1)) * self._row_bytes
        # In use: an arena and three tables; being filled: the same, and three tables in line order.
        return 2 * arena + 9 * TABLE_BYTES * self.rank_windows

    @property
    def max_bytes(self) -> int:
        """`own_bytes`, and the blocks that are kept where they can't be mapped: of a remote dataset."""
        return self.own_bytes + self._kept_bytes

    @property
    def placed_bytes(self) -> int:
        """Bytes at most where the pools lie on a device: of their tables while they are made, and the blocks that are kept."""
        return 9 * TABLE_BYTES * self.rank_windows + self._kept_bytes

    @property
    def _kept_bytes(self) -> int:
        return BLOCKS_KEPT * self.rank_streams * 2 * self.block_frames * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self.num_features * self.value_bytes
