"""Utterance errors of training recipes on a hard synthetic corpus: channels as strong as the speakers, and noise.

A recipe is a set of training flags. Recipes are compared on the development list, which also picks each training's best
epoch; ``--list test`` counts errors on utterances that nothing else sees, and is for what was settled before. The table has
a row a recipe: the mean error rate, and the wrong utterances of each seed. It measures learning, not speed.
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

from shards.files import write_atomic
from spkid_dist.bench.measure import machine
from spkid_dist.config import ScoreConfig, TrainConfig
from spkid_dist.measure.synthetic import SyntheticCorpus
from spkid_dist.score import score_utterances
from spkid_dist.train import train_model

HARD = SyntheticCorpus(
    num_speakers=50,
    train_utterances=20,
    test_utterances=24,  # half of them for development
    mean_frames=150,
    accent_spread=0.7,
    channel_spread=0.45,
    noise_spread=0.5,
)
NORM = {"normalize": "utterance", "batch_norm": True}
RECIPES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "normalize global": {"normalize": "global"},
    "normalize utterance": {"normalize": "utterance"},
    "batch_norm": {"batch_norm": True},
    "utterance, batch_norm": NORM,
    "both and dropout 0.2": NORM | {"dropout": 0.2},
    "both and cosine": NORM | {"schedule": "cosine"},
    "both and adamw, weight_decay 1": NORM | {"optimizer": "adamw", "weight_decay": 1.0},
    "recipe": NORM | {"label_smoothing": 0.1},
}


def make_corpus(folder: Path, corpus: SyntheticCorpus) -> None:
    """Write the corpus, and deal what is not for training in turn to the lists cfg/all.dev and cfg/all.test."""
    corpus.write(folder)
    held_out = (folder / "cfg/all.test").read_text().splitlines(keepends=True)
    write_atomic(folder / "cfg/all.dev", "".join(held_out[0::2]).encode())
    write_atomic(folder / "cfg/all.test", "".join(held_out[1::2]).encode())


def count_wrong(folder: Path, save_path: Path, options: dict[str, Any], list_name: str) -> tuple[int, int, int]:
    """Train with `options`: wrong utterances of a list, all of them, and the best epoch by the development list."""
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
        result = train_model(config)
        scores = score_utterances(
            ScoreConfig(
                db_path=folder / "mcp",
                te_list_file=folder / f"cfg/all.{list_name}",
                weights_ckpt=result.best_weights,
                train_cfg=save_path / "train.opts",
                log_file=save_path / "spk_classification.log",
            )
        )
    return int((scores.found != scores.true).sum()), len(scores.keys), result.best_epoch


def compare(folder: Path, recipes: list[str], list_name: str, seeds: int, epochs: int) -> dict[str, list[int]]:
    """Print a row a recipe; wrong utterances of each recipe, a seed each."""
    wrong: dict[str, list[int]] = {}
    for recipe in recipes:
        options = RECIPES[recipe] | {"epoch": epochs}
        runs = [
            count_wrong(folder, folder / f"{recipe}-{seed}", options | {"seed": seed}, list_name)
            for seed in range(seeds)
        ]
        wrong[recipe] = [run[0] for run in runs]
        total, best_epochs = runs[0][1], [run[2] for run in runs]
        rate = statistics.mean(wrong[recipe]) / total
        print(f"{recipe:32} {rate:6.1%}  wrong of {total}: {wrong[recipe]}  best epochs: {best_epochs}", flush=True)
    return wrong


def main() -> None:
    """Compare the recipes; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(HARD):
        value = getattr(HARD, field.name)
        parser.add_argument(f"--{field.name}", type=type(value), default=value, help=f"of the corpus; {value}")
    parser.add_argument("--recipe", action="append", choices=list(RECIPES), help="only this one; may be repeated")
    parser.add_argument("--list", choices=("dev", "test"), default="dev", help="list that errors are counted on")
    parser.add_argument("--seeds", type=int, default=1, help="trainings a recipe, of seeds 0, 1, ...")
    parser.add_argument("--epoch", type=int, default=20, help="epochs of a training")
    arguments = vars(parser.parse_args())
    os.environ["ACCELERATE_USE_CPU"] = "true"
    corpus = SyntheticCorpus(**{field.name: arguments[field.name] for field in dataclasses.fields(HARD)})
    with tempfile.TemporaryDirectory() as temporary:
        make_corpus(Path(temporary), corpus)
        recipes = arguments["recipe"] or list(RECIPES)
        wrong = compare(Path(temporary), recipes, arguments["list"], arguments["seeds"], arguments["epoch"])
    result = {"corpus": dataclasses.asdict(corpus), "list": arguments["list"], "wrong": wrong}
    print(json.dumps(result | {"machine": machine()}))


if __name__ == "__main__":
    main()
