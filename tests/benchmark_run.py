"""A small comparison on features around six directions, and what it gives."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from stage_runner import ROOT, write_params

from stages.benchmark import stage
from stages.benchmark.results import RESULTS
from stages.params import merged
from stages.tables import fixed_size_lists

DIM, COUNT = 16, 240
SMALL: dict[str, Any] = {
    "dataset": {"name": "embeddings", "path": "things.h5"}, "clip": {"model": None, "pretrained": None},
    "extract": {"views": 2}, "components": {"fine": 12, "coarse": 4, "pca": 8}, "device": "cpu",
    "concepts": {"min_frequency": None, "max_frequency": None}, "evaluate": {"precision_at": [1, 10]},
    "train": {"epochs": 2, "batch_size": 64, "hidden": 16, "checkpoint": 1},
}  # fmt: skip
PLAN: dict[str, Any] = {
    "datasets": [{"name": "things"}],
    "methods": ["itq", "dsch", "feature_cosine"],
    "bits": [8, 16],
    "seeds": [0, 1],
    "metrics": ["map_all", "map_at_1000"],
    "search": {
        "criterion": "auto", "bits": 8, "seed": 0,
        "grid": {"dsch": {"train.lr": [0.001, 0.02]}},
    },
}  # fmt: skip

#: ``python -m stages benchmark``, as a program of its own.
PROGRAM = """
import sys
from pathlib import Path
from stages.__main__ import one_line_errors
from stages.benchmark.stage import run
if __name__ == "__main__":
    with one_line_errors():
        run(Path("plan.yaml"), int(sys.argv[1]))
"""


def write_project(directory: Path, plan: dict[str, Any], text: bool = False, poisoned: bool = False) -> None:
    """Parameters, features with labels and splits, and a plan (with the changes `plan`).

    Args:
        text: a vocabulary with text features, one concept a direction; poisoned: labels drawn anew, and of no sense.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "stages").symlink_to(ROOT / "stages")
    rng = np.random.default_rng(0)
    centres, labels = rng.standard_normal((6, DIM)), rng.integers(0, 6, COUNT)
    with h5py.File(directory / "things.h5", "w") as file:
        file["features"] = (centres[labels] + 0.6 * rng.standard_normal((COUNT, DIM))).astype(np.float32)
        file["labels"] = np.random.default_rng(5).integers(0, 6, COUNT) if poisoned else labels
        file["split"] = ["test" if row % 6 == 0 else "train" for row in range(COUNT)]
    changes = SMALL
    if text:
        texts = centres / np.linalg.norm(centres, axis=1, keepdims=True)
        words = pa.table({"concept": list("abcdef"), "text_feature": fixed_size_lists(texts.astype(np.float32))})
        pq.write_table(words, directory / "words.parquet")
        changes = merged(SMALL, {"concepts": {"vocabulary": "words.parquet"}})
    write_params(directory, changes)
    write_plan(directory, plan)


def write_plan(directory: Path, changes: dict[str, Any]) -> None:
    (directory / "plan.yaml").write_text(yaml.safe_dump({**PLAN, **changes}), encoding="utf-8")


def compare(workers: int = 1) -> None:
    """Carry out the plan of the current directory in this process."""
    stage.run(Path("plan.yaml"), workers)


def start(directory: Path, workers: int = 1) -> subprocess.Popen[str]:
    """Carry out the plan of `directory` as a program."""
    (directory / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(directory), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "program.py", str(workers)], cwd=directory, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def measured(directory: Path = Path()) -> pd.DataFrame:
    """The results but for the times, which no two runs share."""
    return pq.read_table(directory / RESULTS).drop_columns(["seconds"]).to_pandas()


def assert_same(first: pd.DataFrame, second: pd.DataFrame) -> None:
    """Bit for bit."""
    pd.testing.assert_frame_equal(first, second, check_exact=True)
