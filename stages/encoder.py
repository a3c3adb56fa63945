"""New images to features and codes, with the models of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stages.artifacts import CLIP, HASHNET, Provenance
from stages.backbone import BackboneNet, evaluation_pixels
from stages.clip import ClipModel, load_clip_of, read_clip_config
from stages.device import resolve_device
from stages.hashnet import HashNet, Network, load_hashnet, relaxed_codes

#: What the two models take: uint8 (h, w, 3) for CLIP, uint8 (3, size, size) for a backbone; a batch has n of each.
Prepared = tuple[torch.Tensor | None, torch.Tensor | None]


@dataclass(frozen=True)
class Preparation:
    """A decoded image to what the models take; either is None where it is not needed."""

    preprocess: Callable[[Image.Image], torch.Tensor] | None
    size: int | None

    def __call__(self, image: Image.Image) -> Prepared:
        return (
            None if self.preprocess is None else self.preprocess(image),
            None if self.size is None else evaluation_pixels(image, self.size),
        )


def stacked(prepared: Sequence[Prepared]) -> Prepared:
    """Prepared images as a batch; nothing of none."""
    if not prepared:
        return None, None
    first, second = (None if parts[0] is None else torch.stack(parts) for parts in zip(*prepared, strict=True))
    return first, second


@dataclass(frozen=True)
class Encoder:
    """A hashing network, and the vision-language model whose features it takes.

    Attributes:
        net, clip: on `device`; `clip` is None where the network takes pixels and no model is pinned.
        made_from: provenance of the network.
    """

    net: Network
    clip: ClipModel | None
    made_from: Provenance
    device: torch.device

    @classmethod
    def load(cls, project: Path = Path(), device: str = "cpu", features: bool = False) -> "Encoder":
        """Load ``models/hashnet`` and ``models/clip`` of a project.

        Args:
            features: whether these are wanted of a network that does without, too.

        Raises:
            InputError: one is missing or damaged, or the network was trained on features of another model.
        """
        place = resolve_device(device)
        net, made_from = load_hashnet(project / HASHNET)
        clip = None
        if features or isinstance(net, HashNet) or read_clip_config(project / CLIP).model is not None:
            clip = load_clip_of(made_from, project / HASHNET, project / CLIP, place)
        return cls(net.to(place), clip, made_from, place)

    @property
    def bits(self) -> int:
        return self.net.config.bits

    @property
    def prepare(self) -> "Preparation":
        """What makes the inputs of both models from an image; it can go to another process."""
        size = self.net.config.image_size if isinstance(self.net, BackboneNet) else None
        return Preparation(None if self.clip is None else self.clip.preprocess, size)

    def encode(
        self, preprocessed: torch.Tensor | None, pixels: torch.Tensor | None
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Features float32 (n, d) as ``data/features.h5`` has them, and relaxed codes (n, bits), of prepared images."""
        features = None if preprocessed is None else stored_features(self.clip, preprocessed)
        inputs = torch.from_numpy(features) if pixels is None else pixels
        return features, relaxed_codes(self.net, inputs.to(self.device)).cpu().numpy()

    def images(self, images: Sequence[Image.Image]) -> tuple[np.ndarray | None, np.ndarray]:
        """:meth:`encode` of decoded images."""
        return self.encode(*stacked(list(map(self.prepare, images))))


def stored_features(clip: ClipModel, preprocessed: torch.Tensor) -> np.ndarray:
    """Features of preprocessed images as ``data/features.h5`` would have them: float32 (n, d), of unit length."""
    features = clip.encode_images(preprocessed).numpy().astype(np.float16).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)
