"""The points of the map as the page takes them: a sample where there are very many, on a grid of whole numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts import INDEX, MAP
from stages.errors import InputError
from stages.explain.tables import component_name, read_component_concepts
from stages.index.opened import BinaryIndex
from stages.map.artifact import ImageMap, read_map

#: Points that are sent, at most: a browser draws so many in a few milliseconds, and more would cover each other.
POINTS = 20_000
#: Steps of the grid along the longer side.
GRID = 4096
#: Concepts that are named of a component.
NAMED = 3


def read_points(index: BinaryIndex) -> dict[str, Any]:
    """The map of an index's images as JSON has it, or ``problem``: why there is none and what to do."""
    path = Path(MAP)
    try:
        found = read_map(path)
        found.provenance.require_same(index.provenance, path, Path(INDEX))
    except InputError as error:
        return {"problem": str(error)}
    kept = index.rows_of(found.id) >= 0  # images may have been removed since
    found = replace(found, **{name: getattr(found, name)[kept] for name in ("id", "x", "y", "coarse")})
    return points(found, _words(), len(index))


def points(found: ImageMap, words: Mapping[int, Sequence[str]], total: int) -> dict[str, Any]:
    """A map as JSON has it: ids, places x and y on the grid (y downwards), components, names of these, and the total.

    Args:
        words: concepts of the coarse components, where they are known.
        total: images of the index.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(found.id))[:POINTS])
    places = np.stack([found.x, -found.y], axis=1)[chosen].astype(np.float64)
    if len(places):
        places -= places.min(axis=0)
        places *= (GRID - 1) / max(float(places.max()), 1e-12)
    coarse = found.coarse[chosen]
    names = {
        int(one): component_name("coarse", one) + (f": {', '.join(words[one][:NAMED])}" if words.get(one) else "")
        for one in np.unique(coarse[coarse >= 0]).tolist()
    }
    x, y = places.round().astype(int).T
    return {"ids": found.id[chosen].tolist(), "x": x.tolist(), "y": y.tolist(), "coarse": coarse.tolist(),
            "names": names, "total": total, "grid": GRID}  # fmt: skip


def _words() -> dict[int, list[str]]:
    try:
        return dict(enumerate(read_component_concepts()["coarse"]))
    except InputError:  # the stage explain has not run
        return {}


def as_bytes(content: dict[str, Any]) -> bytes:
    """JSON without blanks."""
    return json.dumps(content, separators=(",", ":")).encode()
