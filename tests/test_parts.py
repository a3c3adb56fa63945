"""Unfinished work: a damaged part is never taken for a whole one."""

from pathlib import Path

import numpy as np
import pytest

from stages.errors import InputError
from stages.parts import is_whole, read_part, sealing, write_part

pytestmark = pytest.mark.usefixtures("workplace")
PART = Path("000000.npz")
IMAGES = np.arange(12, dtype=np.float16).reshape(3, 4)


def test_every_flipped_bit_is_harmless_or_removes_the_part():
    write_part(PART, images=IMAGES)
    content, refused = PART.read_bytes(), 0
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        PART.write_bytes(changed)
        try:
            np.testing.assert_array_equal(read_part(PART, "images")[0], IMAGES)
        except InputError as error:
            refused += 1
            assert str(error).startswith(f"{PART}: unfinished work, damaged (") and "\n" not in str(error)
            assert str(error).endswith("it was removed, run it again") and not PART.exists()
    assert refused > 8 * IMAGES.nbytes


def test_every_shorter_file_removes_the_part():
    write_part(PART, images=IMAGES)
    content = PART.read_bytes()
    for size in range(len(content)):
        PART.write_bytes(content[:size])
        with pytest.raises(InputError, match="unfinished work, damaged"):
            read_part(PART, "images")
        assert not PART.exists()


def test_a_part_that_is_not_there_is_an_error_of_the_disk():
    with pytest.raises(FileNotFoundError):
        read_part(PART, "images")


def test_a_sealed_part_is_whole_until_a_bit_changes():
    part = Path("part.arrow")

    def write():
        with sealing(part) as temporary:
            temporary.write_bytes(b"content")

    assert not is_whole(part)
    write()
    assert is_whole(part)
    [seal] = [file for file in Path().iterdir() if file != part]
    for file, content in ((part, b"content"), (seal, seal.read_bytes())):
        for changed in (b"", content[:-1], content + b" ", b"z" + content[1:]):
            write()
            file.write_bytes(changed)
            assert not is_whole(part) and list(Path().iterdir()) == []
        write()
        file.unlink()
        assert not is_whole(part) and list(Path().iterdir()) == []
    with pytest.raises(ZeroDivisionError), sealing(part) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert list(Path().iterdir()) == []
