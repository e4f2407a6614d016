"""Draw the pictures of the explanations: ``python docs/pictures/draw.py`` writes the SVG files beside itself.

A test compares them with what is committed.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spkid_dist.draws import POOL_DOMAIN, generator_key, permutation
from spkid_dist.order import EpochLine, EpochOrder

FOLDER = Path(__file__).parent
COLOURS = ("#cfe8e4", "#f9e0bb", "#d9d7f1", "#f5cfd3")
INK, PALE, GREY = "#1d2b2a", "#f3f5f5", "#6b7a79"
CELL = 34


class Picture:
    """An SVG picture of `width` by `height` pixels, on white, so that it can be read on a dark page too."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size = width, height
        self._title = title
        self._parts: list[str] = []

    def text(
        self, x: float, y: float, words: str, *, size: int = 14, anchor: str = "middle", colour: str = INK
    ) -> None:
        """One line of text, whose middle is at height y."""
        style = f'font-size="{size}" text-anchor="{anchor}" fill="{colour}"'
        self._parts.append(f'<text x="{x:g}" y="{y + size * 0.35:g}" {style}>{words}</text>')

    def box(self, x: float, y: float, width: float, height: float, colour: str = PALE) -> None:
        """A rectangle with round corners."""
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self._parts.append(f'<rect {place} rx="4" fill="{colour}" stroke="{INK}" stroke-width="1"/>')

    def titled_box(self, x: float, y: float, size: tuple[float, float], lines: list[str], colour: str = PALE) -> None:
        """A box with a title and smaller lines below it."""
        width, height = size
        self.box(x, y, width, height, colour)
        top = y + height / 2 - 9 * (len(lines) - 1)
        for place, words in enumerate(lines):
            first = place == 0
            self.text(x + width / 2, top + 18 * place, words, size=14 if first else 12, colour=INK if first else GREY)

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points, with a head at the last one."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        line = f'fill="none" stroke="{INK}" stroke-width="1.4" marker-end="url(#head)"'
        self._parts.append(f'<polyline points="{path}" {line}/>')

    def cells(self, x: float, y: float, values: Iterable[tuple[object, str]]) -> None:
        """A row of small boxes, given as (what stands in it, its colour)."""
        for place, (value, colour) in enumerate(values):
            self.box(x + place * CELL, y, CELL, 26, colour)
            self.text(x + (place + 0.5) * CELL, y + 13, str(value), size=13)

    def svg(self) -> str:
        """The picture as text."""
        width, height = self._size
        head = (
            '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0,0 L10,5 L0,10 z" fill="{INK}"/></marker>'
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
                f'height="{height}" font-family="Helvetica, Arial, sans-serif" role="img">',
                f"<title>{self._title}</title>",
                f"<defs>{head}</defs>",
                f'<rect width="{width}" height="{height}" fill="white"/>',
                *self._parts,
                "</svg>\n",
            ]
        )


class FourBlocks:
    """Two shards of two blocks each, and four windows in each block."""

    per_shard = np.array([8, 8])

    def blocks_of(self, shard: int) -> range:
        """The blocks of a shard."""
        return range(2 * shard, 2 * shard + 2)

    def of_blocks(self, blocks: range) -> NDArray[np.int64]:
        """Windows of each block."""
        return np.full(len(blocks), 4)


