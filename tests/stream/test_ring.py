"""The ring of windows on a device: the batches of the host, bit for bit, and nothing overwritten before its use."""

import threading
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from conftest import make_corpus
from test_dataset import LENGTHS, as_pairs, damaged_copy

from shards import InputError, UsageError
from spkid_dist.config import TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.mixture import MixedDataset
from spkid_dist.streaming import devicememory
from spkid_dist.streaming.copystream import BUFFER_BYTES, NUM_BUFFERS, CopyStream
from spkid_dist.streaming.ledger import Ledger
from spkid_dist.streaming.poolring import PoolRing, RingSize
from spkid_dist.streaming.residentring import ResidentRing
from spkid_dist.streaming.ring import RingFormat, WindowRing
from spkid_dist.streaming.selection import Selection
from spkid_dist.streaming.stacking import BatchMemory

pytestmark = pytest.mark.fast

RESIDENT, POOLS = None, 0  # device_memory
OPTIONS = {"in_frames": 4, "batch_size": 11, "num_streams": 5, "rank": 0, "world_size": 1}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """The same utterances stored as float32 and as float16."""
    folder = tmp_path_factory.mktemp("ring")
    layout = {"block_frames": 20, "shard_bytes": 900}
    return {dtype: make_corpus(folder / dtype, LENGTHS, dtype=dtype, **layout) for dtype in ("float32", "float16")}


def open_pair(corpora, *, pool=6, stored="float32", folder=None, device_memory=POOLS, **options):
    """A dataset on the host, and the same one placed in a ring."""
    folder = folder or corpora[stored].folder / "shards"
    options = {**OPTIONS, "shuffle_windows": pool * options.get("num_streams", OPTIONS["num_streams"]), **options}
    return WindowDataset(folder, **options), WindowDataset(
        folder, **options, device="cpu", placed=True, device_memory=device_memory
    )


def placed_batches(data, most, until_epoch):
    """The batches of `data` by `next_steps`, each with the state after it, up to the start of an epoch."""
    while data.epoch < until_epoch:
        steps = data.next_steps(most)
        assert 1 <= len(steps) <= most
        for step in range(len(steps)):
            x, y = steps.batch(step, BatchMemory(data.in_features, steps.ring.arena.dtype, None, reuse=False))
            yield (x, y), data.state_dict() if step == len(steps) - 1 else None


def assert_same(host, placed, most, epochs=2):
    """`epochs` epochs of both, and their states."""
    batches = placed_batches(placed, most, placed.epoch + epochs)
    for _ in range(epochs):
        for x, y in host:
            (placed_x, placed_y), state = next(batches)
            assert placed_x.dtype == x.dtype
            assert torch.equal(placed_x, x)
            assert torch.equal(placed_y, y)
            assert state is None or state == host.state_dict()
        assert placed.ended_ledger == host.ended_ledger
    assert next(batches, None) is None
    host.close()
    placed.close()


@pytest.mark.parametrize("device_memory", [RESIDENT, POOLS])
@pytest.mark.parametrize("most", [1, 3, 50])
@pytest.mark.parametrize("pool", [1, 4, 6, 1000])
def test_placed_steps_are_the_batches_of_the_host(corpora, pool, most, device_memory):
    assert_same(*open_pair(corpora, pool=pool, device_memory=device_memory), most)


@pytest.mark.parametrize("device_memory", [RESIDENT, POOLS])
@pytest.mark.parametrize("edge", ["zero", "edge", "valid"])
@pytest.mark.parametrize(("stored", "dtype"), [("float32", "float32"), ("float16", "stored"), ("float16", "bfloat16")])
def test_edges_and_dtypes_are_those_of_the_host(corpora, edge, stored, dtype, device_memory):
    options = {"edge": edge, "device_memory": device_memory}
    assert_same(*open_pair(corpora, **options, stored=stored, dtype=dtype), 4, epochs=1)
    assert_same(*open_pair(corpora, **options, stored="float16", normalize="utterance"), 4, epochs=1)


