"""The network on images: what it is built of, its folder, its learning rates, and training with little memory."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import tiny_clip
import torch
from PIL import Image
from safetensors.torch import load_file
from scene_shards import picture
from torch import nn
from torchvision import models
from torchvision.transforms import v2
from training_run import train_params

from stages.artifacts import HASHNET, Provenance
from stages.backbone import (
    BackboneConfig,
    BackboneNet,
    build_backbone,
    evaluation_pixels,
    load_backbone,
    recompute_activations,
    squashed,
)
from stages.errors import InputError
from stages.hashnet import load_hashnet, relaxed_codes, save_hashnet
from stages.train.methods.objective import Objective
from stages.train.trainer import make_optimizer, parameter_groups

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
RESNET = "timm/test_resnet"
VIT_TOWER = {"embed_dim": 16, "vision_cfg": dict(tiny_clip.VIT), "quick_gelu": True}


def network(model: str, dim: int, size: int = 32, tower: dict | None = None, bits: int = 16) -> BackboneNet:
    torch.manual_seed(3)
    config = BackboneConfig(model, tower, dim, bits, "uhscm", size, MEAN, STD)
    return BackboneNet(config, build_backbone(model, tower))


def some_images(n: int = 4, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vgg19", "alexnet"])
def test_networks_of_the_papers(model: str) -> None:
    """Everything of torchvision's up to its second layer of 4096, then a linear layer and tanh."""
    net, images = network(model, 4096, 64), some_images(2, 64)
    codes = relaxed_codes(net, images)
    whole = getattr(models, model)(weights=None).eval()
    names = [name for name in whole.state_dict() if not name.startswith("classifier.6.")]
    assert [name for name, _ in net.backbone.named_parameters()] == names
    whole.load_state_dict(net.backbone.state_dict(), strict=False)
    whole.classifier[6] = nn.Identity()
    normalised = v2.functional.normalize(images.float() / 255, MEAN, STD)
    with torch.no_grad():
        expected = torch.tanh(whole(normalised) @ net.hash.weight.T + net.hash.bias)
    torch.testing.assert_close(codes, expected)
    assert codes.shape == (2, 16) and codes.abs().max() <= 1


@pytest.mark.parametrize(("model", "layers"), [("vgg19", (0, 3)), ("alexnet", (1, 4))])
def test_the_layers_of_4096_keep_their_names(model: str, layers: tuple[int, int]) -> None:
    """So those of a pretrained checkpoint are theirs."""
    with torch.device("meta"):
        published = getattr(models, model)(weights=None).state_dict()
        shapes = {name: value.shape for name, value in build_backbone(model, None).state_dict().items()}
    assert shapes == {name: value.shape for name, value in published.items() if not name.startswith("classifier.6.")}
    for layer in layers:
        assert shapes[f"classifier.{layer}.weight"][0] == 4096
    assert sum(name.startswith("classifier.") for name in shapes) == 4


def test_pretrained_weights_are_taken_as_they_are() -> None:
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build_backbone("alexnet", None).state_dict().items()}
    weights = {name: torch.full((), float(place)).expand(shape) for place, (name, shape) in enumerate(shapes.items())}
    before = torch.get_rng_state()
    loaded = load_backbone("alexnet", None, weights)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn to be overwritten
    for name, value in loaded.named_parameters():
        assert value.requires_grad and value.flatten()[0] == weights[name].flatten()[0]
    with pytest.raises(RuntimeError, match=r"classifier\.4\.bias"):
        load_backbone("alexnet", None, {name: value for name, value in weights.items() if name != "classifier.4.bias"})


