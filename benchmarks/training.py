"""The training loop against bare steps on batches that are ready, and the memory of training on a million images.

    python benchmarks/training.py                   # both, about five minutes, 6 GB of disk
    python benchmarks/training.py --images 0        # the loop alone

The bare steps are those that everybody writes: forward, the same loss, backward, optimizer. Times are for the default
sizes of ``params.yaml``, with features of 512 dimensions. Memory is that of the stages' own commands, on synthetic
inputs in the artifacts' formats. Writes ``benchmarks/results/training.json`` and ``.md``.
"""

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from harness import REPEATS, machine, peak_memory, ratios, report, shown, take_turns
from torch import Tensor

from stages.artifacts import COMPONENTS, FEATURES, IMAGES, PROVENANCE_KEY, SIMILARITY, Provenance
from stages.components.artifact import read_components
from stages.extract.embeddings import unit_rows
from stages.extract.features_file import lay_out
from stages.features import Features
from stages.hashnet import HashNet, HashNetConfig
from stages.hdf5 import write_text
from stages.images import SCHEMA
from stages.params import parse
from stages.similarity.matrix import read_similarity, similarity_matrix
from stages.tables import fixed_size_lists, write_table
from stages.train.batches import Batches, CachedViews
from stages.train.config import Params
from stages.train.methods.fused import bit_loss
from stages.train.methods.objective import Inputs, Objective, Terms
from stages.train.methods.registry import METHODS
from stages.train.streamed import StreamedViews
from stages.train.trainer import make_optimizer, parameter_groups, train
from stages.weights.config import Backbone
from stages.weights.stage import pin_backbone

PARAMS = Path(__file__).parents[1] / "params.yaml"
DIM, VIEWS, CONCEPTS = 512, 4, 80

#: Images of the loop's measurements; a repetition is an epoch.
LOOP_IMAGES = 20_000
#: Images that are queries, of those that are encoded.
QUERIES = 10_000


class FixedBits(Objective):
    """The loss of ``fused``, with codes that are drawn instead of found: finding them is no part of a step."""

    views = 0

    def __init__(self, inputs: Inputs) -> None:
        drawn = torch.rand(len(inputs.features), inputs.bits, generator=torch.Generator().manual_seed(0))
        self.target = (drawn < 0.5).float() * 2 - 1

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        return {"bits": bit_loss(codes, self.target[rows])}


LOSSES: dict[str, type[Objective]] = {"uhscm": METHODS["uhscm"], "dsch": METHODS["dsch"], "fused": FixedBits}


def write_inputs(n: int) -> None:
    """What ``train`` reads of n images, synthetic, into the current directory."""
    origin, rng = Provenance("benchmark", "d" * 64, "e" * 64), np.random.default_rng(0)
    ids, everywhere = np.arange(n), np.ones(n, bool)
    IMAGES.mkdir(parents=True)
    pin_backbone(Backbone(model=None, weights=None))
    pixels = pa.StructArray.from_arrays([pa.array([b""] * n), pa.nulls(n, pa.string())], fields=list(SCHEMA[1].type))
    columns = [ids, pixels, pa.nulls(n, SCHEMA[2].type), ids < QUERIES, ids >= QUERIES, everywhere]
    table = pa.table([pa.array(column) for column in columns], schema=SCHEMA)
    pq.write_table(table.replace_schema_metadata({PROVENANCE_KEY: origin.to_json()}), IMAGES / "images-00000.parquet")
    noise, centres = rng.standard_normal((16, 1024, DIM), np.float32), rng.standard_normal((100, DIM), np.float32)
    with h5py.File(FEATURES, "w") as file:
        images, views = lay_out(file, ids, ids, DIM, VIEWS, origin, {})
        for start in range(0, n, 1024):
            rows = centres[rng.integers(0, len(centres), min(1024, n - start))]
            stop = start + len(rows)
            for view in range(VIEWS + 1):  # and the image itself
                found = unit_rows(rows + np.roll(noise[rng.integers(16)], rng.integers(DIM), axis=1)[: len(rows)])
                if view < VIEWS:
                    views[view, start:stop] = found
                else:
                    images[start:stop] = found
    shares = similarity_matrix(rng.random((n, CONCEPTS), np.float32) ** 8, "signed")
    columns = {"id": ids, "factor": fixed_size_lists(shares.factor)}
    write_table(pa.table(columns), SIMILARITY, origin, {"scale": shares.scale, "offset": shares.offset})
    options = params("dsch")[1]["components"]
    values = -np.sort(-(rng.random((n, options["top"]), np.float32) ** 4), axis=1)
    first = rng.integers(0, options["fine"], (n, 1), np.int32)
    with h5py.File(COMPONENTS, "w") as file:
        made = Provenance("components", origin.dataset, origin.model, params=options)
        write_text(file, PROVENANCE_KEY, made.to_json())
        file["weights"] = np.full(options["fine"], 1 / options["fine"], np.float32)
        file["coarse_labels"] = (np.arange(options["fine"]) % options["coarse"]).astype(np.int32)
        file["responsibilities/index"] = (first + np.arange(options["top"], dtype=np.int32)) % options["fine"]
        file["responsibilities/value"] = values / values.sum(axis=1, keepdims=True)
        file["train/id"] = ids


