"""The small search of hyperparameters: the same number of trials for every method, and no label read.

A fifth of the training images is held out. Each trial trains on the others, codes all of them, and is scored by how
well the codes of the held-out images retrieve the others of the same pseudo-labels.
"""

import shutil
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.cluster import KMeans

from stages.artifacts import (
    COMPONENTS,
    CONCEPT_DISTRIBUTION,
    FEATURES,
    IMAGES,
    PRODUCER,
    PROVENANCE_KEY,
    SPLITS,
    fingerprint,
    library_versions,
    read_json,
    replacing,
    replacing_directory,
    write_json,
    writing,
)
from stages.benchmark.cells import LIBRARIES, quietly_on_one_thread, training_key, trains_on_pixels
from stages.benchmark.code import digest, files_of
from stages.benchmark.config import Search, Settings, spelled
from stages.benchmark.plan import Row, measured_with
from stages.benchmark.prepare import ARTIFACTS, Prepared, link, make
from stages.components.config import Params as ComponentsParams
from stages.device import resolve_device
from stages.encode.pixels import encode_shards
from stages.encode.stage import encode_images
from stages.errors import InputError
from stages.evaluate.retrieval import evaluate_codes
from stages.features import Features
from stages.hashnet import HashNet, load_hashnet
from stages.hdf5 import read_text, write_text
from stages.images import SCHEMA, ImageShards
from stages.params import parse
from stages.tables import matrix, read_table
from stages.train import stage as train
from stages.train.config import Params as TrainParams
from stages.workers import cores

#: Every so many-th training image is held out.
HELD_OUT = 5

#: An image has the pseudo-label of its top concept, and of every other one of at least this probability.
SHARE = 0.1

#: Beside the features and images of the trials: what they were made from.
PART = "part.json"


@dataclass(frozen=True)
class Trial:
    """One combination of values for one method.

    Attributes:
        prepared: the data set; directory: its part without the held-out images.
        key: what that directory was made from; labels: the pseudo-labels; search: the plan's.
        method, settings: what is tried.
    """

    prepared: Prepared
    directory: Path
    key: str
    labels: Path
    search: Search
    method: str
    settings: Settings

    @property
    def params(self) -> dict[str, Any]:
        row = Row(self.method, self.method, {})
        return measured_with(self.prepared.params, row, self.search.bits, self.search.seed, self.settings)

    @property
    def file(self) -> Path:
        """Where the score lies."""
        files = [*files_of(["stages.evaluate.retrieval"]), Path(__file__)]
        key = fingerprint([self.key, self.labels.name, training_key(self.params), digest(files),
                           library_versions(*LIBRARIES)])  # fmt: skip
        return self.directory / "trials" / f"{self.method}-{key}.json"

    @property
    def work(self) -> Path:
        """Where it is trained."""
        return self.directory / "work" / self.file.stem

    def run(self) -> None:
        """Train, score, and write the score; a training that fails (its loss is no number any more) has none."""
        found: dict[str, Any] = {"method": self.method, "settings": self.settings, "score": None}
        with quietly_on_one_thread():
            try:
                found["score"] = self._score()
            except InputError as error:
                found["failed"] = str(error)
        write_json(self.file, found)
        shutil.rmtree(self.work, ignore_errors=True)

    def __str__(self) -> str:
        return f"{self.prepared.name}, {self.method}, {spelled(self.settings)}"

    def _score(self) -> float:
        link(self.directory, self.work, [*ARTIFACTS, COMPONENTS])
        with chdir(self.work):
            train.run(parse(TrainParams, self.params))
            device = resolve_device(self.params["device"])
            net, _ = load_hashnet()
            with chdir(self.prepared.directory), Features() as features:
                if isinstance(net, HashNet):
                    codes = encode_images(net.to(device), features, features.train_id, device)
                else:
                    codes = encode_shards(net.to(device), ImageShards(), device, cores())[features.train_id]
        return agreement(codes, read_pseudo_labels(self.labels))


def criterion(prepared: Prepared, search: Search) -> str:
    """``concepts`` or ``clusters``: what the pseudo-labels of a data set are.

    Raises:
        InputError: concepts are asked for where there are none.
    """
    if search.criterion == "auto":
        return "concepts" if prepared.has_text else "clusters"
    if search.criterion == "concepts" and not prepared.has_text:
        raise InputError(f"search.criterion: {prepared.name} has no concepts; set auto or clusters")
    return search.criterion


def write_pseudo_labels(prepared: Prepared, search: Search, directory: Path) -> Path:
    """Write the pseudo-labels of all training images, one array (n_train, labels) a level.

    Of the kept concepts there is one level; of the clusters there are two, with as many clusters as there are fine
    and coarse components. The components themselves are no labels: how soft they are is a parameter of the methods.

    Returns:
        The file, named by what it was made from.
    """
    kind, options = criterion(prepared, search), parse(ComponentsParams, prepared.params).components
    counts = (options.fine, options.coarse) if kind == "clusters" else ()
    path = directory / f"labels-{fingerprint([prepared.keys[search.seed], kind, counts, search.seed])}.npz"
    if path.exists():
        return path
    with chdir(prepared.directory), Features() as features:
        if kind == "concepts":
            levels = [likely(matrix(read_table(CONCEPT_DISTRIBUTION, {"distribution": None})[0], "distribution"))]
        else:
            levels = [cluster_labels(features.train(), count, search.seed) for count in counts]
    with replacing(path) as temporary:
        np.savez_compressed(temporary, *levels)
    return path


