"""`spkid bench`: the table follows the data through all stages, its figures add up, and it names the slowest stage."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import shard_folder
from training import command, environment

from shards import InputError, Layout, UsageError
from spkid_dist.bench import otherprograms
from spkid_dist.bench import score as scorebench
from spkid_dist.bench import train as trainbench
from spkid_dist.bench.command import MEASURES, bench
from spkid_dist.bench.corpus import own_files
from spkid_dist.bench.measure import find_commit, machine
from spkid_dist.bench.otherprograms import OtherPrograms, describe_use
from spkid_dist.bench.rows import (
    ALONE,
    CACHED,
    POOLS,
    SCALING,
    SCORE,
    SHARD,
    STACK,
    STAGES,
    TRAIN,
    readable,
)
from spkid_dist.bench.scaling import process_counts
from spkid_dist.bench.train import STREAMED
from spkid_dist.config.bench import BenchConfig

TOY = {
    "frames": 3000,
    "speakers": 3,
    "mean_frames": 60,
    "num_features": 4,
    "in_frames": 5,
    "batch_size": 200,
    "hsize": 8,
    "repeats": 1,
    "threads": 1,
    "buffer_bytes": 100_000,
}


@pytest.fixture(scope="module")
def report(tmp_path_factory, pytestconfig):
    """A report at toy size: what was printed, and the folders that it wrote to and worked in."""
    out, folder = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("work")
    flags = TOY | {"processes": 2 if pytestconfig.getoption("--long") else 1, "out": out, "folder": folder}
    done = run_bench("report", flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines(), out, folder


def run_bench(what, flags, processes=1):
    module = ("-m", "spkid_dist", "bench", what)
    return subprocess.run(
        command(flags, processes, module), env=environment(), capture_output=True, text=True, check=False, timeout=300
    )


def whole_table(lines):
    """The lines of the last table: those of the stages stand before it."""
    first = max(number for number, line in enumerate(lines) if line.startswith("| stage"))
    return [line for line in lines[first:] if line.startswith("|")]


def test_the_table_has_all_stages_in_the_order_of_the_data(report):
    lines, _, _ = report
    table = whole_table(lines)
    assert len({len(line) for line in table}) == 1
    stages = [line.split("|")[1].strip() for line in table[2:]]
    assert list(dict.fromkeys(stages)) == list(STAGES)
    found = json.loads(lines[-1])
    assert [row["stage"] for row in found["rows"]] == stages


def test_rates_lie_within_their_spread_and_shares_belong_to_limits(report, pytestconfig):
    rows = json.loads(report[0][-1])["rows"]
    for row in rows:
        assert 0 < row["low"] <= row["rate"] <= row["high"], row
        assert (row["limit"] is None) == (row["share"] is None) == (row["limit_rate"] is None)
        assert row["share"] is None or 0 < row["share"] < 1000, (
            row
        )  # toy sizes: limits are the cache's, and starts count
    assert all(row["limit"] for row in rows if row["stage"] in (SHARD, POOLS, STACK, TRAIN, SCORE))
    scaling = [row["name"] for row in rows if row["stage"] == SCALING]
    both = ["training by 1 process", "training by 2 processes"]
    assert scaling == (both if pytestconfig.getoption("--long") else both[:1])


def test_the_bottleneck_named_is_the_slowest_of_the_stages(report):
    lines, _, _ = report
    found = json.loads(lines[-1])
    path = [row for row in found["rows"] if row["on_path"]]
    assert [row["stage"] for row in path] == [SHARD, POOLS, STACK, TRAIN, SCORE]
    assert found["bottleneck"]["row"] == min(path, key=lambda row: row["windows_rate"])
    assert any(line.startswith(f"bottleneck: {found['bottleneck']['row']['stage']}") for line in lines)
    assert any(line.startswith("what to change: ") for line in lines)
    assert any(line.startswith("waiting for data: ") and "asked" in line for line in lines)


def test_each_stage_is_told_when_it_is_there_and_how_long_the_others_take(report):
    lines, _, _ = report
    assert re.fullmatch(r"this takes about .*: limits .*, shard .*, scaling .*", lines[0])
    begun = [(line.split()[1], number) for number, line in enumerate(lines) if line.startswith("measuring: ")]
    assert [name for name, _ in begun] == list(MEASURES)
    assert all(re.search(r"; about \d+(\.\d)? (s|minutes|hours) left$", lines[number]) for _, number in begun)
    ends = [number for _, number in begun[1:]] + [len(lines)]
    for (_, first), last in zip(begun, ends, strict=True):
        assert any(line.startswith("| stage") for line in lines[first:last])


def test_a_report_says_that_it_is_complete(report):
    assert json.loads(report[0][-1])["complete"] is True
    assert "not complete" not in (report[1] / "report.md").read_text()


def test_the_report_is_written_and_nothing_is_left_of_the_work(report):
    lines, out, folder = report
    assert {path.name for path in out.iterdir()} == {"report.md", "report.json", "report.png"}
    assert json.loads((out / "report.json").read_text()) == json.loads(lines[-1])
    text = (out / "report.md").read_text()
    assert all(line in text for line in whole_table(lines))
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.iterdir())


@pytest.fixture(scope="module")
def shards(synthetic, tmp_path_factory):
    """The synthetic corpus's dataset."""
    out = tmp_path_factory.mktemp("shards") / "tr"
    shard_folder(synthetic, synthetic / "cfg/all.train", out, Layout())
    return out


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def config(what, **changes):
    return BenchConfig(what=what, **(TOY | changes))


