"""Verification: unreadable images, bounded memory, and an interrupted pass that goes on."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from download_run import TINY, fill, images, nothing_left_over, params, pictures, skipped
from picture import picture
from PIL import Image

from stages.artifacts import DATASET, IMAGES
from stages.download import stage, verify
from stages.download.source import Record, Source, encoded
from stages.download.stage import SKIPPED, run
from stages.errors import InputError
from stages.images import read_dataset

pytestmark = pytest.mark.usefixtures("workplace")


def solid(width: int, height: int) -> bytes:
    """A PNG of one colour: many pixels of few bytes."""
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def source(records: list[Record], class_names: tuple[str, ...] = ("a", "b")) -> Source:
    return Source("n", class_names, "l", "s", len(records), lambda start: iter(records[start:]))


# ---- unreadable images


BROKEN = {
    "empty.png": (b"", "is empty"),
    "text.jpg": (b"hello", "is no image of a known kind"),
    "half.png": (picture(1, 64)[:6000], "cannot be decoded"),
    "huge.ppm": (b"P6 10000 10000 255\n", "10000x10000 pixels, more than 50,000,000"),
    "bomb.ppm": (b"P6 100000 100000 255\n", "cannot be decoded (Image size (10000000000 pixels) exceeds limit"),
    "solid.png": (solid(8000, 5000), "8000x5000 pixels of"),
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is no image of a known kind"),
}


def test_unreadable_images_are_listed_and_left_out(tmp_path):
    contents = pictures(44) | {f"class 0/{name}": data for name, (data, _) in BROKEN.items()}
    run(params("imagefolder", path=str(fill(tmp_path / "set", contents)), max_skipped=0.14))
    header, *rows = skipped()
    assert header == ["source", "reason"]
    assert [name for name, _ in rows] == sorted(f"class 0/{name}" for name in BROKEN)
    assert all(reason.startswith(BROKEN[Path(name).name][1]) for name, reason in rows)
    assert read_dataset().skipped == 7 and read_dataset().counts["images"] == len(images()) == 44


def test_more_unreadable_images_than_allowed(tmp_path):
    run(params("scenes", **TINY))
    before = DATASET.read_bytes()
    contents = pictures(44) | {f"class 0/{name}": data for name, (data, _) in BROKEN.items()}
    path = str(fill(tmp_path / "set", contents))
    with pytest.raises(InputError, match=r"set: 7 of 51 images .* more than dataset.max_skipped \(0.137\)"):
        run(params("imagefolder", path=path, max_skipped=0.137))
    assert len(skipped()) == 8 and "reports/skipped.csv" in str(SKIPPED)
    assert DATASET.read_bytes() == before and len(images()) == 100
    run(params("imagefolder", path=path, max_skipped=0.14))  # goes on with what was verified
    assert read_dataset().skipped == 7 and nothing_left_over()


def test_no_readable_image(tmp_path):
    with pytest.raises(InputError, match=r"none of its 2 images can be read; see reports/skipped.csv"):
        run(params("imagefolder", path=str(fill(tmp_path / "set", {"a.png": b"", "b.png": b"x"})), max_skipped=1))
    assert len(skipped()) == 3 and not IMAGES.exists()


def test_unreadable_rows_of_parquet_are_named(tmp_path):
    pixels = [{"bytes": picture(row) if row != 7 else b"broken", "path": "same.png"} for row in range(20)]
    pq.write_table(pa.table({"image": pixels}), tmp_path / "some.parquet")
    run(params("parquet", path=str(tmp_path / "some.parquet"), max_skipped=0.05))
    assert skipped()[1:] == [["some.parquet#7 same.png", "is no image of a known kind"]]
    assert images() == [picture(row) for row in range(20) if row != 7]


def test_large_image_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "MAX_BYTES", len(picture(0)) + 500)
    contents = {f"{index}.png": picture(index) for index in range(9)} | {"big.png": picture(0, 64)}
    run(params("imagefolder", path=str(fill(tmp_path / "set", contents)), max_skipped=0.1))
    assert skipped()[1][0] == "big.png" and "bytes, more than" in skipped()[1][1]


# ---- what is known of the images


def test_labels_splits_hashes_and_names(tmp_path):
    records = [Record(picture(row), f"{row}.png", (row % 2,), "test" if row < 3 else "train") for row in range(20)]
    records[4] = Record(b"", "gone.png", problem="is not there", origin="list.txt:4")
    result = verify.verify(source(records), tmp_path, 1)
    good = [row for row in range(20) if row != 4]
    np.testing.assert_array_equal(result.labels.argmax(axis=1), [row % 2 for row in good])
    assert list(result.source_split) == ["test" if row < 3 else "train" for row in good]
    assert result.skipped == [("list.txt:4", "is not there")]
    assert result.hashes.shape == (19, 32) and len(np.unique(result.hashes, axis=0)) == 19
    assert verify.names_of(result, [0, 4, 18]) == {0: "0.png", 4: "5.png", 18: "19.png"}


def test_digest_tells_labels_apart_that_move_between_images(tmp_path):
    def digest(number: int, labels: list[tuple[int, ...]]) -> str:
        records = [Record(picture(row), str(row), label) for row, label in enumerate(labels)]
        (tmp_path / str(number)).mkdir()
        return verify.verify(source(records), tmp_path / str(number), 1).content

    variants = [[(0, 1), ()], [(), (0, 1)], [(0,), (1,)], [(1,), (0,)]]
    assert len({digest(number, labels) for number, labels in enumerate(variants)}) == 4
    assert digest(8, variants[0]) == digest(9, variants[0])


class Listed:
    """A source's records that can be sent to another process."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, start: int) -> Iterator[Record]:
        for row in range(start, self.count):
            yield Record(picture(row % 50) if row % 9 else b"x", f"{row}.png", (row % 2,))


