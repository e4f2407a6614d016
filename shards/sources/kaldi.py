"""Read Kaldi data folders: ``feats.scp`` names a matrix in an archive per utterance, ``utt2spk`` its speaker.

As in Kaldi, relative paths in ``feats.scp`` start from the folder in which the program runs. `shards.sources.kaldiscp` reads
the lines, `shards.sources.kaldimatrix` the matrices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.corpus import Utterance, speaker_of
from shards.errors import InputError
from shards.extras import import_extra
from shards.sources.kaldidir import check_num_frames, explain_missing_scp, read_num_frames
from shards.sources.kaldimatrix import read_matrix
from shards.sources.kaldiscp import SCP_NAME, ArkEntry, cut_matrix, parse_scp_line, read_scp
from shards.sources.kaldisteps import Cmvn, KaldiSteps
from shards.sources.limits import DEFAULT_LIMIT, UtteranceLimit
from shards.speakers import SpeakerRule, speaker_by_utt2spk

UTT2SPK_NAME = "utt2spk"


@dataclass(frozen=True)
class KaldiSource:
    """The matrices that ``{folder}/feats.scp`` names; `KaldiSource.open` makes one."""

    folder: Path
    entries: dict[str, ArkEntry]
    num_frames: dict[str, int] = field(default_factory=dict)
    limit: UtteranceLimit = DEFAULT_LIMIT
    steps: KaldiSteps = field(default_factory=KaldiSteps)

    @classmethod
    def open(
        cls, folder: Path, limit: UtteranceLimit = DEFAULT_LIMIT, *, cmvn: Cmvn | None = None, vad: bool = False
    ) -> "KaldiSource":
        """Read the folder's feats.scp, its utt2num_frames where there is one, and what `KaldiSteps` needs.

        Raises:
            InputError: as `read_scp`, `read_num_frames` and `KaldiSteps.open`.
            UsageError: kaldiio is not installed.
        """
        return cls._open(folder, limit, {"cmvn": cmvn, "vad": vad})

    @classmethod
    def from_description(cls, description: dict[str, Any], db_path: Path, limit: UtteranceLimit) -> "KaldiSource":
        """The source that `describe` described, on another folder. Raises as `open`."""
        return cls._open(db_path, limit, description.get("features"))

    @classmethod
    def _open(cls, folder: Path, limit: UtteranceLimit, steps: Any) -> "KaldiSource":
        import_extra("kaldiio", "kaldi")
        return cls(folder, read_feats(folder), read_num_frames(folder), limit, KaldiSteps.open(folder, steps))

    def describe(self) -> dict[str, Any]:
        """Kind of source, and the steps that change its values."""
        steps = self.steps.describe()
        return {"kind": "kaldi"} | ({"features": steps} if steps else {})

    def where(self, utterance: Utterance) -> str:
        """The archive and the offset in it, as feats.scp names them."""
        return self._entry(utterance).where

    def for_utterances(self, utterances: Sequence[Utterance]) -> "KaldiSource":
        """The source with the entries of these utterances alone."""
        keys = [utterance.key for utterance in utterances]
        entries = {key: self.entries[key] for key in keys if key in self.entries}
        num_frames = {key: self.num_frames[key] for key in keys if key in self.num_frames}
        return replace(self, entries=entries, num_frames=num_frames, steps=self.steps.for_keys(keys))

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The utterance's frames, (T, D) float32.

        Raises:
            InputError: feats.scp lacks the utterance; the archive is missing or truncated, or has no matrix there; the
                matrix exceeds the limit; a value is beyond float32; utt2num_frames says another number of frames; a
                step has not what it needs.
        """
        entry = self._entry(utterance)
        frames = _read_rows(entry, f"correct {self.folder / SCP_NAME}", self.limit)
        expected = self.num_frames.get(utterance.key, len(frames))
        check_num_frames(self.folder, utterance.key, len(frames), expected, entry.where)
        return self.steps.apply(frames, utterance.key, self.folder, entry.where, self.limit)

    def _entry(self, utterance: Utterance) -> ArkEntry:
        if utterance.key not in self.entries:
            raise InputError(
                f"{self.folder / SCP_NAME}: it has no utterance {utterance.key!r}; add it there, or remove it from "
                "the list"
            )
        return self.entries[utterance.key]


def read_matrix_at(place: str, limit: UtteranceLimit = DEFAULT_LIMIT) -> NDArray[np.float32]:
    """The frames (T, D) of a matrix at ``archive[:offset][[first:last]]``, as a line of feats.scp names it.

    Raises:
        InputError: the place is not of that form, or as `KaldiSource.load`.
        UsageError: kaldiio is not installed.
    """
    _, entry = parse_scp_line(f"- {place}", place)
    return _read_rows(entry, "give others", limit)


def _read_rows(entry: ArkEntry, remedy: str, limit: UtteranceLimit) -> NDArray[np.float32]:
    return cut_matrix(read_matrix(entry, limit), entry, remedy)


def read_kaldi_folder(path: Path, rule: SpeakerRule | None = None) -> list[Utterance]:
    """The utterances of a Kaldi data folder in the order of feats.scp; speakers by `rule`, or by the folder's utt2spk.

    Raises:
        InputError: as `read_scp`; utt2spk is missing or damaged; an utterance has no speaker.
    """
    scp = path / SCP_NAME
    keys = read_feats(path)
    rule = rule or speaker_by_utt2spk(path / UTT2SPK_NAME)
    return [Utterance(key, speaker_of(key, rule, str(scp))) for key in keys]


def read_feats(folder: Path) -> dict[str, ArkEntry]:
    """The entries of a folder's feats.scp. Raises InputError as `read_scp`."""
    return read_scp(folder / SCP_NAME, remedy=explain_missing_scp(folder))
