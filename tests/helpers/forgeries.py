"""Forge datasets whose digests all fit, use them in every way, and see that nothing leaves its arrays.

``NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=FOLDER python tests/helpers/forgeries.py --first SEED --count N``: a process of its own,
since kernels are compiled with bounds checks only where the variable is set before. Each seed is a forgery: rows of the tables,
fields of the manifest, or arrays inside blocks are changed, and all checksums made anew; tables are held in memory or stay in
their files; some are changed once more while they are used. Whatever is asked of such a dataset, the answer is one of our
errors, or the truth. What intrinsics do, which numba does not check, is done by checking twins.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import xxhash
from twins import twin_windows

from shards import FmatrixSource, Layout, ShardDataset, Utterance, convert, make_plan
from shards.conversion.appending import check_absent
from shards.errors import SpkidError
from shards.layout import BLOCKS_NAME, MANIFEST_NAME, UTTERANCES_NAME, block_arrays
from shards.manifest import Manifest
from shards.members import TAR_RECORD, table_header
from shards.sources.fmatrix import write_fmatrix
from spkid_dist import ScoreConfig
from spkid_dist.commands.info import dataset_facts
from spkid_dist.config.choices import EDGE_CODES
from spkid_dist.dataset import WindowDataset
from spkid_dist.model import build_model
from spkid_dist.score import score_utterances
from spkid_dist.scoring import scorer
from spkid_dist.streaming import arena, kernels, pool, stacking
from spkid_dist.streaming.selection import Selection
from spkid_dist.streaming.windows import DatasetWindows

IN_FRAMES, NUM_FEATURES = 5, 2
SPEAKERS = ["ana", "bob", "eve"]
NUMBERS = [-(2**31), -1, 0, 1, 2, 3, 5, 8, 100, 513, 2**16, 2**31 - 1]
LARGE = [*NUMBERS, -(2**63), -512, 512, 1024, 2**32, 2**40, 2**62, 2**63 - 1]
IN_FILES = (
    (),
    (BLOCKS_NAME,),
    (UTTERANCES_NAME,),
    (BLOCKS_NAME, UTTERANCES_NAME),
)  # tables that are not held in memory


@dataclass
class Forgery:
    """A dataset that is being changed: its `manifest` as JSON, its tables and its shards' bytes."""

    folder: Path
    manifest: dict[str, Any]
    blocks: np.ndarray
    utterances: np.ndarray
    shards: list[bytearray]
    sound_blocks: np.ndarray

    @staticmethod
    def of(folder: Path) -> "Forgery":
        """The dataset in `folder`."""
        data = ShardDataset(folder)
        shards = [bytearray((folder / info.name).read_bytes()) for info in data.manifest.shards]
        blocks, utterances = np.array(data.blocks), np.array(data.utterances)
        return Forgery(folder, asdict(data.manifest), blocks, utterances, shards, blocks.copy())

    def write_table(self, name: str, table: np.ndarray) -> bytes:
        """Write a table in place, as one does who has it open; returns its bytes."""
        data = table_header(table.dtype, table.shape) + table.tobytes()
        with open(self.folder / name, "r+b" if (self.folder / name).exists() else "wb") as file:  # noqa: PTH123
            file.write(data)
            file.truncate()
        return data

    def seal(self, draw: np.random.Generator) -> None:
        """Write all files, with checksums, digests and fingerprint that fit."""
        for row in self.blocks:
            start, size, shard = int(row["payload_offset"]) - TAR_RECORD, int(row["extent_bytes"]), int(row["shard"])
            if 0 <= shard < len(self.shards) and start >= 0 and 0 < size <= 10**6:
                row["checksum"] = xxhash.xxh3_64_intdigest(bytes(self.shards[shard][start : start + size]))
        infos = self.manifest["shards"] if isinstance(self.manifest["shards"], list) else []
        for data, info in zip(self.shards, infos, strict=False):
            if not isinstance(info, dict) or "name" not in info:
                continue
            info["digest"] = xxhash.xxh3_128_hexdigest(bytes(data))
            if draw.random() < 0.9 and str(info["name"]).startswith("shard-"):
                (self.folder / info["name"]).write_bytes(data)
        for name, table in ((BLOCKS_NAME, self.blocks), (UTTERANCES_NAME, self.utterances)):
            data = self.write_table(name, table)
            if isinstance(self.manifest["tables"], dict) and name in self.manifest["tables"]:
                self.manifest["tables"][name] = {"bytes": len(data), "digest": xxhash.xxh3_128_hexdigest(data)}
        canonical = json.dumps(Manifest._head() | self.manifest, sort_keys=True, separators=(",", ":"))
        fingerprint = xxhash.xxh3_128_hexdigest(canonical.encode())
        text = json.dumps(Manifest._head() | {"fingerprint": fingerprint} | self.manifest)
        (self.folder / MANIFEST_NAME).write_text(text)


