"""GreedyHash in its unsupervised form: codes as alike as the features, with sign codes in the forward pass."""

import torch.nn.functional as F
from torch import Tensor

from stages.train.binarise import signs, straight_through
from stages.train.methods.objective import Inputs, Objective, Terms


def pairs(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Row i of the first half with row i of the second: (b // 2, ...) each. An odd last row is in no pair."""
    half = len(rows) // 2
    return rows[:half], rows[half : 2 * half]


def pair_similarity_loss(codes: Tensor, features: Tensor) -> Tensor:
    """Mean squared difference of the cosines of codes (b, K) and of features (b, d), over b // 2 pairs of rows."""
    code_cosine, feature_cosine = F.cosine_similarity(*pairs(codes)), F.cosine_similarity(*pairs(features))
    return F.mse_loss(code_cosine, feature_cosine)


def cubic_penalty(codes: Tensor) -> Tensor:
    """Mean over entries of |z - sign(z)|^3, for relaxed codes (b, K)."""
    return (codes.abs() - 1).abs().pow(3).mean()


class GreedyHash(Objective):
    """Cosines of sign codes follow those of the features, in random pairs of a batch.

    Source: GreedyHash (Su et al., NeurIPS 2018), sign layer and penalty with p = 3, and the loss of its unsupervised
    experiments. The released code takes the mean of the penalty over all entries where the paper has the norm, and
    weighs it with 0.1; so does this. There, the layer before the sign is linear. Here it ends in tanh, so that a
    gradient that passes the sign unchanged is damped by tanh where a bit is all but decided. Features are those of the
    image itself, not of the view.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.features, self.options = inputs.features, inputs.options.greedyhash

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        binary = straight_through(codes, signs(codes))
        return {
            "similarity": pair_similarity_loss(binary, self.features[rows]),
            "penalty": self.options.penalty * cubic_penalty(codes),
        }
