"""Name the kinds of files, where the world has one of each, and the commands that read them.

A command's results are what must equal those on the sound world. What holds times or paths of the run is left out of that.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from world import AUDIO, MAP, SETS, SHARD, TRAIN

ONE_KEY = "SYN/spk0000/spk0000_0000"
VOLATILE = re.compile(
    r"date|spkid-dist|environment|\w*per_second|\w*_share|\w*seconds\w*|cache_dir|ranks|host\w*|versions|started|ended|command"
)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line in the world: what it writes (`outputs`), and whether it prints its result (`prints`).

    `outputs` are files or folders that a refused command must not leave as if they were whole. `ignored` are endings of names
    that tell how a result came about, such as from which checkpoint.
    """

    words: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    prints: bool = False
    ignored: tuple[str, ...] = ()


def command_of(words: str, *outputs: str, before: tuple[str, ...] = (), **more: Any) -> Command:
    return Command(words=(*before, *words.split()), outputs=outputs, **more)


LIST = "--list cfg/all.train --out out"
SCORE = "score --no_pictures --log_file r.log --scores r.npz"
R = ("r.log", "r.json", "r.npz")
TRIALS = "trials --trials cfg/trials --no_pictures --out t.txt"
T = ("t.txt", "t.json")
COMMANDS: dict[str, Command] = {
    "shard": command_of(f"--db_path mcp {LIST}", "out", before=SHARD),
    "shard_npy": command_of(f"--source npy --db_path npy {LIST}", "out", before=SHARD),
    "shard_npz": command_of(f"--source npy --ext npz --db_path npz {LIST}", "out", before=SHARD),
    "shard_wav": command_of(f"--db_path wav {LIST}", "out", before=(*SHARD, *AUDIO)),
    "shard_flac": command_of(f"--ext flac --db_path flac {LIST}", "out", before=(*SHARD, *AUDIO)),
    "shard_kaldi": command_of("--source kaldi --db_path kaldi --out out", "out", before=SHARD),
    "shard_skip": command_of(f"--skip_bad --db_path mcp {LIST}", "out", before=SHARD),
    "shard_skip_wav": command_of(f"--skip_bad --db_path wav {LIST}", "out", before=(*SHARD, *AUDIO)),
    "shard_tsv": command_of(f"--speaker_tsv cfg/speakers.tsv --db_path mcp {LIST}", "out", before=SHARD),
    "shard_utt2spk": command_of(f"--utt2spk cfg/utt2spk --db_path mcp {LIST}", "out", before=SHARD),
    "shard_config": command_of("shard --config cfg/shard.yaml", "out"),
    "append": command_of("--append --db_path mcp --list cfg/all.train --out data/grown", "data/grown", before=SHARD),
    "task": command_of("--task 1/2 --db_path mcp --list cfg/all.train --out data/half", "data/half", before=SHARD),
    "again": command_of("--task 0/2 --db_path mcp --list cfg/all.train --out data/half", "data/half", before=SHARD),
    "merge": command_of("merge data/tasks", "data/tasks"),
    "index": command_of("index data/tars", "data/tars"),
    "verify": command_of("verify data/train", prints=True),
    "verify_quick": command_of("verify --quick data/train", prints=True),
    "info": command_of("info --json data/train", prints=True),
    "simulate": command_of("simulate --shards data/train --device h100 --json", prints=True),
    "train": command_of("--epoch 1 --save_path new", "new", before=("train", *SETS, *TRAIN)),
    "train_some": command_of(
        "--epoch 1 --save_path new --tr_utterances cfg/some --balance_speakers",
        "new", before=("train", *SETS, *TRAIN),
    ),
    "train_files": command_of("--epoch 1 --save_path new --cache_dir cache", "new", before=("train", *MAP, *TRAIN)),
    "train_config": command_of("train --config cfg/train.yaml", "new"),
    "train_opts": command_of("train --config ckpt/train.opts --save_path new --epoch 1", "new"),
    "resume": command_of("--epoch 3 --lr 0.01 --save_path ckpt --resume auto", "ckpt", before=("train", *SETS, *TRAIN),
                       ignored=("summary.json", ".calibration.json")),
    "score": command_of(f"{SCORE} --te_shards data/test --model ckpt", *R),
    "score_files": command_of(f"{SCORE} --te_list_file cfg/all.test --model ckpt", *R),
    "score_wav": command_of(f"{SCORE} --db_path wav --te_list_file cfg/recordings --model voice", *R),
    "score_two": command_of(f"{SCORE} --te_shards data/test --model ckpt --model others/b", *R),
    "score_config": command_of("score --config cfg/score.yaml", "r.log", "r.json"),
    "score_top": command_of("--te_shards data/test --model ckpt --top 2 --scores r.parquet --log_file r.log",
                            "r.log", "r.json", "r.parquet", before=("score", "--no_pictures")),
    "calibrate": command_of("calibrate --te_shards data/dev --model others/b --force",
                          "others/b/averaged_e3_weights.calibration.json", "others/b/bestval_e3_weights.calibration.json"),
    "trials": command_of(f"{TRIALS} --te_shards data/test --model ckpt", *T),
    "trials_npz": command_of(f"{TRIALS} --scores scores.npz --model ckpt", *T),
    "trials_parquet": command_of(f"{TRIALS} --scores scores.parquet", *T),
    "trials_cosine": command_of(f"{TRIALS} --embeddings embeddings.npz --enrol cfg/enrol", *T),
    "trials_npy": command_of(f"{TRIALS} --embeddings embeddings.npy --enrol cfg/enrol", *T),
    "trials_ark": command_of(f"{TRIALS} --embeddings embeddings.ark --enrol cfg/enrol --center embeddings.npz", *T),
    "identify": command_of(f"identify ckpt mcp/{ONE_KEY}.mcp --json", prints=True),
    "identify_wav": command_of(f"identify voice wav/{ONE_KEY}.wav --json", prints=True),
    "identify_flac": command_of(f"identify voice flac/{ONE_KEY}.flac --json", prints=True),
    "embed": command_of("embed --te_shards data/test --model ckpt --out e.npz", "e.npz"),
    "export": command_of("export --model ckpt --out exported --format safetensors", "exported"),
    "report": command_of("report ckpt --out page.html", "page.html"),
    "results": command_of("results others --json", prints=True),
    "doctor": command_of("doctor --shards data/train --save_path new --json", prints=True),
}  # fmt: skip


