"""Attack every command with faults, and count what holds: bad inputs, bit flips, kills, races, full disks, lying servers.

    python tests/faults/campaign.py [--only inputs flips] [--seed 0] [--scale 0.1] [--case flips-0417] [--out FILE]

Each part is a number of cases, drawn from the seed. A case is a command in a process of its own, on its own copy of a small
world. The table says how many cases there were and how many fell; each one that fell is printed with the command that repeats
it. `--out` keeps the figures as JSON. Ends with 1 where a case fell.
"""

import argparse
import datetime
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "helpers"), str(HERE.parents[1])]
from running import environment  # noqa: E402 - its folder had to be found

os.environ.update(environment())  # before numpy and torch are imported

import parts  # noqa: E402
from running import import_everything, spread  # noqa: E402
from table import WITHOUT_MODEL  # noqa: E402
from world import make_world  # noqa: E402

OPEN_FILES = 4096
SHOWN = 400  # characters of what a case said


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(parts.PARTS), default=list(parts.PARTS), help="these parts")
    parser.add_argument("--seed", type=int, default=0, help="what all draws begin with")
    parser.add_argument("--scale", type=float, default=1.0, help="this share of the cases of each part")
    parser.add_argument("--case", nargs="+", default=[], help="these cases alone, by name")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="cases at the same time")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - the files' owner is the folder's
    scratch = Path(
        tempfile.mkdtemp(prefix="spkid-faults-", dir=memory)
    )  # without a finaliser, which forked commands would run
    try:
        fell = attack(options, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    sys.exit(1 if fell else 0)


def attack(options: argparse.Namespace, scratch: Path) -> int:
    """Run the parts in `scratch`; returns how many cases fell."""
    os.umask(0o022)
    import_everything()
    world = scratch / "world"
    (scratch / "tmp").mkdir()
    chosen = {name: chosen_cases(name, options) for name in options.only}
    make_world(world, with_models=any(needs_model(case) for cases in chosen.values() for case in cases))
    figures = {name: run_part(name, cases, world, scratch, options) for name, cases in chosen.items() if cases}
    print_table(figures)
    if options.out:
        date = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
        result = {"seed": options.seed, "scale": options.scale, "date": date, "parts": figures}
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return sum(figure["fell"] for figure in figures.values())


def chosen_cases(name: str, options: argparse.Namespace) -> list[Any]:
    """The cases of a part that are asked for."""
    part = parts.PARTS[name]
    cases = part.make_cases(max(1, round(part.count * options.scale)), options.seed)
    return [case for case in cases if case.name in options.case or not options.case]


def needs_model(case: Any) -> bool:
    """Whether a case's command may read a training."""
    return getattr(case, "command", "") not in WITHOUT_MODEL


def run_part(name: str, cases: list[Any], world: Path, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the cases of a part, print those that fell, and count."""
    began = time.monotonic()
    part = parts.PARTS[name]
    folder = scratch / name
    folder.mkdir()
    prepared = part.prepare(cases, world, folder)
    processes = options.processes * part.at_once
    rows = []
    for row in spread(lambda case: attempt(part, case, world, folder, prepared), cases, processes):
        rows.append(row)
        if row["faults"]:
            say(name, row, options.seed, options.scale)
        if len(rows) % 100 == 0:
            print(f"{name}: {len(rows)} of {len(cases)}", flush=True)
    skipped = [row for row in rows if row.get("skipped")]
    counted = {
        "cases": len(rows) - len(skipped),
        "fell": sum(bool(row["faults"]) for row in rows),
        "accepted": sum(row["code"] == 0 for row in rows),
        "refused": sum(row["code"] not in (0, None) for row in rows),
        "fresh": sum(bool(row.get("fresh")) for row in rows),
        "skipped": len(skipped),
        "longest_seconds": round(max((row["seconds"] for row in rows), default=0.0), 1),
        "peak_megabytes": max((row["peak"] for row in rows), default=0) >> 20,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    groups = Counter(row["group"] for row in rows)
    fallen = Counter(row["group"] for row in rows if row["faults"])
    return counted | {"groups": {group: [groups[group], fallen[group]] for group in sorted(groups)}}


def attempt(part: parts.Part, case: Any, world: Path, folder: Path, prepared: Any) -> dict[str, Any]:
    """The row of a case; where the campaign itself fails, that is what fell."""
    try:
        return part.run_case(case, world, folder, prepared)
    except Exception as error:  # noqa: BLE001 - the other cases go on
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        row = {"name": case.name, "group": "the campaign", "what": str(case), "command": "", "error": "", "code": None}
        return row | {"faults": [f"the campaign itself failed: {error!r}"], "seconds": 0.0, "peak": 0}


def say(part: str, row: dict[str, Any], seed: int, scale: float) -> None:
    """Print a case that fell, and how to repeat it."""
    print(f"\n{row['name']}: {row['what']}\n  {row['command']}")
    for fault in row["faults"]:
        print(f"  fell: {fault}")
    last = " | ".join(row["error"].splitlines()[-3:])
    print(f"  said (exit code {row['code']}): {last[-SHOWN:]!a}")
    scaled = "" if scale == 1 else f" --scale {scale}"
    print(
        f"  repeat: python tests/faults/campaign.py --only {part} --seed {seed}{scaled} --case {row['name']}",
        flush=True,
    )


def print_table(figures: dict[str, Any]) -> None:
    """Print the counts of all parts."""
    columns = ("cases", "fell", "accepted", "refused", "skipped", "longest_seconds", "peak_megabytes", "minutes")
    print("\n" + "".join(f"{name.replace('_', ' '):>17}" for name in ("part", *columns)))
    for name, figure in figures.items():
        print("".join(f"{value:>17}" for value in (name, *(figure[column] for column in columns))))


if __name__ == "__main__":
    main()
