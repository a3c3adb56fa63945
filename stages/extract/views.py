"""The augmentation of UHSCM's published training."""

import torch
from PIL import Image
from torchvision.transforms import v2

from stages.device import derived_seed


def augmentation(size: tuple[int, int], blur: int | None = None) -> v2.Transform:
    """Augment an RGB image to `size` (height, width) pixels.

    Source: UHSCM's released training: resized crop with scale 0.5-1, flip, colour jitter (p 0.7), grey (p 0.2), blur
    (p 0.5).

    Args:
        blur: size of the blur's kernel, 3 in the release; None: a tenth of the image, as in SimCLR, whose blur it is.
    """
    kernel = blur or max(3, min(size) // 10 // 2 * 2 + 1)
    return v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.5, 1.0)),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.7),
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], p=0.5),
    ])  # fmt: skip


def augmented_views(
    image: Image.Image, transform: v2.Transform, views: int, seed: int, index: int
) -> list[Image.Image]:
    """`views` augmentations of one image that depend on (seed, index) alone, whichever process makes them."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, index))  # of the CPU alone, which draws all of it
        return [transform(image) for _ in range(views)]
