"""What a calibration does on utterances that it has not seen: calibration error, NLL, equal error rate, unknown speakers.

A network is trained on the hard synthetic corpus of `recipes.py`. Some speakers are left out of the training: they are the
unknown ones. Temperature, length exponent and threshold are fitted to the development half of all other utterances, and all
figures are of the test half. There are thousands of short utterances, as the calibration error of some hundred is noise. It
measures decisions, not speed.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from recipes import CORPORA, data_of, make_corpus
from shards.files import write_atomic
from spkid_dist.bench.measure import machine
from spkid_dist.commands.calibrate import CalibrationResult, calibrate_model
from spkid_dist.config import CalibrateConfig, ScoreConfig, TrainConfig
from spkid_dist.measure.synthetic import SyntheticCorpus
from spkid_dist.score import score_utterances
from spkid_dist.scoring.calibration import Scale, log_likelihood_ratios
from spkid_dist.scoring.detection import exact_curve
from spkid_dist.scoring.reliability import reliability
from spkid_dist.scoring.scorefile import read_scores
from spkid_dist.scoring.scores import Scores
from spkid_dist.scoring.temperature import uncalibrated_scores
from spkid_dist.train import train_model

CORPUS = dataclasses.replace(CORPORA["channels"], num_speakers=60, test_utterances=200, mean_frames=80)


def make_lists(folder: Path, corpus: SyntheticCorpus, num_unknown: int) -> None:
    """Write the corpus, and take the last speakers out of its lists: those of dev and test go to lists of their own."""
    make_corpus(folder, corpus)
    names = corpus.speakers()
    unknown = set(names[len(names) - num_unknown :])
    for name in ("train", "dev", "test"):
        path = folder / f"cfg/all.{name}"
        keys = path.read_text().splitlines(keepends=True)
        write_atomic(path, "".join(key for key in keys if key.split("/")[1] not in unknown).encode())
        strange = "".join(key for key in keys if key.split("/")[1] in unknown)
        write_atomic(folder / f"cfg/unknown.{name}", strange.encode())
    known = [name for name in names if name not in unknown]
    write_atomic(folder / "cfg/spk2idx.json", json.dumps({name: at for at, name in enumerate(known)}).encode())


def train(folder: Path, epochs: int, seed: int) -> Path:
    """Train with the defaults, and return the best weights."""
    config = TrainConfig(
        **data_of(folder),
        save_path=folder / f"ckpt{seed}",
        epoch=epochs,
        seed=seed,
    )
    return train_model(config).best_weights


def calibrate(folder: Path, weights: Path) -> CalibrationResult:
    """Fit temperature, length exponent and threshold to the development half."""
    return calibrate_model(
        CalibrateConfig(
            db_path=folder / "mcp",
            te_list_file=folder / "cfg/all.dev",
            weights_ckpt=weights,
            unknown=str(folder / "cfg/unknown.dev"),
        )
    )


def score_test(folder: Path, weights: Path) -> tuple[Scores, dict[str, Any]]:
    """The scores of the test half, and the figures of the open set: with the unknown speakers' test utterances."""
    for name, parts in (("closed", ("all",)), ("open", ("all", "unknown"))):
        keys = "".join((folder / f"cfg/{part}.test").read_text() for part in parts)
        write_atomic(folder / f"cfg/{name}", keys.encode())
    options: dict[str, Any] = {"db_path": folder / "mcp", "weights_ckpt": weights, "pictures": False}
    scores = folder / "scores.npz"
    score_utterances(
        ScoreConfig(
            **options,
            te_list_file=folder / "cfg/closed",
            scores=scores,
            threshold=float("-inf"),
            log_file=folder / "closed.log",
        )
    )
    result = score_utterances(ScoreConfig(**options, te_list_file=folder / "cfg/open", log_file=folder / "open.log"))
    assert result.decisions is not None
    assert result.decisions.open_set is not None
    return read_scores(scores), result.decisions.open_set.facts()


def figures_of(scores: Scores, calibration: CalibrationResult) -> dict[str, Any]:
    """Figures of the test half, before the calibration and after it."""
    assert scores.means is not None
    means, windows, true = scores.means.astype(np.float64), scores.windows, scores.true
    target = np.arange(means.shape[1]) == true[:, None]
    rows: dict[str, Any] = {}
    for name, scaled in (
        ("summed", uncalibrated_scores(means, windows)),
        ("mean", Scale().scaled(means, windows)),
        ("calibrated", calibration.fit.scale.scaled(means, windows)),
    ):
        curve = exact_curve(log_likelihood_ratios(scaled).ravel(), target.ravel())
        rows[name] = reliability(scaled, true).facts() | {"equal_error_rate": curve.equal_error[0]}
    raw = exact_curve(means.ravel(), target.ravel())
    rows["mean log-probability, no ratio"] = {"equal_error_rate": raw.equal_error[0]}
    return rows


def measure(folder: Path, epochs: int, seed: int) -> dict[str, Any]:
    """Train, calibrate and measure with one seed; prints a row for each kind of score."""
    with contextlib.redirect_stdout(io.StringIO()):
        weights = train(folder, epochs, seed)
        calibration = calibrate(folder, weights)
        scores, open_set = score_test(folder, weights)
    rows = figures_of(scores, calibration)
    wrong = int((scores.found != scores.true).sum())
    print(f"seed {seed}: {wrong} of {len(scores.keys)} utterances wrong, {calibration.fit.scale}")
    for name, row in rows.items():
        print(f"  {name:32}" + "  ".join(f"{what} {value:.4f}" for what, value in row.items()))
    kinds = ("false_acceptances", "false_rejections", "misidentifications", "identification_rate")
    print(f"  threshold {open_set['threshold']:.3f}: " + ", ".join(f"{k} {open_set[k]['rate']:.1%}" for k in kinds))
    scale = dataclasses.asdict(calibration.fit.scale)
    return {"wrong": wrong, "utterances": len(scores.keys), "scale": scale, "scores": rows, "open_set": open_set}


def main() -> None:
    """Measure with each seed; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(CORPUS):
        value = getattr(CORPUS, field.name)
        parser.add_argument(f"--{field.name}", type=type(value), default=value, help=f"of the corpus; {value}")
    parser.add_argument("--unknown", type=int, default=10, help="of the speakers; these are left out of the training")
    parser.add_argument("--seeds", type=int, default=1, help="trainings, of seeds 0, 1, ...")
    parser.add_argument("--epoch", type=int, default=5, help="epochs of a training")
    arguments = vars(parser.parse_args())
    os.environ["ACCELERATE_USE_CPU"] = "true"
    corpus = SyntheticCorpus(**{field.name: arguments[field.name] for field in dataclasses.fields(CORPUS)})
    with tempfile.TemporaryDirectory() as temporary:
        make_lists(Path(temporary), corpus, arguments["unknown"])
        runs = [measure(Path(temporary), arguments["epoch"], seed) for seed in range(arguments["seeds"])]
    errors = [run["scores"]["calibrated"]["expected_calibration_error"] for run in runs]
    print(f"expected calibration error of calibrated scores: {', '.join(f'{error:.4f}' for error in errors)}")
    print(json.dumps({"corpus": dataclasses.asdict(corpus), "runs": runs, "machine": machine()}))


if __name__ == "__main__":
    main()