def own_flags(synthetic):
    lists = {"list_file": synthetic / "cfg/all.train", "spk2idx": synthetic / "cfg/spk2idx.json"}
    return {"db_path": synthetic / "mcp", **lists}


@pytest.mark.usefixtures("on_cpu")
def test_sharding_is_measured_on_ones_own_files(synthetic):
    found = bench(config("shard", **own_flags(synthetic), threads=2))
    files = [synthetic / f"mcp/{key}.mcp" for key in (synthetic / "cfg/all.train").read_text().split()]
    assert found["figures"]["shard"]["bytes"] == sum(path.stat().st_size for path in files)
    assert [row["name"] for row in found["rows"]] == ["spkid shard, 1 process", "spkid shard, 2 workers"]
    assert {row["limit"] for row in found["rows"]} == {"tar cf"}


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(("what", "stages"), [("stream", {POOLS, STACK}), ("train", {TRAIN}), ("score", {SCORE})])
def test_a_stage_is_measured_on_ones_own_shards(what, stages, shards, capsys):
    found = bench(config(what, shards=str(shards)))
    assert {row["stage"] for row in found["rows"]} == stages
    assert found["bottleneck"] is None
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found


@pytest.mark.long
@pytest.mark.usefixtures("on_cpu")
def test_the_threads_are_those_of_a_training(shards, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # what torch has chosen, or OMP_NUM_THREADS says
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    try:
        found = bench(config("train", shards=str(shards), threads=None))
        assert found["threads"] == 2
        assert [row["name"] for row in found["rows"]] == [CACHED, STREAMED, ALONE]
        assert bench(config("train", shards=str(shards), threads=1))["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("on_cpu")
def test_an_earlier_report_does_not_stay_beside_a_new_one(shards, tmp_path):
    (tmp_path / "report.png").touch()
    (tmp_path / "mine.txt").touch()
    bench(config("limits", shards=str(shards), out=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "report.json", "report.md"]


@pytest.mark.usefixtures("on_cpu")
def test_an_output_that_cannot_be_written_is_an_error_before_anything_is_measured(shards, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/out: can't create this folder"):
        bench(config("limits", shards=str(shards), out=tmp_path / "file/out"))
    assert "measuring" not in capsys.readouterr().out


@pytest.mark.usefixtures("on_cpu")
def test_a_report_that_another_process_writes_is_refused_before_anything_is_measured(shards, tmp_path, capsys):
    hold = "import sys; from pathlib import Path; from shards.holding import FolderHold\n"
    hold += "with FolderHold(Path(sys.argv[1]), '', print): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=r"in use by process .*give another --out"):
            bench(config("limits", shards=str(shards), out=tmp_path))
        other.stdin.close()
    assert "measuring" not in capsys.readouterr().out


@pytest.mark.long
def test_an_error_of_a_process_that_was_started_ends_with_1_and_is_shown(shards, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'spkid_dist.bench.first_batch' in sys.orig_argv:\n"
        "    print('OSError: no such luck', file=sys.stderr, flush=True)\n"
        "    os._exit(1)\n"
    )
    words = command(TOY | {"shards": shards, "folder": tmp_path / "work"}, 1, ("-m", "spkid_dist", "bench", "resume"))
    variables = environment() | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("spkid: error")]
    assert "spkid_dist.bench.first_batch: its process ended with exit code 1: OSError: no such luck" in error
    (kept,) = (tmp_path / "work").iterdir()
    assert str(kept) in error
    assert "no such luck" in kept.read_text()


@pytest.mark.usefixtures("on_cpu")
def test_scoring_reads_ones_own_files_beside_the_shards(synthetic, shards):
    found = bench(config("score", shards=str(shards), **own_flags(synthetic)))
    assert [row["name"] for row in found["rows"]] == ["spkid score, shards", "spkid score, files"]


@pytest.mark.long
def test_two_ranks_measure_at_once_and_one_prints(shards):
    done = run_bench("limits", {"shards": shards, **TOY}, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    found = json.loads(lines[-1])
    assert found["processes"] == 2
    assert sum(line.startswith("| stage") for line in lines) == 1
    assert any(row["name"].startswith("all-reduce over 2 ranks") for row in found["rows"])


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"what": "stream", "shards": "nowhere"}, "nowhere"),
        (
            {"what": "shard", "db_path": Path("nowhere"), "list_file": Path("missing.list")},
            r"missing\.list: can't read",
        ),
    ],
)
def test_a_corpus_that_is_not_there_is_an_input_error(changes, message):
    with pytest.raises(InputError, match=message):
        bench(BenchConfig(**(TOY | changes)))


