"""The map of the database: near codes lie near each other, the same every time, and what is no map is refused."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage_runner import copy, inputs, link, prepare

from stages.artifacts import MAP, Provenance
from stages.codes import pack, read_codes, write_codes
from stages.components.fitted import read_fitted
from stages.errors import InputError
from stages.features import Features
from stages.map.artifact import ImageMap, read_map, write_map
from stages.map.layout import layout, sample


def noisy_codes(groups: int, size: int, bits: int = 32, seed: int = 0) -> np.ndarray:
    """Codes of `groups` times `size` images: around one random code a group, 2 bits of which are flipped at most."""
    rng = np.random.default_rng(seed)
    centres = rng.choice([-1.0, 1.0], (groups, bits)).repeat(size, axis=0)
    flipped = rng.integers(0, bits, (len(centres), 2))
    np.put_along_axis(centres, flipped, -np.take_along_axis(centres, flipped, axis=1), axis=1)
    return pack(centres)


def test_images_of_near_codes_lie_near_each_other():
    packed, group = noisy_codes(5, 60), np.arange(300) // 60
    found = layout(packed, seed=0)
    assert found.shape == (300, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-4)
    distance = np.linalg.norm(found[:, None] - found, axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :10]
    assert (group[nearest] == group[:, None]).mean() > 0.98
    assert distance.min() > 0  # images of the same code can be told apart
    np.testing.assert_array_equal(layout(packed, seed=0), found)
    assert not np.array_equal(layout(packed, seed=1), found)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 40])
def test_few_images_and_equal_codes_have_places(n):
    assert np.isfinite(layout(noisy_codes(1, n), seed=0)).all()
    assert np.isfinite(layout(np.zeros((n, 1), np.uint8), seed=0)).all()


def test_sample():
    assert sample(5, 5, 0).tolist() == [0, 1, 2, 3, 4]
    found = sample(1000, 100, 3)
    assert len(found) == 100 and (np.diff(found) > 0).all() and found[0] >= 0 and found[-1] < 1000
    assert np.array_equal(found, sample(1000, 100, 3)) and not np.array_equal(found, sample(1000, 100, 4))


def test_stage_writes_images_of_the_database_with_their_components(tmp_path, tiny_run, run_stages, monkeypatch):
    directory = prepare(tmp_path / "run", {"map": {"images": 50}, "seed": 3})
    link(inputs("map"), tiny_run, directory)
    run_stages(directory, "map").check()
    monkeypatch.chdir(directory)
    found, codes = read_map(), read_codes()
    rows = sample(len(codes.database), 50, 3)
    np.testing.assert_array_equal(found.id, codes.database_id[rows])
    np.testing.assert_array_equal(np.column_stack([found.x, found.y]), layout(codes.database[rows], 3))
    components = read_fitted(codes.provenance, MAP)
    with Features() as features:
        expected = components.coarse(components.fine(features.images(found.id))).argmax(axis=1)
    np.testing.assert_array_equal(found.coarse, expected)
    assert found.provenance.stage == "map" and found.provenance.params["map"] == {"images": 50}
    assert found.provenance.dataset == codes.provenance.dataset
    assert pq.read_schema(MAP).remove_metadata() == pa.schema(
        [("id", pa.int64()), ("x", pa.float32()), ("y", pa.float32()), ("coarse", pa.int32())]
    )


def test_a_database_without_images_has_no_map(tmp_path, tiny_run, run_stages, monkeypatch):
    directory = prepare(tmp_path / "run")
    copy(inputs("map"), tiny_run, directory)
    monkeypatch.chdir(directory)


    codes = read_codes()
    write_codes(replace(codes, database=codes.database[:0], database_id=codes.database_id[:0]))
    assert "has no database images for a map" in run_stages(directory, "map").error()


def test_what_is_no_map_is_refused(workplace):
    with pytest.raises(InputError, match=r"data/map.parquet: not found; rebuild it with `dvc repro map`"):
        read_map()
    good = ImageMap(np.arange(3), *np.zeros((2, 3), np.float32), np.full(3, -1, np.int32), Provenance("map"))
    write_map(good)
    assert read_map().coarse.tolist() == [-1, -1, -1]
    for bad, message in (
        (replace(good, x=np.array([0, np.nan, 0], np.float32)), "places that are not finite"),
        (replace(good, id=np.array([0, 2, 1])), "ids that do not ascend"),
        (replace(good, coarse=np.array([0, -2, 1], np.int32)), "components below -1"),
    ):
        write_map(bad)
        with pytest.raises(InputError, match=message):
            read_map()
    MAP.write_bytes(MAP.read_bytes()[:100])
    with pytest.raises(InputError, match="`dvc repro map`"):
        read_map()
