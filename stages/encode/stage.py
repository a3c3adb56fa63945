"""Read features and the network, write the codes."""

import numpy as np
import torch

from stages.artifacts import FEATURES, HASHNET, IMAGES, Provenance
from stages.codes import Codes, pack, write_codes
from stages.device import resolve_device
from stages.encode.config import Params
from stages.features import Features
from stages.hashnet import HashNet, load_hashnet, relaxed_codes
from stages.images import ImageShards
from stages.progress import track

#: Images encoded at a time.
CHUNK = 65536


def encode_images(net: HashNet, features: Features, ids: np.ndarray, device: torch.device) -> np.ndarray:
    """Packed codes of the images `ids` (ascending): uint8 (n, bits / 8)."""
    packed = np.empty((len(ids), net.config.bits // 8), np.uint8)
    for start in track(range(0, len(ids), CHUNK), "encode", total=-(-len(ids) // CHUNK)):
        part = slice(start, start + CHUNK)
        rows = torch.from_numpy(features.images(ids[part])).to(device)
        packed[part] = pack(relaxed_codes(net, rows).cpu().numpy())
    return packed


def run(params: Params) -> None:
    """Read ``data/features.h5`` and ``models/hashnet``, write ``data/codes.h5``."""
    device = resolve_device(params.device)
    net, made_from = load_hashnet()
    shards = ImageShards()
    with Features() as features:
        features.provenance.require_same(shards.provenance, FEATURES, IMAGES)
        made_from.require_same(features.provenance, HASHNET, FEATURES)
        net = net.to(device)
        query_id, database_id = shards.ids("query"), shards.ids("database")
        query, database = (encode_images(net, features, ids, device) for ids in (query_id, database_id))
    provenance = Provenance("encode", made_from.dataset, made_from.model, params=made_from.params)
    write_codes(Codes(query, query_id, database, database_id, net.config.method, provenance))
