"""The losses of both papers, on relaxed codes in [-1, 1]. Pure functions of tensors.

Sources: UHSCM (arXiv 2209.11475), section 3.3; DSCH (arXiv 2203.09420), section 3.3, in the form that
follows its abstract and released E-step, since the released code lacks the loss.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.train.binarise import signs

#: Keeps the denominator of the modified contrastive loss positive where an image has no negative (released UHSCM).
DENOMINATOR_FLOOR = 1e-5


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines between the rows of a (n, d) and of b (m, d): (n, m)."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def similarity_loss(code_cosine: Tensor, similarity: Tensor) -> Tensor:
    """UHSCM's mean squared difference of code cosines and semantic similarities, both (b, b)."""
    return (code_cosine - similarity).square().mean()


def contrastive_loss(code_cosine: Tensor, positive: Tensor, gamma: float) -> Tensor:
    """UHSCM's modified contrastive loss: every pair that `positive` marks against the row's negatives.

    Args:
        code_cosine: (b, b) cosines of the codes; positive: bool (b, b), the diagonal included; gamma: temperature.

    Returns:
        Minus the mean over positive pairs of log(exp(h_ij / gamma) / (sum of negatives' exp(h_ik / gamma) + 1e-5)),
        computed in log space, so that a small gamma does not overflow; 0 where no pair is positive.
    """
    logits = code_cosine / gamma
    negatives = logits.masked_fill(positive, -math.inf)
    floor = logits.new_full((len(logits), 1), math.log(DENOMINATOR_FLOOR))
    log_denominator = torch.cat([negatives, floor], dim=1).logsumexp(dim=1, keepdim=True)
    log_ratio = (logits - log_denominator).masked_fill(~positive, 0)
    return -log_ratio.sum() / positive.sum().clamp_min(1)


def quantization_loss(codes: Tensor) -> Tensor:
    """Mean over images of the squared distance of relaxed codes (b, K) to their signs (0 counts as +1)."""
    return (signs(codes) - codes).square().sum(dim=1).mean()


def instance_loss(code_cosine: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """DSCH's instance term: a softmax over the other images, weighted by instance similarity.

    Args:
        code_cosine: (n, n) cosines; weight: (n, n) instance similarity S, its diagonal is ignored.
    """
    itself = torch.eye(len(code_cosine), dtype=torch.bool, device=code_cosine.device)
    logits = (code_cosine / temperature).masked_fill(itself, -math.inf)
    log_probability = logits.log_softmax(dim=1).masked_fill(itself, 0)
    weight = weight.masked_fill(itself, 0)
    return -((weight * log_probability).sum(dim=1) / weight.sum(dim=1).clamp_min(1e-12)).mean()


def component_loss(codes: Tensor, centres: Tensor, prior: Tensor, assignment: Tensor, temperature: float) -> Tensor:
    """DSCH's fine or coarse term: cross-entropy of assignments and the posterior of the components given the codes.

    Args:
        codes: (n, K); centres: (m, K) in {-1, +1}; prior: (m,); assignment: (n, m), rows are scaled to sum 1.
    """
    logits = prior.clamp_min(torch.finfo(prior.dtype).tiny).log() + cosine(codes, centres) / temperature
    target = assignment / assignment.sum(dim=1, keepdim=True)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
