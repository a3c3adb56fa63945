"""Read the concept distributions or the features, write the similarity matrix."""

from dataclasses import replace

import pyarrow as pa

from stages.artifacts import CONCEPT_DISTRIBUTION, FEATURES, SIMILARITY
from stages.errors import InputError
from stages.features import Features
from stages.mine.distribution import read_distribution
from stages.similarity.config import Params
from stages.similarity.matrix import nearest_neighbours, similarity_matrix
from stages.tables import fixed_size_lists, write_table


def run(params: Params) -> None:
    """Read what images are compared by (``similarity.source``), write ``data/similarity.parquet``."""
    options = params.similarity
    with Features() as features:
        if options.source == "features":
            path, compared, made_from = FEATURES, features.train(), features.provenance
        else:
            path, (compared, made_from) = CONCEPT_DISTRIBUTION, read_distribution(features)
        ids = features.train_id
    if len(ids) < 2:
        raise InputError(f"{path}: similarity needs at least 2 training images, there are {len(ids)}")
    similarity = similarity_matrix(compared, options.form)
    if not similarity.factor.shape[1]:
        print("similarity: there are no concepts, and so no similarities; method: fused and dsch need none")
    rows, values = nearest_neighbours(similarity, options.neighbours)
    columns = {
        "id": ids, "factor": fixed_size_lists(similarity.factor),
        "neighbours": fixed_size_lists(ids[rows]), "similarities": fixed_size_lists(values),
    }  # fmt: skip
    if options.layout == "dense" and similarity.factor.shape[1]:
        columns["row"] = fixed_size_lists(similarity.block(slice(None)))
    provenance = replace(made_from, stage="similarity", params={**made_from.params, **options.model_dump()})
    write_table(pa.table(columns), SIMILARITY, provenance, {"scale": similarity.scale, "offset": similarity.offset})
