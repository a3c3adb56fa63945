"""Extraction from pixels: image shards encoded in batches into ``features.h5``; resumable at every row group."""

import shutil
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np

from stages.artifacts import FEATURES, Provenance, library_versions, replacing, resume_directory, writing
from stages.clip import ClipModel, load_clip
from stages.decoding import Slice, in_order, naming_lost_workers
from stages.device import resolve_device
from stages.extract.config import Params
from stages.extract.decoding import DecodedSlices, slices_of_pictures
from stages.extract.features_file import lay_out
from stages.images import ImageShards


def encode_row_groups(clip: ClipModel, groups: dict[Path, tuple[Path, int]], params: Params) -> None:
    """Encode row groups into files: ``images`` float16 (rows, d), ``views`` float16 (V, training rows, d).

    Args:
        groups: the file to write, and the (shard, row group) that goes into it.

    Raises:
        InputError: an image cannot be read, or a process that decodes was killed.
    """
    plan: list[tuple[Path, Slice]] = []
    n_views = params.extract.views
    for target, group in groups.items():
        plan += [(target, part) for part in slices_of_pictures([group], n_views, params.extract.batch_size)]
    dataset = DecodedSlices([part for _, part in plan], clip, n_views, params.extract.seed)

    images: list[np.ndarray] = []
    views: list[np.ndarray] = []
    targets = [target for target, _ in plan]
    advice = "extract.workers: set a smaller extract.batch_size, or extract.workers: 0"
    yielding = clip.device.type == "cpu"
    with naming_lost_workers(advice), closing(
        in_order(dataset, params.extract.workers, "extract", yielding=yielding)
    ) as decoded:
        for target, following, (pictures, count) in zip(targets, [*targets, None][1:], decoded, strict=True):
            features = clip.encode_images(pictures).numpy().astype(np.float16)
            images.append(features[:count])
            views.append(features[count:].reshape(-1, n_views, clip.dim).swapaxes(0, 1))
            if following != target:
                with replacing(target) as temporary:
                    np.savez(temporary, images=np.concatenate(images), views=np.concatenate(views, axis=1))
                images, views = [], []


def join(parts: list[Path], shards: ImageShards, clip: ClipModel, n_views: int, provenance: Provenance) -> None:
    """Join the encoded row groups, in order, into ``data/features.h5``."""
    attributes = {
        "model": clip.name, "pretrained": clip.pretrained or "",
        "preprocessing": f"{clip.image_size} pixels ({clip.resize_mode}, {clip.interpolation}), "
                         f"mean {clip.mean}, std {clip.std}",
        "precision": f"{clip.precision}, stored as float16",
    }  # fmt: skip
    ids, train_ids = shards.columns(["id"])["id"].to_numpy(), shards.ids("train")
    with writing(FEATURES) as target, h5py.File(target, "w") as file:
        images, views = lay_out(file, ids, train_ids, clip.dim, n_views, provenance, attributes)
        row = train_row = 0
        for part in parts:
            with np.load(part) as arrays:
                row_end, train_end = row + len(arrays["images"]), train_row + arrays["views"].shape[1]
                images[row:row_end], views[:, train_row:train_end] = arrays["images"], arrays["views"]
            row, train_row = row_end, train_end


def extract(shards: ImageShards, params: Params) -> None:
    """Write ``data/features.h5`` with what the pinned model gives for the images of `shards`.

    Raises:
        InputError: the model or an image cannot be read, or a process that decodes was killed.
    """
    clip = load_clip(device=resolve_device(params.device), precision=params.extract.precision)
    provenance = Provenance(
        "extract", dataset=shards.provenance.dataset, model=clip.sha256,
        params=params.extract.model_dump(include={"views", "seed"}),
        versions=library_versions("torch", "torchvision", "open_clip_torch"),
    )  # fmt: skip
    finished = resume_directory("extract", [provenance.to_json(), clip.precision])
    groups = {finished / f"{i:06d}.npz": group for i, group in enumerate(shards.row_groups())}
    encode_row_groups(clip, {part: group for part, group in groups.items() if not part.exists()}, params)
    join(list(groups), shards, clip, params.extract.views, provenance)
    shutil.rmtree(finished)
