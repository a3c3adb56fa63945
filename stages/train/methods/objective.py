"""What a method is to the training loop."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from stages.components.artifact import Components
from stages.similarity.matrix import SimilarityMatrix
from stages.train.config import Train
from stages.train.distributed import ALONE, Ranks
from stages.train.streamed import Rows

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Inputs:
    """What a method may train on.

    Attributes:
        features: (n, dim) unit rows of the unaugmented training images, on the training device; where there are too
            many for memory, rows that are read when they are asked for.
        components: of the features.
        similarity: None where there is no text side.
        options: the section ``train``; bits: code length; seed: of all that is drawn.
        distribution: of each training image over the concepts, (n, m); None unless the method uses it, and where there
            are no concepts.
        concepts: text features (m, dim) of the candidate concepts, unit rows; None unless the method needs them.
        ranks: that train together, each with all of the above.
    """

    features: Rows
    components: Components
    similarity: SimilarityMatrix | None
    options: Train
    bits: int
    seed: int
    distribution: np.ndarray | None = None
    concepts: np.ndarray | None = None
    ranks: Ranks = ALONE


class Objective:
    """A method. A subclass gives at least :meth:`terms`.

    Attributes:
        views: augmented views of each image that go into a step; 0: the image itself.
        needs_text: whether it trains on the similarity of the concepts.
        uses_distribution: whether it trains on the concept distributions where there are concepts.
        needs_concepts: whether it trains on the text features of the candidate concepts.
        dropout: share of an image's features that is best hidden from a head in a step.
    """

    views = 1
    needs_text = False
    uses_distribution = False
    needs_concepts = False
    dropout = 0.0

    def __init__(self, inputs: Inputs) -> None:
        """Prepare what does not change during the training."""

    def begin_epoch(self, epoch: int, all_codes: Callable[[], Tensor]) -> None:
        """Re-estimate what depends on the relaxed codes (n, K) of all training images; of several ranks, each one is
        given the codes of its part of the images.
        """

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        """Weighted terms, to be summed, of relaxed codes (views * b, K) of the images `rows` (views * b,): of the whole
        batch, in every rank.
        """
        raise NotImplementedError

    def parameters(self) -> Iterable[nn.Parameter]:
        """What is trained beside the network."""
        return ()

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep, :meth:`parameters` included; of several ranks, the same in all."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back :meth:`state`."""
