"""Read features, concepts and labels; fit, encode and measure each baseline; write the report and the curves."""

from collections.abc import Callable

import numpy as np

from stages.artifacts import (
    BASELINES,
    BASELINES_PRECISION_AT_N,
    BASELINES_PRECISION_RECALL,
    DATASET,
    FEATURES,
    IMAGES,
    Provenance,
    write_csv,
)
from stages.baselines.config import Params
from stages.baselines.methods import METHODS
from stages.baselines.queries import write_baseline_precision
from stages.codes import pack
from stages.errors import InputError
from stages.evaluate.reports import (
    NO_LABELS,
    precision_at_rows,
    precision_recall_rows,
    protocol_row,
    write_report,
)
from stages.evaluate.retrieval import Retrieval, evaluate_codes, evaluate_vectors, metrics_dict
from stages.features import Features
from stages.images import ImageShards, read_dataset
from stages.mine.concepts import mine_distribution
from stages.mine.kept import read_kept_concepts

#: Images encoded at a time, so that features are never all in memory for a binary method.
BLOCK = 8192


def run(params: Params) -> None:
    """Read ``data/features.h5`` and ``data/concepts.parquet``, write ``reports/baselines.json`` and its curves."""
    dataset = read_dataset()
    with Features() as features:
        features.provenance.require_same(dataset.provenance, FEATURES, DATASET)
        provenance = Provenance(
            "baselines", dataset.digest, features.provenance.model,
            params={"bits": params.bits, "seed": params.seed, **params.evaluate.model_dump()},
        )  # fmt: skip
        if not dataset.has_labels:
            print(f"baselines: {NO_LABELS}")
            _write({}, np.empty(0, np.int64), {"labels": False, "note": NO_LABELS}, provenance)
            return

        shards = ImageShards()
        shards.provenance.require_same(dataset.provenance, IMAGES, DATASET)
        labels = shards.labels(len(dataset.class_names))
        query_id, database_id = shards.ids("query"), shards.ids("database")
        if not len(query_id) or not len(database_id):
            raise InputError(f"{DATASET}: {len(query_id)} queries and {len(database_id)} database images; "
                             "choose a protocol that gives both")  # fmt: skip
        measured = (labels[query_id], labels[database_id], dataset.cutoffs, params.evaluate.precision_at)
        train = features.train()
        results = {}
        for name, fit in METHODS.items():
            encode = fit(train, params.bits, np.random.default_rng(params.seed))
            query, database = (rows(features, ids, lambda x: pack(encode(x))) for ids in (query_id, database_id))  # noqa: B023
            results[name] = evaluate_codes(query, database, *measured)
        references = {"feature_cosine": unit_rows}
        if concepts := concept_rows(provenance):
            references["concept_cosine"] = concepts
        for name, represent in references.items():
            query, database = (rows(features, ids, represent) for ids in (query_id, database_id))
            results[name] = evaluate_vectors(query, database, *measured)
    split = protocol_row(dataset)
    _write(results, query_id, {name: {**metrics_dict(result), **split} for name, result in results.items()}, provenance)


def rows(features: Features, ids: np.ndarray, represent: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What `represent` makes of the features of images `ids` (ascending), computed block by block: (n, ...)."""
    result = None
    done = 0
    for part in np.split(ids, np.searchsorted(ids, np.arange(BLOCK, features.n_images, BLOCK))):
        block = represent(features.images(part))
        if result is None:
            result = np.empty((len(ids), *block.shape[1:]), block.dtype)
        result[done : done + len(block)] = block
        done += len(block)
    return result


def concept_rows(like: Provenance) -> Callable[[np.ndarray], np.ndarray] | None:
    """Features to their distribution over the kept concepts, scaled to unit length (UHSCM, steps 2 and 4).

    None where there are no concepts.
    """
    names, texts, tau = read_kept_concepts(like, FEATURES)
    if not names:
        return None
    return lambda features: unit_rows(mine_distribution(features, texts, tau))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, d) scaled to unit length."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _write(
    results: dict[str, Retrieval], query_id: np.ndarray, report: dict[str, object], provenance: Provenance
) -> None:
    write_csv(BASELINES_PRECISION_RECALL, ("method", "recall", "precision"), (
        (name, *point[1:]) for name, result in results.items() for point in precision_recall_rows(result)
    ))  # fmt: skip
    write_csv(BASELINES_PRECISION_AT_N, ("method", "n", "precision"), (
        (name, *point) for name, result in results.items() for point in precision_at_rows(result)
    ))  # fmt: skip
    precision = {name: result.query_precision for name, result in results.items() if result.query_precision}
    write_baseline_precision(query_id, precision, provenance)
    write_report(BASELINES, report, provenance)
