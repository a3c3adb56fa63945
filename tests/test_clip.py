"""The pinned model: encoding, preprocessing, identity, and that nothing is fetched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import tiny_clip
import torch
from PIL import Image

import stages.clip
from stages.artifacts import Provenance
from stages.clip import load_clip, middle, read_clip_config
from stages.device import resolve_device, seed_everything
from stages.errors import InputError
from stages.weights.config import Clip
from stages.weights.pinning import pin
from stages.weights.source import find

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    directory = tmp_path_factory.mktemp("original")
    return tiny_clip.build(tiny_clip.config(tiny_clip.RESNET), directory), directory


@pytest.fixture(scope="module")
def pinned_once(original: tuple[torch.nn.Module, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    clip = Clip(model=f"local-dir:{original[1]}", pretrained=None)
    directory = tmp_path_factory.mktemp("clip")
    pin(find(clip.model, clip.pretrained), clip, directory)
    return directory


@pytest.fixture
def pinned(pinned_once: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pinned_once, tmp_path / "clip"))


def test_features_are_those_of_open_clip(original, pinned):
    model, _ = original
    clip = load_clip(pinned)
    pixels, batch = tiny_clip.pictures(40, 64)  # more than a CPU takes at a time
    features = clip.encode_images(pixels)
    with torch.no_grad():
        expected = model.encode_image(batch, normalize=True)
    assert features.dtype == torch.float32 and features.shape == (40, clip.dim) == (40, 16)
    torch.testing.assert_close(features, expected)

    texts = ["a photo of the cat", "a photo of the dog", ""]
    tokens = open_clip.SimpleTokenizer(context_length=12)(texts)
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_texts(texts), model.encode_text(tokens, normalize=True))
    assert not features.requires_grad and not clip._model.training


def test_stored_half_precision_runs_in_float32(pinned):
    clip = load_clip(pinned)
    assert {p.dtype for p in clip._model.parameters()} == {torch.float32}
    assert clip.precision == "float32"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_mixed_precision_on_cuda_gives_nearly_the_same(pinned):
    on_cpu, on_cuda = load_clip(pinned), load_clip(pinned, "cuda")
    assert on_cuda.precision == "float16 autocast"
    batch, _ = tiny_clip.pictures(5, 64)
    features = on_cuda.encode_images(batch)
    assert features.device.type == "cpu" and features.dtype == torch.float32
    torch.testing.assert_close(features, on_cpu.encode_images(batch), atol=0.01, rtol=0)
    torch.testing.assert_close(on_cuda.encode_texts(["cat"]), on_cpu.encode_texts(["cat"]), atol=0.01, rtol=0)


def test_texts_are_encoded_in_batches_alike(pinned, monkeypatch):
    clip = load_clip(pinned)
    texts = [f"a photo of the number {n}" for n in range(7)]
    whole = clip.encode_texts(texts)
    monkeypatch.setattr("stages.clip.TEXT_BATCH", 3)
    torch.testing.assert_close(clip.encode_texts(texts), whole)
    assert clip.encode_texts([]).shape == (0, 16)


def test_text_longer_than_the_context_is_cut(pinned):
    clip = load_clip(pinned)
    long = clip.encode_texts(["cat " * 100])
    torch.testing.assert_close(long, clip.encode_texts(["cat " * 10]))  # 12 tokens less start and end


def test_preprocessing_is_the_pinned_one(pinned):
    clip = load_clip(pinned)
    assert clip.image_size == (64, 64)
    assert (clip.mean, clip.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert (clip.interpolation, clip.resize_mode) == ("bilinear", "shortest")
    red = clip.preprocess(Image.new("RGB", (100, 80), (255, 0, 0)))
    assert red.shape == (64, 64, 3)
    assert red[5, 5].tolist() == [255, 0, 0]


def test_preprocessing_is_that_of_open_clip(original, pinned):
    """Up to the last bit, of wide and tall, small and large images."""
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{original[1]}")
    clip = load_clip(pinned)
    towards = []
    clip._model.encode_image = lambda images: towards.append(images) or images[:, 0, 0, :16]
    for size in ((64, 64), (200, 70), (30, 90)):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        clip.encode_images(clip.preprocess(Image.fromarray(pixels))[None])
        torch.testing.assert_close(towards.pop()[0], transform(Image.fromarray(pixels)), rtol=0, atol=0)


@pytest.mark.parametrize(("size", "box"), [
    ((256, 1), None), ((9001, 4), (3989, 0, 5012, 4)), ((3, 2000), (0, 616, 3, 1384)),
    ((1, 60_000), (0, 29_872, 1, 30_128)),
])  # fmt: skip
def test_of_a_very_long_image_the_middle_is_taken(size, box):
    """Scaled as a whole, the last one would have 60,000 times the pixels of the model's square."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    found = middle(Image.fromarray(pixels))
    left, upper, right, lower = box or (0, 0, *size)
    np.testing.assert_array_equal(found, pixels[upper:lower, left:right])


