"""Codes beyond what one index holds: flat faiss indexes in shards on disk, searched one by one and merged exactly.

A directory has ``shards.json`` (:class:`Manifest`) and ``codes-00000.faiss`` and so on. A code is known by its row: its
place among all codes, in the order in which they were given. No more than one shard is in memory at a time, to build it
or to search it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from stages.artifacts import Provenance, damaged, library_versions, read_json, replacing_directory, sha256, write_json
from stages.errors import InputError
from stages.index import binary
from stages.progress import track
from stages.workers import cores, run_threads

MANIFEST = "shards.json"
#: Codes of a shard: 80 MB of 64 bits, well below what a machine has, and read in a moment.
PER_SHARD = 10_000_000
#: Codes that are read at a time while shards are built.
BLOCK = 2**20
#: Rows that a thread compares with at least.
SHARE = 2**16
#: Bytes of what a thread counts distances with, for some queries at a time.
COUNTERS = 2**25

#: Rows int64 and distances int32 of some queries, (q, k) each, by distance, then by row.
Found = tuple[np.ndarray, np.ndarray]


class Manifest(BaseModel):
    """``shards.json``: code length; number of codes, bytes and digest of each shard, in the order of the rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: Annotated[int, Field(gt=0, multiple_of=8)]
    codes: list[PositiveInt] = Field(min_length=1)
    sizes: list[PositiveInt]
    sha256: list[str]
    provenance: Provenance

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if not len(self.codes) == len(self.sizes) == len(self.sha256):
            raise ValueError("lists of different lengths")
        return self

    @property
    def total(self) -> int:
        return sum(self.codes)


def shard_name(number: int) -> str:
    """The file of a shard by its number, from 0."""
    return f"codes-{number:05d}.faiss"


def build(directory: Path, blocks: Iterable[np.ndarray], per_shard: int, provenance: Provenance) -> Manifest:
    """Write packed codes, which come in blocks uint8 (n, bits / 8), as shards of `per_shard`; all of them or none.

    Raises:
        InputError: there is no code, a block has codes of another length, or something else than shards lies there.
    """
    if directory.is_symlink() or (directory.exists() and not _holds_shards(directory)):
        raise InputError(f"{directory}: is there, and no directory of shards; name one that is, or a new one")
    counts: list[int] = []
    sizes: list[int] = []
    sums: list[str] = []
    index: faiss.IndexBinaryFlat | None = None

    with replacing_directory(directory) as temporary:

        def finish() -> None:
            file = temporary / shard_name(len(counts))
            faiss.write_index_binary(index, str(file))
            counts.append(index.ntotal)
            sizes.append(file.stat().st_size)
            sums.append(sha256(file))
            index.reset()

        for block in blocks:
            index = index or faiss.IndexBinaryFlat(block.shape[1] * 8)
            if block.shape[1] * 8 != index.d:
                raise InputError(f"{directory}: codes of {block.shape[1] * 8} and of {index.d} bits; keep them apart")
            while len(block):
                room = per_shard - index.ntotal
                index.add(np.ascontiguousarray(block[:room]))
                block = block[room:]
                if index.ntotal == per_shard:
                    finish()
        if index is not None and index.ntotal:
            finish()
        if index is None or not counts:
            raise InputError(f"{directory}: there are no codes to index")
        manifest = Manifest(bits=index.d, codes=counts, sizes=sizes, sha256=sums, provenance=provenance)
        write_json(temporary / MANIFEST, manifest.model_dump())
    return manifest


def _holds_shards(directory: Path) -> bool:
    """Whether it may be replaced: shards lie there and nothing else, or nothing at all."""
    return directory.is_dir() and all(
        file.name == MANIFEST or re.fullmatch(r"codes-\d{5,}\.faiss", file.name) for file in directory.iterdir()
    )


def code_blocks(files: Sequence[Path]) -> Iterator[np.ndarray]:
    """The packed codes of files as ``export`` and ``encode --output`` write them, in order, block by block.

    Raises:
        InputError: a file is missing, damaged, or no such file.
    """
    for file in track(files, "read codes", len(files)):
        yield from _parquet_blocks(file) if file.suffix == ".parquet" else _npy_blocks(file)


def _npy_blocks(file: Path) -> Iterator[np.ndarray]:
    with _naming(file, "array"):
        codes = np.lib.format.open_memmap(file, mode="r")  # np.load would open archives and pickles, too
    _require_codes(file, codes)
    for start in range(0, len(codes), BLOCK):
        yield np.asarray(codes[start : start + BLOCK])


def _parquet_blocks(file: Path) -> Iterator[np.ndarray]:
    with _naming(file, "table"), pq.ParquetFile(file) as source:
        kind = source.schema_arrow.field("code").type
        if not (pa.types.is_fixed_size_list(kind) and kind.value_type == pa.uint8()):
            raise ValueError(f"its column 'code' is {kind}, not a fixed-size list of uint8")
        for batch in source.iter_batches(BLOCK, columns=["code"]):
            values = batch["code"].flatten()
            if batch["code"].null_count or values.null_count:
                raise ValueError("its column 'code' has nulls")
            codes = values.to_numpy().reshape(len(batch), kind.list_size)
            _require_codes(file, codes)
            yield codes


