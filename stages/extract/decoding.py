"""Slices of image shards, decoded and augmented by worker processes."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch.utils.data import Dataset

from stages.clip import ClipModel
from stages.extract.views import augmentation, augmented_views
from stages.images import decode, read_row_group


@dataclass(frozen=True)
class Slice:
    """Rows `start` to `stop` of one row group: what a worker decodes at a time."""

    file: Path
    row_group: int
    start: int
    stop: int


# A worker gets several slices of the same row group; it is read once.
_row_group = lru_cache(maxsize=1)(lambda file, group: list(read_row_group(file, group)))


class DecodedSlices(Dataset):
    """Item i: the images of slice i, float32 (b, 3, h, w), and `views` augmentations of its t training images,
    float32 (t, views, 3, h, w)."""

    def __init__(self, slices: list[Slice], clip: ClipModel, views: int, seed: int) -> None:
        self.slices, self.views, self.seed = slices, views, seed
        self.preprocess = clip.preprocess
        self.transform = augmentation(clip.image_size)

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        part = self.slices[item]
        images, views = [], []
        for index, is_train, data in _row_group(part.file, part.row_group)[part.start : part.stop]:
            image = decode(data)
            images.append(self.preprocess(image))
            if is_train:
                augmented = augmented_views(image, self.transform, self.views, self.seed, index)
                views.append(torch.stack([self.preprocess(view) for view in augmented]))
        none = torch.empty(0, self.views, *images[0].shape)
        return torch.stack(images), torch.stack(views) if views else none
