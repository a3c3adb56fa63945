"""DSCH's components in code space, re-estimated on the codes of the network that they train."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.components.artifact import Components
from stages.components.config import Components as Options
from stages.components.density import Mixture
from stages.components.em import given, maximise
from stages.components.mixture import (
    assign,
    coarse_assignment,
    coarse_level,
    fine_assignment,
    fit_mixture,
    sign,
)
from stages.components.reduction import Portion, regularisation
from stages.train.distributed import ALONE, Ranks

#: EM iterations of one E-step; it starts from the components of the round before.
ITERATIONS = 20


@dataclass(frozen=True)
class CodeComponents:
    """Components as the M-step needs them, tensors on the training device.

    Attributes:
        fine: (n, m1) unit rows (P1), the only array of this size that is kept; coarse: (n, m2) (P2).
        fine_prior, coarse_prior: (m1,), (m2,), sum 1; fine_centres, coarse_centres: (m1, K), (m2, K) in {-1, +1}.
    """

    fine: Tensor
    coarse: Tensor
    fine_prior: Tensor
    coarse_prior: Tensor
    fine_centres: Tensor
    coarse_centres: Tensor

    @property
    def posterior(self) -> Tensor:
        """Responsibilities (n, m1): the rows of P1, scaled to sum 1."""
        return self.fine / self.fine.sum(dim=1, keepdim=True)


def _implied(codes: np.ndarray, posterior: np.ndarray, options: Options, of: Portion) -> Mixture:
    """The mixture in code space that the responsibilities (b, m1) imply for codes (b, K): one M-step of EM."""
    moments = given(codes, posterior, options.covariance, of)
    return maximise(moments, options.covariance, regularisation(codes, options.reg_covar, of.total))


def _components(posterior: np.ndarray, mixture: Mixture, labels: np.ndarray, coarse_means: np.ndarray,
                device: torch.device) -> CodeComponents:  # fmt: skip
    fine, n_coarse = fine_assignment(posterior), len(coarse_means)
    arrays = (
        fine, coarse_assignment(fine, labels, n_coarse), mixture.weights,
        np.full(n_coarse, 1 / n_coarse), sign(mixture.means), sign(coarse_means),
    )  # fmt: skip
    return CodeComponents(*(torch.as_tensor(array, dtype=torch.float32, device=device) for array in arrays))


def first_components(codes: Tensor, first: Components, ranks: Ranks = ALONE) -> CodeComponents:
    """Components of the features, their centres placed among the codes (n, K) that the network has by now.

    Args:
        codes: of several ranks, those of this one's part of the images.
    """
    of, posterior = ranks.portion(len(first.train_id)), first.posterior
    found = _implied(codes.cpu().numpy(), posterior[of.first : of.first + len(codes)], first.options, of)
    mixture = ranks.first(lambda: found)  # of processors that round in other ways, the first's
    n_coarse = int(first.coarse_labels.max()) + 1
    one_hot = np.eye(n_coarse)[first.coarse_labels]
    coarse_means = one_hot.T @ mixture.means / np.maximum(one_hot.sum(axis=0), 1)[:, None]
    return _components(posterior, mixture, first.coarse_labels, coarse_means, codes.device)


def e_step(
    codes: Tensor, before: CodeComponents, options: Options, seed: int, ranks: Ranks = ALONE
) -> CodeComponents:  # fmt: skip
    """Re-estimate the components on codes (n, K), warm from the responsibilities of the round before.

    Of several ranks, each one computes the densities of its own part of the images; EM adds up their moments. K-means
    is the first rank's, on the codes of all.

    Args:
        codes: of several ranks, those of this one's part of the images.
        options: how the components of the features were made; those of the codes are of the same kind.
    """
    rows, device, n = codes.cpu().numpy(), str(codes.device), len(before.fine)
    of = ranks.portion(n)
    posterior = before.posterior[of.first : of.first + len(rows)].cpu().numpy()
    start = _implied(rows, posterior, options, of)
    how = {
        "seed": seed, "iterations": ITERATIONS, "reg_covar": regularisation(rows, options.reg_covar, of.total),
        "start": start, "kind": options.mixture, "covariance": options.covariance, "batch": options.batch,
        "device": device,
    }  # fmt: skip
    if options.mixture == "kmeans":
        everything = ranks.gathered(rows, n)
        mixture = ranks.first(lambda: fit_mixture(everything, len(start.weights), **how))
    else:
        found = fit_mixture(rows, len(start.weights), of=of, **how)
        mixture = ranks.first(lambda: found)
    posterior = ranks.gathered(assign(rows, mixture, options.assignment, device), n)
    hierarchy = ranks.first(lambda: coarse_level(mixture.means, len(before.coarse_prior), seed))
    return _components(posterior, mixture, hierarchy.labels, hierarchy.centres, codes.device)
