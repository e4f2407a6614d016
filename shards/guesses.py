"""Guess what the user meant, for error messages: by what a file begins with and by what lies beside it.

A guess is made where an error is certain, so it costs nothing elsewhere, and it never decides anything.
"""

import errno
import re
import resource
import struct
from pathlib import Path
from typing import Any

from shards.layout import JOB_NAME, MANIFEST_NAME
from shards.names import in_another_form

HEAD = 64  # bytes that are looked at
SHOWN = 5
FFMPEG = "audio --ffmpeg"  # audio that libsndfile does not know

# The first bytes, what begins with them, and the --source that reads it.
BEGINNINGS: tuple[tuple[bytes, str, str | None], ...] = (
    (b"RIFF", "a wav file", "audio"),
    (b"RF64", "a wav file", "audio"),
    (b"RIFX", "a wav file", "audio"),
    (b"riff", "a Wave64 file", "audio"),
    (b"FORM", "an AIFF file", "audio"),
    (b".snd", "an AU file", "audio"),
    (b"caff", "a CAF file", "audio"),
    (b"fLaC", "a flac file", "audio"),
    (b"OggS", "an ogg file", "audio"),
    (b"ID3", "an mp3 file", "audio"),
    (b"NIST_1A", "a SPHERE audio file", "audio"),
    (b"\x1aE\xdf\xa3", "a webm or Matroska file", FFMPEG),
    (b"#!AMR", "an AMR file", FFMPEG),
    (b"0&\xb2u\x8ef\xcf\x11", "a wma or asf file", FFMPEG),
    (b"\x93NUMPY", "a .npy file", "npy"),
    (b"PK\x03\x04", "a .npz or another zip file", "npy"),
    (b"\x1f\x8b", "a file packed by gzip", None),
    (b"\x89HDF", "an HDF5 file", None),
    (b"\x80\x04", "a Python pickle", None),
    (b"MATLAB", "a Matlab file", None),
    (b"\0BFM ", "a Kaldi matrix", "kaldi"),
    (b"\0BDM ", "a Kaldi matrix", "kaldi"),
    (b"\0BCM", "a Kaldi matrix", "kaldi"),
)
KALDI_ARCHIVE = re.compile(rb"\S{1,50} \0B")
TORCH_MEMBER = b"/data.pkl"  # the first in the archive
HTK = struct.Struct(">iiHH")  # frames, 100 ns from one to the next, bytes of a frame, kind
HTK_CHECKSUM = 0o10000  # a bit of the kind
INSTEAD = {
    "a file packed by gzip": "unpack it",
    "a file of torch.save": "save the tensor by numpy.save(path, tensor.numpy()), and give --source npy",
}


def guess_content(data: bytes, source: str) -> str | None:
    """What a file that begins with `data` seems to be, and what to do; None where that is not clear, or is `source` itself.

    Args:
        data: the file, or its beginning.
        source: the kind of source that could not read it.
    """
    found = content_kind(data)
    if found is None or found[1] == source:
        return None
    what, kind = found
    if kind == "kaldi":
        return f"it seems to be {what}: give --source kaldi, and --db_path the folder that holds its feats.scp"
    if kind is not None:
        return f"it seems to be {what}: give --source {kind}"
    return f"it seems to be {what}: {INSTEAD.get(what, 'save it as one of the kinds of --source')}"


def content_kind(data: bytes) -> tuple[str, str | None] | None:
    """What `data` seems to be the beginning of, and the --source that reads it."""
    if data.startswith(b"PK\x03\x04") and TORCH_MEMBER in data[: HEAD * 2]:
        return "a file of torch.save", None
    for beginning, what, kind in BEGINNINGS:
        if data.startswith(beginning):
            return what, kind
    if data[4:8] == b"ftyp":
        return "an m4a or mp4 file", FFMPEG
    if len(data) >= 2 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:  # ADTS
        return "an aac file", FFMPEG
    if len(data) >= 2 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2:  # MPEG's sync word, layer III
        return "an mp3 file", "audio"
    if KALDI_ARCHIVE.match(data):
        return "a Kaldi archive", "kaldi"
    if _is_htk(data):
        return "an HTK parameter file", "htk"
    if len(data) >= 4 and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in data[:HEAD]):
        return "text", None
    return None


