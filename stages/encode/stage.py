"""Read the network and what it encodes, features or images, write the codes."""

from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from stages.artifacts import FEATURES, HASHNET, IMAGES, Provenance
from stages.backbone import BackboneNet, evaluation_pixels
from stages.codes import Codes, pack, write_codes
from stages.decoding import Slice, SlicedShards, in_order, naming_lost_workers, slices_of
from stages.device import resolve_device
from stages.encode.config import Params
from stages.errors import InputError
from stages.features import Features
from stages.hashnet import HashNet, load_hashnet, relaxed_codes
from stages.images import ImageShards
from stages.progress import track
from stages.workers import cores

#: Images encoded at a time.
CHUNK = 65536
LOST_WORKER = "encode: free some and run it again"


def encode_images(net: HashNet, features: Features, ids: np.ndarray, device: torch.device) -> np.ndarray:
    """Packed codes of the images `ids` (ascending) by a head: uint8 (n, bits / 8)."""
    packed = np.empty((len(ids), net.config.bits // 8), np.uint8)
    for start in track(range(0, len(ids), CHUNK), "encode", total=-(-len(ids) // CHUNK)):
        part = slice(start, start + CHUNK)
        rows = torch.from_numpy(features.images(ids[part])).to(device)
        packed[part] = pack(relaxed_codes(net, rows).cpu().numpy())
    return packed


class PixelSlices(SlicedShards):
    """Item i: the images of slice i, as a backbone of images of `size` pixels takes them: uint8 (b, 3, size, size)."""

    def __init__(self, slices: list[Slice], size: int) -> None:
        super().__init__(slices)
        self.size = size

    def item(self, index: int) -> Tensor:
        return torch.stack([evaluation_pixels(image, self.size) for *_, image in self.decoded(self.slices[index])])


def encode_shards(net: BackboneNet, shards: ImageShards, device: torch.device, workers: int) -> np.ndarray:
    """Packed codes of all images by a backbone, in the order of the shards, streamed: uint8 (N, bits / 8).

    Raises:
        InputError: an image cannot be read, or a process that decodes was killed.
    """
    slices = slices_of(shards.row_groups(), net.CHUNK)
    with naming_lost_workers(LOST_WORKER), closing(
        in_order(PixelSlices(slices, net.config.image_size), workers, "encode", yielding=device.type == "cpu")
    ) as made:
        return np.concatenate([pack(relaxed_codes(net, images.to(device)).cpu().numpy()) for images in made])


def run(params: Params) -> None:
    """Read ``models/hashnet``, ``data/features.h5`` and ``data/images``, write ``data/codes.h5``."""
    device = resolve_device(params.device)
    net, made_from = load_hashnet()
    shards = ImageShards()
    query_id, database_id = shards.ids("query"), shards.ids("database")
    with Features() as features:
        features.provenance.require_same(shards.provenance, FEATURES, IMAGES)
        made_from.require_same(features.provenance, HASHNET, FEATURES)
        net = net.to(device)
        if isinstance(net, HashNet):
            query, database = (encode_images(net, features, ids, device) for ids in (query_id, database_id))
        elif shards.feature_dim is not None:
            raise InputError(f"{HASHNET}: encodes images, and {IMAGES} has features alone; set train.network: head")
        else:
            packed = encode_shards(net, shards, device, cores())
            query, database = packed[query_id], packed[database_id]
    provenance = Provenance("encode", made_from.dataset, made_from.model, params=made_from.params)
    write_codes(Codes(query, query_id, database, database_id, net.config.method, provenance))
