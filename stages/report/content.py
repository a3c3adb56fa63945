"""What the report says of a run, as plain tables and figures; how it looks is the templates' business."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from stages.evaluate.code_statistics import bit_moments
from stages.evaluate.examples import example_queries, largest_groups
from stages.evaluate.pictures import Example, Group
from stages.evaluate.plots import TITLES, concept_bars, precision_at_n, precision_recall
from stages.evaluate.reports import DIGITS
from stages.explain.bits import strongest
from stages.explain.figures import bit_meanings, concept_tree
from stages.explain.hierarchy import top_entries
from stages.report import figures
from stages.report.findings import chosen_queries, metric_title, warnings
from stages.report.inputs import Run, vocabulary_name
from stages.report.intervals import bootstrap_interval
from stages.report.published import Published, published

#: Concepts of a reason that are listed by name; the number of the others is told.
LISTED = 60

#: Characters of a component's concepts in a figure.
LONGEST = 36

#: Concepts that a component, or a bit, is described with.
WORDS = 3


@dataclass(frozen=True)
class Row:
    """A method in the table of metrics.

    Attributes:
        kind: "run", "hashing" or "reference".
        values: by metric, the stable ones where there are no others.
        intervals: confidence intervals by metric: of the run's values, or of a method's differences to them, in pairs.
    """

    name: str
    kind: str
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Picture:
    """A figure as SVG, and what is said of it."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Content:
    """The whole report.

    Attributes:
        title, run_name: of the report, and of the run among the methods.
        facts: (what, value) of what was run.
        warnings: (kind, text).
        metrics: names of the columns; rows: methods, the run first.
        stable: (name, stable, tie-aware) mAP of the run.
        figures: by name, those that there are.
        examples: by heading.
        concepts: (reason, names that are listed, number of them all), those that were kept first, as "".
        groups: coarse components; words: the concepts of the fine ones and of the coarse ones.
        bits: (bit, share of ones, words) of each, where there are few enough to list.
    """

    title: str
    run_name: str
    facts: list[tuple[str, str]]
    warnings: list[tuple[str, str]]
    metrics: list[str]
    rows: list[Row]
    stable: list[tuple[str, float, float]]
    published: Published
    published_value: float | None
    figures: Mapping[str, Picture]
    examples: Mapping[str, list[Example]]
    concepts: list[tuple[str, list[str], int]]
    groups: list[Group]
    fine_words: list[str]
    coarse_words: list[str]
    bit_rows: list[tuple[int, float, str]]
    bit_facts: list[tuple[str, str]]


def content(run: Run) -> Content:
    """All that is shown of `run`, but for the pictures of images."""
    codes, metrics, dataset = run.codes, run.metrics, run.dataset
    name = f"{codes.method} ({codes.bits} bits)"
    title = f"{dataset.name}: {codes.method}, {codes.bits} bits"
    mean, correlation = bit_moments(codes.database)
    rows = _rows(run, name)
    intervals = rows[0].intervals if rows else {}
    columns = [key for key in metrics if key in intervals or key.startswith("precision_")]
    compared = published(dataset.name, dataset.protocol, run.clip.model, metrics, codes.bits)
    levels = (run.hierarchy.fine, run.hierarchy.coarse)
    fine, coarse = (_words(level.distribution, run.text_concepts) for level in levels)
    order = chosen_queries(run.query_precision.get("all"), codes.query)
    return Content(
        title, name, _facts(run), warnings(metrics, dataset.skipped, dataset.counts["images"], dataset.notes),
        columns, rows, _stable(metrics), compared, metrics.get(compared.metric),
        _figures(run, name, rows, intervals, coarse, mean, correlation),
        {heading: example_queries(codes, run.labels, dataset.class_names, chosen) for heading, chosen in order.items()},
        _concepts(run), largest_groups(run.components, components=3), fine, coarse,
        _bits(run, mean), _bit_facts(metrics, codes.bits),
    )  # fmt: skip


