"""SDC: the similarities of codes are spread over their whole range, in the order of those of the features."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import Tensor

from stages.train.binarise import signs
from stages.train.methods.cibhash import nt_xent
from stages.train.methods.greedyhash import pairs
from stages.train.methods.objective import Inputs, Objective, Terms


@cache
def beta_quantiles(count: int, shape: float) -> np.ndarray:
    """Quantiles (i + 1/2) / count of a symmetric beta distribution, scaled to [-1, 1]: (count,) ascending."""
    return 2 * betaincinv(shape, shape, (np.arange(count) + 0.5) / count) - 1


def calibration_loss(codes: Tensor, features: Tensor, shape: float, floor: float) -> Tensor:
    """Mean absolute difference of the code cosines of pairs and the target of their rank.

    It bounds the 1-Wasserstein distance of the distribution of code cosines to the targets' from above, and is equal
    to it where the order of the code cosines is that of the feature cosines.

    Args:
        codes: (b, K) relaxed; features: (b, d), whose cosines rank the b // 2 pairs.
        shape: of the beta distribution; floor: least target.
    """
    code_cosine, feature_cosine = F.cosine_similarity(*pairs(codes)), F.cosine_similarity(*pairs(features))
    target = torch.from_numpy(beta_quantiles(len(code_cosine), shape)).to(codes).clamp_min(floor)
    return F.l1_loss(code_cosine[feature_cosine.argsort(stable=True)], target)


def angular_quantization_loss(codes: Tensor) -> Tensor:
    """Mean over images of 1 - the cosine of relaxed codes (b, K) and their signs."""
    return 1 - F.cosine_similarity(codes, signs(codes)).mean()


class Sdc(Objective):
    """Code cosines are calibrated to a beta distribution, and the codes of two views agree.

    Source: SDC (Ng et al., BMVC 2023; arXiv 2302.07669): calibration of random pairs, quantization by cosine, and a
    contrastive loss of two views. The released code has two configurations: `sdc`, without the contrastive loss and
    without augmentation, which is the default here, and `sdc_simclr`, where all terms have weight 1
    (``contrastive: 1``) and pairs of the second views are calibrated too. In both, targets below 0 are 0; ``floor: -1``
    aims at the whole range of a cosine. There, codes come from a batch normalisation, here from tanh. Features are
    those of the image itself.
    """

    views = 2

    def __init__(self, inputs: Inputs) -> None:
        self.features, self.options = inputs.features, inputs.options.sdc

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        options, first = self.options, codes.chunk(2)[0]
        features = self.features[rows[: len(first)]]
        return {
            "calibration": calibration_loss(first, features, options.shape, options.floor),
            "contrastive": options.contrastive * nt_xent(codes, options.temperature),
            "quantization": options.quantization * angular_quantization_loss(codes),
        }