@contextmanager
def _naming(file: Path, what: str) -> Iterator[None]:
    """Turn whatever a damaged file leads to into one line about it."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{file}: not found; name files of codes, .npy or .parquet") from None
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, pa.ArrowException):
            raise damaged(file, error) from None
        raise InputError(f"{file}: no {what} of codes ({' '.join(str(error).split())[:200]})") from None


def _require_codes(file: Path, codes: np.ndarray) -> None:
    if codes.dtype != np.uint8 or codes.ndim != 2 or not codes.shape[1]:
        raise InputError(f"{file}: holds {codes.dtype} {codes.shape}; packed codes are uint8 (n, bits / 8)")


def built_from(files: Sequence[Path]) -> Provenance:
    """The provenance of an index of the codes of some files."""
    params = {"files": [[file.name, file.stat().st_size] for file in files if file.is_file()]}
    return Provenance("codes", params=params, versions=library_versions("faiss-cpu"))


class ShardedIndex:
    """Shards on disk, open.

    Attributes:
        directory, manifest: where they lie, and what they are.

    Raises:
        InputError: a file is missing or damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, path = directory, directory / MANIFEST
        content = read_json(path)
        try:
            self.manifest = Manifest.model_validate(content)
        except ValidationError:
            raise InputError(f"{path}: has other fields than those of shards; {_again(directory)}") from None
        for number, size in enumerate(self.manifest.sizes):
            file = directory / shard_name(number)
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                raise InputError(f"{file}: has {found} bytes, {MANIFEST} says {size}; {_again(directory)}")
        self._first = np.concatenate([[0], np.cumsum(self.manifest.codes)])

    def __len__(self) -> int:
        return self.manifest.total

    def nearest(self, codes: np.ndarray, count: int, shards: Sequence[int] | None = None) -> Found:
        """The `count` codes (all, if there are fewer) nearest to each of q packed ones uint8 (q, bits / 8); exact.

        Args:
            shards: numbers of those to search; None: all.

        Raises:
            InputError: the queries are codes of another length, or a shard is damaged.
        """
        self.require_queries(codes)
        codes, found = np.ascontiguousarray(codes), none(len(codes))
        if not len(codes):
            return found
        numbers = range(len(self.manifest.codes)) if shards is None else shards
        for number in numbers:
            found = merged([found, self._search(number, codes, count)], count)
        return found

    def require_queries(self, codes: np.ndarray) -> None:
        """Refuse queries that are no packed codes of this length.

        Raises:
            InputError: says what there is.
        """
        if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] * 8 != self.manifest.bits:
            raise InputError(
                f"{self.directory}: has codes of {self.manifest.bits} bits, the queries are {codes.dtype} {codes.shape}"
            )

    def verify(self) -> None:
        """Compare the content of every shard with its digest.

        Raises:
            InputError: one has other content.
        """
        digests = self.manifest.sha256
        for number, digest in enumerate(track(digests, "verifying", len(digests))):
            file = self.directory / shard_name(number)
            if sha256(file) != digest:
                raise InputError(f"{file}: its content is not what {MANIFEST} notes; {_again(self.directory)}")

    def _search(self, number: int, codes: np.ndarray, count: int) -> Found:
        """One shard, which is mapped while it is searched, and then given back."""
        file = self.directory / shard_name(number)
        try:
            index = faiss.read_index_binary(str(file), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise InputError(f"{file}: {str(error).splitlines()[0][:200]}; {_again(self.directory)}") from None
        if (binary.kind_of(index), index.d, index.ntotal) != ("flat", self.manifest.bits, self.manifest.codes[number]):
            raise InputError(f"{file}: is not the index that {MANIFEST} says; {_again(self.directory)}")
        stored = binary.all_codes(index)
        # Faiss would share out the queries and have its threads wait for each other after every few thousand rows,
        # which takes many times as long where they do not have the cores to themselves.
        shares = max(1, min(cores(), len(stored) // SHARE))
        edges = np.linspace(0, len(stored), shares + 1).astype(int).tolist()
        step = max(1, COUNTERS // (8 * (index.d + 1) * min(count, len(stored))))
        places = [(codes[first : first + step], start, stop) for first in range(0, len(codes), step)
                  for start, stop in pairwise(edges)]  # fmt: skip
        made = list(run_threads(lambda place: _compared(stored, count, *place), places, shares))
        batches = [merged(made[first : first + shares], count) for first in range(0, len(made), shares)]
        rows, distances = map(np.concatenate, zip(*batches, strict=True))
        return rows + self._first[number], distances


def _compared(stored: np.ndarray, count: int, codes: np.ndarray, start: int, stop: int) -> Found:
    """Some rows by one thread; counting all distances, instead of keeping heaps, keeps the order of equal ones."""
    faiss.omp_set_num_threads(1)  # of this thread alone, which ends with the search
    distances, rows = faiss.knn_hamming(codes, stored[start:stop], min(count, stop - start), variant="mc")
    return rows + start, distances


def none(queries: int) -> Found:
    """Nothing found, for each of some queries."""
    return np.empty((queries, 0), np.int64), np.empty((queries, 0), np.int32)


def merged(found: Sequence[Found], count: int) -> Found:
    """The `count` nearest of what was found in several places: exactly what one search of all of them finds."""
    rows, distances = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    order = np.lexsort((rows, distances), axis=1)[:, :count]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(distances, order, 1)


def _again(directory: Path) -> str:
    return f"build it again with `python -m stages codes build {directory} FILE...`"
