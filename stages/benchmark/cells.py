"""One measurement: a method at a code length and with a seed, trained, encoded and evaluated through the stages."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from stages.artifacts import COMPONENTS, Provenance, fingerprint, library_versions
from stages.baselines.methods import METHODS as SHALLOW
from stages.baselines.stage import concept_rows, rows, unit_rows
from stages.benchmark.code import digest, files_of, mentions
from stages.benchmark.config import Settings
from stages.benchmark.plan import Row, measured_with
from stages.benchmark.prepare import ARTIFACTS, Prepared, link
from stages.benchmark.results import QUERY
from stages.codes import pack, read_codes
from stages.encode import stage as encode
from stages.encode.config import Params as EncodeParams
from stages.errors import InputError, OutsideError
from stages.evaluate.code_statistics import code_statistics
from stages.evaluate.config import Params as EvaluateParams
from stages.evaluate.reports import protocol_row
from stages.evaluate.retrieval import evaluate_codes, evaluate_vectors, metrics_dict
from stages.features import Features
from stages.images import ImageShards
from stages.params import parse
from stages.progress import silent
from stages.tables import write_table
from stages.train import stage as train
from stages.train.config import Params as TrainParams
from stages.train.methods.registry import METHODS as TRAINED

#: Libraries whose versions may change a result.
LIBRARIES = ("numpy", "scikit-learn", "scipy", "torch")

#: The code that every measurement goes through.
MEASURED_BY = ("stages.evaluate.retrieval", "stages.evaluate.code_statistics", "stages.features", "stages.images")

#: Never followed from another module: of the methods that it lists, a measurement goes through one.
REGISTRY = "stages.train.methods.registry"


@dataclass(frozen=True)
class Cell:
    """A measurement to be done.

    Attributes:
        prepared: the data set; row: of the table.
        bits, seed: None for the real-valued references.
        chosen: what the search chose for the row's method.
    """

    prepared: Prepared
    row: Row
    bits: int | None
    seed: int | None
    chosen: Settings

    @property
    def params(self) -> dict[str, Any]:
        """All parameters of this measurement."""
        values = self.prepared.params
        bits, seed = (values["bits"], values["seed"]) if self.row.is_reference else (self.bits, self.seed)
        return measured_with(values, self.row, bits, seed, self.chosen)

    @property
    def key(self) -> str:
        """Hash of all that the result depends on: what was prepared, parameters, code and libraries."""
        options = parse(EvaluateParams, self.params).model_dump(mode="json")
        made_from = next(iter(self.prepared.keys.values())) if self.seed is None else self.prepared.keys[self.seed]
        if self.row.is_trained:
            code, options = MEASURED_BY, {**options, **training_key(self.params)}
        else:
            code = (*MEASURED_BY, "stages.mine.concepts" if self.row.is_reference else "stages.baselines.methods")
        files = [*files_of(code), Path(__file__)]
        return fingerprint([made_from, self.row.method, self.bits, self.seed, options, digest(files),
                            library_versions(*LIBRARIES)])  # fmt: skip

    @property
    def file(self) -> Path:
        """Where the result lies."""
        name = "-".join(str(part) for part in (self.row.name, self.bits, self.seed, self.key) if part is not None)
        return self.prepared.directory / "results" / f"{name}.parquet"

    @property
    def work(self) -> Path:
        """Where it is trained; a killed training goes on there."""
        return self.prepared.directory / "cells" / self.file.stem

    def run(self) -> None:
        """Measure and write the result, atomically.

        Raises:
            InputError, OutsideError: as the stages do, with the measurement in front.
        """
        try:
            with quietly_on_one_thread():
                row, arrays = self._measured()
        except (InputError, OutsideError) as error:
            raise type(error)(f"{self}: {error}") from None
        columns = {name: [value] for name, value in row.items()}
        columns |= {name: pa.array([values.astype(np.float32)]) for name, values in arrays.items()}
        provenance = Provenance("benchmark", self.prepared.dataset.digest, self.prepared.model,
                                versions=library_versions(*LIBRARIES))  # fmt: skip
        write_table(pa.table(columns), self.file, provenance)
        shutil.rmtree(self.work, ignore_errors=True)

    def __str__(self) -> str:
        length = "" if self.bits is None else f", {self.bits} bits, seed {self.seed}"
        return f"{self.prepared.name}, {self.row.name}{length}"

    def _measured(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        prepared, params = self.prepared, self.params
        with chdir(prepared.directory):
            shards = ImageShards()
            labels = shards.labels(len(prepared.dataset.class_names))
            query_id, database_id = shards.ids("query"), shards.ids("database")
        options = parse(EvaluateParams, params).evaluate
        measured = (labels[query_id], labels[database_id], prepared.dataset.cutoffs, options.precision_at)
        start = time.perf_counter()
        if self.row.is_reference:
            vectors = self._vectors(query_id, database_id)
            seconds = time.perf_counter() - start
            result, further = evaluate_vectors(*vectors, *measured), {}
        else:
            codes = self._trained_codes(params) if self.row.is_trained else self._codes(query_id, database_id)
            seconds = time.perf_counter() - start
            result, further = evaluate_codes(*codes, *measured), code_statistics(codes[1])
        takes_concepts = self.row.is_trained or self.row.method == "concept_cosine"
        row = {
            "dataset": prepared.name, **protocol_row(prepared.dataset), "method": self.row.name, "bits": self.bits,
            "seed": self.seed, "guidance": prepared.guidance(self.row.method, takes_concepts),
            **metrics_dict(result), **further, "seconds": seconds,
            "hyperparameters": json.dumps({**self.chosen, **self.row.params}, sort_keys=True),
        }  # fmt: skip
        names = {cutoff: QUERY + ("all" if cutoff == "all" else f"at_{cutoff}") for cutoff in result.query_precision}
        return row, {names[cutoff]: values for cutoff, values in result.query_precision.items()}

    def _vectors(self, *splits: np.ndarray) -> list[np.ndarray]:
        with chdir(self.prepared.directory), Features() as features:
            represent = unit_rows if self.row.method == "feature_cosine" else concept_rows(features.provenance)
            return [rows(features, ids, represent) for ids in splits]

    def _codes(self, *splits: np.ndarray) -> list[np.ndarray]:
        with chdir(self.prepared.directory), Features() as features:
            fitted = SHALLOW[self.row.method](features.train(), self.bits, np.random.default_rng(self.seed))
            return [rows(features, ids, lambda block: pack(fitted(block))) for ids in splits]

    def _trained_codes(self, params: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        prepared, work = self.prepared, self.work
        link(prepared.directory, work, ARTIFACTS)
        link(prepared.seed_directory(self.seed), work, [COMPONENTS])
        with chdir(work):
            train.run(parse(TrainParams, dict(params)))
            encode.run(parse(EncodeParams, dict(params)))
            codes = read_codes()
        return codes.query, codes.database


def training_key(params: Mapping[str, Any]) -> dict[str, Any]:
    """What a training depends on beside its inputs: the parameters that its code reads, and that code.

    So a change of one method, or of its section of the parameters, leaves the results of the others as they are.
    """
    method = params["method"]
    files = files_of(["stages.train.stage", "stages.encode.stage", TRAINED[method].__module__], [REGISTRY])
    options = parse(TrainParams, dict(params)).model_dump(mode="json")
    section = {name: value for name, value in options["train"].items()
               if not isinstance(value, dict) or mentions(files, name)}  # fmt: skip
    return {**options, "train": section, "code": digest(files)}


def trains_on_pixels(params: Mapping[str, Any]) -> bool:
    """Whether the network is trained end to end on images; its decoding takes processes of its own."""
    return params["train"]["network"] == "backbone"


@contextmanager
def quietly_on_one_thread() -> Iterator[None]:
    """One thread, so that the number of processes does not change the order of sums; and no bars within a bar."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1), silent():
            yield
    finally:
        torch.set_num_threads(threads)


def is_possible(prepared: Prepared, row: Row) -> bool:
    """Whether a data set has what `row` needs: concepts, if it needs them."""
    if row.is_trained:
        needs_text = TRAINED[row.method].needs_text or TRAINED[row.method].needs_concepts
    else:
        needs_text = row.method == "concept_cosine"
    return prepared.has_text or not needs_text


