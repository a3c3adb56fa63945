"""The pinned vision-language model ``models/clip/``: read, checked and run, without a hub.

The directory is one that open_clip itself can open (``local-dir:models/clip``):

- ``open_clip_config.json``: architecture (``model_cfg``) and preprocessing (``preprocess_cfg``), open_clip's format;
- ``model.safetensors``: the weights;
- ``config.json``: name, source and SHA-256 of the weights, see :class:`ClipConfig`;
- the tokenizer's files, where it is not open_clip's own.

Where no model is named (``clip.model: null``, for embeddings whose model is not at hand) it has ``config.json`` alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stages.artifacts import CLIP, PROVENANCE_KEY, Provenance, damaged, read_json, rebuild_hint, sha256, write_json
from stages.errors import InputError

if TYPE_CHECKING:  # seconds to import; a reader of the config alone needs none of it
    import torch
    from PIL import Image

CONFIG = "config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
WEIGHTS = "model.safetensors"

#: Texts encoded at a time.
TEXT_BATCH = 256

#: Images that a CPU encodes at a time: of more, what passes between the layers leaves the cache and is allocated anew.
CPU_BATCH = 32

#: What `precision` of :func:`load_clip` may be; auto: float16 autocast on CUDA, float32 elsewhere.
Precision = Literal["auto", "float32", "bfloat16"]
MIXED = "float16 autocast"


@dataclass(frozen=True)
class ClipConfig:
    """``config.json``: which model is pinned.

    Attributes:
        model, pretrained: as in ``params.yaml``; `model` is None where there is none, and the others are empty then.
        source: where the checkpoint came from; a hub file with its repository and commit.
        source_sha256: SHA-256 of that checkpoint; `sha256`: of ``model.safetensors``, the model's identity.
        quick_gelu: whether the towers use QuickGELU.
        dim: length d of a feature.
        provenance: the ``weights`` stage, its parameters and libraries.
    """

    model: str | None
    pretrained: str | None
    source: str
    source_sha256: str
    sha256: str
    quick_gelu: bool
    dim: int
    provenance: Provenance


def read_clip_config(path: Path = CLIP) -> ClipConfig:
    """Read ``config.json`` of the pinned model, without importing torch.

    Raises:
        InputError: it is missing or has other fields.
    """
    if not path.is_dir():
        raise InputError(f"{path}: not found; {rebuild_hint(CLIP)}")
    content = read_json(path / CONFIG)
    provenance = Provenance.from_json(json.dumps(content.pop(PROVENANCE_KEY, None)), path / CONFIG)
    try:
        return ClipConfig(**content, provenance=provenance)
    except TypeError as error:
        raise damaged(path / CONFIG, error) from None


def write_clip_config(directory: Path, config: ClipConfig) -> None:
    """Write ``config.json`` of a pinned model."""
    content = asdict(config)
    provenance = content.pop("provenance")
    write_json(directory / CONFIG, {**content, PROVENANCE_KEY: provenance})


#: Of an image whose sides have a larger ratio, the middle is cut out at once where a model scales the shorter side to
#: its size and cuts then: the scaled one would take gigabytes.
LONGEST = 256


class Preprocess:
    """`steps` that an RGB image goes through, then its pixels: uint8 (height, width, 3)."""

    def __init__(self, steps: Sequence[Callable[[Image.Image], Image.Image]]) -> None:
        self.steps = steps

    def __call__(self, image: Image.Image) -> torch.Tensor:
        import numpy as np
        import torch

        for step in self.steps:
            image = step(image)
        return torch.from_numpy(np.array(image))


def middle(image: Image.Image) -> Image.Image:
    """An image, or of one longer than :data:`LONGEST` times its shorter side the middle."""
    most = LONGEST * min(image.size)
    if max(image.size) <= most:
        return image
    cut = [(max(0, side - most) + 1) // 2 for side in image.size]
    return image.crop((*cut, *(side - less for side, less in zip(image.size, cut, strict=True))))


@dataclass(frozen=True)
class ClipModel:
    """A vision-language model ready to encode, in evaluation mode.

    Attributes:
        config: which model it is.
        preprocess: open_clip's evaluation transform, up to the last two steps (scaling and normalisation, which
            :meth:`encode_images` does): PIL image -> uint8 (height, width, 3).
        image_size: (height, width) in pixels.
        mean, std: per channel, on the scale 0 to 1; `interpolation`: its name; `resize_mode`: how an image that is not
            square becomes so (``shortest``: the shortest edge is resized, then the centre cut out; ``squash``;
            ``longest``).
        device: where it runs; precision: what the image tower computes in, for people.
    """

    config: ClipConfig
    preprocess: Preprocess
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str
    device: torch.device
    precision: str
    _model: torch.nn.Module = field(repr=False)
    _tokenize: Callable[[list[str]], torch.Tensor] = field(repr=False)

    @property
    def name(self) -> str:
        return self.config.model

    @property
    def pretrained(self) -> str | None:
        return self.config.pretrained

    @property
    def sha256(self) -> str:
        return self.config.sha256

    @property
    def dim(self) -> int:
        return self.config.dim

    def encode_images(self, batch: torch.Tensor) -> torch.Tensor:
        """Features of preprocessed images.

        Args:
            batch: uint8 (b, height, width, 3), on any device.

        Returns:
            float32 (b, d) on the CPU, rows of unit L2 length.
        """
        import torch

        step = CPU_BATCH if self.device.type == "cpu" else len(batch)
        return torch.cat([self._unit_rows(self._encode_pixels, part) for part in batch.split(step)])

    def _encode_pixels(self, batch: torch.Tensor) -> torch.Tensor:
        """The tower's outputs for uint8 (b, height, width, 3)."""
        import torch

        count, height, width, channels = batch.shape
        # Row by row of the images, since operations whose innermost dimension is the three channels are slow.
        mean, std = (torch.tensor(values, device=batch.device).repeat(width) for values in (self.mean, self.std))
        rows = batch.view(count * height, -1).to(torch.float32).div_(255).sub_(mean).div_(std)
        # Seen as (b, 3, height, width) the images have their channels last, as the tower wants them.
        images = rows.view(count, height, width, channels).permute(0, 3, 1, 2)
        return self._model.encode_image(images.bfloat16() if self.precision == "bfloat16" else images)

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Features of m texts, each cut to the model's context length: float32 (m, d) on the CPU, unit rows."""
        import torch

        features = [
            self._unit_rows(self._model.encode_text, self._tokenize(list(texts[start : start + TEXT_BATCH])))
            for start in range(0, len(texts), TEXT_BATCH)
        ]
        return torch.cat(features) if features else torch.empty(0, self.dim)

    def _unit_rows(self, encode: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
        import torch

        # float16 rather than bfloat16: three more bits of mantissa, and the features end as float16 on disk anyway.
        half = torch.autocast("cuda", dtype=torch.float16, enabled=self.precision == MIXED)
        with torch.inference_mode(), half:
            features = encode(batch.to(self.device, non_blocking=True))
        features = torch.nn.functional.normalize(features.float(), dim=-1).cpu()
        if not torch.isfinite(features).all():
            raise InputError(
                f"clip.model: {self.name} gives features that are not finite ({self.precision}); take other weights"
                + (", or set device: cpu" if self.device.type == "cuda" else "")
            )
        return features


def build(directory: Path) -> tuple[torch.nn.Module, Callable, Callable]:
    """Model (float32, on the CPU), evaluation transform and tokenizer of a directory in open_clip's layout.

    Nothing is fetched: architecture, weights and tokenizer come from `directory`.

    Raises:
        ValueError: the weights do not belong to the architecture, or a file is damaged; the message says which.
        InputError: a package is missing.
    """
    import open_clip
    import torch

    location = f"local-dir:{directory}"
    random_state = torch.get_rng_state()  # the weights are drawn, then overwritten; the caller's draws stay the same
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(location)
        tokenize = open_clip.get_tokenizer(location)
    except ImportError as error:
        raise InputError(f"clip.model: this model needs the package {error.name}; install it with pip") from None
    except Exception as error:  # open_clip passes on whatever the file formats and layers under it raise
        raise ValueError(" ".join(str(error).split())[:400] or type(error).__name__) from None
    finally:
        torch.set_rng_state(random_state)
    return model.eval().requires_grad_(False), preprocess, tokenize


def load_clip(path: Path = CLIP, device: str | torch.device = "cpu", precision: Precision = "auto") -> ClipModel:
    """Load the pinned model; no network is used.

    Args:
        path: the directory that the ``weights`` stage wrote.
        device: where to run it, see :func:`stages.device.resolve_device`.
        precision: what the image tower computes in; texts are few, and not in bfloat16.

    Raises:
        InputError: it is missing or damaged (the SHA-256 of the weights is verified), or there is no model.
    """
    config = read_clip_config(path)
    if config.model is None:
        raise InputError(
            f"clip.model: null leaves {path} without a model, so there is nothing to encode images or texts; name one"
        )
    import torch

    from stages.tower import prepare

    if not (path / WEIGHTS).is_file():
        raise damaged(path / WEIGHTS, "not found")
    digest = sha256(path / WEIGHTS)
    if digest != config.sha256:
        raise damaged(path / WEIGHTS, f"SHA-256 is {digest[:12]}, {CONFIG} says {config.sha256[:12]}")
    try:
        model, preprocess, tokenize = build(path)
    except ValueError as error:
        raise damaged(path / OPEN_CLIP_CONFIG, error) from None
    settings = model.visual.preprocess_cfg
    size = settings["size"]
    device = torch.device(device)
    if precision == "auto":
        precision = MIXED if device.type == "cuda" else "float32"
    prepare(model.visual, device, precision == "bfloat16")
    steps = preprocess.transforms[:-2]
    if settings["resize_mode"] == "shortest":
        steps = [middle, *steps]
    return ClipModel(
        config=config, preprocess=Preprocess(steps),
        image_size=(size, size) if isinstance(size, int) else tuple(size),
        mean=tuple(settings["mean"]), std=tuple(settings["std"]), interpolation=settings["interpolation"],
        resize_mode=settings["resize_mode"], device=device, precision=precision,
        _model=model.to(device), _tokenize=tokenize,
    )  # fmt: skip


def load_clip_of(made: Provenance, made_path: Path, path: Path, device: str | torch.device) -> ClipModel:
    """:func:`load_clip` of the model that the artifact at `made_path`, with the provenance `made`, was made with.

    Raises:
        InputError: as of :func:`load_clip`; or another model is pinned.
    """
    Provenance("weights", model=read_clip_config(path).sha256).require_same(made, path, made_path)
    return load_clip(path, device)
