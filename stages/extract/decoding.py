"""Slices of image shards, preprocessed and augmented by worker processes."""

import torch

from stages.clip import ClipModel
from stages.decoding import Slice, SlicedShards
from stages.extract.views import augmentation, augmented_views


class DecodedSlices(SlicedShards):
    """Item i: the images of slice i, float32 (b, 3, h, w), and `views` augmentations of its t training images,
    float32 (t, views, 3, h, w).
    """

    def __init__(self, slices: list[Slice], clip: ClipModel, views: int, seed: int) -> None:
        super().__init__(slices)
        self.views, self.seed = views, seed
        self.preprocess = clip.preprocess
        self.transform = augmentation(clip.image_size)

    def item(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, views = [], []
        for image_id, is_train, image in self.decoded(self.slices[index]):
            images.append(self.preprocess(image))
            if is_train:
                augmented = augmented_views(image, self.transform, self.views, self.seed, image_id)
                views.append(torch.stack([self.preprocess(view) for view in augmented]))
        none = torch.empty(0, self.views, *images[0].shape)
        return torch.stack(images), torch.stack(views) if views else none
