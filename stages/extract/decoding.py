"""Slices of image shards, preprocessed and augmented by worker processes."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stages.artifacts import damaged
from stages.clip import ClipModel
from stages.decoding import Slice, SlicedShards
from stages.extract.views import augmentation, augmented_views


def slices_of_pictures(groups: Iterable[tuple[Path, int]], views: int, at_most: int) -> list[Slice]:
    """The rows of (shard, row group) pairs in slices of at most `at_most` pictures (or one image), in order.

    A training image counts as 1 + `views` pictures: what waits between the processes is bounded.

    Raises:
        InputError: a shard cannot be read.
    """
    slices = []
    for file, number in groups:
        try:
            rows = pq.ParquetFile(file).read_row_group(number, columns=["is_train"])["is_train"]
        except (pa.ArrowException, OSError) as error:
            raise damaged(file, error) from None
        pictures = np.cumsum(1 + views * rows.to_numpy().astype(int))
        start = 0
        while start < len(pictures):
            before = pictures[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(pictures, before + at_most, "right")))
            slices.append(Slice(file, number, start, stop))
            start = stop
    return slices


class DecodedSlices(SlicedShards):
    """Item i: the pictures of slice i, uint8 (b + t * views, h, w, 3), and b: its b images, then the `views`
    augmentations of each of its t training images. An image is decoded once for all of them.
    """

    def __init__(self, slices: list[Slice], clip: ClipModel, views: int, seed: int) -> None:
        super().__init__(slices)
        self.views, self.seed = views, seed
        self.preprocess = clip.preprocess
        self.augmentation = augmentation(clip.image_size)

    def item(self, index: int) -> tuple[torch.Tensor, int]:
        images, augmented = [], []
        for image_id, is_train, image in self.decoded(self.slices[index]):
            images.append(self.preprocess(image))
            if is_train:
                views = augmented_views(image, self.augmentation, self.views, self.seed, image_id)
                augmented += torch.from_numpy(views)
        return torch.stack(images + augmented), len(images)
