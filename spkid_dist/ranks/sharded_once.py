"""Shard feature files once, on the way to training, into a named folder that later runs use again.

The folder's name holds a hash of all that decides its contents: the list, the speakers, and size and time of every
feature file. What lies under the name is not believed, but judged (`spkid_dist.ranks.shardcache`). The folder appears whole
(made aside, then renamed), so processes wait for it by looking for it, never in a collective that could time out. Whoever
makes it leaves a note beside it, by which those who wait know whether it is alive, or has failed and why. A launch has a
maker on each host, and a note of its own: the name of the note holds the kernel with its namespaces and the launcher, so
that what an earlier launch left means nothing to a later one, and containers of one host name have notes of their own.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from shards.conversion.job import Progress, convert
from shards.conversion.plan import job_identity, make_plan
from shards.corpus import Utterance
from shards.errors import InputError, SpkidError
from shards.files import (
    expand_home,
    make_folder,
    read_regular,
    real_path,
    staging_folder,
    unreadable_feature_file,
    write_json,
)
from shards.hashing import sum_utterances
from shards.jsontext import parse_json
from shards.layout import FORMAT_VERSION, Layout
from shards.liveness import ProcessMark
from shards.sources.fmatrix import FmatrixSource
from shards.speakers import SpeakerRule, describe_rule
from shards.unfinished import remove_left_behind
from spkid_dist.ranks.shardcache import CacheUse, State, Verdict, find_place, finish, hold, judge, make_room, publish

POLL_SECONDS = 0.2
MOST_NOTE_BYTES = 100_000
MAKING = ".making-"  # in the name of a note


@dataclass(frozen=True, kw_only=True)
class ListedCorpus:
    """Feature files of a list: its utterances, where their frames are, the speakers in class order, and their rule."""

    list_path: Path
    utterances: list[Utterance]
    source: FmatrixSource
    speakers: list[str]
    rule: SpeakerRule | None = None


def cached_shards(
    corpus: ListedCorpus,
    cache_dir: Path,
    limit_bytes: int,
    *,
    makes_it: bool,
    say: Callable[[str], None],
    progress: Progress,
) -> CacheUse:
    """The use of the list's dataset; one process of a host, the one that `makes_it`, shards it where it is missing or wrong.

    Args:
        corpus: the list, and where its files are.
        cache_dir: datasets lie in folders below it.
        limit_bytes: what this user's datasets there may take together; those that are not in use are removed before.
        makes_it: whether this process makes what is missing; it keeps the dataset from being removed while it uses it.
        say: told what is used, made and removed, in lines.
        progress: told of the work.

    Raises:
        InputError: a feature file is missing or damaged, the folder can't be written, or the process that shards has
            failed or is gone.
    """
    listed = _look_at_files(corpus)
    folder = expand_home(cache_dir, "--cache_dir") / f"{corpus.list_path.name}-{listed.identity}"
    if makes_it:
        _remove_old(folder.parent)
    while True:
        found = find_place(folder, listed.job)
        if found.folder != folder and makes_it:
            say(f"{corpus.list_path}: {folder} is not used: {judge(folder, listed.job).why}")
        if found.state is not State.RIGHT and makes_it:
            found = _make_noted(found, corpus, listed, limit_bytes, say, progress)
        elif found.state is State.RIGHT:
            say(f"{corpus.list_path}: using the shards in {found.folder}")
        if found.state is State.RIGHT:
            use = hold(found.folder) if makes_it else CacheUse(found.folder)
            if use is not None:
                return use
            continue  # removed just now
        check_maker(found.folder)
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class _Listed:
    """What the list's files are: what names the dataset's folder, the `job` that makes it, and their bytes."""

    identity: str
    job: str
    num_bytes: int


def _make_noted(
    found: Verdict,
    corpus: ListedCorpus,
    listed: _Listed,
    limit_bytes: int,
    say: Callable[[str], None],
    progress: Progress,
) -> Verdict:
    """Make the dataset where `found` lies; returns what lies there then."""
    count, folder = len(corpus.utterances), found.folder
    if found.state is State.WRONG:
        say(f"{corpus.list_path}: the shards in {folder} are not used: {found.why}; sharding {count} utterances again")
    else:
        say(f"{corpus.list_path}: sharding {count} utterances into {folder}, once")
    with ExitStack() as stack:
        try:
            stack.enter_context(maker_note(folder))
        except InputError as error:
            raise InputError(f"{error}; set --cache_dir to another folder") from None
        make_room(folder.parent, limit_bytes, listed.num_bytes, say)
        _make(found, corpus, progress)
    made = find_place(folder, listed.job)
    if made.state is State.WRONG:
        raise InputError(
            f"{folder}: just made, and yet {made.why}; check the disk, or set --cache_dir to another folder"
        )
    return made


def _make(found: Verdict, corpus: ListedCorpus, progress: Progress) -> None:
    folder = found.folder
    plan = make_plan(corpus.utterances, corpus.speakers, corpus.source, Layout(), rule=corpus.rule)
    with staging_folder(folder) as staging:
        convert(plan, corpus.source, staging, progress)
        try:
            finish(staging)
            publish(staging, found)  # unless another host was faster
        except OSError as error:
            raise InputError(
                f"{folder}: can't be written: {error.strerror}; set --cache_dir to another folder"
            ) from None


def _look_at_files(corpus: ListedCorpus) -> _Listed:
    source, layout = corpus.source, Layout()
    description = source.describe()
    description |= describe_rule(corpus.rule, description["kind"])
    digest = xxhash.xxh3_64(
        repr((FORMAT_VERSION, description, str(real_path(source.db_path)), corpus.speakers)).encode()
    )
    num_bytes = 0
    for utterance in corpus.utterances:
        path = source.where(utterance)
        try:
            status = os.stat(path)  # noqa: PTH116 - a Path a file costs as much as the call
        except OSError as error:
            raise unreadable_feature_file(path, error) from None
        num_bytes += status.st_size
        digest.update(f"{utterance.key}\t{utterance.speaker}\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
    total = str(sum_utterances(corpus.utterances, layout.seed))
    return _Listed(digest.hexdigest(), job_identity(description, layout, corpus.speakers, total), num_bytes)


@contextlib.contextmanager
def maker_note(folder: Path) -> Iterator[None]:
    """While the block runs, a note beside `folder` says that this process makes it; if it fails, why it did.

    Raises:
        InputError: the note can't be written.
    """
    make_folder(folder.parent)
    _remove_old(folder.parent)
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
    return folder.with_name(f".{folder.name}{MAKING}{ProcessMark.of_this().place_digest}-{os.getppid()}")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        note = parse_json(read_regular(path, MOST_NOTE_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no note of a process that makes a dataset: {error}; delete it") from None
    if not isinstance(note, dict):
        raise InputError(f"{path}: no note of a process that makes a dataset: expected a JSON object; delete it")
    return note


def _is_running(note: dict[str, Any]) -> bool:
    """Whether the note's process may still live: it does for those who can't tell, in another container."""
    try:
        return ProcessMark.parse(note).lives is not False
    except ValueError:  # the note of another version
        return False


def _remove_old(cache_dir: Path) -> None:
    """Remove what makers have left in the cache who are known to be gone: notes and unfinished datasets."""
    remove_left_behind(cache_dir)
    for path in cache_dir.glob(f".*{MAKING}*"):
        with contextlib.suppress(SpkidError, OSError, ValueError):  # another's, which tells nothing here
            if ProcessMark.parse(_read(path)).lives is False:
                path.unlink(missing_ok=True)
