"""List the parts of the campaign: how many cases each has, what draws them, and what runs one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import disks
import flips
import inputs
import kills
import races
import servers


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part: the number of its cases, `make_cases` (count, seed), what is prepared for all of them, and what runs one.

    A case has a `name`. Its row has: name, group, what, command, faults (none where it holds), code, seconds, peak, error.
    `at_once`: so many cases for each processor, where most of the time is waiting.
    """

    count: int
    make_cases: Callable[[int, int], list[Any]]
    prepare: Callable[[list[Any], Path, Path], Any]
    run_case: Callable[[Any, Path, Path, Any], dict[str, Any]]
    at_once: int = 1


def _part(module: Any, count: int, at_once: int = 1) -> Part:
    return Part(
        count=count,
        make_cases=module.make_cases,
        prepare=module.prepare,
        run_case=module.run_case,
        at_once=at_once,
    )


PARTS = {
    "inputs": _part(inputs, 1000),
    "flips": _part(flips, 2000),
    "kills": _part(kills, 312),  # 12 of each command
    "races": _part(races, 104),  # 4 of each
    "disks": _part(disks, 104),  # 4 of each command
    "servers": _part(servers, 114, at_once=4),  # all lies
}
