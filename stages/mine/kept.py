"""The concepts that ``mine`` kept, for the stages that tell them by their features."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.artifacts import CONCEPTS, Provenance
from stages.tables import read_table, unit_matrix


def read_kept_concepts(like: Provenance, path: Path) -> tuple[list[str], np.ndarray, float]:
    """The names of the m kept concepts of ``data/concepts.parquet``, their text features (m, d), and the temperature.

    Args:
        like, path: an artifact whose data set and model they must have.

    Raises:
        InputError: it is missing, damaged, or made with another data set or model.
    """
    table, mined, _ = read_table(CONCEPTS, {"concept": pa.string(), "kept": pa.bool_(), "text_feature": None})
    mined.require_same(like, CONCEPTS, path)
    kept = table["kept"].to_numpy(zero_copy_only=False)
    names = [name for name, keep in zip(table["concept"].to_pylist(), kept, strict=True) if keep]
    return names, unit_matrix(table, "text_feature", CONCEPTS)[kept], mined.params["tau"]
