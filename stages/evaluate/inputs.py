"""The codes with their data set, and what the pictures need of other stages' artifacts, read and checked."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stages.artifacts import (
    BASELINES,
    BASELINES_PRECISION_AT_N,
    BASELINES_PRECISION_RECALL,
    CODES,
    CONCEPTS,
    DATASET,
    IMAGES,
    damaged,
)
from stages.codes import Codes, read_codes
from stages.errors import InputError
from stages.evaluate.reports import Curve, read_curves, read_report
from stages.images import Dataset, ImageShards, read_dataset
from stages.mine.leakage import WHOLE_VOCABULARY, label_matches
from stages.tables import read_table


def read_retrieval() -> tuple[Dataset, ImageShards, Codes]:
    """Codes of queries and of a database, and the data set that they are of.

    Raises:
        InputError: one is missing, damaged or of another data set, or there are no queries or no database.
    """
    dataset, shards, codes = read_dataset(), ImageShards(), read_codes()
    shards.provenance.require_same(dataset.provenance, IMAGES, DATASET)
    codes.provenance.require_same(dataset.provenance, CODES, DATASET)
    if not len(codes.query) or not len(codes.database):
        raise InputError(f"{CODES}: {len(codes.query)} queries and {len(codes.database)} database images; "
                         "choose a protocol that gives both")  # fmt: skip
    return dataset, shards, codes


@dataclass(frozen=True)
class Concepts:
    """The candidate concepts, one an entry; none where there is no text side.

    Attributes:
        names; frequency: int (m,), training images whose top concept it is; reasons: why discarded, "" where kept.
        lower, upper: the bounds on the frequency, None where there is no such bound.
        vocabulary: path of the file that they are from, None where there is none.
    """

    names: list[str]
    frequency: np.ndarray
    reasons: list[str]
    lower: float | None
    upper: float | None
    vocabulary: str | None = None

    @property
    def kept(self) -> list[str]:
        """The names of those that were kept."""
        return [name for name, reason in zip(self.names, self.reasons, strict=True) if not reason]

    def guiding(self, method: str) -> list[str]:
        """The names of those that `method` was free to learn from, where it learns from concepts."""
        if method not in WHOLE_VOCABULARY:
            return self.kept
        return [name for name, reason in zip(self.names, self.reasons, strict=True) if reason != "label name"]

    def overlapping(self, method: str, class_names: list[str]) -> dict[str, list[str]]:
        """Those that guide `method` and are names of classes, each with those names."""
        names = self.guiding(method)
        return {name: labels for name, labels in zip(names, label_matches(names, class_names), strict=True) if labels}


def read_concepts(codes: Codes) -> Concepts:
    """Read ``data/concepts.parquet``.

    Raises:
        InputError: it is missing, of another schema, or made with another data set or model.
    """
    columns = {"concept": pa.string(), "frequency": pa.int64(), "reason": pa.string()}
    table, provenance, _ = read_table(CONCEPTS, columns)
    provenance.require_same(codes.provenance, CONCEPTS, CODES)
    frequency = table["frequency"].to_numpy()
    low, high = provenance.params["min_frequency"], provenance.params["max_frequency"]
    reasons = table["reason"].to_pylist()
    # Every training image has one top concept; names of classes that were left out are no candidates.
    n, m = int(frequency.sum()), len(frequency) - reasons.count("label name")
    return Concepts(
        table["concept"].to_pylist(), frequency, reasons,
        lower=None if low is None or not m else low * n / m, upper=None if high is None or not m else high * n,
        vocabulary=provenance.params.get("vocabulary"),
    )  # fmt: skip


def read_baseline_curves(codes: Codes) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Precision over recall and precision over N of every baseline, by name; empty for data without labels.

    Raises:
        InputError: a file is missing or of another form, or was made with another data set, model or number of bits.
    """
    _, provenance = read_report(BASELINES)
    provenance.require_same(codes.provenance, BASELINES, CODES)
    if provenance.params.get("bits") != codes.bits:
        raise damaged(BASELINES, f"measured at {provenance.params.get('bits')} bits, while {CODES} has {codes.bits}")
    return (
        read_curves(BASELINES_PRECISION_RECALL, "recall", "precision"),
        read_curves(BASELINES_PRECISION_AT_N, "n", "precision"),
    )
