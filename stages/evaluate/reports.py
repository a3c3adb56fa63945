"""The small files of ``reports/``: JSON metrics with their provenance, and curves as CSV."""

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.artifacts import Provenance, damaged, read_json, rebuild_hint, write_json
from stages.errors import InputError
from stages.evaluate.retrieval import Retrieval
from stages.images import Dataset

PRECISION_RECALL = Path("reports/plots/precision_recall.csv")
PRECISION_AT_N = Path("reports/plots/precision_at_n.csv")

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


def read_curves(path: Path, x: str, y: str) -> dict[str, Curve]:
    """The (x, y) points of each method in a CSV with a column ``method``, in order of appearance.

    Raises:
        InputError: the file is missing or has other columns.
    """
    curves: dict[str, Curve] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if table.fieldnames != ["method", x, y]:
                raise ValueError(f"columns {table.fieldnames}")
            for row in table:
                curves.setdefault(row["method"], []).append((float(row[x]), float(row[y])))
    except FileNotFoundError:
        raise InputError(f"{path}: not found; {rebuild_hint(path)}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"not the expected table ({error})") from None
    return curves
