"""Passwords and keys in the places of datasets are used, and neither printed nor kept: in no file, no line, no error."""

import json
import shlex
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from http_store import serve

from shards.holding import Holder

SECRET = "hunter2"  # noqa: S105 - it opens nothing
Run = Callable[..., tuple[object, str, str]]


@pytest.fixture
def places(shards: dict[str, Path], tmp_path: Path) -> Iterator[dict[str, str]]:
    """The flags of a training whose training set lies behind a command with a secret, and its validation set at such a URL."""
    command = f"pipe:TOKEN={SECRET} cat {shlex.quote(str(shards['tr_shards']))}/{{name}}"
    with serve(Path(shards["va_shards"])) as store:
        url = store.url.replace("://", f"://user:{SECRET}@")
        yield {"tr_shards": command, "va_shards": url, "shard_cache": str(tmp_path / "cache")}


def files_with(text: str, folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def train(spkid: Run, places: dict[str, str], folder: Path, *flags: object) -> tuple[object, str, str]:
    given = [word for name, value in places.items() for word in (f"--{name}", value)]
    small = ("--epoch", 1, "--hsize", 4, "--in_frames", 3, "--batch_size", 64, "--save_path", folder)
    return spkid("train", *given, *small, *flags)


def test_a_training_uses_and_resumes_with_credentials_and_keeps_none(
    spkid: Run, places: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "trained"
    code, printed, error = train(spkid, places, folder, "--checkpoint_steps", 1, "--log_with", "tensorboard")
    assert (code, error) == (0, "")
    assert SECRET not in printed
    options = json.loads((folder / "train.opts").read_text())
    assert options["tr_shards"].startswith("pipe:*** ")
    assert options["va_shards"].startswith("http://***@127.0.0.1:")
    other = {
        name: value.replace(SECRET, "changed") for name, value in places.items()
    }  # the password was changed meanwhile
    code, printed, error = train(spkid, other, folder, "--resume", "auto", "--epoch", 2)
    assert (code, error) == (0, "")
    assert files_with(SECRET, tmp_path) == files_with("changed", tmp_path) == []


def test_the_options_of_such_a_training_are_taken_again_with_its_places_alone(
    spkid: Run, places: dict[str, str], tmp_path: Path
) -> None:
    assert train(spkid, places, tmp_path / "first")[0] == 0
    again = ("train", "--config", tmp_path / "first" / "train.opts", "--save_path", tmp_path / "second")
    code, _, error = spkid(*again)
    assert code == 2
    assert "give the whole place by --tr_shards" in error
    code, _, error = spkid(*again, *(word for name, value in places.items() for word in (f"--{name}", value)))
    assert (code, error) == (0, "")
    names = [json.loads((tmp_path / one / "train.opts").read_text())["training_id"] for one in ("first", "second")]
    assert names[0] == names[1]


def test_what_is_shown_of_a_dataset_and_of_a_failing_store_is_masked(
    spkid: Run, places: dict[str, str], tmp_path: Path
) -> None:
    for place in (places["tr_shards"], places["va_shards"]):
        code, printed, error = spkid("info", place, "--shard_cache", tmp_path / "cache")
        assert (code, error) == (0, "")
        assert "***" in printed
        assert SECRET not in printed
    for place in (
        f"{places['va_shards']}/missing",
        f"pipe:false {SECRET} {{name}}",
        f"https://u:{SECRET}@[bad/x?{SECRET}",
    ):
        code, printed, error = spkid("info", place, "--shard_cache", tmp_path / "cache")
        assert code != 0
        assert SECRET not in printed + error
        assert urllib.parse.quote(SECRET) not in error


def test_who_holds_a_folder_is_told_without_the_credentials_of_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    url, command = f"https://u:{SECRET}@host/x", f"pipe:curl -u {SECRET} https://host/{{name}}"
    monkeypatch.setattr("sys.argv", ["/bin/spkid", "train", "--tr_shards", url, f"--va_shards={command}"])
    assert SECRET not in Holder.this().command
    assert "https://***@host/x" in Holder.this().command
