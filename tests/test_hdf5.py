"""HDF5 files whose heaps of texts are damaged: refused, where the library alone would read for ever."""

import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
from download_run import params
from fuzzing import check, damage, few_or_many

from stages.download.stage import run
from stages.errors import InputError
from stages.hdf5 import HEAP, read_text, require_sound_heaps, write_text

pytestmark = pytest.mark.usefixtures("workplace")
FILE = Path("some.h5")


def write(names: int = 40) -> bytes:
    """A collection of features with names of any length; what the file holds."""
    with h5py.File(FILE, "w") as file:
        file["features"] = np.random.default_rng(0).standard_normal((names, 4)).astype(np.float32)
        file["path"] = [f"{'a' * number}.png" for number in range(names)]
    return FILE.read_bytes()


@pytest.mark.parametrize("names", [1, 5, 40, 400])
def test_heaps_as_the_library_writes_them_are_sound(names):
    assert HEAP in write(names)
    require_sound_heaps(FILE)


@pytest.mark.parametrize("length", [2**64 - 16, 2**64 - 8, 2**64 - 64, 2**40])
def test_a_heap_that_does_not_end_is_refused(length):
    content = write()
    start = content.index(HEAP)
    FILE.write_bytes(content[: start + 24] + struct.pack("<Q", length) + content[start + 32 :])
    with pytest.raises(ValueError, match=f"has a damaged heap of texts at byte {start:,}"):
        require_sound_heaps(FILE)
    with pytest.raises(InputError, match=r"some.h5: cannot be read as HDF5 \(has a damaged heap of texts at byte"):
        run(params("embeddings", path=str(FILE.absolute()), queries=2, database=30, train=10, workers=1))


def test_free_space_without_length_is_refused():
    content = write()
    start = content.index(HEAP)
    FILE.write_bytes(content[: start + 16] + bytes(16) + content[start + 32 :])
    with pytest.raises(ValueError, match="has a damaged heap"):
        require_sound_heaps(FILE)


@pytest.mark.parametrize("size", [0, 4088, 2**40, 2**64 - 8])
def test_a_heap_of_a_size_that_none_has_is_left_to_the_library(size):
    """So features that look like the beginning of one by chance are no damage."""
    content = write()
    start = content.index(HEAP)
    FILE.write_bytes(content[: start + 8] + struct.pack("<QQQ", size, 1, 2**64 - 16) + content[start + 32 :])
    require_sound_heaps(FILE)
    with h5py.File(FILE) as file, pytest.raises(OSError, match=r"global heap size is too small|exceeds EOA"):
        file["path"].asstr()[:]
    with h5py.File(FILE, "w") as file:
        file["features"] = np.frombuffer(HEAP + bytes(3) + struct.pack("<QQQ", size, 1, 2**64 - 16), np.float32)
    require_sound_heaps(FILE)


@few_or_many(60, 2000)
def test_a_damaged_heap_is_read_or_refused(examples):
    content = write()
    start = content.index(HEAP)
    size = struct.unpack_from("<Q", content, start + 8)[0]

    def reads(heap: bytes) -> None:
        FILE.write_bytes(content[:start] + heap[:size].ljust(size, b"\0") + content[start + size :])
        try:
            require_sound_heaps(FILE)
            with h5py.File(FILE) as file:
                file["path"].asstr(errors="replace")[:]
        except (OSError, RuntimeError, ValueError) as error:
            assert str(error)

    check(damage(content[start : start + size]), examples, reads)


@pytest.mark.parametrize("text", ["", "a", "ä{}" * 1000, "x" * 60_000])
def test_texts_are_kept(text):
    with h5py.File(FILE, "w") as file:
        write_text(file, "some", text)
        assert read_text(file, "some") == text
        assert read_text(file, "other") is None
    assert HEAP not in FILE.read_bytes()


@pytest.mark.parametrize("value", ["of any length", 7, np.arange(3.0)])
def test_attributes_of_other_kinds_are_none(value):
    with h5py.File(FILE, "w") as file:
        file.attrs["some"] = value
        assert read_text(file, "some") is None
