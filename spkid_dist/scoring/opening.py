"""Open the utterances that a command's flags name, and find out who speaks in them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.corpus import Utterance, check_key, read_list, speaker_of
from shards.errors import InputError, UsageError
from shards.sources import Source
from shards.sources.audio import AudioSource
from shards.sources.kaldi import UTT2SPK_NAME, KaldiSource
from shards.sources.kaldiscp import SCP_NAME
from shards.sources.limits import UtteranceLimit
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
from spkid_dist.config.places import DEFAULT_LIST
from spkid_dist.config.scoring import ListFlags, ScoringFlags
from spkid_dist.scoring.recordings import OF_MODEL
from spkid_dist.scoring.utterances import ListedFiles, ShardedUtterances, Utterances
from spkid_dist.trained import TrainedModel

GIVE_RULE = f"give {SPEAKER_FLAGS}"


def open_utterances(config: ListFlags, model: TrainedModel) -> Utterances:
    """What the flags name: a dataset, all of it or a list's part, the files of a list, or all of a Kaldi folder.

    Raises:
        InputError: dataset or list missing or damaged, or not of this model's features.
        UsageError: a library that the kind of source, or of URL, needs is not installed; or the URL needs a cache.
    """
    return open_listed(config, config.te_list_file, model, lambda: find_rule(config, model.options))


def open_listed(
    config: ScoringFlags, list_path: Path | None, model: TrainedModel, speaker_rule: Callable[[], SpeakerRule]
) -> Utterances:
    """As `open_utterances`, of the list at `list_path`; `speaker_rule` makes what names the speakers of its files."""
    if config.te_shards is None:
        if list_path is None and reads_kaldi(config, model):
            source = open_source(config, model.options)
            assert isinstance(source, KaldiSource)
            return ListedFiles(_all_utterances(source, speaker_rule()), source, model)
        if list_path is None and not DEFAULT_LIST.exists():
            raise UsageError(
                f"--te_list_file is not given, and there is no {DEFAULT_LIST}: give a list of utterances, or a dataset by "
                "--te_shards"
            )
        source = open_source(config, model.options)
        are_paths = not isinstance(source, KaldiSource)
        listed = read_list(list_path or DEFAULT_LIST, rule=speaker_rule(), speakers_known=False, are_paths=are_paths)
        return ListedFiles(listed, source, model)
    wanted = None if list_path is None else read_list(list_path, speakers_known=False, are_paths=False)
    return ShardedUtterances(config.te_shards, model, wanted, list_path, store_options(config))


def _all_utterances(source: KaldiSource, rule: SpeakerRule) -> list[Utterance]:
    """All that a Kaldi folder has, in the order of its feats.scp; "" for speakers that the rule does not name."""
    scp = str(source.folder / SCP_NAME)
    utterances = []
    for key in source.entries:
        check_key(key, scp, is_path=False)
        utterances.append(Utterance(key, speaker_of(key, rule, scp, known=False)))
    return utterances


def names_nobody(key: str) -> str:
    """The rule where nobody needs to know who speaks, or nothing says it. Raises InputError."""
    raise InputError(f"no rule names the speaker of utterance {key!r}; {GIVE_RULE}")


def store_options(config: ScoringFlags) -> StoreOptions:
    """How --te_shards is read, and which dataset it must be."""
    return StoreOptions(
        fingerprint=config.fingerprint, cache_dir=config.shard_cache, cache_bytes=config.shard_cache_bytes
    )


def open_source(config: ScoringFlags, options: dict[str, Any]) -> Source:
    """The files under --db_path, read as those of the training: `options` of train.opts tell their kind.

    Raises:
        InputError: train.opts describes no source that can be read, or the folder lacks what it needs.
        UsageError: a library that this kind of source needs is not installed.
    """
    description = options.get("source", {"kind": "fmatrix", "ext": options.get("ext", "mcp")})
    if not isinstance(description, dict):
        raise InputError(f"train.opts: source is {description!r}, expected a JSON object; train again")
    given = {} if config.ext is None else {"ext": config.ext}
    source = source_from_description(
        description | given, config.db_path, UtteranceLimit(config.max_frames), config.source
    )
    return replace(source, remedies=OF_MODEL) if isinstance(source, AudioSource) else source


def reads_kaldi(config: ScoringFlags, model: TrainedModel) -> bool:
    """Whether the utterances are read from a Kaldi folder."""
    source = model.options.get("source")
    return config.te_shards is None and isinstance(source, dict) and source.get("kind") == "kaldi"


def find_rule(config: ListFlags, options: dict[str, Any]) -> SpeakerRule:
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
        return names_nobody
    return speaker_by_component(options.get("speaker_component") or DEFAULT_COMPONENT)


def say_speakers(
    config: ScoringFlags, model: TrainedModel, utterances: Utterances, left_out: str = "Error rates leave them out."
) -> list[str]:
    """Lines on utterances whose true speaker is not known, or not the model's, and what to do."""
    unknown = utterances.unknown
    if not unknown.count:
        return []
    table = kept_table(model.options.get("source")) if config.te_shards is None and not unknown.name else None
    what = f"{unknown.count} of {utterances.count} utterances"
    if table is not None:
        return [
            f"nobody names the speakers of {what}: in the training {table} named them. {left_out} To name them, {GIVE_RULE}"
        ]
    example = f"utterance {unknown.key!r}" if unknown.key else "one"
    if not unknown.name:
        return [f"nobody names the speakers of {what}, such as {example}. {left_out} To name them, {GIVE_RULE}"]
    remedy = "" if config.te_shards is not None else f" If that is no speaker, {GIVE_RULE}"
    of_example = f" of {example}" if unknown.key else ""
    return [
        f"{what} are of speakers that the model does not know, such as {unknown.name!r}{of_example}. {left_out}{remedy}"
    ]
