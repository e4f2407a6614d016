"""Run one training of the stage `scaling`: windows per second from the stream, by all processes of a launch.

accelerate launch ... -m spkid_dist.bench.one_training OPTIONS; OPTIONS is a JSON object, of options of `BenchConfig`. Rank 0
prints the rate, as JSON.
"""

import json
import sys
from pathlib import Path

from shards.jsontext import parse_json
from spkid_dist.bench.command import open_workbench
from spkid_dist.bench.train import measure_streamed
from spkid_dist.config.bench import BenchConfig


def main(options: str) -> None:
    """Print the rate."""
    given = parse_json(options)
    config = BenchConfig(what="train", **given | {"folder": Path(given["folder"])})
    with open_workbench(config) as (bench, _):
        rate = measure_streamed(bench)
        if bench.rank == 0:
            print(json.dumps(rate), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
