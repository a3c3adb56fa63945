"""``data/index``: written beside and renamed, mapped into memory when it is read, changed by whole new files.

- ``index.json``: what it is, and the names and sizes of the other files (:class:`Manifest`);
- ``codes-G.faiss``: the faiss index, whose label of a code is its row;
- ``rows-G.arrow``: id, name and labels of each row, uncompressed, so that it can be mapped;
- ``images-G.parquet``, one or more: thumbnails, and float features of images that were added later, by id.

G is the generation that wrote a file. A change writes new files, then replaces ``index.json``, then deletes what that
no longer names: whoever reads meanwhile has the old index or the new one.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.artifacts import INDEX, Provenance, damaged, read_json, rebuild_hint, replacing, write_json
from stages.codes import Codes
from stages.errors import InputError
from stages.index import binary

MANIFEST = "index.json"

ROWS = pa.schema([("id", pa.int64()), ("name", pa.string()), ("labels", pa.list_(pa.int16()))])

#: Rows of a row group of thumbnails: what is read to show one.
ROW_GROUP = 128


@dataclass(frozen=True)
class Manifest:
    """``index.json``.

    Attributes:
        kind, bits, method: of the index, the codes, and the network that made them.
        images: number of codes; `classes`: names of the labels.
        thumbnail: pixels of a thumbnail's longer side.
        generation: 0 as the stage has written it, one more with every change.
        codes, rows, parts: names of the files; `sizes`: their bytes.
        provenance: as of ``data/codes.h5``, of the stage ``index``.
    """

    kind: binary.Kind
    bits: int
    method: str
    images: int
    classes: list[str]
    thumbnail: int
    generation: int
    codes: str
    rows: str
    parts: list[str]
    provenance: Provenance
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def first(cls, kind: binary.Kind, codes: Codes, classes: list[str], size: int, parts: list[str]) -> "Manifest":
        """That of the index of `codes`, whose thumbnails are in `parts`."""
        made = replace(codes.provenance, stage="index")
        return cls(kind, codes.bits, codes.method, len(codes.database), classes, size, 0, "", "", parts, made)

    @property
    def files(self) -> list[str]:
        return [self.codes, self.rows, *self.parts]


def read_manifest(directory: Path = INDEX) -> Manifest:
    """Read ``index.json`` and check that the files which it names have their sizes.

    Raises:
        InputError: it, or a file, is missing or damaged.
    """
    path = directory / MANIFEST
    content = read_json(path)
    try:
        provenance = Provenance(**content.pop("provenance"))
        manifest = Manifest(**content, provenance=provenance)
        expected = {name: manifest.sizes[name] for name in manifest.files}
    except (TypeError, KeyError, AttributeError):
        raise damaged(path, "has other fields than those of an index") from None
    for name, size in expected.items():
        file = directory / name
        if Path(name).name != name or not file.is_file():
            raise InputError(f"{file}: not found; {rebuild_hint(directory)}")
        if file.stat().st_size != size:
            raise damaged(file, f"has {file.stat().st_size:,} bytes, {MANIFEST} says {size:,}")
    return manifest


def write_index(directory: Path, manifest: Manifest, index: faiss.IndexBinary, rows: pa.Table) -> Manifest:
    """Write the codes and rows of a generation, then ``index.json``; the thumbnails lie there already."""
    names = {"codes": f"codes-{manifest.generation}.faiss", "rows": f"rows-{manifest.generation}.arrow"}
    with replacing(directory / names["codes"]) as temporary:
        faiss.write_index_binary(index, str(temporary))
    with replacing(directory / names["rows"]) as temporary, pa.ipc.new_file(temporary, ROWS) as writer:
        writer.write_table(rows.combine_chunks())
    manifest = replace(manifest, images=len(rows), **names)
    manifest = replace(manifest, sizes={name: (directory / name).stat().st_size for name in manifest.files})
    write_json(directory / MANIFEST, asdict(manifest))
    return manifest


def write_thumbnails(
    directory: Path, generation: int, parts: Iterable[tuple[np.ndarray, Sequence[bytes | None]]],
    features: np.ndarray | None = None,
) -> str:  # fmt: skip
    """Write a file of thumbnails, streamed; its name.

    Args:
        parts: ids and thumbnails of some images after the other.
        features: float (n, d) of all these images, where they are not in ``data/features.h5``.
    """
    name = f"images-{generation}.parquet"
    schema = _part_schema(None if features is None else features.shape[1])
    row = 0
    with replacing(directory / name) as temporary, pq.ParquetWriter(temporary, schema, compression="none") as writer:
        for ids, thumbnails in parts:  # JPEGs do not compress
            columns = [pa.array(ids, pa.int64()), pa.array(thumbnails, pa.binary())]
            if features is not None:
                values = pa.array(features[row : row + len(ids)].astype(np.float32).reshape(-1))
                columns.append(pa.FixedSizeListArray.from_arrays(values, features.shape[1]))
            writer.write_table(pa.table(columns, schema=schema), row_group_size=ROW_GROUP)
            row += len(ids)
    return name


def _part_schema(dim: int | None) -> pa.Schema:
    schema = pa.schema([("id", pa.int64()), ("thumbnail", pa.binary())])
    return schema if dim is None else schema.append(pa.field("feature", pa.list_(pa.float32(), dim)))


def read_faiss(directory: Path, manifest: Manifest, mapped: bool = True) -> faiss.IndexBinary:
    """The faiss index of a manifest.

    Args:
        mapped: leave the codes on disk, where pages are read as they are needed; such an index must not be changed.
            faiss maps no multi-hash index, which is read as a whole.

    Raises:
        InputError: it is damaged, or of another kind or size than the manifest says.
    """
    path = directory / manifest.codes
    mapped = mapped and manifest.kind != "multihash"
    try:
        index = faiss.read_index_binary(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        raise damaged(path, str(error).splitlines()[0][:200]) from None
    found = binary.kind_of(index), index.d, index.ntotal
    if found != (manifest.kind, manifest.bits, manifest.images):
        raise damaged(path, "is of kind {}, {} bits, {} codes".format(*found) + f"; {MANIFEST} says otherwise")
    return index


def read_rows(directory: Path, manifest: Manifest) -> pa.Table:
    """The rows of a manifest, mapped.

    Raises:
        InputError: they are damaged.
    """
    path = directory / manifest.rows
    try:
        with pa.memory_map(str(path)) as source:
            rows = pa.ipc.open_file(source).read_all()
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from None
    if rows.schema != ROWS or len(rows) != manifest.images:
        raise damaged(path, f"has {len(rows)} rows of {rows.schema.names}, not {manifest.images} of {ROWS.names}")
    return rows


class Part:
    """A file of thumbnails, of which only the row groups that are asked for are read.

    Attributes:
        ids: int64 (n,), of the images in it; `has_features`: whether it has their features.

    Raises:
        InputError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
            self.has_features = "feature" in self._file.schema_arrow.names
            self.ids = self._file.read(columns=["id"])["id"].to_numpy()
            if "thumbnail" not in self._file.schema_arrow.names:
                raise KeyError("thumbnail")
        except (pa.ArrowException, OSError, KeyError) as error:
            raise damaged(path, error) from None
        metadata = self._file.metadata
        self._ends = np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
        self._order = np.argsort(self.ids, kind="stable")
        self._turn = threading.Lock()  # Arrow says nothing of several threads at one file

    def read(self, column: str, ids: np.ndarray) -> Mapping[int, Any]:
        """The values of a column, of those of `ids` that are here, by id."""
        if not len(self.ids):
            return {}
        places = np.searchsorted(self.ids, ids, sorter=self._order).clip(max=len(self.ids) - 1)
        rows = np.sort(self._order[places][self.ids[self._order[places]] == ids])
        found = {}
        groups = np.searchsorted(self._ends, rows, side="right")
        for group in np.unique(groups):
            start = self._ends[group - 1] if group else 0
            try:
                with self._turn:
                    values = self._file.read_row_group(int(group), columns=[column])[column]
            except (pa.ArrowException, OSError) as error:
                raise damaged(self.path, error) from None
            here = rows[groups == group]
            found |= dict(zip(self.ids[here].tolist(), values.take(here - start).to_pylist(), strict=True))
        return found

    def write_without(self, ids: np.ndarray, generation: int) -> str:
        """Write the file again without some images, a row group at a time; the name of the new one."""
        path = self.path.with_name(f"{self.path.name.split('.')[0]}.{generation}.parquet")
        with replacing(path) as temporary:
            with pq.ParquetWriter(temporary, self._file.schema_arrow, compression="none") as writer:
                for group in range(self._file.num_row_groups):
                    table = self._file.read_row_group(group)
                    writer.write_table(table.filter(~np.isin(table["id"].to_numpy(), ids)))
        return path.name
