"""Make the table of all stages, name the slowest of them, and say what to change."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spkid_dist.bench.rows import ALONE, CACHED, POOLS, SCORE, SHARD, STACK, STAGES, TRAIN, Findings, Row, readable
from spkid_dist.config.bench import BenchConfig
from spkid_dist.trained import options_of

HEADINGS = ("stage", "what", "rate", "least to most", "unit", "against", "its rate", "share", "windows/s")
LEFT = ("stage", "what", "unit", "against")
NEAR = 0.7  # of its limit: what is left is the hardware's to give
IDLE_MATRIX = 0.3  # of the matrix rate: the steps are too small for the device
FASTER_BF16 = 1.5
FASTER_ALONE = 1.1  # one thread than all: less may be chance
ABOVE = 1.005  # a share that is more than 100 %, rounded
# Why what is named a limit may be exceeded, by how its name begins.
REASONS = {
    "tar cf": "tar reads and writes by one process, and its start counts; several workers share the work",
    "reading the shards": "the limit copies the files into one buffer, and filling a pool reads blocks by several threads",
    "copying": "the limit reads other bytes each time; the windows of a stack share their frames, which stay in the cache",
    "matrix products": "the limit is the rate of square matrices; the network's own may fit the caches better",
    "the step, one cached batch": "both take the same steps: the difference is chance, or other programs disturbed one of them",
    "the network alone": "the limit takes batches of one size; scoring's groups may fit the caches better",
    "from the start": "all open the dataset and fill the same pools: the difference is chance",
}
OTHER_REASON = "the difference is chance, or other programs disturbed the runs of one of them"


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """The slowest stage, how many times as fast the next one is (None where there is one), and what to change."""

    row: Row
    margin: float | None
    advice: str

    def sentences(self) -> list[str]:
        """The verdict as text."""
        row = self.row
        share = "" if row.share is None else f", {row.share:.0%} of its limit ({row.limit})"
        once = "; it runs once a corpus, the others once an epoch" if row.stage == SHARD else ""
        margin = "" if self.margin is None else f"; the next slowest stage is {self.margin:.1f} times as fast"
        return [
            f"bottleneck: {row.stage} ({row.name}), {readable(row.windows_rate or 0)} windows/s{share}{margin}{once}",
            f"what to change: {self.advice}",
        ]


def find_bottleneck(
    rows: Sequence[Row], config: BenchConfig, device: str, world_size: int, *, idle_cpus: int = 0
) -> Bottleneck | None:
    """The slowest of the rows that the data must go through; None where there is no such row.

    Args:
        rows: of all stages; those of the machine's limits tell which precision is faster.
        config: the options that were measured.
        device: its type, such as ``cpu`` or ``cuda``.
        world_size: the ranks that measured.
        idle_cpus: CPUs of this machine that no thread of theirs has.
    """
    path = sorted((row for row in rows if row.on_path), key=lambda row: row.windows_rate or 0.0)
    if not path:
        return None
    slowest = path[0]
    margin = (path[1].windows_rate or 0.0) / (slowest.windows_rate or 1.0) if len(path) > 1 else None
    advice = _advice_on_threads(slowest, rows) or _advice(slowest, rows, config, device, world_size)
    if idle_cpus and slowest.stage in (TRAIN, SCORE):
        advice = f"more threads (OMP_NUM_THREADS): {idle_cpus} CPU(s) of this machine have none; {advice}"
    return Bottleneck(row=slowest, margin=margin, advice=advice)


def _advice_on_threads(row: Row, rows: Sequence[Row]) -> str | None:
    """What to change around the program, before the program is blamed; None where threads do not wait for one another."""
    rates = {row.name: row.rate for row in rows}
    one, together = rates.get(ALONE, 0.0), rates.get(CACHED, 0.0)
    if row.stage not in (TRAIN, SCORE) or one <= FASTER_ALONE * together:
        return None
    return (
        f"OMP_NUM_THREADS=1, or a machine that nothing else uses: 1 thread takes the steps {one / together:.1f} times as "
        "fast as all of them, which wait for one another; then measure again"
    )


def _advice(row: Row, rows: Sequence[Row], config: BenchConfig, device: str, world_size: int) -> str:
    near = row.share is not None and row.share >= NEAR
    if row.stage == SHARD:
        more = "spkid shard --workers with more processes, or --task on more machines"
        return "a faster disk; fewer and larger files" if near else more
    if row.stage == POOLS:
        memory = "--shuffle_windows as many as the dataset has, so that it is read once and stays in memory"
        return f"{memory}; shards of --dtype float16, half the bytes" if near else memory
    if row.stage == STACK:
        return "faster memory; fewer --in_frames" if near else "more processes, each of which stacks its share"
    if row.stage == TRAIN:
        return _advice_on_steps(row, rows, config, device, world_size)
    assert row.stage == SCORE
    if near:
        hardware = "a GPU" if device == "cpu" else "a faster GPU"
        return f"{hardware}, or accelerate launch -m spkid_dist.score by several processes"
    return "more threads that read ahead (spkid score --workers); shards in place of files (--te_shards)"


def _advice_on_steps(row: Row, rows: Sequence[Row], config: BenchConfig, device: str, world_size: int) -> str:
    changes = []
    if row.share is not None and row.share < IDLE_MATRIX:
        changes.append(
            f"a larger --batch_size than {config.batch_size}: its steps use {row.share:.0%} of the matrix rate (it changes the "
            "learning, too)"
        )
    if config.mixed_precision == "no" and _bf16_gain(rows) > FASTER_BF16:
        changes.append(f"--mixed_precision bf16: its matrix products are {_bf16_gain(rows):.1f} times as fast here")
    scaled = [r for r in rows if r.name.startswith("training by ") and r.share is not None]
    if scaled and (scaled[-1].share or 0) > NEAR:
        changes.append(f"more processes: {scaled[-1].name} reach {scaled[-1].share:.0%} of {scaled[-1].limit}")
    if device == "cpu":
        changes.append("a GPU")
    elif world_size == 1:
        changes.append("more GPUs (accelerate launch --multi_gpu)")
    return "; ".join(changes) or "a faster GPU, or more of them"


def _bf16_gain(rows: Sequence[Row]) -> float:
    """How many times as fast matrix products are in bf16; 0 where it was not measured."""
    rates = {row.name: row.rate for row in rows}
    single, half = (rates.get(f"matrix products, {kind}") for kind in ("fp32", "bf16"))
    return half / single if single and half else 0.0


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The rows, in the order in which the data goes through the stages."""
    return sorted(rows, key=lambda row: STAGES.index(row.stage))