@pytest.mark.parametrize("device_memory", [RESIDENT, POOLS])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 11, 64])
def test_ranks_place_their_shares(corpora, world_size, batch_size, device_memory):
    lengths = []
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "batch_size": batch_size, "device_memory": device_memory}
        host, placed = open_pair(corpora, **options)
        while placed.epoch < 1:
            lengths.append(len(placed.next_steps(5)))
        placed.set_epoch(0)
        assert_same(host, placed, 5)
    assert lengths == lengths[: len(lengths) // world_size] * world_size  # all ranks in step


@pytest.mark.parametrize("device_memory", [RESIDENT, POOLS])
def test_balanced_speakers_are_placed_as_on_the_host(corpora, device_memory):
    options = {"selection": Selection(balance=True), "device_memory": device_memory}
    assert_same(*open_pair(corpora, **options), 4)


def test_ranks_without_windows_place_empty_steps(corpora):
    options = {"num_streams": 300, "world_size": 200, "in_frames": 30, "batch_size": 1}
    for rank in (0, 150):
        assert_same(*open_pair(corpora, pool=1, rank=rank, **options), 2)


def test_steps_go_on_from_each_position(corpora):
    host, _ = open_pair(corpora)
    whole = list(host)
    _, placed = open_pair(corpora)
    for position in range(len(whole)):
        placed.load_state_dict(host.state_dict(batches=position) | {"epoch": 0})
        rest = [batch for batch, _ in placed_batches(placed, 3, 1)]
        assert len(rest) == len(whole) - position
        for (x, y), (placed_x, placed_y) in zip(whole[position:], rest, strict=True):
            assert torch.equal(x, placed_x)
            assert torch.equal(y, placed_y)
    host.close()
    placed.close()


@pytest.mark.parametrize("device_memory", [RESIDENT, POOLS])
@pytest.mark.parametrize("pool", [3, 1000])
@pytest.mark.parametrize("world_size", [1, 3])
def test_windows_of_bad_blocks_are_left_out(corpora, tmp_path, world_size, pool, device_memory):
    lost = damaged_copy(corpora["float32"], tmp_path / "copy", 2)
    options = {"in_frames": 1, "batch_size": 9, "num_streams": 4, "on_bad_block": "skip", "folder": tmp_path / "copy"}
    ledgers, skipped = [], 0
    for rank in range(world_size):
        shares = {"rank": rank, "world_size": world_size, "device_memory": device_memory}
        host, placed = open_pair(corpora, pool=pool, **options, **shares)
        assert_same(host, placed, 4, epochs=1)
        assert placed.skipped_windows == host.skipped_windows
        ledgers.append(placed.ended_ledger)
        skipped += placed.skipped_windows
    assert skipped == len(lost)
    assert Ledger.join(ledgers) == Ledger.of_epoch(host.num_windows)


@pytest.mark.parametrize("device_memory", [RESIDENT, POOLS])
def test_a_bad_block_stops_the_steps(corpora, tmp_path, device_memory):
    damaged_copy(corpora["float32"], tmp_path / "copy", 2)
    _, placed = open_pair(corpora, folder=tmp_path / "copy", device_memory=device_memory, edge="zero")
    with pytest.raises(InputError, match=r"block 2, bytes .*checksum differs"):
        list(placed_batches(placed, 3, 1))
    placed.close()


@pytest.mark.parametrize("device_memory", [RESIDENT, POOLS])
def test_iterating_over_a_placed_dataset_yields_the_batches_of_the_host(corpora, device_memory):
    host, placed = open_pair(corpora, pool=3, device_memory=device_memory)
    for _ in range(2):
        assert [as_pairs(*batch) for batch in placed] == [as_pairs(*batch) for batch in host]
    assert placed.state_dict() == host.state_dict()
    first = as_pairs(*placed.next_steps(1).batch(0, BatchMemory(placed.in_features, torch.float32, None, reuse=False)))
    assert [first, *(as_pairs(*batch) for batch in placed.rest_of_epoch())] == [as_pairs(*batch) for batch in host]
    assert placed.epoch == 3


def test_a_mixture_of_placed_datasets_is_that_of_the_host(corpora):
    pairs = [open_pair(corpora, pool=2), open_pair(corpora, pool=3, device_memory=RESIDENT)]
    host, placed = (MixedDataset(datasets, [2, 1], batch_size=40) for datasets in zip(*pairs, strict=True))
    assert [as_pairs(*batch) for batch in placed] == [as_pairs(*batch) for batch in host]


# What may be overwritten, and when


class LateDevice(CopyStream):
    """A device that is late where that is allowed: steps run when an event of their use is waited for, or, with `late_copies`,
    copies when one of their arrival is, or a buffer is used again.
    """

    late_copies = False

    def __init__(self, device, _buffer_bytes):
        super().__init__(device, buffer_bytes=200)
        self.steps, self.copies, self.lock = [], [], threading.RLock()
        self.steps_done = self.copies_done = 0
        self.sizes = set()

    def run_steps(self, until):
        with self.lock:
            while self.steps_done < until:
                self.steps[self.steps_done]()
                self.steps_done += 1

    def run_copies(self, until):
        with self.lock:
            while self.copies_done < until:
                self.copies[self.copies_done]()
                self.copies_done += 1

    def mark_use(self):
        return len(self.steps)

    def wait_for_use(self, used):
        if used is not None:
            self.run_steps(used)

    def mark_arrival(self):
        return len(self.copies)

    def wait_for_arrival(self, arrived):
        self.run_copies(arrived)

    def allocating(self):
        self.run_copies(len(self.copies))
        return super().allocating()

    def next_buffer(self, num_bytes):
        turn = (self._turn + 1) % len(self._buffers)
        if self._copied[turn] is not None:
            self.run_copies(self._copied[turn])
        self._copied[turn] = None
        buffer = super().next_buffer(num_bytes)
        self.sizes.add(len(self._buffers[self._turn]))
        return buffer

    def send(self, buffer, target):
        with self.lock:
            self.copies.append(lambda: target.copy_(buffer))
            self._copied[self._turn] = len(self.copies)
        if not self.late_copies:
            self.run_copies(len(self.copies))


def late_batches(placed, until_epoch):
    """The batches as steps find them that run late, and the versions of their rings."""
    found, versions = [], set()
    while placed.epoch < until_epoch:
        steps = placed.next_steps(3)
        versions.add(steps.ring.version)
        device = placed._ring._copies

        def use(steps=steps):
            memory = BatchMemory(placed.in_features, torch.float32, None, reuse=False)
            found.extend(as_pairs(*steps.batch(k, memory)) for k in range(len(steps)))

        device.steps.append(use)
    device.run_steps(len(device.steps))
    placed.close()
    return found, versions


@pytest.mark.parametrize("late_copies", [False, True])
@pytest.mark.parametrize("device_memory", [RESIDENT, POOLS])
@pytest.mark.parametrize(("pool", "world_size"), [(1, 1), (4, 1), (6, 2)])
def test_nothing_is_overwritten_before_its_use(corpora, monkeypatch, pool, world_size, device_memory, late_copies):
    monkeypatch.setattr(devicememory, "CopyStream", LateDevice)
    monkeypatch.setattr(LateDevice, "late_copies", late_copies)
    host, placed = open_pair(corpora, pool=pool, world_size=world_size, device_memory=device_memory)
    found, versions = late_batches(placed, until_epoch=4)
    assert found == [as_pairs(*batch) for _ in range(4) for batch in host]
    assert len(versions) == 1


@pytest.mark.parametrize("late_copies", [False, True])
def test_a_generation_of_more_rows_makes_the_ring_anew(corpora, monkeypatch, late_copies):
    of = RingSize.of
    monkeypatch.setattr(RingSize, "of", lambda *arguments: replace(of(*arguments), slot_rows=20))  # too few
    monkeypatch.setattr("spkid_dist.streaming.poolring.MORE_ROWS", 1)
    monkeypatch.setattr(devicememory, "CopyStream", LateDevice)
    monkeypatch.setattr(LateDevice, "late_copies", late_copies)
    host, placed = open_pair(corpora, pool=8)
    found, versions = late_batches(placed, until_epoch=4)
    assert found == [as_pairs(*batch) for _ in range(4) for batch in host]
    assert len(versions) > 1


@pytest.mark.parametrize("device_memory", [RESIDENT, POOLS])
def test_tensors_and_buffers_are_made_once(corpora, monkeypatch, device_memory):
    monkeypatch.setattr(devicememory, "CopyStream", lambda device, _: CopyStream(device, 400))
    _, placed = open_pair(corpora, device_memory=device_memory)
    seen = set()
    while placed.epoch < 4:
        ring, buffers = placed.next_steps(2).ring, placed._ring._copies._buffers
        seen.add((ring.version, *(tensor.data_ptr() for tensor in [*ring.tensors, *buffers])))
    assert len(seen) == 1
    placed.set_epoch(0)  # another place in the stream, and the same ring
    assert placed.next_steps(1).ring.version == ring.version
    placed.close()


# What fits


def test_a_dataset_that_fits_stays_on_the_device(corpora):
    _, placed = open_pair(corpora, device_memory=RESIDENT)
    placed.next_steps(1)
    assert isinstance(placed._ring, ResidentRing)
    _, pools = open_pair(corpora, device_memory=POOLS)
    pools.next_steps(1)
    assert isinstance(pools._ring, PoolRing)
    for data in (placed, pools):
        data.close()


@pytest.mark.parametrize(
    ("free", "device_memory", "message"),
    [
        (
            1000,
            None,
            r"take \d\.\d GB on the device cpu, but 0\.0 GB are free there; give a smaller --shuffle_windows$",
        ),
        (
            2**40,
            100,
            r"but --device_memory allows 0\.0 GB; give a smaller --shuffle_windows, or a larger --device_memory$",
        ),
    ],
)
def test_pools_that_do_not_fit_are_refused(corpora, monkeypatch, free, device_memory, message):
    monkeypatch.setattr(devicememory, "free_device_memory", lambda _: free)
    _, placed = open_pair(corpora, device_memory=device_memory)
    with pytest.raises(UsageError, match=message):
        placed.next_steps(1)


def test_more_rows_than_int32_counts_are_refused():
    two_gigarows = RingFormat(1, 0, torch.float32, torch.float32)  # of no features
    with pytest.raises(
        UsageError, match=r"have 2147483648 frames on the device, .*; give a smaller --shuffle_windows$"
    ):
        WindowRing.allocate(two_gigarows, 2**31, 1, torch.device("cpu"))


def test_placed_windows_take_less_of_the_hosts_memory(corpora):
    host, placed = open_pair(corpora, pool=1000)
    assert placed.memory_bound - NUM_BUFFERS * BUFFER_BYTES < host.memory_bound


def test_device_memory_is_0_or_more():
    with pytest.raises(UsageError, match=r"^--device_memory -1: expected 0 or more"):
        TrainConfig(device_memory=-1)


def test_steps_are_for_placed_datasets(corpora):
    host, placed = open_pair(corpora)
    with pytest.raises(UsageError, match=r"open the dataset with placed=True"):
        host.next_steps(1)
    with pytest.raises(UsageError, match=r"next_steps\(0\): expected 1 or more"):
        placed.next_steps(0)
    with pytest.raises(UsageError, match=r"--device_memory -1: expected 0 or more"):
        open_pair(corpora, device_memory=-1)
    with pytest.raises(UsageError, match=r"placed on a device; give one"):
        WindowDataset(corpora["float32"].folder / "shards", placed=True, **OPTIONS)


def test_two_iterations_at_a_time_are_refused(corpora):
    _, placed = open_pair(corpora)
    stream = placed.open_stream(0, 0)
    with pytest.raises(UsageError, match=r"one iteration at a time; .* open two datasets$"):
        placed.next_steps(1)
    stream.close()
    placed.next_steps(1)
    placed.close()


def test_a_copied_dataset_leaves_its_ring_behind(corpora):
    _, placed = open_pair(corpora)
    first = placed.next_steps(2)
    copy = deepcopy(placed)
    assert copy.next_steps(1).ring.version != first.ring.version
    placed.close()
    copy.close()
