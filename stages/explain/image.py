"""The features and the code of one image: from a file, or of the data set by its id."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.artifacts import CODES, FEATURES, HASHNET, Provenance
from stages.codes import pack, read_codes, unpack
from stages.download.files import text
from stages.errors import InputError
from stages.explain.tables import BITS
from stages.features import Features
from stages.image_files import read_image


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
    from stages.encoder import Encoder  # PyTorch takes a second, which a bad file need not wait for

    encoder = Encoder.load(features=True)
    require_same_network(encoder.made_from, like, HASHNET)
    features, relaxed = encoder.images([image])
    return Encoded(text(str(path)), features, unpack(pack(relaxed))[0])


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
