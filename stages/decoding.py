"""Images decoded by worker processes, slice by slice of the shards, for the stages that look at pixels."""

import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from stages.artifacts import damaged
from stages.errors import InputError
from stages.images import decode, read_row_group
from stages.progress import track


@dataclass(frozen=True)
class Slice:
    """Rows `start` to `stop` of one row group: what a worker decodes at a time."""

    file: Path
    row_group: int
    start: int
    stop: int


def slices_of(groups: Iterable[tuple[Path, int]], step: int) -> list[Slice]:
    """The rows of (shard, row group) pairs in slices of at most `step`, in order."""
    rows = [(*group, pq.ParquetFile(group[0]).metadata.row_group(group[1]).num_rows) for group in groups]
    return [Slice(file, number, start, min(start + step, n)) for file, number, n in rows for start in range(0, n, step)]


class Items(Dataset):
    """Work in `len` items; a subclass gives :meth:`item`.

    An item that cannot be read gives the :class:`InputError` instead, for :func:`in_order` to raise: raised here, it
    would arrive with the traceback of the worker in its message.
    """

    def item(self, index: int) -> Any:
        """Make one item. It may raise an :class:`InputError`."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Any:
        try:
            return self.item(index)
        except InputError as error:
            return error


class SlicedShards(Items):
    """Items that are made of slices of image shards, one of each."""

    def __init__(self, slices: list[Slice]) -> None:
        self.slices = slices
        # A worker gets several slices of the same row group; it is read once.
        self._row_group: tuple[tuple[Path, int] | None, list[tuple[int, bool, bytes]]] = None, []

    def __len__(self) -> int:
        return len(self.slices)

    def decoded(self, part: Slice) -> Iterator[tuple[int, bool, Image.Image]]:
        """(id, is_train, image) of a slice.

        Raises:
            InputError: the shard, or an image in it, cannot be read.
        """
        key = part.file, part.row_group
        try:
            if self._row_group[0] != key:
                self._row_group = key, list(read_row_group(*key))
        except (pa.ArrowException, OSError) as error:
            raise damaged(part.file, error) from None
        for index, is_train, data in self._row_group[1][part.start : part.stop]:
            try:
                yield index, is_train, decode(data)
            except ValueError as error:
                raise damaged(part.file, f"image {index} {error}") from None


def in_order(
    items: Items, workers: int, description: str | None = None, *, yielding: bool = False
) -> Generator[Any, None, None]:
    """All items, in order, made by `workers` processes (0: by this one). Closing it ends them at once.

    Args:
        description: of the progress bar; None for none.
        yielding: whether the processes leave the cores to this one while it computes on them. Otherwise one of its
            threads that loses its core keeps all others waiting, and the same work takes a half longer.

    Raises:
        InputError: an image cannot be read.
    """
    begin = _begin_yielding if yielding else _begin
    made = DataLoader(items, batch_size=None, num_workers=workers, worker_init_fn=begin)
    for item in track(made, description, len(items)) if description else made:
        if isinstance(item, InputError):
            raise item
        yield item


def _begin_yielding(number: int) -> None:
    if hasattr(os, "nice"):  # not on Windows
        os.nice(19)
    _begin(number)


def _begin(_: int) -> None:
    """Let a worker whose reader was interrupted say nothing: its thread that hands tensors over has nobody to tell."""
    say = sys.excepthook
    sys.excepthook = lambda kind, error, trace: None if issubclass(kind, ConnectionError) else say(kind, error, trace)


@contextmanager
def naming_lost_workers(advice: str) -> Iterator[None]:
    """For all of the work on the items of :func:`in_order`: PyTorch raises wherever that is when a process ends.

    Args:
        advice: what to set then, the end of the message; it begins with the key.

    Raises:
        InputError: a process was killed.
    """
    try:
        yield
    except RuntimeError as error:
        # An error in a process, not of one, has other words; "ancdata" is what ended in the middle of being sent.
        if "DataLoader worker (pid" not in str(error) and "ancdata" not in str(error):
            raise
    except (ConnectionError, EOFError):
        with suppress(RuntimeError):
            time.sleep(1)  # PyTorch hears of the end a moment later, and must not raise while things are tidied up
    else:
        return
    # Outside of the handler, since the error's traceback would keep the other processes for seconds.
    key, _, remedy = advice.partition(": ")
    raise InputError(
        f"{key}: a decoding process was killed, most likely for memory or shared memory (/dev/shm); {remedy}"
    )
