"""Time a fresh process that opens a dataset, goes to a place in an epoch, and takes a batch; the seconds are printed as JSON.

python -m spkid_dist.bench.first_batch SHARDS PLACE IN_FRAMES BATCH_SIZE; PLACE is ``start``, or a share of the epoch that a
state leads to. The interpreter's start and the imports are not counted.
"""

import json
import sys
import time

from spkid_dist.dataset import WindowDataset


def main(shards: str, place: str, in_frames: int, batch_size: int) -> None:
    """Print the seconds."""
    began = time.perf_counter()
    data = WindowDataset(shards, in_frames=in_frames, batch_size=batch_size, rank=0, world_size=1)
    if place != "start":
        position = int(float(place) * data.num_windows)
        data.load_state_dict(data.state_dict() | {"position": position, "ledger": None})
    next(iter(data))
    print(json.dumps(time.perf_counter() - began))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
