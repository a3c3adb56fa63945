"""What all measurements on a data set share: its stages up to the components, run once in a directory of their own."""

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.artifacts import (
    FEATURES,
    PRODUCER,
    RESUME,
    fingerprint,
    read_json,
    sha256,
    write_json,
)
from stages.benchmark.code import PACKAGE, digest, files_of
from stages.benchmark.plan import FILES, PATHS, with_absolute_paths
from stages.errors import InputError, OutsideError
from stages.evaluate.inputs import Concepts, read_concepts
from stages.evaluate.reports import NO_LABELS
from stages.features import Features
from stages.images import Dataset, read_dataset
from stages.mine.leakage import guidance
from stages.params import parse

ROOM = RESUME / "benchmark"

#: The stages that no seed, method or code length changes.
SHARED = ("download", "weights", "extract", "mine", "similarity")

#: What the later stages read of them.
ARTIFACTS = tuple(path for path, stage in PRODUCER.items() if stage in SHARED)

#: Which stages a directory has finished, and from what.
RECORD = "stages.json"


@dataclass(frozen=True)
class Prepared:
    """A data set, ready for measurements.

    Attributes:
        name: in the plan; directory: absolute, has the artifacts of :data:`SHARED` and, in ``seed-S``, components.
        params: its parameters, paths made absolute.
        keys: by seed, what the artifacts of that seed were made from.
        dataset: what was downloaded; model: SHA-256 of the vision-language model.
        concepts: its candidate concepts; none where there is no text side.
    """

    name: str
    directory: Path
    params: dict[str, Any]
    keys: dict[int, str]
    dataset: Dataset
    model: str
    concepts: Concepts

    @property
    def has_text(self) -> bool:
        return bool(self.concepts.kept)

    def guidance(self, method: str, takes_concepts: bool) -> str:
        """The grade of what guided `method` on this data set."""
        if not takes_concepts:
            return guidance(method, 0, 0)
        overlap = self.concepts.overlapping(method, self.dataset.class_names)
        return guidance(method, len(self.concepts.guiding(method)), len(overlap))

    def seed_directory(self, seed: int) -> Path:
        return self.directory / f"seed-{seed}"


def prepare(name: str, params: Mapping[str, Any], seeds: Iterable[int]) -> Prepared:
    """Run what is missing of the shared stages, and the components of each seed.

    Raises:
        InputError, OutsideError: as the stages do, with the data set's name in front; or it has no labels.
    """
    values = with_absolute_paths(params, Path.cwd())
    own = [parse(_config(stage), values).model_dump(mode="json") for stage in SHARED]
    directory = (ROOM / f"{name}-{fingerprint(own)}").absolute()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        key = make(directory, SHARED, values, fingerprint(_files(values)))
        keys = {}
        for seed in seeds:
            place = directory / f"seed-{seed}"
            link(directory, place, [FEATURES])
            keys[seed] = make(place, ["components"], {**values, "seed": seed}, key)
        with chdir(directory):
            dataset = read_dataset()
            if not dataset.has_labels:
                raise InputError(f"{NO_LABELS}; take it out of the plan")
            with Features() as features:
                model, concepts = features.provenance.model, read_concepts(features)
    except (InputError, OutsideError) as error:
        raise type(error)(f"{name}: {error}") from None
    return Prepared(name, directory, values, keys, dataset, model, concepts)


def make(directory: Path, stages: Sequence[str], params: Mapping[str, Any], made_from: str) -> str:
    """Run those of `stages`, each after the one before, that `directory` does not have of these parameters and code.

    Returns:
        What the last one was made from, to key what is made of it.
    """
    record = directory / RECORD
    done = read_json(record) if record.exists() else {}
    key = made_from
    for stage in stages:
        options = parse(_config(stage), dict(params))
        code = digest(files_of([f"stages.{stage}.stage"]))
        key = fingerprint([key, stage, options.model_dump(mode="json"), code])
        if done.get(stage) != key:
            with chdir(directory):
                importlib.import_module(f"stages.{stage}.stage").run(options)
            done = {**done, stage: key}
            write_json(record, done)
    return key


def link(source: Path, target: Path, paths: Iterable[Path]) -> None:
    """Make `target` a directory with links to those of the artifacts `paths` that `source` has."""
    for path in paths:
        if not (source / path).exists():
            continue
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(os.path.relpath(source / path, place.parent))


def _config(stage: str) -> Any:
    return importlib.import_module(f"stages.{stage}.config").Params


def _files(params: Mapping[str, Any]) -> list[tuple[str, str]]:
    """SHA-256 of the small files that the parameters name, and of the data files that come with the package."""
    named = [Path(params[section][name] or "") for section, name in (key.split(".") for key in (*PATHS, *FILES))]
    shipped = sorted((PACKAGE / "scenes" / "clip").iterdir())
    return [(file.name, sha256(file)) for file in (*named, *shipped) if file.is_file()]
