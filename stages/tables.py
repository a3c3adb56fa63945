"""Parquet artifacts: matrices as fixed-size lists, provenance and extras in the schema's metadata."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.artifacts import PROVENANCE_KEY, Provenance, damaged, rebuild_hint, replacing
from stages.errors import InputError

#: Type of a stored matrix without columns: its lists are empty, since Parquet has none of the fixed size 0.
EMPTY = pa.list_(pa.float32())

#: Rows and bytes that are read at a time where a matrix is not to be in memory twice.
ROWS, BUFFER = 4096, 1 << 20


def fixed_size_lists(matrix: np.ndarray) -> pa.FixedSizeListArray | pa.ListArray:
    """A matrix (n, d) as a column of n lists of d."""
    if matrix.shape[1] == 0:
        return pa.array([[]] * len(matrix), pa.list_(pa.from_numpy_dtype(matrix.dtype)))
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def matrix(table: pa.Table, column: str) -> np.ndarray:
    """The inverse of :func:`fixed_size_lists`: (n, d)."""
    lists = table[column].combine_chunks()
    return lists.flatten().to_numpy().reshape(len(lists), _columns(lists.type))


def unit_matrix(table: pa.Table, column: str, path: Path) -> np.ndarray:
    """The same of rows that have to be of unit length.

    Raises:
        InputError: they are not.
    """
    rows = matrix(table, column)
    require_unit(rows, column, path)
    return rows


def require_unit(rows: np.ndarray, column: str, path: Path) -> None:
    """Refuse rows (n, d) of a column that are not of unit length.

    Raises:
        InputError: says so.
    """
    if not np.allclose(np.einsum("ij,ij->i", rows, rows, dtype=np.float64), 1, atol=1e-2):
        raise damaged(path, f"column '{column}' has rows that are not of unit length")


def _columns(kind: pa.DataType) -> int:
    return kind.list_size if pa.types.is_fixed_size_list(kind) else 0


def _is_matrix(kind: pa.DataType) -> bool:
    return kind == EMPTY or (pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32())


@contextmanager
def table_writer(
    schema: pa.Schema, path: Path, provenance: Provenance, extra: Mapping[str, Any] | None = None
) -> Iterator[pq.ParquetWriter]:
    """Write a Parquet artifact atomically, a table of row groups at a time; `extra` as JSON beside the provenance."""
    metadata = {key: json.dumps(value) for key, value in (extra or {}).items()}
    metadata[PROVENANCE_KEY] = provenance.to_json()
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema.with_metadata(metadata), compression="zstd") as writer,
    ):
        yield writer


def write_table(table: pa.Table, path: Path, provenance: Provenance, extra: Mapping[str, Any] | None = None) -> None:
    """:func:`table_writer` for a table that is in memory."""
    with table_writer(table.schema, path, provenance, extra) as writer:
        writer.write_table(table)


def read_table(path: Path, columns: Mapping[str, pa.DataType | None]) -> tuple[pa.Table, Provenance, dict[str, Any]]:
    """Read a Parquet artifact that must have `columns` (of these types, None: any matrix of float32).

    Returns:
        The table with these columns, its provenance, and what else the metadata holds.

    Raises:
        InputError: it is missing, unreadable, or of another schema.
    """
    schema = _schema(path, columns)
    try:
        table = pq.read_table(path, columns=list(columns))  # nothing else: the others may be n x n
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(path, error) from None
    for name in columns:
        _refuse_ragged(table, name, path)
    return table, *_metadata(schema, path)


def read_matrix(path: Path, column: str) -> tuple[np.ndarray, np.ndarray, Provenance, dict[str, Any]]:
    """Read a Parquet artifact of a matrix of float32 piece by piece: memory holds the matrix and little beside it.

    Returns:
        The ids (n,) int64 of the rows, the matrix (n, d), its provenance, and what else the metadata holds.

    Raises:
        InputError: it is missing, unreadable, or of another schema.
    """
    columns = {"id": pa.int64(), column: None}
    schema = _schema(path, columns)
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
            n, stop = file.metadata.num_rows, 0
            ids, rows = np.empty(n, np.int64), np.empty((n, _columns(schema.field(column).type)), np.float32)
            for batch in file.iter_batches(ROWS, columns=list(columns)):
                part, start = pa.Table.from_batches([batch]), stop
                stop += len(part)
                _refuse_ragged(part, column, path)
                ids[start:stop], rows[start:stop] = part["id"].to_numpy(), matrix(part, column)
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(path, error) from None
    return ids, rows, *_metadata(schema, path)


def _schema(path: Path, columns: Mapping[str, pa.DataType | None]) -> pa.Schema:
    """The schema of an artifact that must have `columns`."""
    if not path.exists():
        raise InputError(f"{path}: not found; {rebuild_hint(path)}")
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(path, error) from None
    for name, kind in columns.items():
        found = schema.field(name).type if name in schema.names else None
        if found is None or not (_is_matrix(found) if kind is None else found == kind):
            raise damaged(path, f"column '{name}' is {found or 'missing'}, not {kind or 'fixed-size lists of float'}")
    return schema


def _refuse_ragged(table: pa.Table, name: str, path: Path) -> None:
    if table.schema.field(name).type == EMPTY and pc.max(pc.list_value_length(table[name])).as_py():
        raise damaged(path, f"column '{name}' has lists of any size, not fixed-size lists of float")


def _metadata(schema: pa.Schema, path: Path) -> tuple[Provenance, dict[str, Any]]:
    metadata = {key.decode(): value for key, value in (schema.metadata or {}).items()}
    provenance = Provenance.from_json(metadata.get(PROVENANCE_KEY), path)
    return provenance, {key: json.loads(value) for key, value in metadata.items()
                        if key not in (PROVENANCE_KEY, "ARROW:schema", "pandas")}  # fmt: skip
