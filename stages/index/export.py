"""``python -m stages export``: the codes of the index in files that other software reads."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.artifacts import Provenance, replacing, write_json
from stages.errors import InputError
from stages.index.opened import BinaryIndex
from stages.tables import fixed_size_lists, write_table


def export(output: Path) -> None:
    """Write the ids and the packed codes of ``data/index``.

    Args:
        output: ``.parquet``, with the columns ``id`` and ``code`` (lists of bits / 8 numbers); or ``.npy``, the codes
            uint8 (n, bits / 8) alone, with the ids in ``NAME.ids.npy``.

    Raises:
        InputError: there is no index, or the name ends otherwise.
    """
    require_kind(output)
    index = BinaryIndex()
    if output.suffix == ".parquet":
        table = pa.table({"id": index.ids, "code": fixed_size_lists(index.codes())})
        write_table(table, output, index.provenance, {"bits": index.bits, "method": index.manifest.method})
    else:
        write_npy(output, index.codes())
        write_npy(output.with_suffix(".ids.npy"), index.ids)


def write_encoded(output: Path, names: list[str], codes: np.ndarray, method: str, provenance: Provenance) -> None:
    """Write the codes of files: as of :func:`export`, with the column ``path``, or the paths in ``NAME.paths.json``."""
    if output.suffix == ".parquet":
        table = pa.table({"path": pa.array(names, pa.string()), "code": fixed_size_lists(codes)})
        write_table(table, output, provenance, {"bits": codes.shape[1] * 8, "method": method})
    else:
        write_npy(output, codes)
        write_json(output.with_suffix(".paths.json"), {"paths": names})


def write_npy(path: Path, values: np.ndarray) -> None:
    """Write an array atomically."""
    with replacing(path) as temporary:
        np.save(temporary, values)


def require_kind(output: Path) -> None:
    """Refuse a file that is neither.

    Raises:
        InputError: so it is.
    """
    if output.suffix not in (".parquet", ".npy"):
        raise InputError(f"{output}: codes are written as .parquet or .npy; name such a file")
