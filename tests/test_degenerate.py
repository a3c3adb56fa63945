"""Data without sense or variety, through the whole pipeline: a defined result, or one line that says what is wrong."""

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
from stage_runner import prepare

from stages.__main__ import STAGES

RNG = np.random.default_rng
N, DIM = 60, 8


def groups(n: int = N) -> np.ndarray:
    """Features (n, DIM) around five directions."""
    rng = RNG(0)
    return rng.standard_normal((5, DIM))[np.arange(n) % 5] + 0.1 * rng.standard_normal((n, DIM))


def with_rows(value: float, rows: slice = slice(3, 4)) -> np.ndarray:
    found = groups()
    found[rows, 2] = value
    return found


def constant_dimensions() -> np.ndarray:
    found = groups()
    found[:, 3:] = 0.5
    return found


SMALL = {"fine": 4, "coarse": 2, "pca": 4}
#: Features, changes of the parameters, and the stage that refuses them with its words; None: all stages end well.
CASES = {
    "equal rows": (np.ones((N, DIM)), {}, None),
    "thousands of duplicates": (groups(5)[np.arange(3000) % 5], {}, None),
    "no variance in most dimensions": (constant_dimensions(), {}, None),
    "one dimension": (groups()[:, :1], {"components": {**SMALL, "pca": 1}}, None),
    "tiny numbers": (groups() * 1e-30, {}, None),
    "zeros": (np.zeros((N, DIM)), {}, ("download", "none of its 60 images can be read")),
    "a row of zeros": (groups() * (np.arange(N) != 3)[:, None], {"dataset": {"max_skipped": 0.1}}, None),
    "not a number": (with_rows(np.nan), {}, ("download", "dataset.max_skipped")),
    "not a number, tolerated": (with_rows(np.nan), {"dataset": {"max_skipped": 0.1}}, None),
    "infinity": (with_rows(np.inf), {}, ("download", "dataset.max_skipped")),
    "one image": (groups(1), {}, ("download", "no image is left for the database")),
    "two images": (groups(2), {}, ("similarity", "needs at least 2 training images")),
    "more components than images": (groups(), {"components": {**SMALL, "fine": 61}}, ("components", "components.fine")),
    "more dimensions of PCA than features": (groups(), {"components": {**SMALL, "pca": 9}}, None),
    "a component an image": (groups(), {"components": {**SMALL, "fine": 40}}, None),
    "one component": (groups(), {"components": {"fine": 1, "coarse": 1, "pca": 1}}, None),
    "more bits than images": (groups(), {"bits": 128}, None),
    "a batch larger than the data": (groups(), {"train": {"batch_size": 4096}}, None),
    "batches of three": (groups(), {"train": {"batch_size": 3}}, None),
}  # fmt: skip
#: Those that CI has; the nightly profile has all of them.
IN_CI = ("equal rows", "not a number", "one image", "more components than images")
#: Those that a loss may mind: with every method that learns from images alone.
TRAINED = ("equal rows", "one dimension", "tiny numbers", "more bits than images", "batches of three")


def numbers(content: object) -> list[float]:
    """All numbers in a JSON value."""
    if isinstance(content, dict):
        return [number for value in content.values() for number in numbers(value)]
    if isinstance(content, list):
        return [number for value in content for number in numbers(value)]
    return [content] if isinstance(content, int | float) else []


@pytest.mark.parametrize(("name", "method"), [
    pytest.param(name, method, marks=[] if name in IN_CI and method == "fused" else [pytest.mark.nightly])
    for name in CASES for method in ("fused", "dsch", "bihalf", "cibhash", "greedyhash", "sdc")
    if method == "fused" or name in TRAINED
])  # fmt: skip
def test_pipeline(name, method, tmp_path, run_stages):
    features, changes, refused = CASES[name]
    with h5py.File(tmp_path / "some.h5", "w") as file:
        file["features"] = features.astype(np.float32)
        file["labels"] = np.arange(len(features)) % 5
    directory = prepare(tmp_path / "run", {
        "dataset": {"name": "embeddings", "path": str(tmp_path / "some.h5"), "queries": None, "database": None,
                    "train": None}, "clip": {"model": None, "pretrained": None}, "method": method, "bits": 16,
        "extract": {"views": 2}, "components": SMALL, "concepts": {"min_frequency": None, "max_frequency": None},
    }, changes)  # fmt: skip
    for stage in STAGES:
        result = run_stages(directory, stage)
        if result.returncode:
            message = result.error()
            assert refused, f"{stage}: {message}"
            assert stage == refused[0] and refused[1] in message, f"{stage}: {message}"
            return
        assert result.stderr == "", result.stderr
    assert refused is None
    metrics = json.loads(Path(directory, "reports/metrics.json").read_text())
    assert all(map(math.isfinite, numbers(metrics)))
