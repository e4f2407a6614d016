"""Find out whether utterances were trained on, from what `train.opts` says of the training set.

The training set is known by its fingerprint, and its utterances by the hashes of their keys, where the dataset or the list that
`train.opts` names can still be read.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.corpus import read_list
from shards.dataset import ShardDataset
from shards.errors import InputError, SpkidError
from shards.layout import key_hash

MOST_TRAINED_ON = 0.01  # share of a list that may be in the training set by mishap
FORCE = "--force to calibrate on it nevertheless"


def check_held_out(
    options: Mapping[str, Any],
    hashes: NDArray[np.uint64],
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
    chosen = bool(options.get("tr_utterances") or options.get("tr_speakers"))
    is_training_set = fingerprint is not None and fingerprint == options.get("tr_fingerprint")
    trained = None if is_training_set and not chosen else trained_hashes(options)
    if trained is None:
        if not is_training_set:
            say("the training's utterances can't be read any more, so nobody checked whether these were trained on")
            return
        problem = "the model was trained on this dataset"
    else:
        count = int(np.isin(hashes, trained).sum())
        problem = f"the model was trained on {count:,} of these {len(hashes):,} utterances"
        if count <= MOST_TRAINED_ON * len(hashes):
            if count:
                say(f"{problem}; so few change little")
            return
    if not force:
        raise InputError(
            f"{problem}, so its confidences there are too high; calibrate on utterances that were held out, or give {FORCE}"
        )
    say(f"{problem}, so confidences will be too high for other utterances")


def trained_hashes(options: Mapping[str, Any]) -> NDArray[np.uint64] | None:
    """The hashes of the keys of the utterances in the training set; None where neither dataset nor list can be read."""
    speakers = options.get("tr_speakers") or ()
    try:
        if options.get("tr_utterances"):
            return _listed(Path(str(options["tr_utterances"])), options, speakers)
        if not options.get("tr_shards"):
            path = options.get("tr_list_file")
            return None if path is None else _listed(Path(str(path)), options, speakers)
        if not Path(str(options["tr_shards"])).is_dir():
            return None  # it is gone, or at a URL: asking a store that fails takes minutes
        data = ShardDataset(str(options["tr_shards"]))
        if data.fingerprint != options.get("tr_fingerprint"):
            return None
        rows = data.utterances
        names = data.manifest.speakers
        if speakers:
            rows = rows[np.isin(rows["speaker"], [index for index, name in enumerate(names) if name in speakers])]
        return np.array(rows["key_hash"], np.uint64)
    except SpkidError:
        return None


def _listed(path: Path, options: Mapping[str, Any], speakers: Sequence[str]) -> NDArray[np.uint64]:
    component = options.get("speaker_component") or 2
    listed = read_list(path, component, speakers_known=False)
    wanted = [one for one in listed if not speakers or one.speaker in speakers]
    return np.array([key_hash(one.key) for one in wanted], np.uint64)
