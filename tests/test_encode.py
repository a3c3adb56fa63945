"""Encoding: the codes are the signs of the network, in the order of the ids, and from the same data set and model."""

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hdf5_files import is_open
from small_run import DIGEST, MODEL, write_small_run

from stages.artifacts import CODES, FEATURES, HASHNET, IMAGES, PROVENANCE_KEY, Provenance
from stages.codes import Codes, pack, read_codes, unpack, write_codes
from stages.encode import stage
from stages.encode.config import Encode, Params
from stages.encode.stage import run
from stages.errors import InputError
from stages.features import Features
from stages.hashnet import HashNet, HashNetConfig, relaxed_codes, save_hashnet
from stages.hdf5 import write_text
from stages.images import ImageShards

ORIGIN = Provenance("train", DIGEST, MODEL, {"bits": 24, "method": "dsch"})
PARAMS = Params(device="cpu", encode=Encode(engine="local"))


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HashNet:
    """A random network of 24 bits on disk, beside images and features."""
    monkeypatch.chdir(tmp_path)
    write_small_run()
    CODES.unlink()
    torch.manual_seed(0)
    net = HashNet(HashNetConfig(12, 10, 24, "dsch"))
    net(torch.randn(50, 12))
    save_hashnet(net, ORIGIN)
    return net


def expected_codes(net: HashNet, ids: np.ndarray) -> np.ndarray:
    """-1 and +1, one image at a time."""
    with Features() as features:
        rows = [relaxed_codes(net, torch.from_numpy(features.images(np.array([i]))))[0].numpy() for i in ids]
    return np.where(np.stack(rows) >= 0, 1, -1)


def test_codes_are_the_signs_of_the_network_in_the_order_of_the_ids(net: HashNet) -> None:
    run(PARAMS)
    codes, shards = read_codes(), ImageShards()
    for split in ("query", "database"):
        ids = getattr(codes, f"{split}_id")
        np.testing.assert_array_equal(ids, shards.ids(split))
        assert (np.diff(ids) > 0).all()
        packed = getattr(codes, split)
        assert (packed.dtype, packed.shape) == (np.uint8, (len(ids), 3))
        np.testing.assert_array_equal(unpack(packed), expected_codes(net, ids))
    assert not set(codes.query_id) & set(codes.database_id)
    assert (codes.bits, codes.method) == (24, "dsch")
    assert codes.provenance == Provenance("encode", DIGEST, MODEL, ORIGIN.params)


def test_the_chunks_change_nothing(net: HashNet, monkeypatch: pytest.MonkeyPatch) -> None:
    run(PARAMS)
    whole = read_codes()
    for chunk in (1, 7, 100):
        monkeypatch.setattr(stage, "CHUNK", chunk)
        run(PARAMS)
        np.testing.assert_array_equal(read_codes().query, whole.query)
        np.testing.assert_array_equal(read_codes().database, whole.database)


def test_zero_counts_as_plus_one(net: HashNet) -> None:
    with torch.no_grad():
        net.layers[3].weight.zero_()
        net.layers[3].bias.zero_()
        net.layers[3].bias[5] = -1e-3
    save_hashnet(net, ORIGIN)
    run(PARAMS)
    codes = unpack(read_codes().database)
    assert (codes[:, 5] == -1).all()
    assert (np.delete(codes, 5, axis=1) == 1).all()


def test_the_stage_reproduces_itself_byte_by_byte(net: HashNet) -> None:
    run(PARAMS)
    before = CODES.read_bytes()
    run(PARAMS)
    assert CODES.read_bytes() == before


def _features_of(**changes: str) -> None:
    with h5py.File(FEATURES, "a") as file:
        content = Provenance(**{"stage": "extract", "dataset": DIGEST, "model": MODEL, **changes})
        write_text(file, PROVENANCE_KEY, content.to_json())


