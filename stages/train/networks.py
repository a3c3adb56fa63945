"""What is trained, and on what: a head on cached features, or a backbone on images."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from stages.artifacts import BACKBONE, IMAGES, damaged
from stages.backbone import BackboneConfig, BackboneNet, build_backbone, load_backbone, recompute_activations
from stages.errors import InputError
from stages.features import Features
from stages.hashnet import HashNet, HashNetConfig
from stages.images import ImageShards
from stages.pinned_backbone import WEIGHTS, PinnedBackbone
from stages.train.batches import Batches, CachedViews
from stages.train.config import Params
from stages.train.distributed import ALONE, Ranks
from stages.train.methods.registry import METHODS
from stages.train.streamed import Rows, StreamedRows, StreamedTensor, StreamedViews, fits
from stages.workers import cores


def training_images(method: str, features: Features, device: torch.device) -> Rows:
    """Unit features (n, dim) of the unaugmented training images: in memory, on `device`, where all fit into it."""
    if fits(features, shown(method, features)):
        return torch.from_numpy(features.train()).to(device)
    return StreamedTensor(StreamedRows(features), device)


def shown(method: str, features: Features) -> int:
    """Features of each image that a head is trained on: a method that is shown the images as they are needs none of
    the views, which are several times their size.
    """
    return features.n_views if METHODS[method].views else 1


def head(params: Params, features: Features, images: Rows, ranks: Ranks = ALONE) -> tuple[HashNet, Batches]:
    """A head and the cached views, in memory if the `images` are; `features` stay open for as long as it is trained."""
    # A head's products are too small to share among cores, and one thread gives the same bits on any machine.
    torch.set_num_threads(1)
    net = HashNet(HashNetConfig(features.dim, params.train.hidden, params.bits, params.method)).to(images.device)
    if isinstance(images, StreamedTensor):
        return net, StreamedViews(features, params.train.batch_size, images.device, ranks)
    views = torch.from_numpy(features.views()).to(images.device) if METHODS[params.method].views else images[None]
    return net, CachedViews(views, images, params.train.batch_size, ranks)


def backbone(params: Params, pinned: PinnedBackbone, shards: ImageShards, features: Features, directory: Path,
             device: torch.device, ranks: Ranks = ALONE) -> tuple[BackboneNet, Batches]:  # fmt: skip
    """A backbone with its pinned weights, and the training images, of which each machine has a copy in `directory`.

    Raises:
        InputError: there is none, it does not take images of that size or of this data set, or cannot be trained so.
    """
    options = params.train.backbone
    size = image_size(pinned, options.image_size)
    if shards.feature_dim is not None:
        raise InputError("train.network: 'backbone' needs images, and the data set has features alone; set head")
    if not np.array_equal(shards.ids("train"), features.train_id):
        raise damaged(IMAGES, "has other training images than data/features.h5")
    config = BackboneConfig(
        pinned.model, pinned.tower, pinned.dim, params.bits, params.method, size, pinned.mean, pinned.std
    )
    if pinned.sha256:
        try:
            network = load_backbone(pinned.model, pinned.tower, load_file(BACKBONE / WEIGHTS))
        except RuntimeError as error:
            raise damaged(BACKBONE / WEIGHTS, error) from None
    else:
        network = build_backbone(pinned.model, pinned.tower)
    if options.checkpointing:
        recompute_activations(network, pinned.model)
    net = BackboneNet(config, network).to(device)
    net.mixed = options.amp and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    net.lr_factor = options.lr_pretrained if pinned.sha256 else 1.0  # random layers are as new as the last one
    from stages.train.image_batches import ImageBatches, store  # with torchvision, which a head needs not

    workers = cores() if options.workers is None else options.workers
    images = store(shards, directory / "images.bin") if ranks.local == 0 else None
    images = ranks.first(lambda: images)  # and not before it lies there
    ranks.wait()
    return net, ImageBatches(images, size, params.train.batch_size, workers, device, ranks)


def image_size(pinned: PinnedBackbone, asked: int | None) -> int:
    """Pixels of an image's side.

    Raises:
        InputError: no backbone is pinned, or it does not take images of that size.
    """
    if pinned.model is None:
        raise InputError("train.network: 'backbone' needs a model, and backbone.model is null; set vgg19, say")
    if asked is not None and asked != pinned.image_size and pinned.fixed_size:
        raise InputError(
            f"train.backbone.image_size: {pinned.model} takes images of {pinned.image_size} pixels, not of {asked}; "
            f"set null"
        )
    return asked or pinned.image_size