WITHOUT_MODEL = frozenset(
    name
    for name in COMMANDS
    if name.split("_")[0] in ("shard", "append", "task", "again", "merge", "index", "verify", "info")
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file: where the world has one, of which `family` of formats, and who reads it.

    `sealed`: a checksum is over it, so that each change is noticed or means nothing. `made_by` is a command that makes the
    file in the case's own world, as its place is part of its name. `optional`: commands say what they know without it.
    `by_size`: the command compares its size alone, and readers of the result its bytes.
    """

    path: str
    family: str
    commands: tuple[str, ...]
    sealed: bool = False
    made_by: str = ""
    optional: bool = False
    by_size: bool = False


def _kind(path: str, family: str, commands: str, sealed: bool = False, **more: Any) -> Kind:
    return Kind(path=path, family=family, commands=tuple(commands.split()), sealed=sealed, **more)


BEST = "ckpt/bestval_e1_weights.ckpt"
FILL = f"train --spk2idx cfg/spk2idx.json --cache_dir cache --epoch 1 --save_path filling {' '.join(TRAIN)}"
READ_DATA = "verify verify_quick info simulate train train_some"
KINDS: dict[str, Kind] = {
    "list": _kind("cfg/all.train", "list", "shard shard_skip append train_files"),
    "test list": _kind("cfg/all.test", "list", "score_files train_files shard_config"),
    "chosen": _kind("cfg/some", "list", "train_some"),
    "spk2idx": _kind("cfg/spk2idx.json", "json", "shard train_files shard_kaldi"),
    "speaker table": _kind("cfg/speakers.tsv", "table", "shard_tsv"),
    "utt2spk": _kind("cfg/utt2spk", "table", "shard_utt2spk"),
    "fmatrix": _kind(f"mcp/{ONE_KEY}.mcp", "fmatrix", "shard shard_skip identify train_files"),
    "npy": _kind(f"npy/{ONE_KEY}.npy", "npy", "shard_npy"),
    "npz": _kind(f"npz/{ONE_KEY}.npz", "npz", "shard_npz"),
    "wav": _kind(f"wav/{ONE_KEY}.wav", "wav", "shard_wav shard_skip_wav identify_wav score_wav"),
    "flac": _kind(f"flac/{ONE_KEY}.flac", "flac", "shard_flac identify_flac"),
    "scp": _kind("kaldi/feats.scp", "table", "shard_kaldi"),
    "ark": _kind("kaldi/feats.ark", "ark", "shard_kaldi"),
    "kaldi utt2spk": _kind("kaldi/utt2spk", "table", "shard_kaldi"),
    "manifest": _kind("data/train/manifest.json", "manifest", READ_DATA + " doctor", True),
    "blocks": _kind("data/train/blocks.npy", "blocks", READ_DATA, True),
    "utterances": _kind("data/train/utterances.npy", "utterances", READ_DATA, True),
    "shard": _kind("data/train/shard-000000.tar", "tar", "verify verify_quick train train_some", True),
    "shard to score": _kind("data/test/shard-000000.tar", "tar", "score embed trials", True),
    "shard to index": _kind("data/tars/shard-000000.tar", "tar", "index"),
    "grown manifest": _kind("data/grown/manifest.json", "manifest", "append", True),
    "grown table": _kind("data/grown/utterances.npy", "utterances", "append", True),
    "record": _kind("data/tasks/records/shard-000000.npz", "npz", "merge", True),
    "task's shard": _kind("data/tasks/shard-000000.tar", "tar", "merge", by_size=True),
    "job": _kind("data/tasks/job.json", "json", "merge", True),
    "job of half": _kind("data/half/job.json", "json", "task again", True),
    "options": _kind("ckpt/train.opts", "json", "score embed export report train_opts identify resume"),
    "weights": _kind(BEST, "weights", "score embed export identify trials score_two", True),
    "others' weights": _kind("others/b/bestval_e0_weights.ckpt", "weights", "score_two calibrate", True),
    "checkpoint manifest": _kind("ckpt/checkpoints/{last}/manifest.json", "json", "resume", True),
    "checkpoint values": _kind("ckpt/checkpoints/{last}/training.json", "checkpoint", "resume", True),
    "checkpoint state": _kind("ckpt/checkpoints/{last}/state.pt", "state", "resume", True),
    "checkpoint chain": _kind("ckpt/checkpoints/checkpoints.json", "json", "resume"),
    "statistics": _kind("ckpt/train_stats.json", "json", "report score resume"),
    "statistics of others": _kind("others/b/train_stats.json", "json", "results"),
    "summary": _kind("others/b/summary.json", "json", "results", optional=True),
    "figures": _kind("ckpt/scored.json", "json", "report"),
    "calibration": _kind("ckpt/bestval_e1_weights.calibration.json", "json", "score trials identify export"),
    "scores": _kind("scores.npz", "arrays", "trials_npz"),
    "scores table": _kind("scores.parquet", "parquet", "trials_parquet"),
    "embeddings": _kind("embeddings.npz", "arrays", "trials_cosine"),
    "embeddings npy": _kind("embeddings.npy", "npy", "trials_npy"),
    "embeddings keys": _kind("embeddings.keys", "list", "trials_npy"),
    "embeddings ark": _kind("embeddings.ark", "ark", "trials_ark"),
    "trials": _kind("cfg/trials", "table", "trials_npz trials_cosine trials"),
    "enrolments": _kind("cfg/enrol", "table", "trials_cosine"),
    "training config": _kind("cfg/train.yaml", "yaml", "train_config"),
    "shard config": _kind("cfg/shard.yaml", "yaml", "shard_config"),
    "score config": _kind("cfg/score.yaml", "yaml", "score_config"),
    "hold": _kind("ckpt/.held-by.json", "json", "resume"),
    "cached manifest": _kind("cache/{cached}/manifest.json", "manifest", "train_files", True, made_by=FILL),
    "cached shard": _kind("cache/{cached}/shard-000000.tar", "tar", "train_files", True, made_by=FILL),
    "cached table": _kind("cache/{cached}/utterances.npy", "utterances", "train_files", True, made_by=FILL),
}


def place_of(kind: Kind, world: Path) -> Path:
    """Where the world has the file."""
    path = kind.path
    if "{last}" in path:
        path = path.format(last=max(item.name for item in (world / "ckpt/checkpoints").iterdir() if item.is_dir()))
    if "{cached}" in path:
        path = path.format(cached=min(item.name for item in (world / "cache").iterdir() if item.is_dir()))
    return world / path


PLACED = re.compile(r"(/all\.\w+)-[0-9a-f]{16}")


def without_place(name: str) -> str:
    """A file's name without the hash of the world's place that a cache's folder has."""
    return PLACED.sub(r"\1-PLACE", name)


def results_of(command: Command, folder: Path, output: str) -> dict[str, Any]:
    """What a command's results say, by file; equal for equal results."""
    found: dict[str, Any] = {"": _said(output)} if command.prints else {}
    for name in command.outputs:
        place = folder / name
        paths = sorted(place.rglob("*")) if place.is_dir() else [place] if place.exists() else []
        for path in paths:
            if path.is_file() and not path.is_symlink() and not path.name.endswith(command.ignored or "/"):
                found[without_place(str(path.relative_to(folder)))] = _content(path, folder)
    return {name: content for name, content in found.items() if content is not None}


def _content(path: Path, folder: Path) -> Any:
    """What must be equal of a file; None for files that differ from run to run."""
    if path.name in ("state.pt", "job.json") or (
        path.suffix in (".log", ".png", ".html", ".parquet") and path.name != "r.log"
    ):
        return None  # a job says who began it, and when
    if path.suffix in (".json", ".opts"):
        checkpoint = path.parent.name.startswith("000")
        return None if checkpoint else plain(json.loads(path.read_bytes().replace(bytes(folder), b"")))
    if path.name == "r.npz":
        with np.load(path) as arrays:  # whose origin has the digests of whole files
            return {name: arrays[name].tobytes() for name in arrays.files if name != "origin"}
    return path.read_bytes()


def _said(output: str) -> Any:
    """The JSON that a command printed, else its lines."""
    lines = output.splitlines()
    try:
        return plain(json.loads(output))
    except ValueError:
        pass
    try:
        return plain(json.loads(lines[-1]))
    except (ValueError, IndexError):
        return output


def plain(value: Any) -> Any:
    """A JSON value without the members that differ from run to run."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if not VOLATILE.fullmatch(str(name))}
    return [plain(item) for item in value] if isinstance(value, list) else value
