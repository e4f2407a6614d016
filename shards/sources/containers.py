"""Find audio files that were cut short, or whose header names fewer samples than they have.

libsndfile plays what it finds of such a file and says nothing. Here each kind of file that tells its length is compared with
it: by the chunks of wav (RIFF, RIFX, RF64), Wave64, AIFF and CAF, and by the headers of AU, SPHERE, MP3 and ogg. FLAC needs no
look: its decoder fails. The few kinds that no chunk or header tells the length of (IRCAM, PAF, PVF, XI) can't be compared.

Sources: the descriptions of these formats; what programs write where they do not know a length is from ffmpeg, sox, arecord and
espeak.
"""

import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from shards.errors import InputError

HEAD_BYTES = 1024  # SPHERE's header has that size, or a multiple
OGG_TAIL = 65536  # bytes; an ogg page is shorter
OGG_LAST_PAGE = 4  # flag in a page's header
MOST_CHUNKS = 10_000
MOST_PADDING = 8  # bytes of zeros behind the last chunk that are no chunk, and no samples
UNKNOWN_BYTES = (
    0x7FFFF000  # from here on a wav's size stands for one that its program did not know, as it wrote to a pipe
)
ARECORD_BYTES = 2_000_000_000  # as does this one
XING_FRAMES, XING_BYTES = 1, 2  # flags: which numbers follow
NOTED_CUT = re.compile(r"should be|truncated", re.IGNORECASE)
NOTED_LENGTH = re.compile(r"\b(?:Frames|Cols)\s*: (\d+)")


@dataclass(frozen=True)
class ChunkLayout:
    """How a kind of file writes its chunks.

    Attributes:
        begin: byte at which the first chunk begins.
        header: of a chunk: its name and its size.
        align: chunks begin at multiples of this, counted from `begin`.
        whole: whether a size counts the chunk's header too.
        samples: what the name of the chunk of samples begins with.
    """

    begin: int
    header: struct.Struct
    align: int
    whole: bool
    samples: bytes


RIFF = ChunkLayout(12, struct.Struct("<4sI"), 2, False, b"data")
RIFX = ChunkLayout(12, struct.Struct(">4sI"), 2, False, b"data")
AIFF = ChunkLayout(12, struct.Struct(">4sI"), 2, False, b"SSND")
CAF = ChunkLayout(8, struct.Struct(">4sq"), 1, False, b"data")
WAVE64 = ChunkLayout(40, struct.Struct("<16sQ"), 8, True, b"data")


def check_whole(file: IO[bytes], path: str) -> None:
    """Compare an open file with the length that it tells, if it does; `path` is for messages.

    Raises:
        InputError: it is empty, cut short, or has bytes behind its samples that are nothing known.
        OSError: it can't be read.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise InputError(f"{path}: the file is empty; expected audio: record or convert it again")
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if head.startswith(b"ID3") and len(head) > 10:
        tag_bytes = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        size -= tag_bytes
        file.seek(tag_bytes)
        head = file.read(HEAD_BYTES)
    for beginning, check in CHECKS:
        if head.startswith(beginning):
            check(file, head, size, path)
            return
    if (at := _find_xing(head)) is not None:
        _check_mp3(head, at, size, path)


def check_log(audio: Any, path: str) -> None:
    """Compare an open `soundfile.SoundFile` with what libsndfile noted of it, of a kind that `check_whole` does not know.

    Raises:
        InputError: it noted that the file is shorter than its header says.
    """
    if audio.format in KNOWN:
        return
    log = audio.extra_info
    lengths = [int(length) for length in NOTED_LENGTH.findall(log)]
    if NOTED_CUT.search(log) or (lengths and lengths[-1] > audio.frames):
        raise truncated(path, f"its header names more samples than its {audio.frames}")


KNOWN = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "OGG", "FLAC", "MP3")
"""The kinds of files, as soundfile calls them, that `check_whole` compares, or whose decoder fails where they are cut."""


def truncated(path: str, what: str) -> InputError:
    """The error of a file that was cut short."""
    return InputError(f"{path}: truncated: {what}; copy or convert it again")


def _check_chunks(layout: ChunkLayout) -> Callable[[IO[bytes], bytes, int, str], None]:
    return lambda file, _head, size, path: _walk(file, size, path, layout)


def _walk(file: IO[bytes], size: int, path: str, layout: ChunkLayout) -> None:
    """Go from chunk to chunk. Those before the samples are libsndfile's to judge; all behind them must be chunks."""
    at, seen_samples, wide_bytes = layout.begin, False, 0
    for _ in range(MOST_CHUNKS):
        if at + layout.header.size > size:
            if seen_samples:
                _check_rest(file, at, size, path)
            return
        name, num_bytes, begin = _chunk(file, at, layout)
        if seen_samples and not _is_chunk(name, num_bytes, size - begin):
            if layout.align == 2 and _is_chunk(*_chunk(file, at - 1, layout)[:2], size - begin + 1):
                at -= 1  # a program that left out the byte of padding
                continue
            _check_rest(file, at, size, path)
            return
        if num_bytes < 0:  # of a CAF: up to its end
            return
        if name == b"ds64":
            file.seek(begin + 8)
            wide_bytes = int(struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0])
        if name.startswith(layout.samples) and not seen_samples:
            seen_samples = True
            if num_bytes == 0xFFFFFFFF and 0 < wide_bytes < 2**63:
                num_bytes = wide_bytes
            elif layout.align == 2 and is_unknown(num_bytes) and size - begin < num_bytes:
                return
            if size - begin < num_bytes:
                raise truncated(path, f"{size - begin} of {num_bytes} bytes of samples")
        end = begin + num_bytes
        at = end + (layout.begin - end) % layout.align
    raise InputError(f"{path}: it has more than {MOST_CHUNKS} chunks; expected an audio file: convert it again")


