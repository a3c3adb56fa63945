"""Image towers laid out for the device give what they gave."""

import copy
from pathlib import Path

import pytest
import timm
import tiny_clip
import torch
from torch import nn

from stages.tower import PointwiseAttention, PointwiseLinear, pointwise, prepare

CPU = torch.device("cpu")


def towers(kind: str, directory: Path, bfloat16: bool) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """An image tower, the same one prepared, and images for them."""
    original, images = tower(kind, directory)
    prepared = copy.deepcopy(original)
    prepare(prepared, CPU, bfloat16=bfloat16)
    return original, prepared, images


def tower(kind: str, directory: Path) -> tuple[nn.Module, torch.Tensor]:
    """An image tower, and images for it."""
    if kind == "timm":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return timm.create_model("test_vit", num_classes=0).eval(), torch.rand(3, 3, 160, 160)
    vision = {"vit": tiny_clip.VIT, "resnet": tiny_clip.RESNET}[kind]
    model = tiny_clip.build(tiny_clip.config(vision), directory).visual.requires_grad_(False)
    return model, tiny_clip.pictures(3, vision["image_size"])[1]


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm"])
def test_outputs_and_weights_stay_the_same(kind: str, tmp_path: Path) -> None:
    original, prepared, images = towers(kind, tmp_path, bfloat16=False)
    with torch.inference_mode():
        torch.testing.assert_close(prepared(images), original(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prepared.state_dict(), original.state_dict(), rtol=0, atol=0)
    layers = {type(layer) for layer in prepared.modules()}
    assert nn.Linear not in layers
    assert (PointwiseAttention in layers) == (kind == "vit")


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm"])
def test_bfloat16_stays_near(kind: str, tmp_path: Path) -> None:
    original, prepared, images = towers(kind, tmp_path, bfloat16=True)
    with torch.inference_mode():
        found, expected = prepared(images.bfloat16()), original(images)
    assert found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(found.float(), expected).min() > 0.999
    kept = {type(layer) for layer in prepared.modules() for p in layer.parameters(False) if p.dtype == torch.float32}
    assert all("Norm" in layer.__name__ for layer in kept)


def test_other_devices_keep_their_layers(tmp_path: Path) -> None:
    model, _ = tower("vit", tmp_path)
    prepare(model, torch.device("meta"), bfloat16=False)
    assert not {PointwiseAttention, PointwiseLinear} & {type(layer) for layer in model.modules()}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (2, 3, 5, 7)])
def test_a_pointwise_convolution_is_a_linear_layer(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(7, 4, bias=bias)
    rows = torch.rand(shape)
    torch.testing.assert_close(pointwise(rows, layer.weight, layer.bias), layer(rows))


def attention(**options: object) -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    original = nn.MultiheadAttention(8, 2, **{"batch_first": True, **options}).eval()
    prepared = nn.Sequential(copy.deepcopy(original))
    prepare(prepared, CPU, bfloat16=False)
    return original, prepared[0]


@pytest.mark.parametrize("options", [{}, {"bias": False}])
def test_self_attention(options: dict) -> None:
    original, prepared = attention(**options)
    assert type(prepared) is PointwiseAttention
    rows = torch.rand(3, 5, 8)
    with torch.inference_mode():
        expected = original(rows, rows, rows, need_weights=False)[0]
        torch.testing.assert_close(prepared(rows, rows, rows, need_weights=False)[0], expected)


def test_other_attention_is_pytorchs_own() -> None:
    original, prepared = attention()
    rows, others = torch.rand(3, 5, 8), torch.rand(3, 4, 8)
    mask = torch.full((5, 5), -torch.inf).triu(1)
    padding = torch.tensor([[False] * 4 + [True]] * 3)
    with torch.inference_mode():
        for given, options in [
            ((rows, others, others), {"need_weights": False}), ((rows, rows, rows), {}),
            ((rows, rows, rows), {"need_weights": False, "attn_mask": mask}),
            ((rows, rows, rows, padding, False), {}), ((rows[0], rows[0], rows[0]), {"need_weights": False}),
        ]:  # fmt: skip
            torch.testing.assert_close(prepared(*given, **options), original(*given, **options))


@pytest.mark.parametrize(
    "options", [{"batch_first": False}, {"kdim": 4}, {"add_bias_kv": True}, {"add_zero_attn": True}]
)
def test_attention_of_another_kind_is_left_alone(options: dict) -> None:
    assert type(attention(**options)[1]) is nn.MultiheadAttention
