"""Start commands at the same moment in one folder: results are whole, and exit codes are those that are documented."""

import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judging import Snapshot, common_faults, error_faults
from reference import Reference, reference_of, row_of, words_in
from running import Outcome, Process, run, start, wait
from table import COMMANDS, Command, command_of
from world import SETS, SHARD, TRAIN, copy_world
from writing import WRITING

ALL, ONE_OR_MORE = "all", "one or more"
INTO = "--db_path mcp --out out"


@dataclass(frozen=True, kw_only=True)
class Race:
    """Commands that are started together. `succeed`: how many end with 0; the others are refused in one line.

    `then` are commands that must succeed afterwards, one after the other. Where all commands are the same, or `whole` is
    given, the results must be those of that command alone.
    """

    commands: tuple[Command, ...]
    succeed: str = ALL
    then: tuple[Command, ...] = ()
    whole: tuple[Command, ...] = ()
    strict_names: bool = True


def _same(command: Command, count: int = 2, **more: Any) -> Race:
    return Race(commands=(command,) * count, whole=(command,), **more)


def _shard(words: str) -> Command:
    return command_of(f"{words} {INTO}", "out", before=SHARD)


def _training(*more: str) -> Command:
    return Command(words=("train", *SETS, *TRAIN, "--epoch", "1", "--save_path", "new", *more), outputs=("new",))


