"""CIBHash: contrastive learning of Bernoulli codes with an information bottleneck."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.device import derived_seed
from stages.train.binarise import straight_through
from stages.train.losses import cosine
from stages.train.methods.objective import Inputs, Objective, Terms

#: Added to probabilities before their logarithm (released code).
EPSILON = 1e-8


def nt_xent(codes: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each view's partner among all other views, by cosine.

    Source: SimCLR (arXiv 2002.05709), section 2.1.

    Args:
        codes: (2b, K); rows i and i + b are views of one image.
    """
    itself = torch.eye(len(codes), dtype=torch.bool, device=codes.device)
    logits = (cosine(codes, codes) / temperature).masked_fill(itself, -torch.inf)
    partner = torch.arange(len(codes), device=codes.device).roll(len(codes) // 2)
    return F.cross_entropy(logits, partner)


def bernoulli_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Mean over rows of KL(Bernoulli(p) || Bernoulli(q)), summed over independent bits; both (b, K) in [0, 1]."""
    ones = p * ((p + EPSILON).log() - (q + EPSILON).log())
    zeros = (1 - p) * ((1 - p + EPSILON).log() - (1 - q + EPSILON).log())
    return (ones + zeros).sum(dim=1).mean()


class CibHash(Objective):
    """Codes of two views agree and differ from those of other images; their distributions tell no more than needed.

    Source: CIBHash (Qiu et al., IJCAI 2021; arXiv 2105.06138), section 3. A bit is drawn as +1 with probability
    p = (1 + z) / 2, which is the sigmoid of twice what tanh is applied to; the gradient passes to z, the expectation of
    the bit. The divergence of the two views' distributions is symmetric and its second argument counts as constant.
    The released code does not draw: it takes p > 1/2, the same in every step. It compares codes in {-1, +1}, as here.
    """

    views = 2

    def __init__(self, inputs: Inputs) -> None:
        self.options, self.seed = inputs.options.cibhash, inputs.seed
        self.generator = torch.Generator()

    def begin_epoch(self, epoch: int, all_codes: Callable[[], Tensor]) -> None:
        # Of (seed, epoch), and not the stream that the order of the batches is drawn from.
        self.generator.manual_seed(derived_seed(derived_seed(self.seed, epoch), 1))

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        p = (1 + codes) / 2
        uniform = torch.rand(codes.shape, generator=self.generator).to(codes.device)
        drawn = straight_through(codes, (uniform < p).to(codes.dtype) * 2 - 1)
        first, second = p.chunk(2)
        divergence = bernoulli_divergence(first, second.detach()) + bernoulli_divergence(second, first.detach())
        return {
            "contrastive": nt_xent(drawn, self.options.temperature),
            "divergence": self.options.beta * divergence / 2,
        }
