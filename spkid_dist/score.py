"""The command `spkid score`: find the speaker of each utterance with a trained model, by one process or many.

An utterance's speaker is the argmax of the sum of its windows' log-probabilities, in float64. Each process scores its share
and the shares are joined once, at the end; rank 0 writes.
"""

if __name__ == "__main__":  # before the imports, which take seconds in which a signal may arrive
    from spkid_dist.commands.cli import run_command

    run_command("score")

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.corpus import read_list
from shards.errors import InputError, UsageError
from shards.files import write_atomic, write_json
from shards.holding import HOLD_NAME, FolderHold
from shards.sources import Source
from shards.sources.kaldi import UTT2SPK_NAME
from shards.sources.kaldidir import say_unused
from shards.sources.registry import source_from_description
from shards.speakers import (
    DEFAULT_COMPONENT,
    SPEAKER_FLAGS,
    SpeakerRule,
    kept_rule,
    kept_table,
    speaker_by_component,
    speaker_by_utt2spk,
)
from shards.stores.store import StoreOptions
from spkid_dist.config import ScoreConfig
from spkid_dist.process.allocator import keep_freed_memory
from spkid_dist.process.freecpus import FreeCpus, leave_cpus_to_others
from spkid_dist.process.memory import explain_memory
from spkid_dist.process.restoring import process_as_found
from spkid_dist.process.threads import torch_threads
from spkid_dist.ranks.console import Bar, RunLog
from spkid_dist.ranks.lostdevice import explain_lost_device
from spkid_dist.ranks.sharing import Processes
from spkid_dist.scoring.confusion import ErrorRates, error_rates
from spkid_dist.scoring.pictures import PICTURES, draw_pictures
from spkid_dist.scoring.scorer import GroupScores, Scorer
from spkid_dist.scoring.trials import DetCurve, TrialCounts, det_curve
from spkid_dist.scoring.utterances import UNKNOWN, ListedFiles, ShardedUtterances, Utterances
from spkid_dist.trained import TrainedModel, load_trained

DEFAULT_LIST = Path("spk_rec.test")
GIVE_RULE = f"give {SPEAKER_FLAGS}"
LINE_SECONDS = 30  # between lines that say how far it is


@dataclass(frozen=True)
class ScoreResult:
    """The outcome for U utterances, in the order of the list: the same on every rank.

    Attributes:
        keys: of the utterances, U.
        speakers: the model's, in class order.
        found: the class found, (U,) int64.
        mean_log_probs: the found class's log-probability, mean over the utterance's windows, (U,) float64.
        true: the true class, (U,) int64; -1 where it is not known.
        frames, windows: of each utterance, (U,) int64.
        wrong_windows: windows whose largest log-probability is another class's, (U,) int64; 0 where `true` is -1.
        rates: error rates; None where no true speaker is known.
        det: the DET curve of claimed speakers (`spkid_dist.scoring.trials`); None where there is none.
        seconds: until the last rank had scored its share.
    """

    keys: list[str]
    speakers: list[str]
    found: NDArray[np.int64]
    mean_log_probs: NDArray[np.float64]
    true: NDArray[np.int64]
    frames: NDArray[np.int64]
    windows: NDArray[np.int64]
    wrong_windows: NDArray[np.int64]
    rates: ErrorRates | None
    det: DetCurve | None
    seconds: float


@torch_threads()
def score_utterances(config: ScoreConfig) -> ScoreResult:
    """Score utterances, write the results file, the figures and the pictures, and print the error rates.

    Called by every process of a launch; rank 0 writes.

    Raises:
        InputError: list, features, weights or train.opts missing, damaged or not fitting together.
        UsageError: an option that can't be on this machine.
    """
    keep_freed_memory()
    remedy = "give a smaller --batch_size, or fewer --workers"
    with explain_lost_device(lambda: "run the same command again"), process_as_found(), explain_memory(lambda: remedy):
        return _open_and_score(config, Processes("score"))


