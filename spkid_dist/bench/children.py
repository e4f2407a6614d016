"""Start the processes of a stage: they find the same packages, end with this one, and their errors are shown."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from shards.errors import InputError

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ENDING_SECONDS = 5.0  # from SIGTERM to SIGKILL
OURS = "spkid: error: "
AN_ERROR = re.compile(r"(\[rank\d+\]: )?[\w.]*(Error|Exception|Interrupt)\b")
OF_LAUNCHERS = re.compile(r"(subprocess\.CalledProcessError|torch\.distributed\.elastic\.)")


def run_alone(module: str, *arguments: str, work: Path, launcher: Sequence[str] = (), **variables: str) -> str:
    """What ``python -m MODULE`` prints, by processes that are not of this launch; none of them outlives the call.

    Args:
        module: the module to run.
        arguments: its arguments.
        work: a folder for what the processes print.
        launcher: what comes between the interpreter and ``-m MODULE``.
        variables: of its environment, besides those of this process.

    Raises:
        InputError: it failed; names its last error, and the file that keeps all that was printed.
    """
    command = [sys.executable, *launcher, "-m", module, *arguments]
    printed, errors = work / "child.out", work / "child.err"
    with printed.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=_environment(work) | variables,
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:
            end_tree(process)
            raise
    if code:
        reason = last_error(errors.read_text(errors="replace"))
        kept = _keep((printed, errors), work.parent)
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise InputError(f"{module}: its process {ended}: {reason}; all that it printed is in {kept}")
    return printed.read_text(errors="replace")


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started: by SIGTERM, and by SIGKILL what is still there after some seconds."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        tree = [*root.children(recursive=True), root]
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(tree, ENDING_SECONDS)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def last_error(text: str) -> str:
    """The line that says most: our own error, else the last exception that is not a launcher's, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for wanted in (
        lambda line: line.startswith(OURS),
        lambda line: AN_ERROR.match(line) and not OF_LAUNCHERS.match(line),
        lambda _: True,
    ):
        if found := next((line for line in reversed(lines) if wanted(line)), None):
            return found.removeprefix(OURS)
    return "it printed no reason"


def _environment(work: Path) -> dict[str, str]:
    """This process's variables without those of its launch; the child finds the packages where this process has them.

    The current folder is not searched: it may hold folders of the packages' names. What the child leaves among the temporary
    files, as torch's launcher does, goes into `work`.
    """
    import spkid_dist

    found = {name: value for name, value in os.environ.items() if name not in LAUNCHED} | {
        "PYTHONSAFEPATH": "1",
        "TMPDIR": str(work),
    }
    root = str(Path(spkid_dist.__file__).parents[1])
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), root)))
    return found


def _keep(paths: Sequence[Path], folder: Path) -> str:
    """Join the files into one that is not removed with the work."""
    with tempfile.NamedTemporaryFile("wb", prefix="spkid-bench-", suffix=".log", dir=folder, delete=False) as kept:
        for path in paths:
            with path.open("rb") as file:
                shutil.copyfileobj(file, kept)
    return kept.name
