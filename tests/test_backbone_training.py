"""A backbone from the shards to the codes, through the stages themselves."""

import json
import os
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scene_shards import encoded, scenes, write_shards
from stage_runner import StageRunner, content, leftovers, prepare
from training_run import DEFAULTS, run_components, train_params
from weight_files import save_checkpoint

from stages import decoding
from stages.artifacts import BACKBONE, CODES, FEATURES, HASHNET, IMAGES, RESUME
from stages.backbone import BackboneNet, evaluation_pixels, load_backbone
from stages.codes import read_codes, unpack
from stages.encode import stage as encode
from stages.encode.config import Encode
from stages.encode.config import Params as EncodeParams
from stages.errors import InputError
from stages.extract import stage as extract
from stages.extract.config import Params as ExtractParams
from stages.features import Features
from stages.hashnet import load_hashnet, relaxed_codes
from stages.images import ImageShards, decode, read_row_group
from stages.mine import stage as mine
from stages.mine.config import Params as MineParams
from stages.params import parse
from stages.pinned_backbone import read_pinned_backbone
from stages.similarity import stage as similarity
from stages.similarity.config import Params as SimilarityParams
from stages.train import trainer
from stages.train.image_batches import ImageBatches, store
from stages.train.methods.registry import METHODS
from stages.train.stage import CURVES, run
from stages.weights import stage as weights
from stages.weights.config import Backbone, Clip

COUNT = 48
#: The training images are scattered among the others.
IS_TRAIN = np.random.default_rng(0).permutation(COUNT) < 30
RESNET = Backbone(model="timm/test_resnet", weights=None)


def params(method: str = "fused", **changes: Any):
    """A training of two epochs on images of 32 pixels, without processes."""
    section = {**DEFAULTS["train"]["backbone"], "image_size": 32, "workers": 0, **changes.pop("backbone", {})}
    changes = {"epochs": 2, "batch_size": 8, "optimizer": "sgd", "lr": 0.01, "checkpoint": 1, **changes}
    return train_params(method, network="backbone", backbone=section, **changes)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered scenes and all that the stages before the training make of them; only to be read."""
    return scene_inputs(tmp_path_factory.mktemp("scenes"))


def scene_inputs(directory: Path) -> Path:
    """Write them."""
    with chdir(directory):
        write_shards(directory, scenes(COUNT), IS_TRAIN, group=10)
        weights.pin_clip(Clip(model="scenes-clip", pretrained="embedded"))
        weights.pin_backbone(RESNET)
        extract.run(parse(ExtractParams, {
            "device": "cpu", "extract": {**DEFAULTS["extract"], "views": 2, "workers": 0},
        }))  # fmt: skip
        shutil.copyfile(Path(__file__).parents[1] / "stages/mine/vocabularies/everyday.txt", "words.txt")
        section = {**DEFAULTS["concepts"], "vocabulary": "words.txt", "min_frequency": 0.1, "max_frequency": None}
        Path("data/dataset.json").write_text(json.dumps({
            "name": "scenes", "protocol": "scenes", "class_names": [], "counts": {}, "cutoffs": [], "licence": "",
            "source": "", "digests": {}, "skipped": 0, "digest": "d" * 64, "splits": "", "near_duplicates": None,
            "notes": [],
        }))  # fmt: skip
        mine.run(parse(MineParams, {"device": "cpu", "concepts": section}))
        similarity.run(parse(SimilarityParams, {"similarity": {**DEFAULTS["similarity"], "neighbours": 3}}))
        run_components()
    return directory


def trained() -> bytes:
    return (HASHNET / "model.safetensors").read_bytes()


def losses() -> list[str]:
    return (Path(CURVES) / "plots/metrics/loss.tsv").read_text().splitlines()[1:]


@pytest.mark.parametrize("method", METHODS)
def test_from_images_to_codes(here: Path, method: str) -> None:
    """Each method trains the whole network, and the codes are the signs of what it gives for the stored images."""
    before = load_file_or_none(BACKBONE / "model.safetensors")
    assert before is None  # random
    run(params(method))
    assert len(losses()) == 2
    assert not list(RESUME.glob("train-*"))
    encode.run(EncodeParams(device="cpu", encode=Encode(engine="local")))
    codes, (net, provenance) = read_codes(), load_hashnet()
    assert isinstance(net, BackboneNet) and provenance.stage == "train"
    assert (codes.method, codes.bits) == (method, 16)
    images = {}
    for file, group in ImageShards().row_groups():
        images |= {index: evaluation_pixels(decode(data), 32) for index, _, data in read_row_group(file, group)}
    for split in ("query", "database"):
        ids = ImageShards().ids(split)
        np.testing.assert_array_equal(getattr(codes, f"{split}_id"), ids)
        expected = relaxed_codes(net, torch.stack([images[index] for index in ids.tolist()])).numpy()
        sure = np.abs(expected) > 1e-5
        np.testing.assert_array_equal(unpack(getattr(codes, split))[sure], np.where(expected >= 0, 1, -1)[sure])
        assert sure.mean() > 0.99


def load_file_or_none(path: Path) -> dict[str, torch.Tensor] | None:
    return load_file(path) if path.exists() else None


def test_every_layer_is_trained_from_where_the_pinned_weights_are(here: Path) -> None:
    checkpoint = save_checkpoint("test_resnet", Path("resnet.pth"))
    weights.pin_backbone(Backbone(model="timm/test_resnet", weights=str(checkpoint)))
    pinned = load_file(BACKBONE / "model.safetensors")

    def moved(**changes: Any) -> dict[str, float]:
        run(params("uhscm", epochs=1, weight_decay=0.0, **changes))
        after = load_file(HASHNET / "model.safetensors")
        return {
            name: float((after[f"backbone.{name}"] - value).abs().max()) for name, value in pinned.items()
            if name.endswith(("conv2.weight", "bn1.weight", "conv1.weight"))
        }  # fmt: skip

    slow, fast, still = (moved(backbone={"lr_pretrained": factor}) for factor in (0.05, 1.0, 0.0))
    assert slow.keys() == fast.keys() and len(slow) > 5
    assert sum(value > 0 for value in slow.values()) > len(slow) / 2  # some branches of this model begin at 0
    assert sum(fast.values()) > 5 * sum(slow.values())
    assert not any(still.values())


def test_training_reproduces_itself_whatever_the_number_of_processes(here: Path) -> None:
    run(params())
    first, curve = trained(), losses()
    torch.rand(7)
    run(params(backbone={"workers": 2}))
    assert trained() == first and losses() == curve
    run(train_params(seed=1, **params().train.model_dump()))
    assert trained() != first


def interrupt_before(epoch: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ctrl-C before `epoch`; the epochs begun until then."""
    begun, derived_seed = [], trainer.derived_seed

    def stop(seed: int, index: int) -> int:
        if index == epoch:
            raise KeyboardInterrupt
        begun.append(index)
        return derived_seed(seed, index)

    monkeypatch.setattr(trainer, "derived_seed", stop)
    return begun


