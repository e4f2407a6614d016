"""Utterance errors of training recipes, on synthetic corpora: one of many channels, and one of nearly one channel.

A recipe is a set of training flags: a file of `recipes/`, or a variation of one. Recipes are compared on the development list,
which is also the validation set of the trainings; ``--list test`` counts errors on utterances that nothing else sees, and is
for what was settled before. The table has a row per recipe: wrong utterances of each seed, by the weights of the best epoch and
by the averaged ones. It measures learning, not speed.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml

from shards.files import write_atomic
from spkid_dist.bench.measure import machine
from spkid_dist.config import ScoreConfig, TrainConfig
from spkid_dist.measure.synthetic import SyntheticCorpus
from spkid_dist.score import score_utterances
from spkid_dist.train import train_model

CORPORA = {
    # Each utterance has a channel of its own, as strong as the speakers.
    "channels": SyntheticCorpus(
        num_speakers=50,
        train_utterances=20,
        test_utterances=24,  # half of them for development
        mean_frames=150,
        accent_spread=0.7,
        channel_spread=0.45,
        noise_spread=0.5,
    ),
    # Short utterances of many speakers, whose channels differ little.
    "one_channel": SyntheticCorpus(
        num_speakers=100,
        train_utterances=10,
        test_utterances=20,
        mean_frames=100,
        accent_spread=0.5,
        channel_spread=0.15,
        noise_spread=0.6,
    ),
}
FILES = Path(__file__).parents[1] / "recipes"
FROM_FILES: dict[str, dict[str, Any]] = {
    name: yaml.safe_load((FILES / f"{name}.yaml").read_text()) for name in ("cheap", "accurate", "channels")
}
CHEAP, ACCURATE, CHANNELS = FROM_FILES.values()
SETTLED = {"defaults": {}, **FROM_FILES}
RECIPES: dict[str, dict[str, Any]] = SETTLED | {
    "cheap, without label smoothing": CHEAP | {"label_smoothing": 0.0},
    "cheap, edge": CHEAP | {"edge": "edge"},
    "accurate, 100 units": ACCURATE | {"hsize": 100},
    "accurate, 256 units": ACCURATE | {"hsize": 256},
    "accurate, dropout 0.5": ACCURATE | {"dropout": 0.5},
    "accurate, without label smoothing": ACCURATE | {"label_smoothing": 0.0},
    "accurate, normalize utterance": ACCURATE | {"normalize": "utterance"},
}
FILES_OF_A_TRAINING = ("best", "averaged")


def make_corpus(folder: Path, corpus: SyntheticCorpus) -> None:
    """Write the corpus, and deal what is not for training in turn to the lists cfg/all.dev and cfg/all.test."""
    corpus.write(folder)
    held_out = (folder / "cfg/all.test").read_text().splitlines(keepends=True)
    write_atomic(folder / "cfg/all.dev", "".join(held_out[0::2]).encode())
    write_atomic(folder / "cfg/all.test", "".join(held_out[1::2]).encode())


def data_of(folder: Path) -> dict[str, Path]:
    """The corpus of `make_corpus` as options of a training that validates on the development list."""
    return {
        "db_path": folder / "mcp",
        "tr_list_file": folder / "cfg/all.train",
        "va_list_file": folder / "cfg/all.dev",
        "spk2idx": folder / "cfg/spk2idx.json",
        "cache_dir": folder / "cache",
    }


def count_wrong(folder: Path, save_path: Path, options: dict[str, Any], list_name: str) -> tuple[dict[str, int], int]:
    """Train with `options`: wrong utterances of a list by each file of weights, and how many the list has."""
    config = TrainConfig(**data_of(folder), save_path=save_path, **options)
    wrong, total = {}, 0
    with contextlib.redirect_stdout(io.StringIO()):
        result = train_model(config)
        for name, weights in zip(FILES_OF_A_TRAINING, (result.best_weights, result.averaged_weights), strict=True):
            assert weights is not None
            scores = score_utterances(
                ScoreConfig(
                    db_path=folder / "mcp",
                    te_list_file=folder / f"cfg/all.{list_name}",
                    weights_ckpt=weights,
                    log_file=save_path / f"{name}.log",
                    pictures=False,
                )
            )
            wrong[name], total = int((scores.found != scores.true).sum()), len(scores.keys)
    return wrong, total


def compare(
    folder: Path, recipes: list[str], list_name: str, seeds: int, epochs: int
) -> dict[str, dict[str, list[int]]]:
    """Print a row per recipe; wrong utterances of each recipe, by each file of weights, one per seed."""
    found: dict[str, dict[str, list[int]]] = {}
    for recipe in recipes:
        options = RECIPES[recipe] | {"epoch": epochs}
        runs = [
            count_wrong(folder, folder / f"{recipe}-{seed}", options | {"seed": seed}, list_name)
            for seed in range(seeds)
        ]
        found[recipe] = {name: [wrong[name] for wrong, _ in runs] for name in FILES_OF_A_TRAINING}
        total = runs[0][1]
        rates = (f"{name} {statistics.mean(wrong) / total:6.1%} {wrong}" for name, wrong in found[recipe].items())
        print(f"{recipe:36} wrong of {total}: {'   '.join(rates)}", flush=True)
    return found


def main() -> None:
    """Compare the recipes on each corpus; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="append", choices=list(CORPORA), help="only this one; may be repeated")
    for field in dataclasses.fields(SyntheticCorpus):
        parser.add_argument(f"--{field.name}", type=type(field.default), help="of each corpus, in place of its own")
    parser.add_argument("--recipe", action="append", choices=list(RECIPES), help="only this one; may be repeated")
    parser.add_argument("--all", action="store_true", help="the variations of the recipes too")
    parser.add_argument("--list", choices=("dev", "test"), default="dev", help="list that errors are counted on")
    parser.add_argument("--seeds", type=int, default=1, help="trainings per recipe, of seeds 0, 1, ...")
    parser.add_argument("--epoch", type=int, default=20, help="epochs of a training")
    arguments = vars(parser.parse_args())
    os.environ["ACCELERATE_USE_CPU"] = "true"
    given = {field.name: arguments[field.name] for field in dataclasses.fields(SyntheticCorpus)}
    given = {name: value for name, value in given.items() if value is not None}
    recipes = arguments["recipe"] or list(RECIPES if arguments["all"] else SETTLED)
    result: dict[str, Any] = {"list": arguments["list"], "corpora": {}, "wrong": {}}
    for name in arguments["corpus"] or list(CORPORA):
        corpus = dataclasses.replace(CORPORA[name], **given)
        print(f"{name}: {corpus.num_speakers} speakers", flush=True)
        with tempfile.TemporaryDirectory() as temporary:
            make_corpus(Path(temporary), corpus)
            wrong = compare(Path(temporary), recipes, arguments["list"], arguments["seeds"], arguments["epoch"])
        result["corpora"][name], result["wrong"][name] = dataclasses.asdict(corpus), wrong
    print(json.dumps(result | {"machine": machine()}))


if __name__ == "__main__":
    main()