def test_a_very_long_image_is_cut_where_it_would_be_scaled_whole(original, pinned, monkeypatch):
    """And not where a model squashes it into its square."""
    cut, build = [], stages.clip.build
    monkeypatch.setattr("stages.clip.middle", lambda image: cut.append(image.size) or image)
    for mode in ("shortest", "squash", "longest"):
        monkeypatch.setattr("stages.clip.build", lambda path, mode=mode: resized(build(path), mode))
        load_clip(pinned).preprocess(Image.new("RGB", (300, 20)))
    assert cut == [(300, 20)]


def resized(built, mode):
    """What was built, with another way to resize images."""
    built[0].visual.preprocess_cfg["resize_mode"] = mode
    return built


def test_bfloat16_gives_nearly_the_same(pinned):
    exact, rounded = load_clip(pinned), load_clip(pinned, precision="bfloat16")
    assert (exact.precision, rounded.precision) == ("float32", "bfloat16")
    pixels, _ = tiny_clip.pictures(5, 64)
    features = rounded.encode_images(pixels)
    assert features.dtype == torch.float32
    assert not torch.equal(features, exact.encode_images(pixels))
    torch.testing.assert_close(features, exact.encode_images(pixels), atol=0.02, rtol=0)
    torch.testing.assert_close(rounded.encode_texts(["cat"]), exact.encode_texts(["cat"]))


def test_open_clip_itself_opens_the_directory(original, pinned):
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{pinned}")
    for name, value in original[0].state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def test_loading_leaves_the_random_state_alone(pinned):
    seed_everything(3)
    expected = torch.rand(2)
    seed_everything(3)
    load_clip(pinned)
    assert torch.equal(torch.rand(2), expected)


def test_identity(pinned):
    config = read_clip_config(pinned)
    assert config.sha256 == config.provenance.model == load_clip(pinned).sha256
    assert config.provenance.stage == "weights" and config.pretrained is None
    config.provenance.require_same(Provenance("extract", model=config.sha256), Path("a"), Path("b"))
    with pytest.raises(InputError, match="another model"):
        config.provenance.require_same(Provenance("extract", model="other"), Path("a"), Path("b"))


OFFLINE = """
import sys
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise AssertionError(f"network: {event} {args}")
sys.addaudithook(refuse)
from pathlib import Path
from stages.clip import load_clip, read_clip_config
directory = Path(sys.argv[1])
read_clip_config(directory)
assert "torch" not in sys.modules and "open_clip" not in sys.modules, "the config alone needs neither"
clip = load_clip(directory)
import torch
clip.encode_images(torch.zeros(1, *clip.image_size, 3, dtype=torch.uint8))
print(tuple(clip.encode_texts(["a photo of the cat"]).shape))
"""


@pytest.mark.slow
def test_loads_without_network_hub_or_cache(pinned, tmp_path):
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty"), "HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, pinned], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 16)\n"
    assert not (tmp_path / "empty").exists()


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_damaged_weights_are_refused(pinned):
    flip_last_byte(pinned / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: SHA-256 is .* rebuild it"):
        load_clip(pinned)


def test_message_names_the_stage_that_rebuilds(pinned, monkeypatch):
    monkeypatch.chdir(pinned.parent)
    Path("models").mkdir()
    pinned.rename("models/clip")
    flip_last_byte(Path("models/clip/model.safetensors"))
    with pytest.raises(InputError, match="rebuild it with `dvc repro weights`"):
        load_clip()


def test_missing_parts_are_refused(pinned, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: not found"):
        load_clip(tmp_path / "nowhere")
    (pinned / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: not found"):
        load_clip(pinned)
    (pinned / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: not found"):
        load_clip(pinned)


@pytest.mark.parametrize("change", [{"dim": None}, {"colour": "red"}, {"conceptbits": None}])
def test_config_of_another_schema_is_refused(pinned, change):
    content = json.loads((pinned / "config.json").read_text())
    content = {key: value for key, value in {**content, **change}.items() if value is not None}
    (pinned / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"config\.json"):
        read_clip_config(pinned)


def test_architecture_that_does_not_fit_is_refused(pinned):
    content = json.loads((pinned / "open_clip_config.json").read_text())
    content["model_cfg"]["embed_dim"] = 8
    (pinned / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"open_clip_config\.json.*size mismatch"):
        load_clip(pinned)


def test_features_that_are_not_finite_are_an_error(pinned):
    clip = load_clip(pinned)
    clip._model.visual.attnpool.c_proj.bias[3] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        clip.encode_images(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))


def test_resolve_device(monkeypatch):
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        assert resolve_device("auto") == torch.device(expected)
        assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="'cuda' is not available"):
        resolve_device("cuda")


def test_seed_everything():
    draws = []
    for _ in range(2):
        seed_everything(7)
        draws.append((torch.rand(3).tolist(), np.random.rand(3).tolist()))  # noqa: NPY002
    assert draws[0] == draws[1]
