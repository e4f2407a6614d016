"""Which training a file is of: one name for the data and all options that change its result.

The name (`training_id`) is in `train.opts`, in the checkpoints and in the weights, so that files which do not belong together
are refused. A training that goes on keeps the name that its checkpoint has.
"""

import json
from collections.abc import Mapping
from typing import Any

import xxhash

# Where data and results lie: what the data are is told by their fingerprints, and the choice among them by its own.
_PLACES = {"db_path", "tr_list_file", "va_list_file", "ext", "spk2idx", "speaker_component"}
_PLACES |= {"tr_shards", "va_shards", "tr_utterances", "cache_dir", "shard_cache", "shard_cache_bytes", "save_path"}
# How the training is run.
_RUN = {"log_freq", "accumulation", "resume", "overwrite", "checkpoint_steps", "checkpoint_minutes", "keep_checkpoints"}
_RUN |= {"timeout_minutes", "log_with", "profile", "engine", "device_memory"}
# When it ends; --epoch not to below what is trained already.
_END = {"epoch", "patience"}
MAY_CHANGE = frozenset(_PLACES | _RUN | _END)
"""The options that a training may change when it goes on; what is not among them changes results."""

ID_NAME = "training_id"


def training_id(options: Mapping[str, Any], data: Mapping[str, str | None]) -> str:
    """The name of the training with these options (as JSON has them) on these data (what -> fingerprint, None for all)."""
    decisive = {name: value for name, value in options.items() if name not in MAY_CHANGE}
    return xxhash.xxh3_128_hexdigest(json.dumps([decisive, dict(data)], sort_keys=True).encode())