def change_rows(table: np.ndarray, draw: np.random.Generator) -> None:
    """Change a number of a row or two, or exchange rows."""
    for _ in range(draw.integers(1, 3)):
        at = int(draw.integers(len(table)))
        if draw.random() < 0.15:
            other = int(draw.integers(len(table)))
            table[[at, other]] = table[[other, at]]
            continue
        name = str(draw.choice(table.dtype.names))
        kind = np.iinfo(table.dtype[name])
        value = int(table[name][at]) + int(draw.choice(NUMBERS)) if draw.random() < 0.5 else int(draw.choice(LARGE))
        table[name][at] = min(max(value, kind.min), kind.max)


def change_manifest(manifest: dict[str, Any], draw: np.random.Generator) -> None:
    """Change a value somewhere in it."""
    value: Any = manifest
    while True:
        key: Any = draw.choice(sorted(value)) if isinstance(value, dict) else int(draw.integers(len(value)))
        key = str(key) if isinstance(value, dict) else key
        if not (isinstance(value[key], dict | list) and value[key] and draw.random() < 0.9):
            break
        value = value[key]
    old = value[key]
    if isinstance(old, int) and draw.random() < 0.8:
        value[key] = old + int(draw.choice(LARGE)) if draw.random() < 0.5 else int(draw.choice(LARGE))
    else:
        others: list[Any] = [None, -1, 0, 1e38, 1e300, "", "x", "..", [], {}, ["a", "a"], [{}], {"kind": 3}, True]
        value[key] = others[draw.integers(len(others))]


def change_block(forgery: Forgery, draw: np.random.Generator) -> None:
    """Change lengths, labels or JSON of a block, and mostly the tables with them."""
    number = int(draw.integers(len(forgery.sound_blocks)))
    row, forged = forgery.sound_blocks[number], forgery.blocks[number]
    start, size = int(row["payload_offset"]) - TAR_RECORD, int(row["extent_bytes"])
    extent = forgery.shards[int(row["shard"])][start : start + size]
    arrays = block_arrays(memoryview(extent), int(row["frames"]), int(row["utterances"]), NUM_FEATURES, np.dtype("<f4"))
    what = draw.choice(["lengths", "labels", "json", "shift"])
    at, other = (int(index) for index in draw.integers(len(arrays.lengths), size=2))
    if what == "json":
        place = int(draw.integers(len(arrays.json)))
        arrays.json[place] = int(draw.integers(256))
    elif what == "shift":  # the sum stays
        step = int(draw.choice(NUMBERS[1:]))
        lengths = arrays.lengths.astype(np.int64)
        lengths[at] += step
        lengths[other] -= step
        arrays.lengths[:] = lengths.astype(np.int32)
    else:
        getattr(arrays, str(what))[at] = draw.choice(NUMBERS)
    forgery.shards[int(row["shard"])][start : start + size] = extent
    if draw.random() < 0.8:
        first = int(row["first_utterance"])
        rows = forgery.utterances[first : first + len(arrays.lengths)]
        rows["frames"], rows["speaker"] = arrays.lengths, arrays.labels
        if draw.random() < 0.5:
            forged["frames"] = max(1, min(2**31 - 1, int(arrays.lengths.sum(dtype=np.int64))))


def forge(forgery: Forgery, draw: np.random.Generator) -> None:
    """Change it in one to three ways."""
    for _ in range(draw.integers(1, 4)):
        way = draw.integers(5)
        if way == 0:
            change_rows(forgery.blocks, draw)
        elif way == 1:
            change_rows(forgery.utterances, draw)
        elif way == 2:
            change_manifest(forgery.manifest, draw)
        else:
            change_block(forgery, draw)


