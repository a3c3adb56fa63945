"""Read the concept distributions or the features, write the similarity matrix."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from stages.artifacts import CONCEPT_DISTRIBUTION, FEATURES, SIMILARITY, Provenance
from stages.errors import InputError
from stages.features import Features
from stages.mine.distribution import read_distribution
from stages.similarity.config import Params, Similarity
from stages.similarity.matrix import SimilarityMatrix, similarity_matrix
from stages.similarity.neighbours import NeighbourSearch
from stages.tables import fixed_size_lists, table_writer

#: Values of whole rows of the matrix that are in memory at a time.
DENSE_VALUES = 4_000_000


def run(params: Params) -> None:
    """Read what images are compared by (``similarity.source``), write ``data/similarity.parquet``."""
    options = params.similarity
    similarity, ids, made_from = read_compared(options)
    if not similarity.factor.shape[1]:
        print("similarity: there are no concepts, and so no similarities; method: fused and dsch need none")
    search = NeighbourSearch(similarity, options.neighbours)
    if search.lists:
        print(f"similarity: neighbours from {search.probed} of {search.lists} inverted lists, recall {search.recall}")
    provenance = replace(made_from, stage="similarity", params={**made_from.params, **options.model_dump()})
    extra = {"scale": similarity.scale, "offset": similarity.offset, "neighbours": search.metadata()}
    dense = options.layout == "dense" and similarity.factor.shape[1] > 0
    pieces = tables(similarity, ids, search, dense)
    first = next(pieces)
    with table_writer(first.schema, SIMILARITY, provenance, extra) as writer:
        writer.write_table(first)
        for piece in pieces:
            writer.write_table(piece)


def read_compared(options: Similarity) -> tuple[SimilarityMatrix, np.ndarray, Provenance]:
    """The matrix of what images are compared by, their ids (n,), and the provenance of what it is made from.

    Raises:
        InputError: it is missing or damaged, or there are fewer than two training images.
    """
    with Features() as features:
        if options.source == "features":
            path, compared, made_from = FEATURES, features.train(), features.provenance
        else:
            path, (compared, made_from) = CONCEPT_DISTRIBUTION, read_distribution(features)
        ids = features.train_id
    if len(ids) < 2:
        raise InputError(f"{path}: similarity needs at least 2 training images, there are {len(ids)}")
    return similarity_matrix(compared, options.form), ids, made_from


def tables(similarity: SimilarityMatrix, ids: np.ndarray, search: NeighbourSearch, dense: bool) -> Iterator[pa.Table]:
    """The rows of the artifact, as they come; with whole rows of the matrix where it is `dense`."""
    height = max(1, DENSE_VALUES // len(ids)) if dense else len(ids)
    for start, stop, found, values in search:
        for first in range(start, stop, height):
            rows = slice(first, min(first + height, stop))
            these = slice(rows.start - start, rows.stop - start)
            columns = {
                "id": ids[rows], "factor": fixed_size_lists(similarity.factor[rows]),
                "neighbours": fixed_size_lists(ids[found[these]]), "similarities": fixed_size_lists(values[these]),
            }  # fmt: skip
            if dense:
                columns["row"] = fixed_size_lists(similarity.block(rows))
            yield pa.table(columns)
