"""Read features, reduce them, write the first E-step's components."""

from collections.abc import Iterator

import h5py
import numpy as np

from stages.artifacts import COMPONENTS, FEATURES, PROVENANCE_KEY, Provenance, library_versions, writing
from stages.components.config import Params
from stages.components.mixture import coarse_level, fit_mixture, membership
from stages.components.reduction import BLOCK, Axes, principal_axes
from stages.errors import InputError
from stages.features import Features
from stages.hdf5 import write_text
from stages.progress import progress_bar

#: Responsibilities of all images, from which on `device: auto` looks for a GPU; for fewer, loading torch takes longer.
WORTH_A_GPU = 10**8


def run(params: Params) -> None:
    """Read ``data/features.h5``, write ``data/components.h5``."""
    options = params.components
    with Features() as features:
        made_from, train_id = features.provenance, features.train_id
        if len(train_id) < 2:
            raise InputError(f"{FEATURES}: components need at least 2 training images, there are {len(train_id)}")
        axes, reduced = reduce(features, options.pca)
    device = where(params, len(reduced))
    with progress_bar("components", options.iterations) as bar:
        mixture = fit_mixture(
            reduced, options.fine, seed=params.seed, iterations=options.iterations,
            reg_covar=max(options.reg_covar * float(axes.variances[0]), 1e-6), kind=options.mixture,
            covariance=options.covariance, batch=options.batch, device=device,
            report=lambda value: bar.advance(note=f"log-likelihood {value:.3f}"),
        )  # fmt: skip
    belonging = membership(reduced, mixture, options.assignment, options.top, device)
    hierarchy = coarse_level(mixture.means, options.coarse, params.seed)

    provenance = Provenance(
        "components", made_from.dataset, made_from.model,
        params={**options.model_dump(), "seed": params.seed}, versions=library_versions("numpy", "scikit-learn"),
    )  # fmt: skip
    with writing(COMPONENTS) as target, h5py.File(target, "w") as file:
        write_text(file, PROVENANCE_KEY, provenance.to_json())
        file.attrs.update(log_likelihood=mixture.log_likelihood, converged=mixture.converged,
                          iterations=mixture.iterations, reseeded=mixture.reseeded)  # fmt: skip
        file["weights"] = mixture.weights.astype(np.float32)
        file["means"] = mixture.means.astype(np.float32)
        file["variances"] = mixture.variances.astype(np.float32)
        file["coarse_labels"] = hierarchy.labels
        file["coarse_centres"] = hierarchy.centres.astype(np.float32)
        file["cooccurrence"] = belonging.cooccurrence
        file["responsibilities/index"] = belonging.index
        file["responsibilities/value"] = belonging.value
        file["train/id"] = train_id
        file["pca/mean"], file["pca/components"] = axes.mean, axes.components


def reduce(features: Features, dimensions: int) -> tuple[Axes, np.ndarray]:
    """The principal axes of the training images and what they reduce to: float32 (n_train, at most `dimensions`).

    The features are read twice, block by block; only what they reduce to is held in memory.
    """
    n = len(features.train_id)
    axes = principal_axes(_blocks(features), min(dimensions, n, features.dim))
    reduced, start = np.empty((n, len(axes.components)), np.float32), 0
    for rows in _blocks(features):
        reduced[start : start + len(rows)] = axes.project(rows)
        start += len(rows)
    return axes, reduced


def _blocks(features: Features) -> Iterator[np.ndarray]:
    """Features of the training images: of those among so many consecutive images at a time."""
    ids = features.train_id
    edges = np.searchsorted(ids, np.arange(0, features.n_images + BLOCK, BLOCK))
    return (features.images(part) for part in np.split(ids, edges[1:-1]) if len(part))


def where(params: Params, n: int) -> str:
    """The device that n rows are worked on."""
    if params.device == "cpu" or (params.device == "auto" and n * params.components.fine < WORTH_A_GPU):
        return "cpu"
    from stages.device import resolve_device  # loads torch

    return str(resolve_device(params.device))
