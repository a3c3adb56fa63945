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
from stages.components.reduction import regularisation

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


def _implied(codes: np.ndarray, posterior: np.ndarray, options: Options) -> Mixture:
    """The mixture in code space that the responsibilities (n, m1) imply for codes (n, K): one M-step of EM."""
    moments = given(codes, posterior, options.covariance)
    return maximise(moments, options.covariance, regularisation(codes, options.reg_covar))


def _components(posterior: np.ndarray, mixture: Mixture, labels: np.ndarray, coarse_means: np.ndarray,
                device: torch.device) -> CodeComponents:  # fmt: skip
    fine, n_coarse = fine_assignment(posterior), len(coarse_means)
    arrays = (
        fine, coarse_assignment(fine, labels, n_coarse), mixture.weights,
        np.full(n_coarse, 1 / n_coarse), sign(mixture.means), sign(coarse_means),
    )  # fmt: skip
    return CodeComponents(*(torch.as_tensor(array, dtype=torch.float32, device=device) for array in arrays))


def first_components(codes: Tensor, first: Components) -> CodeComponents:
    """Components of the features, their centres placed among the codes (n, K) that the network has by now."""
    mixture = _implied(codes.cpu().numpy(), first.posterior, first.options)
    n_coarse = int(first.coarse_labels.max()) + 1
    one_hot = np.eye(n_coarse)[first.coarse_labels]
    coarse_means = one_hot.T @ mixture.means / np.maximum(one_hot.sum(axis=0), 1)[:, None]
    return _components(first.posterior, mixture, first.coarse_labels, coarse_means, codes.device)


def e_step(codes: Tensor, before: CodeComponents, options: Options, seed: int) -> CodeComponents:
    """Re-estimate the components on codes (n, K), warm from the responsibilities of the round before.

    Args:
        options: how the components of the features were made; those of the codes are of the same kind.
    """
    rows, device = codes.cpu().numpy(), str(codes.device)
    start = _implied(rows, before.posterior.cpu().numpy(), options)
    mixture = fit_mixture(
        rows, len(start.weights), seed=seed, iterations=ITERATIONS, reg_covar=regularisation(rows, options.reg_covar),
        start=start, kind=options.mixture, covariance=options.covariance, batch=options.batch, device=device,
    )  # fmt: skip
    posterior = assign(rows, mixture, options.assignment, device)
    hierarchy = coarse_level(mixture.means, len(before.coarse_prior), seed)
    return _components(posterior, mixture, hierarchy.labels, hierarchy.centres, codes.device)
