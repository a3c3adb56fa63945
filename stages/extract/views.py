"""The augmentation of UHSCM's published training."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from stages.device import derived_seed

#: Of a crop: its share of the image, and the logarithm of width by height.
SCALE = (0.5, 1.0)
LOG_RATIO = torch.log(torch.tensor((3 / 4, 4 / 3)))
#: Crops that are drawn until one lies in the image.
ATTEMPTS = 10
#: Probabilities of the flip, the colour jitter, the grey image and the blur.
FLIP, JITTER, GREY, BLUR = 0.5, 0.7, 0.2, 0.5
#: Factors of brightness, contrast and saturation are within 1 +- STRENGTH; the hue turns by up to HUE of the circle.
STRENGTH, HUE = 0.4, 0.1
#: Standard deviation of the blur, in pixels.
SIGMA = (0.1, 2.0)
#: Beyond so many standard deviations a weight of the blur is below 4e-6 of the greatest, and left out.
REACH = 5
#: Rows that are blurred at a time, so that what comes between stays in the cache.
BLOCK = 32

Operation = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Augmentation:
    """What a view may look like.

    Attributes:
        size: (height, width) in pixels.
        kernel: size of the blur's kernel, odd.
    """

    size: tuple[int, int]
    kernel: int


@dataclass(frozen=True)
class Draws:
    """One view, as drawn.

    Attributes:
        box: the crop: left, upper, right, lower.
        colours: changes of the colours, in the order in which they are made.
        sigma: standard deviation of the blur, in pixels; None: no blur.
    """

    box: tuple[int, int, int, int]
    flip: bool
    colours: tuple[Operation, ...]
    sigma: float | None


def augmentation(size: tuple[int, int], blur: int | None = None) -> Augmentation:
    """Augment an RGB image to `size` (height, width) pixels.

    Source: UHSCM's released training: resized crop with scale 0.5-1, flip, colour jitter (p 0.7), grey (p 0.2), blur
    (p 0.5).

    Args:
        blur: size of the blur's kernel, 3 in the release; None: a tenth of the image, as in SimCLR, whose blur it is.
    """
    return Augmentation(size, blur or max(3, min(size) // 10 // 2 * 2 + 1))


def augmented_views(image: Image.Image, made: Augmentation, views: int, seed: int, index: int) -> np.ndarray:
    """`views` augmentations of one RGB image that depend on (seed, index) alone, whichever process makes them.

    The numbers drawn, and but for rounding the pixels, are those of torchvision's transforms of the same names
    (``v2.RandomResizedCrop``, ``RandomHorizontalFlip``, ``ColorJitter``, ``RandomGrayscale``, ``GaussianBlur``), which
    take several times as long.

    Returns:
        uint8 (views, height, width, 3).
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, index))
    result = np.empty((views, *made.size, 3), np.uint8)
    for view in result:
        view[:] = _view(image, made, _draw(image.size, generator))
    return result


def _view(image: Image.Image, made: Augmentation, draws: Draws) -> np.ndarray:
    height, width = made.size
    image = image.crop(draws.box).resize((width, height), Image.Resampling.BILINEAR)
    if draws.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for change in draws.colours:
        image = change(image)
    pixels = np.asarray(image)
    return pixels if draws.sigma is None else blurred(pixels, made.kernel, draws.sigma)


def _draw(size: tuple[int, int], generator: torch.Generator) -> Draws:
    """Draw one view of an image of `size` (width, height), in the order in which torchvision draws."""

    def uniform(low: float, high: float) -> float:
        return torch.empty(1).uniform_(low, high, generator=generator).item()

    def happens(probability: float) -> bool:
        return torch.rand(1, generator=generator).item() < probability

    box = _box(size, uniform, generator)
    flip = happens(FLIP)
    colours: list[Operation] = []
    if happens(JITTER):
        order = torch.randperm(4, generator=generator).tolist()
        factors = [uniform(1 - STRENGTH, 1 + STRENGTH) for _ in range(3)]
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        changes = [partial(_enhanced, kind, factor) for kind, factor in zip(kinds, factors, strict=True)]
        changes.append(partial(_turned, uniform(-HUE, HUE)))
        colours = [changes[number] for number in order]
    if happens(GREY):
        colours.append(_grey)
    return Draws(box, flip, tuple(colours), uniform(*SIGMA) if happens(BLUR) else None)


def _box(
    size: tuple[int, int], uniform: Callable[[float, float], float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """The crop, drawn until it lies in the image; else the centre, as near to the ratios as the image allows."""
    width, height = size
    for _ in range(ATTEMPTS):
        area = width * height * uniform(*SCALE)
        ratio = torch.exp(torch.empty(1).uniform_(*LOG_RATIO.tolist(), generator=generator)).item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            upper = int(torch.randint(height - h + 1, (1,), generator=generator))
            left = int(torch.randint(width - w + 1, (1,), generator=generator))
            return left, upper, left + w, upper + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def _enhanced(kind: type, factor: float, image: Image.Image) -> Image.Image:
    return kind(image).enhance(factor)


def _turned(turn: float, image: Image.Image) -> Image.Image:
    """The hue turned by `turn` of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + int(turn * 255)) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    return ImageOps.grayscale(image).convert("RGB")


def blurred(pixels: np.ndarray, kernel: int, sigma: float) -> np.ndarray:
    """Gaussian blur of an image whose edges are mirrored: uint8 (height, width, channels).

    Args:
        kernel: size of the kernel in pixels, odd; sigma: its standard deviation in pixels.
    """
    reach = min(kernel // 2, math.ceil(REACH * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)[reach:]
    height, width, channels = pixels.shape
    places = _mirrored(height, reach)
    result = np.empty_like(pixels)
    for start in range(0, height, BLOCK):
        block = result[start : start + BLOCK]
        rows = pixels[places[start : start + len(block) + 2 * reach]].reshape(-1, width * channels).astype(np.float32)
        down = _weighted([rows[shift:][: len(block)] for shift in range(2 * reach + 1)], weights)
        wide = np.empty((len(block), width + 2 * reach, channels), np.float32)
        middle = wide[:, reach : reach + width]
        middle[:] = down.reshape(block.shape)
        wide[:, :reach] = middle[:, reach:0:-1]
        wide[:, reach + width :] = middle[:, -2 : -2 - reach : -1]
        columns = [wide[:, shift:][:, :width] for shift in range(2 * reach + 1)]
        block[:] = np.rint(_weighted(columns, weights))
    return result


def _mirrored(n: int, reach: int) -> np.ndarray:
    """Places 0 to n - 1 with `reach` more at both ends, as a mirror on the outermost one shows them."""
    places = np.abs(np.arange(-reach, n + reach))
    return np.where(places < n, places, 2 * n - 2 - places)


def _weighted(shifted: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Sum of 2 r + 1 arrays of one shape, each times the weight (r + 1,) of its distance from the middle one."""
    reach = len(weights) - 1
    result = shifted[reach] * weights[0]
    pair = np.empty_like(result)
    for distance in range(1, reach + 1):
        np.add(shifted[reach - distance], shifted[reach + distance], out=pair)
        pair *= weights[distance]
        result += pair
    return result
