"""A hundred million codes of 64 bits in shards on disk: time of a search, cold and warm, and its memory.

    python benchmarks/sharded_search.py

docs/distributed.md reckons a billion codes on ten machines from the results.
"""

import argparse
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from harness import machine, peak_memory, report, shown, spread

from stages.artifacts import Provenance
from stages.index import binary
from stages.index.sharded import Found, ShardedIndex, build, merged

CODES, PER_SHARD, BITS, TOP = 100_000_000, 10_000_000, 64, 100
BATCHES = {1: 5, 16: 3, 256: 2}
MACHINES = 10


def blocks(count: int) -> Iterator[np.ndarray]:
    """Random codes."""
    rng = np.random.default_rng(0)
    for start in range(0, count, 2**20):
        yield rng.integers(0, 2**64, min(2**20, count - start), np.uint64).view(np.uint8).reshape(-1, BITS // 8)


def queries(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, BITS // 8), np.uint8)


def forget(directory: Path) -> None:
    """Have the system drop the pages of the shards that it keeps."""
    for file in directory.iterdir():
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def by_one_index(count: int, asked: np.ndarray) -> Found:
    """What one flat index of all codes finds."""
    index = faiss.IndexBinaryFlat(BITS)
    for block in blocks(count):
        index.add(block)
    found = [binary.nearest(index, code, TOP) for code in asked]
    return tuple(map(np.stack, zip(*found, strict=True)))


def searched_by_ray(directory: Path, asked: np.ndarray) -> dict[str, float]:
    from stages.index.sharded_ray import RayShards
    from stages.ray_pool import ray_machines

    with ray_machines() as machines:
        index = RayShards(directory, machines)
        index.nearest(asked[:1], TOP)
        return {"1": seconds(lambda: index.nearest(asked[:1], TOP)), str(len(asked)): seconds(
            lambda: index.nearest(asked, TOP))}  # fmt: skip


def measure(directory: Path, count: int) -> dict[str, Any]:
    result: dict[str, Any] = {"codes": count, "per_shard": PER_SHARD, "bits": BITS, "top": TOP, "machines": MACHINES}
    result["build_seconds"] = seconds(lambda: build(directory, blocks(count), PER_SHARD, Provenance("codes")))
    index = ShardedIndex(directory)
    result["bytes"] = sum(index.manifest.sizes)
    asked = queries(max(BATCHES))
    forget(directory)
    result["cold"] = seconds(lambda: index.nearest(asked[:1], TOP))
    result["warm"] = {}
    for batch, repeats in BATCHES.items():
        index.nearest(asked[:1], TOP)
        result["warm"][batch] = spread([seconds(lambda n=batch: index.nearest(asked[:n], TOP)) for _ in range(repeats)])
    result["ray"] = searched_by_ray(directory, asked)
    parts = [index.nearest(asked, TOP, [0])] * MACHINES
    result["merge_seconds"] = min(seconds(lambda: merged(parts, TOP)) for _ in range(3))
    for name, work in {"search": ["--search", str(directory)], "imports": ["--search", ""]}.items():
        result[f"{name}_memory_mb"] = peak_memory([sys.executable, __file__, *work], Path.cwd())
    rows, distances = index.nearest(asked[:4], TOP)
    expected = by_one_index(count, asked[:4])
    result["same_as_one_index"] = bool(np.array_equal(rows, expected[0]) and np.array_equal(distances, expected[1]))
    return result


def table_of(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    text, count = io.StringIO(), result["codes"]
    size = result["bytes"] / 1e6
    print(f"| {count:,} codes of {BITS} bits in {count // PER_SHARD} shards, {size:.0f} MB | |\n|---|---|", file=text)
    print(f"| build | {result['build_seconds']:.1f} s |", file=text)
    print(f"| one query, shards not in memory | {result['cold']:.2f} s, "
          f"{size / result['cold']:.0f} MB/s |", file=text)  # fmt: skip
    for batch, times in result["warm"].items():
        pair = times[0] / batch / count * 1e9
        print(f"| {batch} queries, top {TOP}, warm | {shown(times)} s, {pair:.3f} ns a pair |", file=text)
    for batch, time_taken in result["ray"].items():
        print(f"| {batch} queries by {result['cores']} Ray actors | {time_taken:.2f} s |", file=text)
    merging = result["merge_seconds"] * 1e3
    print(f"| merging what {MACHINES} machines find for {max(BATCHES)} queries | {merging:.0f} ms |", file=text)
    print(f"| memory of a search of {max(BATCHES)} queries | {result['search_memory_mb']:.0f} MB, of which imports "
          f"{result['imports_memory_mb']:.0f} MB |", file=text)  # fmt: skip
    print(f"| same rows as one index of all | {'yes' if result['same_as_one_index'] else 'NO'} |", file=text)
    return text.getvalue().rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codes", type=int, default=CODES)
    parser.add_argument("--search", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.search is not None:
        if arguments.search:
            ShardedIndex(Path(arguments.search)).nearest(queries(max(BATCHES)), TOP)
        return
    place = Path(tempfile.mkdtemp())
    try:
        result = machine("numpy", "faiss-cpu", "ray") | measure(place / "shards", arguments.codes)
    finally:
        shutil.rmtree(place)
    report("sharded_search", result, table_of(result))


if __name__ == "__main__":
    main()
