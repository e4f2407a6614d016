"""What a run shows while it works."""

from rich.progress import Progress

from spkid_dist.console import RateColumn


def test_the_bar_shows_units_a_second():
    clock = iter(range(100))
    progress = Progress(RateColumn(), get_time=lambda: float(next(clock)), auto_refresh=False)
    task = progress.add_task("", total=10_000)
    column = RateColumn()
    assert column.render(progress.tasks[0]).plain == ""
    for _ in range(3):
        progress.advance(task, 2500)
    assert column.render(progress.tasks[0]).plain == "2,500/s"