def checking_copy(out: np.ndarray, at: int, source: np.ndarray, start: int, num_bytes: int) -> None:
    """What `copy_bytes` does, if it stays within its arrays."""
    count, rest = divmod(int(num_bytes), out.itemsize)
    assert rest == 0
    assert count >= 0
    assert out.itemsize == source.itemsize
    assert 0 <= at <= at + count <= len(out), (at, count, len(out))
    assert 0 <= start <= start + count <= len(source), (start, count, len(source))
    out[at : at + count] = source[start : start + count]


def checking_prefetch(array: np.ndarray, index: int) -> None:
    """Asking for memory does not touch it; places of windows are within the arena all the same."""
    assert 0 <= index < len(array) + kernels.CACHE_LINE, (index, len(array))


def checking_lay_out(
    frames: np.ndarray, lengths: np.ndarray, labels: np.ndarray, repeats: np.ndarray, *others: Any
) -> int:
    """`lay_out` in Python, in numbers of 64 bits as the compiled one."""
    return int(kernels.lay_out.py_func(frames, lengths.astype(np.int64), labels, repeats.astype(np.int64), *others))


def windows_of(data: ShardDataset, edge: str, repeats: np.ndarray) -> Counter[tuple[int, bytes]]:
    """All windows of a dataset with their labels, by the twin."""
    found: Counter[tuple[int, bytes]] = Counter()
    for block in range(len(data.blocks)):
        arrays, at = data.read_block(block), 0
        first = int(data.blocks[block]["first_utterance"])
        for number, (length, label) in enumerate(zip(arrays.lengths.tolist(), arrays.labels.tolist(), strict=True)):
            frames = arrays.frames[at : at + length].astype(np.float32)
            for window in twin_windows(frames, IN_FRAMES, EDGE_CODES[edge]):
                found[label, window.tobytes()] += int(repeats[first + number])
            at += length
    return +found


def stream_truth(folder: Path, draw: np.random.Generator, spoil: Forgery | None) -> None:
    """Stream an epoch; the windows are those of the blocks, unless the tables are changed meanwhile."""
    edge, balance = str(draw.choice(list(EDGE_CODES))), bool(draw.random() < 0.4)
    options: dict[str, Any] = {"normalize": "utterance"} if draw.random() < 0.2 else {}
    options |= {"device": "cpu", "placed": True} if draw.random() < 0.3 else {}
    options |= {"device_memory": 0} if draw.random() < 0.5 else {}
    data = WindowDataset(
        folder,
        in_frames=IN_FRAMES,
        edge=edge,
        batch_size=int(draw.choice([7, 64])),
        num_streams=int(draw.choice([1, 3, 8])),
        shuffle_windows=int(draw.choice([16, 2**20])),
        selection=Selection(balance=balance),
        rank=0,
        world_size=1,
        on_bad_block=str(draw.choice(["stop", "skip"])),
        **options,
    )
    if spoil is not None:
        name, table = ((BLOCKS_NAME, spoil.blocks), (UTTERANCES_NAME, spoil.utterances))[draw.integers(2)]
        if draw.random() < 0.3:
            os.truncate(folder / name, int(draw.integers(len(table) * table.dtype.itemsize)))
        else:
            change_rows(table, draw)
            spoil.write_table(name, table)
    found: Counter[tuple[int, bytes]] = Counter()
    with contextlib.closing(data):
        for x, y in data:
            found.update((int(label), row.tobytes()) for row, label in zip(x.numpy(), y, strict=True))
    if "normalize" not in options and not data.bad_blocks and spoil is None:
        assert found == windows_of(data.data, edge, data.windows._repeats), "other windows than those of the blocks"


def use(folder: Path, model: Path, draw: np.random.Generator, spoil: Forgery | None) -> Iterator[str]:
    """Ask all that a dataset is asked for; yields what was answered."""

    def ask(what: str, action: Any) -> str:
        try:
            action()
        except SpkidError as error:
            assert "\n" not in str(error), error
            return f"{what}: refused"
        return f"{what}: true"

    yield ask("open", lambda: ShardDataset(folder))
    for edge in EDGE_CODES:
        for balance in (False, True):
            yield ask("count", lambda e=edge, b=balance: _count(folder, e, b))
    yield ask("facts", lambda: dataset_facts(ShardDataset(folder), 10.0, "usual"))
    listed = [Utterance("a/ana/0", "ana"), Utterance("a/new/1", "new")]
    yield ask("append", lambda: check_absent(ShardDataset(folder), listed))
    yield ask("stream", lambda: stream_truth(folder, draw, None))
    list_path = model.parent / "listed" if draw.random() < 0.5 else None
    config = ScoreConfig(
        weights_ckpt=model, te_shards=folder, te_list_file=list_path, log_file=model.parent / "r.log", pictures=False
    )
    with contextlib.redirect_stdout(io.StringIO()):
        answer = ask("score", lambda: score_utterances(config))
    yield answer
    if spoil is not None:
        yield ask("spoil", lambda: stream_truth(folder, draw, spoil))


