"""The two tables of ``reports/explain``: which bit means what, and the concepts of the component hierarchy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.artifacts import EXPLAIN, Provenance, damaged
from stages.errors import InputError
from stages.explain.bits import Profile
from stages.explain.hierarchy import ConceptHierarchy, Level, top_entries
from stages.tables import fixed_size_lists, matrix, read_table, write_table

BITS = EXPLAIN / "bits.parquet"
HIERARCHY = EXPLAIN / "hierarchy.parquet"

#: What bits correlate with, in the order of the table.
KINDS = ("concept", "fine", "coarse")

BIT_COLUMNS = {
    "kind": pa.string(), "index": pa.int32(), "name": pa.string(), "bit": pa.int16(), "correlation": pa.float32(),
    "mean": pa.float32(),
}  # fmt: skip

#: Concepts listed for a component.
LISTED = 5


def write_bits(directory: Path, profiles: Mapping[str, Profile], provenance: Provenance) -> None:
    """Write ``bits.parquet`` into `directory`: one row for each bit of each concept and component.

    Columns: ``kind`` (concept, fine or coarse), ``index`` within its kind, ``name``, ``bit``, ``correlation`` of the
    bit with the share, and ``mean`` of the bit (-1 to 1) over the images, weighted with the share.
    """
    columns: dict[str, list[np.ndarray | list[str]]] = {name: [] for name in BIT_COLUMNS}
    for kind in KINDS:
        profile = profiles[kind]
        count, bits = profile.correlation.shape
        columns["kind"].append(np.full(count * bits, kind, object))
        columns["index"].append(np.repeat(np.arange(count), bits))
        columns["name"].append(np.repeat(np.array(profile.names, object), bits))
        columns["bit"].append(np.tile(np.arange(bits), count))
        columns["correlation"].append(profile.correlation.ravel())
        columns["mean"].append(profile.mean_code.ravel())
    arrays = {name: pa.array(np.concatenate(parts), BIT_COLUMNS[name]) for name, parts in columns.items()}
    write_table(pa.table(arrays), directory / BITS.name, provenance)


def read_bits() -> tuple[dict[str, Profile], Provenance]:
    """The inverse of :func:`write_bits`.

    Raises:
        InputError: the table is missing, unreadable or of another form.
    """
    _require(BITS)
    table, provenance, _ = read_table(BITS, BIT_COLUMNS)
    column = {name: table[name].to_numpy() for name in BIT_COLUMNS}
    bits = int(column["bit"].max()) + 1 if len(table) else 0
    if not bits or len(table) % bits or (column["bit"].reshape(-1, bits) != np.arange(bits)).any():
        raise damaged(BITS, "has not the same bits for each name")
    profiles = {}
    for kind in KINDS:
        rows = column["kind"] == kind
        correlation, mean_code = (column[name][rows].reshape(-1, bits) for name in ("correlation", "mean"))
        profiles[kind] = Profile(column["name"][rows][::bits].tolist(), correlation, mean_code)
    return profiles, provenance


def component_name(level: str, index: int) -> str:
    """What a component is called, in tables and pictures."""
    return f"{level} {index}"


def write_hierarchy(
    directory: Path, hierarchy: ConceptHierarchy, concepts: list[str], provenance: Provenance
) -> None:
    """Write ``hierarchy.parquet`` into `directory`: one row a component, the coarse ones first.

    Columns: ``level`` and ``component``; ``parent``, -1 for the whole collection; ``weight``, mean responsibility;
    ``entropy`` and, from the parent, ``kl`` and ``js``, in bits; ``top``, concepts by share; ``rising`` and
    ``falling``, concepts by how much their share is above or below the parent's; ``distribution`` over the concepts,
    whose names are in the metadata.
    """
    parts = [_rows("coarse", hierarchy.coarse, concepts), _rows("fine", hierarchy.fine, concepts)]
    write_table(pa.concat_tables(parts), directory / HIERARCHY.name, provenance, {
        "concepts": concepts, "collection": hierarchy.collection.tolist(),
    })  # fmt: skip


def _rows(name: str, level: Level, concepts: list[str]) -> pa.Table:
    def named(values: np.ndarray) -> pa.Array:
        return pa.array([[concepts[i] for i in row] for row in top_entries(values, LISTED)], pa.list_(pa.string()))

    return pa.table({
        "level": pa.array([name] * len(level.weights)), "component": np.arange(len(level.weights), dtype=np.int32),
        "parent": level.parents, "weight": level.weights.astype(np.float32),
        "entropy": level.entropy.astype(np.float32), "kl": level.kl.astype(np.float32),
        "js": level.js.astype(np.float32), "top": named(level.distribution), "rising": named(level.change),
        "falling": named(-level.change), "distribution": fixed_size_lists(level.distribution.astype(np.float32)),
    })  # fmt: skip


def read_hierarchy() -> tuple[ConceptHierarchy, list[str], Provenance]:
    """The inverse of :func:`write_hierarchy`: the hierarchy and the names of its concepts.

    Raises:
        InputError: the table is missing, unreadable or of another form.
    """
    columns: dict[str, Any] = {"level": pa.string(), "parent": pa.int32(), "distribution": None}
    columns |= dict.fromkeys(("weight", "entropy", "kl", "js"), pa.float32())
    table, provenance, extra = read_table(HIERARCHY, columns)
    concepts, collection = extra.get("concepts"), np.array(extra.get("collection"), np.float64)
    distribution = matrix(table, "distribution").astype(np.float64)
    if not isinstance(concepts, list) or not collection.shape == distribution.shape[1:] == (len(concepts),):
        raise damaged(HIERARCHY, "has not a share for each concept")
    level = table["level"].to_numpy()
    numbers = {name: table[name].to_numpy() for name in ("parent", "weight", "entropy", "kl", "js")}
    levels: dict[str, Level] = {}
    above = collection[None]
    for name in ("coarse", "fine"):
        rows = level == name
        parents, weight, entropy, kl, js = (values[rows] for values in numbers.values())
        if not rows.any() or parents.min() < -1 or parents.max() >= len(above):
            raise damaged(HIERARCHY, f"has no {name} components with a parent each")
        shares = distribution[rows]
        levels[name] = Level(parents, weight, shares, shares - above[parents], entropy, kl, js)
        above = shares
    return ConceptHierarchy(collection, levels["coarse"], levels["fine"]), concepts, provenance


def read_component_concepts() -> dict[str, list[list[str]]]:
    """The top concepts of the components, by level (``fine``, ``coarse``) and component.

    Raises:
        InputError: ``hierarchy.parquet`` is missing, unreadable or of another form.
    """
    _require(HIERARCHY)
    table, _, _ = read_table(HIERARCHY, {"level": pa.string(), "top": pa.list_(pa.string())})
    found: dict[str, list[list[str]]] = {"coarse": [], "fine": []}
    for level, concepts in zip(table["level"].to_pylist(), table["top"].to_pylist(), strict=True):
        found.setdefault(level, []).append(concepts)
    return found


def _require(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path}: not found; run `python -m stages explain` first, without options")
