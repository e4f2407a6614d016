"""The options of `spkid calibrate` and `spkid trials`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from shards.errors import UsageError
from spkid_dist.config.scoring import Calibrated, ListFlags, ScoringFlags, check_results_name

NO_DET_PICTURE = "draw no DET curve."


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(ListFlags):
    """Make a model's confidences mean what they say, and find a threshold for unknown speakers.

    The utterances must be held out: neither trained on, nor those that the model is judged by at last.
    The calibration is stored beside the weights, and `spkid score` and `spkid trials` use it from then on.
    Under `accelerate launch -m spkid_dist calibrate` each process scores a share.
    """

    te_list_file: Path | None = None
    """List of held-out utterances of the model's speakers: one per line, without extension. Default: all of --te_shards."""
    unknown: str | None = None
    """Utterances of other speakers, to fit the threshold to: a list as --te_list_file, or a dataset (folder or URL)."""
    force: bool = False
    """Calibrate on utterances that were trained on, too. Confidences are too high then."""

    def __post_init__(self) -> None:
        """Check that utterances are named; raises UsageError."""
        super().__post_init__()
        if self.te_list_file is None and self.te_shards is None:
            raise UsageError("no utterances are given: give a list of held-out ones by --te_list_file, or --te_shards")


@dataclass(frozen=True, kw_only=True)
class TrialsConfig(ScoringFlags):
    """Measure verification: score pairs of a claimed speaker and an utterance, and count misses and false alarms.

    A score is the log-likelihood ratio of the claimed speaker against the model's other speakers.
    Under `accelerate launch -m spkid_dist trials` each process scores a share.
    """

    trials: Path
    """Trial list, with lines SPEAKER UTTERANCE target|nontarget (Kaldi), or 1|0 ENROLMENT UTTERANCE (VoxCeleb)."""
    scores: Path | None = None
    """Take the scores from this file of `spkid score --scores`, made without --top, instead of scoring utterances."""
    out: Path = Path("trial_scores.txt")
    """File for the scores, lines SPEAKER UTTERANCE SCORE; figures (.json) and the DET curve are written beside it."""
    p_target: tuple[float, ...] = (0.01, 0.05)
    """Prior probabilities of a target for the detection costs minDCF and actDCF. Default: 0.01 0.05."""
    calibration: Calibrated = True
    """Use the calibration that lies beside the weights (`spkid calibrate`)."""
    pictures: Annotated[bool, tyro.conf.arg(help=NO_DET_PICTURE, help_behavior_hint="(default: draw it)")] = True
    """Draw the DET curve."""

    def __post_init__(self) -> None:
        """Check the values' ranges, and that scores come from one place; raises UsageError."""
        super().__post_init__()
        check_results_name("out", self.out, ".txt")
        for prior in self.p_target:
            if not 0 < prior < 1:
                raise UsageError(f"--p_target {prior}: expected a probability above 0 and below 1, such as 0.01")
        if not self.p_target:
            raise UsageError("--p_target: no value is given; give one or more, such as 0.01 0.05")
        taken = {"trials": self.trials, "scores": self.scores}
        for flag, path in taken.items():
            if path is not None and path.absolute() == self.out.absolute():
                raise UsageError(f"--out {self.out}: is the file of --{flag}; give another name")
        if self.scores is not None:
            given = {"model": self.models, "weights_ckpt": self.weights, "te_shards": self.te_shards}
            for flag, value in given.items():
                if value:
                    raise UsageError(f"--{flag} with --scores: the scores are computed already; give one of the two")

    @property
    def needs_model(self) -> bool:
        """Whether a model must be given: where no file has the scores."""
        return self.scores is None
