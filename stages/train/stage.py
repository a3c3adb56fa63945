"""Read features, similarity and components, train, write the network and the training curves."""

import shutil
from pathlib import Path

import numpy as np
import torch
from dvclive import Live

from stages.artifacts import (
    COMPONENTS,
    FEATURES,
    SIMILARITY,
    Provenance,
    damaged,
    library_versions,
    replacing_directory,
    resume_directory,
    sha256,
)
from stages.components.artifact import read_components
from stages.device import resolve_device, seed_everything
from stages.errors import InputError
from stages.features import Features
from stages.hashnet import HashNet, HashNetConfig, save_hashnet
from stages.similarity.matrix import read_similarity
from stages.train.config import Params
from stages.train.objectives import make_objective
from stages.train.trainer import train

CURVES = Path("reports/train")


def run(params: Params) -> None:
    """Read the features and both semantic structures, write ``models/hashnet`` and ``reports/train``."""
    device = resolve_device(params.device)
    similarity, similarity_id, similarity_from = read_similarity()
    first = read_components()
    with Features() as features:
        similarity_from.require_same(features.provenance, SIMILARITY, FEATURES)
        first.provenance.require_same(features.provenance, COMPONENTS, FEATURES)
        for path, ids in ((SIMILARITY, similarity_id), (COMPONENTS, first.train_id)):
            if not np.array_equal(ids, features.train_id):
                raise damaged(path, "has other training images than data/features.h5")
        if len(features.train_id) < 2:
            raise InputError(f"{FEATURES}: training needs at least 2 images, there are {len(features.train_id)}")
        made_from = features.provenance
        images, views = torch.from_numpy(features.train()), torch.from_numpy(features.views())
    provenance = Provenance("train", made_from.dataset, made_from.model, params=params.model_dump(exclude={"device"}),
                            versions=library_versions("torch"))  # fmt: skip
    contents = [sha256(path) for path in (FEATURES, SIMILARITY, COMPONENTS)]
    unfinished = resume_directory("train", [*contents, provenance.to_json()])

    seed_everything(params.seed)
    # A head's products are too small to share among cores, and one thread gives the same bits on any machine.
    torch.set_num_threads(1)
    net = HashNet(HashNetConfig(images.shape[1], params.train.hidden, params.bits, params.method)).to(device).train()
    objective = make_objective(params.method, params.train, similarity, first, params.seed, device)
    with replacing_directory(CURVES) as curves:
        # No context of its own: on Ctrl-C its end may wait for ever for a thread that was not told of its work.
        live = Live(str(curves), dvcyaml=None, save_dvc_exp=False, report=None)

        def log(losses: dict[str, float]) -> None:
            for name, value in losses.items():
                live.log_metric(name, value)
            live.next_step()

        train(net, views.to(device), images.to(device), objective, params.train, params.seed,
              unfinished / "checkpoint.pt", log)  # fmt: skip
        live.end()
    save_hashnet(net, provenance)
    shutil.rmtree(unfinished)
