"""What tests of conversion jobs share: a corpus, its plan and command, and a source that kills who reads it."""

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards import FmatrixSource, Layout, Plan, Utterance, make_plan, read_list
from spkid_dist.measure.synthetic import SyntheticCorpus

LAYOUT = {"block_frames": 256, "shard_bytes": 40_000}


def write_corpus(folder: Path) -> Path:
    """Feature files for about ten small shards, more than planning loads."""
    SyntheticCorpus(num_speakers=10, train_utterances=12, mean_frames=100, num_features=8).write(folder)
    return folder


def plan_of(corpus: Path, **layout: int) -> tuple[Plan, FmatrixSource]:
    source = FmatrixSource(corpus / "mcp", "mcp")
    speakers = sorted(json.loads((corpus / "cfg/spk2idx.json").read_text()))
    return make_plan(read_list(corpus / "cfg/all.train"), speakers, source, Layout(**(LAYOUT | layout))), source


def stored(plan: Plan) -> list[Utterance]:
    """All utterances in their order of storage: planning loads the first ones, and the last task the last ones."""
    return plan.listing.select(range(plan.job.num_utterances))


def file_of(source: FmatrixSource, utterance: Utterance) -> Path:
    return Path(source.where(utterance))


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def command(corpus: Path, out: Path, *arguments: object) -> list[str]:
    """The command line that shards the corpus."""
    layout = [f"--{name}={value}" for name, value in LAYOUT.items()]
    paths = ("--db_path", corpus / "mcp", "--list", corpus / "cfg/all.train", "--spk2idx", corpus / "cfg/spk2idx.json")
    words = (sys.executable, "-c", "from spkid_dist.commands.cli import main; main()", "shard", *paths, "--out", out)
    return [*map(str, words), *layout, *map(str, arguments)]


@dataclass(frozen=True)
class DeadlySource(FmatrixSource):
    """A source whose process is killed at one utterance, as by the kernel when memory runs out."""

    victim: str = ""

    def load(self, utterance: Utterance) -> np.ndarray:
        if utterance.key == self.victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(utterance)
