"""Artifacts of a tiny run, written with the project's own writers, for the stages that read many of them."""

import io
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.artifacts import (
    COMPONENTS,
    CONCEPTS,
    DATASET,
    FEATURES,
    IMAGES,
    PROVENANCE_KEY,
    Provenance,
    write_json,
)
from stages.codes import Codes, pack, write_codes
from stages.hdf5 import write_text
from stages.images import SCHEMA, Dataset
from stages.tables import fixed_size_lists, write_table

DIGEST, MODEL = "d" * 64, "e" * 64
CLASSES = ["cat", "dog", "tree"]


def write_small_run(
    n: int = 120, dim: int = 12, bits: int = 16, labelled: bool = True, queries: int = 20, seed: int = 0,
    method: str = "fused", text_side: bool = True, pixels: bool = True,
) -> None:  # fmt: skip
    """Write data set, features, concepts, components and codes of `n` images into the current directory.

    Every sixth image is a query until there are `queries`; the first 40 of the others are the training set. Features
    are noisy sums of one direction a class. Without a `text_side` there are no concepts; without `pixels` the images
    have names alone, and every third one not even that.
    """
    rng = np.random.default_rng(seed)
    is_query = (np.arange(n) % 6 == 0) & (np.cumsum(np.arange(n) % 6 == 0) <= queries)
    query_id, database_id = np.flatnonzero(is_query), np.flatnonzero(~is_query)
    train_id = database_id[:40]
    labels = rng.random((n, len(CLASSES))) < 0.3
    labels[np.arange(n), rng.integers(0, len(CLASSES), n)] = True
    directions = rng.standard_normal((len(CLASSES), dim))
    features = labels @ directions + 0.5 * rng.standard_normal((n, dim))
    features /= np.linalg.norm(features, axis=1, keepdims=True)

    _write_images(labels, labelled, pixels, is_query, np.isin(np.arange(n), train_id))
    made = Provenance("test", DIGEST, MODEL)
    with h5py.File(FEATURES, "w") as file:
        write_text(file, PROVENANCE_KEY, made.to_json())
        file["image/features"], file["image/id"] = features.astype(np.float16), np.arange(n)
        file["train/views"], file["train/id"] = features[train_id][None].astype(np.float16), train_id

    names = ["Cat", "dog", "wheel", "$50 and $60", "sky"]
    reasons = ["", "", "too rare", "", "too frequent"]
    texts = np.vstack([directions, rng.standard_normal((2, dim))]).astype(np.float32)
    table = pa.table({
        "concept": names, "prompt": [f"a photo of the {name}" for name in names],
        "frequency": np.array([9, 8, 0, 3, 20]), "kept": [not reason for reason in reasons], "reason": reasons,
        "text_feature": fixed_size_lists(texts / np.linalg.norm(texts, axis=1, keepdims=True)),
    })  # fmt: skip
    if not text_side:
        table = table.slice(0, 0)
    settings = {"tau": 3.0, "min_frequency": 0.2, "max_frequency": 0.5}
    write_table(table, CONCEPTS, Provenance("mine", DIGEST, MODEL, settings))

    responsibilities = rng.dirichlet(np.full(6, 0.3), len(train_id))
    top = np.argsort(-responsibilities, axis=1)[:, :3]
    with h5py.File(COMPONENTS, "w") as file:
        write_text(file, PROVENANCE_KEY, made.to_json())
        file["weights"] = responsibilities.mean(axis=0)
        file["coarse_labels"] = np.array([0, 1, 2, 0, 1, 1], dtype=np.int32)
        file["responsibilities/index"] = top.astype(np.int32)
        file["responsibilities/value"] = np.take_along_axis(responsibilities, top, axis=1)
        file["train/id"] = train_id

    packed = pack(features @ rng.standard_normal((dim, bits)))
    write_codes(Codes(packed[query_id], query_id, packed[database_id], database_id, method, made))


def _write_images(labels: np.ndarray, labelled: bool, pixels: bool, is_query: np.ndarray, is_train: np.ndarray) -> None:
    images = []
    for index, row in enumerate(labels):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 16), tuple(int(220 * value) for value in row)).save(buffer, "PNG")
        name = None if pixels or index % 3 == 0 else f"photographs/of the year/{index:07d}.jpg"
        images.append({"bytes": buffer.getvalue() if pixels else None, "path": name})
    lists = [np.flatnonzero(row).tolist() if labelled else [] for row in labels]
    columns = [np.arange(len(labels)), images, lists, is_query, ~is_query, is_train]
    table = pa.table([pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    made = Provenance("download", DIGEST)
    IMAGES.mkdir(parents=True, exist_ok=True)
    Path("reports").mkdir(exist_ok=True)
    half = len(labels) // 2
    for shard, part in enumerate((table.slice(0, half), table.slice(half))):
        part = part.replace_schema_metadata({PROVENANCE_KEY: made.to_json()})
        pq.write_table(part, IMAGES / f"images-{shard:05d}.parquet", row_group_size=25)
    counts = {"images": len(labels), "query": int(is_query.sum()), "database": int((~is_query).sum())}
    dataset = Dataset(
        "tiny", "tiny-protocol", CLASSES if labelled else [], counts, [10, 50], "CC0", "tests", {}, 0, DIGEST,
        splits="5" * 64, near_duplicates=0, notes=[],
    )  # fmt: skip
    write_json(DATASET, asdict(dataset))
