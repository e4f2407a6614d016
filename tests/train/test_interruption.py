"""A signal at any moment ends a command with its documented exit code and at most one line, never with a traceback."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from training import OPTIONS, checkpoints, command, environment

from shards.errors import EXIT_STOPPED

# Sends this process a signal when it first does what `event` and `mark` say, as an audit hook sees it; then it goes on.
WATCHED = """
import os, signal, sys
sys.argv = sys.argv[1:]
event, mark, numbers = sys.argv[0].split("|")
def hook(name, arguments, sent=[]):
    if name == event and not sent and any(mark in str(argument) for argument in arguments[:2]):
        sent.append(1)
        for number in numbers.split(","):
            os.kill(os.getpid(), int(number))
sys.addaudithook(hook)
from spkid_dist.commands.cli import main
main()
"""


def interrupt(event, mark, *numbers, arguments):
    place = f"{event}|{mark}|{','.join(str(int(number)) for number in numbers)}"
    words = [sys.executable, "-c", WATCHED, place, *map(str, arguments)]
    return subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=120)


MOMENTS = {
    "while tyro is imported": ("import", "tyro"),
    "while torch is imported": ("import", "torch.nn"),
    "while accelerate is imported": ("import", "accelerate.utils"),
    "while the data is opened": ("open", "/tr/manifest.json"),
}


@pytest.fixture
def train_flags(shards, tmp_path):
    options = OPTIONS | shards | {"save_path": tmp_path / "ckpt", "epoch": 1}
    return ["train", *(part for name, value in options.items() for part in (f"--{name}", value))]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_training_that_has_not_begun_ends_at_once(moment, number, train_flags, tmp_path, pytestconfig):
    long = pytestconfig.getoption("--long")
    if number in (signal.SIGHUP, signal.SIGUSR1) and moment != "while torch is imported":
        pytest.skip("as SIGTERM")
    early, late = "while torch is imported", "while the data is opened"
    short = {signal.SIGINT: late, signal.SIGTERM: late, signal.SIGHUP: early, signal.SIGUSR1: early}
    if moment != short[number] and not long:
        pytest.skip("in the long tests (make test-long)")
    done = interrupt(*MOMENTS[moment], number, arguments=train_flags)
    if number == signal.SIGINT:
        assert (done.returncode, done.stderr) == (130, "spkid: interrupted\n")
    else:
        said = f"spkid: stopped by {number.name} before the training began\n"
        assert (done.returncode, done.stderr) == (EXIT_STOPPED, said)
    assert not list(tmp_path.glob("ckpt/*_weights.ckpt"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize(
    "command_name", ["info", *(pytest.param(name, marks=pytest.mark.long) for name in ("score", "shard"))]
)
def test_other_commands_end_with_the_code_of_the_signal(command_name, number, code, shards, tmp_path):
    flags = {
        "info": [shards["tr_shards"]],
        "score": ["--weights_ckpt", tmp_path / "w.ckpt"],
        "shard": ["--db_path", tmp_path, "--out", tmp_path / "out"],
    }[command_name]
    done = interrupt("import", "numpy", number, arguments=[command_name, *flags])
    said = "spkid: interrupted\n" if number == signal.SIGINT else f"spkid: stopped by {number.name}\n"
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.long  # the first one: test_ctrl_c_in_a_training_says_one_line
def test_a_second_ctrl_c_ends_it_as_the_first_one_does(train_flags):
    done = interrupt("open", "/tr/shard-000000.tar", *[signal.SIGINT] * 3, arguments=train_flags)
    assert done.returncode == 130
    assert done.stderr in ("", "spkid: interrupted\n")


def test_ctrl_c_in_a_training_says_one_line(train_flags):
    done = interrupt("open", "/tr/shard-000000.tar", signal.SIGINT, arguments=train_flags)
    assert (done.returncode, done.stderr) == (130, "spkid: interrupted\n")


@pytest.mark.parametrize("module", ["train", "score", "__main__"])
def test_a_module_catches_signals_before_its_imports(module):
    """torch.nn is not imported yet when the handlers are there."""
    program = (
        "import runpy, signal, sys\n"
        "def hook(name, arguments):\n"
        "    if name == 'import' and arguments[0] in ('torch', 'tyro', 'numpy'):\n"
        "        handler = signal.getsignal(signal.SIGTERM)\n"
        "        print(getattr(handler, '__module__', handler)); sys.stdout.flush(); import os; os._exit(0)\n"
        "sys.addaudithook(hook)\n"
        f"sys.argv = ['x', '--help']\nrunpy.run_module('spkid_dist.{module}', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "spkid_dist.process.interruption\n", done.stderr


def test_ctrl_c_while_workers_shard_ends_them_without_a_word(synthetic, tmp_path):
    words = ["shard", "--db_path", synthetic / "mcp", "--list", synthetic / "cfg/all.train", "--out", tmp_path / "out"]
    words += ["--spk2idx", synthetic / "cfg/spk2idx.json", "--workers", 2, "--shard_bytes", 4000, "--block_frames", 100]
    job = subprocess.Popen(
        [sys.executable, "-c", "from spkid_dist.commands.cli import main; main()", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: len(children(job.pid)) >= 3)  # two workers, and what tracks their resources
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does
    _, errors = job.communicate(timeout=60)
    assert (job.returncode, errors) == (130, "spkid: interrupted\n")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_ctrl_c_while_a_worker_starts_leaves_no_word_of_it(synthetic, tmp_path):
    program = """
