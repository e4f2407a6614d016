"""The command `spkid score`: whole utterances through the model, a speaker for each.

An utterance's speaker is the argmax of the sum of its windows' log-probabilities. Utterances are laid out together until
they make a batch, so the model sees thousands of windows at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards.corpus import Utterance, read_list, read_speakers
from shards.errors import InputError
from shards.files import make_folder, write_atomic
from shards.frames import check_finite, check_shape
from shards.sources import Source
from shards.sources.fmatrix import FmatrixSource
from shards.sources.kaldi import UTT2SPK_NAME
from shards.sources.registry import source_from_description
from shards.speakers import SpeakerRule, speaker_by_component, speaker_by_utt2spk
from spkid_dist.config import ScoreConfig
from spkid_dist.confusion import print_errors
from spkid_dist.console import RunLog
from spkid_dist.kernels import EDGE, VALID, lay_out
from spkid_dist.model import load_weights, model_from_options
from spkid_dist.normalization import normalize_utterance
from spkid_dist.report import read_options
from spkid_dist.windows import EDGE_CODES

UNKNOWN = -1  # true class of an utterance whose list line names no speaker of the map


@dataclass(frozen=True)
class Scores:
    """The outcome for U utterances: speakers in class order; arrays (U,) of the class found, the true class (-1 where it is
    not known), the windows, and the windows whose own class was wrong."""

    keys: list[str]
    speakers: list[str]
    found: NDArray[np.int64]
    true: NDArray[np.int64]
    windows: NDArray[np.int64]
    wrong_windows: NDArray[np.int64]


def score(config: ScoreConfig) -> Scores:
    """Score the utterances of a list, write the results file, and print the error rates.

    Raises:
        InputError: list, features, weights or train.opts missing, damaged or not fitting together.
    """
    log = RunLog(shown=True)
    options = read_options(config.train_cfg)
    speakers = _speakers(config, options)
    model = model_from_options(options, str(config.train_cfg)).eval()
    load_weights(model, config.weights_ckpt)
    source = open_source(config, options)
    utterances = read_list(config.te_list_file, rule=_speaker_rule(config, options), speakers_known=False)
    with log.bar(len(utterances), "utterances") as bar:
        results = []
        for part in _score_all(model, options, utterances, source, config.batch_size, speakers):
            results.append(part)
            bar.advance(len(part.keys))
    scores = _join(results, speakers)
    make_folder(config.log_file.parent)
    lines = [f"{key}\t{speakers[found]}\n" for key, found in zip(scores.keys, scores.found, strict=True)]
    write_atomic(config.log_file, "".join(lines).encode())
    if config.verbose:
        for line in lines:
            log.line(line.rstrip())
    print_errors(scores.true, scores.found, scores.windows, scores.wrong_windows, speakers, log.line)
    log.line(f"{len(lines)} utterances scored: {config.log_file}")
    return scores


def open_source(config: ScoreConfig, options: dict[str, Any]) -> Source:
    """The files under --db_path, read as those of the training: `options` of train.opts tell their kind.

    Raises:
        InputError: train.opts describes no source that can be read, or the folder lacks what it needs.
        UsageError: a library that this kind of source needs is not installed.
    """
    description = options.get("source", {"kind": "fmatrix"})
    if not isinstance(description, dict):
        raise InputError(f"{config.train_cfg}: source is {description!r}, expected a JSON object; train again")
    if description.get("kind") == "fmatrix":
        return FmatrixSource(config.db_path, config.ext)
    given = {} if config.ext == ScoreConfig.ext else {"ext": config.ext}
    return source_from_description(description | given, config.db_path)


def _speaker_rule(config: ScoreConfig, options: dict[str, Any]) -> SpeakerRule:
    """What names the true speakers: a flag, the utt2spk of a Kaldi folder, or the list line as in the training."""
    rule = config.speaker_rule()
    if rule is not None:
        return rule
    utt2spk = config.db_path / UTT2SPK_NAME
    if options.get("source", {}).get("kind") == "kaldi" and utt2spk.exists():
        return speaker_by_utt2spk(utt2spk)
    return speaker_by_component(options.get("speaker_component", 2))


def _speakers(config: ScoreConfig, options: dict[str, Any]) -> list[str]:
    """Speaker names in class order: of train.opts, or of the map that it or the flag names."""
    if config.spk2idx is None and isinstance(options.get("speakers"), list):
        speakers = [str(name) for name in options["speakers"]]
    else:
        speakers = read_speakers(config.spk2idx or Path(str(options.get("spk2idx", "cfg/spk2idx.json"))))
    if len(speakers) != options["num_spks"]:
        raise InputError(
            f"{config.train_cfg}: num_spks is {options['num_spks']}, but there are {len(speakers)} speaker names; "
            "give --spk2idx as it was in the training"
        )
    return speakers


def _score_all(
    model: torch.nn.Module,
    options: dict[str, Any],
    utterances: Sequence[Utterance],
    source: Source,
    batch_size: int,
    speakers: Sequence[str],
) -> Iterator[Scores]:
    classes = {name: index for index, name in enumerate(speakers)}
    edge = EDGE_CODES[options.get("edge", "valid")]
    batch: list[tuple[Utterance, NDArray[np.float32]]] = []
    num_frames = 0
    for utterance in utterances:
        frames = source.load(utterance)
        check_shape(frames, options["input_dim"], "the model was trained on", source.where(utterance))
        check_finite(frames, source.where(utterance))
        if options.get("normalize") == "utterance":
            frames = normalize_utterance(frames)
        batch.append((utterance, frames))
        num_frames += len(frames)
        if num_frames >= batch_size:
            yield _score_batch(model, batch, options["in_frames"], edge, classes, batch_size)
            batch, num_frames = [], 0
    if batch:
        yield _score_batch(model, batch, options["in_frames"], edge, classes, batch_size)


@torch.no_grad()
def _score_batch(
    model: torch.nn.Module,
    batch: Sequence[tuple[Utterance, NDArray[np.float32]]],
    in_frames: int,
    edge: int,
    classes: dict[str, int],
    batch_size: int,
) -> Scores:
    """Score utterances together; one without a window of its own gets its edge frames repeated."""
    num_frames = sum(len(frames) for _, frames in batch)
    num_features = batch[0][1].shape[1]
    arena = np.empty((num_frames + len(batch) * (in_frames - 1), num_features), np.float32)
    starts, owner = np.empty(num_frames, np.int64), np.empty(num_frames, np.int64)
    row = at = 0
    for index, (_, frames) in enumerate(batch):
        rule, windows = _edge_rule(edge, len(frames), in_frames)
        lengths, label = np.array([len(frames)], np.int32), np.array([index], np.int32)
        end = at + windows
        row = lay_out(frames, lengths, label, 0, windows, in_frames, rule, arena, row, starts[at:end], owner[at:end])
        at = end
    rows = torch.from_numpy(arena).as_strided((len(arena) - in_frames + 1, in_frames * num_features), (num_features, 1))
    true = np.array([classes.get(utterance.speaker, UNKNOWN) for utterance, _ in batch], np.int64)
    sums = torch.zeros(len(batch), len(classes), dtype=torch.float64)
    wrong = np.empty(at, np.int64)
    for first in range(0, at, batch_size):  # an utterance may be longer than a batch
        piece = slice(first, min(first + batch_size, at))
        log_probs = model(rows.index_select(0, torch.from_numpy(starts[piece])))
        sums.index_add_(0, torch.from_numpy(owner[piece]), log_probs.double())
        wrong[piece] = log_probs.argmax(dim=1).numpy() != true[owner[piece]]
    return Scores(
        keys=[utterance.key for utterance, _ in batch],
        speakers=list(classes),
        found=sums.argmax(dim=1).numpy(),
        true=true,
        windows=np.bincount(owner[:at], minlength=len(batch)),
        wrong_windows=np.bincount(owner[:at], weights=wrong, minlength=len(batch)).astype(np.int64),
    )


def _edge_rule(edge: int, num_frames: int, in_frames: int) -> tuple[int, int]:
    """The edge rule for an utterance, and how many windows it has under it."""
    if edge == VALID and num_frames >= in_frames:
        return VALID, num_frames - in_frames + 1
    return (EDGE if edge == VALID else edge), num_frames


def _join(parts: Sequence[Scores], speakers: list[str]) -> Scores:
    return Scores(
        keys=[key for part in parts for key in part.keys],
        speakers=speakers,
        found=np.concatenate([part.found for part in parts]),
        true=np.concatenate([part.true for part in parts]),
        windows=np.concatenate([part.windows for part in parts]),
        wrong_windows=np.concatenate([part.wrong_windows for part in parts]),
    )


def main() -> None:
    """The entry of ``python -m spkid_dist.score``."""
    from spkid_dist.cli import run_command

    run_command("score")


if __name__ == "__main__":
    main()