def test_new_and_pretrained_layers_have_their_own_learning_rates() -> None:
    """Nothing is frozen, and nothing is left out or trained twice."""
    net, options = network(RESNET, 96), train_params(optimizer="sgd", lr=0.5).train

    class WithHead(Objective):
        def __init__(self) -> None:
            self.extra = nn.Linear(2, 2)

        def parameters(self):
            return self.extra.parameters()

    method = WithHead()
    net.lr_factor = 0.05
    optimizer, schedule = make_optimizer(parameter_groups(net, method, options.lr), options, 10)
    new, pretrained = optimizer.param_groups
    assert (new["lr"], pretrained["lr"]) == (0.5, 0.025)
    assert {id(p) for p in new["params"]} == {id(p) for p in (*net.hash.parameters(), *method.extra.parameters())}
    assert {id(p) for p in pretrained["params"]} == {id(p) for p in net.backbone.parameters()}
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert new["momentum"] == pretrained["momentum"] == 0.9
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert new["lr"] == pytest.approx(0.25) and pretrained["lr"] == pytest.approx(0.0125)
    assert schedule.get_last_lr()[0] == new["lr"]  # which the curves show


def test_staircase_of_dsch() -> None:
    options = train_params(schedule="staircase", lr=0.5, epsilon=1.0).train
    optimizer, schedule = make_optimizer([nn.Parameter(torch.zeros(1))], options, 10)
    assert optimizer.param_groups[0]["eps"] == 1.0
    rates = []
    for _ in range(601):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:200] == [0.5] * 200
    assert rates[200] == pytest.approx(0.495) and rates[599] == pytest.approx(0.5 * 0.99**2)
    assert rates[600] == pytest.approx(0.5 * 0.99**3)