def _open_and_score(config: ScoreConfig, processes: Processes) -> ScoreResult:
    log, free_cpus = RunLog(shown=processes.is_main), FreeCpus()
    if config.mixed_precision == "fp16" and processes.device.type == "cpu":
        raise UsageError("--mixed_precision fp16: needs a GPU; on a CPU give bf16 or no")
    model = load_trained(config.weights_ckpt, config.train_cfg, config.spk2idx)
    utterances = open_utterances(config, model)
    for line in say_unused(config.db_path) if reads_kaldi(config, model) else ():
        log.line(line)
    for line in _say_speakers(config, model, utterances):
        log.line(line)
    if processes.device.type == "cpu":
        leave_cpus_to_others(free_cpus, log.line)
    with _results_held(config, log) if processes.is_main else contextlib.nullcontext():
        return _score(config, processes, log, model, utterances)


def _results_held(config: ScoreConfig, log: RunLog) -> FolderHold:
    """Keep other scorings from writing the same results meanwhile: of two, each would leave some of its files."""
    place = config.log_file.parent
    return FolderHold(place, "give another --log_file", log.line, name=f".{config.log_file.name}{HOLD_NAME}")


def _score(
    config: ScoreConfig, processes: Processes, log: RunLog, model: TrainedModel, utterances: Utterances
) -> ScoreResult:
    log.line(f"{utterances.count} utterances, {processes.world_size} process(es) on {processes.device.type}")
    scorer = Scorer(model, processes.device, batch_size=config.batch_size, precision=config.mixed_precision)
    share = Share(utterances.count)
    began = time.perf_counter()
    with log.bar(utterances.share_size(processes.rank, processes.world_size), "utterances") as bar:
        for scores in scorer.score(utterances.groups(processes.rank, processes.world_size, config.workers)):
            share.add(scores)
            share.say_progress(bar, log, began)
    result = share.join(processes, model.speakers, began)
    if processes.is_main:
        _write(config, result, processes.world_size, log)
    return result


class Share:
    """What this process has scored of all `count` utterances; the others' rows are 0 until the shares are joined."""

    COLUMNS = ("found", "mean_log_probs", "true", "frames", "windows", "wrong_windows")

    def __init__(self, count: int) -> None:
        self._rows = np.zeros((count, len(self.COLUMNS)))
        self._keys: list[str] = []
        self._positions: list[NDArray[np.int64]] = []
        self._trials = TrialCounts()
        self._said = time.perf_counter()

    def add(self, scores: GroupScores) -> None:
        """Keep the outcome of a group."""
        group = scores.group
        found = scores.means.argmax(axis=1)
        best = scores.means[np.arange(len(found)), found]
        columns = (found, best, group.true, group.lengths, scores.windows, scores.wrong_windows)
        self._rows[group.positions] = np.stack(columns, axis=1)
        self._keys += group.keys
        self._positions.append(group.positions)
        known = group.true != UNKNOWN
        self._trials.add(scores.means[known], group.true[known])

    def say_progress(self, bar: Bar, log: RunLog, began: float) -> None:
        """Move the bar, and say a line now and then for who has no terminal."""
        bar.advance(len(self._positions[-1]))
        now = time.perf_counter()
        if now - self._said >= LINE_SECONDS:
            self._said = now
            log.line(f"scored {len(self._keys):,} utterances, {len(self._keys) / (now - began):,.0f}/s a process")

    def join(self, processes: Processes, speakers: list[str], began: float) -> ScoreResult:
        """All processes' shares together; waits for all. Each row is one process's, so that sums are exact."""
        positions = np.concatenate(self._positions).tolist() if self._positions else []
        keys = sorted(processes.gather(list(zip(positions, self._keys, strict=True))))
        if len(keys) != len(self._rows):
            raise InputError(
                f"{len(keys)} of {len(self._rows)} utterances were found in the dataset's blocks, but its table has all; "
                "build the table again: spkid index"
            )
        rows = processes.sum(self._rows)
        columns = dict(zip(self.COLUMNS, rows.T, strict=True))
        seconds = time.perf_counter() - began
        trials = processes.sum(np.stack((self._trials.targets, self._trials.others)).astype(np.float64))
        self._trials.targets, self._trials.others = trials.astype(np.int64)
        whole = {name: column.astype(np.int64) for name, column in columns.items() if name != "mean_log_probs"}
        return ScoreResult(
            keys=[key for _, key in keys],
            speakers=speakers,
            mean_log_probs=columns["mean_log_probs"],
            rates=error_rates(whole["true"], whole["found"], whole["frames"], whole["windows"], whole["wrong_windows"]),
            det=det_curve(self._trials),
            seconds=seconds,
            **whole,
        )


