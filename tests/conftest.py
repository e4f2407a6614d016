"""Corpora that tests share, and the command line in their process."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from shards import FmatrixSource, Layout, ShardDataset, Utterance, convert, find_speakers, make_plan, read_list
from shards.files import write_json
from shards.sources.fmatrix import write_fmatrix
from spkid_dist.commands import cli
from spkid_dist.measure.synthetic import SyntheticCorpus
from spkid_dist.process.restoring import SHARED_STATES, SIGNALS

# Tests run side by side: threads of torch that wait for one another would wait for those of other tests. Trainings in this
# process are compared with those in processes of one thread, too: other numbers of threads differ in the last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
torch.set_num_threads(1)

settings.register_profile("project", deadline=None)  # the first call of a kernel may compile it
settings.load_profile("project")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the length of the tests that draw random moments."""
    parser.addoption("--kills", type=int, default=1, help="random moments at which a job is killed")
    parser.addoption("--gpu", action="store_true", help="the tests that are about GPUs, on a machine that has one")
    parser.addoption("--cluster", action="store_true", help="the tests that need Slurm or network namespaces")
    parser.addoption(
        "--long",
        action="store_true",
        help="the tests that take long, and all combinations of what is a sample otherwise",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hide the machine's GPUs from all tests, and from the processes they start, unless it is about them."""
    if not config.getoption("--gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what is marked as long, and what needs a GPU, unless it is asked for."""
    if item.get_closest_marker("long") and not item.config.getoption("--long"):
        pytest.skip("in the long tests (make test-long)")
    on_gpu = item.config.getoption("--gpu")
    if item.get_closest_marker("gpu") and not on_gpu:
        pytest.skip("needs a GPU (pytest --gpu)")
    if on_gpu and not (item.get_closest_marker("gpu") or item.get_closest_marker("device")):
        pytest.skip("not about GPUs")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out tests/cluster unless it is asked for."""
    return (collection_path.name == "cluster" and not config.getoption("--cluster")) or None


FSDD = Path(__file__).parents[2] / "shared" / "corpora" / "fsdd"


@pytest.fixture(scope="session")
def fsdd() -> Path:
    """Folder of the Free Spoken Digit Dataset as features."""
    if not (FSDD / "mcp").is_dir():
        pytest.skip(f"the corpus fsdd is not at {FSDD}")
    return FSDD


DIGITS = Path(__file__).parent / "corpora" / "digits"


@pytest.fixture(scope="session")
def digits() -> Path:
    """Folder of a small part of the same dataset: recordings, features, lists, speaker map; in every checkout."""
    return DIGITS


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small synthetic corpus: feature files, lists, speaker map."""
    folder = tmp_path_factory.mktemp("synthetic")
    SyntheticCorpus(num_speakers=5, train_utterances=6, test_utterances=2, mean_frames=60, num_features=8).write(folder)
    return folder


@dataclass(frozen=True)
class Corpus:
    """Feature files of given lengths in which every value is unique, and their dataset."""

    folder: Path
    frames: dict[str, np.ndarray]  # key -> (T, D)
    dataset: ShardDataset
    speakers: list[str]


def shard_folder(folder: Path, list_path: Path, out: Path, layout: Layout) -> ShardDataset:
    """Shard the fmatrix files ``folder/mcp`` of a list."""
    utterances = read_list(list_path)
    speakers = find_speakers(list_path, utterances, folder / "cfg/spk2idx.json")
    source = FmatrixSource(folder / "mcp", "mcp")
    convert(make_plan(utterances, speakers, source, layout), source, out)
    return ShardDataset(out)


def make_corpus(folder: Path, lengths: list[int], num_features: int = 3, first_value: int = 1, **layout: int) -> Corpus:
    """Write utterances of `lengths` frames, two speakers, and shard them."""
    frames, value = {}, first_value
    (folder / "cfg").mkdir(parents=True)
    for index, length in enumerate(lengths):
        key = f"X/spk{index % 2}/utt{index:03d}"
        size = length * num_features
        frames[key] = np.arange(value, value + size, dtype=np.float32).reshape(length, num_features)
        value += size
        path = folder / "mcp" / f"{key}.mcp"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_fmatrix(path, frames[key])
    list_path = folder / "cfg" / "all.train"
    list_path.write_text("".join(f"{key}\n" for key in frames))
    write_json(folder / "cfg/spk2idx.json", {"spk0": 0, "spk1": 1})
    dataset = shard_folder(folder, list_path, folder / "shards", Layout(**layout))
    return Corpus(folder, frames, dataset, ["spk0", "spk1"])


def random_dataset(
    folder: Path, *, num_utterances: int = 36, num_features: int = 3, mean: int = 0, deviation: int = 1, **layout: int
) -> Path:
    """A dataset of normal frames of three speakers, whose names and keys need UTF-8, in several shards of several blocks."""
    draw = np.random.default_rng(0)
    speakers = ["ana", "bß", "çé"]
    utterances = []
    for number in range(num_utterances):
        speaker = speakers[number % len(speakers)]
        utterances.append(Utterance(f"B/{speaker}/ü{number:03d}", speaker))
        path = folder / "mcp" / f"{utterances[-1].key}.mcp"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = draw.normal(mean, deviation, size=(draw.integers(1, 60), num_features))
        write_fmatrix(path, frames.astype(np.float32))
    source = FmatrixSource(folder / "mcp", "mcp")
    options = {"block_frames": 100, "shard_bytes": 4000} | layout
    convert(make_plan(utterances, speakers, source, Layout(**options)), source, folder / "dataset")
    return folder / "dataset"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small corpus, sharded: its two datasets as options of a training; not to be changed."""
    from training import make_shards  # which imports this module

    return make_shards(tmp_path_factory.mktemp("shards") / "c")


@pytest.fixture(scope="session")
def trained_voices(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of five speakers with held-out utterances of theirs and of others (`voices.Voices`); not to be changed."""
    from voices import make_voices  # which imports this module

    return make_voices(tmp_path_factory.mktemp("voices") / "c")


@pytest.fixture
def voices(trained_voices: Any, tmp_path: Path) -> Any:
    """The same with a copy of the model in a folder of the test's own, where calibrations may be written."""
    from voices import with_own_model

    return with_own_model(trained_voices, tmp_path / "model")


BUSY = "import os\nos.sched_setaffinity(0, {%d})\nprint(flush=True)\nwhile True: pass"


@pytest.fixture
def shared_core() -> Iterator[None]:
    """This thread is bound to a core that a busy program uses too."""
    cores = os.sched_getaffinity(0)
    core = min(cores)
    with subprocess.Popen([sys.executable, "-c", BUSY % core], stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        os.sched_setaffinity(0, {core})
        yield
        os.sched_setaffinity(0, cores)
        busy.kill()


@pytest.fixture
def spkid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str, str]]:
    """Run a command in this process: spkid("shard", ...) -> (exit code, what it printed, its error)."""

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["spkid", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        printed, error = capsys.readouterr()
        code = exit_info.value.code
        assert error.count("\n") <= 1, error
        return code, printed, error

    return run


@pytest.fixture(autouse=True)
def accelerate_stays() -> Iterator[None]:
    """Put back what accelerate keeps of a process, so that no test finds the precision or the device of another."""
    before = [(state, dict(state._shared_state)) for state in SHARED_STATES]
    yield
    for state, values in before:
        state._shared_state.clear()
        state._shared_state.update(values)


@pytest.fixture(autouse=True)
def signal_handlers_stay() -> Iterator[None]:
    """Put back the handlers that a command run in this process has set."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
