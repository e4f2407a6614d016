"""The campaign of faults runs, counts and can fail: a few of its cases, with the product as it is and with a broken one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[1] / "faults"
WITH_BROKEN_VERIFY = """
import sys
sys.path.insert(0, {folder!r})
import campaign
from spkid_dist.commands import check
check.verify = lambda config: print(sum(sum(path.read_bytes()) for path in config.folder.glob("*")))  # any byte will do
campaign.main()
"""
SOUND = ("shard", "merge", "info", "index")


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(FAULTS))


def names_of(part, count, **wanted):
    """Names of the first cases of a part with one of the wanted values in each field."""
    from parts import PARTS

    cases = PARTS[part].make_cases(PARTS[part].count, 0)
    found = [case.name for case in cases if all(getattr(case, name) in values for name, values in wanted.items())]
    return found[:count]


@pytest.mark.usefixtures("modules")
def test_a_few_cases_are_counted_and_a_command_that_accepts_damage_falls(tmp_path):
    """One campaign whose `spkid verify` is broken."""
    cases = [
        *names_of("inputs", 2, command=SOUND, damage=("garbage", "zeros of the same size", "a login page", "missing")),
        *names_of("kills", 2, command=SOUND),
        *names_of("disks", 1, command=("shard",)),
        *(flips := names_of("flips", 2, command=("verify",))),
    ]
    program = WITH_BROKEN_VERIFY.format(folder=str(FAULTS))
    options = ("--only", "inputs", "kills", "disks", "flips", "--case", *cases, "--out", tmp_path / "figures.json")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    parts = json.loads((tmp_path / "figures.json").read_text())["parts"]
    counts = {name: (part["cases"] + part["skipped"], part["fell"]) for name, part in parts.items()}
    assert counts == {"inputs": (2, 0), "kills": (2, 0), "disks": (1, 0), "flips": (2, 2)}, done.stdout
    assert len(re.findall("fell: exit code 0 with another result", done.stdout)) == 2
    for name in flips:
        assert f"repeat: python tests/faults/campaign.py --only flips --seed 0 --case {name}" in done.stdout


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"code": -11}, "it ended by signal 11"),
        ({"error": "Traceback (most recent call last):\nKeyError: 'x'\n"}, "a traceback: KeyError: 'x'"),
        ({"stopped": "time"}, "it was killed: time"),
        ({"peak_bytes": 2 << 30}, "memory: 2048 MB"),
        ({"code": 3}, "exit code 3"),
        ({"output": "\x1b[31mred"}, r"its output has the control character '\x1b'"),
        ({"left": True}, "it left processes behind"),
    ],
)
@pytest.mark.usefixtures("modules")
def test_the_judge_sees_what_no_command_may_do(change, fault):
    from judging import common_faults
    from running import Outcome

    sound = {"code": 1, "output": "", "error": "", "seconds": 1.0, "peak_bytes": 1 << 20}
    assert common_faults(Outcome(**sound)) == []
    (found,) = common_faults(Outcome(**sound | change))
    assert found.startswith(fault)
