"""Steps of the training on one batch that is in memory, and nothing else: no stream, no log lines, no checkpoints.

    python benchmarks/cached_step.py SHARDS [--batches 1000] [--mixed_precision no|bf16]

`spkid bench train` takes the same steps; here they are a process of their own, beside `spkid train` and other programs. The
last line is JSON: windows and seconds of the steps after the first ones.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path

import torch

from spkid_dist.bench.corpus import BenchCorpus
from spkid_dist.bench.stream import open_stream
from spkid_dist.bench.train import cached_batch, steps_case, training_steps
from spkid_dist.bench.workbench import Workbench
from spkid_dist.config.bench import BenchConfig
from spkid_dist.config.choices import DEFAULT_SHUFFLE_WINDOWS
from spkid_dist.process.allocator import keep_freed_memory
from spkid_dist.ranks.accelerator import make_accelerator
from spkid_dist.training.step import stream_dtype

WARM_UP = 20
TIMEOUT_MINUTES = 10.0


def main() -> None:
    """Take so many steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="of the training set")
    parser.add_argument("--batches", type=int, default=1000, help="after the first ones")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="as that of spkid train")
    options = parser.parse_args()
    keep_freed_memory()  # as trainings do
    with make_accelerator(precision=options.mixed_precision, timeout_minutes=TIMEOUT_MINUTES) as accelerator:
        bench = Workbench(
            config=BenchConfig(what="train", shards=options.shards, mixed_precision=options.mixed_precision),
            corpus=BenchCorpus(shards=options.shards, files=None, work=Path(tempfile.gettempdir()), facts={}),
            accelerator=accelerator,
            threads=torch.get_num_threads(),
        )
        data = open_stream(bench, DEFAULT_SHUFFLE_WINDOWS, dtype=stream_dtype(options.mixed_precision, "none"))
        steps, numbered = training_steps(bench, data), itertools.repeat((cached_batch(data), 0))
        steps_case(bench, steps, numbered, WARM_UP)()
        began = time.perf_counter()
        windows = steps_case(bench, steps, numbered, options.batches)()
        print(json.dumps({"windows": windows, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
