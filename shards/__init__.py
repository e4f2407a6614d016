"""Convert feature files to WebDataset tars with a manifest, and read them back.

Imports no torch.

Each public name is imported when it is first used, so that `shards.errors` alone loads no compiled loops.
"""

from typing import TYPE_CHECKING

from shards.lazy import lazy_names

if TYPE_CHECKING:
    from shards.conversion.claiming import claim_folder as claim_folder
    from shards.conversion.folder import open_folder as open_folder
    from shards.conversion.job import convert as convert
    from shards.conversion.job import convert_tasks as convert_tasks
    from shards.conversion.merging import merge as merge
    from shards.conversion.plan import Plan as Plan
    from shards.conversion.plan import make_plan as make_plan
    from shards.corpus import Utterance as Utterance
    from shards.corpus import check_speakers as check_speakers
    from shards.corpus import find_speakers as find_speakers
    from shards.corpus import read_list as read_list
    from shards.corpus import read_speakers as read_speakers
    from shards.dataset import ShardDataset as ShardDataset
    from shards.errors import InputError as InputError
    from shards.errors import SpkidError as SpkidError
    from shards.errors import UsageError as UsageError
    from shards.layout import Layout as Layout
    from shards.sources import Source as Source
    from shards.sources.audio import AudioSource as AudioSource
    from shards.sources.featureoptions import FeatureOptions as FeatureOptions
    from shards.sources.fmatrix import FmatrixSource as FmatrixSource
    from shards.sources.htk import HtkSource as HtkSource
    from shards.sources.kaldi import KaldiSource as KaldiSource
    from shards.sources.kaldi import read_kaldi_folder as read_kaldi_folder
    from shards.sources.npy import NpySource as NpySource
    from shards.sources.registry import source_from_description as source_from_description
    from shards.speakers import SpeakerRule as SpeakerRule
    from shards.speakers import speaker_by_component as speaker_by_component
    from shards.speakers import speaker_by_regex as speaker_by_regex
    from shards.speakers import speaker_by_tsv as speaker_by_tsv
    from shards.speakers import speaker_by_utt2spk as speaker_by_utt2spk
    from shards.stores.retry import RetryPolicy as RetryPolicy
    from shards.stores.store import StoreOptions as StoreOptions

_MODULES = {
    "AudioSource": "sources.audio",
    "FeatureOptions": "sources.featureoptions",
    "FmatrixSource": "sources.fmatrix",
    "HtkSource": "sources.htk",
    "InputError": "errors",
    "KaldiSource": "sources.kaldi",
    "Layout": "layout",
    "NpySource": "sources.npy",
    "Plan": "conversion.plan",
    "RetryPolicy": "stores.retry",
    "ShardDataset": "dataset",
    "Source": "sources",
    "SpeakerRule": "speakers",
    "SpkidError": "errors",
    "StoreOptions": "stores.store",
    "UsageError": "errors",
    "Utterance": "corpus",
    "check_speakers": "corpus",
    "claim_folder": "conversion.claiming",
    "convert": "conversion.job",
    "convert_tasks": "conversion.job",
    "find_speakers": "corpus",
    "make_plan": "conversion.plan",
    "merge": "conversion.merging",
    "open_folder": "conversion.folder",
    "read_kaldi_folder": "sources.kaldi",
    "read_list": "corpus",
    "read_speakers": "corpus",
    "source_from_description": "sources.registry",
    "speaker_by_component": "speakers",
    "speaker_by_regex": "speakers",
    "speaker_by_tsv": "speakers",
    "speaker_by_utt2spk": "speakers",
}
__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
