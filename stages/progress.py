"""One progress bar for all long work: on the terminal, and silent anywhere else."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

_silent = ContextVar("silent", default=False)


@contextmanager
def silent() -> Iterator[None]:
    """No bars in this block: its work is one step of another bar."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator["Bar"]:
    """A bar over `total` units (None: unknown) on standard error; nothing is printed when that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=_silent.get() or not sys.stderr.isatty()) as progress:
        yield Bar(progress, progress.add_task(description, total=total, note=""))


class Bar:
    """The handle that :func:`progress_bar` gives."""

    def __init__(self, progress: Progress, task: int) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._progress.update(self._task, advance=steps, note=note)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` under a bar."""
    iterator = iter(items)  # may fork processes: before the bar's thread can be in the middle of anything
    with progress_bar(description, total) as bar:
        for item in iterator:
            yield item
            bar.advance()
