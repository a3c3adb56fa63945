"""The index: every kind against brute force, what is kept of the images, later changes, and files that are damaged."""

import io
import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_run import CLASSES, DIGEST, MODEL, write_small_run

from stages.artifacts import CODES, DATASET, IMAGES, INDEX, Provenance, read_json, write_json
from stages.codes import Codes, read_codes, write_codes
from stages.errors import InputError
from stages.images import ImageShards, decode, thumbnail
from stages.index import binary
from stages.index.config import Index, Params
from stages.index.files import MANIFEST, read_manifest
from stages.index.opened import BinaryIndex
from stages.index.stage import run

KINDS = ("flat", "ivf", "multihash")
SEARCHED = {"flat": "IndexBinaryFlat", "ivf": "IndexBinaryIVF", "multihash": "IndexBinaryMultiHash"}


def params(kind: str = "auto", **changes: object) -> Params:
    return Params(index=Index(**{"kind": kind, "lists": None, "probes": 16, "thumbnail": 32, **changes}))


def packed(n: int, bits: int, seed: int = 0) -> np.ndarray:
    """Codes around forty centres, some of them twice."""
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (40, bits))[rng.integers(0, 40, n)] ^ (rng.random((n, bits)) < 0.08)
    codes = np.packbits(signs, axis=1)
    codes[n // 2 : n // 2 + n // 10] = codes[: n // 10]
    return codes


def brute(codes: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All rows by distance, then by row; and the distances."""
    distances = np.bitwise_count(codes ^ code).sum(axis=1).astype(int)
    order = np.argsort(distances, kind="stable")
    return order, distances[order]


# ---- pure functions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 24, 64])
def test_searches_are_those_of_brute_force(kind, bits):
    """An IVF that looks into all groups is exact, too."""
    codes = packed(3000, bits)
    index = binary.build(codes, kind, lists=20, probes=20)
    assert type(index).__name__ == SEARCHED[kind]
    for code in packed(15, bits, seed=1):
        order, distances = brute(codes, code)
        for count in (1, 30, 4000):
            rows, found = binary.nearest(index, code, count)
            np.testing.assert_array_equal(found, distances[:count])
            if kind != "ivf" or count == 4000:  # faiss cuts equally distant ones off as they come
                np.testing.assert_array_equal(rows, order[:count])
        for radius in (0, 2, 9, bits):
            rows, found = binary.within(index, code, radius)
            within = distances <= radius
            np.testing.assert_array_equal(rows, order[within])
            np.testing.assert_array_equal(found, distances[within])


def test_look_ups_spare_the_scan(monkeypatch):
    """Near queries of a multi-hash index never touch the flat one inside."""
    codes = packed(20_000, 64)
    index = binary.build(codes, "multihash")
    monkeypatch.setattr(binary, "storage", lambda index: pytest.fail("all codes were compared"))
    order, distances = brute(codes, codes[7])
    rows, found = binary.within(index, codes[7], 4)
    np.testing.assert_array_equal(rows, order[distances <= 4])
    rows, found = binary.nearest(index, codes[7], 3)
    np.testing.assert_array_equal(found, distances[:3])


def test_an_ivf_finds_most_of_what_is_near():
    codes = packed(5000, 64)
    index = binary.build(codes, "ivf", lists=40, probes=4)
    found = [len(np.intersect1d(binary.nearest(index, code, 10)[1], brute(codes, code)[1][:10])) > 0
             for code in packed(30, 64, seed=1)]  # fmt: skip
    assert np.mean(found) > 0.8
    assert (index.nlist, index.nprobe) == (40, 4)
    assert binary.build(codes, "ivf").nlist == round(4 * 5000**0.5)


def test_the_same_codes_give_the_same_groups():
    one, other = (faiss.serialize_index_binary(binary.build(packed(2000, 32), "ivf")) for _ in range(2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_come_back_and_rows_move_up(kind):
    codes = packed(500, 32)
    index = binary.build(codes, kind)
    np.testing.assert_array_equal(binary.all_codes(index), codes)
    np.testing.assert_array_equal(binary.codes_at(index, np.array([77, 3])), codes[[77, 3]])
    gone = np.array([0, 3, 250, 499])
    index = binary.without(index, gone)
    rest = np.delete(codes, gone, axis=0)
    assert index.ntotal == 496
    np.testing.assert_array_equal(binary.all_codes(index), rest)
    index.add(codes[:2])
    np.testing.assert_array_equal(binary.all_codes(index), np.concatenate([rest, codes[:2]]))


def test_what_auto_is():
    assert binary.kind_for("auto", 10_000_000) == "flat"
    assert binary.kind_for("auto", 10_000_001) == "ivf"
    assert binary.kind_for("multihash", 5) == "multihash"


@pytest.mark.parametrize("size", [(300, 100), (20, 50), (32, 32)])
def test_thumbnails_fit_and_keep_their_shape(size):
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, "JPEG")
    small = decode(thumbnail(buffer.getvalue(), 32))
    factor = min(1, 32 / max(size))
    assert small.size == tuple(max(1, round(side * factor)) for side in size)
    with pytest.raises(ValueError, match="no image"):
        thumbnail(b"no image", 32)


# ---- the stage


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with a flat index."""
    directory = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        write_small_run()
        run(params())
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_the_index_holds_the_database(here, kind):
    run(params(kind, lists=4, probes=4))
    index, codes = BinaryIndex(), read_codes()
    assert (index.manifest.kind, index.bits, len(index)) == (kind, 16, 100)
    assert (index.exact, index.mapped) == (kind != "ivf", kind != "multihash")
    np.testing.assert_array_equal(index.ids, codes.database_id)
    np.testing.assert_array_equal(index.codes(), codes.database)
    assert index.provenance == Provenance("index", DIGEST, MODEL, codes.provenance.params)
    for row in (0, 17, 99):
        np.testing.assert_array_equal(index.code_of(codes.database_id[row]), codes.database[row])
    assert index.code_of(codes.query_id[0]) is None
    _, distances = index.nearest(codes.query[0], 7)
    np.testing.assert_array_equal(distances, brute(codes.database, codes.query[0])[1][:7])
    assert index.nearest(codes.query[0], 1000)[0].shape == (100,)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_find_what_one_finds(here, kind):
    run(params(kind, lists=4, probes=4))
    index = BinaryIndex()
    codes = np.repeat(read_codes().query, 20, axis=0)

    def search(code: np.ndarray) -> list[list[int]]:
        return [found.tolist() for found in (*index.nearest(code, 9), *index.within(code, 2))]

    expected = [search(code) for code in codes]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(search, codes)) == expected


def test_names_labels_and_thumbnails_are_those_of_the_images(here):
    index, shards = BinaryIndex(), ImageShards()
    labels = shards.labels(len(CLASSES))
    rows = np.array([5, 0, 80])
    assert index.names(rows) == [None] * 3
    assert index.labels(rows) == [[name for name, there in zip(CLASSES, labels[image], strict=True) if there]
                                  for image in index.ids[rows]]  # fmt: skip
    found = index.thumbnails(index.ids[rows])
    assert list(found) == index.ids[rows].tolist()
    for image, data in found.items():
        small = decode(data)
        assert small.size == (20, 16)
        np.testing.assert_allclose(small.getpixel((3, 3)), 220 * labels[image], atol=6)
    assert index.thumbnails(np.array([0, 10**9])) == {0: None, 10**9: None}  # a query, and nobody


def test_images_without_pixels_have_names(workplace):
    write_small_run(pixels=False)
    run(params())
    index = BinaryIndex()
    expected = [None if image % 3 == 0 else f"photographs/of the year/{image:07d}.jpg" for image in index.ids]
    assert index.names(np.arange(100)) == expected
    assert set(index.thumbnails(index.ids).values()) == {None}


def test_thumbnails_are_read_by_row_groups(here):
    file = pq.ParquetFile(INDEX / "images-0.parquet")
    assert file.num_row_groups > 3 and file.schema_arrow.names == ["id", "thumbnail"]


def test_the_stage_reproduces_itself_byte_by_byte(here):
    before = {file.name: file.read_bytes() for file in INDEX.iterdir()}
    run(params())
    assert before == {file.name: file.read_bytes() for file in INDEX.iterdir()}


def test_codes_stay_on_disk(here):
    index = BinaryIndex()
    assert str((INDEX / "codes-0.faiss").resolve()) in Path("/proc/self/maps").read_text()
    assert index.mapped


def test_inputs_that_do_not_fit_are_refused(here):
    codes = read_codes()
    foreign = Provenance("encode", "c" * 64, MODEL)
    write_codes(Codes(codes.query, codes.query_id, codes.database, codes.database_id, "fused", foreign))
    with pytest.raises(InputError, match="another data set"):
        run(params())
    write_codes(Codes(codes.query, codes.query_id, codes.database[:0], codes.database_id[:0], "fused",
                      codes.provenance))  # fmt: skip
    with pytest.raises(InputError, match="no database images"):
        run(params())
    write_codes(codes)
    write_json(DATASET, read_json(DATASET) | {"digest": "f" * 64})
    with pytest.raises(InputError, match="another data set"):
        run(params())


def test_an_image_that_cannot_be_decoded_is_named(here):
    file = min(IMAGES.iterdir())
    table = pq.read_table(file)
    images = table["image"].to_pylist()
    images[2]["bytes"] = b"no image"
    place = table.schema.get_field_index("image")
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(images, table.schema.field(place).type)),
                   file)  # fmt: skip
    before = read_manifest()
    with pytest.raises(InputError, match=r"images-00000.parquet: image 2 .*dvc repro download"):
        run(params())
    assert read_manifest() == before  # the old index stays


