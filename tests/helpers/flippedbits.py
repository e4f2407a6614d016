"""Damage of single bits and bytes, drawn from a seed."""

import random


def flipped(data, at, bit):
    """The bytes with one bit turned."""
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def random_flips(data, count, seed=0):
    """(place, the bytes with one bit of it turned), `count` times."""
    draw = random.Random(seed)
    for _ in range(count):
        at = draw.randrange(len(data))
        yield at, flipped(data, at, draw.randrange(8))


def with_random_bytes(data, count, seed=0):
    """The bytes with `count` of them replaced by others."""
    draw, changed = random.Random(seed), bytearray(data)
    for at in draw.sample(range(len(data)), count):
        changed[at] ^= draw.randrange(1, 256)
    return bytes(changed)
