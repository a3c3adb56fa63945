"""Read codes, features and components, write the map."""

import numpy as np

from stages.artifacts import CODES, FEATURES, Provenance, library_versions
from stages.codes import read_codes
from stages.components.fitted import FittedComponents, read_fitted
from stages.errors import InputError
from stages.features import Features
from stages.map.artifact import ImageMap, write_map
from stages.map.config import Params
from stages.map.layout import layout, sample
from stages.progress import progress_bar

#: Images at a time whose components are computed.
BLOCK = 2048


def run(params: Params) -> None:
    """Read ``data/codes.h5``, ``data/features.h5`` and ``data/components.h5``, write ``data/map.parquet``.

    Raises:
        InputError: an input is missing, damaged or of another data set, or the database is empty.
    """
    codes = read_codes()
    if not len(codes.database):
        raise InputError(f"{CODES}: has no database images for a map; choose a protocol with some")
    components = read_fitted(codes.provenance, CODES)
    rows = sample(len(codes.database), params.map.images, params.seed)
    ids = codes.database_id[rows]
    with Features() as features:
        features.provenance.require_same(codes.provenance, FEATURES, CODES)
        coarse = coarse_components(features, ids, components)
    with progress_bar("map", None):
        x, y = layout(codes.database[rows], params.seed).T
    made = codes.provenance
    provenance = Provenance(
        "map", made.dataset, made.model, params=made.params | {"map": params.map.model_dump()},
        versions=library_versions("numpy", "scikit-learn"),
    )  # fmt: skip
    write_map(ImageMap(ids, x, y, coarse, provenance))


def coarse_components(features: Features, ids: np.ndarray, components: FittedComponents) -> np.ndarray:
    """The coarse component with the largest responsibility for each of the images `ids` (n,): int32 (n,)."""
    found = [components.coarse(components.fine(features.images(ids[start : start + BLOCK]))).argmax(axis=1)
             for start in range(0, len(ids), BLOCK)]  # fmt: skip
    return np.concatenate(found).astype(np.int32)
