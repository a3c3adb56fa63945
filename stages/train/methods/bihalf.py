"""Bi-half Net: codes as alike as the features, every bit +1 for half of the batch."""

import torch
from torch import Tensor

from stages.train.binarise import straight_through
from stages.train.methods.greedyhash import pair_similarity_loss
from stages.train.methods.objective import Inputs, Objective, Terms


def half_half(relaxed: Tensor) -> Tensor:
    """+1 for the largest floor(b / 2) entries of each column of (b, K), -1 for the others; without a gradient.

    Source: Bi-half Net (arXiv 2012.12334), equation 8.
    """
    order = relaxed.detach().argsort(dim=0, descending=True, stable=True)
    return torch.full_like(order, -1, dtype=relaxed.dtype).scatter_(0, order[: len(order) // 2], 1.0)


def alignment_loss(codes: Tensor) -> Tensor:
    """Half the mean squared distance of the entries of relaxed codes (b, K) to their half-half binary values."""
    return (codes - half_half(codes)).square().mean() / 2


class BiHalf(Objective):
    """Cosines of half-half codes follow those of the features, in random pairs of a batch.

    Source: Bi-half Net (Li and van Gemert, AAAI 2021; arXiv 2012.12334), section 3.2; the loss is that of GreedyHash's
    unsupervised experiments. The layer adds gamma / (b K) (U - B) to the gradient (equation 9), which is the gradient
    of ``gamma * alignment_loss``: a term here. The paper has gamma = 3, the released code for images 6. Codes of
    single images are signs, as there. The layer before is linear in the paper, a tanh here.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.features, self.options = inputs.features, inputs.options.bihalf

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        binary = straight_through(codes, half_half(codes))
        return {
            "similarity": pair_similarity_loss(binary, self.features[rows]),
            "alignment": self.options.gamma * alignment_loss(codes),
        }
