"""``reports/baselines_query_precision.parquet``: each baseline's average precision of each query."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from stages.artifacts import BASELINES_QUERY_PRECISION, Provenance, damaged
from stages.evaluate.reports import precision_column, require_precisions
from stages.tables import read_table, write_table

#: Average precisions (q,) of the queries, by cut-off ("1000", "all").
QueryPrecision = Mapping[str, np.ndarray]


def write_baseline_precision(ids: np.ndarray, found: Mapping[str, QueryPrecision], provenance: Provenance) -> None:
    """Write a row a method and query.

    Args:
        ids: int64 (q,) of the queries; found: tie-aware average precisions by method, all of the same cut-offs.
    """
    columns: dict[str, pa.Array | np.ndarray] = {
        "method": pa.array([name for name in found for _ in ids], pa.string()), "query": np.tile(ids, len(found)),
    }  # fmt: skip
    for cutoff in next(iter(found.values()), {}):
        columns[precision_column(cutoff)] = np.concatenate([precision[cutoff] for precision in found.values()])
    write_table(pa.table(columns), BASELINES_QUERY_PRECISION, provenance)


def read_baseline_precision(ids: np.ndarray, cutoffs: Sequence[str]) -> tuple[dict[str, QueryPrecision], Provenance]:
    """The inverse of :func:`write_baseline_precision`, for these queries and cut-offs.

    Raises:
        InputError: the table is missing, unreadable, or has other columns or other queries.
    """
    names = {cutoff: precision_column(cutoff) for cutoff in cutoffs}
    columns = {"method": pa.string(), "query": pa.int64(), **dict.fromkeys(names.values(), pa.float64())}
    table, provenance, _ = read_table(BASELINES_QUERY_PRECISION, columns)
    methods = list(dict.fromkeys(table["method"].to_pylist()))
    if not np.array_equal(table["query"].to_numpy(), np.tile(ids, len(methods))):
        raise damaged(BASELINES_QUERY_PRECISION, "has other queries than the codes")
    require_precisions((table[name].to_numpy() for name in names.values()), BASELINES_QUERY_PRECISION)
    parts = {cutoff: table[name].to_numpy().reshape(len(methods), len(ids)) for cutoff, name in names.items()}
    return {method: {cutoff: part[row] for cutoff, part in parts.items()}
            for row, method in enumerate(methods)}, provenance  # fmt: skip
