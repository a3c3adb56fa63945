"""Extraction with the model that ships with the package: features, views, workers, resuming, damaged images."""

import multiprocessing
import os
import pickle
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scene_shards import DIGEST, encoded, picture, scenes, write_shards

from stages import decoding
from stages.artifacts import CLIP, FEATURES, IMAGES, PROVENANCE_KEY, RESUME, Provenance
from stages.clip import ClipModel, load_clip
from stages.decoding import Slice
from stages.errors import InputError
from stages.extract import parts, pixels
from stages.extract.config import Params
from stages.extract.decoding import DecodedSlices, slices_of_pictures
from stages.extract.stage import run
from stages.features import Features
from stages.hdf5 import read_text
from stages.images import ImageShards, decode
from stages.params import parse
from stages.scenes.model import load_clip as load_original

COUNT = 23


IS_TRAIN = np.arange(COUNT) % 3 == 1


DATASETS = ("image/features", "image/id", "train/views", "train/id")


# Batches of another size may round the last bit of a convolution otherwise, and float16 is on top of it.
SAME = 3e-3


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return scenes(COUNT)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: Path, clip: ClipModel, pictures: list[bytes]) -> Path:
    """A directory with shards of row groups of 5, 5, 1 and 5, 5, 2 images, and the model, loaded once for all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pixels, "load_clip", lambda device, precision: clip)
    (tmp_path / CLIP).parent.mkdir()
    (tmp_path / CLIP).symlink_to(pinned)
    write_shards(tmp_path, pictures, IS_TRAIN)
    return tmp_path


def params(**changes: object) -> Params:
    section = {"engine": "local", "views": 2, "batch_size": 12, "precision": "auto", "workers": 0, "seed": 0, **changes}
    return parse(Params, {"device": "cpu", "extract": section})


def extracted() -> dict[str, np.ndarray]:
    with h5py.File(FEATURES) as file:
        return {name: file[name][:] for name in DATASETS}


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name in DATASETS:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_features_are_those_of_the_original_model(here: Path, pictures: list[bytes]) -> None:
    run(params())
    model, preprocess, _ = load_original()
    with torch.no_grad():
        batch = torch.stack([preprocess(decode(data)) for data in pictures])
        expected = torch.nn.functional.normalize(model.encode_image(batch), dim=-1).numpy()
    with Features() as features:
        np.testing.assert_allclose(features.images(), expected, atol=1e-3)
        np.testing.assert_allclose(features.train(), expected[IS_TRAIN], atol=1e-3)


def test_the_file_has_the_promised_layout(here: Path, clip: ClipModel) -> None:
    run(params(views=3))
    with h5py.File(FEATURES) as file:
        shapes = {name: (file[name].shape, file[name].dtype, file[name].chunks is not None) for name in DATASETS}
        attributes = {name: read_text(file, name) for name in file.attrs}
    train = int(IS_TRAIN.sum())
    assert shapes == {
        "image/features": ((COUNT, 64), np.float16, True), "image/id": ((COUNT,), np.int64, False),
        "train/views": ((3, train, 64), np.float16, True), "train/id": ((train,), np.int64, False),
    }  # fmt: skip
    arrays = extracted()
    np.testing.assert_array_equal(arrays["image/id"], np.arange(COUNT))
    np.testing.assert_array_equal(arrays["train/id"], np.flatnonzero(IS_TRAIN))
    for name in ("image/features", "train/views"):
        np.testing.assert_allclose(np.linalg.norm(arrays[name].astype(np.float32), axis=-1), 1, atol=2e-3)
    provenance = Provenance.from_json(attributes[PROVENANCE_KEY], FEATURES)
    assert (provenance.stage, provenance.dataset, provenance.model) == ("extract", DIGEST, clip.sha256)
    assert provenance.params == {"views": 3, "seed": 0}
    assert {"torch", "torchvision", "open_clip_torch"} <= provenance.versions.keys()
    assert attributes["model"] == "scenes-clip"
    assert attributes["pretrained"] == "embedded"
    assert "(64, 64) pixels" in attributes["preprocessing"]
    assert attributes["precision"] == "float32, stored as float16"


def test_the_stage_loads_the_pinned_model_itself(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(params())
    expected = extracted()
    monkeypatch.setattr(pixels, "load_clip", load_clip)
    run(params())
    assert_equal(extracted(), expected)


def test_the_stage_reproduces_itself_byte_by_byte(here: Path) -> None:
    run(params())
    before = FEATURES.read_bytes()
    run(params())
    assert FEATURES.read_bytes() == before


def test_views_belong_to_their_image_and_differ(here: Path) -> None:
    run(params(views=4))
    with Features() as features:
        images, views = features.train(), features.views()
    similar = np.einsum("vid,jd->vij", views, images)
    own = similar[:, np.arange(len(images)), np.arange(len(images))]
    assert own.mean() > similar.mean() + 0.2
    assert np.mean(similar.mean(axis=0).argmax(axis=1) == np.arange(len(images))) > 0.7
    for one in range(4):
        for other in range(one):
            assert np.abs(views[one] - views[other]).max(axis=1).min() > 0.01


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(here: Path, workers: int) -> None:
    run(params())
    expected = extracted()
    run(params(workers=workers))
    assert_equal(extracted(), expected)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_changes_nothing(here: Path, batch_size: int) -> None:
    run(params())
    expected = extracted()
    run(params(batch_size=batch_size))
    for name, array in extracted().items():
        np.testing.assert_allclose(array.astype(float), expected[name].astype(float), atol=SAME, err_msg=name)


@pytest.mark.parametrize(("group", "shards"), [(1, 1), (23, 1), (4, 3)])
def test_the_row_groups_change_nothing(here: Path, pictures: list[bytes], group: int, shards: int) -> None:
    run(params())
    expected = extracted()
    for file in IMAGES.iterdir():
        file.unlink()
    write_shards(here, pictures, IS_TRAIN, group=group, shards=shards)
    run(params())
    for name, array in extracted().items():
        np.testing.assert_allclose(array.astype(float), expected[name].astype(float), atol=SAME, err_msg=name)


def test_another_seed_gives_other_views_of_the_same_images(here: Path) -> None:
    run(params(seed=0))
    expected = extracted()
    run(params(seed=1))
    found = extracted()
    np.testing.assert_array_equal(found["image/features"], expected["image/features"])
    assert np.abs(found["train/views"] - expected["train/views"]).max(axis=2).min() > 0.01


@pytest.mark.parametrize("is_train", [np.zeros(COUNT, bool), np.arange(COUNT) == 22, np.ones(COUNT, bool)])
def test_views_are_made_of_training_images_only(here: Path, pictures: list[bytes], is_train: np.ndarray) -> None:
    write_shards(here, pictures, is_train)
    run(params(views=2))
    arrays = extracted()
    np.testing.assert_array_equal(arrays["train/id"], np.flatnonzero(is_train))
    assert arrays["train/views"].shape == (2, is_train.sum(), 64)
    with Features() as features:
        assert features.views().shape == (2, is_train.sum(), 64)


def test_any_image_will_do(here: Path) -> None:
    """Wide, tall, grey, with a palette, CMYK, transparent, of one pixel, turned by EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(7).save(here / "turned.jpg", exif=exif)
    kinds = [
        encoded(picture(0, (200, 20))), encoded(picture(1, (20, 200))), encoded(picture(2).convert("L"), "JPEG"),
        encoded(picture(3).convert("P")), encoded(picture(4).convert("CMYK"), "JPEG"),
        encoded(picture(5).convert("RGBA")), encoded(Image.new("RGB", (1, 1), "red")),
        (here / "turned.jpg").read_bytes(),
    ]  # fmt: skip
    for file in IMAGES.iterdir():
        file.unlink()
    write_shards(here, kinds, np.ones(len(kinds), bool))
    run(params())
    assert np.isfinite(extracted()["image/features"]).all()
    assert np.isfinite(extracted()["train/views"]).all()
    upright = picture(7).transpose(Image.Transpose.ROTATE_270)
    assert decode(kinds[-1]).size == upright.size == (30, 40)


