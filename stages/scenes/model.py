"""Where the small vision-language model lies and how it is loaded: as any other open_clip model, by name and path."""

from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from PIL import Image

MODEL_NAME = "scenes-clip"
CONFIG_DIR = Path(__file__).parent / "clip"
WEIGHTS = CONFIG_DIR / "scenes-clip.safetensors"

Preprocess = Callable[[Image.Image], torch.Tensor]
Tokenizer = Callable[[list[str]], torch.Tensor]


def load_clip(weights: Path | None = WEIGHTS) -> tuple[torch.nn.Module, Preprocess, Tokenizer]:
    """The model in evaluation mode, its image transform and its tokenizer; untrained if `weights` is None."""
    open_clip.add_model_config(CONFIG_DIR)
    model, _, preprocess = open_clip.create_model_and_transforms(
        MODEL_NAME, pretrained=None if weights is None else str(weights)
    )
    return model.eval(), preprocess, open_clip.get_tokenizer(MODEL_NAME)
