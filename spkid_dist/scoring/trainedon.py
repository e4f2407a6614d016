"""Find out whether utterances were trained on, from what `train.opts` says of the training set.

Its `tr_fingerprint` is that of the dataset, and `tr_keys` the sum of the hashes of the chosen utterances' keys
(`shards.layout.key_sum`). What lies at the paths in `train.opts` today may be something else: another list of the same name, or
a file of the folder in which the command runs. So nothing counts as looked at unless one of the two says that it is the
training's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.corpus import read_list
from shards.dataset import ShardDataset
from shards.errors import InputError, SpkidError
from shards.files import expand_home
from shards.layout import MANIFEST_NAME, key_hash, key_sum
from shards.names import one_form
from shards.speakers import DEFAULT_COMPONENT, kept_rule, speaker_by_component

MOST_TRAINED_ON = 0.01  # share of a list that may be in the training set by mishap
FORCE = "--force to calibrate on it nevertheless"

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """How many of some utterances a model was trained on: `count` at least, and no more where `doubt` is "".

    `doubt` says why nobody can know that. `is_dataset` is whether they are the dataset
    that was trained on, all of it.
    """

    count: int
    doubt: str = ""
    is_dataset: bool = False


def check_held_out(
    options: Mapping[str, Any],
    hashes: Hashes,
    fingerprint: str | None,
    say: Callable[[str], None],
    *,
    force: bool,
) -> None:
    """Refuse utterances of which the model of `options` (of train.opts) was trained on more than a few.

    Args:
        options: those of train.opts.
        hashes: of the utterances' keys, (U,), as `shards.layout.key_hash`.
        fingerprint: that of the dataset which they are all of; None where they are not of one.
        say: is told what can't be found out, what is trained on nevertheless (`force`), and that a few are.
        force: say so instead of refusing.

    Raises:
        InputError: the utterances were trained on.
    """
    found = trained_on(options, hashes, fingerprint)
    problem = f"the model was trained on {found.count:,} of these {len(hashes):,} utterances"
    if found.is_dataset:
        problem = "the model was trained on this dataset"
    if found.count <= MOST_TRAINED_ON * len(hashes):
        if found.doubt:
            say(f"{found.doubt}, so nobody checked whether these utterances were trained on")
        if found.count:
            say(f"{problem}; so few change little")
        return
    if not force:
        raise InputError(
            f"{problem}, so its confidences there are too high; calibrate on utterances that were held out, or give {FORCE}"
        )
    say(f"{problem}, so confidences will be too high for other utterances")


def trained_on(options: Mapping[str, Any], hashes: Hashes, fingerprint: str | None) -> TrainedOn:
    """How many utterances with keys of these hashes (U,) the model of `options` was trained on.

    `fingerprint` is that of the dataset which the utterances are all of; None where they are not of one.
    """
    is_chosen = bool(options.get("tr_utterances") or options.get("tr_speakers"))
    is_same_dataset = fingerprint is not None and fingerprint == options.get("tr_fingerprint") and not is_chosen
    if is_same_dataset or key_sum([hashes]) == options.get("tr_keys"):
        return TrainedOn(count=len(hashes), is_dataset=is_same_dataset)
    dataset, why = _dataset_of(options)
    if dataset is not None and not is_chosen:
        return TrainedOn(count=_common(hashes, dataset.utterances["key_hash"]))
    if dataset is not None and not options.get("tr_utterances"):
        return TrainedOn(count=_common(hashes, _of_speakers(dataset, options)))
    listed, doubt = _list_of(options, dataset)
    count = 0 if listed is None else _common(hashes, listed)
    if not doubt and listed is not None:
        return TrainedOn(count=count)
    if dataset is not None and not _common(hashes, dataset.utterances["key_hash"]):
        return TrainedOn(count=0)  # whatever was chosen of the dataset
    return TrainedOn(count=count, doubt=" and ".join(filter(None, (why, doubt))))


def _common(hashes: Hashes, others: Hashes) -> int:
    return int(np.isin(hashes, others).sum())


def _dataset_of(options: Mapping[str, Any]) -> tuple[ShardDataset | None, str]:
    """The dataset that was trained on; or None and why it can't be looked at.

    Files that were trained on have one in the training's cache. A store is not asked: one that fails takes minutes.
    """
    place, fingerprint = options.get("tr_shards"), options.get("tr_fingerprint")
    if place and "://" in str(place):
        return None, f"the training set {place} is not on this machine"
    for folder in [Path(str(place))] if place else _cached(options):
        try:
            dataset = ShardDataset(str(folder)) if (folder / MANIFEST_NAME).is_file() else None
        except (SpkidError, ValueError):
            continue
        if dataset is not None and fingerprint is not None and dataset.fingerprint == fingerprint:
            return dataset, ""
    if not place:
        return None, ""
    what = "is another dataset now" if (Path(str(place)) / MANIFEST_NAME).is_file() else "can't be read any more"
    return None, f"the training set {place} {what}"


def _cached(options: Mapping[str, Any]) -> Iterator[Path]:
    """Where the training's cache may have the dataset of its list."""
    cache, listed = options.get("cache_dir"), options.get("tr_list_file")
    if cache and listed:
        try:
            yield from sorted(expand_home(Path(str(cache)), "--cache_dir").glob(f"{escape(Path(str(listed)).name)}-*"))
        except (SpkidError, OSError, ValueError):
            return


def _list_of(options: Mapping[str, Any], dataset: ShardDataset | None) -> tuple[Hashes | None, str]:
    """The hashes of the listed keys that were trained on, None where there is no list; and why they may not be all, or "".

    The `dataset` tells the speakers, where it is there; else they are named as in the training.
    """
    place = options.get("tr_utterances") or (None if options.get("tr_shards") else options.get("tr_list_file"))
    if not place:
        return None, "" if options.get("tr_shards") else "train.opts names no training set"
    wanted, source = set(map(one_form, options.get("tr_speakers") or ())), options.get("source")
    try:
        rule = kept_rule(source) or speaker_by_component(options.get("speaker_component") or DEFAULT_COMPONENT)
        listed = read_list(Path(str(place)), rule=rule, speakers_known=False, are_paths=False)
    except (SpkidError, ValueError):  # the latter where the path is none
        return None, f"the training's list {place} can't be read any more"
    if dataset is not None:
        hashes = np.array([key_hash(one.key) for one in listed], np.uint64)
        hashes = np.intersect1d(hashes, _of_speakers(dataset, options) if wanted else dataset.utterances["key_hash"])
    else:
        hashes = np.array([key_hash(one.key) for one in listed if not wanted or one.speaker in wanted], np.uint64)
    known = options.get("tr_keys")
    if known is None:
        return hashes, f"the training kept nothing to compare its list {place} with"
    is_it = key_sum([hashes]) == known
    return hashes, "" if is_it else f"{place} does not list what was trained on, or not any more"


def _of_speakers(dataset: ShardDataset, options: Mapping[str, Any]) -> Hashes:
    """The hashes of the keys of the dataset's utterances whose speakers were chosen."""
    chosen = set(map(one_form, options.get("tr_speakers") or ()))
    classes = [index for index, name in enumerate(dataset.manifest.speakers) if one_form(name) in chosen]
    rows = dataset.utterances
    return np.array(rows["key_hash"][np.isin(rows["speaker"], classes)], np.uint64)