def _network_of(**changes: str) -> Callable[[], None]:
    def damage() -> None:
        net = HashNet(HashNetConfig(12, 10, 24, "dsch"))
        save_hashnet(net, Provenance(**{"stage": "train", "dataset": DIGEST, "model": MODEL, **changes}))

    return damage


@pytest.mark.parametrize(
    ("damage", "start", "message"),
    [
        (_network_of(dataset="c" * 64), f"{HASHNET}: made with another data set", "dvc repro train"),
        (_network_of(model="c" * 64), f"{HASHNET}: made with another model", "dvc repro train"),
        (lambda: _features_of(dataset="c" * 64), f"{FEATURES}: made with another data set", "dvc repro extract"),
        (lambda: _features_of(model="c" * 64), f"{HASHNET}: made with another model", "dvc repro train"),
        (lambda: (HASHNET / "model.safetensors").unlink(), str(HASHNET), "dvc repro train"),
        (lambda: FEATURES.unlink(), str(FEATURES), "dvc repro extract"),
        (lambda: [file.unlink() for file in IMAGES.iterdir()], str(IMAGES), "dvc repro download"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(net: HashNet, damage: Callable[[], None], start: str, message: str) -> None:
    damage()
    with pytest.raises(InputError, match=re.escape(message)) as error:
        run(PARAMS)
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)
    assert not CODES.exists()


def test_packing_puts_the_first_bit_highest() -> None:
    values = np.array([[1, -1, -1, -1, -1, -1, -1, 0.0], [-0.5, 2, -1, -1, -1, -1, -1, -1e-9]])
    np.testing.assert_array_equal(pack(values), [[0b10000001], [0b01000000]])
    np.testing.assert_array_equal(unpack(pack(values)), np.where(values >= 0, 1, -1))
    assert unpack(pack(values)).dtype == np.int8


@pytest.mark.parametrize("bits", [8, 16, 64])
def test_unpacking_undoes_packing(bits: int) -> None:
    signs = np.random.default_rng(bits).choice([-1, 1], (30, bits))
    packed = pack(signs)
    assert packed.shape == (30, bits // 8)
    np.testing.assert_array_equal(unpack(packed), signs)
    assert unpack(pack(np.empty((0, bits)))).shape == (0, bits)


SOME = Codes(
    np.array([[1, 2]], np.uint8), np.array([4]), np.array([[3, 4], [5, 6]], np.uint8), np.array([0, 9]), "uhscm", ORIGIN
)


def test_codes_read_back(tmp_path: Path) -> None:
    path = tmp_path / "codes.h5"
    write_codes(SOME, path)
    found = read_codes(path)
    for name in ("query", "query_id", "database", "database_id"):
        np.testing.assert_array_equal(getattr(found, name), getattr(SOME, name))
    assert (found.bits, found.method, found.provenance) == (16, "uhscm", ORIGIN)


def _replace(name: str, value: np.ndarray | None) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file[name]
            if value is not None:
                file[name] = value

    return damage


def _without_attribute(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file.attrs[name]

    return damage


CODE_DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:600]),
    "not HDF5": lambda path: path.write_bytes(b"codes"),
    "no ids": _replace("query/id", None),
    "no codes": _replace("database/codes", None),
    "other type": _replace("query/codes", np.zeros((1, 2))),
    "other length": _replace("query/codes", np.zeros((1, 3), np.uint8)),
    "one dimension": _replace("query/codes", np.zeros(2, np.uint8)),
    "ids of another number": _replace("database/id", np.arange(5)),
    "no bits": _without_attribute("bits"),
    "no method": _without_attribute("method"),
    "no provenance": _without_attribute(PROVENANCE_KEY),
}


@pytest.mark.parametrize("name", CODE_DAMAGES)
def test_damaged_codes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_codes(SOME)
    CODE_DAMAGES[name](CODES)
    with pytest.raises(InputError, match="dvc repro encode") as error:
        read_codes()
    assert str(error.value).startswith(str(CODES))
    assert "\n" not in str(error.value)
    assert not is_open(CODES)
