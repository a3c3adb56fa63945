"""How the cost of each stage grows with its work, and how near the encoder and the Hamming scan come to the machine.

    python benchmarks/scaling.py

Each stage runs as a user runs it, at three sizes of what its work grows with: images, concepts, components, bits. A
line is fitted to the three times: what a start costs, and what each further piece of work costs. docs/performance.md
reads the results.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import open_clip
import torch
import yaml
from harness import machine, peak_memory, report
from torch.utils.flop_counter import FlopCounterMode

from stages.__main__ import STAGES
from stages.params import merged

ROOT = Path(__file__).parents[1]

#: Queries of the sweep over images; the rest is database, half of which trains.
QUERIES = 500
#: Sizes of each kind of work, and the stages whose cost grows with it.
SWEEPS: Mapping[str, tuple[Sequence[int], Sequence[str]]] = {
    "images": ((1500, 4500, 10_500), STAGES),
    "concepts": ((50, 200, 800), ("mine", "similarity", "train")),
    "components": ((50, 200, 800), ("components", "train")),
    "bits": ((16, 64, 256), ("train", "encode", "evaluate")),
}
#: Size of the data set, where that is not what grows.
USUAL = 4500


def settings(kind: str, size: int, place: Path) -> dict[str, Any]:
    """What differs from ``params.yaml`` at that size."""
    n = size if kind == "images" else USUAL
    changes: dict[str, Any] = {"dataset": {"queries": QUERIES, "database": n - QUERIES, "train": n // 2}}
    if kind == "concepts":
        nouns = (ROOT / "stages/mine/vocabularies/nouns.txt").read_text(encoding="utf-8").splitlines()
        words = [line for line in nouns if line and not line.startswith("#")]
        (place / "vocabulary.txt").write_text("\n".join(words[:size]) + "\n", encoding="utf-8")
        # All are kept, so that what follows grows as well.
        changes["concepts"] = {"vocabulary": "vocabulary.txt", "min_frequency": None, "max_frequency": 1.0}
    if kind == "components":
        changes |= {"method": "dsch", "components": {"fine": size, "iterations": 20}}
    if kind == "bits":
        changes["bits"] = size
    return changes


def run_stage(name: str, place: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of ``python -m stages NAME``."""
    start = time.perf_counter()
    peak = peak_memory([sys.executable, "-m", "stages", name], place, {"PYTHONPATH": str(ROOT)})
    return time.perf_counter() - start, peak


