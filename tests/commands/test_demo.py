"""The demo runs the whole way, and its corpus is hard but not hopeless."""

import re

import pytest

from shards import InputError
from shards.holding import FolderHold
from spkid_dist.commands.demo import demo
from spkid_dist.config import DemoConfig
from spkid_dist.measure.synthetic import SyntheticCorpus


def test_the_demo_ends_with_files_to_look_at_and_an_error_between_none_and_chance(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    demo(DemoConfig(out=tmp_path / "demo"))
    printed = capsys.readouterr().out
    wrong, total = map(int, re.search(r"utterance errors: (\d+) of (\d+)", printed).groups())
    assert total == 200
    assert 0 < wrong < 0.5 * total
    shown = printed.split("look at:\n")[1].split("run next:")[0]
    paths = [line.split()[0] for line in shown.splitlines()]
    assert len(paths) == 3
    for path in paths:
        assert (tmp_path / path).stat().st_size > 0


def test_the_demo_leaves_other_peoples_folders_alone(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(InputError, match="this folder holds something else"):
        demo(DemoConfig(out=tmp_path))
    assert (tmp_path / "mine").exists()


def test_equal_seeds_make_equal_corpora():
    first, again, other = (SyntheticCorpus(num_speakers=2, seed=seed) for seed in (3, 3, 4))
    for (key, frames), (key_again, frames_again) in zip(first.utterances(1), again.utterances(1), strict=True):
        assert key == key_again
        assert (frames == frames_again).all()
    assert next(other.utterances(1))[1].tobytes() != next(first.utterances(1))[1].tobytes()


def test_two_demos_do_not_share_a_folder(tmp_path, spkid):
    (tmp_path / ".spkid-demo").touch()
    (tmp_path / "mine").write_text("of the demo at work")
    with FolderHold(tmp_path, "", [].append):
        code, _, error = spkid("demo", "--out", tmp_path)
    assert code == 1
    assert "in use by process" in error
    assert "give another --out" in error
    assert (tmp_path / "mine").exists()
