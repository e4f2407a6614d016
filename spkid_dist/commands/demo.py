"""The command `spkid demo`: shard, train and score a small synthetic corpus, and say where to look next."""

import shutil
import time
from pathlib import Path

from shards.errors import InputError
from shards.holding import HOLD_NAME, FolderHold
from spkid_dist.commands.info import info
from spkid_dist.commands.shard import shard
from spkid_dist.config import DemoConfig, InfoConfig, ScoreConfig, ShardConfig, TrainConfig
from spkid_dist.measure.synthetic import SyntheticCorpus
from spkid_dist.ranks.console import RunLog
from spkid_dist.score import score_utterances
from spkid_dist.train import train_model

MARKER = ".spkid-demo"  # tells a folder of an earlier demo from one that is not ours to delete


def demo(config: DemoConfig) -> None:
    """Make a corpus in `config.out`, shard it, train on it, score it, and name the files to look at.

    Raises:
        InputError: the folder holds something else, another demo is at work in it, or it can't be written.
    """
    log = RunLog(shown=True)
    _check_place(config.out)
    with FolderHold(config.out, "give another --out", log.line):
        _clear(config.out)
        _show(config.out, SyntheticCorpus(seed=config.seed), log)


def _show(out: Path, corpus: SyntheticCorpus, log: RunLog) -> None:
    began = time.perf_counter()
    log.line(f"--- a corpus of {corpus.num_speakers} speakers, as feature files, lists and a speaker map")
    with log.bar(corpus.num_speakers, "speakers") as bar:
        corpus.write(out, bar.advance)
    for name, list_name in (("train", "all.train"), ("test", "all.test")):
        log.line(f"--- spkid shard: {list_name}")
        shard(
            ShardConfig(
                db_path=out / "mcp",
                list_file=out / "cfg" / list_name,
                spk2idx=out / "cfg/spk2idx.json",
                out=str(out / "data" / name),
            )
        )
    info(InfoConfig(folder=f"{out}/data/train"))
    log.line("--- spkid train")
    result = train_model(
        TrainConfig(
            tr_shards=f"{out}/data/train",
            va_shards=f"{out}/data/test",
            epoch=10,
            log_freq=80,
            save_path=out / "ckpt",
        )
    )
    log.line("--- spkid score")
    score_utterances(
        ScoreConfig(
            db_path=out / "mcp",
            te_list_file=out / "cfg/all.test",
            weights_ckpt=result.best_weights,
            train_cfg=out / "ckpt/train.opts",
            log_file=out / "spk_classification.log",
        )
    )
    for line in (
        f"--- done in {time.perf_counter() - began:.0f} s",
        *_next_steps(out, result.best_weights).splitlines(),
    ):
        log.line(line)


def _check_place(out: Path) -> None:
    """Raise InputError where `out` is neither new, nor empty, nor that of an earlier demo."""
    if out.exists() and not (out / MARKER).exists():
        found = [path for path in out.iterdir() if path.name != HOLD_NAME] if out.is_dir() else [out]
        if found:
            raise InputError(f"{out}: this folder holds something else; give --out a new or empty folder")


def _clear(out: Path) -> None:
    """Delete what an earlier demo made; the file by which this process holds the folder stays."""
    for path in out.iterdir():
        if path.name == HOLD_NAME:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (out / MARKER).touch()


def _next_steps(out: Path, weights: Path) -> str:
    corpus = f"--db_path {out}/mcp --spk2idx {out}/cfg/spk2idx.json"
    lists = f"--tr_list_file {out}/cfg/all.train --va_list_file {out}/cfg/all.test"
    return "\n".join(
        (
            "look at:",
            f"  {out}/ckpt/log_plots.png          the curves of the training",
            f"  {out}/ckpt/train.log              its log",
            f"  {out}/spk_classification.log      the speaker of each test utterance",
            "run next:",
            f"  spkid info {out}/data/train",
            f"  spkid train {corpus} {lists} --in_frames 31 --save_path ckpt31",
            "  ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m spkid_dist.train \\",
            f"    --tr_shards {out}/data/train --va_shards {out}/data/test --save_path ckpt2",
            f"  spkid score --db_path {out}/mcp --te_list_file {out}/cfg/all.test --weights_ckpt {weights} \\",
            f"    --train_cfg {out}/ckpt/train.opts --verbose",
        )
    )
