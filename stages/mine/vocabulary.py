"""Vocabularies: a text file of candidate concepts, or a Parquet file that has their text features too."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.artifacts import PROVENANCE_KEY, Provenance
from stages.errors import InputError

#: What a Parquet file begins with.
MAGIC = b"PAR1"


@dataclass(frozen=True)
class Vocabulary:
    """Distinct candidate concepts.

    Attributes:
        words: the m concepts.
        text_features: float32 (m, d), rows of unit length, where the file has them; else None.
        model: SHA-256 of the model of the text features, where the file says so (``data/concepts.parquet`` of a run).
    """

    words: list[str]
    text_features: np.ndarray | None = None
    model: str = ""


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a text file (one concept a line, blank lines and what follows a # ignored) or a Parquet file.

    A Parquet file has the columns ``concept`` and ``text_feature`` (lists of d numbers). Of concepts that are repeated
    the first one counts.

    Raises:
        InputError: it is missing, is neither, has fewer than two concepts, or text features that are of no use.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"concepts.vocabulary: {path} not found; give a text file with one concept a line") from None
    vocabulary = _from_parquet(content, path) if content.startswith(MAGIC) else Vocabulary(_from_text(content, path))
    if len(vocabulary.words) < 2:
        raise InputError(f"concepts.vocabulary: {path} has {len(vocabulary.words)} concepts; at least 2 are needed")
    return vocabulary


def _from_text(content: bytes, path: Path) -> list[str]:
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"concepts.vocabulary: {path} is not UTF-8 text") from None
    return list(dict.fromkeys(word for line in lines if (word := line.split("#")[0].strip())))


def _from_parquet(content: bytes, path: Path) -> Vocabulary:
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        for name in ("concept", "text_feature"):
            if name not in file.schema_arrow.names:
                raise _unusable(path, f"has no column '{name}'")
        table = file.read(columns=["concept", "text_feature"])
    except (pa.ArrowException, OSError) as error:
        raise _unusable(path, " ".join(str(error).split())) from None
    rows: dict[str, int] = {}
    for row, word in enumerate(table["concept"].to_pylist()):
        if not isinstance(word, str) or not word.strip():
            raise _unusable(path, f"row {row} has no concept")
        rows.setdefault(word.strip(), row)
    features = _matrix(table["text_feature"].combine_chunks(), path)[list(rows.values())]
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    for word, norm in zip(rows, norms[:, 0], strict=True):
        if not 0 < norm < np.inf:
            raise _unusable(path, f"the text feature of '{word}' is zero, or has numbers that are not finite")
    made = (file.schema_arrow.metadata or {}).get(PROVENANCE_KEY.encode())
    model = Provenance.from_json(made, path).model if made else ""
    return Vocabulary(list(rows), (features / norms).astype(np.float32), model)


def _matrix(lists: pa.Array, path: Path) -> np.ndarray:
    """A column of lists of as many numbers each as (m, d), in double precision."""
    kind = lists.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise _unusable(path, f"column 'text_feature' is {kind}, not lists of floating-point numbers")
    sizes = set(lists.value_lengths().to_pylist()) if len(lists) else {0}
    if len(sizes) != 1 or None in sizes:
        raise _unusable(path, "column 'text_feature' has lists of different lengths, or nulls")
    values = lists.flatten().to_numpy(zero_copy_only=False)  # a null number comes out as NaN
    return values.astype(np.float64).reshape(len(lists), sizes.pop())


def _unusable(path: Path, reason: str) -> InputError:
    return InputError(f"concepts.vocabulary: {path}: {reason}; a Parquet vocabulary has the columns 'concept' (text) "
                      "and 'text_feature' (lists of d numbers)")  # fmt: skip
