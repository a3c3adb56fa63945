"""``data/map.parquet``: where the images of the database lie on a map, and to which coarse component they belong.

Columns: ``id`` int64, ascending; ``x`` and ``y`` float32, with the origin in the middle and no other unit than that
near images have near codes; ``coarse`` int32, the coarse component, -1 where there is none.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.artifacts import MAP, Provenance, damaged
from stages.tables import read_table, write_table

COLUMNS = {"id": pa.int64(), "x": pa.float32(), "y": pa.float32(), "coarse": pa.int32()}


@dataclass(frozen=True)
class ImageMap:
    """Images of the database on a plane; a sample of them where there are more than ``map.images``.

    Attributes:
        id: int64 (n,), ascending; x, y: float32 (n,).
        coarse: int32 (n,), the coarse component that an image belongs to; -1 for none.
    """

    id: np.ndarray
    x: np.ndarray
    y: np.ndarray
    coarse: np.ndarray
    provenance: Provenance


def write_map(found: ImageMap, path: Path = MAP) -> None:
    """Write the map atomically."""
    table = pa.table({name: pa.array(getattr(found, name), kind) for name, kind in COLUMNS.items()})
    write_table(table, path, found.provenance)


def read_map(path: Path = MAP) -> ImageMap:
    """Read the map.

    Raises:
        InputError: it is missing, unreadable or of another schema.
    """
    table, provenance, _ = read_table(path, COLUMNS)
    found = ImageMap(*(table[name].to_numpy() for name in COLUMNS), provenance)
    if not (np.isfinite(found.x).all() and np.isfinite(found.y).all()):
        raise damaged(path, "has places that are not finite numbers")
    if (np.diff(found.id) <= 0).any() or (found.coarse < -1).any():
        raise damaged(path, "has ids that do not ascend, or components below -1")
    return found
