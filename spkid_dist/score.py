"""The command `spkid score`: find the speaker of each utterance with a trained model, by one process or many.

An utterance's speaker is the argmax of the sum of its windows' log-probabilities, in float64. Each process scores its share
and the shares are joined once, at the end; rank 0 writes.
"""

if __name__ == "__main__":  # before the imports, which take seconds in which a signal may arrive
    from spkid_dist.commands.cli import run_command

    run_command("score")

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.corpus import read_list
from shards.errors import InputError, UsageError
from shards.files import make_folder
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
from spkid_dist.scoring.calibration import Scale, log_likelihood_ratios
from spkid_dist.scoring.confusion import error_rates
from spkid_dist.scoring.models import find_models, load_models, say_models
from spkid_dist.scoring.outcome import ScoreResult
from spkid_dist.scoring.ranking import best_speakers, margins_of
from spkid_dist.scoring.resultfiles import write_results
from spkid_dist.scoring.rowfile import RowFile
from spkid_dist.scoring.scorefile import check_place, pieces
from spkid_dist.scoring.scorer import GroupScores, Scorer
from spkid_dist.scoring.trials import TrialCounts, det_curve
from spkid_dist.scoring.utterances import UNKNOWN, ListedFiles, ShardedUtterances, Utterances
from spkid_dist.trained import TrainedModel

DEFAULT_LIST = Path("spk_rec.test")
GIVE_RULE = f"give {SPEAKER_FLAGS}"
LINE_SECONDS = 30  # between lines that say how far it is


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
    files = find_models(config.models, config.weights, config.train_cfg)
    model = load_models(files, config.spk2idx)
    utterances = open_utterances(config, model)
    for line in say_models(files) if config.models or len(files) > 1 else ():
        log.line(line)
    for line in say_unused(config.db_path) if reads_kaldi(config, model) else ():
        log.line(line)
    for line in _say_speakers(config, model, utterances):
        log.line(line)
    if processes.device.type == "cpu":
        leave_cpus_to_others(free_cpus, log.line)
    with contextlib.ExitStack() as stack:
        if processes.is_main:
            stack.enter_context(_results_held(config, log))
            if config.scores is not None:
                check_place(config.scores)
        rows = None
        if config.scores is not None and config.top is None:
            rows = stack.enter_context(contextlib.closing(_row_file(config.scores, len(model.speakers), processes)))
        share = Share(utterances.count, len(model.speakers), top=config.top, rows=rows)
        result = _score(config, processes, log, model, utterances, share)
        means = None if rows is None else means_of_all(rows, utterances.count, len(model.speakers), processes)
        if processes.is_main:
            write_results(config, result, [one.weights for one in files], processes.world_size, means, log.line)
        elif means is not None:
            for _ in means:  # each process has rows of each piece
                pass
    return result


def _results_held(config: ScoreConfig, log: RunLog) -> FolderHold:
    """Keep other scorings from writing the same results meanwhile: of two, each would leave some of its files."""
    place = config.log_file.parent
    return FolderHold(place, "give another --log_file", log.line, name=f".{config.log_file.name}{HOLD_NAME}")


def _score(
    config: ScoreConfig, processes: Processes, log: RunLog, model: TrainedModel, utterances: Utterances, share: "Share"
) -> ScoreResult:
    log.line(f"{utterances.count} utterances, {processes.world_size} process(es) on {processes.device.type}")
    scorer = Scorer(model, processes.device, batch_size=config.batch_size, precision=config.mixed_precision)
    began = time.perf_counter()
    with log.bar(utterances.share_size(processes.rank, processes.world_size), "utterances") as bar:
        for scores in scorer.score(utterances.groups(processes.rank, processes.world_size, config.workers)):
            share.add(scores)
            share.say_progress(bar, log, began)
    return share.join(processes, model.speakers, began)


def _row_file(scores: Path, num_speakers: int, processes: Processes) -> RowFile:
    """Where this process keeps the scores of all speakers until all are there: beside the file that they are for.

    A process that can't write there, as on another host, keeps them in the system's folder of temporary files.
    """
    try:
        make_folder(scores.parent)
        return RowFile(scores.parent, num_speakers)
    except InputError:
        if processes.is_main:
            raise
        return RowFile(Path(tempfile.gettempdir()), num_speakers)


