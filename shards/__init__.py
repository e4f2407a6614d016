"""Sharding: feature files in, WebDataset tars with a manifest out, and the way back. Imports no torch."""

from shards.convert import convert
from shards.corpus import Utterance, check_speakers, find_speakers, read_list, read_speakers
from shards.dataset import ShardDataset
from shards.errors import InputError, SpkidError, UsageError
from shards.plan import Layout, Plan, make_plan
from shards.sources.fmatrix import FmatrixSource

__all__ = [
    "FmatrixSource",
    "InputError",
    "Layout",
    "Plan",
    "ShardDataset",
    "SpkidError",
    "UsageError",
    "Utterance",
    "check_speakers",
    "convert",
    "find_speakers",
    "make_plan",
    "read_list",
    "read_speakers",
]
