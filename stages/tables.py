"""Parquet artifacts: matrices as fixed-size lists, provenance and extras in the schema's metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.artifacts import PROVENANCE_KEY, Provenance, damaged, rebuild_hint, replacing
from stages.errors import InputError


def fixed_size_lists(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """A matrix (n, d) as a column of n lists of d."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def matrix(table: pa.Table, column: str) -> np.ndarray:
    """The inverse of :func:`fixed_size_lists`: (n, d)."""
    lists = table[column].combine_chunks()
    return lists.flatten().to_numpy().reshape(len(lists), lists.type.list_size)


def write_table(table: pa.Table, path: Path, provenance: Provenance, extra: Mapping[str, Any] | None = None) -> None:
    """Write a Parquet artifact atomically, `extra` as JSON beside the provenance."""
    metadata = {key: json.dumps(value) for key, value in (extra or {}).items()}
    metadata[PROVENANCE_KEY] = provenance.to_json()
    with replacing(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def read_table(path: Path, columns: Mapping[str, pa.DataType | None]) -> tuple[pa.Table, Provenance, dict[str, Any]]:
    """Read a Parquet artifact that must have `columns` (of these types, None: any fixed-size list of float32).

    Returns:
        The table with these columns, its provenance, and what else the metadata holds.

    Raises:
        InputError: it is missing, unreadable, or of another schema.
    """
    if not path.exists():
        raise InputError(f"{path}: not found; {rebuild_hint(path)}")
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(path, error) from None
    for name, kind in columns.items():
        found = schema.field(name).type if name in schema.names else None
        is_row = found is not None and pa.types.is_fixed_size_list(found) and found.value_type == pa.float32()
        if not (is_row if kind is None else found == kind):
            raise damaged(path, f"column '{name}' is {found or 'missing'}, not {kind or 'fixed-size lists of float'}")
    try:
        table = pq.read_table(path, columns=list(columns))  # nothing else: the others may be n x n
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(path, error) from None
    metadata = {key.decode(): value for key, value in (schema.metadata or {}).items()}
    provenance = Provenance.from_json(metadata.get(PROVENANCE_KEY), path)
    extra = {key: json.loads(value) for key, value in metadata.items()
             if key not in (PROVENANCE_KEY, "ARROW:schema", "pandas")}  # fmt: skip
    return table, provenance, extra
