"""The augmentation of training images."""

import numpy as np
import pytest
import torch
from PIL import Image
from scene_shards import picture

from stages.extract.views import augmentation, augmented_views


def as_arrays(views: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(view) for view in views])


@pytest.mark.parametrize("size", [(64, 64), (32, 48), (224, 224)])
def test_augmented_views_have_the_size_of_the_model(size: tuple[int, int]) -> None:
    views = augmented_views(picture(), augmentation(size), 3, 0, 0)
    assert all((view.mode, view.size) == ("RGB", size[::-1]) for view in views)


def test_augmented_views_depend_on_seed_and_id_alone() -> None:
    transform = augmentation((32, 32))
    seeds = [(0, 0), (0, 1), (1, 0), (20_240_101, 0), (2**32 - 1, 10**9)]
    once = [as_arrays(augmented_views(picture(), transform, 2, *seed)) for seed in seeds]
    torch.rand(17)
    again = [as_arrays(augmented_views(picture(), transform, 2, *seed)) for seed in reversed(seeds)][::-1]
    np.testing.assert_array_equal(once, again)
    assert len({views.tobytes() for views in once}) == len(seeds)
    more = as_arrays(augmented_views(picture(), transform, 5, 0, 0))
    np.testing.assert_array_equal(more[:2], once[0])


def test_augmenting_leaves_the_global_generator_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    augmented_views(picture(), augmentation((32, 32)), 2, 0, 0)
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)


def test_augmentation_does_each_of_its_operations() -> None:
    """Over many views: crops, flips, changed colours, some grey ones and some blurred ones."""
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0] = np.linspace(40, 220, 64)  # brighter to the right
    ramp[::2, ::2, 1] = 255  # fine structure
    views = as_arrays(augmented_views(Image.fromarray(ramp), augmentation((64, 64)), 200, 0, 0)).astype(float)
    grey = (views.max(axis=3) - views.min(axis=3)).max(axis=(1, 2)) == 0
    assert 0.1 < grey.mean() < 0.3
    flipped = views[:, :, :16].mean(axis=(1, 2, 3)) > views[:, :, 48:].mean(axis=(1, 2, 3))
    assert 0.4 < flipped.mean() < 0.6
    assert views.mean(axis=(1, 2, 3)).std() > 5
