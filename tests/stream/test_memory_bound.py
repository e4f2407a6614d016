"""The memory that a stream states is what it takes."""

import subprocess
import sys

from conftest import make_corpus


def test_memory_stays_within_the_bound_that_is_stated(tmp_path):
    """Private memory, over an epoch of a dataset 20 times as large as its pools."""
    corpus = make_corpus(tmp_path / "c", [500] * 200, num_features=20)
    program = f"""
import gc, resource
from pathlib import Path
from spkid_dist.dataset import WindowDataset
def private():
    fields = Path("/proc/self/smaps_rollup").read_text().split()
    return 1024 * sum(int(fields[fields.index(name) + 1]) for name in ("Private_Clean:", "Private_Dirty:"))
for shuffle_windows in (64, 4800):  # the first loads and compiles all that is used
    data = WindowDataset({str(corpus.folder / "shards")!r}, batch_size=100, num_streams=16, shuffle_windows=shuffle_windows)
    assert data.num_windows >= 20 * shuffle_windows
    gc.collect()
    before, peak = private(), 0
    for number, batch in enumerate(data):
        peak = max(peak, private()) if number % 50 == 0 else peak
    data.close()
print(peak - before, data.memory_bound)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    used, bound = map(int, done.stdout.split())
    assert 0 < used <= bound
