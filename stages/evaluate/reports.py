"""The small files of ``reports/``: JSON metrics with their provenance, and curves as CSV."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.artifacts import QUERY_PRECISION, Provenance, damaged, read_json, rebuild_hint, write_json
from stages.errors import InputError
from stages.evaluate.retrieval import Retrieval
from stages.images import Dataset
from stages.tables import read_table, write_table

#: Said in the reports and on the terminal in place of metrics.
NO_LABELS = "the data set has no labels: retrieval metrics are skipped"

#: Hexadecimal digits of the digest of the splits that a report shows.
DIGITS = 16

#: Points of a curve: what is on the horizontal axis, what is on the vertical one.
Curve = list[tuple[float, float]]


def write_report(path: Path, content: Mapping[str, Any], provenance: Provenance) -> None:
    """Write metrics atomically, with the provenance under ``run``.

    It is a list of one, because ``dvc exp show`` makes a column of everything in a metrics file but of lists.
    """
    write_json(path, {**content, "run": [asdict(provenance)]})


def read_report(path: Path) -> tuple[dict[str, Any], Provenance]:
    """The inverse of :func:`write_report`.

    Raises:
        InputError: the report is missing, unreadable, or has no provenance.
    """
    content = read_json(path)
    run = content.pop("run", None)
    provenance = json.dumps(run[0]) if isinstance(run, list) and run else None
    return content, Provenance.from_json(provenance, path)


def protocol_row(dataset: Dataset) -> dict[str, str]:
    """The protocol and its splits: numbers of two runs compare where these agree, so every row of metrics has them."""
    return {"protocol": dataset.protocol, "splits": dataset.splits[:DIGITS]}


def precision_recall_rows(retrieval: Retrieval) -> list[tuple[int, float, float]]:
    """(threshold, recall, precision) where precision is defined: something lies within the radius or rank."""
    points = zip(retrieval.thresholds, retrieval.recall, retrieval.precision, strict=True)
    return [(int(threshold), float(recall), float(precision)) for threshold, recall, precision in points
            if precision == precision]  # fmt: skip


def precision_at_rows(retrieval: Retrieval) -> list[tuple[int, float]]:
    """(n, precision among the first n)."""
    points = zip(retrieval.ranks, retrieval.precision_at_rank, strict=True)
    return [(int(rank), float(precision)) for rank, precision in points]


def write_query_precision(ids: np.ndarray, precision: Mapping[str, np.ndarray], provenance: Provenance) -> None:
    """Write ``reports/query_precision.parquet``: a row a query, with its id and its average precision by cut-off."""
    columns = {precision_column(cutoff): values for cutoff, values in precision.items()}
    write_table(pa.table({"query": ids, **columns}), QUERY_PRECISION, provenance)


def read_query_precision(cutoffs: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray], Provenance]:
    """The inverse of :func:`write_query_precision`, for these cut-offs ("1000", "all").

    Returns:
        Ids int64 (q,), tie-aware average precisions float64 (q,) by cut-off, provenance.

    Raises:
        InputError: the table is missing, unreadable, or has other columns.
    """
    columns = {"query": pa.int64(), **{precision_column(cutoff): pa.float64() for cutoff in cutoffs}}
    table, provenance, _ = read_table(QUERY_PRECISION, columns)
    precision = {cutoff: table[precision_column(cutoff)].to_numpy() for cutoff in cutoffs}
    require_precisions(precision.values(), QUERY_PRECISION)
    return table["query"].to_numpy(), precision, provenance


def require_precisions(columns: Iterable[np.ndarray], path: Path) -> None:
    """Refuse average precisions that are none: they are in [0, 1], or NaN where a query has nothing to find.

    Raises:
        InputError: says so.
    """
    if any(((values < 0) | (values > 1 + 1e-9)).any() for values in columns):
        raise damaged(path, "has average precisions outside of [0, 1]")


def precision_column(cutoff: str) -> str:
    """Name of the column with average precisions at a cut-off."""
    return "average_precision_all" if cutoff == "all" else f"average_precision_at_{cutoff}"


def read_curves(path: Path, x: str, y: str) -> dict[str, Curve]:
    """The (x, y) points of each method in a CSV with a column ``method``, in order of appearance.

    Raises:
        InputError: the file is missing or has other columns.
    """
    curves: dict[str, Curve] = {}
    for method, *point in _rows(path, {"method": str, x: float, y: float}):
        curves.setdefault(method, []).append(tuple(point))
    return curves


def read_curve(path: Path, x: str, y: str, further: Sequence[str] = (), delimiter: str = ",") -> Curve:
    """The (x, y) points of a table that has these columns after the `further` ones.

    Raises:
        InputError: the file is missing or has other columns.
    """
    kinds = {**dict.fromkeys(further, str), x: float, y: float}
    return [tuple(row[len(further) :]) for row in _rows(path, kinds, delimiter)]


def _rows(path: Path, columns: Mapping[str, type], delimiter: str = ",") -> list[list[Any]]:
    """The rows of a table with these columns and no others, each value of its kind."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file, delimiter=delimiter)
            if table.fieldnames != list(columns):
                raise ValueError(f"columns {table.fieldnames}")
            return [[kind(row[name]) for name, kind in columns.items()] for row in table]
    except FileNotFoundError:
        raise InputError(f"{path}: not found; {rebuild_hint(path)}") from None
    except OSError as error:
        raise damaged(path, error) from None
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"not the expected table ({error})") from None