import os, signal, threading
from multiprocessing import util
from spkid_dist.commands.cli import main

def spawned(*words):
    pid = spawn(*words)
    if "spawn_main" in str(words):  # a worker, not what tracks resources
        os.kill(os.getpid(), signal.SIGINT)  # another thread receives it, as this one blocks it
        threading.Event().wait(0.2)
    return pid

spawn, util.spawnv_passfds = util.spawnv_passfds, spawned
threading.Thread(target=threading.Event().wait, daemon=True).start()
main()
"""
    words = ["shard", "--db_path", synthetic / "mcp", "--list", synthetic / "cfg/all.train", "--out", tmp_path / "out"]
    words += ["--spk2idx", synthetic / "cfg/spk2idx.json", "--workers", 2, "--shard_bytes", 4000, "--block_frames", 100]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "spkid: interrupted\n")


def children(process):
    found = subprocess.run(["pgrep", "-P", f"{process}"], capture_output=True, text=True, check=False)
    return found.stdout.split()


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_a_closed_terminal_is_a_request_to_stop(shards, tmp_path):
    options = OPTIONS | shards | {"save_path": tmp_path / "ckpt", "epoch": 10_000, "patience": 10_000}
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        os.execve(sys.executable, command(options), environment())  # noqa: S606
    log = tmp_path / "ckpt" / "train.log"
    wait_for(lambda: log.exists() and "TRAINING" in log.read_text())
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == EXIT_STOPPED
    assert "stopped by SIGHUP in epoch" in log.read_text().splitlines()[-1]
    assert checkpoints(tmp_path / "ckpt")


@pytest.mark.long
def test_under_nohup_a_closed_terminal_changes_nothing(shards, tmp_path):
    options = OPTIONS | shards | {"save_path": tmp_path / "ckpt", "epoch": 10_000, "patience": 10_000}
    job = subprocess.Popen(
        ["nohup", *command(options)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    lines = iter(job.stdout.readline, "")
    next(line for line in lines if line.startswith("TRAINING"))
    job.send_signal(signal.SIGHUP)
    next(line for line in lines if line.startswith("VALIDATION: epoch 2"))
    job.send_signal(signal.SIGTERM)
    printed, _ = job.communicate(timeout=60)
    assert job.returncode == EXIT_STOPPED
    assert "stopped by SIGTERM" in printed
