"""Sharding: feature files in, WebDataset tars with a manifest out, and the way back. Imports no torch."""

from shards.conversion.folder import open_folder
from shards.conversion.job import claim_folder, convert, convert_tasks
from shards.conversion.merging import merge
from shards.conversion.plan import Layout, Plan, make_plan
from shards.corpus import Utterance, check_speakers, find_speakers, read_list, read_speakers
from shards.dataset import ShardDataset
from shards.errors import InputError, SpkidError, UsageError
from shards.sources import Source
from shards.sources.audio import AudioSource
from shards.sources.features import FeatureOptions
from shards.sources.fmatrix import FmatrixSource
from shards.sources.kaldi import KaldiSource, read_kaldi_folder
from shards.sources.npy import NpySource
from shards.sources.registry import source_from_description
from shards.speakers import SpeakerRule, speaker_by_component, speaker_by_regex, speaker_by_tsv, speaker_by_utt2spk
from shards.stores.retry import RetryPolicy
from shards.stores.store import StoreOptions

__all__ = [
    "AudioSource",
    "FeatureOptions",
    "FmatrixSource",
    "InputError",
    "KaldiSource",
    "Layout",
    "NpySource",
    "Plan",
    "RetryPolicy",
    "ShardDataset",
    "Source",
    "SpeakerRule",
    "SpkidError",
    "StoreOptions",
    "UsageError",
    "Utterance",
    "check_speakers",
    "claim_folder",
    "convert",
    "convert_tasks",
    "find_speakers",
    "make_plan",
    "merge",
    "open_folder",
    "read_kaldi_folder",
    "read_list",
    "read_speakers",
    "source_from_description",
    "speaker_by_component",
    "speaker_by_regex",
    "speaker_by_tsv",
    "speaker_by_utt2spk",
]
