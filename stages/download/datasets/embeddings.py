"""Features that somebody else computed, instead of images: clip-retrieval's output, ``.npy``, HDF5 or Parquet."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from stages.download.config import DatasetOptions, required_path
from stages.download.feature_files import FeatureFile, array_file, labels_beside
from stages.download.feature_tables import accompanied, table_file
from stages.download.files import find_files, split_of, text
from stages.download.parquet_columns import distinct, row_labels
from stages.download.source import SPLIT_NAMES, Record, Source, file_states
from stages.errors import InputError

ARRAYS, TABLES = (".npy", ".h5", ".hdf5"), (".parquet",)


def embeddings(options: DatasetOptions) -> Source:
    """The features of a file, of all files of a kind in a directory, or of all that a pattern matches.

    - a directory of clip-retrieval: ``img_emb/img_emb_0.npy``, ... and ``metadata/metadata_0.parquet``, ...;
    - ``NAME.npy`` (n, d), labels in ``NAME.labels.npy``: integers (n,), -1 for none, or 0 and 1 (n, classes);
    - HDF5 with ``features`` (n, d) and, if there are any, ``labels``, ``split``, ``path`` or ``id``;
    - Parquet with lists of floating-point numbers, and the same columns.

    Splits are those of `split`, or of the names of the files. A row that is null or zero is skipped.

    Raises:
        InputError: there is no such file, one is damaged, or they do not go together; names the file.
    """
    path = required_path(options)
    files, base = _found(path)
    first = files[0]
    for file in files:
        if file.dim != first.dim:
            raise InputError(
                f"{file.path}: features have {file.dim} dimensions, those of {first.path} {first.dim}; take those of "
                f"one model"
            )
        if file.class_names != first.class_names:
            raise InputError(f"{file.path}: has other class names than {first.path}; read them apart")
    if not sum(file.rows for file in files):
        raise InputError(f"dataset.path: {path}: has no rows")
    values, names = np.arange(len(first.class_names)), first.class_names
    if not names:
        values = distinct(labels for file in files for labels in file.labels())
        names = tuple(str(value) for value in values)
    return Source(
        has_pixels=False,
        name=Path(path).stem if Path(path).is_file() else base.name,
        class_names=names,
        licence=first.licence or "unknown",
        source=path,
        size=sum(file.rows for file in files),
        records=partial(_records, files, base, values),
        identity=file_states(chain.from_iterable((file.path, *file.beside) for file in files)),
    )


def _found(path: str) -> tuple[list[FeatureFile], Path]:
    """The files that `path` means, in order, and the directory that they lie under."""
    if (Path(path) / "img_emb").is_dir():
        return _clip_retrieval(Path(path).absolute())
    paths, base = find_files(path, ARRAYS + TABLES, "file of features (.npy, .h5, .hdf5, .parquet)")
    beside = {labels_beside(file) for file in paths}
    paths = [file for file in paths if file not in beside]
    kinds = sorted({file.suffix.lower() for file in paths})
    if len(kinds) > 1:
        raise InputError(f"dataset.path: {path}: has {' and '.join(kinds)} files; name those of one kind, like *.npy")
    if kinds[0] not in ARRAYS + TABLES:
        raise InputError(f"{paths[0]}: is none of {', '.join(ARRAYS + TABLES)}; write the features as one of them")
    return [(array_file if kinds[0] in ARRAYS else table_file)(file) for file in paths], base


def _clip_retrieval(directory: Path) -> tuple[list[FeatureFile], Path]:
    """Features and metadata have the same number in their names; without any metadata, images have no names."""
    metadata = _numbered(directory / "metadata", ".parquet")
    files = []
    for number, path in _numbered(directory / "img_emb", ".npy").items():
        if metadata and number not in metadata:
            raise InputError(f"{path}: has no metadata_{number}.parquet in {directory / 'metadata'}; complete it")
        file = array_file(path)
        files.append(accompanied(file, metadata[number]) if metadata else file)
    if not files:
        raise InputError(f"{directory / 'img_emb'}: has no img_emb_0.npy, ...; take the output of clip-retrieval")
    return files, directory


def _numbered(directory: Path, suffix: str) -> dict[int, Path]:
    """Files by the number at the end of their names, ascending."""
    files = {file: re.search(r"(\d+)$", file.stem) for file in directory.glob(f"*{suffix}")}
    return dict(sorted((int(number[1]), file) for file, number in files.items() if number))


def _records(files: Sequence[FeatureFile], base: Path, values: np.ndarray, start: int) -> Iterator[Record]:
    for file in files:
        if start < file.rows:
            yield from _file_records(file, text(file.path.relative_to(base).as_posix()), values, start)
        start = max(0, start - file.rows)


def _file_records(file: FeatureFile, called: str, values: np.ndarray, start: int) -> Iterator[Record]:
    split_of_file = split_of(called)
    row = start
    for batch in file.batches(start):
        n = len(batch.features)
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and skipped
            features = np.asarray(batch.features, np.float32)
        problems = ["" if any_ else "is zero, which has no direction" for any_ in features.any(axis=1).tolist()]
        labels = row_labels(batch.labels, values, file.path, "labels", row)
        splits = [split_of_file] * n
        if batch.splits is not None:
            splits = [SPLIT_NAMES.get(split.lower(), "") for split in batch.splits]
        origins = [f"{called}#{number}" for number in range(row, row + n)]
        names = [name or origin for name, origin in zip(batch.names or origins, origins, strict=True)]
        yield from map(Record, [b""] * n, names, labels, splits, problems, origins, features)
        row += n
