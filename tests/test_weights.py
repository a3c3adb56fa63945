"""Pinning a model from the package, a file or a directory, and everything that is refused on the way."""

import os
import pickle
import resource
from pathlib import Path

import open_clip
import pytest
import tiny_clip
import torch
from safetensors.torch import load_file, save_file

from stages import hub
from stages.artifacts import sha256
from stages.clip import load_clip, read_clip_config
from stages.errors import InputError, OutsideError
from stages.params import parse
from stages.weights import checkpoint, pinning, source, stage
from stages.weights.config import Clip, Params


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a hub repository of an open_clip model has."""
    directory = tmp_path_factory.mktemp("repository")
    tiny_clip.build(tiny_clip.config(tiny_clip.VIT), directory)
    return directory


@pytest.fixture
def architecture(monkeypatch: pytest.MonkeyPatch) -> str:
    """An architecture of open_clip that is small: that of the repository."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-vit", tiny_clip.config(tiny_clip.VIT))
    return "tiny-vit"


def pin(model: str, pretrained: str | None, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    pinning.pin(source.find(model, pretrained), Clip(model=model, pretrained=pretrained), directory)
    return directory


# ---- from this machine


def test_embedded_model(tmp_path, monkeypatch):
    model = tiny_clip.embedded(tmp_path / "embedded")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source, "EMBEDDED", tmp_path / "embedded")
    stage.pin_clip(Clip(model="scenes-clip", pretrained="embedded"))

    assert sorted(p.name for p in Path("models").iterdir()) == ["clip"]  # no temporary directory is left
    files = sorted(Path("models/clip").iterdir())
    assert [p.name for p in files] == ["config.json", "model.safetensors", "open_clip_config.json"]
    assert not any(p.is_symlink() for p in files)
    clip = load_clip()
    pixels, batch = tiny_clip.pictures(2, 64, clip.mean, clip.std)
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_images(pixels), model.encode_image(batch, normalize=True))
    config = read_clip_config()
    assert (config.model, config.pretrained, config.quick_gelu, config.dim) == ("scenes-clip", "embedded", False, 16)
    assert config.sha256 == config.source_sha256 == sha256(tmp_path / "embedded/scenes-clip.safetensors")
    assert config.source == "embedded scenes-clip.safetensors"


def test_model_of_the_package(tmp_path):
    clip = load_clip(pin("scenes-clip", "embedded", tmp_path / "clip"))
    assert clip.image_size == (64, 64)
    assert clip.encode_texts(["a photo of the sun"]).shape == (1, clip.dim)


def test_pinning_twice_gives_the_same_bytes(repository, tmp_path):
    one, two = (pin(f"local-dir:{repository}", None, tmp_path / name) for name in "ab")
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


def test_pinned_directory_can_be_pinned_again(repository, tmp_path):
    first = pin(f"local-dir:{repository}", None, tmp_path / "first")
    second = pin(f"local-dir:{first}", None, tmp_path / "second")
    assert read_clip_config(first).sha256 == read_clip_config(second).sha256
    assert (first / "open_clip_config.json").read_text() == (second / "open_clip_config.json").read_text()


def test_no_model(repository, tmp_path, monkeypatch):
    """For embeddings whose model is not at hand; what was pinned before goes."""
    monkeypatch.chdir(tmp_path)
    stage.pin_clip(Clip(model=f"local-dir:{repository}", pretrained=None))
    stage.pin_clip(Clip(model=None, pretrained=None))
    assert [p.name for p in Path("models/clip").iterdir()] == ["config.json"]
    config = read_clip_config()
    assert (config.model, config.pretrained, config.sha256, config.dim) == (None, None, "", 0)
    assert (config.provenance.stage, config.provenance.model) == ("weights", "")
    with pytest.raises(InputError, match=r"clip\.model: null leaves models/clip without a model"):
        load_clip()


