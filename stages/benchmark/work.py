"""Measurements and trials, carried out: what is missing, by processes of one thread each, and by one benchmark."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from filelock import FileLock, Timeout

from stages.benchmark.cells import Cell, trains_on_pixels
from stages.benchmark.prepare import ROOM
from stages.benchmark.search import Trial
from stages.errors import InputError
from stages.progress import progress_bar
from stages.workers import run_workers


@contextmanager
def alone() -> Iterator[None]:
    """Keep a second benchmark out of the working directories.

    Raises:
        InputError: there is one already.
    """
    ROOM.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(ROOM / "lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"{ROOM}: another benchmark is at work there; wait for it to end") from None


def run_missing(work: Sequence[Cell | Trial], workers: int, task: str) -> None:
    """Run what has no file yet, shared out among processes of one thread each."""
    missing = [piece for piece in work if not piece.file.exists()]
    unfinished = {piece.work for piece in missing}
    for place in {piece.work.parent for piece in work}:
        for left_over in place.glob("*"):
            if left_over not in unfinished:
                shutil.rmtree(left_over, ignore_errors=True)
    if not missing:
        return
    if any(trains_on_pixels(piece.params) for piece in missing):
        workers = 1  # a process of a process may have none of its own
    # In turns, since neighbours take about as long as each other.
    shares = [missing[start::workers] for start in range(min(workers, len(missing)))]
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # of the processes that are started here
    finished = run_workers(run_all, shares, task)
    with progress_bar(task, len(work)) as bar:
        bar.advance(len(work) - len(missing))
        for name in finished:
            bar.advance(note=name)


def run_all(work: Sequence[Cell | Trial]) -> Iterator[str]:
    """Run one piece after the other; the name of each that is done."""
    for piece in work:
        lock = piece.work.parent.with_name("locks") / f"{piece.work.name}.lock"
        lock.parent.mkdir(exist_ok=True)
        # A process whose parent was killed still finishes what it had begun: that is waited for, not begun twice.
        with FileLock(lock):
            if not piece.file.exists():
                piece.run()
        yield str(piece)
