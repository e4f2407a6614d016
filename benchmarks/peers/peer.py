"""What a system that a user would pick instead has to give: the corpus in its format, and shuffled batches of windows.

Shapes: B windows of a batch, C frames a window, D features a frame.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from peers.corpus import Corpus

Batch = tuple[Tensor, Tensor]
INSTALL = "pip install --no-deps -r benchmarks/peers/requirements.txt"


@dataclass(frozen=True, kw_only=True)
class Format:
    """A way to lay the corpus down.

    Attributes:
        name: good for a file name.
        write: does so in a folder that does not exist yet.
        window_records: whether a record is a window, so that each frame is written C times.
    """

    name: str
    write: Callable[[Corpus, Path], None]
    window_records: bool


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A system and one way to use it.

    Attributes:
        name: of its rows.
        imports: imports what the project itself does not need; raises what importing raises.
        format: what it reads; None where it reads the feature files when it starts.
        loader: (folder of the format, corpus, batch size, workers) -> what can be iterated over once an epoch: x (B, C*D)
            float32 and y (B,) int64, shuffled; the last batch may be smaller.
    """

    name: str
    imports: Callable[[], object] = lambda: None
    format: Format | None
    loader: Callable[[Path, Corpus, int, int], Iterable[Any]]

    @property
    def unavailable(self) -> str | None:
        """Why it can't run here; None where it can."""
        try:
            self.imports()
        except ImportError as error:
            return f"not installed ({error}): {INSTALL}"
        except (OSError, RuntimeError) as error:  # a library that does not fit to this torch
            return f"not installable here ({error})"
        return None

    @property
    def window_records(self) -> bool:
        """Whether it reads a record a window."""
        return self.format is not None and self.format.window_records

    def row(self, workers: int) -> str:
        """The name of a row."""
        return f"{self.name}, {workers} worker{'' if workers == 1 else 's'}"


class NamedColumns:
    """A loader of batches that are dictionaries of ``x`` and ``y``, as pairs; `begin_epoch` is told of each epoch."""

    def __init__(
        self, loader: Iterable[dict[str, Tensor]], begin_epoch: Callable[[int], object] = lambda _epoch: None
    ) -> None:
        self.loader = loader
        self.begin_epoch = begin_epoch
        self.epoch = 0

    def __iter__(self) -> Iterator[Batch]:
        self.begin_epoch(self.epoch)
        self.epoch += 1
        for batch in self.loader:
            yield batch["x"], batch["y"]


def bytes_on_disk(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
