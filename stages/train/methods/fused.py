"""Both ideas in one: components of the mined concepts have codes, and the network learns the codes of its images."""

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.train.codebook import Codebook
from stages.train.methods.objective import Inputs, Objective, Terms

#: Keeps the cross-entropy of a decided bit finite.
MARGIN = 1e-5


class Fused(Objective):
    """UHSCM's concepts say how relevant images are to each other, DSCH's fine components carry the codes.

    The components are clusters of concept distributions; their codes, and from them those of the images, are found by
    :mod:`stages.train.codebook` before the training. The network learns each bit by its cross-entropy. It is shown the
    images as they are: an augmented view may have lost the object that the code speaks of.
    """

    views = 0
    needs_text = True

    def __init__(self, inputs: Inputs) -> None:
        options, factor = inputs.options.fused, inputs.similarity.factor
        codebook = Codebook(factor, inputs.bits, options.components, options.temper, options.exponent, inputs.seed)
        self.target = torch.from_numpy(codebook.encode(factor)).to(inputs.features.device)

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        return {"bits": bit_loss(codes, self.target[rows])}


def bit_loss(codes: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of bits: relaxed codes (b, K) in [-1, 1], of which (1 + z) / 2 is the probability of a 1, and
    targets (b, K) in {-1, +1}.
    """
    return F.binary_cross_entropy(((1 + codes) / 2).clamp(MARGIN, 1 - MARGIN), (1 + target) / 2)
