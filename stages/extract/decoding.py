"""Slices of image shards, decoded and augmented by worker processes."""

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from stages.artifacts import damaged
from stages.clip import ClipModel
from stages.errors import InputError
from stages.extract.views import augmentation, augmented_views
from stages.images import decode, read_row_group
from stages.progress import track


@dataclass(frozen=True)
class Slice:
    """Rows `start` to `stop` of one row group: what a worker decodes at a time."""

    file: Path
    row_group: int
    start: int
    stop: int


class DecodedSlices(Dataset):
    """Item i: the images of slice i, float32 (b, 3, h, w), and `views` augmentations of its t training images,
    float32 (t, views, 3, h, w).

    A slice that cannot be read gives the :class:`InputError` instead, for the reader to raise: raised here, it would
    arrive with the traceback of the worker in its message.
    """

    def __init__(self, slices: list[Slice], clip: ClipModel, views: int, seed: int) -> None:
        self.slices, self.views, self.seed = slices, views, seed
        self.preprocess = clip.preprocess
        self.transform = augmentation(clip.image_size)
        # A worker gets several slices of the same row group; it is read once.
        self._row_group: tuple[tuple[Path, int] | None, list[tuple[int, bool, bytes]]] = None, []

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor] | InputError:
        try:
            return self._transformed(self.slices[item])
        except InputError as error:
            return error

    def _decoded(self, part: Slice) -> Iterator[tuple[int, bool, Image.Image]]:
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

    def _transformed(self, part: Slice) -> tuple[torch.Tensor, torch.Tensor]:
        images, views = [], []
        for index, is_train, image in self._decoded(part):
            images.append(self.preprocess(image))
            if is_train:
                augmented = augmented_views(image, self.transform, self.views, self.seed, index)
                views.append(torch.stack([self.preprocess(view) for view in augmented]))
        none = torch.empty(0, self.views, *images[0].shape)
        return torch.stack(images), torch.stack(views) if views else none


def decoded_slices(dataset: DecodedSlices, workers: int) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
    """The items of `dataset`, in order, made by `workers` processes. Closing it ends them at once.

    Raises:
        InputError: an image cannot be read.
    """
    for item in track(DataLoader(dataset, batch_size=None, num_workers=workers), "extract", len(dataset)):
        if isinstance(item, InputError):
            raise item
        yield item


@contextmanager
def naming_lost_workers() -> Iterator[None]:
    """For all of the work on the items of :func:`decoded_slices`: PyTorch raises wherever that is when a process ends.

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
    raise InputError(
        "extract.workers: a decoding process was killed, most likely for memory or shared memory (/dev/shm); "
        "set a smaller extract.batch_size, or extract.workers: 0"
    )
