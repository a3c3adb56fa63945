"""Read features, reduce them, write the first E-step's components."""

import h5py
import numpy as np
from sklearn.decomposition import PCA

from stages.artifacts import COMPONENTS, FEATURES, PROVENANCE_KEY, Provenance, library_versions, writing
from stages.components.config import Params
from stages.components.mixture import assign, coarse_level, cooccurrence, fit_mixture, regularisation
from stages.errors import InputError
from stages.features import Features


def run(params: Params) -> None:
    """Read ``data/features.h5``, write ``data/components.h5``."""
    options = params.components
    with Features() as features:
        made_from, train_id, images = features.provenance, features.train_id, features.train()
    if len(images) < 2:
        raise InputError(f"{FEATURES}: components need at least 2 training images, there are {len(images)}")
    pca = PCA(min(options.pca, *images.shape), random_state=params.seed)
    reduced = pca.fit_transform(images).astype(np.float64)  # log-densities cancel in single precision
    mixture = fit_mixture(
        reduced, options.fine, seed=params.seed, iterations=options.iterations,
        reg_covar=regularisation(reduced, options.reg_covar), kind=options.mixture,
    )  # fmt: skip
    posterior = assign(reduced, mixture, options.assignment)
    hierarchy = coarse_level(mixture.means, options.coarse, params.seed)
    top = np.argsort(-posterior, axis=1, kind="stable")[:, : options.top]

    provenance = Provenance(
        "components", made_from.dataset, made_from.model,
        params={**options.model_dump(), "seed": params.seed}, versions=library_versions("scikit-learn"),
    )  # fmt: skip
    with writing(COMPONENTS) as target, h5py.File(target, "w") as file:
        file.attrs[PROVENANCE_KEY] = provenance.to_json()
        file.attrs.update(log_likelihood=mixture.log_likelihood, converged=mixture.converged,
                          iterations=mixture.iterations)  # fmt: skip
        file["weights"] = mixture.weights.astype(np.float32)
        file["means"] = mixture.means.astype(np.float32)
        file["variances"] = mixture.variances.astype(np.float32)
        file["coarse_labels"] = hierarchy.labels
        file["coarse_centres"] = hierarchy.centres.astype(np.float32)
        file["cooccurrence"] = cooccurrence(posterior)
        file["responsibilities/index"] = top.astype(np.int32)
        file["responsibilities/value"] = np.take_along_axis(posterior, top, axis=1).astype(np.float32)
        file["train/id"] = train_id
        file["pca/mean"], file["pca/components"] = pca.mean_, pca.components_