def order_picture(seed: int = 2, epoch: int = 0) -> str:
    """Storage, line, streams and the epoch of the example in docs/explanation/order.md."""
    picture = Picture(720, 330, "From the order of storage to the order of an epoch")
    block_colour = {window: COLOURS[window // 4] for window in range(16)}
    line: list[int] = []
    for segment in EpochLine(FourBlocks(), seed, epoch, shuffle=True).segments(0, 16):
        line += range(segment.first_id, segment.first_id + segment.last - segment.first)
    order = EpochOrder(16, 4, 2)
    streams: list[list[int]] = [[], [], [], []]
    for stream in range(4):
        for pool in range(2):
            first, end = order.pool_interval(stream, pool)
            key = generator_key(seed, POOL_DOMAIN, epoch, stream, pool)
            streams[stream] += [line[first + place] for place in permutation(key, end - first)]
    left = 160
    rows = {"storage": list(range(16)), "line": line, "pools": [window for stream in streams for window in stream]}
    notes = {
        "storage": ("Storage", "a colour per block"),
        "line": ("1. Line", "shards, blocks permuted"),
        "pools": ("2., 3. Streams, pools", "permuted inside a pool"),
        "epoch": ("4. Epoch", "one from each stream"),
    }
    rows["epoch"] = [streams[index % 4][index // 4] for index in range(16)]
    for row, (name, windows) in enumerate(rows.items()):
        y = 24 + 76 * row
        picture.text(left - 10, y + 6, notes[name][0], anchor="end")
        picture.text(left - 10, y + 24, notes[name][1], anchor="end", size=11, colour=GREY)
        picture.cells(left, y, [(window, block_colour[window]) for window in windows])
        if name == "pools":
            for pool in range(8):
                picture.text(left + (2 * pool + 1) * CELL, y + 38, f"pool {pool % 2}", size=11, colour=GREY)
            for stream in range(4):
                picture.text(left + (4 * stream + 2) * CELL, y - 12, f"stream {stream}", size=12)
        if name == "epoch":
            for index in range(16):
                picture.text(left + (index + 0.5) * CELL, y + 38, f"s{index % 4}", size=11, colour=GREY)
    picture.text(left + 8 * CELL, 318, "s0 to s3: the stream of each window; streams belong to ranks", size=12)
    return picture.svg()


def flow_picture() -> str:
    """The way of a frame, from feature files to the optimiser."""
    picture = Picture(820, 300, "The way of a frame")
    size = (180.0, 76.0)
    top = [
        ["Features, audio", "one file per utterance", "T frames of D values"],
        ["Blocks", "about 8,192 frames", "of shuffled utterances"],
        ["Shards", "WebDataset tars", "and a manifest"],
        ["Read", "from disk, or by range;", "checksums compared"],
    ]
    bottom = [
        ["Step", "forward, backward,", "optimiser, on each rank"],
        ["Batch", "(B, C*D) values", "and B labels"],
        ["Table of windows", "first row and label,", "in the order of use"],
        ["Arena", "a window is C", "consecutive rows"],
    ]
    for place, (upper, lower) in enumerate(zip(top, bottom, strict=True)):
        x = 14 + 204 * place
        picture.titled_box(x, 44, size, upper, COLOURS[0] if place < 3 else COLOURS[1])
        picture.titled_box(x, 190, size, lower, COLOURS[2] if place == 0 else COLOURS[1])
        if place < 3:
            picture.arrow((x + 180, 82), (x + 203, 82))
            picture.arrow((x + 204, 228), (x + 181, 228))
    picture.arrow((14 + 612 + 90, 120), (14 + 612 + 90, 189))
    picture.text(14 + 294, 24, "spkid shard: once")
    picture.text(14 + 702, 24, "every epoch")
    picture.text(14 + 402, 155, "the order is arithmetic on (seed, epoch, index)", size=12, colour=GREY)
    picture.text(14 + 498, 284, "WindowDataset")
    picture.text(14 + 90, 284, "spkid train")
    return picture.svg()


def arena_picture() -> str:
    """An utterance in an arena: windows are intervals of rows that overlap, and a batch copies some of them."""
    picture = Picture(600, 300, "Windows in an arena")
    x = 30
    picture.text(x, 20, "Arena: frames of two utterances, one row each (here 3 frames per window)", anchor="start")
    rows = [(f"a{i}", COLOURS[0]) for i in range(6)] + [(f"b{i}", COLOURS[1]) for i in range(5)]
    picture.cells(x, 40, rows)
    for row in range(11):
        picture.text(x + (row + 0.5) * CELL, 78, str(row), size=11, colour=GREY)
    picture.text(x + 11 * CELL + 12, 78, "row number", size=11, anchor="start", colour=GREY)
    picture.text(x, 118, "Table: the first row of each window, in the order of use", anchor="start")
    starts = [7, 0, 3, 6, 1, 8, 2]
    picture.cells(x, 134, [(start, COLOURS[0] if start < 6 else COLOURS[1]) for start in starts])
    for place, start in enumerate(starts[:4]):
        left = x + place * (3 * CELL + 16)
        picture.cells(left, 206, rows[start : start + 3])
        picture.arrow((x + (place + 0.5) * CELL, 161), (left + 1.5 * CELL, 205))
    picture.text(x, 252, "Batch of 4 windows: a slice of the table, with 3 rows copied per entry", anchor="start")
    note = "Windows overlap. A frame is stored once, however many windows contain it."
    picture.text(x, 276, note, anchor="start", size=12, colour=GREY)
    return picture.svg()


def ring_picture() -> str:
    """The ring on a GPU: two generations in slots of one arena, the next one copied over the one that is used up."""
    picture = Picture(760, 290, "A ring on a GPU")
    picture.titled_box(20, 40, (150, 70), ["Mapped shards", "on the host"], COLOURS[0])
    for buffer in range(3):
        picture.titled_box(230, 22 + 40 * buffer, (130, 30), [f"pinned buffer {buffer}"], COLOURS[3])
        picture.arrow((170, 75), (229, 37 + 40 * buffer))
        picture.arrow((360, 37 + 40 * buffer), (439, 75))
    picture.text(295, 152, "16 MiB each, in turns", size=12, colour=GREY)
    picture.text(590, 18, "GPU")
    picture.titled_box(440, 40, (150, 70), ["generation 4", "slot 0: being copied"], COLOURS[1])
    picture.titled_box(590, 40, (150, 70), ["generation 3", "slot 1: steps read it"], COLOURS[2])
    picture.text(590, 130, "one arena, at fixed addresses", size=12, colour=GREY)
    picture.titled_box(
        440, 190, (300, 60), ["graph of 20 training steps", "each step reads its own row of the table"], PALE
    )
    picture.arrow((665, 142), (665, 189))
    picture.titled_box(
        20, 190, (340, 60), ["host: one table per 20 steps", "first window, number of windows, learning rate"]
    )
    picture.arrow((360, 220), (439, 220))
    return picture.svg()


def ledger_picture() -> str:
    """The ledger of an epoch: three numbers per rank are joined and compared with what is known beforehand."""
    picture = Picture(760, 230, "The ledger of an epoch")
    picture.titled_box(20, 30, (210, 66), ["rank 0 used 4, 0, 3", "count 3, sum 7, xor 7"], COLOURS[0])
    picture.titled_box(20, 130, (210, 66), ["rank 1 used 2, 5, 1", "count 3, sum 8, xor 6"], COLOURS[1])
    picture.titled_box(300, 80, (190, 66), ["together", "count 6, sum 15, xor 1"], COLOURS[2])
    picture.titled_box(560, 80, (180, 66), ["of windows 0 to 5", "count 6, sum 15, xor 1"])
    picture.arrow((230, 63), (299, 103))
    picture.arrow((230, 163), (299, 123))
    picture.arrow((490, 113), (559, 113))
    picture.text(525, 98, "equal?", size=12)
    picture.text(650, 166, "known before the epoch begins", size=12, colour=GREY)
    return picture.svg()


PICTURES = {
    "order.svg": order_picture,
    "flow.svg": flow_picture,
    "arena.svg": arena_picture,
    "ring.svg": ring_picture,
    "ledger.svg": ledger_picture,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