def sweep(kind: str, sizes: Iterable[int], stages: Sequence[str], place: Path) -> dict[str, dict[str, Any]]:
    """Times and memory of `stages` at each size, and the line through the times; other stages run where needed."""
    found: dict[str, dict[str, Any]] = {name: {"seconds": [], "memory_mb": []} for name in stages}
    usual = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    usual["concepts"]["vocabulary"] = str(ROOT / usual["concepts"]["vocabulary"])
    sizes = list(sizes)
    for number, size in enumerate(sizes):
        params = merged(usual, settings(kind, size, place))
        (place / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        # At a second size, what comes before the first stage of the sweep is there already.
        for name in STAGES[0 if number == 0 else STAGES.index(stages[0]):]:
            print(f"{kind} {size:,}: {name}", file=sys.stderr)
            seconds, peak = run_stage(name, place)
            if name in stages:
                found[name]["seconds"].append(seconds)
                found[name]["memory_mb"].append(peak)
            if name == stages[-1]:
                break
    for costs in found.values():
        slope, start = np.polyfit(sizes, costs["seconds"], 1)
        line = start + slope * np.array(sizes)
        costs |= {"start": float(start), "slope": float(slope),
                  "off": float(np.max(np.abs(line / costs["seconds"] - 1)))}  # fmt: skip
    return found


def fastest(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of some repetitions, after one that warms up."""
    work()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def machine_limits() -> dict[str, float]:
    """What the machine has to give: float32 products in GFLOP/s, and memory read in GB/s."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    values = torch.ones(2**27, dtype=torch.float64)  # 1 GiB
    return {
        "gflops": 2 * 2048**3 / fastest(lambda: a @ b) / 1e9, "read_gb_s": values.nbytes / fastest(values.sum) / 1e9,
    }  # fmt: skip


def encoder_roofline(name: str, batch: int) -> dict[str, float]:
    """Operations of an image, images a second, and GFLOP/s of an image tower with random weights."""
    model = open_clip.create_model(name).eval()
    size = model.visual.image_size
    images = torch.rand(batch, 3, *(size if isinstance(size, tuple) else (size, size)))
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            model.encode_image(images[:1])
        seconds = fastest(lambda: model.encode_image(images), 3)
    operations = counter.get_total_flops()
    return {"gflop_an_image": operations / 1e9, "images_a_second": batch / seconds,
            "gflops": operations * batch / seconds / 1e9}  # fmt: skip


def scan_roofline(n: int, bits: int = 64) -> dict[str, float]:
    """A flat Hamming scan of n codes: nanoseconds a pair and GB/s for one query, nanoseconds a pair for many."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (n, bits // 8), dtype=np.uint8)
    index = faiss.IndexBinaryFlat(bits)
    index.add(codes)
    one, many = codes[:1], codes[:256]
    single, batch = fastest(lambda: index.search(one, 20)), fastest(lambda: index.search(many, 20), 3)
    return {"codes": n, "one_query_ns": single / n * 1e9, "one_query_gb_s": codes.nbytes / single / 1e9,
            "batch_ns": batch / n / len(many) * 1e9}  # fmt: skip


def table_of(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    text = io.StringIO()
    for kind, (sizes, _) in SWEEPS.items():
        heads = " | ".join(f"{size:,}" for size in sizes)
        print(f"| {kind} | {heads} | start | each further | off the line | peak memory |", file=text)
        print("|---" * (len(sizes) + 5) + "|", file=text)
        for name, costs in result["sweeps"][kind].items():
            seconds = " | ".join(f"{value:.1f} s" for value in costs["seconds"])
            print(f"| {name} | {seconds} | {costs['start']:.1f} s | {costs['slope'] * 1e3:.3f} ms "
                  f"| {costs['off']:.0%} | {max(costs['memory_mb']):.0f} MB |", file=text)  # fmt: skip
        print(file=text)
    limits = result["machine"]
    print("| roofline | |\n|---|---|", file=text)
    print(f"| products of matrices, float32 | {limits['gflops']:.0f} GFLOP/s |", file=text)
    print(f"| memory read | {limits['read_gb_s']:.1f} GB/s |", file=text)
    for name, tower in result["encoders"].items():
        print(f"| {name} | {tower['gflop_an_image']:.2f} GFLOP an image, {tower['images_a_second']:.0f} images/s, "
              f"{tower['gflops'] / limits['gflops']:.0%} of the products |", file=text)  # fmt: skip
    for scan in result["scans"]:
        print(f"| Hamming scan, {scan['codes']:,} codes of 64 bits | one query {scan['one_query_ns']:.2f} ns a code "
              f"({scan['one_query_gb_s'] / limits['read_gb_s']:.0%} of the memory's speed), "
              f"256 queries {scan['batch_ns']:.2f} ns a pair |", file=text)  # fmt: skip
    return text.getvalue().rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    result: dict[str, Any] = machine("numpy", "torch", "open_clip_torch", "faiss-cpu") | {"sweeps": {}}
    result["machine"] = machine_limits()
    result["encoders"] = {name: encoder_roofline(name, batch) for name, batch in (("ViT-B-32", 32), ("RN50", 16))}
    result["scans"] = [scan_roofline(n) for n in (100_000, 1_000_000, 10_000_000)]
    for kind, (sizes, stages) in SWEEPS.items():
        with tempfile.TemporaryDirectory() as directory:
            result["sweeps"][kind] = sweep(kind, sizes, stages, Path(directory))
    report("scaling", result, table_of(result))


if __name__ == "__main__":
    main()
