"""Shard feature files once, on the way to training, into a named folder that later runs use again.

The folder's name holds a hash of all that decides its contents: the list, the speakers, and size and time of every
feature file. It appears whole (made aside, then renamed), so processes wait for it by looking for it, never in a
collective that could time out. Whoever makes it leaves a note beside it, by which those who wait know whether it is
alive, or has failed and why. A launch has a maker on each host, and a note of its own: the name of the note holds the
host and the launcher, so that what an earlier launch left means nothing to a later one.
"""

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from shards.conversion.job import Progress, convert
from shards.conversion.plan import make_plan
from shards.corpus import Utterance
from shards.errors import InputError, SpkidError
from shards.files import expand_home, make_folder, unreadable_feature_file, write_json, writer_name
from shards.layout import FORMAT_VERSION, MANIFEST_NAME, Layout
from shards.liveness import ProcessMark
from shards.sources.fmatrix import FmatrixSource
from shards.speakers import SpeakerRule, describe_rule

POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class ListedCorpus:
    """Feature files of a list: its utterances, where their frames are, the speakers in class order, and their rule."""

    list_path: Path
    utterances: list[Utterance]
    source: FmatrixSource
    speakers: list[str]
    rule: SpeakerRule | None = None


def cached_shards(
    corpus: ListedCorpus, cache_dir: Path, *, makes_it: bool, say: Callable[[str], None], progress: Progress
) -> Path:
    """The folder of the list's dataset; one process of a host, the one that `makes_it`, shards it where it is missing.

    Raises:
        InputError: a feature file is missing or damaged, the folder can't be written, or the process that shards has
            failed or is gone.
    """
    list_path = corpus.list_path
    folder = expand_home(cache_dir, "--cache_dir") / f"{list_path.name}-{_identity(corpus)}"
    if (folder / MANIFEST_NAME).exists():
        say(f"{list_path}: using the shards in {folder}")
    elif makes_it:
        say(f"{list_path}: sharding {len(corpus.utterances)} utterances into {folder}, once")
        with ExitStack() as stack:
            try:
                stack.enter_context(maker_note(folder))
            except InputError as error:
                raise InputError(f"{error}; set --cache_dir to another folder") from None
            _make(folder, corpus, progress)
    while not (folder / MANIFEST_NAME).exists():
        check_maker(folder)
        time.sleep(POLL_SECONDS)
    return folder


def _make(folder: Path, corpus: ListedCorpus, progress: Progress) -> None:
    staging = folder.with_name(f".{folder.name}-{writer_name()}")
    plan = make_plan(corpus.utterances, corpus.speakers, corpus.source, Layout(), rule=corpus.rule)
    try:
        convert(plan, corpus.source, staging, progress)
        staging.rename(folder)
    except OSError as error:
        if not (folder / MANIFEST_NAME).exists():  # else another host was faster
            raise InputError(
                f"{folder}: can't be written: {error.strerror}; set --cache_dir to another folder"
            ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _identity(corpus: ListedCorpus) -> str:
    source = corpus.source
    description = source.describe()
    description |= describe_rule(corpus.rule, description["kind"])
    digest = xxhash.xxh3_64(
        repr((FORMAT_VERSION, description, str(source.db_path.resolve()), corpus.speakers)).encode()
    )
    for utterance in corpus.utterances:
        path = source.where(utterance)
        try:
            status = os.stat(path)  # noqa: PTH116 - a Path a file costs as much as the call
        except OSError as error:
            raise unreadable_feature_file(path, error) from None
        digest.update(f"{utterance.key}\t{utterance.speaker}\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def maker_note(folder: Path) -> Iterator[None]:
    """While the block runs, a note beside `folder` says that this process makes it; if it fails, why it did.

    Raises:
        InputError: the note can't be written.
    """
    make_folder(folder.parent)
    _remove_old(folder)
    note = _note(folder)
    maker = asdict(ProcessMark.of_this())
    write_json(note, maker)
    try:
        yield
    except (SpkidError, OSError) as error:
        with contextlib.suppress(SpkidError):  # where the disk is full, those who wait see that this process is gone
            write_json(note, maker | {"failed": str(error)})
        raise
    note.unlink(missing_ok=True)


def check_maker(folder: Path) -> None:
    """Called again and again by those who wait for `folder`; before its maker has begun there is no note to be seen.

    Raises:
        InputError: the process of this host and launch that makes it has failed, or is gone without a word.
    """
    note = _read(_note(folder))
    if note is None:
        return
    if "failed" in note:
        raise InputError(f"{folder}: the process that was to make it has failed: {note['failed']}")
    if not _is_running(note) and _note(folder).exists():  # it removes the note when it is done
        raise InputError(
            f"{folder}: process {note['process']}, which was to make it, is gone without a word (out of memory?); start the "
            "same again"
        )


def _note(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.making-{socket.gethostname()}-{os.getppid()}")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read: {error}") from None


def _is_running(note: dict[str, Any]) -> bool:
    """Whether the note's process may still live: it does for those who can't tell, in another container."""
    try:
        return not ProcessMark.parse(note).is_gone
    except ValueError:  # the note of another version
        return False


def _remove_old(folder: Path) -> None:
    """Remove the notes that makers of this host have left who are gone."""
    for path in folder.parent.glob(f".{folder.name}.making-{socket.gethostname()}-*"):
        note = _read(path)
        if note is not None and not _is_running(note):
            path.unlink(missing_ok=True)