def test_a_resumed_training_is_the_undisturbed_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, which draws from PyTorch's own generator."""
    monkeypatch.setattr("timm.create_model", _with_dropout)
    options = params(epochs=3, checkpoint=2)
    run(options)
    undisturbed, curve = trained(), losses()
    shutil.rmtree(HASHNET)
    with monkeypatch.context() as patched:
        interrupt_before(2, patched)
        with pytest.raises(KeyboardInterrupt):
            run(options)
    assert not HASHNET.exists()
    torch.rand(5)
    with monkeypatch.context() as patched:
        begun = interrupt_before(99, patched)
        run(options)
    assert begun == [2]
    assert trained() == undisturbed and losses() == curve


def _with_dropout(name: str, **options: Any) -> torch.nn.Module:
    from timm.models import create_model

    return create_model(name, **options, drop_rate=0.5)


def test_other_weights_are_not_gone_on_with(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        interrupt_before(1, patched)
        with pytest.raises(KeyboardInterrupt):
            run(params())
    checkpoint = save_checkpoint("test_resnet", Path("resnet.pth"))
    weights.pin_backbone(Backbone(model="timm/test_resnet", weights=str(checkpoint)))
    begun = interrupt_before(99, monkeypatch)
    run(params())
    assert begun == [0, 1]


def test_the_image_tower_of_clip(here: Path) -> None:
    """Its pooled features at the start are those that the stage ``extract`` cached, up to length."""
    weights.pin_backbone(Backbone(model="clip", weights="clip"))
    pinned = read_pinned_backbone()
    tower = load_backbone("clip", pinned.tower, load_file(BACKBONE / "model.safetensors")).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (pinned.mean, pinned.std))
    file, group = ImageShards().row_groups()[0]
    rows = [(index, decode(data)) for index, _, data in read_row_group(file, group)]
    whole = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for _, image in rows])
    with torch.no_grad():
        found = torch.nn.functional.normalize(tower((whole / 255 - mean) / std), dim=1)
    with Features() as features:
        expected = torch.from_numpy(features.images(np.array([index for index, _ in rows])))
    assert (found * expected).sum(dim=1).min() > 0.999
    run(params("uhscm", epochs=1, backbone={"image_size": None}))
    assert load_hashnet()[0].config.image_size == 64
    encode.run(EncodeParams(device="cpu", encode=Encode(engine="local")))
    assert read_codes().bits == 16
    with pytest.raises(InputError, match=r"train\.backbone\.image_size: clip takes images of 64 pixels, not of 32"):
        run(params())