def test_worker_processes_change_nothing(tmp_path):
    n = 4 * verify.PART_ROWS + 300
    parts = {}
    for workers in (1, 2, 3):
        (tmp_path / str(workers)).mkdir()
        result = verify.verify(Source("n", ("a", "b"), "l", "s", n, Listed(n)), tmp_path / str(workers), workers)
        parts[workers] = [file.read_bytes() for file in result.parts]
        assert len(result.skipped) == -(-n // 9)
    assert len(parts[1]) == 5 and parts[1] == parts[2] == parts[3]


def refusing(start: int) -> Iterator[Record]:
    yield from Listed(3000)(start)
    raise InputError("set.tar: truncated; fetch it again")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_reading_raises_comes_through(tmp_path, workers):
    with pytest.raises(InputError, match=r"^set.tar: truncated; fetch it again$"):
        verify.verify(Source("n", ("a", "b"), "l", "s", 3500, refusing), tmp_path, workers)


@pytest.mark.parametrize("there", [0, 1, 29, 30, 31, 60])
@pytest.mark.parametrize("difference", [-1, 1])
def test_a_source_has_as_many_records_as_promised(tmp_path, monkeypatch, there, difference):
    monkeypatch.setattr(verify, "PART_ROWS", 30)
    if there + difference >= 0:
        promised = Source("n", ("a", "b"), "l", "here", there + difference, Listed(there))
        with pytest.raises(InputError, match=r"^here: has "):
            verify.verify(promised, tmp_path, 1)
        with pytest.raises(InputError, match=r"^here: has "):  # nor the second time
            verify.verify(promised, tmp_path, 1)


def test_streams(tmp_path, monkeypatch):
    """At most two parts of records are ever held."""
    alive = peak = 0

    class Pixels(bytes):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def records(start):
        nonlocal alive, peak
        data = picture(0)
        for index in range(start, 3000):
            alive += 1
            peak = max(peak, alive)
            yield Record(Pixels(data), str(index))

    monkeypatch.setattr(verify, "PART_ROWS", 100)
    result = verify.verify(Source("n", (), "l", "s", 3000, records), tmp_path, 1)
    assert len(result.labels) == 3000 and 100 <= peak <= 201


# ---- interruptions


class Unplugged(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("at", [0, 1, 29, 30, 31, 75, 119])
def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path, monkeypatch, at):
    monkeypatch.setattr(verify, "PART_ROWS", 30)
    all_records = [Record(picture(row) if row % 9 else b"x", f"{row}.png", (row % 2,)) for row in range(120)]
    asked = []

    def interrupted(start):
        asked.append(start)
        for number, record in enumerate(all_records[start:], start):
            if number == at and len(asked) == 1:
                raise Unplugged
            yield record

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    expected = verify.verify(source(all_records), whole, 1)
    with pytest.raises(Unplugged):
        verify.verify(Source("n", ("a", "b"), "l", "s", 120, interrupted), broken, 1)
    finished = {file.name: file.stat().st_mtime_ns for file in broken.glob("*.arrow")}
    result = verify.verify(Source("n", ("a", "b"), "l", "s", 120, interrupted), broken, 1)
    assert asked == [0, len(finished) * 30] and len(finished) == at // 30
    assert [file.read_bytes() for file in result.parts] == [file.read_bytes() for file in expected.parts]
    assert all((broken / name).stat().st_mtime_ns == time for name, time in finished.items())
    assert result.content == expected.content and result.skipped == expected.skipped


def test_what_was_begun_with_another_protocol_is_not_taken(tmp_path, monkeypatch):
    """Of finished shards nothing is taken that tells of another protocol, even of the same splits."""
    path = str(fill(tmp_path / "set", pictures(60)))
    counts = {"queries": 10, "database": 50, "train": 30}

    def unplug(*_):
        raise Unplugged

    with monkeypatch.context() as context:
        context.setattr(stage.shutil, "move", unplug)
        with pytest.raises(Unplugged):
            run(params("imagefolder", path=path, protocol="mirflickr25k", **counts))
    assert list(Path(".resume").glob("download-*/*/images-00000.parquet"))
    run(params("imagefolder", path=path, protocol="holdout", **counts))
    told = json.loads(pq.read_schema(IMAGES / "images-00000.parquet").metadata[b"dataset"])
    assert told == json.loads(DATASET.read_text()) and told["protocol"].startswith("holdout")


def test_images_that_were_encoded_here_are_known_by_their_pixels(tmp_path):
    """Another version of the encoder gives other bytes of the same pixels."""
    image = np.random.default_rng(0).integers(0, 9, (20, 30, 3), dtype=np.uint8)
    contents = []
    for level, pixels in ((1, image), (9, image), (1, image + 1)):
        record = encoded(pixels, "x.png", (0,))
        coded = io.BytesIO()
        Image.fromarray(pixels).save(coded, "PNG", compress_level=level)
        directory = tmp_path / str(len(contents))
        directory.mkdir()
        contents.append(verify.verify(source([record._replace(data=coded.getvalue())]), directory, 1).content)
    assert contents[0] == contents[1] != contents[2]


def test_another_protocol_uses_what_was_verified(tmp_path, monkeypatch):
    path = str(fill(tmp_path / "set", pictures(30)))
    with pytest.raises(InputError, match=r"dataset.protocol: 'cifar10' wants 1,000 query images a class"):
        run(params("imagefolder", path=path, protocol="cifar10"))

    def again(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(verify, "_judge", again)
    run(params("imagefolder", path=path, protocol="holdout"))
    assert read_dataset().counts["images"] == 30 and nothing_left_over()


def test_a_changed_collection_is_read_anew(tmp_path):
    path = str(fill(tmp_path / "set", pictures(30)))
    with pytest.raises(InputError, match="cifar10"):
        run(params("imagefolder", path=path, protocol="cifar10"))
    fill(tmp_path / "set", {"class 0/000.png": picture(500)})
    run(params("imagefolder", path=path, protocol="holdout"))
    assert images()[0] == picture(500)


# ---- features instead of pixels


def vectors(n: int, bad: range) -> list[Record]:
    return [
        Record(b"", f"{row}", features=np.full(4, np.nan if row in bad else row, np.float32)) for row in range(n)
    ]  # fmt: skip


def test_features_are_kept_as_they_are(tmp_path):
    result = verify.verify(source(vectors(10, range(3, 5))), tmp_path, 1)
    assert result.skipped == [(str(row), "has features that are not finite numbers") for row in (3, 4)]
    assert result.hashes is None
    table = verify.open_part(result.parts[0]).read_all()
    assert [row[0] for row in table["features"].to_pylist()] == [0, 1, 2, 5, 6, 7, 8, 9]


def test_a_part_without_a_usable_record_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "PART_ROWS", 10)
    np.save("things.npy", np.stack([record.features for record in vectors(60, range(0))]) + 1)
    values = np.load("things.npy")
    values[:10] = values[30:40] = 0
    np.save("things.npy", values)
    run(params("embeddings", path="things.npy", protocol="holdout", max_skipped=0.5))
    table = pq.read_table(IMAGES / "images-00000.parquet")
    assert table["id"].to_pylist() == list(range(40)) and len(skipped()) == 21
    assert [row[0] for row in table["features"].to_pylist()] == [*range(11, 31), *range(41, 61)]
    info = json.loads(pq.read_schema(IMAGES / "images-00000.parquet").metadata[b"huggingface"])["info"]
    assert list(info["features"]) == table.column_names and info["features"]["features"]["length"] == 4
