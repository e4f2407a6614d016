"""Decode audio that libsndfile does not know (m4a, aac, webm, wma, amr) with the program ffmpeg, where that is asked for.

ffmpeg reads the open file that it is handed, and no other: only files, only by formats that name no other file, as playlists
do. What it decodes comes through a pipe, piece by piece. Whatever it calls an error is one here: it goes on behind damage.
"""

import re
import select
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError, UsageError

PROGRAM = "ffmpeg"
FORMATS = (
    *(
        "aac",
        "ac3",
        "aiff",
        "amr",
        "amrnb",
        "amrwb",
        "ape",
        "asf",
        "au",
        "avi",
        "caf",
        "dts",
        "eac3",
        "flac",
        "flv",
        "g722",
    ),
    *(
        "g729",
        "gsm",
        "matroska,webm",
        "mov,mp4,m4a,3gp,3g2,mj2",
        "mp3",
        "mpeg",
        "mpegts",
        "mpc",
        "mpc8",
        "ogg",
        "rm",
        "tak",
    ),
    *("tta", "voc", "w64", "wav", "wv", "xwma"),
)
WAIT_SECONDS = 60.0  # for the next samples
PIECE_BYTES = 2**18
HEADER = struct.Struct(">4s5I")  # of an AU file: magic, offset, size, encoding, sample rate, channels
MOST_HEADER_BYTES = 65536
FLOAT32 = 6  # the encoding
MOST_CHANNELS = 1024  # as many as libsndfile takes


def find_ffmpeg() -> str:
    """The program on PATH. Raises UsageError where it is not there."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise UsageError(
            f"--ffmpeg: there is no program {PROGRAM} on PATH; install it (Debian, Ubuntu: apt-get install ffmpeg), or convert "
            "the files to wav or flac"
        )
    return program


@contextmanager
def decoded_by_ffmpeg(file: IO[bytes], where: str) -> Iterator[tuple[int, int, Iterator[NDArray[np.float32]]]]:
    """Sample rate, channels, and the samples (n, channels) float32 of an open file, piece by piece; `where` is for messages.

    The file has a descriptor. The program ends with the block.

    Raises:
        InputError: at once or from the iterator: ffmpeg finds no sound in the file, or damage, or takes too long.
        UsageError: there is no ffmpeg.
    """
    name = f"file:/dev/fd/{file.fileno()}"
    command = [find_ffmpeg(), "-nostdin", "-hide_banner", "-loglevel", "error", "-xerror"]
    command += ["-protocol_whitelist", "file", "-format_whitelist", ",".join(FORMATS)]
    command += ["-i", name, "-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603 - a list of words, no shell
            command, bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, pass_fds=(file.fileno(),)
        )
        try:
            stream = process.stdout
            assert stream is not None
            with stream:
                rate, channels = _read_header(stream, where)
                yield rate, channels, _read_samples(stream, channels)
            _check_end(process, said, where, name)
        except EOFError:
            _check_end(process, said, where, name)
            raise _no_sound(where, "it decoded nothing") from None
        except (TimeoutError, subprocess.TimeoutExpired):
            raise InputError(
                f"{where}: ffmpeg decoded nothing for {WAIT_SECONDS:g} seconds; expected samples: convert it to wav or flac"
            ) from None
        finally:
            process.kill()
            process.wait()


def _read_header(stream: IO[bytes], where: str) -> tuple[int, int]:
    """Sample rate and channels of an AU stream. Raises EOFError where the stream ends in its header."""
    header = _read(stream, HEADER.size)
    magic, offset, _, encoding, rate, channels = HEADER.unpack(header)
    if magic != b".snd" or encoding != FLOAT32 or not HEADER.size <= offset <= MOST_HEADER_BYTES:
        raise _no_sound(where, f"it wrote {header!r}")
    if not 1 <= channels <= MOST_CHANNELS:
        raise _no_sound(where, f"it found {channels} channels")
    _read(stream, offset - HEADER.size)
    return rate, channels


def _read_samples(stream: IO[bytes], channels: int) -> Iterator[NDArray[np.float32]]:
    """The samples (n, channels) of an AU stream behind its header."""
    kept = b""
    while data := _read_some(stream, PIECE_BYTES):
        kept += data
        whole = len(kept) - len(kept) % (4 * channels)
        if whole:
            yield np.frombuffer(kept[:whole], ">f4").astype(np.float32).reshape(-1, channels)
            kept = kept[whole:]


def _read(stream: IO[bytes], num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        more = _read_some(stream, num_bytes - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _read_some(stream: IO[bytes], num_bytes: int) -> bytes:
    """What has come, at most `num_bytes`; nothing at the end. Raises TimeoutError where nothing comes."""
    waiting = select.poll()  # takes descriptors of any number
    waiting.register(stream, select.POLLIN | select.POLLHUP)
    if not waiting.poll(1000 * WAIT_SECONDS):
        raise TimeoutError
    return stream.read(num_bytes)


def _check_end(process: "subprocess.Popen[bytes]", said: IO[bytes], where: str, name: str) -> None:
    """Raise the error that ffmpeg told of, if it did."""
    code = process.wait(WAIT_SECONDS)
    said.seek(0)
    lines = said.read(MOST_HEADER_BYTES).decode("utf-8", "replace").splitlines()
    if lines:
        text = re.sub(r" @ 0x[0-9a-f]+| '[^']{100,}'", "", lines[0].strip())  # addresses, and the list of formats
        raise _no_sound(where, text.replace(name, "the file"))
    if code != 0:
        raise _no_sound(where, f"exit code {code}")


def _no_sound(where: str, what: str) -> InputError:
    return InputError(f"{where}: ffmpeg can't decode this file as a whole: {what}; record or convert it again")
