"""Worker processes that end cleanly: with their parent, with Ctrl-C, and not unnoticed when one of them is killed."""

import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

from stages.errors import InputError, OutsideError

T = TypeVar("T")
R = TypeVar("R")

#: What a worker says at the end; nothing else that it says is None.
DONE = None

#: Errors that the parent raises in place of the worker.
PASSED_ON = (InputError, OutsideError, OSError, MemoryError)


def cores() -> int:
    """Cores that this process may use: its share where ``torchrun`` started several on this machine."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, there // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def shared_out(items: Sequence[T], workers: int) -> list[Sequence[T]]:
    """`items` in at most `workers` consecutive shares of about the same length; so few that starting them pays."""
    count = max(1, min(workers, (len(items) + 1) // 2))
    edges = [len(items) * number // count for number in range(count + 1)]
    return [items[start:stop] for start, stop in itertools.pairwise(edges)]


def run_threads(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """``function(item)`` for every item, in order, by threads: for work outside of Python, which needs no process.

    After an error or Ctrl-C, what has begun is finished and nothing else begins.
    """
    threads = ThreadPoolExecutor(workers)
    try:
        yield from threads.map(function, items)
    finally:
        threads.shutdown(cancel_futures=True)


def run_workers(function: Callable[[T], Iterable[R]], shares: Sequence[T], task: str) -> Iterator[R]:
    """All results of ``function(share)`` for every share, each in a process of its own, as they come.

    A single share is worked on in this process.

    Args:
        function: a function of a module, that can be imported in a new process.
        shares: what it is applied to; shares and results are pickled.
        task: what the messages call the work.

    Raises:
        InputError, OutsideError, OSError, MemoryError: as `function` does.
        OutsideError: a process was killed from outside.
        RuntimeError: `function` failed otherwise; the process has printed the traceback.
    """
    if len(shares) == 1:
        yield from function(shares[0])
        return
    # Spawned, since a fork of a process with threads (progress bar, decoders) may deadlock. Each worker has a pipe of
    # its own: a pool's workers share one, and when one is killed while it writes, the pool waits for ever.
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # starting it would let Ctrl-C through again
    workers: dict[Connection, BaseProcess] = {}
    try:
        for share in shares:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(function, share, sender), daemon=True)
            with _interrupt_blocked(), _main_left_out():  # the worker inherits the first
                process.start()
            sender.close()  # now nobody but the worker has it: its end is the end of the pipe
            workers[receiver] = process
        running = set(workers)
        while running:
            for receiver in wait(running):
                result = _received(receiver, workers[receiver], task)
                if result is DONE:
                    running.remove(receiver)
                else:
                    yield result
    finally:
        for receiver, process in workers.items():
            receiver.close()
            process.terminate()
            process.join()


def _received(receiver: Connection, process: BaseProcess, task: str) -> object:
    try:
        result = receiver.recv()
    except (EOFError, OSError):
        process.join()
        if process.exitcode > 0:
            raise RuntimeError(f"{task} failed in a worker process") from None
        if process.exitcode != -signal.SIGKILL:
            raise OutsideError(
                f"{task}: a worker process was ended by {signal.Signals(-process.exitcode).name}; run it with one "
                f"worker to see where"
            ) from None
        raise OutsideError(
            f"{task}: a worker process was killed from outside; free some memory and run it again"
        ) from None
    if isinstance(result, PASSED_ON):
        raise result
    return result


def _work(function: Callable[[T], Iterable[R]], share: T, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    results = iter(function(share))
    while True:
        try:
            result = next(results, DONE)
        except PASSED_ON as error:
            result = error
        try:
            sender.send(result)
        except OSError:  # the parent has gone
            return
        if result is DONE or isinstance(result, PASSED_ON):
            return


@contextmanager
def _main_left_out() -> Iterator[None]:
    """Spare a spawned process the main script, which it would import when it starts: that takes time, serves nothing,
    and never ends where the script calls us without looking whether it is the main one.
    """
    main = vars(sys.modules["__main__"])
    told_by = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main.update(dict.fromkeys(told_by))
    try:
        yield
    finally:
        main.update(told_by)


@contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Hold Ctrl-C back: it reaches the workers as well, and would end those that are just starting with a traceback."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