class Counting:
    """Counts the images that a model encodes; stops with `error` before the call number `stop`."""

    def __init__(self, clip: ClipModel, stop: int | None = None, error: BaseException | None = None) -> None:
        self.clip, self.stop, self.error = clip, stop, error
        self.calls = self.images = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clip, name)

    def encode_images(self, batch: torch.Tensor) -> torch.Tensor:
        if self.calls == self.stop:
            raise self.error
        self.calls += 1
        self.images += len(batch)
        return self.clip.encode_images(batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_extraction_goes_on_where_it_stopped(
    here: Path, clip: ClipModel, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    whole = Counting(clip)
    monkeypatch.setattr(pixels, "load_clip", lambda device, precision: whole)
    run(params(batch_size=5))
    undisturbed = FEATURES.read_bytes()
    FEATURES.unlink()
    assert whole.images == COUNT + 2 * IS_TRAIN.sum()

    # A row group takes two calls: two slices, of 3 and 2 images, of which one or two are training images in two views.
    killed = Counting(clip, 3, KeyboardInterrupt())
    monkeypatch.setattr(pixels, "load_clip", lambda device, precision: killed)
    with pytest.raises(KeyboardInterrupt):
        run(params(workers=workers, batch_size=5))
    assert not FEATURES.exists()
    finished = sorted(RESUME.glob("extract-*/*"))
    assert [file.name for file in finished] == ["000000.npz"]

    resumed = Counting(clip)
    monkeypatch.setattr(pixels, "load_clip", lambda device, precision: resumed)
    run(params(workers=workers, batch_size=5))
    assert resumed.images == whole.images - 5 - 2 * IS_TRAIN[:5].sum()
    assert FEATURES.read_bytes() == undisturbed
    assert not list(RESUME.glob("extract-*"))


def test_an_extraction_killed_before_the_end_has_nothing_left_to_encode(
    here: Path, clip: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(parts, "join", stop)
        with pytest.raises(KeyboardInterrupt):
            run(params())
    counting = Counting(clip)
    monkeypatch.setattr(pixels, "load_clip", lambda device, precision: counting)
    run(params(workers=2))
    assert counting.images == 0
    assert extracted()["image/features"].shape == (COUNT, 64)


@pytest.mark.parametrize("change", ["views", "seed", "data", "model", "precision"])
def test_leftovers_of_another_extraction_are_not_used(
    here: Path, clip: ClipModel, pinned: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[bytes], change: str
) -> None:
    monkeypatch.setattr(pixels, "load_clip", lambda device, precision: Counting(clip, 3, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(params())
    config = replace(clip.config, sha256="f" * 64) if change == "model" else clip.config
    clip = load_clip(pinned, precision="bfloat16") if change == "precision" else clip
    counting = Counting(replace(clip, config=config))
    monkeypatch.setattr(pixels, "load_clip", lambda device, precision: counting)
    if change == "data":
        write_shards(here, pictures, IS_TRAIN, digest="c" * 64)
    run(params(views=3 if change == "views" else 2, seed=1 if change == "seed" else 0))
    assert counting.images == COUNT + (3 if change == "views" else 2) * IS_TRAIN.sum()


def test_two_data_sets_in_one_process_are_not_mixed_up(
    here: Path, tmp_path_factory: pytest.TempPathFactory, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shards have the same names in both directories."""
    run(params())
    expected = extracted()
    monkeypatch.chdir(tmp_path_factory.mktemp("other"))
    CLIP.parent.mkdir()
    CLIP.symlink_to(here / CLIP)
    write_shards(Path.cwd(), pictures[::-1], IS_TRAIN, digest="c" * 64)
    run(params())
    np.testing.assert_allclose(
        extracted()["image/features"].astype(float), expected["image/features"][::-1].astype(float), atol=SAME
    )


def test_what_workers_get_can_be_pickled(here: Path, clip: ClipModel) -> None:
    """Where processes do not fork they are sent the dataset."""
    file, group = ImageShards().row_groups()[0]
    dataset = DecodedSlices([Slice(file, group, 1, 4)], clip, 2, 0)
    pictures, count = dataset[0]
    assert (pictures.shape, pictures.dtype, count) == ((3 + 2, 64, 64, 3), torch.uint8, 3)
    copy = pickle.loads(pickle.dumps(dataset))
    torch.testing.assert_close(copy[0][0], pictures, rtol=0, atol=0)


@pytest.mark.parametrize("views", [2, 5])
def test_an_image_is_decoded_once_for_all_of_its_views(
    here: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[bytes], views: int
) -> None:
    decoded = []
    monkeypatch.setattr(decoding, "decode", lambda data: decoded.append(data) or decode(data))
    run(params(views=views))
    assert decoded == pictures


@pytest.mark.parametrize("at_most", [1, 3, 5, 1000])
def test_slices_have_as_many_pictures_as_a_batch(here: Path, at_most: int) -> None:
    groups = ImageShards().row_groups()
    slices = slices_of_pictures(groups, 2, at_most)
    found = iter(slices)
    first = 0
    for file, group in groups:
        rows = pq.ParquetFile(file).metadata.row_group(group).num_rows
        pictures = 1 + 2 * IS_TRAIN[first : first + rows]
        first += rows
        row = 0
        while row < rows:
            part = next(found)
            assert (part.file, part.row_group, part.start) == (file, group, row)
            assert part.stop == row + 1 or pictures[row : part.stop].sum() <= at_most
            assert part.stop == rows or pictures[row : part.stop + 1].sum() > at_most
            row = part.stop
    assert next(found, None) is None


def test_bfloat16_is_near(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosine to the features in float32, of the images and of the views; and the file says what it has."""
    run(params())
    expected = extracted()
    monkeypatch.setattr(pixels, "load_clip", load_clip)
    run(params(precision="bfloat16"))
    found = extracted()
    for name in ("image/features", "train/views"):
        cosine = (found[name].astype(np.float32) * expected[name].astype(np.float32)).sum(axis=-1)
        assert 0.995 < cosine.min() < cosine.max() < 1.003
        assert np.abs(found[name] - expected[name]).max() > 1e-3
    with h5py.File(FEATURES) as file:
        assert read_text(file, "precision") == "bfloat16, stored as float16"


def damage_image(index: int) -> None:
    """Make image `index`, of the first shard, one that cannot be decoded."""
    file = IMAGES / "images-00000.parquet"
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[index]["image"]["bytes"] = rows[index]["image"]["bytes"][:-200]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), file, row_group_size=5)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_decoded_is_named(here: Path, workers: int) -> None:
    damage_image(7)
    with pytest.raises(InputError, match=re.escape("image 7 cannot be decoded")) as error:
        run(params(workers=workers))
    message = str(error.value)
    assert message.startswith(str(IMAGES / "images-00000.parquet"))
    assert message.endswith("rebuild it with `dvc repro download`")
    assert "\n" not in message
    assert not FEATURES.exists()
    assert [file.name for file in RESUME.glob("extract-*/*")] == ["000000.npz"]  # the row group before it is kept


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_damaged_in_its_middle_is_named(here: Path, workers: int) -> None:
    file = IMAGES / "images-00000.parquet"
    content = bytearray(file.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)  # the footer is whole
    file.write_bytes(content)
    with pytest.raises(InputError, match="dvc repro download") as error:
        run(params(workers=workers))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("of the model"), None])
def test_no_process_outlives_an_error(
    here: Path, clip: ClipModel, monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    if error is None:
        damage_image(7)
    else:
        monkeypatch.setattr(pixels, "load_clip", lambda device, precision: Counting(clip, 3, error))
    with pytest.raises((KeyboardInterrupt, ValueError, InputError)):
        run(params(workers=2))
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_is_one_clear_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does when memory, or shared memory, runs out."""
    main = os.getpid()

    def kill(data: bytes) -> Image.Image:
        if os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(data)

    monkeypatch.setattr(decoding, "decode", kill)
    with pytest.raises(InputError, match=r"extract\.workers: a decoding process was killed") as error:
        run(params(workers=1))
    assert "extract.batch_size" in str(error.value)


def test_missing_inputs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[bytes]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="dvc repro download"):
        run(params())
    write_shards(tmp_path, pictures, IS_TRAIN)
    with pytest.raises(InputError, match="dvc repro weights"):
        run(params())


@pytest.mark.parametrize(
    ("key", "value"), [("views", 1), ("views", 65), ("batch_size", 0), ("workers", -1), ("seed", -1), ("seed", 2**32)]
)
def test_bad_parameters_are_named(key: str, value: int) -> None:
    with pytest.raises(InputError, match=re.escape(f"extract.{key}: {value} is not allowed")):
        params(**{key: value})
