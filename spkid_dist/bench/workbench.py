"""Hold what all stages measure with: options, corpus, device, and cases that all ranks of a launch run at once."""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from spkid_dist.bench.corpus import BenchCorpus
from spkid_dist.bench.measure import Timing, runs_in_turn
from spkid_dist.config.bench import BenchConfig

Case = Callable[[], float]
"""Does some work, and returns how much it was, in the unit of its rate."""


def _untold(_share: float) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """Options, corpus and place of this process.

    `threads` are torch's, `workers` the processes that may shard. `progress` is told the share of a stage that is done.
    """

    config: BenchConfig
    corpus: BenchCorpus
    accelerator: Accelerator
    threads: int
    workers: int = 1
    progress: Callable[[float], None] = _untold

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return torch.device(self.accelerator.device)

    @property
    def world_size(self) -> int:
        """W, the ranks of this launch."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """This process's place among them."""
        return int(self.accelerator.process_index)

    @property
    def shards(self) -> str:
        """The dataset's folder or URL."""
        assert self.corpus.shards is not None, "the stage needs a dataset"
        return self.corpus.shards

    def rates(self, cases: Mapping[str, Case], before: Callable[[], object] = lambda: None) -> dict[str, list[float]]:
        """The rates of each case, a round each: the sum over all ranks, which run it at once. Called by all ranks."""

        runs = itertools.count()
        last = len(cases) * (self.config.repeats + 1)

        def ready() -> None:
            self.progress(next(runs) / last)
            before()
            self.accelerator.wait_for_everyone()

        return self.sum_rates(runs_in_turn(cases, self.config.repeats, ready))

    def once(self, case: Case) -> list[float]:
        """The rate of one run of a case, which all ranks begin together. Called by all ranks."""
        self.accelerator.wait_for_everyone()
        began = time.perf_counter()
        amount = case()
        return self.sum_rates({"": [Timing(time.perf_counter() - began, amount)]})[""]

    def sum_rates(self, runs: Mapping[str, list[Timing]]) -> dict[str, list[float]]:
        """The sums over all ranks of the runs' rates. Called by all ranks, with alike runs."""
        mine = {name: [run.result / run.seconds for run in of_case] for name, of_case in runs.items()}
        everyone: list[dict[str, list[float]]] = gather_object([mine])
        return {
            name: [sum(of_round) for of_round in zip(*(rates[name] for rates in everyone), strict=True)]
            for name in mine
        }

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
