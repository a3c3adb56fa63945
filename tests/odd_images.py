"""The odd images that every kind of collection meets, and what must come of a collection in any case."""

import pytest
from odd_pictures import bomb, jpeg, turned
from picture import picture
from published import check_resumes

from stages.download.source import Source
from stages.images import decode

#: File names (as bytes that may be no UTF-8), contents, and their (width, height); None for what cannot be decoded.
ODD: dict[bytes, tuple[bytes, tuple[int, int] | None]] = {
    b"0-grey.jpg": (jpeg(1, "L"), (12, 8)),
    b"1-cmyk.jpg": (jpeg(2, "CMYK"), (12, 8)),
    b"2-turned.jpeg": (turned(), (8, 12)),
    b"3-truncated.jpg": (jpeg(4)[:-150], None),
    b"4-empty.png": (b"", None),
    b"5-caf\xe9.png": (picture(5), (8, 8)),
    b"6-\xc3\xa9t\xc3\xa9.webp": (picture(6, kind="WEBP"), (8, 8)),
    b"7-text.jpg": (b"no image at all", None),
    b"8-bomb.png": (bomb(), None),
}


def text(name: bytes) -> str:
    """A name as records have it."""
    return name.decode("utf-8", "replace")


def check_odd(source: Source) -> None:
    """All of :data:`ODD` flow through as records without problem, as bytes that decode or do not."""
    records = list(source.records(0))
    assert [record.data for record in records] == [data for data, _ in ODD.values()]
    for record, (_, size) in zip(records, ODD.values(), strict=True):
        assert record.problem == ""
        if size is None:
            with pytest.raises(ValueError):
                decode(record.data)
        else:
            image = decode(record.data)
            assert image.mode == "RGB" and image.size == size


def check_tails(source: Source) -> None:
    """From wherever reading is taken up, the same records come, and as many as promised."""
    check_resumes(source, (0, 1, 2, 3, source.size // 2, source.size - 1, source.size, source.size + 5))
