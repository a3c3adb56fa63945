"""Read the codes and all that describes the run, write metrics, curves and pictures."""

from stages.artifacts import (
    CODES,
    COMPONENTS,
    METRICS,
    PRECISION_AT_N,
    PRECISION_RECALL,
    Provenance,
    write_csv,
)
from stages.components.artifact import read_components
from stages.evaluate import pictures, plots, reports
from stages.evaluate.code_statistics import code_statistics
from stages.evaluate.config import Params
from stages.evaluate.examples import evenly_spaced, example_queries, largest_groups
from stages.evaluate.inputs import read_baseline_curves, read_concepts, read_retrieval
from stages.evaluate.retrieval import evaluate_codes, metrics_dict
from stages.mine.leakage import LEAKAGE, leakage_report

REPORTS = METRICS.parent

#: Queries in the picture of examples.
EXAMPLES = 8


def run(params: Params) -> None:
    """Read ``data/codes.h5``, write ``reports/metrics.json``, what it is the mean of, curves and pictures."""
    dataset, shards, codes = read_retrieval()
    concepts, components = read_concepts(codes), read_components()
    components.provenance.require_same(codes.provenance, COMPONENTS, CODES)
    recall_curves, at_n_curves = read_baseline_curves(codes)

    labels, metrics, recall, at_n = None, {"labels": False, "note": reports.NO_LABELS}, [], []
    query_precision = {}
    if dataset.has_labels:
        labels = shards.labels(len(dataset.class_names))
        result = evaluate_codes(
            codes.query, codes.database, labels[codes.query_id], labels[codes.database_id],
            dataset.cutoffs, params.evaluate.precision_at,
        )  # fmt: skip
        metrics, query_precision = metrics_dict(result), result.query_precision
        recall, at_n = reports.precision_recall_rows(result), reports.precision_at_rows(result)
    else:
        print(f"evaluate: {reports.NO_LABELS}")
    guiding, overlap = concepts.guiding(codes.method), concepts.overlapping(codes.method, dataset.class_names)
    metrics |= code_statistics(codes.database)
    metrics |= {
        "queries": len(codes.query), "database": len(codes.database), "near_duplicates": dataset.near_duplicates,
        **reports.protocol_row(dataset),
    }  # fmt: skip
    # Guidance from the data set's own class names is leakage: a run says how much of it there was.
    metrics |= leakage_report(codes.method, len(guiding), overlap)
    if metrics["guidance"] == LEAKAGE:
        print(f"evaluate: {len(overlap):,} of the {len(guiding):,} concepts are names of the data set's own "
              "classes; concepts.exclude_label_names: true leaves them out")  # fmt: skip
    provenance = Provenance("evaluate", dataset.digest, codes.provenance.model, params={
        "method": codes.method, "bits": codes.bits, "dataset": dataset.name, "protocol": dataset.protocol,
        **params.evaluate.model_dump(),
    })  # fmt: skip

    chosen = evenly_spaced(len(codes.query), EXAMPLES)
    examples, groups = example_queries(codes, labels, dataset.class_names, chosen), largest_groups(components)
    # An image may be damaged: nothing is written before.
    images = pictures.thumbnails(shards, pictures.shown_images(examples, groups))

    reports.write_report(METRICS, metrics, provenance)
    reports.write_query_precision(codes.query_id, query_precision, provenance)
    write_csv(PRECISION_RECALL, ("radius", "recall", "precision"), recall)
    write_csv(PRECISION_AT_N, ("n", "precision"), at_n)
    run, on = f"{codes.method} ({codes.bits} bits)", f"{dataset.name}, {codes.bits} bits"
    recall_curves[run], at_n_curves[run] = [point[1:] for point in recall], at_n
    plots.draw_precision_recall(REPORTS / "precision_recall.png", recall_curves, run, f"Precision and recall, {on}")
    plots.draw_precision_at_n(REPORTS / "precision_at_n.png", at_n_curves, run, f"Precision at N, {on}")
    plots.draw_concepts(REPORTS / "concepts.png", concepts, overlap)
    pictures.draw_retrieval(REPORTS / "retrieval.png", images, examples,
                            f"Nearest images by codes of {codes.method}: {on}")  # fmt: skip
    pictures.draw_components(REPORTS / "components.png", images, groups, len(components.weights))
