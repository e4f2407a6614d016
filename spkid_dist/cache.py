"""Feature files sharded once, on the way to training: a named folder that later runs use again.

The folder's name holds a hash of all that decides its contents: the list, the speakers, and size and time of every
feature file. It appears whole (made aside, then renamed), so processes wait for it by looking for it, never in a
collective that could time out. Who makes it leaves a note beside it, by which those who wait know that it is still there.
"""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import xxhash

from shards.conversion.job import Progress, convert
from shards.conversion.plan import Layout, make_plan
from shards.corpus import Utterance
from shards.errors import InputError
from shards.files import expand_home, unreadable_feature_file, writer_name
from shards.layout import FORMAT_VERSION, MANIFEST_NAME
from shards.sources.fmatrix import FmatrixSource
from shards.speakers import SpeakerRule, describe_rule
from spkid_dist.maker import check_maker, maker_note

POLL_SECONDS = 0.2


def cached_shards(
    list_path: Path,
    utterances: list[Utterance],
    source: FmatrixSource,
    speakers: list[str],
    *,
    rule: SpeakerRule | None = None,
    cache_dir: Path,
    makes_it: bool,
    say: Callable[[str], None],
    progress: Progress,
) -> Path:
    """The folder of the list's dataset; one process of a host, the one that `makes_it`, shards it where it is missing.

    Raises:
        InputError: a feature file is missing or damaged, the folder can't be written, or the process that shards has
            failed or is gone.
    """
    identity = _identity(utterances, source, speakers, rule)
    folder = expand_home(cache_dir, "--cache_dir") / f"{list_path.name}-{identity}"
    if (folder / MANIFEST_NAME).exists():
        say(f"{list_path}: using the shards in {folder}")
    elif makes_it:
        say(f"{list_path}: sharding {len(utterances)} utterances into {folder}, once")
        with ExitStack() as stack:
            try:
                stack.enter_context(maker_note(folder))
            except InputError as error:
                raise InputError(f"{error}; set --cache_dir to another folder") from None
            _make(folder, utterances, source, speakers, rule, progress)
    while not (folder / MANIFEST_NAME).exists():
        check_maker(folder)
        time.sleep(POLL_SECONDS)
    return folder


def _make(
    folder: Path,
    utterances: list[Utterance],
    source: FmatrixSource,
    speakers: list[str],
    rule: SpeakerRule | None,
    progress: Progress,
) -> None:
    staging = folder.with_name(f".{folder.name}-{writer_name()}")
    try:
        convert(make_plan(utterances, speakers, source, Layout(), rule=rule), source, staging, progress)
        staging.rename(folder)
    except OSError as error:
        if not (folder / MANIFEST_NAME).exists():  # else another host was faster
            raise InputError(
                f"{folder}: can't be written: {error.strerror}; set --cache_dir to another folder"
            ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _identity(utterances: list[Utterance], source: FmatrixSource, speakers: list[str], rule: SpeakerRule | None) -> str:
    description = source.describe()
    description |= describe_rule(rule, description["kind"])
    digest = xxhash.xxh3_64(repr((FORMAT_VERSION, description, str(source.db_path.resolve()), speakers)).encode())
    for utterance in utterances:
        path = source.where(utterance)
        try:
            status = os.stat(path)  # noqa: PTH116 - a Path a file costs as much as the call
        except OSError as error:
            raise unreadable_feature_file(path, error) from None
        digest.update(f"{utterance.key}\t{utterance.speaker}\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
