"""Apply what a Kaldi folder keeps beside its features: ``cmvn.scp`` (mean and variance) and ``vad.scp`` (what is voiced).

cmvn.scp holds statistics for each speaker, or for each utterance: a matrix of two rows, sums and sums of squares of each
feature, whose last column begins with the number of frames. vad.scp holds a vector for each utterance, 0 for a frame without
speech. Source: Kaldi's apply-cmvn (src/transform/cmvn.cc) and select-voiced-frames (src/ivectorbin/select-voiced-frames.cc).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.sources.kaldimatrix import read_statistics, read_vector
from shards.sources.kaldiscp import ArkEntry, read_scp
from shards.sources.limits import UtteranceLimit
from shards.speakers import speaker_by_utt2spk

CMVN_NAME, VAD_NAME, UTT2SPK_NAME = "cmvn.scp", "vad.scp", "utt2spk"
LEAST_VARIANCE = 1e-20  # Kaldi's floor
Cmvn = Literal["mean", "variance"]


@dataclass(frozen=True)
class KaldiSteps:
    """What is done with a folder's features, in this order; nothing by default.

    Attributes:
        cmvn: whether the mean is subtracted ("mean"), or also the deviation divided by ("variance").
        vad: whether only voiced frames are kept.
    """

    cmvn: Cmvn | None = None
    vad: bool = False
    statistics: dict[str, ArkEntry] = field(default_factory=dict)  # by speaker or utterance
    speakers: dict[str, str] = field(default_factory=dict)
    voiced: dict[str, ArkEntry] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, description: Any) -> "KaldiSteps":
        """The steps that `describe` described, with this folder's files; none for None.

        Raises:
            InputError: the description is damaged, or a file that a step needs is missing or damaged.
        """
        kept = description if isinstance(description, dict) else {}
        cmvn, vad = kept.get("cmvn"), kept.get("vad", False)
        if kept.keys() - {"cmvn", "vad"} or cmvn not in (None, *get_args(Cmvn)) or not isinstance(vad, bool):
            raise InputError(
                f"the Kaldi features in train.opts or the manifest are {kept}, expected cmvn (mean or variance) and vad "
                "(true): shard and train again"
            )
        steps = cls(cmvn, vad)
        if cmvn is not None:
            remedy = "compute it (compute_cmvn_stats.sh), or leave --kaldi_cmvn out"
            steps = replace(steps, statistics=read_scp(folder / CMVN_NAME, "the list of statistics", remedy))
            if (folder / UTT2SPK_NAME).exists():
                steps = replace(steps, speakers=speaker_by_utt2spk(folder / UTT2SPK_NAME).speakers)
        if vad:
            remedy = "compute it (compute_vad_decision.sh), or leave --kaldi_vad out"
            steps = replace(steps, voiced=read_scp(folder / VAD_NAME, "the list of voiced frames", remedy))
        return steps

    @staticmethod
    def names(source: dict[str, Any]) -> list[str]:
        """The files of a folder that the source with this description uses for steps."""
        features = source.get("features")
        kept = features if isinstance(features, dict) else {}
        return KaldiSteps(kept.get("cmvn"), bool(kept.get("vad"))).used

    def describe(self) -> dict[str, Any]:
        """The steps as JSON values, as the source's description keeps them; nothing of those that are not done."""
        return ({} if self.cmvn is None else {"cmvn": self.cmvn}) | ({"vad": True} if self.vad else {})

    @property
    def used(self) -> list[str]:
        """The files that are used."""
        return [CMVN_NAME] * (self.cmvn is not None) + [VAD_NAME] * self.vad

    def for_keys(self, keys: Iterable[str]) -> "KaldiSteps":
        """What these utterances need of them."""
        keys = list(keys)
        speakers = {key: self.speakers[key] for key in keys if key in self.speakers}
        named = {*keys, *speakers.values()}
        return replace(
            self,
            statistics={name: self.statistics[name] for name in sorted(named) if name in self.statistics},
            speakers=speakers,
            voiced={key: self.voiced[key] for key in keys if key in self.voiced},
        )

    def apply(
        self, frames: NDArray[np.float32], key: str, folder: Path, where: str, limit: UtteranceLimit
    ) -> NDArray[np.float32]:
        """The frames (T, D) of the utterance `key` after the steps, (T', D); `where` they were read is for messages.

        Raises:
            InputError: a file has nothing of the utterance, or what does not fit its frames.
        """
        if self.cmvn is not None:
            frames = _normalised(frames, self._statistics_of(key, folder, limit), with_variance=self.cmvn == "variance")
        if self.vad:
            frames = _voiced(frames, self._entry(self.voiced, key, folder / VAD_NAME), where, limit)
        return frames

    def _statistics_of(self, key: str, folder: Path, limit: UtteranceLimit) -> "_Statistics":
        name = key if key in self.statistics else self.speakers.get(key, key)
        entry = self._entry(self.statistics, name, folder / CMVN_NAME)
        return _Statistics(read_statistics(entry, limit), entry.where)

    @staticmethod
    def _entry(entries: dict[str, ArkEntry], name: str, path: Path) -> ArkEntry:
        if name not in entries:
            raise InputError(f"{path}: it has no line of {name!r}; compute it again, or leave the utterance out")
        return entries[name]


@dataclass(frozen=True)
class _Statistics:
    """Sums and sums of squares (2, D + 1) float64, the number of frames last in the first row."""

    values: NDArray[np.float64]
    where: str


def _normalised(frames: NDArray[np.float32], statistics: _Statistics, *, with_variance: bool) -> NDArray[np.float32]:
    """As Kaldi's ApplyCmvn: the factor and the offset are computed in float64, and applied in float32."""
    values, where = statistics.values, statistics.where
    if values.shape != (2, frames.shape[1] + 1):
        raise InputError(
            f"{where}: statistics of {values.shape[0]} x {values.shape[1]} values; expected 2 x {frames.shape[1] + 1} for "
            f"{frames.shape[1]} features: compute them of these features"
        )
    count = values[0, -1]
    if not count >= 1 or not np.isfinite(values).all():
        raise InputError(f"{where}: statistics of {count:g} frames, or not finite; compute them again")
    mean = values[0, :-1] / count
    scale = np.ones_like(mean)
    if with_variance:
        scale = 1 / np.sqrt(np.maximum(values[1, :-1] / count - mean * mean, LEAST_VARIANCE))
    with np.errstate(over="ignore"):  # values that are not finite are refused by those who use them
        normalised: NDArray[np.float32] = frames * scale.astype(np.float32) + (-mean * scale).astype(np.float32)
    return normalised


def _voiced(frames: NDArray[np.float32], entry: ArkEntry, where: str, limit: UtteranceLimit) -> NDArray[np.float32]:
    voiced = read_vector(entry, limit)
    if len(voiced) != len(frames):
        raise InputError(
            f"{entry.where}: {len(voiced)} decisions on voice, but {where} has {len(frames)} frames; expected one for each: "
            "compute them of these features"
        )
    if not voiced.any():
        raise InputError(f"{entry.where}: no frame of {where} is voiced; leave the utterance out")
    return np.ascontiguousarray(frames[voiced != 0])
