"""Training images as batches: what the loop takes, the order, and features that are all in memory."""

import math
from collections.abc import Generator, Iterator
from typing import Protocol

import torch
from torch import Tensor

from stages.hashnet import Network, relaxed_codes
from stages.train.distributed import ALONE, Ranks


class Batches(Protocol):
    """The n training images, as the network takes them; of several ranks, each has its part of every batch."""

    n: int

    def epoch(self, views: int, seed: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        """All images once, in a random order: for each batch of b, `views` augmented views of each, (views * b, ...),
        and the rows of the images, (views * b,), view by view. What is drawn depends on `seed` alone. 0 views are the
        images themselves; of pixels it is a single view, since a backbone would learn them by heart. A rank gets the
        views of its part of the b images, and the rows of all.
        """

    def all_codes(self, net: Network) -> Tensor:
        """Relaxed codes (n, K) of the unaugmented images, on the training device; of the rank's part of the images."""


class CachedViews:
    """Batches of cached features.

    Attributes:
        views: (V, n, dim) of the augmented views; images: (n, dim) of the images themselves.
    """

    def __init__(self, views: Tensor, images: Tensor, batch_size: int, ranks: Ranks = ALONE) -> None:
        self.views, self.images, self.batch_size, self.ranks = views, images, batch_size, ranks
        self.n = len(images)

    def epoch(self, views: int, seed: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        generator = torch.Generator().manual_seed(seed)
        for rows in batches(self.n, self.batch_size, generator):
            # Whole rows, by one index: several times as fast as indexing by view and row.
            stored, places = self.images, rows
            if views:
                drawn = drawn_views(len(self.views), views, len(rows), generator)
                stored, places = self.views.flatten(0, 1), (drawn * self.n + rows).flatten()
            if self.ranks.world > 1:
                places = places[self.ranks.places(len(rows), max(views, 1))]
            inputs = stored.index_select(0, places.to(stored.device))
            yield inputs, rows.to(stored.device).repeat(max(views, 1))

    def all_codes(self, net: Network) -> Tensor:
        return relaxed_codes(net, self.images[self.ranks.part(self.n)])


def number_of_batches(n: int, batch_size: int) -> int:
    """Batches of an epoch over n images."""
    return math.ceil(n / batch_size)


def drawn_views(total: int, views: int, count: int, generator: torch.Generator) -> Tensor:
    """`views` distinct ones of `total` views for each of `count` images, in random order: (views, count)."""
    return torch.rand(total, count, generator=generator).argsort(dim=0)[:views]


def batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """A random order of n rows in batches of nearly equal size, so that none is left with a single image."""
    order = torch.randperm(n, generator=generator)
    return iter(order.tensor_split(number_of_batches(n, batch_size)))
