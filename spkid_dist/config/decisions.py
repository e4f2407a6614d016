"""The options of `spkid calibrate` and `spkid trials`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from shards.errors import UsageError
from spkid_dist.config.places import BESIDE_TRIALS, Outputs, with_beside
from spkid_dist.config.scoring import Calibrated, ListFlags, Paths, ScoringFlags, check_models, check_results_name

NO_DET_PICTURE = "draw no DET curve."


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(ListFlags):
    """Make a model's confidences mean what they say, and find a threshold for unknown speakers.

    The utterances must be held out: neither the training set nor the test set.
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

    A score is the log-likelihood ratio of the claimed speaker against the model's other speakers. With --embeddings it is the
    cosine between an enrolment and the utterance, and claimed speakers need not be the model's.
    Under `accelerate launch -m spkid_dist trials` each process scores a share.
    """

    trials: Path
    """Trial list with lines SPEAKER UTTERANCE target|nontarget, SPEAKER UTTERANCE 1|0, or 1|0 ENROLMENT UTTERANCE."""
    scores: Path | None = None
    """Take the scores from this file of `spkid score --scores`, made without --top. A model that is given must be theirs."""
    embeddings: Paths = ()
    """Score by this file of `spkid embed`, or of Kaldi vectors (.ark). Repeat it where enrolments have a file of their own."""
    enrol: Path | None = None
    """Who is enrolled by --embeddings: lines SPEAKER UTTERANCE ... (spk2utt). Default: claims are utterances themselves."""
    center: Path | None = None
    """Subtract the mean of the embeddings in this file, those of many other speakers, from all --embeddings."""
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
        self._check_source()

    def _check_source(self) -> None:
        """Raise UsageError where scores come from two places, or enrolments have no embeddings."""
        given = {"model": self.models, "weights_ckpt": self.weights, "te_shards": self.te_shards, "scores": self.scores}
        other = next((name for name, value in given.items() if value), None)
        if self.embedding_files and other is not None:
            raise UsageError(f"--{other} with --embeddings: a trial has one score; give one of the two")
        if self.scores is not None and self.te_shards is not None:
            raise UsageError("--te_shards with --scores: the scores are computed already; give one of the two")
        if self.scores is not None and (self.models or self.weights):
            check_models(self.models, self.weights)  # which the scores must be by
        for flag in ("enrol", "center"):
            if getattr(self, flag) is not None and not self.embedding_files:
                raise UsageError(
                    f"--{flag} without --embeddings: a model knows its own speakers; give --embeddings too"
                )

    @property
    def outputs(self) -> Outputs:
        """The scores, with figures and picture."""
        return {"out": with_beside(self.out, BESIDE_TRIALS)}

    @property
    def embedding_files(self) -> tuple[Path, ...]:
        """The files of --embeddings."""
        return self.embeddings if isinstance(self.embeddings, tuple) else (self.embeddings,)

    @property
    def needs_model(self) -> bool:
        """Whether a model must be given: where no file has the scores, or embeddings."""
        return self.scores is None and not self.embedding_files
