"""How long `spkid bench` takes is told beforehand, and corrected by what has been."""

import re

import pytest

from spkid_dist.bench.timetable import Timetable, expected_seconds, readable_seconds
from spkid_dist.config.bench import BenchConfig

pytestmark = pytest.mark.fast


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def table():
    clock, lines = Clock(), []
    return Timetable({"a": 20.0, "b": 40.0, "c": 60.0}, lines.append, clock), clock, lines


def test_all_stages_are_announced(table):
    timetable, _, lines = table
    timetable.announce()
    assert lines == ["this takes about 2 minutes: a 20 s, b 40 s, c 60 s"]


def test_the_time_left_follows_from_what_was_expected_and_from_what_was_taken(table):
    timetable, clock, lines = table
    timetable.begin("a")
    assert timetable.left() == 120
    clock.now += 5
    assert timetable.left() == 115  # too early to tell by the share
    timetable.at(0.5)
    assert timetable.left() == 105  # as long again
    clock.now += 25
    timetable.end()  # 30 s instead of 20
    timetable.begin("b")
    assert timetable.left() == 150
    assert lines[-1] == "measuring: b (2 of 3); about 2 minutes left"


def test_a_line_says_how_far_a_long_stage_is_but_not_all_the_time(table):
    timetable, clock, lines = table
    timetable.begin("c")
    for tenth in range(1, 10):
        clock.now += 6
        timetable.at(tenth / 10)
    said = [line for line in lines if line.startswith("  c: ")]
    assert said == [
        f"  c: {share}% done; about {left} left" for share, left in ((30, "2 minutes"), (60, "84 s"), (90, "66 s"))
    ]


def test_a_short_stage_says_nothing_about_the_others():
    clock = Clock()
    timetable = Timetable({"a": 1.0, "b": 50.0}, lambda _: None, clock)
    timetable.begin("a")
    clock.now += 9
    timetable.end()
    assert timetable.left() == 50


def test_a_slow_machine_does_fewer_steps_and_not_more_minutes():
    config = BenchConfig()
    slow, usual = (sum(expected_seconds(config, rate, 20, [1, 2]).values()) for rate in (1e3, 1.6e5))
    assert usual < slow < 2 * usual
    assert slow == sum(expected_seconds(config, None, 20, [1, 2]).values())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1, "1 s"), (42.4, "42 s"), (100.0, "2 minutes"), (1000.0, "17 minutes"), (9000.0, "2.5 hours")],
)
def test_durations_are_readable(seconds, text):
    assert readable_seconds(seconds) == text
    assert re.fullmatch(r"[\d.]+ \w+", text)
