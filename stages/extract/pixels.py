"""Extraction from pixels: image shards encoded in batches, row group by row group, on this machine."""

from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import chain, islice
from pathlib import Path

import numpy as np
from torch import Tensor

from stages.clip import ClipModel, load_clip
from stages.decoding import in_order, naming_lost_workers
from stages.device import resolve_device
from stages.extract.config import Params
from stages.extract.decoding import DecodedSlices, slices_of_pictures
from stages.extract.parts import Parts
from stages.images import ImageShards, RowGroup
from stages.parts import write_part


def encode_row_groups(
    clip: ClipModel, groups: Mapping[Path, RowGroup], params: Params,
    write: Callable[..., None] = write_part,
) -> None:  # fmt: skip
    """Encode row groups, each in batches of its own, so that its features do not depend on what else is encoded.

    Args:
        groups: the row group of each part.
        write: takes a part when it is encoded, and, by name, the features of its b images, float16 (b, d), as `images`
            and of V views of t of them, float16 (V, t, d), as `views`.

    Raises:
        InputError: an image cannot be read, or a process that decodes was killed.
    """
    n_views = params.extract.views
    plan = {part: slices_of_pictures([group], n_views, params.extract.batch_size) for part, group in groups.items()}
    dataset = DecodedSlices(list(chain.from_iterable(plan.values())), clip, n_views, params.extract.seed)

    def encode(pictures: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
        features = clip.encode_images(pictures).numpy().astype(np.float16)
        return features[:count], features[count:].reshape(-1, n_views, clip.dim).swapaxes(0, 1)

    advice = "extract.workers: set a smaller extract.batch_size, or extract.workers: 0"
    yielding = clip.device.type == "cpu"
    with naming_lost_workers(advice), closing(
        in_order(dataset, params.extract.workers, "extract", yielding=yielding)
    ) as decoded:
        for part, pieces in plan.items():  # no batch beyond its own is waited for before a part is written
            images, views = zip(*(encode(*batch) for batch in islice(decoded, len(pieces))), strict=True)
            write(part, images=np.concatenate(images), views=np.concatenate(views, axis=1))
        next(decoded, None)  # ends the progress bar


def extract(shards: ImageShards, params: Params) -> None:
    """Write ``data/features.h5`` with what the pinned model gives for the images of `shards`.

    Raises:
        InputError: the model or an image cannot be read, or a process that decodes was killed.
    """
    clip = load_clip(device=resolve_device(params.device), precision=params.extract.precision)
    parts = Parts.of(shards, clip, params.extract)
    encode_row_groups(clip, parts.missing(), params)
    parts.join()
