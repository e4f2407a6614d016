"""Each kernel equals its twin, which is written to be obviously right."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from twins import twin_normalize, twin_windows

from shards.kernels import (
    add_unseen,
    append_frames,
    find_component,
    find_improper,
    hash_slices,
    split_lines,
    sum_pairs,
)
from spkid_dist.config.choices import EDGE, VALID, ZERO
from spkid_dist.draws import GOLDEN, MASK, _mix, permute
from spkid_dist.streaming.kernels import (
    add_rows,
    count_rows,
    count_windows,
    deal,
    gather,
    lay_out,
    look_up,
    normalize_utterances,
    number_windows,
    round_to_bfloat16,
)

pytestmark = pytest.mark.fast

finite = st.floats(-1e6, 1e6, width=32)
matrices = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=finite)


@given(matrices, st.booleans())
def test_append_frames_equals_numpy(source, transposed):
    source = np.asfortranarray(source) if transposed else source
    shift = np.linspace(-1, 1, source.shape[1])
    out, total, squared = np.empty_like(source, order="C"), np.zeros(source.shape[1]), np.zeros(source.shape[1])
    append_frames(source, out, shift, total, squared)
    deviations = source.astype(np.float64) - shift
    np.testing.assert_array_equal(out, source)
    np.testing.assert_allclose(total, deviations.sum(axis=0), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(squared, (deviations**2).sum(axis=0), rtol=1e-9, atol=1e-6)


@given(matrices, st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_append_frames_shows_every_value_that_is_not_finite(source, bad, data):
    row = data.draw(st.integers(0, source.shape[0] - 1))
    column = data.draw(st.integers(0, source.shape[1] - 1))
    source[row, column] = bad
    total, squared = np.zeros(source.shape[1]), np.zeros(source.shape[1])
    append_frames(source, np.empty_like(source), np.zeros(source.shape[1]), total, squared)
    assert not np.isfinite(total[column])
    assert np.isfinite(np.delete(total, column)).all()


def test_append_frames_of_the_largest_values_stays_finite():
    source = np.full((4, 2), np.finfo(np.float32).max, np.float32)
    total, squared = np.zeros(2), np.zeros(2)
    append_frames(source, np.empty_like(source), np.zeros(2), total, squared)
    assert np.isfinite(total).all()
    assert np.isfinite(squared).all()


def twin_permute(key, values):
    state = key
    for k in range(len(values) - 1, 0, -1):
        state = (state + GOLDEN) & MASK
        j = ((_mix(state) >> 32) * (k + 1)) >> 32
        values[k], values[j] = values[j], values[k]


@given(st.integers(0, MASK), st.integers(0, 200))
def test_permute_equals_python(key, length):
    values, twin = np.arange(length), list(range(length))
    permute(np.uint64(key), values)
    twin_permute(key, twin)
    assert values.tolist() == twin


def test_permute_keeps_its_golden_order():
    values = np.arange(10)
    permute(np.uint64(42), values)
    assert values.tolist() == [8, 3, 6, 5, 4, 0, 9, 2, 1, 7]


def test_permute_places_every_value_everywhere_equally_often():
    counts = np.zeros((6, 6))
    for key in range(6000):
        values = np.arange(6)
        permute(np.uint64(key * 0x9E3779B97F4A7C15 & MASK), values)
        counts[np.arange(6), values] += 1
    chi_squared = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_squared < 60  # 25 degrees of freedom: exceeded by chance once in 10,000


utterances = st.tuples(st.integers(1, 30), st.integers(0, 3))  # length and repeats


@given(
    st.lists(st.lists(utterances, min_size=1, max_size=5), min_size=1, max_size=5),
    st.integers(1, 12),
    st.sampled_from([ZERO, EDGE, VALID]),
)
def test_count_windows_equals_python(blocks, context, edge):
    table = np.array([utterance for block in blocks for utterance in block], np.int32)
    first = np.cumsum([0] + [len(block) for block in blocks])
    counts = np.empty(len(blocks), np.int64)
    short = count_windows(table[:, 0], table[:, 1], first, context, edge, counts)

    def windows(length):
        return length if edge != VALID else max(0, length - context + 1)

    assert counts.tolist() == [sum(times * windows(length) for length, times in block) for block in blocks]
    assert short == sum(times > 0 and windows(length) == 0 for block in blocks for length, times in block)


@given(
    st.lists(st.tuples(st.integers(1, 14), st.integers(0, 3)), min_size=1, max_size=6),
    st.integers(1, 9),
    st.sampled_from([ZERO, EDGE, VALID]),
    st.data(),
)
def test_lay_out_equals_numpy_for_any_part_of_a_block(block, context, edge, data):
    num_features = 2
    lengths, repeats = (list(column) for column in zip(*block, strict=True))
    frames = np.arange(1, 1 + sum(lengths) * num_features, dtype=np.float32).reshape(-1, num_features)
    utterances = np.split(frames, np.cumsum(lengths)[:-1])
    expected = [
        (window, u)
        for u, x in enumerate(utterances)
        for _ in range(repeats[u])
        for window in twin_windows(x, context, edge)
    ]
    first = data.draw(st.integers(0, len(expected)))
    last = data.draw(st.integers(first, len(expected)))
    arena = np.full((3 + last - first + sum(repeats) * (context - 1), num_features), np.nan, np.float32)
    starts, labels = np.empty(last - first, np.int64), np.empty(last - first, np.int64)
    block_labels = np.arange(len(lengths), dtype=np.int32)
    frames.flags.writeable = False
    lengths, repeats = np.array(lengths, np.int32), np.array(repeats, np.int32)
    rows = np.empty(1, np.int64)
    count_rows(lengths, repeats, np.array([[0, len(lengths)]]), np.array([[first, last]]), context, edge, rows)
    windows = frames, lengths, block_labels, repeats, first, last, context, edge
    if rows[0]:
        assert lay_out(*windows, arena[: 2 + rows[0]], 3, starts, labels) == -1
    assert lay_out(*windows, arena, 3, starts, labels) == 3 + rows[0] <= len(arena)
    assert labels.tolist() == [u for _, u in expected[first:last]]
    for start, (window, _) in zip(starts, expected[first:last], strict=True):
        np.testing.assert_array_equal(arena[start : start + context].ravel(), window)


@given(st.integers(1, 20), st.integers(0, 6), st.integers(0, 20), st.booleans(), st.booleans())
def test_deal_equals_python(num_streams, length, extra, shuffle, by_id):
    sizes = [
        length + (s < min(extra, num_streams - 1)) for s in range(num_streams)
    ]  # the first streams may have one more
    bounds = np.cumsum([0, *sizes])
    ids = np.random.default_rng(0).permutation(sum(sizes))
    keys, table = np.arange(num_streams).astype(np.uint64), np.full(sum(sizes), -1)
    for first in range(0, num_streams, 8):  # parts that threads take
        last, order = min(first + 8, num_streams), np.empty(8 * max(sizes), np.int64)
        deal(keys, bounds, shuffle, ids, by_id, first, last, order, table)
    pools = [list(range(*interval)) for interval in pairwise(bounds)]
    for key, pool in enumerate(pools):
        twin_permute(key, pool) if shuffle else None
    places = [pool[p] for p in range(length + 1) for pool in pools if p < len(pool)]
    assert np.array_equal(table, ids[places] if by_id else places)


@given(st.booleans())
def test_look_up_equals_indexing(by_id):
    places, ids, starts, labels = np.array([3, 0, 2]), np.arange(4) + 7, np.arange(4) + 10, np.arange(4) + 20
    table, of_starts, of_labels = places.copy(), np.empty(3, np.int64), np.empty(3, np.int64)
    look_up(table, ids, starts, labels, by_id, of_starts, of_labels)
    assert np.array_equal([of_starts, of_labels], [starts[places], labels[places]])
    assert np.array_equal(table, places if by_id else ids[places])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=6))
def test_number_windows_equals_python(segments):
    expected = [first + k for first, count in segments for k in range(count)]
    ids = np.empty(len(expected), np.int64)
    number_windows(np.array([f for f, _ in segments], np.int64), np.array([c for _, c in segments], np.int64), ids)
    assert ids.tolist() == expected


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_round_to_bfloat16_equals_torch(values):
    out = np.empty(len(values), np.uint16)
    round_to_bfloat16(values.view(np.uint32), out)
    twin = torch.from_numpy(values).to(torch.bfloat16)
    assert np.array_equal(out, twin.view(torch.uint16).numpy())


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 9), st.sampled_from(["u2", "u4"]), st.data())
def test_gather_equals_numpy(rows, num_features, context, dtype, data):
    context = min(context, rows)
    arena = np.arange(rows * num_features, dtype=dtype)
    starts = np.array(data.draw(st.lists(st.integers(0, rows - context), max_size=20)), np.int64)
    out = np.full(len(starts) * context * num_features, 99, dtype)
    gather(arena, starts, num_features, out)
    twin = [arena[start * num_features : (start + context) * num_features] for start in starts]
    assert out.tolist() == [value for window in twin for value in window]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 4), st.booleans(), st.data())
def test_normalize_utterances_equals_numpy(lengths, num_features, in_place, data):
    frames = data.draw(hnp.arrays(np.float32, (sum(lengths), num_features), elements=st.integers(-1000, 1000)))
    expected = np.concatenate([twin_normalize(part) for part in np.split(frames, np.cumsum(lengths)[:-1])])
    out = frames if in_place else np.full_like(frames, np.nan)
    normalize_utterances(frames, np.array(lengths, np.int32), out)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


def test_normalize_utterances_makes_a_constant_feature_zero():
    frames = np.stack([np.full(1000, 0.1), np.full(1000, 1e-30), np.full(1000, 3e38)], axis=1).astype(np.float32)
    normalize_utterances(frames, np.array([999, 1], np.int32), frames)
    assert (frames == 0).all()


def test_normalize_utterances_takes_the_largest_and_the_smallest_values():
    frames = np.array([[3e38, 1e-44], [-3e38, -1e-44]], np.float32)
    normalize_utterances(frames, np.array([2], np.int32), frames)
    np.testing.assert_allclose(frames, [[1, 1], [-1, -1]])


strings = st.lists(st.binary(max_size=20), max_size=8)
list_bytes = st.lists(
    st.sampled_from([b"\n", b"\r", b"\r\n", b" ", b"\t", b"/", b"..", b".", b"a", "é".encode(), b"\0"])
)


def slices_of(parts):
    """Byte strings end to end: data, starts, ends."""
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return np.frombuffer(b"".join(parts) + b"\n", np.uint8), ends - np.array([len(p) for p in parts], np.int64), ends


@given(list_bytes)
def test_split_lines_equals_python(parts):
    data = b"".join(parts)
    starts, ends = np.empty(len(data) // 2 + 1, np.int64), np.empty(len(data) // 2 + 1, np.int64)
    count = split_lines(np.frombuffer(data + b"\n", np.uint8)[:-1], starts, ends)
    found = [data[start:end] for start, end in zip(starts[:count], ends[:count], strict=True)]
    assert found == [line.strip() for line in data.replace(b"\r", b"\n").split(b"\n") if line.strip()]


def twin_hash(string, seed):
    state = _mix(seed + GOLDEN)
    whole = len(string) // 8 * 8
    words = [int.from_bytes(string[at : at + 8], "little") for at in range(0, whole, 8)]
    words.append(int.from_bytes(string[whole:], "little") | (len(string) % 256) << 56)
    for word in words:
        state = _mix(state ^ word)
    return state


@given(strings, st.integers(0, MASK))
def test_hash_slices_equals_python(parts, seed):
    hashes = np.empty(len(parts), np.uint64)
    hash_slices(*slices_of(parts), np.uint64(seed), hashes)
    assert hashes.tolist() == [twin_hash(part, seed) for part in parts]


def test_hash_slices_keeps_its_golden_values():
    hashes = np.empty(3, np.uint64)
    hash_slices(*slices_of([b"", b"B/anna/a", b"BLOCK00/SES000/SA000S01"]), np.uint64(3), hashes)
    assert hashes.tolist() == [15474746157786732217, 8959156831816463214, 12476747202452040578]


@given(strings, st.integers(1, 4))
def test_find_component_equals_python(parts, component):
    parts = [part.replace(b"a", b"/") + b"/" * (len(part) % 2) for part in parts]
    firsts, lasts = np.empty(len(parts), np.int64), np.empty(len(parts), np.int64)
    data, starts, ends = slices_of(parts)
    find_component(data, starts, ends, component, firsts, lasts)
    found = [data[first:last].tobytes() for first, last in zip(firsts, lasts, strict=True)]
    assert found == [dict(enumerate(part.split(b"/"), 1)).get(component, b"") for part in parts]


@given(st.lists(list_bytes.map(b"".join)))
def test_find_improper_equals_python(keys):
    improper = [not {b"", b".", b".."}.isdisjoint(key.split(b"/")) or b"\0" in key for key in keys]
    assert find_improper(*slices_of(keys)) == (improper.index(True) if any(improper) else -1)


hashes_of_few = st.lists(st.sampled_from([0, 1, 2, 5, 2**63, MASK]))


@given(hashes_of_few)
def test_sum_pairs_equals_python_in_any_order(values):
    pairs = list(zip(values, values[::-1], strict=True))
    keys, speakers = (np.array(column, np.uint64) for column in (values, values[::-1]))
    sums = np.zeros(2, np.uint64)
    sum_pairs(keys[::-1], speakers[::-1], sums)
    mixed = [_mix(key ^ _mix(speaker + GOLDEN)) for key, speaker in pairs]
    assert sums.tolist() == [sum(mixed) & MASK, sum(_mix(value + GOLDEN) for value in mixed) & MASK]


@given(hashes_of_few, hashes_of_few)
def test_add_unseen_equals_a_set(first, second):
    table, unseen, seen = np.zeros(16, np.uint64), np.empty(200, np.int64), set()
    for values in (first[:100], second[:100]):
        expected = []
        for index, value in enumerate(max(1, value) for value in values):
            if value not in seen:
                expected.append(index)
            seen.add(value)
        count = add_unseen(np.array(values, np.uint64), table, unseen)
        assert unseen[:count].tolist() == expected
    assert set(table[table != 0].tolist()) == seen


@given(matrices, st.data())
def test_add_rows_equals_numpy(values, data):
    rows = np.array(data.draw(st.lists(st.integers(0, 4), min_size=len(values), max_size=len(values))), np.int64)
    sums = np.ones((5, values.shape[1]))
    expected = sums.copy()
    add_rows(values, rows, sums)
    np.add.at(expected, rows, values)
    np.testing.assert_array_equal(sums, expected)


WRONG_BLOCKS = {
    "more frames than there are": {"lengths": [4, 4]},
    "an utterance without frames": {"lengths": [0, 7]},
    "a negative length": {"lengths": [-3, 10]},
    "too few repeats": {"repeats": [1]},
    "too few labels": {"labels": [0]},
    "windows beyond the block's": {"last": 6},
    "a negative window": {"first": -1},
    "a negative row": {"row": -1},
    "too few rows": {"rows": 6},
    "too few starts": {"starts": 2},
}


@pytest.mark.parametrize("name", [*WRONG_BLOCKS, None])
def test_lay_out_stays_within_its_arrays_whatever_they_hold(name):
    """Seven frames in two utterances: 2 + 1 windows of 3 frames, 4 + 3 rows."""
    given = {
        "lengths": [4, 3],
        "repeats": [1, 1],
        "labels": [0, 1],
        "first": 0,
        "last": 3,
        "row": 0,
        "rows": 7,
        "starts": 3,
    }
    given |= WRONG_BLOCKS.get(name, {})
    frames, arena = np.ones((7, 2), np.uint32), np.zeros((given["rows"], 2), np.uint32)
    lengths, labels, repeats = (np.array(given[key], np.int32) for key in ("lengths", "labels", "repeats"))
    starts, found = np.empty(given["starts"], np.int64), np.empty(given["starts"], np.int64)
    block = frames, lengths, labels, repeats, given["first"], given["last"]
    assert lay_out(*block, 3, VALID, arena, given["row"], starts, found) == (7 if name is None else -1)