@pytest.mark.usefixtures("on_cpu")
def test_a_feature_file_that_is_missing_is_named(synthetic, tmp_path):
    (tmp_path / "list").write_text("SYN/spk0000/none\n")
    flags = own_flags(synthetic) | {"list_file": tmp_path / "list", "folder": tmp_path / "work"}
    with pytest.raises(InputError, match=r"none\.mcp: can't read this feature file"):
        bench(config("shard", **flags))
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 0}, "--repeats 0: expected 1 or more"),
        ({"threads": 0}, "--threads 0: expected 1 or more"),
        ({"mean_frames": 3}, "--mean_frames 3: expected 4 or more"),
        ({"list_file": "some.list"}, "--list: lists files below --db_path; give it too"),
        ({"what": "shard", "shards": "folder"}, "shard --shards: a dataset is sharded already"),
        ({"speaker_component": 1, "utt2spk": "file"}, "--speaker_component and --utt2spk"),
    ],
)
def test_options_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        BenchConfig(**changes)


def test_a_large_corpus_is_sampled_down_to_the_frames_asked_for(synthetic):
    whole = own_files(config("shard", **own_flags(synthetic), frames=10**6), synthetic / "mcp")
    few = own_files(config("shard", **own_flags(synthetic), frames=600), synthetic / "mcp")
    assert len(whole.listed) == 30
    assert 8 <= len(few.listed) <= 12
    assert set(few.listed) < set(whole.listed)


# The choice of the bottleneck, with rows made by hand


BUSY = "import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


def test_other_programs_on_the_cpus_are_noticed():
    with subprocess.Popen([sys.executable, "-c", BUSY]) as busy:
        try:
            time.sleep(0.2)
            others = OtherPrograms()
            time.sleep(1.5)
            assert 0.25 <= others.used_cpus() <= os.cpu_count()
        finally:
            busy.kill()


def test_what_this_process_and_its_children_do_is_not_other_programs(monkeypatch):
    busy, own, moment = iter((10.0, 20.0)), iter((1.0, 10.9)), iter((100.0, 104.0))
    monkeypatch.setattr(otherprograms, "busy_seconds", lambda: next(busy))
    monkeypatch.setattr(otherprograms, "own_seconds", lambda: next(own))
    monkeypatch.setattr(otherprograms.time, "monotonic", lambda: next(moment))
    assert OtherPrograms().used_cpus() == 0


def test_the_use_of_others_is_one_sentence_for_all_stages():
    (said,) = describe_use({"limits": 0.0, "shard": 1.25, "train": 0.5})
    assert re.match(r"other programs used CPUs meanwhile, of \d+: shard 1\.2, train 0\.5; rates are below", said)
    assert describe_use({"limits": 0.0}) == []


@pytest.mark.usefixtures("on_cpu")
def test_a_run_that_turns_out_slow_ends_early(shards, monkeypatch):
    for module in (trainbench, scorebench):
        monkeypatch.setattr(module, "LONGEST_SECONDS", 0.0)
    for what in ("train", "score"):
        assert all(row["rate"] > 0 for row in bench(config(what, shards=str(shards)))["rows"])


@pytest.mark.parametrize(
    ("value", "text"), [(0.4123, "0.412"), (999.0, "999"), (1000.0, "1 k"), (999_600.0, "1 M"), (5.23e9, "5.23 G")]
)
def test_figures_have_three_digits(value, text):
    assert readable(value) == text


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_processes_double_up_to_the_most(most, counts):
    assert process_counts(most) == counts


def test_the_machine_is_described_outside_a_clone_and_without_git(tmp_path, monkeypatch):
    assert find_commit(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    found = machine()
    assert found["commit"] is None
    assert found["cores"] >= 1
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
