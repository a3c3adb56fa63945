"""The embedded data set: scenes rendered on all cores."""

import io
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

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
    workers = os.cpu_count() or 1
    # Spawned, since a fork of a process with threads (progress bar, decoders) may deadlock.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    pending: deque = deque()
    try:
        for start in starts:
            with _interrupt_blocked():  # submitting starts workers, which inherit it
                pending.append(pool.submit(render_chunk, seed, start, min(start + CHUNK, count)))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool:
        raise OutsideError("a rendering process was killed from outside; free some memory and run it again") from None
    finally:
        pool.shutdown(cancel_futures=True)


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


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


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