def _facts(run: Run) -> list[tuple[str, str]]:
    dataset, counts = run.dataset, run.dataset.counts
    train = run.trained.params.get("train", {})
    model = "none: the features were computed elsewhere"
    if run.clip.model:
        tag = f", {run.clip.pretrained}" if run.clip.pretrained else ""
        model = f"{run.clip.model}{tag}; {run.clip.dim} dimensions; SHA-256 {run.clip.sha256[:DIGITS]}"
    candidates, kept = len(run.concepts.names), len(run.concepts.kept)
    vocabulary = "none: there is no text side"
    if candidates:
        vocabulary = f"{vocabulary_name(run.concepts.vocabulary)}: {kept:,} of {candidates:,} concepts kept"
    sources = (run.shards.provenance, run.clip.provenance, run.components.provenance, run.trained)
    versions: dict[str, str] = {}
    for provenance in sources:
        versions |= provenance.versions
    seeds = {
        "training": run.trained.params.get("seed"), "components": run.components.provenance.params.get("seed"),
        "baselines": run.baselines_made.params.get("seed"),
    }  # fmt: skip
    network = f"{run.network.get('network', 'unknown')}, {train.get('epochs', '?')} epochs"
    return [
        ("Data set", f"{dataset.name}: {counts['images']:,} images, {len(dataset.class_names):,} classes"
         if dataset.has_labels else f"{dataset.name}: {counts['images']:,} images without labels"),
        ("Digest of the data", dataset.digest[:DIGITS]),
        ("Protocol", f"{dataset.protocol}: {counts['query']:,} queries, {counts['database']:,} in the database, "
         f"{counts['train']:,} for training"),
        ("Digest of the splits", dataset.splits[:DIGITS]),
        ("Model", model),
        ("Vocabulary", vocabulary),
        ("Guidance", str(run.metrics.get("guidance", "unknown"))),
        ("Method", f"{run.codes.method}: {network}"),
        ("Code length", f"{run.codes.bits} bits"),
        ("Seeds", ", ".join(f"{what} {seed}" for what, seed in seeds.items() if seed is not None)),
        ("Versions", ", ".join(f"{library} {number}" for library, number in sorted(versions.items())) or "unknown"),
        ("Source", f"{dataset.source}; licence: {dataset.licence}"),
    ]  # fmt: skip


def _rows(run: Run, name: str) -> list[Row]:
    """The run, then the others; a reference has stable values in place of those that it lacks."""
    if run.labels is None:
        return []
    mine = run.query_precision
    rows = [Row(name, "run", run.metrics, {_metric(cutoff): bootstrap_interval(mine[cutoff]) for cutoff in mine})]
    for method, values in run.baselines.items():
        reference = not any(key.endswith("_tie_aware") for key in values)
        filled = {key.replace("_stable", "_tie_aware"): value for key, value in values.items()} if reference else {}
        # The same queries are drawn for both, so that what makes a query hard for both cancels.
        differences = {_metric(cutoff): bootstrap_interval(precision - mine[cutoff])
                       for cutoff, precision in run.baseline_precision.get(method, {}).items()}  # fmt: skip
        kind = "reference" if reference else "hashing"
        rows.append(Row(TITLES.get(method, method), kind, {**filled, **values}, differences))
    return rows


def _metric(cutoff: str) -> str:
    return "map_all_tie_aware" if cutoff == "all" else f"map_at_{cutoff}_tie_aware"


