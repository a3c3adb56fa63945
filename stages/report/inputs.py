"""All that the report shows, read from the artifacts of the other stages and checked against the codes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stages.artifacts import (
    BASELINES,
    BASELINES_QUERY_PRECISION,
    CLIP,
    CODES,
    COMPONENTS,
    HASHNET,
    MAP,
    METRICS,
    PRECISION_AT_N,
    PRECISION_RECALL,
    QUERY_PRECISION,
    TRAINING,
    Provenance,
    damaged,
    read_json,
)
from stages.baselines.queries import QueryPrecision, read_baseline_precision
from stages.clip import ClipConfig, read_clip_config
from stages.codes import Codes
from stages.components.artifact import Components, read_components
from stages.evaluate.inputs import Concepts, read_baseline_curves, read_concepts, read_retrieval
from stages.evaluate.reports import Curve, read_curve, read_query_precision, read_report
from stages.explain.bits import Profile
from stages.explain.hierarchy import ConceptHierarchy
from stages.explain.tables import BITS, HIERARCHY, read_bits, read_hierarchy
from stages.images import Dataset, ImageShards
from stages.map.artifact import ImageMap, read_map

#: Where the losses of the training are, one file a term.
LOSSES = TRAINING / "plots" / "metrics"


@dataclass(frozen=True)
class Run:
    """A run of the pipeline.

    Attributes:
        labels: multi-hot labels of all images, bool (n_images, n_classes), row = id; None where there are none.
        overlap: concepts that guided the method and are names of classes, each with these names.
        text_concepts: names of the concepts of `hierarchy`.
        cooccurrence: (m1, m1) of the fine components.
        metrics: of the run; `query_precision`: tie-aware average precisions (q,) by cut-off, empty without labels.
        baselines: metrics by method, empty without labels; recall_curves, at_n_curves: by method; baseline_precision:
            like `query_precision`, of those that hash.
        recall, at_n: the curves of the run; losses: of each term by epoch.
        network: ``config.json`` of the hashing network, without its provenance, which is `trained`.
        map: places of images of the database.
    """

    dataset: Dataset
    shards: ImageShards
    codes: Codes
    labels: np.ndarray | None
    concepts: Concepts
    overlap: Mapping[str, list[str]]
    components: Components
    cooccurrence: np.ndarray
    metrics: Mapping[str, Any]
    query_precision: Mapping[str, np.ndarray]
    baselines: Mapping[str, Mapping[str, Any]]
    baselines_made: Provenance
    baseline_precision: Mapping[str, QueryPrecision]
    recall_curves: Mapping[str, Curve]
    at_n_curves: Mapping[str, Curve]
    recall: Curve
    at_n: Curve
    losses: Mapping[str, Curve]
    clip: ClipConfig
    network: Mapping[str, Any]
    trained: Provenance
    profiles: Mapping[str, Profile]
    hierarchy: ConceptHierarchy
    text_concepts: list[str]
    map: ImageMap


def read_run() -> Run:
    """Read the artifacts in the current directory.

    Raises:
        InputError: one is missing, damaged, or was made from something else than the codes.
    """
    dataset, shards, codes = read_retrieval()
    made = codes.provenance
    labels = shards.labels(len(dataset.class_names)) if dataset.has_labels else None
    concepts, components = read_concepts(codes), read_components()
    components.provenance.require_same(made, COMPONENTS, CODES)
    metrics, measured = read_report(METRICS)
    measured.require_same(made, METRICS, CODES)
    if (measured.params.get("method"), measured.params.get("bits")) != (codes.method, codes.bits):
        raise damaged(METRICS, f"was measured with other codes than those in {CODES}")
    cutoffs = [*map(str, dataset.cutoffs), "all"] if dataset.has_labels else []
    queries, precision, precision_made = read_query_precision(cutoffs)
    precision_made.require_same(made, QUERY_PRECISION, CODES)
    if not np.array_equal(queries, codes.query_id):
        raise damaged(QUERY_PRECISION, f"has other queries than {CODES}")
    recall_curves, at_n_curves = read_baseline_curves(codes)
    baseline_precision, paired = read_baseline_precision(codes.query_id, cutoffs)
    paired.require_same(made, BASELINES_QUERY_PRECISION, CODES)
    baselines, baselines_made = read_report(BASELINES)
    clip = read_clip_config()
    Provenance("weights", model=clip.sha256).require_same(made, CLIP, CODES)
    network, trained = _read_network()
    trained.require_same(made, HASHNET, CODES)
    hierarchy, text_concepts, explained = read_hierarchy()
    explained.require_same(made, HIERARCHY, CODES)
    profiles, bits_made = read_bits()
    bits_made.require_same(made, BITS, CODES)
    return Run(
        dataset, shards, codes, labels, concepts, concepts.overlapping(codes.method, dataset.class_names), components,
        _read_cooccurrence(len(components.weights)), metrics, precision, _methods(baselines), baselines_made,
        baseline_precision, recall_curves, at_n_curves,
        read_curve(PRECISION_RECALL, "recall", "precision", further=["radius"]),
        read_curve(PRECISION_AT_N, "n", "precision"), _read_losses(), clip, network, trained, profiles, hierarchy,
        text_concepts, _read_map(codes),
    )  # fmt: skip


def _methods(baselines: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rows of methods; a report without labels has a note instead."""
    return {name: row for name, row in baselines.items() if isinstance(row, Mapping)}


def _read_network() -> tuple[dict[str, Any], Provenance]:
    path = HASHNET / "config.json"
    content = read_json(path)
    try:
        provenance = Provenance(**content.pop("provenance"))
    except (KeyError, TypeError):
        raise damaged(path, "not a hashing network") from None
    return content, provenance


def _read_cooccurrence(fine: int) -> np.ndarray:
    try:
        with h5py.File(COMPONENTS) as file:
            matrix = file["cooccurrence"][:].astype(np.float64)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise damaged(COMPONENTS, error) from None
    if matrix.shape != (fine, fine):
        raise damaged(COMPONENTS, f"has a co-occurrence of shape {matrix.shape} for {fine} components")
    if not (np.isfinite(matrix) & (matrix >= 0)).all():
        raise damaged(COMPONENTS, "has a co-occurrence that is negative or no number")
    return matrix


def _read_losses() -> dict[str, Curve]:
    """The curve of each term, the total first; a term that is all of the total is left out."""
    total = LOSSES / "loss.tsv"
    curves = {"loss": read_curve(total, "step", "loss", delimiter="\t")}
    if curves["loss"] and read_json(TRAINING / "metrics.json").get("step") != curves["loss"][-1][0]:
        raise damaged(total, f"does not end where {TRAINING / 'metrics.json'} does")
    for path in sorted(LOSSES.glob("*.tsv")):
        if path not in (total, LOSSES / "learning_rate.tsv"):
            curve = read_curve(path, "step", path.stem, delimiter="\t")
            if curve != curves["loss"]:
                curves[path.stem] = curve
    return curves


def _read_map(codes: Codes) -> ImageMap:
    found = read_map()
    found.provenance.require_same(codes.provenance, MAP, CODES)
    if {key: value for key, value in found.provenance.params.items() if key != "map"} != codes.provenance.params:
        raise damaged(MAP, f"was made with other codes than those in {CODES}")
    return found


def vocabulary_name(path: str | None) -> str:
    """A vocabulary by its name; a file elsewhere without the directories that it is in."""
    return Path(path).name if path else "none"
