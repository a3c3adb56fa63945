"""What the sheets of images show, chosen from arrays and always the same for the same arrays."""

from collections.abc import Sequence

import numpy as np

from stages.codes import Codes
from stages.components.artifact import Components
from stages.evaluate.pictures import Component, Example, Group, Neighbour
from stages.evaluate.ranking import hamming_distances


def evenly_spaced(n: int, count: int) -> np.ndarray:
    """`count` different ones of the numbers below `n`, or all."""
    return np.unique(np.linspace(0, n - 1, count).round().astype(int))


def example_queries(
    codes: Codes, labels: np.ndarray | None, class_names: Sequence[str], chosen: np.ndarray, neighbours: int = 10
) -> list[Example]:
    """The queries in the rows `chosen` with the database images nearest to each in stable order.

    Args:
        labels: multi-hot labels of all images, bool (n_images, n_classes), row = id; None where there are none.
    """
    distances = hamming_distances(codes.query[chosen], codes.database)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :neighbours]
    examples = []
    for query, row, order in zip(codes.query_id[chosen].tolist(), distances, nearest, strict=True):
        found = codes.database_id[order].tolist()
        hits = [None] * len(found) if labels is None else np.any(labels[found] & labels[query], axis=1).tolist()
        shown = [] if labels is None else np.flatnonzero(labels[query])
        examples.append(Example(
            query, ", ".join(class_names[i] for i in shown),
            [Neighbour(*values) for values in zip(found, row[order].tolist(), hits, strict=True)],
        ))  # fmt: skip
    return examples


def largest_groups(all_components: Components, groups: int = 8, components: int = 4, images: int = 4) -> list[Group]:
    """The coarse groups of largest weight, in each the largest fine components with their most typical images."""
    weights, coarse_labels = all_components.weights, all_components.coarse_labels
    coarse_weights = np.bincount(coarse_labels, weights=weights)
    result = []
    for group in np.argsort(-coarse_weights, kind="stable")[:groups].tolist():
        members = np.flatnonzero(coarse_labels == group)
        parts = []
        for part in members[np.argsort(-weights[members], kind="stable")[:components]].tolist():
            row, column = np.nonzero(all_components.top_index == part)
            best = row[np.argsort(-all_components.top_value[row, column], kind="stable")[:images]]
            parts.append(Component(part, float(weights[part]), all_components.train_id[best].tolist()))
        result.append(Group(group, float(coarse_weights[group]), len(members), parts))
    return result
