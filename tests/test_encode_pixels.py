"""Codes by a backbone, row group by row group: what is finished is kept, and nobody else's is taken."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scene_shards import scenes, write_shards

from stages.artifacts import RESUME, Provenance
from stages.backbone import BackboneConfig, BackboneNet, build_backbone
from stages.encode import pixels
from stages.encode.config import Encode, Params
from stages.encode.pixels import EncodedParts, encode_shards
from stages.errors import InputError
from stages.hashnet import load_hashnet, save_hashnet
from stages.images import ImageShards
from stages.parts import write_part

COUNT, GROUPS = 23, 6
PARAMS = Params(device="cpu", encode=Encode(engine="local"))
CONFIG = BackboneConfig("timm/resnet10t", None, 512, 16, "uhscm", 32, (0.5,) * 3, (0.2,) * 3)


def save(seed: int) -> None:
    torch.manual_seed(seed)
    save_hashnet(BackboneNet(CONFIG, build_backbone(CONFIG.model, None)), Provenance("train"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("inputs")
    write_shards(place, scenes(COUNT), np.zeros(COUNT, bool))
    return place


@pytest.fixture
def net(here: Path, monkeypatch: pytest.MonkeyPatch) -> BackboneNet:
    monkeypatch.setattr(pixels, "cores", lambda: 0)
    save(0)
    return load_hashnet()[0]


def test_parts_are_the_codes_of_all_images(net: BackboneNet) -> None:
    parts = EncodedParts(ImageShards())
    codes = parts.encode(net, PARAMS)
    np.testing.assert_array_equal(codes, encode_shards(net, ImageShards(), torch.device("cpu"), 0))
    assert (codes.dtype, codes.shape, len(np.unique(codes)) > 2) == (np.uint8, (COUNT, 2), True)
    parts.remove()
    assert list(RESUME.iterdir()) == []


def test_a_killed_encoding_goes_on(net: BackboneNet, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = encode_shards(net, ImageShards(), torch.device("cpu"), 0)
    written: list[str] = []

    def write(part: Path, **arrays: np.ndarray) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(part.name)
        write_part(part, **arrays)

    with monkeypatch.context() as patched:
        patched.setattr(pixels, "write_part", write)
        with pytest.raises(KeyboardInterrupt):
            EncodedParts(ImageShards()).encode(net, PARAMS)
    resumed = []

    def observed(part: Path, **arrays: np.ndarray) -> None:
        resumed.append(part.name)
        write_part(part, **arrays)

    monkeypatch.setattr(pixels, "write_part", observed)
    np.testing.assert_array_equal(EncodedParts(ImageShards()).encode(net, PARAMS), expected)
    assert written + resumed == [f"{number:06d}.npz" for number in range(GROUPS)]


def test_an_image_that_cannot_be_read_keeps_the_parts_before_it(
    net: BackboneNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BackboneNet, "CHUNK", 3)  # two batches of the four images of a row group
    item = pixels.PixelSlices.item

    def fail(items: pixels.PixelSlices, index: int) -> torch.Tensor:
        if index == 4:
            raise InputError("image 8 cannot be decoded")
        return item(items, index)

    monkeypatch.setattr(pixels.PixelSlices, "item", fail)
    with pytest.raises(InputError, match="image 8"):
        EncodedParts(ImageShards()).encode(net, PARAMS)
    assert sorted(file.name for file in RESUME.glob("encode-*/*")) == ["000000.npz", "000001.npz"]


@pytest.mark.parametrize("change", ["network", "images"])
def test_parts_of_others_are_not_taken(here: Path, net: BackboneNet, change: str) -> None:
    EncodedParts(ImageShards()).encode(net, PARAMS)
    if change == "network":
        save(1)
    else:
        write_shards(here, scenes(COUNT)[::-1], np.zeros(COUNT, bool), digest="c" * 64)
    net = load_hashnet()[0]
    found = EncodedParts(ImageShards()).encode(net, PARAMS)
    np.testing.assert_array_equal(found, encode_shards(net, ImageShards(), torch.device("cpu"), 0))
    assert len(list(RESUME.iterdir())) == 1


def test_a_damaged_part_is_made_again(net: BackboneNet) -> None:
    expected = EncodedParts(ImageShards()).encode(net, PARAMS)
    part = sorted(RESUME.rglob("*.npz"))[3]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(InputError, match=rf"{part}: unfinished work, damaged .*run it again"):
        EncodedParts(ImageShards()).encode(net, PARAMS)
    np.testing.assert_array_equal(EncodedParts(ImageShards()).encode(net, PARAMS), expected)
