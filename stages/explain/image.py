"""The features and the code of one image: from a file, or of the data set by its id."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stages.artifacts import CLIP, CODES, FEATURES, HASHNET, Provenance
from stages.clip import ClipModel, load_clip
from stages.codes import pack, read_codes, unpack
from stages.download.files import read_inside, text
from stages.errors import InputError
from stages.explain.tables import BITS
from stages.features import Features
from stages.images import decode


@dataclass(frozen=True)
class Encoded:
    """An image: what it is called, its feature float32 (1, d), and its code (K,) in {-1, +1}."""

    name: str
    features: np.ndarray
    signs: np.ndarray


def encode_file(path: Path, like: Provenance) -> Encoded:
    """Encode an image file with ``models/clip`` and ``models/hashnet``, on the CPU.

    Args:
        like: of the tables that explain the code, whose model and network these must be.

    Raises:
        InputError: the file is no readable image, or a model is missing, damaged or another one.
    """
    image = read_image(path)
    from stages.hashnet import load_hashnet  # PyTorch takes a second, which a bad file need not wait for

    net, made_from = load_hashnet()
    require_same_network(made_from, like, HASHNET)
    clip = load_clip(CLIP)
    Provenance("weights", model=clip.sha256).require_same(like, CLIP, BITS)
    features = clip_features(clip, image)
    return Encoded(text(str(path)), features, unpack(pack(_relaxed(net, image, features)))[0])


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB, upright, within the bounds of :func:`stages.images.decode`.

    Raises:
        InputError: it is no plain file, cannot be read, or is no image, or a bomb.
    """
    shown = text(str(path))
    if not path.exists():
        raise InputError(f"{shown}: not found; --image takes the path of an image file")
    place = path.resolve()
    data, problem = read_inside(str(place), str(place.parent))
    if problem:
        raise InputError(f"{shown}: {problem}; --image takes the path of an image file")
    try:
        return decode(data)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{shown}: {reason}; --image takes the path of an image file") from None


def clip_features(clip: ClipModel, image: Image.Image) -> np.ndarray:
    """The feature of an image as ``data/features.h5`` would have it: float32 (1, d), of unit length."""
    features = clip.encode_images(clip.preprocess(image)[None]).numpy()
    features = features.astype(np.float16).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _relaxed(net: object, image: Image.Image, features: np.ndarray) -> np.ndarray:
    import torch

    from stages.backbone import BackboneNet, evaluation_pixels
    from stages.hashnet import relaxed_codes

    if isinstance(net, BackboneNet):
        inputs = evaluation_pixels(image, net.config.image_size)[None]
    else:
        inputs = torch.from_numpy(features)
    return relaxed_codes(net, inputs).numpy()


def encoded_id(index: int, like: Provenance) -> Encoded:
    """The image `index` of the data set, from ``data/features.h5`` and ``data/codes.h5``: no model is needed.

    Raises:
        InputError: an artifact is missing, damaged or made with something else, or has no code of such an image.
    """
    codes = read_codes()
    require_same_network(codes.provenance, like, CODES)
    for ids, packed in ((codes.query_id, codes.query), (codes.database_id, codes.database)):
        row = np.flatnonzero(ids == index)
        if len(row):
            with Features() as features:
                features.provenance.require_same(like, FEATURES, BITS)
                return Encoded(f"image {index}", features.images(np.array([index])), unpack(packed[row])[0])
    raise InputError(
        f"--id {index}: {CODES} has no such image; ids of queries and database are between "
        f"{min(codes.query_id.min(initial=0), codes.database_id.min(initial=0))} and "
        f"{max(codes.query_id.max(initial=0), codes.database_id.max(initial=0))}"
    )


def require_same_network(made_from: Provenance, tables: Provenance, path: Path) -> None:
    """Refuse `path` when its codes are those of another network than the tables explain.

    Raises:
        InputError: they are, or were made with another data set or model.
    """
    made_from.require_same(tables, path, BITS)
    if made_from.params != tables.params:
        raise InputError(
            f"{BITS}: explains a network that was trained otherwise than that of {path}; run `python -m stages "
            f"explain` without options"
        )