def test_batches_are_views_of_their_rows(here: Path) -> None:
    """Pictures of one colour each, which no augmentation hides quite: the codes belong to the rows."""
    shutil.rmtree(IMAGES)
    pictures = [encoded(Image.new("RGB", (40, 30), (5 * index, 5 * index, 5 * index))) for index in range(COUNT)]
    write_shards(here, pictures, IS_TRAIN)
    images = store(ImageShards(), here / "images.bin")
    np.testing.assert_array_equal(images.ids, np.flatnonzero(IS_TRAIN))
    data = ImageBatches(images, 16, 8, 0, torch.device("cpu"))
    seen: list[int] = []
    brightness = np.zeros((2, 30))
    for views, rows in data.epoch(2, 7):
        assert views.dtype == torch.uint8 and views.shape[1:] == (3, 16, 16)
        first, second = rows.reshape(2, -1)
        assert torch.equal(first, second)
        seen += first.tolist()
        brightness[:, first] = views.float().mean(dim=(1, 2, 3)).reshape(2, -1)
    assert sorted(seen) == list(range(30)) and seen != sorted(seen)
    for values in brightness:
        assert np.corrcoef(values, images.ids)[0, 1] > 0.9
    assert not np.array_equal(*brightness)

    def epoch(seed: int) -> tuple[torch.Tensor, list[int]]:
        views, rows = zip(*data.epoch(1, seed), strict=True)
        return torch.cat(views), torch.cat(rows).tolist()

    (one, rows), (again, same), (other, others) = epoch(3), epoch(3), epoch(4)
    assert torch.equal(one, again) and rows == same
    assert rows != others and not torch.equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named(here: Path, workers: int) -> None:
    [index, *_] = np.flatnonzero(IS_TRAIN)
    file = IMAGES / "images-00000.parquet"
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[index]["image"]["bytes"] = rows[index]["image"]["bytes"][:-200]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), file, row_group_size=5)
    with pytest.raises(InputError, match=rf"data/images: image {index} .*`dvc repro download`$"):
        run(params(backbone={"workers": workers}))
    assert not HASHNET.exists()


def test_lost_workers_are_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(_: bytes) -> None:
        os.kill(os.getpid(), 9)

    monkeypatch.setattr("stages.train.image_batches.decode", kill)
    with pytest.raises(InputError, match=r"train\.backbone\.workers: a decoding process was killed.*fewer of them"):
        run(params(backbone={"workers": 2}))
    monkeypatch.undo()
    os.chdir(here)
    run(params())
    monkeypatch.setattr(decoding, "decode", kill)
    monkeypatch.setattr("stages.encode.pixels.cores", lambda: 2)
    with pytest.raises(InputError, match="encode: a decoding process was killed"):
        encode.run(EncodeParams(device="cpu", encode=Encode(engine="local")))
    assert not CODES.exists()


def _no_backbone() -> None:
    weights.pin_backbone(Backbone(model=None, weights=None))


def _other_training_images() -> None:
    write_shards(Path(), scenes(COUNT), ~IS_TRAIN, group=10)


def _damaged_weights() -> None:
    checkpoint = save_checkpoint("test_resnet", Path("resnet.pth"))
    weights.pin_backbone(Backbone(model="timm/test_resnet", weights=str(checkpoint)))
    with open(BACKBONE / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")


@pytest.mark.parametrize(("damage", "message"), [
    (_no_backbone, r"^train\.network: 'backbone' needs a model, and backbone\.model is null; set vgg19, say$"),
    (_other_training_images, r"^data/images: has other training images than data/features\.h5; .*dvc repro download"),
    (_damaged_weights, r"^models/backbone/model\.safetensors: SHA-256 is .*`dvc repro weights`$"),
    (lambda: shutil.rmtree(BACKBONE), r"^models/backbone: not found; .*`dvc repro weights`$"),
    (lambda: FEATURES.unlink(), r"^data/features\.h5: not found"),
])  # fmt: skip
def test_what_does_not_fit_is_named(here: Path, damage: Any, message: str) -> None:
    damage()
    with pytest.raises(InputError, match=message):
        run(params())
    assert not HASHNET.exists()


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_bytes(inputs: Path, tmp_path: Path, run_stages: StageRunner) -> None:
    """Killed by the kernel between any two changes of the disk, with processes that decode."""
    section = params("dsch", backbone={"workers": 1}, epochs=3).model_dump(mode="json")
    count = {"count": "stages.train.image_batches:batches", "events": True}  # once an epoch

    def start(name: str) -> Path:
        directory = tmp_path / name
        shutil.copytree(inputs, directory)
        return prepare(directory, section)

    whole = run_stages(start("undisturbed"), "train", **count).check()
    expected = content(tmp_path / "undisturbed" / HASHNET)
    saved_work = 0
    for number in np.linspace(2, whole.events - 3, 3).astype(int).tolist():
        directory = start(str(number))
        run_stages(directory, "train", **count, at_event=number)
        saved_work += run_stages(directory, "train", **count).check().calls < whole.calls
        assert content(directory / HASHNET) == expected
        assert leftovers(directory) == []
    assert whole.calls == 3 and saved_work
