"""Which HDF5 files this process has open."""

from pathlib import Path

import h5py


def is_open(path: Path) -> bool:
    """Whether the file at `path` is open, under whatever name."""
    names = [h5py.h5f.get_name(file) for file in h5py.h5f.get_obj_ids(types=h5py.h5f.OBJ_FILE)]
    return any(Path(name.decode()).resolve() == path.resolve() for name in names)