TASKS = tuple(_shard(f"--list cfg/all.train --task {number}/3") for number in range(3))
VERIFY = command_of("verify out", prints=True)
RACES: dict[str, Race] = {
    "the same sharding": _same(WRITING["shard"]),
    "the same sharding, three times": _same(WRITING["shard"], 3),
    "the same sharding, with workers": _same(WRITING["shard, 2 workers"]),
    "tasks": Race(
        commands=TASKS, then=(command_of("merge out", "out"),), whole=(_shard("--list cfg/all.train"),), strict_names=False
    ),
    "a task and the whole": Race(commands=(TASKS[0], _shard("--list cfg/all.train")), whole=(_shard("--list cfg/all.train"),),
                                 strict_names=False),
    "two lists into one folder": Race(
        commands=(_shard("--list cfg/all.train"), _shard("--list cfg/all.test")), succeed=ONE_OR_MORE, then=(VERIFY,),
        whole=(_shard("--list cfg/all.train"), _shard("--list cfg/all.test")),
    ),
    "two layouts into one folder": Race(
        commands=(_shard("--list cfg/all.train"), _shard("--list cfg/all.train --dtype float16")), succeed=ONE_OR_MORE,
        then=(VERIFY,), whole=(_shard("--list cfg/all.train"), _shard("--list cfg/all.train --dtype float16")),
    ),
    "the same append": _same(WRITING["append"]),
    "two appends": Race(
        commands=(command_of("--append --db_path mcp --list cfg/all.train --out data/grown", before=SHARD),
                  command_of("--append --db_path mcp --list cfg/some --out data/grown", before=SHARD)),
        succeed=ONE_OR_MORE, then=(command_of("verify data/grown", prints=True),),
    ),
    "an append and readers": Race(
        commands=(WRITING["append"], command_of("verify data/grown", prints=True),
                  command_of("score --no_pictures --log_file r.log --te_shards data/grown --model ckpt")),
        whole=(WRITING["append"],), strict_names=False,
    ),
    "the same merge": _same(WRITING["merge"]),
    "the same index": _same(WRITING["index"]),
    "an index and readers": Race(
        commands=(WRITING["index"], WRITING["index"], command_of("verify data/tars", prints=True)), succeed=ONE_OR_MORE,
        then=(command_of("verify data/tars", prints=True),), whole=(WRITING["index"],),
    ),
    "the same training": _same(COMMANDS["train"], succeed=ONE_OR_MORE),
    "two trainings in one folder": Race(
        commands=(_training(), _training("--seed", "5")),
        succeed=ONE_OR_MORE,
        whole=(_training(), _training("--seed", "5")),
    ),
    "the same resume": _same(WRITING["resume"], succeed=ONE_OR_MORE),
    "two makers of a cache": Race(
        commands=tuple(command_of(f"train --cache_dir made --save_path {name} --epoch 1 {' '.join(TRAIN)}", name)
                       for name in ("new", "newer")),
    ),
    "two downloads": Race(
        commands=tuple(command_of(f"train --tr_shards file://{{world}}/data/train --va_shards data/test --shard_cache kept "
                                f"--save_path {name} --epoch 1 {' '.join(TRAIN)}", name) for name in ("new", "newer")),
    ),
    "the same scoring": _same(WRITING["score"], succeed=ONE_OR_MORE),
    "two scorings with one name": Race(
        commands=(WRITING["score"], COMMANDS["score_two"]), succeed=ONE_OR_MORE,
        whole=(WRITING["score"], COMMANDS["score_two"]),
    ),
    "the same embedding": _same(WRITING["embed"], succeed=ONE_OR_MORE),
    "the same export": _same(WRITING["export"], succeed=ONE_OR_MORE),
    "the same calibration": _same(WRITING["calibrate"], succeed=ONE_OR_MORE),
    "the same trials": _same(WRITING["trials_npz"], succeed=ONE_OR_MORE),
    "the same report": _same(WRITING["report"]),
    "the same table of results": _same(WRITING["results"]),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RaceCase:
    """A race, and how many seconds after each other its commands start."""

    name: str
    race: str
    delays: tuple[float, ...] = field(default=())


def make_cases(count: int, seed: int) -> list[RaceCase]:
    """`count` races; each comes equally often, at times at the same moment, at times later."""
    draw = random.Random(f"races {seed}")
    names = list(RACES)
    cases = []
    for number in range(count):
        race = names[number % len(names)]
        apart = draw.choice((0.0, 0.0, 0.01, 0.1, 0.5))
        delays = tuple(draw.random() * apart for _ in RACES[race].commands)
        cases.append(RaceCase(name=f"races-{number:04d}", race=race, delays=delays))
    return cases


def prepare(cases: Sequence[RaceCase], world: Path, scratch: Path) -> dict[str, list[Reference]]:
    """What the commands of each race make, each alone in a world of its own."""
    made: dict[Command, Reference] = {}
    for race in (RACES[case.race] for case in cases):
        for command in race.whole:
            if command not in made:
                made[command] = reference_of(command, world, scratch / f"reference-{len(made)}")
    return {case.race: [made[command] for command in RACES[case.race].whole] for case in cases}


def run_case(case: RaceCase, world: Path, scratch: Path, references: dict[str, list[Reference]]) -> dict[str, Any]:
    """What a race gave."""
    own = scratch / case.name
    own.mkdir()
    folder = copy_world(world, own / "w")
    race, before = RACES[case.race], Snapshot.of(folder)
    outcomes = _run_together(race, case.delays, folder)
    faults = []
    for outcome in outcomes:
        faults += common_faults(outcome)
        if outcome.code:
            faults += error_faults(outcome, {"new", "out", "data", "ckpt", "r.log"})
    failed = [outcome for outcome in outcomes if outcome.code]
    if len(failed) == len(outcomes) or (failed and race.succeed == ALL):
        faults.append(f"exit codes {[outcome.code for outcome in outcomes]}: {failed[0].error[-300:]}")
    later = []
    for command in race.then:
        later.append(run(Process(words=words_in(command, folder), folder=folder)))
        if later[-1].code:
            faults.append(
                f"afterwards, spkid {' '.join(command.words)}: exit code {later[-1].code}: {later[-1].error[-300:]}"
            )
    faults += _compare(race, references[case.race], before, folder, outcomes)
    shutil.rmtree(own)
    what = (
        f"{case.race}, {max(case.delays) - min(case.delays):.3f} s apart, exit codes {[item.code for item in outcomes]}"
    )
    return row_of(case.name, case.race, what, race.commands[0], [*outcomes, *later], faults)


def _run_together(race: Race, delays: Sequence[float], folder: Path) -> list[Outcome]:
    """Start the commands, each after its delay, and wait for all."""
    processes = [Process(words=words_in(command, folder), folder=folder) for command in race.commands]
    began = time.monotonic()
    children = {}
    for number in sorted(range(len(processes)), key=delays.__getitem__):
        time.sleep(max(0.0, delays[number] - (time.monotonic() - began)))
        children[number] = start(processes[number])
    return [wait(process, children[number], began) for number, process in enumerate(processes)]


def _compare(
    race: Race, references: list[Reference], before: Snapshot, folder: Path, outcomes: Sequence[Outcome]
) -> list[str]:
    """What is wrong with the results: they must be those of one of the commands that ended with 0."""
    if not references:
        return [f"litter: {name}" for name in sorted(before.new(Snapshot.of(folder))) if ".tmp-" in name][:3]
    found = []
    for number, reference in enumerate(references):
        code = outcomes[number].code if len(references) == len(outcomes) else 0
        faults = [] if code == 0 else ["exit code 0 with the result of a command that was refused"]
        faults += reference.differences(race.whole[number], folder, outcomes[min(number, len(outcomes) - 1)].output)
        faults += reference.litter(before, Snapshot.of(folder)) if race.strict_names else []
        found.append(faults)
    return min(found, key=len)
