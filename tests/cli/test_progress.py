import pytest

pytest.importorskip("rich")

from rich.progress import Progress

from frugalrec.cli.progress import RateColumn


@pytest.mark.parametrize(("scale", "shown"), [(1, "50/s"), (1000, "50,000/s"), (0.01, "0.5/s")])
def test_the_rate_is_steps_a_second(scale, shown):
    clock = [0.0]
    bars = Progress(get_time=lambda: clock[0], disable=True)
    task = bars.add_task("rows", total=1000 * scale)
    column = RateColumn()
    assert column.render(bars.tasks[0]).plain == ""
    for second, done in ((1.0, 50 * scale), (3.0, 150 * scale)):  # 100 steps in two seconds
        clock[0] = second
        bars.update(task, completed=done)
    assert column.render(bars.tasks[0]).plain == shown
