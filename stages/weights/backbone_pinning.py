"""A backbone to ``models/backbone/``: without its classifier, tried, and described."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.artifacts import CLIP, Provenance, library_versions, read_json, sha256
from stages.backbone import CLIP_TOWER, TIMM, TORCHVISION, build_backbone, load_backbone
from stages.clip import OPEN_CLIP_CONFIG, build, read_clip_config
from stages.errors import InputError
from stages.pinned_backbone import WEIGHTS, PinnedBackbone, write_pinned_backbone
from stages.weights import backbone_source, checkpoint
from stages.weights.config import Backbone

#: What torchvision's ImageNet models are given.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pin(options: Backbone, directory: Path) -> None:
    """Write what :func:`stages.pinned_backbone.read_pinned_backbone` reads.

    Raises:
        InputError: there is no such model or file, or they do not go together.
        OutsideError: the weights cannot be fetched.
    """
    random_state = torch.get_rng_state()
    try:
        _pin(options, directory)
    finally:
        torch.set_rng_state(random_state)  # a model is drawn, then overwritten; the caller's draws stay the same


def _pin(options: Backbone, directory: Path) -> None:
    model, weights = options.model, options.weights
    tower = _clip_tower() if model == CLIP_TOWER else None
    network = None if weights or model in TORCHVISION else build_backbone(model, tower)
    origin = source_sha256 = ""
    if weights == CLIP_TOWER:
        content = dict(build(CLIP)[0].visual.state_dict())
        origin, source_sha256 = str(CLIP), read_clip_config(CLIP).sha256
    elif weights:
        found = backbone_source.find(model, weights)
        raw = directory / f"raw-{WEIGHTS}"
        checkpoint.to_safetensors(found.path, raw)
        content = load_file(raw)
        raw.unlink()
        origin, source_sha256 = found.origin, sha256(found.path)
    if weights:
        try:
            content = _without_classifier(model, content)
            network = load_backbone(model, tower, content)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"{origin}: does not load as {model} ({reason}); take the model that it was trained as"
            ) from None
        checkpoint.write({name: value.contiguous() for name, value in content.items()}, directory / WEIGHTS)
    settings = _settings(model, tower, network)
    libraries = {CLIP_TOWER: "open_clip_torch", **dict.fromkeys(TORCHVISION, "torchvision")}
    provenance = Provenance(
        "weights", model=sha256(directory / WEIGHTS) if weights else "", params=options.model_dump(),
        versions=library_versions(libraries.get(model, "timm")),
    )  # fmt: skip
    write_pinned_backbone(directory, PinnedBackbone(
        model=model, weights=weights, source=origin, source_sha256=source_sha256, sha256=provenance.model,
        tower=tower, provenance=provenance, **settings,
    ))  # fmt: skip


def _clip_tower() -> dict[str, Any]:
    """What open_clip builds the image tower of the model in ``models/clip`` from."""
    if read_clip_config(CLIP).model is None:
        raise InputError("backbone.model: 'clip' is the image tower of clip.model, which is null; name a model there")
    config = read_json(CLIP / OPEN_CLIP_CONFIG)["model_cfg"]
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    return {"embed_dim": config["embed_dim"], "vision_cfg": vision, "quick_gelu": bool(config.get("quick_gelu"))}


def _without_classifier(model: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint under the names that the model has without its classifier.

    Raises:
        RuntimeError: the checkpoint is not one of this model.
    """
    if model in TORCHVISION:
        return {name: value for name, value in weights.items() if not name.startswith("classifier.6.")}
    import timm

    if model == CLIP_TOWER or build_backbone(model, None).state_dict().keys() == weights.keys():
        return weights
    name = model.removeprefix(TIMM)
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": weights})
    network.reset_classifier(0)
    return dict(network.state_dict())


def _settings(model: str, tower: dict[str, Any] | None, network: nn.Module) -> dict[str, Any]:
    """Those fields of a pinned backbone that the model decides."""
    if model in TORCHVISION:
        return {"dim": 4096, "image_size": 224, "fixed_size": False, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if model == CLIP_TOWER:
        preprocess = read_json(CLIP / OPEN_CLIP_CONFIG)["preprocess_cfg"]
        size, fixed = tower["vision_cfg"]["image_size"], True
        mean, std = tuple(preprocess["mean"]), tuple(preprocess["std"])
    else:
        given = network.pretrained_cfg
        size, fixed = given["input_size"][-1], bool(given.get("fixed_input_size"))
        mean, std = tuple(given["mean"]), tuple(given["std"])
    if isinstance(size, list | tuple):
        size = size[0]
    with torch.inference_mode():
        features = network.eval()(torch.zeros(1, 3, size, size))
    if features.ndim != 2:
        raise InputError(f"backbone.model: {model} gives features of shape {tuple(features.shape[1:])}; take another")
    return {"dim": features.shape[1], "image_size": size, "fixed_size": fixed, "mean": mean, "std": std}