def read_pseudo_labels(path: Path) -> list[np.ndarray]:
    """The inverse of :func:`write_pseudo_labels`."""
    with np.load(path) as levels:
        return list(levels.values())


def cluster_labels(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """K-means clusters of features (n, d) as labels, bool (n, count)."""
    count = min(count, len(features))
    return np.eye(count, dtype=bool)[KMeans(count, n_init=1, random_state=seed).fit_predict(features)]


def likely(distribution: np.ndarray) -> np.ndarray:
    """The top one of each row of a distribution (n, m) and all of at least :data:`SHARE`: bool (n, m)."""
    chosen = distribution >= SHARE
    np.put_along_axis(chosen, distribution.argmax(axis=1)[:, None], True, axis=1)
    return chosen


def held_out(n: int) -> np.ndarray:
    """Which of n training images are held out: bool (n,). Every fifth, so that data sorted by class is split evenly."""
    return np.arange(n) % HELD_OUT == 0


def agreement(codes: np.ndarray, levels: Sequence[np.ndarray]) -> float:
    """The criterion: tie-aware mAP of the held-out images among the others, mean over the levels of pseudo-labels.

    Args:
        codes: packed, uint8 (n_train, bits / 8); levels: each bool (n_train, labels).
    """
    out = held_out(len(codes))
    scores = [evaluate_codes(codes[out], codes[~out], labels[out], labels[~out], (), ()) for labels in levels]
    return float(np.mean([score.map_tie_aware["all"] for score in scores]))


def prepare_trials(prepared: Prepared, search: Search) -> list[Trial]:
    """The trials on a data set, in a directory that has neither the held-out images to train on nor any label."""
    directory = prepared.directory / "search"
    wanted = [path for path in ARTIFACTS if PRODUCER[path] in ("download", "weights") and path not in (IMAGES, SPLITS)]
    link(prepared.directory, directory, wanted)
    pixels = trains_on_pixels(prepared.params)
    key = fingerprint([prepared.keys[search.seed], HELD_OUT, pixels])
    if part_of(directory) != key:
        kept_id = write_part(prepared.directory / FEATURES, directory / FEATURES)
        write_unlabelled(prepared.directory / IMAGES, directory / IMAGES, kept_id, pixels)
        write_json(directory / PART, {"made_from": key})
    params = {**prepared.params, "seed": search.seed}
    key = make(directory, ["mine", "similarity", "components"], params, key)
    with quietly_on_one_thread():
        labels = write_pseudo_labels(prepared, search, directory)
    return [Trial(prepared, directory, key, labels, search, method, settings)
            for method in search.grid for settings in search.combinations(method)]  # fmt: skip


def part_of(directory: Path) -> str | None:
    """What features and images in the directory of the trials were made from; None where they are not complete."""
    return read_json(directory / PART)["made_from"] if (directory / PART).exists() else None


def write_part(path: Path, target: Path) -> np.ndarray:
    """Write the ``features.h5`` at `path` without the held-out images among those to train on; the ids that stay."""
    with h5py.File(path) as source, writing(target) as opened, h5py.File(opened, "w") as file:
        keep = ~held_out(len(source["train/id"]))
        kept_id = source["train/id"][:][keep]
        write_text(file, PROVENANCE_KEY, read_text(source, PROVENANCE_KEY) or "")
        source.copy("image", file)
        file["train/id"] = kept_id
        views = source["train/views"]
        part = file.create_dataset("train/views", (len(views), int(keep.sum()), views.shape[2]), views.dtype)
        for number in range(len(views)):
            part[number] = views[number][keep]
    return kept_id


def write_unlabelled(source: Path, target: Path, train_id: np.ndarray, pixels: bool) -> None:
    """Write the image shards in `source` without labels, `train_id` to train on; without `pixels`, ids and splits."""
    with replacing_directory(target) as temporary:
        for file in ImageShards(source).files:
            shard = pq.ParquetFile(file)
            schema = shard.schema_arrow if pixels else SCHEMA.with_metadata(shard.schema_arrow.metadata)
            kept = [name for name in schema.names if name != "labels" and (pixels or name != "image")]
            with pq.ParquetWriter(temporary / file.name, schema) as writer:
                for number in range(shard.num_row_groups):
                    group = shard.read_row_group(number, columns=kept)
                    columns = {name: group[name] if name in kept else pa.nulls(len(group), schema.field(name).type)
                               for name in schema.names}  # fmt: skip
                    columns["is_train"] = pa.array(np.isin(group["id"].to_numpy(), train_id))
                    writer.write_table(pa.table(columns, schema=schema))


def chosen(trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """By method: its trials with their scores, and the values of the best; of equal ones the first.

    Raises:
        InputError: all trials of a method failed.
    """
    result: dict[str, dict[str, Any]] = {}
    for trial in trials:
        result.setdefault(trial.method, {"trials": []})["trials"].append(read_json(trial.file))
    for method, entry in result.items():
        scored = [found for found in entry["trials"] if found["score"] is not None]
        if not scored:
            raise InputError(f"search.grid.{method}: every trial failed: {entry['trials'][0]['failed']}")
        entry["chosen"] = max(scored, key=lambda found: found["score"])["settings"]
    return result
