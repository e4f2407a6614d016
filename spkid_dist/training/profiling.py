"""Profile a training's first steps with torch.profiler."""

from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule

from shards.errors import InputError
from shards.files import staging_folder

WARMUP_STEPS = 3  # the first ones allocate, and the profiler's own start is slow
TOP_OPERATORS = 15


class StepProfile:
    """Records `steps` steps after WARMUP_STEPS, or as many as there are; a context, which does nothing where it is None.

    The trace goes to `path` (Chrome's format, for chrome://tracing and Perfetto), the longest operators to `say`:
    by their time on the device where the network is `on_device`, else on the CPU.
    """

    def __init__(self, steps: int | None, path: Path, *, on_device: bool, say: Callable[[str], None]) -> None:
        self._path = path
        self._order = "self_device_time_total" if on_device else "self_cpu_time_total"
        self._say = say
        self._steps = steps or 0
        self._steps_left = WARMUP_STEPS + self._steps
        self._profile: profile | None = None
        if steps is not None:
            self._profile = profile(
                activities=None if on_device else [ProfilerActivity.CPU],  # None: all there are
                schedule=schedule(wait=0, warmup=WARMUP_STEPS, active=steps, repeat=1),
                on_trace_ready=self._export,
                acc_events=True,
            )

    def __enter__(self) -> "StepProfile":
        if self._profile is not None:
            self._profile.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._profile is not None and self._has_none():
            self._say(f"profile: none, as the run ended within the {WARMUP_STEPS} steps to warm up")
        self._stop()

    @property
    def is_recording(self) -> bool:
        """Whether it still counts steps, which must then be taken one by one."""
        return self._profile is not None

    def step(self) -> None:
        """A step has ended. Raises InputError where the trace can't be written."""
        if self._profile is not None:
            self._steps_left -= 1
            self._profile.step()
            if not self._steps_left:
                self._stop()

    def _stop(self) -> None:
        if self._profile is not None:
            stopped, self._profile = self._profile, None
            stopped.stop()

    def _has_none(self) -> bool:
        return self._steps_left >= self._steps

    def _export(self, found: profile) -> None:
        if self._has_none():  # stopped between the last step of the warm-up and the next
            return
        self._write(found)
        table = found.key_averages().table(sort_by=self._order, row_limit=TOP_OPERATORS)
        for line in (f"profile: {self._path}; the longest operators:", *table.strip().splitlines()):
            self._say(line)

    def _write(self, found: profile) -> None:
        """Write the trace. torch says nothing where the disk is full: it leaves its unfinished file under another name."""
        try:
            with staging_folder(self._path) as staging:
                trace = staging / self._path.name
                found.export_chrome_trace(str(trace))
                trace.replace(self._path)
        except OSError as error:
            reason = "torch wrote no file" if isinstance(error, FileNotFoundError) else error.strerror
            raise InputError(
                f"{self._path}: the profile can't be written: {reason}; free room, then run again"
            ) from None