def means_of_all(rows: RowFile, count: int, num_speakers: int, processes: Processes) -> Iterator[NDArray[np.float32]]:
    """All processes' rows together, (`count`, K) in pieces; each process takes all pieces.

    Each row is one process's. The sum of the rows' bits with the zeros of the others keeps every bit.
    """
    for first, last in pieces(count, num_speakers):
        yield processes.sum(rows.read(first, last).view(np.int32)).view(np.float32)


class Share:
    """What this process has scored of all `count` utterances; the others' rows are 0 until the shares are joined.

    `top` is how many of the K speakers are kept with their scores, None for none; `rows` takes the scores of all speakers.
    """

    COLUMNS = ("found", "mean_log_probs", "margins", "true", "frames", "windows", "wrong_windows")
    REAL = ("mean_log_probs", "margins")

    def __init__(
        self,
        count: int,
        num_speakers: int,
        *,
        top: int | None = None,
        rows: RowFile | None = None,
        scale: Scale | None = None,
    ) -> None:
        self._columns = np.zeros((count, len(self.COLUMNS)))
        self._keys: list[str] = []
        self._positions: list[NDArray[np.int64]] = []
        self._most = None if top is None else min(top, num_speakers)
        self._top = np.zeros((2, count, self._most or 0), np.int32)  # classes, and the bits of their scores
        self._rows = rows
        self._scale = scale or Scale()
        self._trials = TrialCounts()
        self._said = time.perf_counter()

    def add(self, scores: GroupScores) -> None:
        """Keep the outcome of a group.

        Raises:
            InputError: the network's outputs are no numbers, or there is no room for them.
        """
        group, means = scores.group, scores.means
        found = means.argmax(axis=1)
        best = means[np.arange(len(found)), found]
        _check_numbers(group.keys, best)
        margins = margins_of(means, found)
        columns = (found, best, margins, group.true, group.lengths, scores.windows, scores.wrong_windows)
        self._columns[group.positions] = np.stack(columns, axis=1)
        self._keys += group.keys
        self._positions.append(group.positions)
        if self._most is not None:
            classes = best_speakers(means, self._most)
            kept = np.take_along_axis(means, classes, axis=1).astype(np.float32)
            self._top[:, group.positions] = classes, kept.view(np.int32)
        if self._rows is not None:
            self._rows.add(group.positions, means.astype(np.float32))
        known = group.true != UNKNOWN
        if known.any() and means.shape[1] > 1:  # a claim has rivals
            ratios = log_likelihood_ratios(self._scale.scaled(means[known], scores.windows[known]))
            self._trials.add(ratios, group.true[known])

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
        if len(keys) != len(self._columns):
            raise InputError(
                f"{len(keys)} of {len(self._columns)} utterances were found in the dataset's blocks, but its table has all; "
                "build the table again: spkid index"
            )
        columns = dict(zip(self.COLUMNS, processes.sum(self._columns).T, strict=True))
        seconds = time.perf_counter() - began
        trials = processes.sum(np.stack((self._trials.targets, self._trials.others)).astype(np.float64))
        self._trials.targets, self._trials.others = trials.astype(np.int64)
        whole = {name: column.astype(np.int64) for name, column in columns.items() if name not in self.REAL}
        classes, means = (None, None) if self._most is None else processes.sum(self._top)
        return ScoreResult(
            keys=[key for _, key in keys],
            speakers=speakers,
            mean_log_probs=columns["mean_log_probs"],
            margins=columns["margins"],
            rates=error_rates(whole["true"], whole["found"], whole["frames"], whole["windows"], whole["wrong_windows"]),
            det=det_curve(self._trials),
            seconds=seconds,
            top_classes=classes,
            top_means=None if means is None else means.view(np.float32),
            **whole,
        )


def _check_numbers(keys: list[str], best: NDArray[np.float64]) -> None:
    """Raise InputError where the best log-probability of an utterance is NaN, as its largest value is if any is."""
    wrong = np.flatnonzero(np.isnan(best))
    if len(wrong):
        raise InputError(
            f"utterance {keys[wrong[0]]!r}: the network's log-probabilities are no numbers (NaN); the weights are those of a "
            "training that diverged, or too large for --mixed_precision fp16: give others, or --mixed_precision no"
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
        raise InputError(f"train.opts: source is {description!r}, expected a JSON object; train again")
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


def main() -> None:
    """Run `spkid score` with the process's arguments as its flags."""
    from spkid_dist.commands.cli import run_command

    run_command("score")
