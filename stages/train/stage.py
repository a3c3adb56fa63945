"""Read features (and images), similarity and components, train, write the network and the training curves."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from dvclive import Live

from stages.artifacts import (
    BACKBONE,
    COMPONENTS,
    CONCEPT_DISTRIBUTION,
    CONCEPTS,
    FEATURES,
    IMAGES,
    SIMILARITY,
    Provenance,
    damaged,
    library_versions,
    replacing_directory,
    resume_directory,
    sha256,
)
from stages.components.artifact import read_components
from stages.decoding import naming_lost_workers
from stages.device import resolve_device, seed_everything
from stages.errors import InputError
from stages.features import Features
from stages.hashnet import Network, save_hashnet
from stages.images import ImageShards
from stages.mine.distribution import read_distribution
from stages.pinned_backbone import CONFIG, read_pinned_backbone
from stages.similarity.matrix import SimilarityMatrix, read_similarity
from stages.train import networks
from stages.train.batches import Batches
from stages.train.candidates import read_candidates
from stages.train.config import Params
from stages.train.distributed import Ranks, current
from stages.train.methods.objective import Inputs, Objective
from stages.train.methods.registry import METHODS
from stages.train.trainer import train

CURVES = Path("reports/train")
LOST_WORKER = "train.backbone.workers: set fewer of them, or a smaller train.batch_size"


def run(params: Params) -> None:
    """Read the features and what the method trains on beside them, write ``models/hashnet`` and ``reports/train``."""
    ranks = current()
    device = ranks.device(resolve_device(params.device))
    first, shards, pinned = read_components(), ImageShards(), read_pinned_backbone()
    whole = params.train.network == "backbone"
    with Features() as features:
        features.provenance.require_same(shards.provenance, FEATURES, IMAGES)
        similarity = read_text_side(params.method, features)
        distribution = read_concept_shares(params.method, features)
        concepts = read_candidates(params.method, features) if METHODS[params.method].needs_concepts else None
        require_same_images(first.provenance, first.train_id, COMPONENTS, features)
        if len(features.train_id) < 2:
            raise InputError(f"{FEATURES}: training needs at least 2 images, there are {len(features.train_id)}")
        made_from = features.provenance
        provenance = Provenance("train", made_from.dataset, made_from.model, versions=library_versions("torch"),
                                params=params.model_dump(exclude={"device"}))  # fmt: skip
        contents = [sha256(path) for path in (
            FEATURES, COMPONENTS, *([SIMILARITY] if similarity else []),
            *([] if distribution is None else [CONCEPT_DISTRIBUTION]), *([] if concepts is None else [CONCEPTS]),
            *([BACKBONE / CONFIG] if whole else []),
        )]  # fmt: skip
        unfinished = resume_directory("train", [*contents, provenance.to_json()])
        ranks.require_same(unfinished.name)
        seed_everything(params.seed)
        images = networks.training_images(params.method, features, device)
        net, data = (
            networks.backbone(params, pinned, shards, features, unfinished, device, ranks) if whole
            else networks.head(params, features, images, ranks)
        )  # fmt: skip
        objective = METHODS[params.method](
            Inputs(images, first, similarity, params.train, params.bits, params.seed, distribution, concepts, ranks)
        )
        if not whole:
            net.dropout.p = objective.dropout if params.train.dropout is None else params.train.dropout
        del images, first, similarity, distribution  # the objective has what it needs of them, they grow with n
        fit(net.train(), data, objective, params, unfinished / "checkpoint.pt", ranks)
    if ranks.is_first:
        save_hashnet(net, provenance)
        shutil.rmtree(unfinished)
    ranks.wait()
    if not ranks.is_first:
        shutil.rmtree(unfinished, ignore_errors=True)  # on other machines


def fit(
    net: Network, data: Batches, objective: Objective, params: Params, checkpoint: Path, ranks: Ranks
) -> None:  # fmt: skip
    """Train `net`, write the curves."""
    with curves(ranks) as log, naming_lost_workers(LOST_WORKER):
        train(net, data, objective, params.train, params.seed, checkpoint, log, ranks)


class Curves(Live):
    """The curves as files, alone."""

    def post_data_to_studio(self) -> None:
        """Nothing: DVCLive would read all curves again at each step, for a thread that stays for ever, without a
        Studio to post them to.
        """


@contextmanager
def curves(ranks: Ranks) -> Iterator[Callable[[dict[str, float]], None]]:
    """What takes the losses of an epoch; the first rank writes them when the block has ended well."""
    if not ranks.is_first:
        yield lambda losses: None
        return
    with replacing_directory(CURVES) as directory:
        # No context of its own: its end writes, which is for a training that ends well.
        live = Curves(str(directory), dvcyaml=None, save_dvc_exp=False, report=None)

        def log(losses: dict[str, float]) -> None:
            for name, value in losses.items():
                live.log_metric(name, value)
            live.next_step()

        yield log
        live.end()


def read_text_side(method: str, features: Features) -> SimilarityMatrix | None:
    """The similarity that `method` trains on; None where it does without.

    Raises:
        InputError: it is missing, damaged or of other images, or there were no concepts to make it of.
    """
    if not METHODS[method].needs_text:
        return None
    similarity, ids, made_from = read_similarity()
    require_same_images(made_from, ids, SIMILARITY, features)
    if not similarity.factor.shape[1]:
        raise InputError(
            f"method: '{method}' needs a text side, and there is none: clip.model is null, and concepts.vocabulary has "
            f"no text features; set clip.model to the model that made the embeddings, or concepts.vocabulary to a "
            f"Parquet file with the columns concept and text_feature, or method: fused or dsch"
        )
    return similarity


def read_concept_shares(method: str, features: Features) -> np.ndarray | None:
    """The concept distributions that `method` trains on; None where it does without, or there are no concepts.

    Raises:
        InputError: they are missing, damaged or of other images.
    """
    if not METHODS[method].uses_distribution:
        return None
    distribution, _ = read_distribution(features)
    return distribution if distribution.shape[1] else None


def require_same_images(made_from: Provenance, train_id: np.ndarray, path: Path, features: Features) -> None:
    """Refuse the artifact `path` when it was made of other images or of another model than `features`."""
    made_from.require_same(features.provenance, path, FEATURES)
    if not np.array_equal(train_id, features.train_id):
        raise damaged(path, f"has other training images than {FEATURES}")