# ---- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def scramble(path: Path) -> None:
    path.write_bytes(bytes(len(path.read_bytes())))


def manifest(**changes: object) -> Callable[[], None]:
    return lambda: write_json(INDEX / MANIFEST, read_json(INDEX / MANIFEST) | changes)


def other_kind() -> None:
    faiss.write_index_binary(binary.build(read_codes().database, "ivf", 3), str(INDEX / "codes-0.faiss"))
    sizes = read_json(INDEX / MANIFEST)["sizes"] | {"codes-0.faiss": (INDEX / "codes-0.faiss").stat().st_size}
    manifest(sizes=sizes)()


DAMAGES: dict[str, Callable[[], object]] = {
    "no index": lambda: shutil.rmtree(INDEX),
    "no manifest": lambda: (INDEX / MANIFEST).unlink(),
    "no JSON": lambda: cut(INDEX / MANIFEST),
    "other fields": manifest(colour="red"),
    "no provenance": manifest(provenance=None),
    "no sizes": manifest(sizes={}),
    "no codes": lambda: (INDEX / "codes-0.faiss").unlink(),
    "no rows": lambda: (INDEX / "rows-0.arrow").unlink(),
    "no thumbnails": lambda: (INDEX / "images-0.parquet").unlink(),
    "codes cut": lambda: cut(INDEX / "codes-0.faiss"),
    "codes of zeros": lambda: scramble(INDEX / "codes-0.faiss"),
    "rows of zeros": lambda: scramble(INDEX / "rows-0.arrow"),
    "codes of another kind": other_kind,
    "a file outside": manifest(rows="../codes.h5", sizes={"codes-0.faiss": 1, "../codes.h5": 1}),
    "other bits": manifest(bits=24),
    "other number": manifest(images=99),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_indexes_are_named(here, name):
    DAMAGES[name]()
    with pytest.raises(InputError, match="dvc repro index") as error:
        BinaryIndex()
    assert str(error.value).startswith(str(INDEX)) and "\n" not in str(error.value)


def test_damaged_thumbnails_are_named(here):
    scramble(INDEX / "images-0.parquet")
    with pytest.raises(InputError, match=r"^data/index/images-0.parquet: .*dvc repro index"):
        BinaryIndex().thumbnails(np.array([1]))


def test_an_index_elsewhere_names_its_project(here, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / INDEX / "codes-0.faiss").unlink()
    with pytest.raises(InputError, match=re.escape(f"`dvc repro index` in {tmp_path}")):
        BinaryIndex(tmp_path / INDEX)


# ---- changes


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_added_and_removed_for_good(here, kind):
    run(params(kind, lists=4, probes=4))
    index, codes = BinaryIndex(), read_codes()
    ids, features = np.array([500, 300]), np.eye(2, 12, dtype=np.float32)
    index.add(ids, codes.query[:2], ["a.jpg", None], [thumbnail(jpeg(), 32), None], features)
    index.remove([int(codes.database_id[0]), 300, int(codes.database_id[50])])
    index.add([7000], codes.query[2:3])
    expected_ids = np.append(np.delete(codes.database_id, [0, 50]), [500, 7000])
    expected = np.concatenate([np.delete(codes.database, [0, 50], axis=0), codes.query[[0, 2]]])
    for opened in (index, BinaryIndex()):
        np.testing.assert_array_equal(opened.ids, expected_ids)
        np.testing.assert_array_equal(opened.codes(), expected)
        for code in codes.query[:6]:
            np.testing.assert_array_equal(opened.nearest(code, 9)[1], brute(expected, code)[1][:9])
            rows, _ = opened.within(code, 3)
            order, distances = brute(expected, code)
            np.testing.assert_array_equal(rows, order[distances <= 3])
        assert opened.names(np.array([98, 99])) == ["a.jpg", None]
        found = opened.thumbnails(np.array([500, 300, 7000, int(codes.database_id[0]), int(codes.database_id[1])]))
        assert [value is not None for value in found.values()] == [True, False, False, False, True]
        added = opened.added_features(np.array([500, 7000, int(codes.database_id[1])]))
        assert added == {500: features[0].tolist(), 7000: None}
        assert opened.code_of(300) is None
    assert index.manifest.generation == 3
    assert sorted(file.name for file in INDEX.iterdir()) == sorted([MANIFEST, *index.manifest.files])
    for file in INDEX.glob("images-*.parquet"):  # nothing is left of a removed one
        assert not {300, int(codes.database_id[0])} & set(pq.read_table(file)["id"].to_pylist())


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (50, 40), (200, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_changes_that_make_no_sense_change_nothing(here):
    index, codes = BinaryIndex(), read_codes()
    taken, two = int(index.ids[3]), codes.query[:2]
    before = {file.name: file.read_bytes() for file in INDEX.iterdir()}
    for change, words in (
        (lambda: index.add([900, taken], two), f"has image {taken} already; add images with ids from"),
        (lambda: index.add([900, 900], two), "an id twice"),
        (lambda: index.add([900], two), r"uint8 \(2, 2\)"),
        (lambda: index.add([900, 901], two.astype(int)), "int64"),
        (lambda: index.add([900, 901], two, names=["a"]), "1 names for 2 images"),
        (lambda: index.remove([900]), "no image 900"),
        (lambda: index.remove(index.ids), "left empty"),
    ):
        with pytest.raises(InputError, match=words):
            change()
    index.add([], two[:0])
    index.remove([])
    assert before == {file.name: file.read_bytes() for file in INDEX.iterdir()}


def test_two_changes_at_once_do_not_undo_each_other(here):
    one, other = BinaryIndex(), BinaryIndex()
    one.remove([int(one.ids[0])])
    with pytest.raises(InputError, match="another process"):
        other.remove([int(other.ids[1])])
    rows, _ = other.nearest(read_codes().query[0], 100)  # who opened it before still sees what was there
    assert len(rows) == 100
    assert len(BinaryIndex()) == 99


def test_a_change_that_fails_leaves_the_index(here, monkeypatch):
    index = BinaryIndex()
    before = {file.name: file.read_bytes() for file in INDEX.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(INDEX))

    monkeypatch.setattr("stages.index.opened.write_index", full)
    with pytest.raises(OSError, match="No space"):
        index.remove([int(index.ids[0])])
    assert before == {file.name: file.read_bytes() for file in INDEX.iterdir()}
    assert len(index) == len(BinaryIndex()) == 100


def test_links_into_a_cache_are_replaced(here, tmp_path_factory):
    """As DVC makes them: the cache's own files, which are read-only, stay as they are."""
    cache = tmp_path_factory.mktemp("cache")
    for file in INDEX.iterdir():
        shutil.move(file, cache / file.name)
        (cache / file.name).chmod(0o444)
        file.symlink_to(cache / file.name)
    before = {file.name: file.read_bytes() for file in cache.iterdir()}
    index = BinaryIndex()
    index.remove([int(index.ids[0])])
    assert len(BinaryIndex()) == 99
    assert before == {file.name: file.read_bytes() for file in cache.iterdir()}


def test_manifest_is_plain_json(here):
    content = json.loads((INDEX / MANIFEST).read_text())
    assert content["provenance"]["stage"] == "index" and content["kind"] == "flat"
    assert CODES.exists()
