"""Extraction without pixels: the features of a collection of features, scaled to unit length, and views of them.

An augmented image has a feature near that of the image itself. Where there are no pixels to augment, a view is made in
feature space: Gaussian noise is added, and the sum goes back to the unit sphere.
"""

import h5py
import numpy as np

from stages.artifacts import FEATURES, IMAGES, Provenance, library_versions, writing
from stages.clip import ClipConfig
from stages.errors import InputError
from stages.extract.config import Extract
from stages.extract.features_file import lay_out
from stages.images import ImageShards, read_features
from stages.progress import track

#: Length of the noise, where the feature's is 1. Feature and view then have a cosine of about 1 / sqrt(1 + NOISE**2) =
#: 0.8, which is what augmented images have (median with the model of this package: 0.79 on scenes, 0.86 on CIFAR-10).
NOISE = 0.75


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows (..., d) scaled to unit L2 length, float32; rows of zeros stay."""
    rows = rows.astype(np.float64)  # whose squares neither overflow nor vanish
    return (rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-300)).astype(np.float32)


def noisy_views(features: np.ndarray, ids: np.ndarray, views: int, seed: int) -> np.ndarray:
    """Views of unit features (t, d): float32 (views, t, d), unit rows.

    The expected squared length of the noise is NOISE**2 in any dimension. View v of an image depends on (seed, id, v)
    alone, whichever images come with it.
    """
    dim = features.shape[1]
    noise = np.empty((len(ids), views, dim), np.float32)
    for row, index in zip(noise, ids.tolist(), strict=True):  # drawing takes longer than the loop does
        np.random.default_rng((seed, index)).standard_normal(out=row, dtype=np.float32)
    return unit_rows(features + noise.swapaxes(0, 1) * (NOISE / dim**0.5))


def convert(shards: ImageShards, clip: ClipConfig, options: Extract) -> None:
    """Write ``data/features.h5`` with the features that `shards` hold, a row group at a time.

    Args:
        clip: the model that made them, or none.

    Raises:
        InputError: the model has other dimensions, or a shard is damaged.
    """
    if clip.model is not None and clip.dim != shards.feature_dim:
        raise InputError(
            f"{IMAGES}: the embeddings have {shards.feature_dim} dimensions, clip.model {clip.model} gives {clip.dim}; "
            f"name the model that made them, or set clip.model: null and clip.pretrained: null"
        )
    provenance = Provenance(
        "extract", dataset=shards.provenance.dataset, model=clip.sha256,
        params=options.model_dump(include={"views", "seed"}), versions=library_versions("numpy"),
    )  # fmt: skip
    attributes = {
        "model": clip.model or "", "pretrained": clip.pretrained or "",
        "preprocessing": f"features as given, scaled to unit length; views: noise of length {NOISE}",
        "precision": "float32, stored as float16",
    }  # fmt: skip
    ids, train_ids = shards.columns(["id"])["id"].to_numpy(), shards.ids("train")
    groups = shards.row_groups()
    with writing(FEATURES) as target, h5py.File(target, "w") as file:
        images, views = lay_out(file, ids, train_ids, shards.feature_dim, options.views, provenance, attributes)
        row = train_row = 0
        for shard, group in track(groups, "convert", len(groups)):
            group_ids, is_train, features = read_features(shard, group)
            features = unit_rows(features)
            row_end, train_end = row + len(group_ids), train_row + int(is_train.sum())
            images[row:row_end] = features
            views[:, train_row:train_end] = noisy_views(
                features[is_train], group_ids[is_train], options.views, options.seed
            )
            row, train_row = row_end, train_end
