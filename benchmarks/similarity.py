"""The stage ``similarity`` as rows grow to a million, and training from its row factor against the dense matrix.

    python benchmarks/similarity.py

The whole command `python -m stages similarity`, once a size: its time, its peak memory, and the recall of the
neighbours that it wrote, on rows of our own. Then epochs of UHSCM on 10,000 images in turns: with blocks from the
factor, and with blocks gathered from the n x n matrix in memory.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from harness import REPEATS, machine, peak_memory, ratios, report, shown, take_turns
from torch import Tensor

from stages.artifacts import CONCEPT_DISTRIBUTION, FEATURES, PROVENANCE_KEY, SIMILARITY, Provenance
from stages.hashnet import HashNet, HashNetConfig
from stages.hdf5 import write_text
from stages.params import parse
from stages.similarity.matrix import SimilarityMatrix, similarity_matrix
from stages.similarity.neighbours import TIE
from stages.tables import fixed_size_lists, matrix, write_table
from stages.train.batches import CachedViews
from stages.train.config import Params
from stages.train.methods.objective import Inputs
from stages.train.methods.uhscm import Uhscm

ROOT = Path(__file__).parents[1]
CONCEPTS, NEIGHBOURS = 80, 100
SIZES = (50_000, 200_000, 1_000_000)
#: Kinds of images that the clustered rows are drawn around.
KINDS = 4000
#: Rows of the case without clusters, and of the layout with whole rows.
WITHOUT, DENSE = 100_000, 20_000
#: Rows whose neighbours are looked up again; from about 1,600 on faiss is fast.
CHECKED = 2048
#: Of the training: images, dimensions of their features, code length, epochs a turn.
IMAGES, DIM, BITS, EPOCHS = 10_000, 512, 64, 4


def clustered(n: int) -> np.ndarray:
    """Concept distributions, float32 (n, 80), as ``mine`` makes them: the softmax of scores, which are those of one of
    4,000 kinds of images, of any frequency, plus noise. Half of the rows have two thirds of their mass on one concept.
    """
    rng = np.random.default_rng(0)
    kinds = 5 * rng.standard_normal((KINDS, CONCEPTS), dtype=np.float32)
    kind = rng.choice(KINDS, n, p=rng.dirichlet(np.ones(KINDS)))
    rows = np.empty((n, CONCEPTS), np.float32)
    for start in range(0, n, 65_536):
        scores = kinds[kind[start : start + 65_536]]
        scores += 1.5 * rng.standard_normal(scores.shape, dtype=np.float32)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        rows[start : start + 65_536] = weights / weights.sum(axis=1, keepdims=True)
    return rows


def uniform(n: int) -> np.ndarray:
    """Distributions without any cluster, float32 (n, 80), uniform among all there are: the hardest case."""
    rows = np.random.default_rng(0).standard_exponential((n, CONCEPTS), dtype=np.float32)
    return rows / rows.sum(axis=1, keepdims=True)


def run_stage(rows: np.ndarray, layout: str = "factor") -> dict[str, Any]:
    """Seconds and peak MB of the command, what it says of its search, and the recall of what it wrote."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        write_inputs(place, rows)
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["similarity"] |= {"neighbours": NEIGHBOURS, "layout": layout}
        (place / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        start = time.perf_counter()
        peak = peak_memory([sys.executable, "-m", "stages", "similarity"], place, {"PYTHONPATH": str(ROOT)})
        seconds = time.perf_counter() - start
        written = place / SIMILARITY
        search = json.loads(pq.read_schema(written).metadata[b"neighbours"])
        return {"seconds": round(seconds, 1), "memory_mb": round(peak),
                "written_mb": round(written.stat().st_size / 1e6), **search,
                "checked_recall": checked_recall(written, rows)}  # fmt: skip


def write_inputs(place: Path, rows: np.ndarray) -> None:
    """What the stage reads: of the features, it needs the ids alone."""
    n, ids, made = len(rows), np.arange(len(rows)), Provenance("mine", "d" * 64, "e" * 64)
    table = pa.table({"id": ids, "distribution": fixed_size_lists(rows)})
    write_table(table, place / CONCEPT_DISTRIBUTION, made, {"concepts": [f"concept {c}" for c in range(CONCEPTS)]})
    with h5py.File(place / FEATURES, "w") as file:
        write_text(file, PROVENANCE_KEY, made.to_json())
        file.create_dataset("image/features", (n, 1), "f2")
        file.create_dataset("train/views", (1, n, 1), "f2")
        file["image/id"] = file["train/id"] = ids


def checked_recall(written: Path, rows: np.ndarray) -> float:
    """The share of the neighbours written for some rows that are as similar as the true ones, ties included."""
    factor = similarity_matrix(rows, "signed").factor
    some = np.sort(np.random.default_rng(1).choice(len(rows), CHECKED, replace=False))
    found = np.concatenate([
        matrix(part.take(some[(some >= start) & (some < start + len(part))] - start), "neighbours")
        for start, part in parts(written)
    ])  # fmt: skip
    # The row itself is its own nearest neighbour, and is none.
    needed = faiss.knn(factor[some], factor, NEIGHBOURS + 1, metric=faiss.METRIC_INNER_PRODUCT)[0][:, -1:]
    cosines = np.einsum("qd,qkd->qk", factor[some], factor[found])
    return round(float((cosines >= needed - TIE).mean()), 4)


def parts(written: Path) -> Iterator[tuple[int, pa.Table]]:
    """The row groups of the neighbours, each with the number of its first row."""
    start = 0
    with pq.ParquetFile(written) as file:
        for group in range(file.num_row_groups):
            part = file.read_row_group(group, columns=["neighbours"])
            yield start, part
            start += len(part)


class Gathered:
    """The dense matrix in memory, and blocks gathered from it."""

    def __init__(self, similarity: SimilarityMatrix) -> None:
        self.values = torch.from_numpy(similarity.block(slice(None)))

    def block(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.values[rows[:, None], columns]


def training_work() -> tuple[dict[str, Callable[[], None]], dict[str, Callable[[], None]]]:
    """Epochs of UHSCM at the default sizes, and the blocks of as many steps alone: from the factor, and gathered."""
    torch.set_num_threads(1)  # as the stage does
    options = parse(Params, params_of_training()).train
    images = torch.nn.functional.normalize(torch.randn(IMAGES, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
    data = CachedViews(images[None], images, options.batch_size)
    similarity = similarity_matrix(clustered(IMAGES), "signed")
    objective = Uhscm(Inputs(images, None, similarity, options, BITS, 0))
    dense = Uhscm(Inputs(images, None, similarity, options, BITS, 0))
    dense.similarity = Gathered(similarity)

    def epochs(objective: Uhscm) -> None:
        torch.manual_seed(0)
        net = HashNet(HashNetConfig(DIM, options.hidden, BITS, "uhscm"))
        optimizer = torch.optim.AdamW(net.parameters(), options.lr)
        for epoch in range(EPOCHS):
            for inputs, rows in data.epoch(objective.views, epoch):
                loss = torch.stack(list(objective.terms(net(inputs), rows).values())).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    batches = [rows for epoch in range(EPOCHS) for _, rows in data.epoch(0, epoch)]

    def blocks(objective: Uhscm) -> None:
        for rows in batches:
            objective.similarity.block(rows, rows)

    return (
        {"factor": lambda: epochs(objective), "dense": lambda: epochs(dense)},
        {"factor": lambda: blocks(objective), "dense": lambda: blocks(dense)},
    )


def params_of_training() -> dict[str, Any]:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    return {key: params[key] for key in Params.model_fields} | {"method": "uhscm", "bits": BITS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of the training")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="rows of the stage")
    arguments = parser.parse_args()
    epochs, blocks = (take_turns(work, arguments.repeats) for work in training_work())
    stage = {f"{n:,} rows": run_stage(clustered(n)) for n in arguments.sizes}
    stage[f"{WITHOUT:,} rows without clusters"] = run_stage(uniform(WITHOUT))
    stage[f"{DENSE:,} rows, layout: dense"] = run_stage(clustered(DENSE), "dense")
    result = {
        **machine("faiss-cpu", "numpy", "pyarrow", "torch"), "repeats": arguments.repeats, "concepts": CONCEPTS,
        "neighbours": NEIGHBOURS, "stage": stage, "epochs": epochs, "blocks": blocks,
        "epoch_factor_to_dense": ratios(epochs["factor"], epochs["dense"]),
        "block_factor_to_dense": ratios(blocks["factor"], blocks["dense"]),
    }  # fmt: skip
    report("similarity", result, table_of(result))


def table_of(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"| similarity of {result['concepts']} concepts, {result['neighbours']} neighbours | seconds | peak memory "
        "| lists looked into | recall |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, run in result["stage"].items():
        looked = f"{run['probed']} of {run['lists']:,}" if run["search"] == "ivf" else "none: exact"
        lines.append(
            f"| {name} | {run['seconds']:.0f} | {run['memory_mb']:,} MB | {looked} | {run['checked_recall']:.4f} |"
        )
    lines += [
        "", f"| UHSCM, {IMAGES:,} images: time with the factor / with the dense matrix in memory | |", "|---|---|",
        f"| an epoch | {shown(result['epoch_factor_to_dense'])} |",
        f"| the blocks of the matrix alone | {shown(result['block_factor_to_dense'])} |",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
