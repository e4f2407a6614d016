"""Look at the other files of a Kaldi data folder: which of them are not used, and what utt2num_frames says.

The formats: kaldi-asr.org/doc/data_prep.html.
"""

from collections.abc import Sequence
from pathlib import Path

from shards.errors import InputError
from shards.lines import numbered_lines, split_columns

NUM_FRAMES_NAME = "utt2num_frames"
# Files that change what features mean, and what is done instead of using them.
MATTERS = {
    "cmvn.scp": "features are taken as they are: give --kaldi_cmvn to `spkid shard`, or train with --normalize utterance",
    "vad.scp": "frames without speech are used too: leave them out with --kaldi_vad of `spkid shard`",
    "segments": "a line of feats.scp is an utterance, whatever is cut here",
    "frame_shift": "give it to spkid info --frame_shift_ms, in milliseconds",
}
OTHERS = ("wav.scp", "text", "utt2dur", "reco2dur", "reco2file_and_channel", "spk2utt", "spk2gender", "utt2lang")


def say_unused(folder: Path, used: Sequence[str] = ()) -> list[str]:
    """Lines on files of the data folder that this program does not use: one for each that matters, one for the others.

    `used` are those that a step of `shards.sources.kaldisteps` uses.
    """
    matter = [(name, what) for name, what in MATTERS.items() if name not in used and (folder / name).exists()]
    lines = [f"{folder / name}: not used; {what}" for name, what in matter]
    others = [name for name in OTHERS if (folder / name).exists()]
    return [*lines, f"{folder}: not used: {', '.join(others)}"] if others else lines


def read_num_frames(folder: Path) -> dict[str, int]:
    """Frames of each utterance as utt2num_frames says, by key; empty where there is no such file.

    Raises:
        InputError: a line is not KEY NUMBER, or a key occurs twice.
    """
    path = folder / NUM_FRAMES_NAME
    if not path.exists():
        return {}
    frames: dict[str, int] = {}
    for number, line in numbered_lines(path, "the frames of each utterance", "correct it, or remove it"):
        columns = split_columns(line)
        if len(columns) != 2 or not columns[1].isdecimal() or len(columns[1]) > 18:
            raise InputError(f"{path}:{number}: {line!r}; expected KEY FRAMES: correct the line, or remove the file")
        if columns[0] in frames:
            raise InputError(
                f"{path}:{number}: utterance {columns[0]!r} occurs a second time; expected one line per utterance: remove one"
            )
        frames[columns[0]] = int(columns[1])
    return frames


def check_num_frames(folder: Path, key: str, found: int, expected: int, where: str) -> None:
    """Raise InputError where an utterance has other frames than utt2num_frames says; `where` they were read."""
    if found != expected:
        raise InputError(
            f"{where}: {found} frames of utterance {key!r}, but {folder / NUM_FRAMES_NAME} says {expected}; the archive and "
            "the folder are not of the same run: compute the features again, or remove that file"
        )


def explain_missing_scp(folder: Path) -> str:
    """What to do about a folder without feats.scp."""
    if (folder / "wav.scp").exists():
        return (
            "this folder has a wav.scp, which names audio and no features: compute them (make_fbank.sh, make_mfcc.sh), or give "
            "the folder of the audio files with --source audio"
        )
    if not folder.is_dir():
        return "there is no such folder; give a Kaldi data folder (--db_path), which holds feats.scp"
    return "give a Kaldi data folder, which holds feats.scp"
