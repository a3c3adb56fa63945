"""How extraction scales over workers of one core: strongly to two, weakly to sixteen, and what goes over the network.

    python benchmarks/distributed.py

Two workers beside two bare encoders, which are as fast as two processes can be on this machine. Sixteen shares are run
one after the other, so that the slowest tells when sixteen machines would be done. docs/distributed.md reads the
results.
"""

import argparse
import io
import multiprocessing
import shutil
import tempfile
import time
from contextlib import chdir
from dataclasses import replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from conversion import convert, generate
from extraction import pinned
from harness import machine, ratios, report, shown, spread

from stages.artifacts import IMAGES
from stages.clip import load_clip
from stages.extract.config import Params
from stages.extract.parts import Parts
from stages.extract.pixels import encode_row_groups
from stages.images import ImageShards
from stages.params import parse
from stages.parts import write_part
from stages.workers import cores

VIEWS, REPEATS = 4, 3
#: Images of the strong scaling, and of a row group; of a share of the weak scaling, and of a row group.
STRONG, STRONG_GROUP = 96, 8
SHARE, SHARE_GROUP, SHARES = 600, 100, (1, 2, 4, 8, 16)
#: Length of the features that are joined.
DIM = 512
#: Of every so many images one is for training and gets views.
TRAIN = 5


def project(place: Path, model: str, images: int, pixels: int, group: int, views: bool) -> None:
    """Image shards of rendered scenes as JPEG, and a model, below `place`."""
    source = place.with_name(f"{place.name}-source")
    source.mkdir()
    generate(source, images, pixels)
    convert(source, place, cores())
    for file in sorted((place / IMAGES).glob("*.parquet")):
        table = pq.read_table(file)
        marks = pa.array((np.arange(len(table)) % TRAIN == 0) & views)
        table = table.set_column(table.schema.get_field_index("is_train"), "is_train", marks)
        pq.write_table(table, file, row_group_size=group)
    pinned(model, place)


def options() -> Params:
    section = {"engine": "local", "views": VIEWS, "batch_size": 32, "precision": "float32", "workers": 0, "seed": 0}
    return parse(Params, {"device": "cpu", "extract": section})


