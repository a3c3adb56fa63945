"""Read the network and what it encodes, features or images, write the codes."""

import numpy as np
import torch

from stages.artifacts import FEATURES, HASHNET, IMAGES, Provenance
from stages.codes import Codes, pack, write_codes
from stages.device import resolve_device
from stages.encode.config import Params
from stages.encode.pixels import EncodedParts
from stages.errors import InputError
from stages.features import Features
from stages.hashnet import HashNet, load_hashnet, relaxed_codes
from stages.images import ImageShards
from stages.progress import track

#: Images encoded at a time.
CHUNK = 65536


def encode_images(net: HashNet, features: Features, ids: np.ndarray, device: torch.device) -> np.ndarray:
    """Packed codes of the images `ids` (ascending) by a head: uint8 (n, bits / 8)."""
    packed = np.empty((len(ids), net.config.bits // 8), np.uint8)
    for start in track(range(0, len(ids), CHUNK), "encode", total=-(-len(ids) // CHUNK)):
        part = slice(start, start + CHUNK)
        rows = torch.from_numpy(features.images(ids[part])).to(device)
        packed[part] = pack(relaxed_codes(net, rows).cpu().numpy())
    return packed


def run(params: Params) -> None:
    """Read ``models/hashnet``, ``data/features.h5`` and ``data/images``, write ``data/codes.h5``."""
    net, made_from = load_hashnet()
    shards = ImageShards()
    query_id, database_id = shards.ids("query"), shards.ids("database")
    with Features() as features:
        features.provenance.require_same(shards.provenance, FEATURES, IMAGES)
        made_from.require_same(features.provenance, HASHNET, FEATURES)
        parts: EncodedParts | None = None
        if isinstance(net, HashNet):
            device = resolve_device(params.device)
            net = net.to(device)
            query, database = (encode_images(net, features, ids, device) for ids in (query_id, database_id))
        elif shards.feature_dim is not None:
            raise InputError(f"{HASHNET}: encodes images, and {IMAGES} has features alone; set train.network: head")
        else:
            parts = EncodedParts(shards)
            packed = parts.encode(net, params)
            query, database = packed[query_id], packed[database_id]
    provenance = Provenance("encode", made_from.dataset, made_from.model, params=made_from.params)
    write_codes(Codes(query, query_id, database, database_id, net.config.method, provenance))
    if parts is not None:
        parts.remove()
