"""``reports/benchmark/results.parquet``: every measurement, with what was searched and compared in its metadata."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.artifacts import Provenance
from stages.errors import InputError
from stages.tables import read_table, write_table

REPORTS = Path("reports/benchmark")
RESULTS = REPORTS / "results.parquet"

#: The columns that every row has; metrics stand between the guidance and the seconds.
FIRST = ("dataset", "protocol", "splits", "method", "bits", "seed", "guidance")
LAST = ("seconds", "hyperparameters")
#: Prefix of the columns with the average precision of each query.
QUERY = "query_ap_"


def collect(files: Sequence[Path], metrics: Sequence[str]) -> pa.Table:
    """The measurements in `files` as one table, in their order, with the queries' precisions of `metrics` alone."""
    return arranged(pa.concat_tables([pq.read_table(file) for file in files], promote_options="default"), metrics)


def arranged(table: pa.Table, metrics: Sequence[str]) -> pa.Table:
    """The columns in order: who and how, metrics, seconds and hyperparameters, the precision of each query.

    Raises:
        InputError: none of the rows has one of `metrics`.
    """
    for metric in metrics:
        if f"{metric}_tie_aware" not in table.column_names and f"{metric}_stable" not in table.column_names:
            known = sorted({name.removesuffix("_stable") for name in table.column_names if name.endswith("_stable")})
            raise InputError(f"metrics: no data set of the plan reports {metric}; there are {', '.join(known)}")
    queries = [QUERY + metric.removeprefix("map_") for metric in metrics]
    known = {*FIRST, *LAST, *queries}
    between = [name for name in table.column_names if name not in known and not name.startswith(QUERY)]
    order = [*FIRST, *between, *LAST, *(name for name in queries if name in table.column_names)]
    table = table.select(order)
    for name in ("bits", "seed"):
        place = order.index(name)
        table = table.set_column(place, name, table[name].cast(pa.int64()))
    return table


def write_results(table: pa.Table, provenance: Provenance, extra: Mapping[str, Any], path: Path = RESULTS) -> None:
    """Write the table atomically."""
    write_table(table, path, provenance, extra)


def read_results(path: Path = RESULTS) -> tuple[pd.DataFrame, Provenance, dict[str, Any]]:
    """The results, one row a measurement, their provenance, and what else the metadata holds.

    Raises:
        InputError: they are missing or unreadable.
    """
    if not path.exists():
        raise InputError(f"{path}: not found; run `python -m stages benchmark`")
    _, provenance, extra = read_table(path, {"dataset": pa.string(), "method": pa.string(), "bits": pa.int64()})
    return pq.read_table(path).to_pandas(integer_object_nulls=False), provenance, extra
