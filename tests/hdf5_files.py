"""Which HDF5 files this process has open."""

from pathlib import Path

import psutil


def is_open(path: Path) -> bool:
    """Whether this process has the file at `path` open: HDF5's own names may be relative to another directory."""
    return str(path.resolve()) in {file.path for file in psutil.Process().open_files()}
