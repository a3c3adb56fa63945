"""What a reader must know before trusting the numbers, and which queries to show."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.mine.leakage import LEAKAGE

#: Difference of two orders of equal distances in mAP from which it is warned of.
TIES = 0.005

#: Names that a warning lists.
LISTED = 12


def warnings(metrics: Mapping[str, Any], skipped: int, images: int, notes: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, text) of each thing to know.

    Args:
        metrics: of the run.
        skipped: source images that could not be read; images: those that could.
        notes: of the data set.
    """
    found = []
    if metrics.get("guidance") == LEAKAGE:
        names = metrics.get("overlapping_concepts", [])
        more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
        found.append(("Leakage", f"{len(names):,} of the concepts that guided the training are names of the data set's "
                      f"own classes ({', '.join(names[:LISTED])}{more}). A collection without labels has no such "
                      "names; concepts.exclude_label_names: true leaves them out."))  # fmt: skip
    for name, stable in metrics.items():
        aware = metrics.get(f"{name.removesuffix('_stable')}_tie_aware") if name.endswith("_stable") else None
        if aware is not None and abs(stable - aware) >= TIES:
            found.append(("Ties", f"The order among images at the same distance moves {metric_title(name)} by "
                          f"{stable - aware:+.4f}: {stable:.4f} in the order of the database, {aware:.4f} in "
                          "expectation over random order, which is the honest number."))  # fmt: skip
    distinct, database = metrics.get("distinct_codes"), metrics.get("database")
    if distinct and database and distinct < database / 2:
        found.append(("Equal codes", f"The {database:,} images of the database have {distinct:,} different codes; "
                      "equal ones cannot be told apart. More bits tell more apart."))  # fmt: skip
    if dead := metrics.get("dead_bits"):
        found.append(("Dead bits", f"{_count(dead, 'bit')} of the codes "
                      f"{'has' if dead == 1 else 'have'} the same value in all images."))  # fmt: skip
    if skipped:
        found.append(("Skipped images", f"{_count(skipped, 'source image')} of {skipped + images:,} could not be read; "
                      "reports/skipped.csv lists them."))  # fmt: skip
    near = metrics.get("near_duplicates")
    if near:
        found.append(("Near-duplicates", f"{_count(near, 'query')} of {metrics.get('queries', 0):,} "
                      f"{'has' if near == 1 else 'have'} a near-duplicate in the database, which is found easily; "
                      "reports/near_duplicates.csv lists them."))  # fmt: skip
    if near is None:
        found.append(("Near-duplicates", "Not looked for: there are no pixels to compare."))
    if metrics.get("labels") is False:
        found.append(("No labels", "Nothing says which images are alike, so there are no retrieval metrics."))
    # The number of near-duplicates is a note, too.
    found += [("Data", note) for note in notes if "near-duplicate" not in note]
    return found


def _count(number: int, what: str) -> str:
    plural = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{number:,} {what if number == 1 else plural}"


def metric_title(name: str) -> str:
    """How a key of the metrics is called.

    >>> [metric_title(name) for name in ("map_at_1000_stable", "map_all_tie_aware", "precision_at_10")]
    ['mAP@1,000', 'mAP@all', 'P@10']
    """
    name = name.removesuffix("_stable").removesuffix("_tie_aware")
    if name == "map_all":
        return "mAP@all"
    if name == "precision_hamming2":
        return "P(radius 2)"
    kind, _, number = name.partition("_at_")
    return f"{'mAP' if kind == 'map' else 'P'}@{int(number):,}" if number.isdigit() else name.replace("_", " ")


def chosen_queries(precision: np.ndarray | None, codes: np.ndarray, count: int = 4) -> dict[str, np.ndarray]:
    """Rows of the queries to show by heading: best, worst and drawn; without precisions (q,) only drawn ones.

    Of equally good ones the first; of those with the same code, which find the same images, one in all headings.

    Args:
        precision: average precision of each query; codes: their codes, uint8 (q, bits / 8).
    """
    code = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    orders = {"Drawn at random": np.random.default_rng(0).permutation(len(codes))}
    if precision is not None:
        best, worst = np.argsort(-precision, kind="stable"), np.argsort(precision, kind="stable")
        orders = {"Best": best, "Worst": worst, **orders}
    shown: set[int] = set()
    chosen: dict[str, np.ndarray] = {}
    for heading, order in orders.items():
        order = order[np.sort(np.unique(code[order], return_index=True)[1])]  # the first of each code
        rows = order[~np.isin(code[order], list(shown))][:count]
        shown |= set(code[rows].tolist())
        if len(rows):
            chosen[heading] = rows
    return chosen