def params(method: str) -> tuple[Params, dict[str, Any]]:
    """Those of ``params.yaml`` on the CPU, for one epoch, as the stage and as the file has them."""
    content = yaml.safe_load(PARAMS.read_text(encoding="utf-8")) | {"method": method, "device": "cpu"}
    content["train"] |= {"epochs": 1}
    return parse(Params, {name: content[name] for name in Params.model_fields}), content


def new_net(options: Params) -> HashNet:
    torch.manual_seed(0)
    return HashNet(HashNetConfig(DIM, options.train.hidden, options.bits, options.method)).train()


def bare(options: Params, objective: Objective, ready: list[tuple[Tensor, Tensor]]) -> None:
    """What everybody writes."""
    net = new_net(options)
    optimizer, _ = make_optimizer(parameter_groups(net, objective, options.train.lr), options.train, 1)
    for inputs, rows in ready:
        loss = torch.stack(list(objective.terms(net(inputs), rows).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def loop(options: Params, objective: Objective, data: Batches) -> None:
    """The whole training, but for what comes before the first step of an epoch."""
    train(new_net(options), data, objective, options.train, 0, Path("none"), lambda losses: None)


def measure_loop(method: str, repeats: int) -> dict[str, Any]:
    """Milliseconds of a step, and how often the bare step goes into that of the loop, in memory and streamed.

    Streamed features come from the page cache here, as the file is small: the disk's own speed is no part of it.
    """
    options, _ = params(method)
    with Features() as features:
        images = torch.from_numpy(features.train())
        objective = LOSSES[method](
            Inputs(images, read_components(), read_similarity()[0], options.train, options.bits, options.seed)
        )
        shown_views = torch.from_numpy(features.views()) if objective.views else images[None]
        cached = CachedViews(shown_views, images, options.train.batch_size)
        streamed = StreamedViews(features, options.train.batch_size, torch.device("cpu"))
        objective.begin_epoch(0, lambda: cached.all_codes(new_net(options)))
        objective.begin_epoch = lambda epoch, all_codes: None
        ready = list(cached.epoch(objective.views, 0))
        times = take_turns({
            "bare": lambda: bare(options, objective, ready), "loop": lambda: loop(options, objective, cached),
            "streamed": lambda: loop(options, objective, streamed),
        }, repeats)  # fmt: skip
    return {
        "ms_per_step": {name: round(statistics.median(t) * 1e3 / len(ready), 3) for name, t in times.items()},
        "loop / bare": ratios(times["loop"], times["bare"]),
        "streamed / bare": ratios(times["streamed"], times["bare"]),
    }


def measure_memory(directory: Path, stage: str, method: str) -> dict[str, float]:
    """Seconds, and peak memory in MB, of a stage's command; of ``train`` for one epoch."""
    (directory / "params.yaml").write_text(yaml.safe_dump(params(method)[1]), encoding="utf-8")
    start = time.perf_counter()
    peak = peak_memory([sys.executable, "-m", "stages", stage], directory, {"PYTHONPATH": str(PARAMS.parent)})
    return {"seconds": round(time.perf_counter() - start, 1), "peak_mb": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--images", type=int, default=1_000_000, help="in the measurement of memory; 0 for none")
    parser.add_argument("--directory", type=Path, help="where its inputs go, if not among the temporary files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as the stage does
    result: dict[str, Any] = {
        **machine("torch", "numpy", "h5py"), "repeats": arguments.repeats, "dim": DIM, "views": VIEWS,
        "loop": {"images": LOOP_IMAGES}, "memory": {"images": arguments.images},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=arguments.directory) as place, chdir(place):
        write_inputs(LOOP_IMAGES)
        for method in LOSSES:
            result["loop"][method] = measure_loop(method, arguments.repeats)
            print(method, result["loop"][method], flush=True)  # of a run that does not end, so much is known
    if arguments.images:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as place:
            with chdir(place):
                write_inputs(arguments.images)
                result["memory"]["features_mb"] = round(FEATURES.stat().st_size / 1e6)
            for stage, method in (("train", "uhscm"), ("train", "dsch"), ("encode", "dsch")):
                name = stage if stage == "encode" else f"{stage}, {method}"
                result["memory"][name] = measure_memory(Path(place), stage, method)
                print(name, result["memory"][name], flush=True)
    report("training", result, table_of(result))


def table_of(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| ms a step | bare | loop | streamed | loop / bare | streamed / bare |", "|---" * 6 + "|"]
    for method in LOSSES:
        found = result["loop"][method]
        cells = [*(f"{value:.2f}" for value in found["ms_per_step"].values()),
                 shown(found["loop / bare"]), shown(found["streamed / bare"])]  # fmt: skip
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    memory = result["memory"]
    if memory["images"]:
        lines += [f"\n{memory['images']:,} images x {DIM}, {VIEWS} views, {memory['features_mb']:,} MB of features:\n",
                  "| | seconds | peak memory |", "|---|---|---|"]  # fmt: skip
        lines += [f"| {name} | {found['seconds']:.0f} | {found['peak_mb']:,.0f} MB |"
                  for name, found in memory.items() if isinstance(found, dict)]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