def test_failure_keeps_the_old_model(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stage.pin_clip(Clip(model=f"local-dir:{repository}", pretrained=None))
    before = sha256(Path("models/clip/config.json"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(InputError):
        stage.pin_clip(Clip(model="ViT-B-32", pretrained=str(broken)))
    assert sha256(Path("models/clip/config.json")) == before
    assert [p.name for p in Path("models").iterdir()] == ["clip"]


@pytest.mark.parametrize("form", ["plain", "training", "distributed"])
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_pickled_checkpoints_are_converted(architecture, repository, tmp_path, form, suffix):
    weights = load_file(repository / "open_clip_model.safetensors")
    content = {
        "plain": weights,
        "training": {"epoch": 3, "state_dict": weights, "optimizer": {"lr": 0.1}},
        "distributed": {"state_dict": {f"module.{name}": value for name, value in weights.items()}},
    }[form]
    torch.save(content, tmp_path / f"checkpoint{suffix}")
    directory = pin(architecture, str(tmp_path / f"checkpoint{suffix}"), tmp_path / "clip")
    pinned = load_file(directory / "model.safetensors")
    assert pinned.keys() == weights.keys()
    assert all(torch.equal(pinned[name], weights[name]) for name in weights)
    assert (directory / "model.safetensors").stat().st_mode & 0o777 == 0o644
    config = read_clip_config(directory)
    assert config.source_sha256 == sha256(tmp_path / f"checkpoint{suffix}") != config.sha256
    assert load_clip(directory).interpolation == "bicubic"  # a checkpoint alone says nothing: open_clip's default


class _RunsCode:
    def __reduce__(self):
        return os.system, ("touch escaped",)


def test_checkpoint_that_runs_code_is_refused(architecture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"weight": torch.zeros(1), "code": _RunsCode()}}, "hostile.pt")
    with pytest.raises(InputError, match=r"hostile\.pt: not a usable checkpoint"):
        pin(architecture, "hostile.pt", tmp_path / "clip")
    Path("old.pt").write_bytes(pickle.dumps(_RunsCode(), protocol=2))
    with pytest.raises(InputError, match=r"old\.pt: not a usable checkpoint"):
        pin(architecture, "old.pt", tmp_path / "clip")
    assert not Path("escaped").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_disk_that_takes_no_more(repository, tmp_path, suffix):
    weights = repository / "open_clip_model.safetensors"
    if suffix == ".pt":
        torch.save(load_file(weights), tmp_path / "weights.pt")
        weights = tmp_path / "weights.pt"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises((InputError, OSError), match="File too large"):
            checkpoint.to_safetensors(weights, tmp_path / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_torchscript_is_refused(architecture, tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "openai.pt")
    with pytest.raises(InputError, match=r"openai\.pt: is a TorchScript archive"):
        pin(architecture, str(tmp_path / "openai.pt"), tmp_path / "clip")


def write(path: Path, weights: dict[str, torch.Tensor]) -> str:
    save_file(weights, path)
    return str(path)


def test_checkpoints_that_do_not_fit_are_refused(architecture, repository, tmp_path):
    weights = load_file(repository / "open_clip_model.safetensors")
    missing = {name: value for name, value in weights.items() if name != "visual.proj"}
    with pytest.raises(InputError, match=r"missing\.safetensors: does not load as tiny-vit .*visual\.proj"):
        pin(architecture, write(tmp_path / "missing.safetensors", missing), tmp_path / "clip")
    with pytest.raises(InputError, match=r"extra\.safetensors: .*Unexpected key.*surplus"):
        extra = weights | {"surplus": torch.ones(1)}
        pin(architecture, write(tmp_path / "extra.safetensors", extra), tmp_path / "clip")
    other = weights | {"visual.proj": torch.zeros(32, 8)}
    with pytest.raises(InputError, match=r"other\.safetensors: .*size mismatch for visual\.proj"):
        pin(architecture, write(tmp_path / "other.safetensors", other), tmp_path / "clip")
    not_weights = tmp_path / "not_weights.pt"
    torch.save({"state_dict": {"visual.proj": "text"}}, not_weights)
    with pytest.raises(InputError, match=r"'visual\.proj' is a str, not a tensor"):
        pin(architecture, str(not_weights), tmp_path / "clip")


@pytest.mark.parametrize("name, size", [("visual.positional_embedding", 10), ("positional_embedding", 20)])
def test_position_embeddings_are_not_interpolated_silently(architecture, repository, tmp_path, name, size):
    weights = load_file(repository / "open_clip_model.safetensors")
    weights[name] = torch.zeros(size, weights[name].shape[1])
    with pytest.raises(InputError, match=f"resized.safetensors: {name} is "):
        pin(architecture, write(tmp_path / "resized.safetensors", weights), tmp_path / "clip")


def test_truncated_and_missing_files_are_refused(architecture, repository, tmp_path):
    data = (repository / "open_clip_model.safetensors").read_bytes()
    for name in ("cut.safetensors", "cut.pt"):
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(InputError, match=f"{name}: not a usable checkpoint"):
            pin(architecture, str(tmp_path / name), tmp_path / "clip")
    for missing in (tmp_path / "none.safetensors", tmp_path / "none"):
        with pytest.raises(InputError, match=r"none.*: checkpoint not found"):
            pin(architecture, str(missing), tmp_path / "clip")
    (tmp_path / "model.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.npz: a checkpoint is one of \.safetensors"):
        pin(architecture, str(tmp_path / "model.npz"), tmp_path / "clip")
    with pytest.raises(InputError, match=r"empty/open_clip_config\.json: not found"):
        pin(f"local-dir:{tmp_path / 'empty'}", None, tmp_path / "clip")


# ---- names, tags, activations


@pytest.mark.parametrize(
    "model, pretrained, message",
    [
        ("ViT-B/32", "openai", r"'ViT-B/32' is no architecture .* did you mean .*ViT-B-32"),
        ("vit-b-16", "openai", r"did you mean .*ViT-B-16"),
        ("scenes_clip", "embedded", r"did you mean scenes-clip\?"),
        ("zzzzzzzz", "openai", r"list_models"),
        ("ViT-B-32", "laion2b_s34b", r"did you mean laion2b_s34b_b79k.*; tags of ViT-B-32: openai, "),
        ("ViT-B-32", "embedded", r"'embedded' is no tag of ViT-B-32 and no file; tags of ViT-B-32"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", r"it is a tag of ViT-B-32"),
        ("ViT-S-32", "nothing", r"ViT-S-32 has no tags: give the path of a checkpoint"),
        ("ViT-B-32", None, r"null would leave ViT-B-32 without weights; tags of ViT-B-32"),
        ("scenes-clip", "openai", r"'openai' is no tag of scenes-clip and no file; set embedded"),
        ("scenes-clip", None, r"null would leave scenes-clip without weights; set embedded"),
        ("hf-hub:org/name", "embedded", r"'embedded' beside hf-hub:org/name, which names its own weights; set null"),
        ("hf-hub:org/name/more", None, r"'org/name/more' is no hub repository"),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", r"text tower of roberta-ViT-B-32 is a Hugging Face model"),
    ],
)
def test_unknown_names_are_refused_with_close_ones(model, pretrained, message):
    with pytest.raises(InputError, match=message) as caught:
        source.find(model, pretrained)
    assert "\n" not in str(caught.value)


def test_quick_gelu_mismatch_names_the_right_architecture():
    """Every tag of open_clip that it would only warn about."""
    mismatched = 0
    for model, tag in open_clip.list_pretrained():
        model_cfg = open_clip.get_model_config(model)
        tag_cfg = open_clip.get_pretrained_cfg(model, tag)
        if "hf_model_name" in model_cfg["text_cfg"]:
            continue
        if bool(model_cfg.get("quick_gelu")) == bool(tag_cfg.get("quick_gelu")):
            continue
        mismatched += 1
        with pytest.raises(InputError, match=rf"set clip\.model: {model}-quickgelu$"):
            source.find(model, tag)
    assert mismatched >= 20
    with pytest.raises(InputError, match=r"ViT-B-32 computes with GELU, but openai was trained with QuickGELU"):
        source.find("ViT-B-32", "openai")


@pytest.mark.parametrize(
    "model, pretrained, repository",
    [
        ("ViT-B-32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("ViT-B-32", "datacomp_xl_s13b_b90k", "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"),
        ("ViT-B-16", "laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
        ("ViT-B-16", "datacomp_xl_s13b_b90k", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K"),
        ("ViT-B-16-quickgelu", "openai", "timm/vit_base_patch16_clip_224.openai"),
        ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", None, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    ],
)
def test_presets_ask_for_the_right_repository(monkeypatch, model, pretrained, repository):
    def download(asked: hub.Repository, names: list[str]) -> None:
        raise OutsideError(f"{asked.name} {names[0]}")

    monkeypatch.setattr(hub, "download", download)
    with pytest.raises(OutsideError) as caught:
        source.find(model, pretrained)
    first = "open_clip_config.json" if pretrained is None else "open_clip_model.safetensors"
    assert str(caught.value) == f"{repository} {first}"


def test_preprocessing_of_a_file_is_that_of_the_tags_of_its_architecture(tmp_path):
    siglip = source.find("ViT-B-16-SigLIP", str(tmp_path / "x.safetensors"))
    assert siglip.preprocess_cfg["mean"] == (0.5, 0.5, 0.5) and siglip.preprocess_cfg["resize_mode"] == "squash"
    with pytest.raises(InputError, match=r"checkpoints of ViT-L-14 differ in their preprocessing"):
        source.find("ViT-L-14", str(tmp_path / "x.safetensors"))


def test_params_are_strict():
    none = {"backbone": {"model": None, "weights": None}}
    assert parse(Params, {"clip": {"model": "a", "pretrained": None}, "bits": 16} | none).clip.pretrained is None
    assert parse(Params, {"clip": {"model": None, "pretrained": None}} | none).clip.model is None
    with pytest.raises(InputError, match=r"clip: pretrained is 'embedded' beside model: null; set both to null"):
        parse(Params, {"clip": {"model": None, "pretrained": "embedded"}})
    for clip in ({"model": "a"}, {"model": 3, "pretrained": "b"}, {"model": "a", "pretrained": "b", "jit": True}):
        with pytest.raises(InputError, match="clip"):
            parse(Params, {"clip": clip})
