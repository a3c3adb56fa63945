"""Small files in exactly the format of the official ones of Fashion-MNIST: gzipped IDX."""

import gzip
import struct
from pathlib import Path

import numpy as np

#: Images of the small copy, by what the official files call the splits.
SIZES = {"train": 25, "t10k": 12}


def images(kind: str) -> np.ndarray:
    """uint8 (n, 28, 28)"""
    return np.random.default_rng(SIZES[kind]).integers(0, 256, (SIZES[kind], 28, 28), dtype=np.uint8)


def labels(kind: str) -> np.ndarray:
    """uint8 (n,)"""
    return (np.arange(SIZES[kind]) * 7 % 10).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    """An array of unsigned bytes as IDX."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_files(directory: Path) -> Path:
    """All four files."""
    for kind in SIZES:
        (directory / f"{kind}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images(kind))))
        (directory / f"{kind}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels(kind))))
    return directory
