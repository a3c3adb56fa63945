"""Tiny random open_clip models on disk, for the tests that need one."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torchvision.transforms.functional import normalize, to_tensor

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
VIT = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def pictures(
    count: int, size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels, uint8 (count, size, size, 3), and the tensors that torchvision makes of them, normalised."""
    pixels = np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)
    return torch.from_numpy(pixels), torch.stack([normalize(to_tensor(image), mean, std) for image in pixels])


def config(vision: dict, **changes: object) -> dict:
    """An open_clip architecture with the image tower `vision`."""
    return {"embed_dim": 16, "quick_gelu": False, "vision_cfg": dict(vision), "text_cfg": dict(TEXT), **changes}


def build(model_cfg: dict, directory: Path, seed: int = 0) -> torch.nn.Module:
    """A model of that architecture with weights of half precision, and as ``open_clip_model.safetensors`` on disk.

    ``directory`` gets ``open_clip_config.json`` as well: it is what a hub repository has.
    """
    directory.mkdir(parents=True, exist_ok=True)
    preprocess_cfg = {"mean": MEAN, "std": STD, "interpolation": "bilinear"}
    content = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (directory / "open_clip_config.json").write_text(json.dumps(content))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{directory}").eval()
    half = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.load_state_dict(half)
    save_file(half, directory / "open_clip_model.safetensors")
    return model


def embedded(directory: Path) -> torch.nn.Module:
    """A model laid out like the one that ships with the package."""
    model = build(config(RESNET), directory)
    (directory / "scenes-clip.json").write_text(json.dumps(config(RESNET)))
    (directory / "open_clip_model.safetensors").rename(directory / "scenes-clip.safetensors")
    return model