@pytest.mark.parametrize(("width", "height"), [(40, 30), (300, 500), (256, 256)])
@pytest.mark.parametrize("size", [224, 32])
def test_images_are_brought_to_size_as_in_the_release(width: int, height: int, size: int) -> None:
    image = picture(1, (width, height))
    side = {224: 256, 32: 37}[size]
    release = v2.Compose([v2.Resize((side, side)), v2.CenterCrop(size), v2.PILToTensor()])
    found = evaluation_pixels(image, size)
    assert squashed(image, size).size == (side, side)
    assert (found.dtype, found.shape) == (torch.uint8, (3, size, size))
    # Where the margin is odd, torchvision rounds the half pixel to the even side.
    expected = release(image) if size == 224 else v2.PILToTensor()(squashed(image, size).crop((2, 2, 34, 34)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


CASES = pytest.mark.parametrize(
    ("model", "dim", "tower"), [(RESNET, 96, None), ("timm/test_vit", 64, None), ("clip", 16, VIT_TOWER)]
)


@CASES
def test_the_folder_is_all_that_is_needed(model: str, dim: int, tower: dict | None, workplace: Path) -> None:
    size = 160 if model == "timm/test_vit" else 32
    net, origin = network(model, dim, size, tower), Provenance("train", "d", "e", {"bits": 16})
    net.train()(some_images(8, size))  # batch statistics
    save_hashnet(net, origin)
    assert sorted(path.name for path in HASHNET.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((HASHNET / "config.json").read_text())
    assert (config["network"], config["model"], config["image_size"]) == ("backbone", model, size)
    loaded, provenance = load_hashnet()
    assert isinstance(loaded, BackboneNet) and not loaded.training
    assert provenance == origin and loaded.config == net.config
    images = some_images(5, size, 1)
    torch.testing.assert_close(relaxed_codes(loaded, images), relaxed_codes(net, images), rtol=0, atol=0)
    torch.testing.assert_close(relaxed_codes(loaded, images, 2), relaxed_codes(net, images), rtol=1e-4, atol=1e-5)


def test_the_network_loads_without_this_project(workplace: Path) -> None:
    """With nothing but timm and what ``config.json`` says."""
    net, image = network(RESNET, 96), picture(2, (50, 40))
    save_hashnet(net, Provenance("train"))
    config, state = json.loads((HASHNET / "config.json").read_text()), load_file(HASHNET / "model.safetensors")
    assert "timm.create_model('test_resnet', num_classes=0)" in config["architecture"]
    tower = timm.create_model("test_resnet", num_classes=0).eval()
    tower.load_state_dict({name.removeprefix("backbone."): v for name, v in state.items() if name[:9] == "backbone."})
    side, size = round(config["image_size"] * 256 / 224), config["image_size"]
    start = (side - size) // 2
    whole = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), np.float32)
    centre = whole[start : start + size, start : start + size] / 255
    inputs = torch.from_numpy((centre - np.array(config["mean"])) / np.array(config["std"])).float().permute(2, 0, 1)
    with torch.no_grad():
        codes = torch.tanh(tower(inputs[None]) @ state["hash.weight"].T + state["hash.bias"])
    found = relaxed_codes(load_hashnet()[0], evaluation_pixels(image, size)[None])
    torch.testing.assert_close(found, codes, rtol=1e-4, atol=1e-5)


def test_a_damaged_backbone_is_named(workplace: Path) -> None:
    net = network(RESNET, 96)
    for changes in ({"network": "other"}, {"dim": 95}, {"bits": 8}, {"mean": None}, {"image_size": ...}):
        save_hashnet(net, Provenance("train"))
        config = json.loads((HASHNET / "config.json").read_text()) | changes
        content = {key: value for key, value in config.items() if value is not ...}
        (HASHNET / "config.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match="dvc repro train") as error:
            load_hashnet()
        assert str(error.value).startswith(str(HASHNET)) and "\n" not in str(error.value)


def test_half_precision_stays_near() -> None:
    net, images = network(RESNET, 96), some_images(6)
    expected = relaxed_codes(net, images)
    net.mixed = True
    found = relaxed_codes(net, images)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


def gradients(model: str, dim: int, size: int, tower: dict | None, *, recompute: bool) -> dict[str, torch.Tensor]:
    net = network(model, dim, size, tower).train()
    if recompute:
        recompute_activations(net.backbone, model)
    torch.manual_seed(0)  # of dropout
    net(some_images(4, size)).square().mean().backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


@pytest.mark.parametrize(
    ("model", "dim", "size", "tower"),
    [
        pytest.param("alexnet", 4096, 64, None, marks=pytest.mark.slow),
        (RESNET, 96, 32, None),
        ("clip", 16, 32, VIT_TOWER),
    ],
)
def test_recomputed_activations_give_the_same_gradients(model: str, dim: int, size: int, tower: dict | None) -> None:
    expected = gradients(model, dim, size, tower, recompute=False)
    found = gradients(model, dim, size, tower, recompute=True)
    assert found.keys() == expected.keys()
    assert sum(bool(value.any()) for value in expected.values()) > len(expected) / 2  # some branches begin at 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_activations_are_dropped() -> None:
    """What the convolutions keep for the gradients, in bytes."""
    kept = {}
    for recompute in (False, True):
        with torch.device("meta"):
            net = build_backbone("vgg19", None).train()
            if recompute:
                recompute_activations(net, "vgg19")
            sizes: dict[int, int] = {}

            def keep(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
                sizes[id(tensor)] = 0 if isinstance(tensor, nn.Parameter) else tensor.numel()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                net.features(torch.zeros(8, 3, 64, 64))
        kept[recompute] = sum(sizes.values())
    assert kept[True] < 0.4 * kept[False]


@pytest.mark.parametrize(("model", "tower"), [
    ("timm/test_nfnet", None), ("clip", {"embed_dim": 16, "vision_cfg": dict(tiny_clip.RESNET), "quick_gelu": False}),
])  # fmt: skip
def test_models_that_cannot_recompute_are_refused(
    model: str, tower: dict | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = build_backbone(model, tower)
    if model != "clip":  # as timm's VGG
        def refuse(self: nn.Module, enable: bool = True) -> None:
            assert not enable, "gradient checkpointing not supported"

        monkeypatch.setattr(type(net), "set_grad_checkpointing", refuse)
    with pytest.raises(InputError, match=r"train\.backbone\.checkpointing: .* cannot recompute its activations"):
        recompute_activations(net, model)