def is_unknown(num_bytes: int) -> bool:
    """Whether the size of a wav's samples is one of those that programs write who do not know it: they write to a pipe."""
    return num_bytes == ARECORD_BYTES or num_bytes >= UNKNOWN_BYTES


def _chunk(file: IO[bytes], at: int, layout: ChunkLayout) -> tuple[bytes, int, int]:
    """Name and size in bytes of the chunk at `at`, and where its contents begin."""
    file.seek(at)
    name, num_bytes = layout.header.unpack(file.read(layout.header.size).ljust(layout.header.size, b"\0"))
    begin = at + layout.header.size
    return name, max(0, num_bytes - layout.header.size) if layout.whole else num_bytes, begin


def _is_chunk(name: bytes, num_bytes: int, rest: int) -> bool:
    return 0 <= num_bytes <= rest and all(32 <= byte < 127 for byte in name[:4])


def _check_rest(file: IO[bytes], at: int, size: int, path: str) -> None:
    """Bytes at the end that are no chunk may be a few zeros."""
    if at >= size:
        return
    file.seek(at)
    if size - at <= MOST_PADDING and not any(file.read(size - at)):
        return
    raise InputError(
        f"{path}: {size - at} bytes behind its samples are no chunk of such a file; expected none: its header names too few "
        "samples, or something was appended: convert it again, from the recording"
    )


def _check_au(order: str) -> Callable[[IO[bytes], bytes, int, str], None]:
    def check(_file: IO[bytes], head: bytes, size: int, path: str) -> None:
        if len(head) < 12:
            return  # the decoder fails
        begin, num_bytes = struct.unpack_from(f"{order}II", head, 4)
        if num_bytes == 0xFFFFFFFF:
            return
        if size - begin < num_bytes:
            raise truncated(path, f"{max(0, size - begin)} of {num_bytes} bytes of samples")
        if size - begin > num_bytes + MOST_PADDING:
            raise InputError(
                f"{path}: {size - begin - num_bytes} bytes behind its samples; expected none: its header names too few "
                "samples, or something was appended: convert it again, from the recording"
            )

    return check


def _check_sphere(_file: IO[bytes], head: bytes, size: int, path: str) -> None:
    """SPHERE names samples, channels and bytes; libsndfile looks at none of the first."""
    found = dict(re.findall(rb"^(sample_count|channel_count|sample_n_bytes) -i (\d+)", head, re.MULTILINE))
    begin = re.match(rb"NIST_1A\n\s*(\d+)\n", head)
    if begin is None or b"sample_count" not in found:
        return
    coding = re.search(rb"^sample_coding -s\d+ (\S+)", head, re.MULTILINE)
    if coding is not None and b"," in coding[1]:
        raise InputError(
            f"{path}: its samples are packed ({coding[1].decode('ascii', 'replace')}); expected plain ones: convert it with "
            "sph2pipe"
        )
    width = int(found.get(b"channel_count", b"1")) * int(found.get(b"sample_n_bytes", b"2"))
    expected, there = int(found[b"sample_count"]) * width, size - int(begin[1])
    if there < expected:
        raise truncated(path, f"{max(0, there)} of {expected} bytes of samples")
    if there >= expected + HEAD_BYTES:  # some programs fill the last block
        raise InputError(
            f"{path}: {there - expected} bytes behind its samples; expected none: its header names too few samples, or "
            "something was appended: convert it again, from the recording"
        )


def _check_ogg(file: IO[bytes], _head: bytes, size: int, path: str) -> None:
    """The last page must say that it is the last."""
    file.seek(max(0, size - OGG_TAIL))
    tail = file.read(OGG_TAIL)
    page = tail.rfind(b"OggS")
    if page < 0 or len(tail) < page + 6 or not tail[page + 5] & OGG_LAST_PAGE:
        raise truncated(path, "its last page is missing")


def _find_xing(head: bytes) -> int | None:
    """Where the first frame of an MP3 names how many follow: behind its header and side information."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    return next((at for at in (13, 21, 36) if head[at : at + 4] in (b"Xing", b"Info")), None)


def _check_mp3(head: bytes, at: int, size: int, path: str) -> None:
    (flags,) = struct.unpack_from(">I", head, at + 4)
    if flags & XING_BYTES and len(head) >= at + 16:
        (num_bytes,) = struct.unpack_from(">I", head, at + (12 if flags & XING_FRAMES else 8))
        if size < num_bytes:
            raise truncated(path, f"{size} of {num_bytes} bytes")


CHECKS: tuple[tuple[bytes, Callable[[IO[bytes], bytes, int, str], None]], ...] = (
    (b"RIFF", _check_chunks(RIFF)),
    (b"RF64", _check_chunks(RIFF)),
    (b"RIFX", _check_chunks(RIFX)),
    (b"FORM", _check_chunks(AIFF)),
    (b"riff", _check_chunks(WAVE64)),
    (b"caff", _check_chunks(CAF)),
    (b".snd", _check_au(">")),
    (b"dns.", _check_au("<")),
    (b"NIST_1A", _check_sphere),
    (b"OggS", _check_ogg),
)
"""The first bytes of each kind of file, and what compares it."""
