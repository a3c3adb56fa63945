"""``models/backbone/``: the network that ``train.network: backbone`` begins with, pinned by the ``weights`` stage.

- ``config.json``: which one it is, see :class:`PinnedBackbone`;
- ``model.safetensors``: its weights without a classifier, where it has any.

Where no backbone is named (``backbone.model: null``) it has ``config.json`` alone.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.artifacts import BACKBONE, PROVENANCE_KEY, Provenance, damaged, read_json, sha256, write_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class PinnedBackbone:
    """``config.json``: which network is pinned.

    Attributes:
        model, weights: as in ``params.yaml``; `model` is None where there is none, and the others are empty then.
        source: where the checkpoint came from; `source_sha256`: its SHA-256; both "" for random weights.
        sha256: SHA-256 of ``model.safetensors``; "" for random weights.
        dim: length of the pooled features.
        image_size: pixels of an image's side that it was made for; `fixed_size`: whether it takes no other.
        mean, std: per channel, on the scale 0 to 1.
        tower: what open_clip needs to build the image tower of a CLIP; None for other models.
        provenance: the ``weights`` stage, its parameters and libraries.
    """

    model: str | None
    weights: str | None
    source: str
    source_sha256: str
    sha256: str
    dim: int
    image_size: int
    fixed_size: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tower: dict[str, Any] | None
    provenance: Provenance


def read_pinned_backbone(path: Path = BACKBONE) -> PinnedBackbone:
    """Read ``config.json``, and check that the weights are those that it was written with.

    Raises:
        InputError: something is missing, damaged or has other fields.
    """
    if not path.is_dir():
        raise damaged(path, "not found")
    content = read_json(path / CONFIG)
    provenance = Provenance.from_json(json.dumps(content.pop(PROVENANCE_KEY, None)), path / CONFIG)
    try:
        for key in ("mean", "std"):
            content[key] = tuple(content[key])
        pinned = PinnedBackbone(**content, provenance=provenance)
    except (KeyError, TypeError) as error:
        raise damaged(path / CONFIG, error) from None
    if pinned.sha256:
        if not (path / WEIGHTS).is_file():
            raise damaged(path / WEIGHTS, "not found")
        if (found := sha256(path / WEIGHTS)) != pinned.sha256:
            raise damaged(path / WEIGHTS, f"SHA-256 is {found[:12]}, {CONFIG} says {pinned.sha256[:12]}")
    return pinned


def write_pinned_backbone(directory: Path, pinned: PinnedBackbone) -> None:
    """Write ``config.json`` of a pinned backbone."""
    content = asdict(pinned)
    provenance = content.pop("provenance")
    write_json(directory / CONFIG, {**content, PROVENANCE_KEY: provenance})