def _is_htk(data: bytes) -> bool:
    if len(data) < HTK.size:
        return False
    frames, period, frame_bytes, kind = map(int, HTK.unpack_from(data))
    checksum_bytes = 2 if kind & HTK_CHECKSUM else 0
    return (
        frames > 0 and period > 0 and frame_bytes > 0 and len(data) == HTK.size + frames * frame_bytes + checksum_bytes
    )


def guess_missing_file(path: str) -> str | None:
    """Why a feature file ``{db_path}/{key}.{ext}`` is missing, and what to do; None where nothing near it tells."""
    file = Path(path)
    alike = _in_another_form(file)
    if alike is not None:
        return f"a file of the same name in another Unicode form is there: write the list's line as its name, {str(alike)!a}"
    folder, name = file.parent, file.stem
    if Path(name).suffix and (folder / name).is_file():
        return f"there is {folder / name}: the list's lines have the extension already; remove {Path(name).suffix} from them"
    if not folder.is_dir():
        present = next((parent for parent in folder.parents if parent.is_dir()), None)
        if present is None:
            return None
        missing = next(parent for parent in (folder, *folder.parents) if parent.parent == present)
        return f"the folder {missing} does not exist; give the folder of the files by --db_path, or correct the list"
    others = sorted(other.name for other in folder.iterdir() if other.name.startswith(f"{name}.") and other.is_file())
    if not others:
        return None
    found = f"there is {others[0]} in its folder: give --ext {others[0][len(name) + 1 :]}"
    try:
        with (folder / others[0]).open("rb") as other:
            kind = (content_kind(other.read(HEAD)) or (None, None))[1]
    except OSError:
        return found
    return found if kind in (None, "kaldi") else f"{found} and --source {kind}"


def _in_another_form(file: Path) -> Path | None:
    """The file that is there under a path which looks the same, but is other characters: é as one, or as e and an accent."""
    if str(file).isascii():
        return None
    found = Path(file.anchor)
    for part in file.parts[1 if file.anchor else 0 :]:
        if not (found / part).exists():
            names = (entry.name for entry in found.iterdir()) if found.is_dir() else ()
            other = in_another_form(part, names)
            if other is None:
                return None
            part = other
        found /= part
    return found


def guess_encoding(data: bytes) -> str | None:
    """What is wrong with the encoding of a text that begins with `data`, and what to do; None where nothing tells.

    UTF-16, as Windows and spreadsheets write, begins with a mark, or has zeros beside each Latin letter.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data[:HEAD].count(0) * 4 > len(data[:HEAD]):
        return "it seems to be UTF-16: save it as UTF-8, such as by iconv -f UTF-16 -t UTF-8"
    return None


def guess_dataset(folder: Path) -> str:
    """What to give instead of a folder that holds no manifest, or what to do first."""
    below = sorted({path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/{MANIFEST_NAME}")})
    if below:
        more = ", ..." if len(below) > SHOWN else ""
        return f"there are datasets below it, give one of them: {', '.join(map(str, below[:SHOWN]))}{more}"
    if (folder / JOB_NAME).exists():
        return (
            "it is an unfinished job of `spkid shard`: run its command, or its tasks, to their end; where all tasks are done: "
            f"spkid merge {folder}"
        )
    if any(folder.glob("shard-*.tar")):
        return f"it holds shards without a manifest; make one: spkid index {folder}"
    if folder.is_file():
        return f"it is a file; give the folder that `spkid shard` has finished, perhaps {folder.parent}"
    return "give a folder that `spkid shard` has finished"


def describe_difference(found: Any, expected: Any) -> tuple[str, str]:
    """Two values that differ, each in words: of objects the fields that differ, of lists the length and the first such."""
    if isinstance(found, dict) and isinstance(expected, dict):
        names = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
        here, there = (", ".join(f"{name} {value.get(name)}" for name in names) for value in (found, expected))
        return here, there
    if isinstance(found, list) and isinstance(expected, list):
        at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None)
        at = min(len(found), len(expected)) if at is None else at
        here, there = (
            f"{len(value):,}" + (f" (class {at} is {value[at]!r})" if at < len(value) else "")
            for value in (found, expected)
        )
        return here, there
    return ("none" if found is None else str(found)), ("none" if expected is None else str(expected))


def file_trouble(error: OSError, remedy: str) -> str:
    """What the system says of a file that can't be read, and the `remedy`; another one where too many files are open."""
    if error.errno != errno.EMFILE:
        return f"{error.strerror or error}; {remedy}"
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"{error.strerror}: this process may have {most} at once; raise that limit: ulimit -n {max(1024, 2 * most)}"
