"""Open the utterances of speakers that a model does not know, and make sure that they are what they are said to be.

A threshold that is fitted to the model's own speakers accepts nobody. Names alone don't tell: another list may name the same
utterances' speakers in another way.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from shards.corpus import read_list
from shards.errors import InputError
from shards.layout import MANIFEST_NAME
from shards.plaintext import is_remote
from shards.sources.kaldi import KaldiSource
from spkid_dist.config import CalibrateConfig
from spkid_dist.scoring.opening import GIVE_RULE, find_rule, open_source, store_options
from spkid_dist.scoring.run import ScoringRun
from spkid_dist.scoring.trainedon import trained_on
from spkid_dist.scoring.utterances import ListedFiles, ShardedUtterances, Utterances
from spkid_dist.trained import read_options

LEFT_OUT = (
    "remove them; if --tr_speakers left them out of the training, the network has an output for them all the same, as for "
    "each speaker of its dataset: train on a dataset without them"
)


def open_strangers(place: str, config: CalibrateConfig, run: ScoringRun) -> Utterances:
    """The utterances of speakers that the model does not know: a dataset, or those of a list.

    Raises:
        InputError: they are missing or damaged; or some are of the model's speakers.
    """
    strangers: Utterances
    if is_remote(place) or (Path(place) / MANIFEST_NAME).exists():
        store = replace(store_options(config), fingerprint=None)  # that of --te_shards
        strangers = ShardedUtterances(place, run.model, None, None, store)
    elif Path(place).is_dir():
        raise InputError(
            f"{place}: is a folder, but no dataset (no {MANIFEST_NAME}); give --unknown a list or a dataset"
        )
    elif config.te_shards is not None:
        listed = read_list(Path(place), speakers_known=False, are_paths=False)
        strangers = ShardedUtterances(config.te_shards, run.model, listed, Path(place), store_options(config))
    else:
        source, rule = open_source(config, run.model.options), find_rule(config, run.model.options)
        are_paths = not isinstance(source, KaldiSource)
        listed = read_list(Path(place), rule=rule, speakers_known=False, are_paths=are_paths)
        unnamed = sum(not one.speaker for one in listed)
        if unnamed:
            run.log.line(
                f"{place}: nobody names the speakers of {unnamed} of {len(listed)} utterances, so nobody checked that these "
                f"are not the model's; {GIVE_RULE}"
            )
        strangers = ListedFiles(listed, source, run.model)
    known = strangers.count - strangers.unknown.count
    if known:
        left_out = any(read_options(one.options).get("tr_speakers") for one in run.files)
        raise InputError(
            f"{place}: {known} of {strangers.count} utterances are of speakers that the model knows; --unknown takes those of "
            f"other speakers only: {LEFT_OUT if left_out else 'remove them'}"
        )
    return strangers


def check_strangers(place: str, run: ScoringRun, strangers: Utterances, known: Utterances) -> None:
    """Refuse utterances of others that are among the `known` ones, or that a model was trained on, by their keys.

    Raises:
        InputError: some are.
    """
    hashes = strangers.key_hashes()
    common = int(np.isin(hashes, known.key_hashes()).sum())
    if common:
        raise InputError(
            f"{place}: {common} of {strangers.count} utterances are among those of the model's speakers, too; --unknown takes "
            "those of other speakers only: remove them"
        )
    doubts: dict[str, None] = {}
    for options in (read_options(one.options) for one in run.files):
        found = trained_on(options, hashes, strangers.fingerprint)
        if found.count:
            raise InputError(
                f"{place}: the model was trained on {found.count} of these {strangers.count} utterances, so it knows their "
                "speakers by whatever name; --unknown takes those of other speakers only: remove them"
            )
        if found.doubt:
            doubts[found.doubt] = None
    for doubt in doubts:
        run.log.line(f"{place}: {doubt}, so nobody checked whether these utterances were trained on")