def _stable(metrics: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    pairs = [(key, f"{key.removesuffix('_stable')}_tie_aware") for key in metrics if key.endswith("_stable")]
    return [(metric_title(key), metrics[key], metrics[aware]) for key, aware in pairs if aware in metrics]


def _words(shares: np.ndarray, concepts: Sequence[str]) -> list[str]:
    return [", ".join(concepts[i] for i in places) for places in top_entries(shares, WORDS)]


def _concepts(run: Run) -> list[tuple[str, list[str], int]]:
    """By reason, most frequent first."""
    order = np.argsort(-run.concepts.frequency, kind="stable").tolist()
    found: dict[str, list[str]] = {"": []}
    for place in order:
        found.setdefault(run.concepts.reasons[place], []).append(
            f"{run.concepts.names[place]} ({run.concepts.frequency[place]:,})"
        )
    return [(reason, names[:LISTED], len(names)) for reason, names in found.items()] if run.concepts.names else []


def _bits(run: Run, mean: np.ndarray) -> list[tuple[int, float, str]]:
    if len(mean) > figures.MAX_BITS:
        return []
    profile = run.profiles["concept" if run.profiles["concept"].names else "fine"]
    rows = strongest(profile.correlation, WORDS)
    words = [", ".join(f"{profile.correlation[i, bit]:+.2f} {profile.names[i]}" for i in places)
             for bit, places in enumerate(rows)]  # fmt: skip
    return [(bit, (float(value) + 1) / 2, words[bit]) for bit, value in enumerate(mean)]


def _bit_facts(metrics: Mapping[str, Any], bits: int) -> list[tuple[str, str]]:
    return [
        ("Imbalance", f"{metrics['bit_balance']:.3f}: mean over the bits of |mean of the bit as -1 and +1|; 0 is best"),
        ("Correlation", f"{metrics['bit_correlation']:.3f}: mean |correlation| of two bits; 0 is best"),
        ("Dead bits", f"{metrics['dead_bits']:,} of {bits:,}"),
        ("Different codes", f"{metrics['distinct_codes']:,} of {metrics['database']:,} images"),
    ]


def _figures(
    run: Run, name: str, rows: Sequence[Row], intervals: Mapping[str, tuple[float, float]], coarse: Sequence[str],
    mean: np.ndarray, correlation: np.ndarray,
) -> dict[str, Picture]:  # fmt: skip
    found = {}

    def add(key: str, figure: Figure, caption: str) -> None:
        if key in ("recall", "at_n", "losses", "concepts"):
            figure.set_size_inches(figures.CURVE[0], figure.get_figheight() if key == "concepts" else figures.CURVE[1])
        found[key] = Picture(figures.svg(figure, caption), caption)

    key = "map_all_tie_aware"
    if key in intervals:
        values = {row.name: row.values[key] for row in rows if key in row.values}
        add("methods", figures.method_dots(values, name, intervals[key], "mAP@all, tie-aware"),
            "mAP over the whole database of this run, with its 95 % interval over the queries, and of the baselines.")
        add("recall", precision_recall({**run.recall_curves, name: run.recall}, name),
            "Precision over recall, pooled over all queries, as the Hamming radius grows.")
        add("at_n", precision_at_n({**run.at_n_curves, name: run.at_n}, name),
            "Mean precision among the N nearest images, in the order of the database where distances are equal.")
    if run.losses["loss"]:
        add("losses", figures.training_losses(run.losses), "Mean loss of each epoch of the training.")
    if run.concepts.names:
        add("concepts", concept_bars(run.concepts, run.overlap),
            "Candidate concepts by the number of training images whose top concept they are, and the bounds.")
    if run.text_concepts:
        add("tree", concept_tree(run.hierarchy, run.text_concepts),
            "Concept shares of the largest coarse components and of the largest fine ones in each, and how far these "
            "drift from the component above.")
    names = [f"{place}  {words[:LONGEST]}" if words else f"group {place}" for place, words in enumerate(coarse)]
    components, shown = run.components, run.map
    add("map", figures.image_map(shown.x, shown.y, shown.coarse, names),
        f"Where {min(len(shown.id), figures.MAX_POINTS):,} of the {len(run.codes.database):,} images of the database "
        "lie when those with similar codes are put near each other (t-SNE), coloured by their coarse component.")
    if len(names) > 1:
        add("cooccurrence", figures.cooccurrence(run.cooccurrence, components.weights, components.coarse_labels, names),
            "Which coarse components share images: an image that is a mixture belongs to several.")
    add("bits", figures.bit_statistics(mean, correlation),
        "How often each bit is 1 in the database; below, how strongly each pair of bits correlates.")
    if run.codes.bits <= figures.MAX_BITS:
        add("meanings", bit_meanings(run.profiles, run.hierarchy),
            "What the bits mean: correlation of every bit with concepts and, below, with coarse components.")
    return found
