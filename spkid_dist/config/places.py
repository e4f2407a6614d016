"""Keep commands from writing over what they read: each file that a command makes is compared with each that it takes.

A results file has others beside it, which are written or removed with it. Paths are compared as the system resolves them, so a
link or another spelling of a path makes no difference.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.errors import UsageError
from shards.files import real_path

REMEDY = "give another name"
DEFAULT_LIST = Path("spk_rec.test")
READ_FLAGS = (
    "te_list_file", "trials", "scores", "embeddings", "enrol", "center", "unknown", "spk2idx", "speaker_tsv", "utt2spk",
    "weights_ckpt", "train_cfg",
)  # fmt: skip
DATASET_FILES = re.compile(r"manifest\.json|(blocks|utterances).*\.npy|.*\.tar")
KALDI_FILES = ("feats.scp", "utt2spk", "spk2utt", "wav.scp", "segments")
# What is written beside a results file, in the place of its ending.
BESIDE_SCORES = (".json", ".confusion.png", ".lengths.png", ".det.png", ".open_set.png")
BESIDE_TRIALS = (".json", ".det.png")
BESIDE_EMBEDDINGS = {".npy": (".keys",), ".ark": (".scp",)}

Outputs = Mapping[str, Sequence[Path]]
"""Flag -> the files that it makes, the one that it names first."""


def with_beside(path: Path, endings: Iterable[str]) -> list[Path]:
    """A results file and the files beside it."""
    return [path, *(path.with_suffix(ending) for ending in endings)]


def check_flags(config: Any, outputs: Outputs) -> None:
    """Raise UsageError where a file of `outputs` is one that the flags in `config` name to be read."""
    check_places(outputs, _read(config, outputs))
    dataset = getattr(config, "te_shards", None)
    for flag, paths in outputs.items():
        for path in (real_path(one) for one in paths):
            if dataset and path.parent == real_path(Path(dataset)) and DATASET_FILES.fullmatch(path.name):
                raise UsageError(f"--{flag} {paths[0]}: {path.name} is a file of the dataset {dataset}; {REMEDY}")


def check_places(outputs: Outputs, inputs: Iterable[tuple[str, Path]]) -> None:
    """Raise UsageError where a file of `outputs` is one of `inputs`, each with what names it."""
    read = {real_path(path): what for what, path in inputs}
    for flag, paths in outputs.items():
        for path in paths:
            what = read.get(real_path(path))
            if what is not None:
                beside = "" if path == paths[0] else f"beside it {path.name} is written, which "
                raise UsageError(f"--{flag} {paths[0]}: {beside}is the file of {what}; {REMEDY}")


def _read(config: Any, outputs: Outputs) -> Iterable[tuple[str, Path]]:
    """The files that a command's flags name to be read, each with its flag."""
    for flag in READ_FLAGS:
        value = getattr(config, flag, None)
        if value is None or flag in outputs:
            continue
        for path in value if isinstance(value, tuple) else (value,):
            yield f"--{flag}", Path(path)
    if getattr(config, "te_list_file", DEFAULT_LIST) is None and config.te_shards is None:
        yield "--te_list_file", DEFAULT_LIST
    yield from (("--db_path", config.db_path / name) for name in KALDI_FILES)
