"""``features.h5``: read by slices and by ids, and refused when it is not what it should be."""

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_files import is_open

from stages.artifacts import PROVENANCE_KEY, Provenance
from stages.errors import InputError
from stages.features import Features
from stages.hdf5 import write_text

ORIGIN = Provenance("extract", "d" * 64, "e" * 64)
TRAIN_ID = np.array([1, 4, 5, 17])


def unit(*shape: int) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        write_text(file, PROVENANCE_KEY, ORIGIN.to_json())
        file["image/features"], file["image/id"] = unit(20, 6).astype(np.float16), np.arange(20)
        file["train/views"], file["train/id"] = unit(3, 4, 6).astype(np.float16), TRAIN_ID
    return path


def test_sizes_and_provenance(path: Path) -> None:
    with Features(path) as features:
        assert (features.n_images, features.dim, features.n_views) == (20, 6, 3)
        np.testing.assert_array_equal(features.train_id, TRAIN_ID)
        assert features.provenance == ORIGIN


@pytest.mark.parametrize(
    "ids", [np.arange(20), np.array([0]), np.array([19]), np.array([3, 4, 11]), TRAIN_ID, slice(4, 9), slice(None)]
)
def test_images_by_id(path: Path, ids: np.ndarray | slice) -> None:
    with Features(path) as features:
        found = features.images(ids)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, unit(20, 6)[ids], atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(("piece", "gap"), [(1, 1), (3, 1), (2, 5), (1024, 64)])
def test_in_whatever_pieces_it_is_read_the_rows_are_the_same_to_the_last_bit(
    path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, gap: int
) -> None:
    with h5py.File(path) as file:
        images, views = (file[name][:].astype(np.float32) for name in ("image/features", "train/views"))
    monkeypatch.setattr("stages.features.PIECE", piece)
    monkeypatch.setattr("stages.features.GAP", gap)
    with Features(path) as features:
        for ids in (np.arange(20), np.array([0, 1, 5, 5, 19]), np.array([2, 3, 4, 11, 12]), slice(3, 17, 2)):
            chosen = images[ids]
            expected = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)
            np.testing.assert_array_equal(features.images(ids), expected)
        np.testing.assert_array_equal(features.views(), views / np.linalg.norm(views, axis=2, keepdims=True))
        np.testing.assert_array_equal(features.stored_train(1, 4), images[TRAIN_ID[1:4]])
        np.testing.assert_array_equal(features.stored_view(2, 1, 3), views[2, 1:3])
        assert features.stored_train(1, 4).dtype == features.stored_view(2, 1, 3).dtype == np.float16


def test_features_that_are_no_numbers_are_refused(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["image/features"][4, 2] = np.nan
        file["train/views"][2, 3, 1] = np.inf
    with Features(path) as features:
        for read in (features.images, features.train, features.views):
            with pytest.raises(InputError, match="features that are not finite numbers; "):
                read()
        assert features.images(slice(5, 20)).shape == (15, 6)


def test_no_image(path: Path) -> None:
    with Features(path) as features:
        assert features.images(np.empty(0, np.int64)).shape == (0, 6)
        assert features.images(slice(5, 5)).shape == (0, 6)


def test_training_images_and_their_views(path: Path) -> None:
    with Features(path) as features:
        np.testing.assert_allclose(features.train(), unit(20, 6)[TRAIN_ID], atol=2e-3)
        views = features.views()
    assert views.dtype == np.float32
    np.testing.assert_allclose(views, unit(3, 4, 6), atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(views, axis=2), 1, rtol=1e-6)


def test_a_zero_feature_stays_finite(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["image/features"][2] = 0
    with Features(path) as features:
        np.testing.assert_array_equal(features.images(np.array([2])), np.zeros((1, 6)))


def test_the_file_is_closed_afterwards(path: Path) -> None:
    with Features(path):
        assert is_open(path)
    assert not is_open(path)


def _remove(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def _not_hdf5(path: Path) -> None:
    path.write_bytes(b"no HDF5")


def _without(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file[name]

    return damage


def _with(name: str, value: np.ndarray) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file[name]
            file[name] = value

    return damage


def _without_provenance(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file.attrs[PROVENANCE_KEY]


def _other_provenance(path: Path) -> None:
    with h5py.File(path, "a") as file:
        write_text(file, PROVENANCE_KEY, '{"who": "somebody"}')


def _group(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["image/features"]
        file.create_group("image/features")


DAMAGES = {
    "missing": _remove,
    "truncated": _truncate,
    "not HDF5": _not_hdf5,
    "no features": _without("image/features"),
    "no views": _without("train/views"),
    "no training ids": _without("train/id"),
    "one dimension": _with("image/features", unit(6)),
    "two dimensions": _with("train/views", unit(4, 6)),
    "other length": _with("train/views", unit(3, 4, 5)),
    "other number of training images": _with("train/id", np.arange(5)),
    "a group": _group,
    "no provenance": _without_provenance,
    "another provenance": _other_provenance,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_named_and_left_closed(path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(path.parent)
    target = Path("data/features.h5")
    target.parent.mkdir()
    path.rename(target)
    DAMAGES[name](target)
    with pytest.raises(InputError, match=re.escape("dvc repro extract")) as error:
        Features(target)
    assert str(error.value).startswith(str(target))
    assert "\n" not in str(error.value)
    assert not is_open(target)