def open_utterances(config: ScoreConfig, model: TrainedModel) -> Utterances:
    """What the flags name: a dataset, all of it or a list's part, or the files of a list.

    Raises:
        InputError: dataset or list missing or damaged, or not of this model's features.
        UsageError: a library that the kind of source, or of URL, needs is not installed; or the URL needs a cache.
    """
    if config.te_shards is None:
        list_path = config.te_list_file or DEFAULT_LIST
        if config.te_list_file is None and not DEFAULT_LIST.exists():
            raise UsageError(
                f"--te_list_file is not given, and there is no {DEFAULT_LIST}: give the list of the utterances to score, or a "
                "dataset by --te_shards"
            )
        listed = read_list(list_path, rule=find_rule(config, model.options), speakers_known=False)
        return ListedFiles(listed, open_source(config, model.options), model)
    store = StoreOptions(cache_dir=config.shard_cache, cache_bytes=config.shard_cache_bytes)
    wanted = None if config.te_list_file is None else read_list(config.te_list_file, speakers_known=False)
    return ShardedUtterances(config.te_shards, model, wanted, config.te_list_file, store)


def open_source(config: ScoreConfig, options: dict[str, Any]) -> Source:
    """The files under --db_path, read as those of the training: `options` of train.opts tell their kind.

    Raises:
        InputError: train.opts describes no source that can be read, or the folder lacks what it needs.
        UsageError: a library that this kind of source needs is not installed.
    """
    description = options.get("source", {"kind": "fmatrix", "ext": options.get("ext", "mcp")})
    if not isinstance(description, dict):
        raise InputError(f"{config.train_cfg}: source is {description!r}, expected a JSON object; train again")
    given = {} if config.ext is None else {"ext": config.ext}
    return source_from_description(description | given, config.db_path)


def reads_kaldi(config: ScoreConfig, model: TrainedModel) -> bool:
    """Whether the utterances are read from a Kaldi folder."""
    source = model.options.get("source")
    return config.te_shards is None and isinstance(source, dict) and source.get("kind") == "kaldi"


def find_rule(config: ScoreConfig, options: dict[str, Any]) -> SpeakerRule:
    """What names the true speakers: a flag; the rule of the training; the utt2spk of a Kaldi folder; or a component.

    Where a table named the speakers of the training, the rule names none: other utterances need a table of their own.

    Raises:
        InputError: a table is missing or damaged, or the rule in `options` (of train.opts) is damaged.
        UsageError: the flag's value can't be.
    """
    source = options.get("source")
    rule = config.speaker_rule() or kept_rule(source)
    if rule is not None:
        return rule
    utt2spk = config.db_path / UTT2SPK_NAME
    if isinstance(source, dict) and source.get("kind") == "kaldi" and utt2spk.exists():
        return speaker_by_utt2spk(utt2spk)
    if kept_table(source) is not None:
        return _names_nobody
    return speaker_by_component(options.get("speaker_component") or DEFAULT_COMPONENT)


