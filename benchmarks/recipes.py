"""Utterance errors of training recipes on a hard synthetic corpus: more speakers, strong channels, noise.

A recipe is a set of training flags. Recipes are compared on the development list, which also picks the best epoch; only
what was settled there is run with ``--list test``, whose utterances nothing else sees. The table has a row a recipe: wrong
utterances of each seed's training, and their mean rate. It is a check of the recipes, not a measure of speed.
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

from measure import machine

from shards.files import write_atomic
from spkid_dist.config import ScoreConfig, TrainConfig
from spkid_dist.score import score
from spkid_dist.synthetic import SyntheticCorpus
from spkid_dist.train import train

RECIPES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "normalize global": {"normalize": "global"},
    "normalize utterance": {"normalize": "utterance"},
}


def make_corpus(folder: Path, corpus: SyntheticCorpus) -> None:
    """Write the corpus, and deal what is not for training in turn to the lists cfg/all.dev and cfg/all.test."""
    corpus.write(folder)
    held_out = (folder / "cfg/all.test").read_text().splitlines(keepends=True)
    write_atomic(folder / "cfg/all.dev", "".join(held_out[0::2]).encode())
    write_atomic(folder / "cfg/all.test", "".join(held_out[1::2]).encode())


def wrong_utterances(folder: Path, name: str, options: dict[str, Any], list_name: str) -> tuple[int, int, int]:
    """Train with `options`, the best epoch by the development list; wrong and all utterances of a list, and the best epoch."""
    save_path = folder / name
    config = TrainConfig(
        db_path=folder / "mcp",
        tr_list_file=folder / "cfg/all.train",
        va_list_file=folder / "cfg/all.dev",
        spk2idx=folder / "cfg/spk2idx.json",
        cache_dir=folder / "cache",
        save_path=save_path,
        **options,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        result = train(config)
        scores = score(
            ScoreConfig(
                db_path=folder / "mcp",
                te_list_file=folder / f"cfg/all.{list_name}",
                weights_ckpt=result.best_weights,
                train_cfg=save_path / "train.opts",
                log_file=save_path / "spk_classification.log",
            )
        )
    return int((scores.found != scores.true).sum()), len(scores.keys), result.best_epoch


def compare(folder: Path, recipes: list[str], list_name: str, seeds: list[int]) -> dict[str, list[int]]:
    """Print a row a recipe; wrong utterances of each recipe and seed."""
    wrong: dict[str, list[int]] = {}
    for recipe in recipes:
        runs = [
            wrong_utterances(folder, f"{recipe}-{seed}", RECIPES[recipe] | {"seed": seed}, list_name) for seed in seeds
        ]
        wrong[recipe] = [run[0] for run in runs]
        rate = statistics.mean(wrong[recipe]) / runs[0][1]
        epochs = [run[2] for run in runs]
        print(f"{recipe:32} {rate:7.1%}  wrong of {runs[0][1]}: {wrong[recipe]}  best epochs: {epochs}", flush=True)
    return wrong


def flags_of(kind: type[Any], parser: argparse.ArgumentParser) -> None:
    """A flag for each field of the corpus."""
    for field in dataclasses.fields(kind):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=HARD.get(field.name, field.default))


HARD = {
    "num_speakers": 80,
    "train_utterances": 12,
    "test_utterances": 16,
    "mean_frames": 120,
    "channel_spread": 0.6,
    "noise_spread": 0.6,
}


def main() -> None:
    """Compare the recipes; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags_of(SyntheticCorpus, parser)
    parser.add_argument("--recipe", action="append", choices=list(RECIPES), help="only this one; may be repeated")
    parser.add_argument("--list", choices=("dev", "test"), default="dev", help="list that errors are counted on")
    parser.add_argument("--seeds", type=int, default=1, help="trainings a recipe, of seeds 0, 1, ...")
    arguments = vars(parser.parse_args())
    os.environ["ACCELERATE_USE_CPU"] = "true"
    corpus = SyntheticCorpus(**{field.name: arguments[field.name] for field in dataclasses.fields(SyntheticCorpus)})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_corpus(folder, corpus)
        recipes = arguments["recipe"] or list(RECIPES)
        wrong = compare(folder, recipes, arguments["list"], list(range(arguments["seeds"])))
    result = {"corpus": dataclasses.asdict(corpus), "list": arguments["list"], "wrong": wrong}
    print(json.dumps(result | {"machine": machine()}))


if __name__ == "__main__":
    main()
