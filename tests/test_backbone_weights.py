"""Pinning a backbone: from a file, from torchvision's and timm's servers, and what is refused."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from flaky_server import serve
from hub_server import COMMIT, serve_hub
from safetensors.torch import load_file, save
from stage_runner import ROOT, prepare
from torch import nn
from weight_files import save_checkpoint

from stages import backbone
from stages.artifacts import BACKBONE, sha256
from stages.download import cache
from stages.errors import InputError, OutsideError
from stages.params import parse
from stages.pinned_backbone import PinnedBackbone, read_pinned_backbone
from stages.weights import backbone_source, stage
from stages.weights.config import Backbone, Clip, Params

RESNET = "timm/test_resnet"


def pin(model: str | None, weights: str | None) -> PinnedBackbone:
    stage.pin_backbone(Backbone(model=model, weights=weights))
    return read_pinned_backbone()


def test_without_a_backbone_the_folder_says_so(workplace: Path) -> None:
    pinned = pin(None, None)
    assert [path.name for path in BACKBONE.iterdir()] == ["config.json"]
    assert (pinned.model, pinned.weights, pinned.sha256, pinned.dim) == (None, None, "", 0)
    assert (pinned.provenance.stage, pinned.provenance.params) == ("weights", {"model": None, "weights": None})


@pytest.mark.parametrize(
    ("model", "dim", "size"), [("vgg19", 4096, 224), (RESNET, 96, 160), ("timm/test_vit", 64, 160)]
)
def test_random_weights_are_not_written(workplace: Path, model: str, dim: int, size: int) -> None:
    before = torch.get_rng_state()
    pinned = pin(model, None)
    assert [path.name for path in BACKBONE.iterdir()] == ["config.json"]
    assert (pinned.model, pinned.dim, pinned.image_size, pinned.sha256) == (model, dim, size, "")
    assert pinned.fixed_size == (model == "timm/test_vit")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_is_pinned_without_its_classifier(workplace: Path, suffix: str) -> None:
    file = save_checkpoint("test_resnet", Path("net.pth"))
    whole = torch.load(file, weights_only=True)
    if suffix == ".safetensors":
        file = Path("net.safetensors")
        file.write_bytes(save(whole))
    pinned = pin(RESNET, str(file))
    assert (pinned.source, pinned.source_sha256) == (str(file), sha256(file))
    assert pinned.sha256 == sha256(BACKBONE / "model.safetensors") == pinned.provenance.model
    assert sorted(path.name for path in BACKBONE.iterdir()) == ["config.json", "model.safetensors"]
    found = load_file(BACKBONE / "model.safetensors")
    assert found.keys() == {name for name in whole if not name.startswith("fc.")}
    assert all(torch.equal(value, whole[name]) for name, value in found.items())
    again = pin(RESNET, str(BACKBONE / "model.safetensors"))  # what was pinned can be pinned again
    assert again.sha256 == pinned.sha256


class _RunsCode:
    def __reduce__(self):
        return os.system, ("touch escaped",)


def test_files_that_are_refused(workplace: Path) -> None:
    save_checkpoint("test_resnet", Path("net.pth"))
    before = pin(RESNET, "net.pth")
    torch.save({"fc.weight": _RunsCode()}, "hostile.pth")
    Path("cut.pth").write_bytes(Path("net.pth").read_bytes()[:1000])
    torch.save({"state": 3}, "other.pth")
    for weights, message in (
        ("hostile.pth", r"hostile\.pth: not a usable checkpoint"), ("cut.pth", r"cut\.pth: not a usable checkpoint"),
        ("other.pth", r"'state' is a int, not a tensor"),
        ("none.pth", r"none\.pth: checkpoint not found; set backbone\.weights to imagenet, null, or the path"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message) as error:
            pin(RESNET, weights)
        assert "\n" not in str(error.value)
    for model in ("vgg19", "timm/test_vit"):
        with pytest.raises(InputError, match=rf"^net\.pth: does not load as {model} \(.*take the model that it was"):
            pin(model, "net.pth")
    with pytest.raises(InputError, match=r"backbone\.model: timm .* has no model 'test_resnett'; it has .*test_"):
        pin("timm/test_resnett", None)
    assert not Path("escaped").exists()
    assert read_pinned_backbone() == before  # what was there stays


@pytest.mark.parametrize(("backbone", "words"), [
    ({"model": "vgg16", "weights": None}, "'vgg16' is not allowed: must be vgg19, alexnet, clip, timm/NAME or null"),
    ({"model": "timm/", "weights": None}, "backbone.model: 'timm/' is not allowed"),
    ({"model": None, "weights": "imagenet"}, "backbone: weights is 'imagenet' beside model: null"),
    ({"model": "clip", "weights": "imagenet"}, "backbone: weights 'imagenet' are not those of model 'clip'"),
    ({"model": "clip", "weights": "tower.pth"}, "backbone: weights 'tower.pth' are not those of model 'clip'"),
    ({"model": "vgg19", "weights": "clip"}, "backbone: weights 'clip' are not those of model 'vgg19'"),
    ({"model": "vgg19"}, "key 'backbone.weights' is missing"),
])  # fmt: skip
def test_parameters_that_are_refused(backbone: dict, words: str) -> None:
    with pytest.raises(InputError) as error:
        parse(Params, {"clip": {"model": None, "pretrained": None}, "backbone": backbone})
    assert words in str(error.value)


def test_clip_without_a_model(workplace: Path) -> None:
    with pytest.raises(InputError, match=r"^models/clip: not found; .*dvc repro weights"):
        pin("clip", "clip")
    stage.pin_clip(Clip(model=None, pretrained=None))
    with pytest.raises(InputError, match=r"^backbone\.model: 'clip' is the image tower of clip\.model, which is null"):
        pin("clip", "clip")


# ---- torchvision's server


class SmallAlexNet(nn.Module):
    """The real one's parts and names, with few weights."""

    def __init__(self, weights: None = None) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10)
        )


