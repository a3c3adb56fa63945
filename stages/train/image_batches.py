"""Training images as batches: kept encoded in one file, decoded and augmented by worker processes."""

from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from stages.artifacts import IMAGES, damaged, replacing
from stages.backbone import evaluation_pixels, squashed
from stages.decoding import Items, in_order
from stages.extract.views import augmentation, augmented_views
from stages.hashnet import Network, relaxed_codes
from stages.images import ImageShards, decode, read_row_group
from stages.progress import track
from stages.train.batches import batches
from stages.train.distributed import ALONE, Ranks

#: Size of the blur's kernel in UHSCM's released training.
BLUR = 3


class StoredImages:
    """Encoded images, one after the other in a file, which each process opens for itself.

    Attributes:
        ids: (n,) of the images; ends: (n,) where each one ends in the file.
    """

    def __init__(self, path: Path, ids: np.ndarray, ends: np.ndarray) -> None:
        self.path, self.ids, self.ends = path, ids, ends

    def __len__(self) -> int:
        return len(self.ids)

    def decoded(self, row: int) -> Image.Image:
        """One image, RGB.

        Raises:
            InputError: it cannot be decoded.
        """
        start = int(self.ends[row - 1]) if row else 0
        with open(self.path, "rb") as file:
            file.seek(start)
            data = file.read(int(self.ends[row]) - start)
        try:
            return decode(data)
        except ValueError as error:
            raise damaged(IMAGES, f"image {self.ids[row]} {error}") from None


def store(shards: ImageShards, path: Path) -> StoredImages:
    """Copy the training images out of the shards, whose row groups are too large to be read for each image.

    Raises:
        InputError: a shard cannot be read.
    """
    ids, sizes = [], []
    groups = shards.row_groups()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for shard, group in track(groups, "collect", len(groups)):
            try:
                rows = [(index, data) for index, is_train, data in read_row_group(shard, group) if is_train]
            except (pa.ArrowException, OSError) as error:
                raise damaged(shard, error) from None
            for index, data in rows:
                ids.append(index)
                sizes.append(file.write(data))
    return StoredImages(path, np.array(ids), np.cumsum(sizes))


class AugmentedBatches(Items):
    """Item i: `views` augmentations of each image of batch i, uint8 (views * b, 3, size, size), view by view."""

    def __init__(self, images: StoredImages, parts: list[Tensor], size: int, views: int, seed: int) -> None:
        self.images, self.parts, self.size, self.views, self.seed = images, parts, size, views, seed
        self.augmentation = augmentation((size, size), BLUR)

    def __len__(self) -> int:
        return len(self.parts)

    def item(self, index: int) -> Tensor:
        rows = self.parts[index].tolist()
        made = torch.empty(self.views, len(rows), 3, self.size, self.size, dtype=torch.uint8)
        for place, row in enumerate(rows):
            image = squashed(self.images.decoded(row), self.size)
            views = augmented_views(image, self.augmentation, self.views, self.seed, int(self.images.ids[row]))
            made[:, place] = torch.from_numpy(views).permute(0, 3, 1, 2)
        return made.flatten(0, 1)


class PlainBatches(Items):
    """Item i: the images of `rows`, from i * step on, as they are encoded: uint8 (b, 3, size, size)."""

    def __init__(self, images: StoredImages, rows: range, size: int, step: int) -> None:
        self.images, self.rows, self.size, self.step = images, rows, size, step

    def __len__(self) -> int:
        return -(-len(self.rows) // self.step)

    def item(self, index: int) -> Tensor:
        rows = self.rows[index * self.step : (index + 1) * self.step]
        return torch.stack([evaluation_pixels(self.images.decoded(row), self.size) for row in rows])


class ImageBatches:
    """:class:`stages.train.batches.Batches` of images."""

    def __init__(
        self, images: StoredImages, size: int, batch_size: int, workers: int, device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.images, self.size, self.batch_size, self.ranks = images, size, batch_size, ranks
        self.read, self.device = partial(in_order, workers=workers, yielding=device.type == "cpu"), device
        self.n = len(images)

    def epoch(self, views: int, seed: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        views = max(views, 1)
        parts = list(batches(self.n, self.batch_size, torch.Generator().manual_seed(seed)))
        mine = [rows[self.ranks.part(len(rows))] for rows in parts]
        with closing(self.read(AugmentedBatches(self.images, mine, self.size, views, seed))) as made:
            for rows, images in zip(parts, made, strict=True):
                yield images.to(self.device), rows.repeat(views).to(self.device)

    def all_codes(self, net: Network) -> Tensor:
        rows = range(self.n)[self.ranks.part(self.n)]
        with closing(self.read(PlainBatches(self.images, rows, self.size, net.CHUNK))) as made:
            return torch.cat([relaxed_codes(net, images.to(self.device)) for images in made])
