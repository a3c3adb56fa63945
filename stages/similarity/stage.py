"""Read the concept distributions or the features, write the similarity matrix."""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from stages.artifacts import CONCEPT_DISTRIBUTION, FEATURES, SIMILARITY, Provenance, damaged
from stages.errors import InputError
from stages.features import Features
from stages.similarity.config import Params
from stages.similarity.matrix import nearest_neighbours, similarity_matrix
from stages.tables import fixed_size_lists, matrix, read_table, write_table


def run(params: Params) -> None:
    """Read what images are compared by (``similarity.source``), write ``data/similarity.parquet``."""
    options = params.similarity
    with Features() as features:
        if options.source == "features":
            path, compared, ids, made_from = FEATURES, features.train(), features.train_id, features.provenance
        else:
            path, (compared, ids, made_from) = CONCEPT_DISTRIBUTION, _distributions(features)
    if len(ids) < 2:
        raise InputError(f"{path}: similarity needs at least 2 training images, there are {len(ids)}")
    similarity = similarity_matrix(compared, options.form)
    if not similarity.factor.shape[1]:
        print("similarity: there are no concepts, and so no similarities; method: dsch needs none")
    rows, values = nearest_neighbours(similarity, options.neighbours)
    columns = {
        "id": ids, "factor": fixed_size_lists(similarity.factor),
        "neighbours": fixed_size_lists(ids[rows]), "similarities": fixed_size_lists(values),
    }  # fmt: skip
    if options.layout == "dense" and similarity.factor.shape[1]:
        columns["row"] = fixed_size_lists(similarity.block(slice(None)))
    provenance = replace(made_from, stage="similarity", params={**made_from.params, **options.model_dump()})
    write_table(pa.table(columns), SIMILARITY, provenance, {"scale": similarity.scale, "offset": similarity.offset})


def _distributions(features: Features) -> tuple[np.ndarray, np.ndarray, Provenance]:
    """The concept distributions (n, m') of the training images of `features`, their ids (n,), the provenance.

    Raises:
        InputError: they are missing, damaged, or of other images or another model.
    """
    table, mined, _ = read_table(CONCEPT_DISTRIBUTION, {"id": pa.int64(), "distribution": None})
    mined.require_same(features.provenance, CONCEPT_DISTRIBUTION, FEATURES)
    ids = table["id"].to_numpy()
    if not np.array_equal(ids, features.train_id):
        raise damaged(CONCEPT_DISTRIBUTION, f"has other training images than {FEATURES}")
    return matrix(table, "distribution"), ids, mined
