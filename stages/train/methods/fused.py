"""Both ideas in one: concepts, or components, say which images are relevant to each other, and that makes the codes."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.train.codebook import Codebook
from stages.train.methods.objective import Inputs, Objective, Terms
from stages.train.semantics import SharedComponents, SharedConcepts
from stages.train.streamed import StreamedRows, array_of

#: Keeps the cross-entropy of a decided bit finite.
MARGIN = 1e-5
#: Where components alone made the codes, which a head would learn by heart: share of the features that is hidden from
#: it, and how much less than certain the bits are that it learns.
DROPOUT, SMOOTHING = 0.7, 0.2


class Fused(Objective):
    """The network learns codes that were found before the training, bit by bit, under the relevances of the images.

    Images that share one of UHSCM's concepts are relevant to each other; where there are no concepts, those between
    which a walk over components of the features leads (:mod:`stages.train.semantics`). The codes are found by
    :mod:`stages.train.codebook`. The network learns each bit by its cross-entropy. It is shown the images as they are:
    an augmented view may have lost the object that the code speaks of.
    """

    views = 0
    uses_distribution = True
    smoothing = 0.0

    def __init__(self, inputs: Inputs) -> None:
        if inputs.distribution is None:
            self.dropout, self.smoothing = DROPOUT, SMOOTHING
        features = array_of(inputs.features)
        codebook = inputs.ranks.first(lambda: self._codebook(inputs, features))
        self.target = torch.from_numpy(codebook.encode(features, inputs.ranks)).to(inputs.features.device)

    def _codebook(self, inputs: Inputs, features: np.ndarray | StreamedRows) -> Codebook:
        options = inputs.options.fused
        if inputs.distribution is None:
            semantics = SharedComponents(features, options.components, inputs.seed)
        else:
            semantics = SharedConcepts(features, inputs.distribution, options.presence, inputs.seed)
        return Codebook(semantics, features, inputs.bits, inputs.seed)

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        return {"bits": bit_loss(codes, (1 - self.smoothing) * self.target[rows])}


def bit_loss(codes: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of bits: relaxed codes (b, K) in [-1, 1], of which (1 + z) / 2 is the probability of a 1, and
    targets (b, K) in [-1, 1].
    """
    return F.binary_cross_entropy(((1 + codes) / 2).clamp(MARGIN, 1 - MARGIN), (1 + target) / 2)
