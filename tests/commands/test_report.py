"""The page of a training: whole, without anything from elsewhere, and right about what it shows."""

import json
import re
import shutil
import subprocess

import pytest
from training import OPTIONS

from shards import InputError
from spkid_dist import ScoreConfig, TrainConfig, score_utterances, train_model
from spkid_dist.commands.report import report
from spkid_dist.config import ReportConfig
from spkid_dist.trained import read_options

HEADINGS = ["Curves", "Scoring", "Options that differ from the defaults", "Data", "Speed, and where the time went"]
HEADINGS += ["Environment", "Weights, the best so far last", "Options that are the defaults"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """A training, and a scoring of its validation set beside it."""
    folder = tmp_path_factory.mktemp("report") / "run"
    found = train_model(TrainConfig(**OPTIONS | {"epoch": 2}, **shards, save_path=folder, batch_norm=True))
    files = {"te_shards": str(shards["va_shards"]), "log_file": folder / "scored.log"}
    score_utterances(ScoreConfig(weights_ckpt=found.best_weights, train_cfg=folder / "train.opts", **files))
    return folder


@pytest.fixture(scope="module")
def page(trained):
    path = report(ReportConfig(save_path=trained, score=trained / "scored.json"))
    assert path == trained / "report.html"
    return path.read_text()


def test_the_page_has_all_parts_and_loads_nothing(page):
    assert re.findall(r"<h2>(.*?)</h2>", page) == HEADINGS
    assert page.count("data:image/png;base64,") == 4  # curves, confusions, errors by length, DET
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "<script" not in page
    assert "<p class=" not in page  # nothing is missing


def test_what_it_says_is_what_the_files_say(page, trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert f"<b>{summary['va_loss']:.4f}</b>" in page
    assert "<th>--batch_norm</th><td>True</td>" in page.partition("<h2>Data</h2>")[0]
    assert "<th>--lr</th>" not in page.partition("<h2>Data</h2>")[0]
    assert summary["environment"]["torch"] in page
    scored = json.loads((trained / "scored.json").read_text())["utterance_errors"]
    assert f"{scored['errors']} of {scored['total']} = " in page


def test_a_folder_without_an_end_says_what_is_not_there_yet(trained, tmp_path):
    options = read_options(trained / "train.opts") | {"speakers": ["<b>anna</b>"] * 5}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/train.opts").write_text(json.dumps(options))
    text = report(ReportConfig(save_path=tmp_path / "run", out=tmp_path / "page.html")).read_text()
    assert "No epoch has ended yet." in text
    assert "The training has not ended" in text
    assert "There are no weights yet." in text
    assert "&lt;b&gt;anna&lt;/b&gt;" in text
    assert "<b>anna" not in text


def test_confidence_and_unknown_speakers_are_shown_where_a_calibration_made_them(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    figures = json.loads((copy / "scored.json").read_text())
    figures["confidence"] = {"nll": 0.25, "expected_calibration_error": 0.0125}
    figures["open_set"] = {"threshold": 3.0, "false_acceptances": {"rate": 0.125}, "false_rejections": None}
    (copy / "scored.json").write_text(json.dumps(figures))
    text = report(ReportConfig(save_path=copy)).read_text()
    for name, value in (
        ("utterance NLL, calibrated", "0.2500"),
        ("expected calibration error", "0.0125"),
        ("false acceptances, with the threshold", "12.50%"),
    ):
        assert f"<th>{name}</th><td>{value}</td>" in text
    assert "false rejections" not in text


def test_the_scoring_of_another_training_is_named_as_such(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "other")
    text = report(ReportConfig(save_path=copy, score=trained / "scored.json")).read_text()
    assert "and not in the folder of this training" in text


@pytest.mark.parametrize(
    "damage",
    [
        "[1]",
        "{",
        '{"va_loss": ["x"], "va_acc": [1], "tr_loss": [], "tr_acc": []}',
        '{"va_loss": [1], "va_acc": [], "tr_loss": [], "tr_acc": []}',
    ],
)
def test_damaged_files_are_one_line(trained, tmp_path, damage):
    copy = shutil.copytree(trained, tmp_path / "copy")
    (copy / "train_stats.json").write_text(damage)
    with pytest.raises(InputError, match=r"train_stats\.json: "):
        report(ReportConfig(save_path=copy))


def test_a_scoring_in_the_folder_is_found_and_speakers_that_are_no_list_are_left_out(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    options = read_options(copy / "train.opts") | {"speakers": 5}
    (copy / "train.opts").write_text(json.dumps(options))
    assert "No scoring was given" not in report(ReportConfig(save_path=copy)).read_text()


def test_figures_that_are_no_numbers_are_not_known(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    (copy / "summary.json").write_text('{"windows": null, "run_training_seconds": "long"}')
    (copy / "scored.json").write_text('{"utterance_errors": {"rate": "high"}, "claimed_speakers": {}}')
    text = report(ReportConfig(save_path=copy, score=copy / "scored.json")).read_text()
    assert text.count("not known") == 8
    assert "0.00%" not in text


def test_a_folder_without_a_training_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"train\.opts"):
        report(ReportConfig(save_path=tmp_path))


def test_a_browser_shows_the_page_without_an_error_and_without_overflow(page, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed: {', '.join(BROWSERS)}")
    seen = (
        "<script>document.title = document.documentElement.scrollWidth - innerWidth + ' beside ' + innerWidth</script>"
    )
    (tmp_path / "page.html").write_text(page + seen)
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=500,900"]
    words += [f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{tmp_path}/page.html"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.findall(r"<h2>(.*?)</h2>", done.stdout) == HEADINGS
    over, width = map(int, re.search(r"<title>(-?\d+) beside (\d+)</title>", done.stdout).groups())
    assert width <= 500
    assert over <= 0
    assert "CONSOLE" not in done.stderr
