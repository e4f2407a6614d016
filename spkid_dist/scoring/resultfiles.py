"""Write the files of a scoring, and say its figures: results, JSON, pictures.

They belong together: what an earlier scoring left is removed before the first of them gets its name.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.files import atomic_writer, real_path, write_atomic, write_json
from shards.holding import HOLD_NAME, FolderHold
from shards.jsontext import from_json, read_json
from shards.plaintext import printable
from spkid_dist.config import ScoreConfig
from spkid_dist.config.places import BESIDE_SCORES
from spkid_dist.scoring.decisionpictures import draw_decisions
from spkid_dist.scoring.decisions import UNKNOWN_WORD
from spkid_dist.scoring.models import ModelFiles
from spkid_dist.scoring.outcome import ScoreResult
from spkid_dist.scoring.pictures import draw_pictures
from spkid_dist.scoring.scorefile import write_scores
from spkid_dist.scoring.scoreorigin import origin_of
from spkid_dist.scoring.scores import Scores

Say = Callable[[str], None]


def results_held(path: Path, flag: str, say: Say) -> FolderHold:
    """Keep others from writing the results at `path` meanwhile: of two, each would leave some of its files.

    Results that have figures beside them are held by the figures' name, which `a.log` and `a.txt` have in common.

    Raises:
        InputError: another process is writing them; or nothing can be written there.
    """
    return FolderHold(path.parent, f"give another --{flag}", say, name=f".{path.name}{HOLD_NAME}")


def write_results(
    config: ScoreConfig,
    result: ScoreResult,
    models: Sequence[ModelFiles],
    world_size: int,
    means: Iterable[NDArray[np.float32]] | None,
    say: Say,
) -> None:
    """Write the scores, results, figures and pictures, and say the figures.

    Args:
        config: where they go.
        result: the outcome.
        models: their files.
        world_size: the number of processes.
        means: mean log-probabilities of all speakers in pieces, where --scores wants them (`write_scores`).
        say: prints a line.

    Raises:
        InputError: a file can't be written, or one of an earlier scoring can't be removed.
    """
    _say_earlier_scores(config, say)
    if config.scores is None:
        _replace_results(config, result)
    else:
        # The results change when all scores are written, and the scores get their name after that.
        scores = replace(scores_of(result), origin=origin_of(models, config.te_list_file, config.te_shards))
        write_scores(config.scores, scores, means, before_replacing=lambda: _replace_results(config, result))
    for line in _lines(result) if config.verbose else ():
        say(line.rstrip())
    if result.rates is None:
        say("no true speaker is known, so there is no error rate")
    else:
        result.rates.say(result.speakers, say)
    if result.det is not None:
        rate, threshold = result.det.equal_error
        say(
            f"equal error rate of claimed speakers: {rate:.2%} at a log-likelihood ratio of {threshold:.3f} against the other "
            f"speakers ({result.det.num_targets:,} targets, {result.det.num_others:,} nontargets)"
        )
    if result.decisions is not None:
        result.decisions.say(say)
    write_json(
        config.log_file.with_suffix(".json"), _facts(config, result, [one.weights for one in models], world_size)
    )
    pictures = (
        draw_pictures(result.true, result.found, result.speakers, result.rates, result.det) if config.pictures else {}
    )
    if config.pictures and result.decisions is not None:
        pictures |= draw_decisions(result.decisions)
    for name, picture in pictures.items():
        write_atomic(config.log_file.with_suffix(f".{name}.png"), picture)
    count = len(result.keys)
    rates = f"{count / result.seconds:,.0f} utterances/s, {result.windows.sum() / result.seconds:,.0f} windows/s"
    beside = ", ".join((".json", *(f".{name}.png" for name in pictures)))
    scores_at = "" if config.scores is None else f"; scores: {config.scores}"
    say(f"{count} utterances scored, {rates}: {config.log_file}; beside it {beside}{scores_at}")


def scores_of(result: ScoreResult) -> Scores:
    """The result as a file of scores has it, without the means of all speakers."""
    decisions = result.decisions
    threshold = None if decisions is None else decisions.threshold
    with np.errstate(over="ignore"):  # a margin beyond float32 is infinite in the file
        return _scores_of(result, threshold)


def _scores_of(result: ScoreResult, threshold: float | None) -> Scores:
    decisions = result.decisions
    return Scores(
        keys=result.keys,
        speakers=result.speakers,
        found=result.found,
        true=result.true,
        margins=result.margins.astype(np.float32),
        windows=result.windows,
        top_classes=result.top_classes,
        top_means=result.top_means,
        ratios=None if decisions is None else decisions.ratios.astype(np.float32),
        posteriors=None if decisions is None else decisions.posteriors.astype(np.float32),
        scale=None if decisions is None else decisions.calibration.scale,
        accepted=None if threshold is None or decisions is None else decisions.accepted,
        threshold=threshold,
    )


@dataclass(frozen=True)
class _Facts:
    """What is read of the figures of an earlier scoring."""

    scores: str


def _say_earlier_scores(config: ScoreConfig, say: Say) -> None:
    """Say that the file of scores which the earlier results beside `config.log_file` name stays, where it does."""
    try:
        path = config.log_file.with_suffix(".json")
        earlier = from_json(_Facts, read_json(path, "the figures", "score again", undecodable=True)).scores
        stays = Path(earlier).is_file() and (
            config.scores is None or real_path(Path(earlier)) != real_path(config.scores)
        )
    except (InputError, OSError, ValueError):  # there are none, or what is there is nobody's results
        return
    if stays:
        say(
            f"{printable(earlier)}: these scores of an earlier scoring are kept; the file says which weights and utterances "
            "they are of"
        )


def _replace_results(config: ScoreConfig, result: ScoreResult) -> None:
    remove_earlier(config.log_file, config.scores)
    with atomic_writer(config.log_file) as file:
        for line in _lines(result):
            file.write(line.encode(errors="backslashreplace"))


def _lines(result: ScoreResult) -> Iterator[str]:
    """The lines of the results: an utterance and its speaker; with --top then the best speakers, each with the score.

    The best one stands there once more: of an utterance that is called unknown it is the nearest speaker.
    """
    decisions = result.decisions
    accepted = np.ones(len(result.keys), np.bool_) if decisions is None else decisions.accepted
    found = (
        result.speakers[one] if is_known else UNKNOWN_WORD for one, is_known in zip(result.found, accepted, strict=True)
    )
    if result.top_classes is None or result.top_means is None:
        for key, name in zip(result.keys, found, strict=True):
            yield f"{key}\t{name}\n"
        return
    for key, name, classes, means in zip(result.keys, found, result.top_classes, result.top_means, strict=True):
        best = (f"{result.speakers[one]}\t{mean:.6g}" for one, mean in zip(classes, means, strict=True))
        yield "\t".join((key, name, *best)) + "\n"


def remove_earlier(log_file: Path, scores: Path | None = None) -> None:
    """Remove the figures and pictures that an earlier scoring left beside its results, and the scores that are written anew.

    The results are replaced after that: whatever happens in between, no figure or picture stands beside results of another
    scoring. Scores of an earlier one stay under their own name, and say what they are of (`spkid_dist.scoring.scoreorigin`).

    Raises:
        InputError: one of them can't be removed.
    """
    beside = [log_file.with_suffix(suffix) for suffix in BESIDE_SCORES]
    for path in beside if scores is None else (*beside, scores):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"{path}: this file of an earlier scoring can't be removed: {error.strerror}; remove it, or give another "
                f"{'--scores' if path == scores else '--log_file'}"
            ) from None


def _facts(config: ScoreConfig, result: ScoreResult, weights: Sequence[Path], world_size: int) -> dict[str, Any]:
    """All printed figures, as JSON values."""
    names = [str(path) for path in weights]
    facts: dict[str, Any] = {
        "weights_ckpt": names[0] if len(names) == 1 else names,
        "utterances": len(result.keys),
        "windows": int(result.windows.sum()),
        "processes": world_size,
        "mixed_precision": config.mixed_precision,
        "seconds": round(result.seconds, 3),
        "utterances_per_second": round(len(result.keys) / result.seconds, 1),
        "windows_per_second": round(int(result.windows.sum()) / result.seconds),
    }
    if config.scores is not None:
        facts["scores"] = str(config.scores)
    if result.rates is not None:
        facts |= result.rates.facts(result.speakers)
    if result.decisions is not None:
        facts |= result.decisions.facts()
    if result.det is not None:
        rate, threshold = result.det.equal_error
        facts["claimed_speakers"] = {
            "score": "log_likelihood_ratio",
            "equal_error_rate": rate,
            "threshold": threshold,
            "targets": result.det.num_targets,
            "others": result.det.num_others,
        }
    return facts