@pytest.fixture
def published(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A checkpoint as torchvision publishes them."""
    monkeypatch.setattr("torchvision.models.alexnet", SmallAlexNet)
    torch.save(SmallAlexNet().state_dict(), "published.pth")
    return Path("published.pth").read_bytes()


def named_by_digest(content: bytes) -> str:
    return f"models/alexnet-owt-{hashlib.sha256(content).hexdigest()[:8]}.pth"


def test_real_addresses_have_a_digest_in_their_name() -> None:
    for model in backbone.TORCHVISION:
        url = backbone_source.published_url(model)
        assert url.startswith("https://download.pytorch.org/models/") and url.endswith(".pth")
        assert len(url.rsplit("-", 1)[1]) == len("01234567.pth")


def test_published_weights_are_fetched_once(published: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(published, drop_after=[len(published) // 2]) as server:
        url = server.url + named_by_digest(published)
        monkeypatch.setattr(backbone_source, "published_url", lambda _: url)
        monkeypatch.setattr("stages.download.transfer.BACK_OFF", 0.01)
        pinned = pin("alexnet", "imagenet")
        assert (pinned.source, pinned.dim) == (url, 4096)
        assert len(server.requests) == 2 and server.requests[1].startswith("bytes=")  # continued where it broke off
        asked = len(server.requests)
        assert pin("alexnet", "imagenet") == pinned
        assert len(server.requests) == asked  # the cache has it
    found = load_file(BACKBONE / "model.safetensors")
    assert set(found) == {"features.0.weight", "features.0.bias", *(
        f"classifier.{layer}.{part}" for layer in (1, 4) for part in ("weight", "bias")
    )}  # fmt: skip


def test_a_server_that_does_not_give_it(published: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.download.transfer.BACK_OFF", 0.01)
    name = named_by_digest(published).split("/")[1]

    def failure(url: str) -> str:
        monkeypatch.setattr(backbone_source, "published_url", lambda _: url)
        with pytest.raises((InputError, OutsideError)) as error:
            pin("alexnet", "imagenet")
        assert "\n" not in str(error.value) and not BACKBONE.exists()
        assert str(error.value).endswith(f"or download {url} elsewhere and set backbone.weights: /path/to/{name}")
        return f"{type(error.value).__name__}: {error.value}".replace(url, "URL")

    with serve({}) as server:
        told = failure(server.url + named_by_digest(published))
        assert told.startswith("OutsideError: URL: cannot be fetched (HTTP 404")
    gone = server.url + named_by_digest(published)  # nobody listens there any more
    assert failure(gone).startswith("OutsideError: URL: cannot be fetched (")
    with serve(published[:-1] + b"x") as server:
        url = server.url + named_by_digest(published)
        assert "SHA-256 is" in failure(url) and "its name says" in failure(url)
    assert not [path for path in cache.directory().iterdir() if path.suffix in (".pth", ".part")]
    monkeypatch.setenv("CONCEPTBITS_OFFLINE", "1")
    assert "CONCEPTBITS_OFFLINE is set, so it is not fetched" in failure(gone)


# ---- timm's


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    file = save_checkpoint("test_resnet", tmp_path_factory.mktemp("hub") / "net.pth")
    content = save(torch.load(file, weights_only=True))
    with serve_hub({"timm/test_resnet.r160_in1k": {"model.safetensors": content, "config.json": b"{}"}}) as server:
        yield server


def run_weights(directory: Path, model: str, endpoint: str) -> subprocess.CompletedProcess:
    """``python -m stages weights`` with the published weights of `model`, from the hub `endpoint`."""
    changes = {"clip": {"model": None, "pretrained": None}, "backbone": {"model": model, "weights": "imagenet"}}
    prepare(directory, changes)
    environment = {
        **os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(directory.parent / "cache"), "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "stages", "weights"], cwd=directory, env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip


@pytest.mark.slow
def test_weights_of_timm_come_from_its_hub(hub, tmp_path: Path) -> None:
    done = run_weights(tmp_path / "run", RESNET, hub.address)
    assert (done.returncode, done.stderr) == (0, "")
    pinned = read_pinned_backbone(tmp_path / "run" / BACKBONE)
    assert pinned.source == f"hf-hub:timm/test_resnet.r160_in1k@{COMMIT}/model.safetensors"
    network = timm.create_model("test_resnet", num_classes=0)
    network.load_state_dict(load_file(tmp_path / "run" / BACKBONE / "model.safetensors"))
    failed = run_weights(tmp_path / "run", "timm/test_vit", hub.address)
    assert failed.returncode == 2 and "timm/test_vit.r160_in1k does not exist or is private" in failed.stderr
    assert failed.stderr.startswith("error: backbone.model: ") and failed.stderr.count("\n") == 1
    hub_gone = run_weights(tmp_path / "run", "timm/test_vit", "http://127.0.0.1:1")
    assert hub_gone.returncode == 1 and hub_gone.stderr.count("\n") == 1
    assert hub_gone.stderr.startswith("error: http://127.0.0.1:1/timm/test_vit.r160_in1k: cannot fetch model.safetens")
    assert hub_gone.stderr.endswith("elsewhere and set backbone.weights: /path/to/model.safetensors\n")
    assert json.loads((tmp_path / "run" / BACKBONE / "config.json").read_text())["model"] == RESNET  # it stays
