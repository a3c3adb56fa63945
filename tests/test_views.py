"""The augmentation of training images."""

import numpy as np
import pytest
import torch
from PIL import Image
from scene_shards import picture
from torchvision.transforms import v2

from stages.device import derived_seed
from stages.extract.views import augmentation, augmented_views, blurred


@pytest.mark.parametrize("size", [(64, 64), (32, 48), (224, 224)])
def test_augmented_views_have_the_size_of_the_model(size: tuple[int, int]) -> None:
    views = augmented_views(picture(), augmentation(size), 3, 0, 0)
    assert views.shape == (3, *size, 3)
    assert views.dtype == np.uint8


def test_augmented_views_depend_on_seed_and_id_alone() -> None:
    made = augmentation((32, 32))
    seeds = [(0, 0), (0, 1), (1, 0), (20_240_101, 0), (2**32 - 1, 10**9)]
    once = [augmented_views(picture(), made, 2, *seed) for seed in seeds]
    torch.rand(17)
    again = [augmented_views(picture(), made, 2, *seed) for seed in reversed(seeds)][::-1]
    np.testing.assert_array_equal(once, again)
    assert len({views.tobytes() for views in once}) == len(seeds)
    more = augmented_views(picture(), made, 5, 0, 0)
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
    views = augmented_views(Image.fromarray(ramp), augmentation((64, 64)), 200, 0, 0).astype(float)
    grey = (views.max(axis=3) - views.min(axis=3)).max(axis=(1, 2)) == 0
    assert 0.1 < grey.mean() < 0.3
    flipped = views[:, :, :16].mean(axis=(1, 2, 3)) > views[:, :, 48:].mean(axis=(1, 2, 3))
    assert 0.4 < flipped.mean() < 0.6
    assert views.mean(axis=(1, 2, 3)).std() > 5


def of_torchvision(image: Image.Image, size: tuple[int, int], kernel: int, views: int, index: int) -> np.ndarray:
    """The same augmentation, put together from torchvision's transforms."""
    transform = v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.5, 1.0)),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.7),
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], p=0.5),
    ])  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(0, index))
        return np.stack([np.asarray(transform(image)) for _ in range(views)])


@pytest.mark.parametrize(
    ("shape", "size", "blur", "kernel"),
    [
        ((40, 30), (64, 64), None, 7), ((90, 120), (32, 48), None, 3), ((256, 200), (224, 224), None, 23),
        ((300, 20), (64, 64), 3, 3), ((20, 300), (64, 64), None, 7), ((1, 1), (8, 8), None, 3),
    ],
)  # fmt: skip
def test_views_are_those_of_torchvision(
    shape: tuple[int, int], size: tuple[int, int], blur: int | None, kernel: int
) -> None:
    """Up to rounding in the blur, whose weights are summed in another order here."""
    views = 40 if size[0] < 200 else 8
    image = picture(1, shape) if min(shape) > 4 else Image.new("RGB", shape, "teal")
    found = augmented_views(image, augmentation(size, blur), views, 0, 3)
    difference = np.abs(of_torchvision(image, size, kernel, views, 3) - found.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize(("kernel", "sigma"), [(3, 2.0), (23, 0.1), (23, 2.0), (23, 4.0)])
def test_the_blur_is_a_product_with_the_kernel(kernel: int, sigma: float) -> None:
    """Of an image that is not square, and whose edges are mirrored."""
    image = np.random.default_rng(0).integers(0, 256, (50, 37, 3), np.uint8)
    distance = np.arange(kernel) - kernel // 2
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    edge = kernel // 2
    padded = np.pad(image.astype(float), ((edge, edge), (edge, edge), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(0, 1))
    expected = np.einsum("ijckl,kl->ijc", windows, weights)
    assert np.abs(blurred(image, kernel, sigma) - expected).max() < 0.51
