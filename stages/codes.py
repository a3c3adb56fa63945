"""Binary codes, packed eight bits a byte, and ``data/codes.h5``."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from stages.artifacts import CODES, PROVENANCE_KEY, Provenance, damaged, writing
from stages.errors import InputError
from stages.hdf5 import read_text, write_text


def pack(values: np.ndarray) -> np.ndarray:
    """Binarise and pack: bit 1 where a value is >= 0 (0 counts as +1), most significant bit first.

    Args:
        values: (n, bits) real; bits a multiple of 8.

    Returns:
        uint8 (n, bits / 8).

    >>> pack([[0.3, -0.2, 0.0, -0.9, 0.1, 0.1, -0.5, -0.5]]).tolist() == [[0b10101100]]
    True
    """
    return np.packbits(np.asarray(values) >= 0, axis=1)


def unpack(packed: np.ndarray) -> np.ndarray:
    """The inverse of :func:`pack`: int8 (n, bits) in {-1, +1}.

    >>> unpack(np.array([[0b10101100]], np.uint8)).tolist()
    [[1, -1, 1, -1, 1, 1, -1, -1]]
    """
    return np.unpackbits(packed, axis=1).astype(np.int8) * 2 - 1


@dataclass(frozen=True)
class Codes:
    """The packed codes of queries and database: uint8 (rows, bits / 8), with the image id of each row."""

    query: np.ndarray
    query_id: np.ndarray
    database: np.ndarray
    database_id: np.ndarray
    method: str
    provenance: Provenance

    @property
    def bits(self) -> int:
        return self.database.shape[1] * 8


def write_codes(codes: Codes, path: Path = CODES) -> None:
    """Write ``codes.h5`` atomically."""
    with writing(path) as target, h5py.File(target, "w") as file:
        write_text(file, PROVENANCE_KEY, codes.provenance.to_json())
        file.attrs["bits"] = codes.bits
        write_text(file, "method", codes.method)
        for split in ("query", "database"):
            file[f"{split}/codes"] = getattr(codes, split)
            file[f"{split}/id"] = getattr(codes, f"{split}_id")


def _required(text: str | None) -> str:
    if text is None:
        raise ValueError("carries no method")
    return text


def read_codes(path: Path = CODES) -> Codes:
    """Read ``codes.h5``.

    Raises:
        InputError: it is missing, unreadable or of another schema.
    """
    if not path.exists():
        raise InputError(f"{path}: not found; run `dvc repro encode`")
    try:
        with h5py.File(path) as file:
            arrays = {name: file[key][:] for name, key in (
                ("query", "query/codes"), ("query_id", "query/id"),
                ("database", "database/codes"), ("database_id", "database/id"),
            )}  # fmt: skip
            codes = Codes(
                **arrays, method=_required(read_text(file, "method")),
                provenance=Provenance.from_json(read_text(file, PROVENANCE_KEY), path),
            )  # fmt: skip
            bits = int(file.attrs["bits"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from None
    for split, ids in (("query", codes.query_id), ("database", codes.database_id)):
        packed = arrays[split]
        if packed.dtype != np.uint8 or packed.shape != (len(ids), bits // 8):
            raise damaged(path, f"{split}/codes is {packed.dtype} {packed.shape} for {len(ids)} images of {bits} bits")
    return codes
