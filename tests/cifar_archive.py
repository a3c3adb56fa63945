"""Small archives in exactly the formats of the official CIFAR-10 and CIFAR-100: tar.gz of Python 2 pickles."""

import hashlib
import io
import pickle
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

#: The order in which the official archives have their members.
MEMBERS = ("data_batch_4", "test_batch", "data_batch_3", "data_batch_2", "data_batch_5", "data_batch_1")
MEMBERS100 = ("train", "test")


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did (it had no others), and NumPy's module under its name of that time."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, content: bytes) -> None:
        short = len(content) < 256
        self.write(b"U" + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content)))
        self.write(content)
        self.memoize(content)

    dispatch[bytes] = save_bytes


def python2_pickle(content: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def batch(rng: np.random.Generator, per_class: int, name: bytes) -> dict[bytes, object]:
    """A batch with `per_class` images of each class."""
    labels = rng.permutation(np.repeat(np.arange(10), per_class)).tolist()
    return {
        b"batch_label": name,
        b"labels": labels,
        b"data": rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8),
        b"filenames": [b"image_s_%06d.png" % index for index in range(len(labels))],
    }


def batches(per_class: int = 2, seed: int = 0) -> dict[str, dict[bytes, object]]:
    rng = np.random.default_rng(seed)
    return {name: batch(rng, per_class, name.encode()) for name in MEMBERS}


def batches100(seed: int = 0) -> dict[str, dict[bytes, object]]:
    """The two batches of CIFAR-100, of 200 and 100 images."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, per_class in zip(MEMBERS100, (2, 1), strict=True):
        fine = rng.permutation(np.repeat(np.arange(100), per_class)).tolist()
        found[name] = {
            b"filenames": [b"bos_taurus_s_%06d.png" % index for index in range(len(fine))],
            b"batch_label": b"%sing batch 1 of 1" % name.encode(),
            b"fine_labels": fine,
            b"coarse_labels": [label // 5 for label in fine],
            b"data": rng.integers(0, 256, (len(fine), 3072), dtype=np.uint8),
        }
    return found


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_archive(path: Path, content: Mapping[str, dict[bytes, object]], **replaced: bytes) -> str:
    """Write the archive, `replaced` members as they are given; returns its SHA-256."""
    members = {f"cifar-10-batches-py/{name}": python2_pickle(value) for name, value in content.items()}
    members["cifar-10-batches-py/readme.html"] = b"<html>"
    members |= {f"cifar-10-batches-py/{name}": value for name, value in replaced.items()}
    write_tar(path, members)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_archive100(path: Path, content: Mapping[str, dict[bytes, object]], names: list[bytes]) -> Path:
    """Write the archive of CIFAR-100, whose fine labels are called `names`."""
    meta = {b"fine_label_names": names, b"coarse_label_names": [b"coarse"] * 20}
    members = {"cifar-100-python/file.txt~": b""} | {
        f"cifar-100-python/{name}": python2_pickle(value) for name, value in {**content, "meta": meta}.items()
    }
    return write_tar(path, members)