def _count(folder: Path, edge: Any, balance: bool) -> None:
    windows = DatasetWindows(ShardDataset(folder), IN_FRAMES, edge, Selection(balance=balance))
    windows.by_speaker()
    windows.key_sum()


def make_base(folder: Path) -> tuple[Path, Path]:
    """A sound dataset of some blocks, and a model that can score it."""
    draw = np.random.default_rng(0)
    utterances = []
    for number in range(17):
        speaker = SPEAKERS[number % 3]
        utterances.append(Utterance(f"a/{speaker}/{number}", speaker))
        path = folder / "mcp" / f"{utterances[-1].key}.mcp"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_fmatrix(path, draw.normal(size=(int(draw.integers(1, 25)), NUM_FEATURES)).astype(np.float32))
    source = FmatrixSource(folder / "mcp", "mcp")
    convert(make_plan(utterances, SPEAKERS, source, Layout(block_frames=40, shard_bytes=6000)), source, folder / "data")
    (folder / "model").mkdir()
    torch.manual_seed(0)
    torch.save(build_model(NUM_FEATURES * IN_FRAMES, 8, 3).state_dict(), folder / "model/w_weights.ckpt")
    (folder / "model/listed").write_text("".join(f"{one.key}\n" for one in utterances[::2]))
    spk2idx = folder / "model/spk2idx.json"
    spk2idx.write_text(json.dumps({name: index for index, name in enumerate(SPEAKERS)}))
    options = {"input_dim": NUM_FEATURES, "in_frames": IN_FRAMES, "hsize": 8, "num_spks": 3, "spk2idx": str(spk2idx)}
    (folder / "model/train.opts").write_text(json.dumps(options | {"edge": "valid"}))
    return folder / "data", folder / "model/w_weights.ckpt"


def run(first: int, count: int) -> Counter[str]:
    """Forge and use `count` datasets; what was answered, counted."""
    answers: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="spkid-forgeries-") as name:
        base, model = make_base(Path(name))
        for answer in use(base, model, np.random.default_rng(first), None):
            assert answer.endswith("true") or answer.startswith("append"), f"the sound dataset: {answer}"
        for seed in range(first, first + count):
            draw = np.random.default_rng(seed)
            folder = Path(shutil.copytree(base, Path(name) / "forged"))
            forgery = Forgery.of(folder)
            spoil = replace(forgery, blocks=forgery.blocks.copy(), utterances=forgery.utterances.copy())
            if draw.random() < 0.8:
                forge(forgery, draw)
            forgery.seal(draw)
            sizes = {(folder / name).stat().st_size for name in IN_FILES[draw.integers(4)]}
            try:
                with mock.patch("shards.stores.store.stays_in_file", sizes.__contains__):
                    answers.update(use(folder, model, draw, spoil))
            except BaseException as error:
                error.add_note(f"seed {seed}: python tests/helpers/forgeries.py --first {seed} --count 1")
                raise
            finally:
                shutil.rmtree(folder)
    return answers


def main() -> None:
    """Run some seeds, and print what was answered."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=100, help="how many")
    options = parser.parse_args()
    assert os.environ.get("NUMBA_BOUNDSCHECK") == "1", (
        "set NUMBA_BOUNDSCHECK=1, and NUMBA_CACHE_DIR to a folder of its own"
    )
    checking = {"copy_bytes": checking_copy, "prefetch": checking_prefetch}
    with (
        mock.patch.multiple(kernels, **checking),
        mock.patch.object(stacking, "gather", kernels.gather.py_func),
        mock.patch.object(pool, "look_up", kernels.look_up.py_func),
        mock.patch.object(arena, "lay_out", checking_lay_out),
        mock.patch.object(scorer, "lay_out", checking_lay_out),
        np.errstate(all="ignore"),
    ):
        print(json.dumps(run(options.first, options.count)))


if __name__ == "__main__":
    main()