def _say_speakers(config: ScoreConfig, model: TrainedModel, utterances: Utterances) -> list[str]:
    """Lines on utterances whose true speaker is not known, or not the model's, and what to do about it."""
    unknown = utterances.unknown
    if not unknown.count:
        return []
    table = kept_table(model.options.get("source")) if config.te_shards is None and not unknown.name else None
    what = f"{unknown.count} of {utterances.count} utterances are left out of the error rates: "
    if table is not None:
        return [f"{what}the speakers of the training were named by {table}, which names nobody here; {GIVE_RULE}"]
    example = f"utterance {unknown.key!r}" if unknown.key else "one"
    if not unknown.name:
        return [f"{what}{example} names no speaker; {GIVE_RULE}"]
    remedy = "" if config.te_shards is not None else f"; if that is no speaker, {GIVE_RULE}"
    return [f"{what}the speaker of {example} would be {unknown.name!r}, whom the model does not know{remedy}"]


def _names_nobody(key: str) -> str:
    raise InputError(f"no rule names the speaker of utterance {key!r}; {GIVE_RULE}")


def _write(config: ScoreConfig, result: ScoreResult, world_size: int, log: RunLog) -> None:
    """Write results, figures and pictures, and say the figures."""
    lines = [f"{key}\t{result.speakers[found]}\n" for key, found in zip(result.keys, result.found, strict=True)]
    remove_earlier(config.log_file)
    write_atomic(config.log_file, "".join(lines).encode(errors="backslashreplace"))
    for line in lines if config.verbose else ():
        log.line(line.rstrip())
    if result.rates is None:
        log.line("no true speaker is known, so there is no error rate")
    else:
        result.rates.say(result.speakers, log.line)
    if result.det is not None:
        rate, threshold = result.det.equal_error
        log.line(
            f"equal error rate of claimed speakers: {rate:.2%} at a mean log-probability of {threshold:.3f} per window "
            f"({result.det.num_targets:,} targets, {result.det.num_others:,} others)"
        )
    write_json(config.log_file.with_suffix(".json"), _facts(config, result, world_size))
    pictures = (
        draw_pictures(result.true, result.found, result.speakers, result.rates, result.det) if config.pictures else {}
    )
    for name, picture in pictures.items():
        write_atomic(config.log_file.with_suffix(f".{name}.png"), picture)
    rates = f"{len(lines) / result.seconds:,.0f} utterances/s, {result.windows.sum() / result.seconds:,.0f} windows/s"
    beside = ", ".join((".json", *(f".{name}.png" for name in pictures)))
    log.line(f"{len(lines)} utterances scored, {rates}: {config.log_file}; beside it {beside}")


def remove_earlier(log_file: Path) -> None:
    """Remove the figures and pictures that an earlier scoring left beside its results.

    The results are replaced after that: whatever happens in between, no figure or picture stands beside results of
    another scoring.

    Raises:
        InputError: one of them can't be removed.
    """
    for suffix in (".json", *(f".{name}.png" for name in PICTURES)):
        path = log_file.with_suffix(suffix)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"{path}: this file of an earlier scoring can't be removed: {error.strerror}; remove it, or give another "
                "--log_file"
            ) from None


def _facts(config: ScoreConfig, result: ScoreResult, world_size: int) -> dict[str, Any]:
    """All printed figures, as JSON values."""
    facts: dict[str, Any] = {
        "weights_ckpt": str(config.weights_ckpt),
        "utterances": len(result.keys),
        "windows": int(result.windows.sum()),
        "processes": world_size,
        "mixed_precision": config.mixed_precision,
        "seconds": round(result.seconds, 3),
        "utterances_per_second": round(len(result.keys) / result.seconds, 1),
        "windows_per_second": round(int(result.windows.sum()) / result.seconds),
    }
    if result.rates is not None:
        facts |= result.rates.facts(result.speakers)
    if result.det is not None:
        rate, threshold = result.det.equal_error
        facts["claimed_speakers"] = {
            "equal_error_rate": rate,
            "threshold": threshold,
            "targets": result.det.num_targets,
            "others": result.det.num_others,
        }
    return facts


def main() -> None:
    """Run `spkid score` with the process's arguments as its flags."""
    from spkid_dist.commands.cli import run_command

    run_command("score")
