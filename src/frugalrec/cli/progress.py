"""Progress on standard error: one line a stage, a bar where it takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from frugalrec.runs import Observer, Stage


class RateColumn(ProgressColumn):
    """Shows the steps (rows, users, batches) a second, over the last half minute."""

    def render(self, task: Task) -> Text:
        """Return the rate with about three digits, or nothing while it is not known."""
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s")


class StageBars(Observer):
    """Shows a spinner and bar for the stage that runs, and a line for each finished one."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> StageBars:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self._bars.stop()

    def started(self, name: str) -> None:
        """Show a bar for the stage."""
        self._tasks[name] = self._bars.add_task(name, total=None)

    def progressed(self, name: str, done: int, total: int) -> None:
        """Move the stage's bar."""
        if name in self._tasks:
            self._bars.update(self._tasks[name], completed=done, total=total)

    def finished(self, stage: Stage) -> None:
        """Replace the bar by a line."""
        task = self._tasks.pop(stage.name, None)
        if task is not None:
            self._bars.remove_task(task)
        cost = "found finished" if stage.reused else f"{stage.usage.wall_s:.1f} s"
        self.console.print(f"[green]✓[/] {stage.name:28} {cost}", highlight=False)


@contextmanager
def byte_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a download bar; yields ``progress(bytes_so_far, total)``."""
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner; yields a function that changes its text."""
    with Console(stderr=True).status(text) as status:
        yield status.update
