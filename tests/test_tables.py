"""Parquet artifacts that are read and written piece by piece."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.artifacts import PROVENANCE_KEY, Provenance
from stages.errors import InputError
from stages.tables import ROWS, fixed_size_lists, matrix, read_matrix, read_table, table_writer, write_table

MADE = Provenance("mine", "d" * 64, "e" * 64, params={"tau": 3.0})


def table(rows: np.ndarray, first: int = 0) -> pa.Table:
    ids = np.arange(first, first + len(rows)) * 2
    return pa.table({"id": ids, "factor": fixed_size_lists(rows), "other": pa.array(["x"] * len(rows))})


def drawn(n: int, d: int = 8) -> np.ndarray:
    return np.random.default_rng(n).random((n, d), dtype=np.float32)


def write(path: Path, parts: list[np.ndarray]) -> None:
    tables = [table(rows, sum(map(len, parts[:number]))) for number, rows in enumerate(parts)]
    with table_writer(tables[0].schema, path, MADE, {"scale": 2.0}) as writer:
        for one in tables:
            writer.write_table(one)


@pytest.mark.parametrize("sizes", [[1], [ROWS], [5, 1, ROWS + 3, 2 * ROWS], [2 * ROWS + 1]])
def test_a_matrix_comes_back_whatever_its_row_groups(tmp_path: Path, sizes: list[int]) -> None:
    parts = [drawn(n) for n in sizes]
    path = tmp_path / "a.parquet"
    write(path, parts)
    ids, rows, made, extra = read_matrix(path, "factor")
    np.testing.assert_array_equal(rows, np.concatenate(parts))
    np.testing.assert_array_equal(ids, np.arange(sum(sizes)) * 2)
    assert (rows.dtype, ids.dtype) == (np.float32, np.int64) and rows.flags.writeable
    assert (made, extra) == (MADE, {"scale": 2.0})
    whole, *rest = read_table(path, {"id": pa.int64(), "factor": None})
    np.testing.assert_array_equal(matrix(whole, "factor"), rows)
    assert rest == [made, extra]


@pytest.mark.parametrize("parts", [1, 12])
def test_a_matrix_is_in_memory_once(tmp_path: Path, parts: int) -> None:
    """Beside the result, which is NumPy's, Arrow holds little of it."""
    path, usual = tmp_path / "a.parquet", pa.default_memory_pool()
    write(path, [drawn(240_000 // parts, 64)] * parts)
    counted = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counted)
    try:
        _, rows, _, _ = read_matrix(path, "factor")
    finally:
        pa.set_memory_pool(usual)
    assert 0 < counted.max_memory() < rows.nbytes / 5


def test_a_table_written_at_once_is_one_of_the_parts(tmp_path: Path) -> None:
    write_table(table(drawn(9)), tmp_path / "a.parquet", MADE, {"scale": 2.0})
    write(tmp_path / "b.parquet", [drawn(9)])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_what_fails_midway_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(MemoryError), table_writer(table(drawn(3)).schema, path, MADE) as writer:
        writer.write_table(table(drawn(3)))
        raise MemoryError
    assert list(tmp_path.iterdir()) == []


def test_lists_of_any_size_are_refused_wherever_they_are(tmp_path: Path) -> None:
    """No columns are stored as empty lists; in a later part there is one that is not empty."""
    path, lists = tmp_path / "a.parquet", pa.list_(pa.float32())
    schema = pa.schema({"id": pa.int64(), "factor": lists})
    with table_writer(schema, path, MADE) as writer:
        for values in ([[]] * (ROWS + 1), [[], [1.0]]):
            writer.write_table(pa.table({"id": range(len(values)), "factor": pa.array(values, lists)}))
    with pytest.raises(InputError, match=r"a\.parquet: column 'factor' has lists of any size"):
        read_matrix(path, "factor")


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, [drawn(ROWS), drawn(ROWS)])
    content = bytearray(path.read_bytes())
    content[4:1000] = bytes(996)  # not where the schema is
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet: ") as error:
        read_matrix(path, "factor")
    assert "\n" not in str(error.value)


def test_without_provenance_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(drawn(3)), path)
    assert PROVENANCE_KEY.encode() not in (pq.read_schema(path).metadata or {})
    with pytest.raises(InputError, match="carries no provenance"):
        read_matrix(path, "factor")
