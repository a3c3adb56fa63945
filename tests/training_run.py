"""The inputs of a small training, written by the stages before it."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
import yaml
from scene_shards import encoded, picture, write_shards

from stages.artifacts import CONCEPT_DISTRIBUTION, FEATURES, PROVENANCE_KEY, Provenance
from stages.components import stage as components
from stages.components.config import Params as ComponentsParams
from stages.hdf5 import write_text
from stages.params import parse
from stages.similarity import stage as similarity
from stages.similarity.config import Params as SimilarityParams
from stages.tables import fixed_size_lists, write_table
from stages.train import stage as train
from stages.train import trainer
from stages.train.config import Params
from stages.weights import stage as weights
from stages.weights.config import Backbone

DIGEST, MODEL = "d" * 64, "e" * 64
DEFAULTS = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())


def train_params(method: str = "fused", bits: int = 16, seed: int = 0, **changes: Any) -> Params:
    """Those of ``params.yaml``, for a short training; `changes` are keys of the section ``train``."""
    small = {"hidden": 16, "epochs": 7, "batch_size": 16, "lr": 0.005, "checkpoint": 2}
    section = {**DEFAULTS["train"], **small, **changes}
    section["dsch"] = {**section["dsch"], "round": 3, "warmup": 2}
    return parse(Params, {"method": method, "bits": bits, "seed": seed, "device": "cpu", "train": section})


def write_features(n: int = 64, n_train: int = 41, dim: int = 12, views: int = 3, digest: str = DIGEST) -> None:
    """Features around five directions; the training images are scattered among the others."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5, dim))[rng.integers(0, 5, n)] + 0.4 * rng.standard_normal((n, dim))
    train_id = np.sort(rng.permutation(n)[:n_train])
    augmented = rows[train_id] + 0.2 * rng.standard_normal((views, n_train, dim))
    FEATURES.parent.mkdir(exist_ok=True)
    with h5py.File(FEATURES, "w") as file:
        write_text(file, PROVENANCE_KEY, Provenance("extract", digest, MODEL).to_json())
        file["image/features"], file["image/id"] = _unit(rows), np.arange(n)
        file["train/views"], file["train/id"] = _unit(augmented), train_id
    write_shards(Path(), [encoded(picture(index, (20, 15))) for index in range(n)], np.isin(np.arange(n), train_id),
                 digest=digest)  # fmt: skip


def write_distribution(digest: str = DIGEST, sharpness: float = 4.0, count: int = 6) -> None:
    """A distribution of the training images over `count` concepts that follows from their features."""
    with h5py.File(FEATURES) as file:
        train_id = file["train/id"][:]
        rows = file["image/features"][:][train_id].astype(np.float32)
    concepts = np.random.default_rng(1).standard_normal((count, rows.shape[1])).astype(np.float32)
    weights = np.exp(sharpness * rows @ concepts.T)
    table = pa.table({"id": train_id, "distribution": fixed_size_lists(weights / weights.sum(axis=1, keepdims=True))})
    write_table(table, CONCEPT_DISTRIBUTION, Provenance("mine", digest, MODEL), {"concepts": list("abcdef")[:count]})


def run_similarity() -> None:
    section = {**DEFAULTS["similarity"], "neighbours": 3}
    similarity.run(parse(SimilarityParams, {"similarity": section}))


def run_components(**changes: Any) -> None:
    section = {**DEFAULTS["components"], "fine": 6, "coarse": 2, "pca": 5, "iterations": 20, "top": 4, **changes}
    components.run(parse(ComponentsParams, {"seed": 0, "device": "cpu", "components": section}))


def run_interrupted(monkeypatch: pytest.MonkeyPatch, params: Params, epoch: int = 5) -> None:
    """Run the stage ``train``; Ctrl-C comes at the beginning of `epoch`, counted from 0."""

    def stop(seed: int, index: int) -> int:
        if index == epoch:
            raise KeyboardInterrupt
        return derived_seed(seed, index)

    derived_seed = trainer.derived_seed
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "derived_seed", stop)
        with pytest.raises(KeyboardInterrupt):
            train.run(params)


def write_training_inputs() -> None:
    """Features and images, concepts, similarity, components, and no backbone in the current directory."""
    weights.pin_backbone(Backbone(model=None, weights=None))
    write_features()
    write_distribution()
    run_similarity()
    run_components()


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float16)
