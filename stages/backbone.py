"""The hashing network as the papers have it: a pretrained vision model, then Linear and tanh, on images.

Sources: UHSCM (arXiv 2209.11475) and its released code, ``hash_model.py`` and ``UHSCM.py``; DSCH (arXiv 2203.09420).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.errors import InputError

#: Models of torchvision, whose last two hidden layers of 4096 units stay.
TORCHVISION = ("vgg19", "alexnet")
#: What the names of timm's models begin with in ``params.yaml``.
TIMM = "timm/"
CLIP_TOWER = "clip"

#: For a reader of ``config.json`` without this pipeline.
ARCHITECTURE = (
    "RGB image squashed to round(image_size * 256 / 224) pixels square (bilinear), its centre of image_size pixels "
    "scaled to 0-1, minus mean, by std -> {tower}, weights backbone.* -> hash Linear({dim}, bits) -> tanh; a bit is 1 "
    "where the output is >= 0"
)


@dataclass(frozen=True)
class BackboneConfig:
    """What is needed to build the network again.

    Attributes:
        model: ``vgg19``, ``alexnet``, ``clip`` or ``timm/NAME``; `tower`: see
            :class:`stages.pinned_backbone.PinnedBackbone`.
        dim: length of the pooled features; bits: code length; method: that trained it.
        image_size: pixels of an image's side; mean, std: per channel, on the scale 0 to 1.
    """

    model: str
    tower: dict[str, Any] | None
    dim: int
    bits: int
    method: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def architecture(self) -> str:
        """How to build it without this pipeline."""
        towers = {
            **{name: f"torchvision's {name} without classifier.6" for name in TORCHVISION},
            CLIP_TOWER: "open_clip's image tower with the settings `tower`",
        }  # fmt: skip
        timm_tower = f"timm.create_model('{self.model.removeprefix(TIMM)}', num_classes=0)"
        return ARCHITECTURE.format(tower=towers.get(self.model, timm_tower), dim=self.dim)


class BackboneNet(nn.Module):
    """Images, uint8 (n, 3, size, size), to relaxed codes (n, bits) in [-1, 1]; their sign is the hash code.

    Attributes:
        backbone: images float32, normalised, to pooled features (n, dim).
        hash: the new layer.
        mixed: whether the backbone computes in bfloat16 where that is safe (autocast); the new layer does not.
        lr_factor: learning rate of the backbone in training, as a part of the new layer's.
    """

    #: Images in a batch of :func:`stages.hashnet.relaxed_codes`.
    CHUNK = 64

    def __init__(self, config: BackboneConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.hash = nn.Linear(config.dim, config.bits)
        self.mixed, self.lr_factor = False, 1.0
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(config, name)).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        normalised = (images.float() / 255 - self.mean) / self.std
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.mixed):
            features = self.backbone(normalised)
        return torch.tanh(self.hash(features.float()))


def squashed(image: Image.Image, size: int) -> Image.Image:
    """An RGB image squashed to the square that its crops of `size` pixels come from (the release: 256 for 224)."""
    side = round(size * 256 / 224)
    return image.resize((side, side), Image.Resampling.BILINEAR)


def evaluation_pixels(image: Image.Image, size: int) -> Tensor:
    """The centre of an RGB image, squashed: uint8 (3, size, size)."""
    whole = squashed(image, size)
    start = (whole.width - size) // 2
    return pixels(whole.crop((start, start, start + size, start + size)))


def pixels(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def build_backbone(model: str, tower: dict[str, Any] | None) -> nn.Module:
    """A model without weights of its own (random, or on the meta device), without a classifier. Nothing is fetched.

    Raises:
        InputError: timm has no such model.
    """
    if model in TORCHVISION:
        from torchvision import models

        network = getattr(models, model)(weights=None)
        network.classifier = network.classifier[:-1]  # names stay: classifier.0 and .3, or .1 and .4
        return network
    if model == CLIP_TOWER:
        from open_clip.model import _build_vision_tower

        return _build_vision_tower(**tower)
    import timm

    name = model.removeprefix(TIMM)
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:3]
        raise InputError(
            f"backbone.model: timm {timm.__version__} has no model '{name}'; "
            + (f"it has {', '.join(near)} ..." if near else "`timm.list_models()` has their names")
        )
    return timm.create_model(name, num_classes=0)


def load_backbone(model: str, tower: dict[str, Any] | None, weights: dict[str, Tensor]) -> nn.Module:
    """:func:`build_backbone` with `weights`, by name.

    Raises:
        RuntimeError: the weights are not those of the model.
    """
    if model not in TORCHVISION:
        network = build_backbone(model, tower)
        network.load_state_dict(weights)
        return network
    with torch.device("meta"):  # drawing 140 million numbers to overwrite them would take seconds
        network = build_backbone(model, tower)
    network.load_state_dict(weights, assign=True)
    return network


def recompute_activations(network: nn.Module, model: str) -> None:
    """Trade time for memory: activations within a part of the network are computed again for its gradients.

    Raises:
        InputError: the model cannot do that.
    """
    if model in TORCHVISION:
        network.features = _Recomputed(*network.features)
        return
    try:
        if model == CLIP_TOWER:
            from open_clip.model import ModifiedResNet

            assert not isinstance(network, ModifiedResNet)  # whose own method does nothing
        network.set_grad_checkpointing(True)
    except (AssertionError, AttributeError, TypeError):
        raise InputError(
            f"train.backbone.checkpointing: {model} cannot recompute its activations; set false, and a smaller "
            f"train.batch_size"
        ) from None


class _Recomputed(nn.Sequential):
    """Convolutions of which no more than what each pooling gives is kept for the gradients."""

    def forward(self, images: Tensor) -> Tensor:
        start = 0
        for place, layer in enumerate(self):
            # A part may not begin with an in-place ReLU, which would overwrite the part's input.
            if isinstance(layer, nn.MaxPool2d):
                part = nn.Sequential(*list(self)[start : place + 1])  # a slice of itself would be one of these again
                images = checkpoint(part, images, use_reentrant=False)
                start = place + 1
        return images
