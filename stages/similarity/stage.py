"""Read the concept distributions, write the similarity matrix."""

from dataclasses import replace

import pyarrow as pa

from stages.artifacts import CONCEPT_DISTRIBUTION, SIMILARITY
from stages.errors import InputError
from stages.similarity.config import Params
from stages.similarity.matrix import nearest_neighbours, similarity_matrix
from stages.tables import fixed_size_lists, matrix, read_table, write_table


def run(params: Params) -> None:
    """Read ``data/concept_distribution.parquet``, write ``data/similarity.parquet``."""
    options = params.similarity
    table, mined, _ = read_table(CONCEPT_DISTRIBUTION, {"id": pa.int64(), "distribution": None})
    ids = table["id"].to_numpy()
    if len(ids) < 2:
        raise InputError(f"{CONCEPT_DISTRIBUTION}: similarity needs at least 2 training images, there are {len(ids)}")
    similarity = similarity_matrix(matrix(table, "distribution"), options.form)
    if not similarity.factor.shape[1]:
        print("similarity: there are no concepts, and so no similarities; method: dsch needs none")
    rows, values = nearest_neighbours(similarity, options.neighbours)
    columns = {
        "id": ids, "factor": fixed_size_lists(similarity.factor),
        "neighbours": fixed_size_lists(ids[rows]), "similarities": fixed_size_lists(values),
    }  # fmt: skip
    if options.layout == "dense" and similarity.factor.shape[1]:
        columns["row"] = fixed_size_lists(similarity.block(slice(None)))
    provenance = replace(mined, stage="similarity", params={**mined.params, **options.model_dump()})
    write_table(pa.table(columns), SIMILARITY, provenance, {"scale": similarity.scale, "offset": similarity.offset})