def make_table(rows: Sequence[Row]) -> list[str]:
    """The rows as the lines of a table in Markdown, its columns aligned."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    lines = []
    for line in cells:
        padded = [
            text.ljust(width) if heading in LEFT else text.rjust(width)
            for text, width, heading in zip(line, widths, HEADINGS, strict=True)
        ]
        lines.append(f"| {' | '.join(padded)} |")
    rule = ["-" * width if h in LEFT else "-" * (width - 1) + ":" for width, h in zip(widths, HEADINGS, strict=True)]
    return [lines[0], f"| {' | '.join(rule)} |", *lines[1:]]


def explain_shares(rows: Sequence[Row]) -> list[str]:
    """A line for each limit that was exceeded, and why it may be: rows that the table marks by a star."""
    exceeded: dict[str, list[str]] = {}
    for row in rows:
        if row.limit is not None and row.share is not None and row.share > ABOVE:
            exceeded.setdefault(row.limit, []).append(row.name)
    return [
        f"* more than 100 % of {limit} ({', '.join(names)}): "
        + next((reason for name, reason in REASONS.items() if limit.startswith(name)), OTHER_REASON)
        for limit, names in exceeded.items()
    ]


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.stage,
        row.name,
        readable(row.rate),
        f"{readable(row.low)} to {readable(row.high)}",
        row.unit,
        row.limit or "",
        "" if row.limit_rate is None else readable(row.limit_rate),
        "" if row.share is None else f"{row.share:.0%}{' *' * (row.share > ABOVE)}",
        "" if row.windows_rate is None else readable(row.windows_rate),
    )


def describe_machine(machine: dict[str, Any], threads: int, world_size: int) -> str:
    """Machine, versions and commit as a sentence."""
    device = f", {machine['device']}" if machine["device"] else ""
    names = ("python", "torch", "numpy", "numba", "accelerate")
    versions = ", ".join(f"{name} {machine[name]}" for name in names)
    return (
        f"{machine['cpu']}, {machine['cores']} cores{device}; {world_size} process(es) of {threads} thread(s); {versions}; "
        f"commit {machine['commit'] or 'unknown'}"
    )


def as_json(
    config: BenchConfig, found: dict[str, Findings], bottleneck: Bottleneck | None, facts: dict[str, Any]
) -> dict[str, Any]:
    """All of it as JSON values; `facts` are those of corpus and machine."""
    return {
        "benchmark": config.what,
        "options": options_of(config),
        **facts,
        "rows": [asdict(row) for row in in_order([row for findings in found.values() for row in findings.rows])],
        "notes": [note for findings in found.values() for note in findings.notes],
        "figures": {name: findings.figures for name, findings in found.items()},
        "bottleneck": None if bottleneck is None else asdict(bottleneck),
    }
