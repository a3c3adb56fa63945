"""The embedded data set: scenes rendered on all cores."""

import io
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from PIL import Image

from stages.download.source import Record, Source
from stages.errors import OutsideError
from stages.scenes.catalogue import SHOWN
from stages.scenes.render import render_scene

#: Scenes that a worker renders at a time.
CHUNK = 100
#: Below this many scenes, starting workers costs more than they save.
WORTH_WORKERS = 500


def scenes(seed: int, count: int) -> Source:
    """`count` scenes of the series `seed`, coded as PNG."""
    return Source(
        name="scenes",
        class_names=tuple(SHOWN),
        licence="MIT",
        source=f"rendered by stages.scenes, seed {seed}",
        size=count,
        records=_records(seed, count),
    )


def _records(seed: int, count: int) -> Iterator[Record]:
    starts = range(0, count, CHUNK)
    if count < WORTH_WORKERS:
        for start in starts:
            yield from render_chunk(seed, start, min(start + CHUNK, count))
        return
    # Spawned, since a fork of a process with threads (progress bar, decoders) may deadlock. Each worker has a pipe of
    # its own: a pool's workers share one, and when one is killed while it writes, the pool waits for ever.
    context = multiprocessing.get_context("spawn")
    n_workers = min(os.cpu_count() or 1, len(starts))
    resource_tracker.ensure_running()  # starting it would let Ctrl-C through again
    workers: list[tuple[BaseProcess, Connection]] = []
    try:
        for first in range(n_workers):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(seed, count, first, n_workers, sender), daemon=True)
            with _interrupt_blocked():  # which the worker inherits
                process.start()
            sender.close()  # now nobody but the worker has it: its end is the end of the pipe
            workers.append((process, receiver))
        for number in range(len(starts)):
            yield from _received(*workers[number % len(workers)])
    finally:
        for process, receiver in workers:
            receiver.close()
            process.terminate()
            process.join()


def _received(process: BaseProcess, receiver: Connection) -> list[Record]:
    try:
        return receiver.recv()
    except (EOFError, OSError):
        process.join()
    if process.exitcode > 0:  # it has printed why
        raise RuntimeError("rendering failed")
    raise OutsideError("a rendering process was killed from outside; free some memory and run it again")


def _work(seed: int, count: int, first: int, workers: int, sender: Connection) -> None:
    """Render every chunk whose number is `first` modulo `workers`, until the parent has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    for start in range(first * CHUNK, count, workers * CHUNK):
        records = render_chunk(seed, start, min(start + CHUNK, count))
        try:
            sender.send(records)
        except BrokenPipeError:
            return


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


def render_chunk(seed: int, start: int, stop: int) -> list[Record]:
    """Scenes `start` to `stop` - 1 as records."""
    index_of = {name: index for index, name in enumerate(SHOWN)}
    records = []
    for index in range(start, stop):
        scene = render_scene(seed, index)
        coded = io.BytesIO()
        Image.fromarray(scene.pixels).save(coded, "PNG", compress_level=1)
        labels = tuple(sorted(index_of[name] for name in scene.labels))
        records.append(Record(coded.getvalue(), f"scene-{index:06d}.png", labels))
    return records