def worker(place: Path, index: int, ready: Barrier, told: Queue) -> None:
    """One of two processes: what it does when it is alone or one of two, extraction and bare encoder in turns."""
    torch.set_num_threads(1)
    with chdir(place):
        params, clip = options(), load_clip(precision="float32")
        pictures = torch.zeros((STRONG_GROUP, *clip.image_size, 3), dtype=torch.uint8)
        for repeat in range(REPEATS + 1):
            for count in (1, 2):
                for kind in ("extraction", "encoder"):
                    parts = Parts.of(ImageShards(), clip, params.extract, alone=False)
                    ready.wait()
                    start = time.perf_counter()
                    if index < count and kind == "extraction":
                        encode_row_groups(clip, parts.missing(index, count), params)
                    elif index < count:
                        for _ in range(STRONG // len(pictures) // count):
                            clip.encode_images(pictures)
                    told.put((repeat, kind, count, time.perf_counter() - start))
                    ready.wait()
                    if not index:
                        shutil.rmtree(parts.directory)
                    ready.wait()


def strong(place: Path) -> dict[str, Any]:
    """Seconds of one and of two workers, and how often the one goes into the other."""
    project(place, "ViT-B-32", STRONG, 256, STRONG_GROUP, views=False)
    context = multiprocessing.get_context("spawn")
    ready, told = context.Barrier(2), context.Queue()
    processes = [context.Process(target=worker, args=(place, index, ready, told), daemon=True) for index in range(2)]
    for process in processes:
        process.start()
    times: dict[tuple[int, str, int], float] = {}
    for _ in range((REPEATS + 1) * 2 * 2 * 2):
        repeat, kind, count, seconds = told.get(timeout=200)
        times[repeat, kind, count] = max(times.get((repeat, kind, count), 0), seconds)
    for process in processes:
        process.join(30)
    found: dict[str, Any] = {"images": STRONG}
    for kind in ("extraction", "encoder"):
        one, two = ([times[repeat, kind, count] for repeat in range(1, REPEATS + 1)] for count in (1, 2))
        found[kind] = {"one": spread(one), "two": spread(two), "speedup": ratios(one, two)}
    return found


def weak(place: Path) -> dict[str, Any]:
    """Seconds of the slowest of n shares of n times as many images; of the merge; bytes that pass."""
    project(place, "scenes-clip", SHARE * SHARES[-1], 64, SHARE_GROUP, views=True)
    torch.set_num_threads(1)
    result: dict[str, Any] = {"share": SHARE, "slowest": {}, "mean": {}}
    with chdir(place):
        params, clip = options(), load_clip(precision="float32")
        parts = Parts.of(ImageShards(), clip, params.extract)
        groups = list(parts.groups.items())
        encode_row_groups(clip, dict(groups[:2]), params)
        for count in SHARES:
            work = groups[: count * SHARE // SHARE_GROUP]
            seconds = []
            for index in range(count):
                start = time.perf_counter()
                encode_row_groups(clip, dict(work[index::count]), params)
                seconds.append(time.perf_counter() - start)
            result["slowest"][count], result["mean"][count] = max(seconds), sum(seconds) / count
        images = SHARE * SHARES[-1]
        result["image_bytes"] = sum(file.stat().st_size for file in ImageShards().files) / images
        written = sum(part.stat().st_size for part in parts.groups)
        result["feature_bytes"], result["dim"] = written / images, clip.dim
        result["merge_mb_s"] = merging(parts)
    return result


def merging(parts: Parts) -> float:
    """MB of parts a second that are joined, of features of :data:`DIM` numbers."""
    clip = replace(parts.clip, config=replace(parts.clip.config, dim=DIM))
    parts = Parts.of(parts.shards, clip, parts.options)
    for part, (file, group) in parts.groups.items():
        trained = pq.ParquetFile(file).read_row_group(group, columns=["is_train"])["is_train"].to_pylist()
        images, views = np.ones((len(trained), DIM), np.float16), np.ones((VIEWS, sum(trained), DIM), np.float16)
        write_part(part, images=images, views=views)
    written = sum(part.stat().st_size for part in parts.groups)
    start = time.perf_counter()
    parts.join()
    return written / (time.perf_counter() - start) / 1e6


def table_of(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    text = io.StringIO()
    found = result["strong"]
    print(f"| {found['images']} images, ViT-B/32, workers of a core | one | two | speedup by turns | of the fastest |",
          file=text)  # fmt: skip
    print("|---|---|---|---|---|", file=text)
    for kind, name in (("extraction", "`extract --shard`"), ("encoder", "bare encoder, two processes")):
        row = found[kind]
        fastest = row["one"][1] / row["two"][1]
        print(f"| {name} | {shown(row['one'])} s | {shown(row['two'])} s | {shown(row['speedup'])} | {fastest:.2f} |",
              file=text)  # fmt: skip
    found = result["weak"]
    print(f"\n| shares of {found['share']} images, `scenes-clip` | slowest | mean | efficiency |", file=text)
    print("|---|---|---|---|", file=text)
    first = found["mean"][SHARES[0]]
    for count in SHARES:
        slowest = found["slowest"][count]
        print(f"| {count} | {slowest:.2f} s | {found['mean'][count]:.2f} s | {first / slowest:.0%} |", file=text)
    print(f"\n| bytes an image | |\n|---|---|\n| read: the encoded image | {found['image_bytes']:,.0f} |", file=text)
    views = f"{VIEWS} views of each {TRAIN}th image, d = {found['dim']}"
    print(f"| written: features, {views} | {found['feature_bytes']:,.0f} |", file=text)
    print(f"\n`--merge` joins {found['merge_mb_s']:.0f} MB/s of features with d = {DIM}.", file=text)
    return text.getvalue().rstrip()


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    result: dict[str, Any] = machine("torch", "numpy", "open_clip_torch")
    with tempfile.TemporaryDirectory() as directory:
        result |= {"strong": strong(Path(directory) / "strong"), "weak": weak(Path(directory) / "weak")}
    report("distributed", result, table_of(result))


if __name__ == "__main__":
    main()
