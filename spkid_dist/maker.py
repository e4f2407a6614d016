"""The note of a process that makes a folder while others of its launch wait for it: alive, or failed, and why.

A launch has a maker on each host, and a note of its own: its name holds the host and the launcher, so that what an earlier
launch left means nothing to a later one.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shards.errors import InputError, SpkidError
from shards.files import make_folder, write_json
from shards.liveness import ProcessMark


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
